//! What cannot be told to a guest.

use aleph_types::{Classify, ErrorClass};

/// A VM of which cloud-init could not be told. Nothing in it repeats what a user keeps secret:
/// fields are named by their place.
#[derive(Debug, thiserror::Error)]
pub enum CloudInitError {
    /// A field that is not of its form.
    #[error("{field} {why}")]
    Field {
        /// Its path, such as `files[3].path`.
        field: String,
        /// What is wrong, to be read after it.
        why: &'static str,
    },
    /// More of something than a guest is told.
    #[error("{field} has {there}, at most {most} are taken")]
    TooMuch {
        /// Its path.
        field: String,
        /// How much there is.
        there: usize,
        /// How much there may be.
        most: usize,
    },
    /// User-data that cloud-init would not take, or that would take away what the node promised.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// A document that could not be written.
    #[error("cannot write the document for the guest")]
    Yaml(#[source] serde_saphyr::ser::Error),
    /// An image that could not be made.
    #[error("cannot make the seed's file system")]
    Image(#[source] std::io::Error),
}

/// What is wrong with a user's own user-data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    /// More bytes than are taken, after decompression.
    #[error("user-data has more than {0} bytes")]
    TooLong(usize),
    /// A gzip stream that ends early or is none.
    #[error("user-data begins as gzip does, and cannot be decompressed")]
    Gzip,
    /// Neither text nor gzip.
    #[error("user-data is not UTF-8 text")]
    NotText,
    /// A beginning that cloud-init does not know, which it would ignore.
    #[error("user-data begins with nothing that cloud-init knows")]
    Unknown,
    /// Only white space, or a `#cloud-config` without a key.
    #[error("user-data says nothing")]
    Empty,
    /// A cloud-config that is no YAML.
    #[error("user-data is not YAML: line {line}, column {column}")]
    NotYaml {
        /// From 1; 0 where it is not known.
        line: u64,
        /// From 1; 0 where it is not known.
        column: u64,
    },
    /// A cloud-config that is YAML, and no mapping of keys.
    #[error("user-data is a cloud-config that is not a mapping")]
    NotMapping,
    /// A key that the node sets.
    #[error("user-data sets {0}, which the node sets")]
    Owned(&'static str),
    /// A key to which the node adds, in a form to which nothing can be added.
    #[error("user-data has {0} that is not a list")]
    NotList(&'static str),
    /// The user's entry would be merged with the node's, and win.
    #[error("user-data describes the user {0}, whom the node makes")]
    OurUser(&'static str),
    /// `merge_how` or `merge_type` in a form on which cloud-init fails.
    #[error("user-data has a {0} that cloud-init does not know")]
    MergeHow(&'static str),
    /// A part handler takes the place of cloud-init's own.
    #[error("user-data has a part handler")]
    PartHandler,
    /// A character that ends a line to some readers of YAML and not to others.
    #[error("user-data has U+0085, U+2028 or U+2029, which ends a line to cloud-init")]
    LineBreak,
    /// A `#cloud-config-archive` that is no list of documents.
    #[error("user-data is an archive that is not a list of documents")]
    NotArchive,
    /// A `#cloud-config-jsonp` that is no JSON patch.
    #[error("user-data is not a JSON patch: line {line}, column {column} of it")]
    NotPatch {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A MIME message that cannot be taken apart.
    #[error("user-data {0}")]
    Message(&'static str),
    /// A MIME message of which cloud-init would change the characters.
    #[error("user-data is a MIME message with characters beyond ASCII")]
    MimeText,
}

impl CloudInitError {
    pub(super) fn field(field: impl Into<String>, why: &'static str) -> Self {
        Self::Field {
            field: field.into(),
            why,
        }
    }
}

impl Classify for CloudInitError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Field { .. } | Self::TooMuch { .. } | Self::UserData(_) => ErrorClass::Invalid,
            Self::Yaml(_) | Self::Image(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Field { .. } => "bad_guest_field",
            Self::TooMuch { .. } => "too_much",
            Self::UserData(_) => "bad_user_data",
            Self::Yaml(_) => "guest_document",
            Self::Image(_) => "seed_image",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Field { field, .. } => Some(format!("Mend {field}.")),
            Self::TooMuch { field, most, .. } => Some(format!("Keep {field} within {most}.")),
            Self::UserData(error) => Some(error.advice()),
            Self::Yaml(_) | Self::Image(_) => None,
        }
    }
}

impl UserDataError {
    fn advice(&self) -> String {
        match self {
            Self::TooLong(_) => "Have the guest fetch what is large, or put it on a volume.".into(),
            Self::Gzip => "Compress it again, or give it as it is.".into(),
            Self::NotText => "Give text in UTF-8; binary files go into the job's files.".into(),
            Self::Unknown => "Begin it with #cloud-config, #!, ## template: jinja, \
                              #cloud-boothook, #include, #cloud-config-archive, \
                              #cloud-config-jsonp, or as a MIME message."
                .into(),
            Self::Empty => "Leave it out.".into(),
            Self::NotYaml { .. } => "Mend it there: cloud-init schema --config-file FILE says \
                                     more."
                .into(),
            Self::NotMapping => "Write keys with values after #cloud-config.".into(),
            Self::Owned(key) => format!("Leave {key} out of it."),
            Self::NotList(key) => format!("Write {key} as a list."),
            Self::OurUser(_) => "Give keys to the job itself, or choose another name.".into(),
            Self::MergeHow(key) => {
                format!("Write {key} as in \"list(append)+dict(recurse_list)+str()\".")
            }
            Self::LineBreak => {
                "Write it as an escape, such as \"\\u2028\", or leave it out.".into()
            }
            Self::NotArchive => "Write a list of texts, or of mappings with content.".into(),
            Self::NotPatch { .. } => "Write a list of operations, as RFC 6902 has them.".into(),
            Self::Message(_) => "Make it with cloud-init devel make-mime.".into(),
            Self::PartHandler => "Give what it handles as a script.".into(),
            Self::MimeText => {
                "Encode its parts with Content-Transfer-Encoding: base64, as cloud-init devel \
                 make-mime does."
                    .into()
            }
        }
    }
}
