//! The user's own user-data: what it is, and whether the node's part survives it.

use super::shape::{self, Shape};
use super::{UserDataError, message, spec::USER};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::MultiGzDecoder;
use std::io::Read;

/// Bytes of user-data, as given and as decompressed.
pub const MAX_USER_DATA: usize = 1024 * 1024;

/// How deep archives may be in archives.
const MAX_ARCHIVES: u8 = 4;

/// What cloud-init takes it for.
///
/// The beginnings are those of cloud-init (`cloudinit/handlers/__init__.py`,
/// `INCLUSION_TYPES_MAP`), compared without white space before them and without regard to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserDataKind {
    /// `#cloud-config`: YAML, merged.
    CloudConfig,
    /// `#cloud-config-archive`: a list of documents.
    Archive,
    /// `#cloud-config-jsonp`: a JSON patch of what was merged so far.
    JsonPatch,
    /// `## template: jinja`: rendered in the guest, then one of the others.
    Jinja,
    /// `#cloud-boothook`: a script that runs early, in each boot.
    Boothook,
    /// `#include`, `#include-once`: addresses that the guest fetches.
    Include,
    /// `#!`: a script that runs once, at the end.
    Script,
    /// A MIME message with several of these.
    Message,
}

impl UserDataKind {
    /// The longer of two that begin alike comes first.
    const BEGINNINGS: [(&str, Option<Self>); 9] = [
        ("#cloud-config-archive", Some(Self::Archive)),
        ("#cloud-config-jsonp", Some(Self::JsonPatch)),
        ("## template: jinja", Some(Self::Jinja)),
        ("#cloud-boothook", Some(Self::Boothook)),
        ("#include-once", Some(Self::Include)),
        ("#cloud-config", Some(Self::CloudConfig)),
        ("#part-handler", None),
        ("#include", Some(Self::Include)),
        ("#!", Some(Self::Script)),
    ];

    /// The MIME type of a part of this kind; `None` for a message, which has its own headers.
    pub(super) const fn mime_type(self) -> Option<&'static str> {
        match self {
            Self::CloudConfig => Some("text/cloud-config"),
            Self::Archive => Some("text/cloud-config-archive"),
            Self::JsonPatch => Some("text/cloud-config-jsonp"),
            Self::Jinja => Some("text/jinja2"),
            Self::Boothook => Some("text/cloud-boothook"),
            Self::Include => Some("text/x-include-url"),
            Self::Script => Some("text/x-shellscript"),
            Self::Message => None,
        }
    }
}

/// User-data that was looked at.
pub(super) struct UserData {
    pub(super) kind: UserDataKind,
    pub(super) documents: Vec<Document>,
}

/// One document of it, as it goes to the guest.
pub(super) struct Document {
    /// Its MIME type.
    pub(super) mime: &'static str,
    /// What cloud-init stores it as; a number where it has none.
    pub(super) name: Option<String>,
    /// How it is merged with those before it, where that was said beside it.
    pub(super) merge: Option<String>,
    pub(super) text: String,
}

/// Keys of a cloud-config that the node sets, or without which its part is not carried out.
const OWNED: [&str; 12] = [
    "hostname",
    "fqdn",
    "prefer_fqdn_over_hostname",
    "preserve_hostname",
    "network",
    "datasource",
    "datasource_list",
    "system_info",
    "cloud_init_modules",
    "cloud_config_modules",
    "cloud_final_modules",
    "create_hostname_file",
];
/// Keys whose lists get entries of the node's.
const LISTS: [&str; 6] = [
    "users",
    "write_files",
    "packages",
    "fs_setup",
    "mounts",
    "runcmd",
];
/// In a template, which cannot be read without being carried out, these words are looked for.
const STAGES: [&str; 3] = [
    "cloud_init_modules",
    "cloud_config_modules",
    "cloud_final_modules",
];

/// Reads user-data as a user gave it: text, gzip, or either in base64. `None` where it is empty.
///
/// Compressed data is decompressed here, so that what is in it is bounded and checked.
pub(super) fn read(bytes: &[u8]) -> Result<Option<UserData>, UserDataError> {
    let Some(text) = text_of(bytes)? else {
        return Ok(None);
    };
    let (kind, text) = match kind(&text)? {
        Some(kind) => (kind, text),
        None => {
            // Some tools hand it over in base64, which cloud-init does not read from a seed.
            let bare: String = text.split_ascii_whitespace().collect();
            let bytes = BASE64.decode(bare).map_err(|_| UserDataError::Unknown)?;
            let text = text_of(&bytes)?.ok_or(UserDataError::Empty)?;
            (kind(&text)?.ok_or(UserDataError::Unknown)?, text)
        }
    };
    let Some(mime) = kind.mime_type() else {
        let documents = message::read(&text)?;
        return Ok(Some(UserData { kind, documents }));
    };
    check(kind, &text, 0)?;
    let document = Document {
        mime,
        name: Some("user-data".into()),
        merge: None,
        text,
    };
    Ok(Some(UserData {
        kind,
        documents: vec![document],
    }))
}

fn text_of(bytes: &[u8]) -> Result<Option<String>, UserDataError> {
    let too_long = |bytes: &[u8]| bytes.len() > MAX_USER_DATA;
    if too_long(bytes) {
        return Err(UserDataError::TooLong(MAX_USER_DATA));
    }
    let mut plain = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let limit = u64::try_from(MAX_USER_DATA).unwrap_or(u64::MAX);
        MultiGzDecoder::new(bytes)
            .take(limit.saturating_add(1))
            .read_to_end(&mut plain)
            .map_err(|_| UserDataError::Gzip)?;
        if too_long(&plain) {
            return Err(UserDataError::TooLong(MAX_USER_DATA));
        }
    } else {
        plain.extend_from_slice(bytes);
    }
    let text = String::from_utf8(plain).map_err(|_| UserDataError::NotText)?;
    Ok((!text.trim().is_empty()).then_some(text))
}

/// What cloud-init takes a text for; `None` where it would ignore it.
pub(super) fn kind(text: &str) -> Result<Option<UserDataKind>, UserDataError> {
    let start = text.trim_start().as_bytes();
    for (beginning, kind) in UserDataKind::BEGINNINGS {
        if start
            .get(..beginning.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(beginning.as_bytes()))
        {
            return kind.map(Some).ok_or(UserDataError::PartHandler);
        }
    }
    // So far cloud-init looks for the header that makes it a message.
    let head = &text.as_bytes()[..text.len().min(4096)];
    let header = b"mime-version:";
    let message = head
        .windows(header.len())
        .any(|window| window.eq_ignore_ascii_case(header));
    Ok(message.then_some(UserDataKind::Message))
}

/// Looks whether the node's part survives a document. `depth` counts the archives that it is in.
pub(super) fn check(kind: UserDataKind, text: &str, depth: u8) -> Result<(), UserDataError> {
    match kind {
        UserDataKind::Script | UserDataKind::Boothook | UserDataKind::Include => return Ok(()),
        // Their parts are looked at one by one, outside of archives.
        UserDataKind::Message => return Err(UserDataError::Message("is in an archive")),
        // Its escapes are JSON's.
        UserDataKind::JsonPatch => return check_patch(text),
        UserDataKind::CloudConfig | UserDataKind::Archive | UserDataKind::Jinja => {}
    }
    // To YAML 1.1, which cloud-init reads, each of these ends a line: what is behind one is no comment.
    if text.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        return Err(UserDataError::LineBreak);
    }
    match kind {
        UserDataKind::CloudConfig => check_config(text),
        UserDataKind::Archive => check_archive(text, depth),
        // What it becomes is known in the guest alone, where the node's check looks.
        _ => match STAGES.into_iter().find(|stage| text.contains(stage)) {
            Some(stage) => Err(UserDataError::Owned(stage)),
            None => Ok(()),
        },
    }
}

/// A list of documents: texts, or mappings with `content` and perhaps `type`
/// (`cloudinit/user_data.py`, `_explode_archive`).
fn check_archive(text: &str, depth: u8) -> Result<(), UserDataError> {
    if depth >= MAX_ARCHIVES {
        return Err(UserDataError::Message("is in archives too deep"));
    }
    let Shape::List(entries) = read_shape(text)? else {
        return Err(UserDataError::NotArchive);
    };
    for entry in entries {
        let (content, said) = match entry {
            Shape::Text(content) => (content, None),
            Shape::Map(keys) => {
                let text_of = |wanted: &str| {
                    let found = keys.iter().filter(|(key, _)| key == wanted);
                    match found.map(|(_, value)| value).collect::<Vec<_>>()[..] {
                        [] => Ok(None),
                        [Shape::Text(text)] => Ok(Some(text.clone())),
                        _ => Err(UserDataError::NotArchive),
                    }
                };
                let content = text_of("content")?.ok_or(UserDataError::NotArchive)?;
                (content, text_of("type")?)
            }
            Shape::Null | Shape::List(_) => return Err(UserDataError::NotArchive),
        };
        let kind = match said.as_deref() {
            None | Some("text/plain" | "text/x-not-multipart") => {
                kind(&content)?.ok_or(UserDataError::Unknown)?
            }
            Some(said) => message::kind_of(said)?,
        };
        check(kind, &content, depth + 1)?;
    }
    Ok(())
}

/// A patch of what was merged so far (RFC 6902).
fn check_patch(text: &str) -> Result<(), UserDataError> {
    let start = "#cloud-config-jsonp";
    let body = text.trim_start();
    // A part of a message need not begin so.
    let body = match body.get(..start.len()) {
        Some(head) if head.eq_ignore_ascii_case(start) => &body[start.len()..],
        _ => body,
    };
    let operations: Vec<Operation> =
        serde_json::from_str(body).map_err(|error| UserDataError::NotPatch {
            line: error.line(),
            column: error.column(),
        })?;
    for Operation { path, from, value } in operations {
        for pointer in std::iter::once(path.as_str()).chain(from.as_deref()) {
            let mut steps = pointer.split('/').skip(1);
            let key = steps.next().unwrap_or_default();
            let key = key.replace("~1", "/").replace("~0", "~");
            let owned = OWNED.into_iter().chain(["user", "users"]);
            if let Some(key) = owned.into_iter().find(|owned| *owned == key) {
                return Err(UserDataError::Owned(key));
            }
            let whole = steps.next().is_none();
            let is_list = value.as_ref().is_some_and(serde_json::Value::is_array);
            if let Some(key) = LISTS.into_iter().find(|list| *list == key)
                && whole
                && !is_list
            {
                return Err(UserDataError::NotList(key));
            }
            if pointer.is_empty() {
                return Err(UserDataError::NotMapping);
            }
        }
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Operation {
    path: String,
    from: Option<String>,
    value: Option<serde_json::Value>,
}

fn read_shape(text: &str) -> Result<Shape, UserDataError> {
    shape::read(text).map_err(|(line, column)| UserDataError::NotYaml { line, column })
}

fn check_config(text: &str) -> Result<(), UserDataError> {
    let keys = match read_shape(text)? {
        Shape::Map(keys) => keys,
        Shape::Null => return Err(UserDataError::Empty),
        Shape::Text(_) | Shape::List(_) => return Err(UserDataError::NotMapping),
    };
    if keys.is_empty() {
        return Err(UserDataError::Empty);
    }
    let find = |wanted: &str| keys.iter().find(|(key, _)| key == wanted).map(|(_, v)| v);
    if let Some(key) = OWNED.into_iter().find(|key| find(key).is_some()) {
        return Err(UserDataError::Owned(key));
    }
    for key in LISTS {
        match find(key) {
            None | Some(Shape::List(_)) => {}
            Some(_) => return Err(UserDataError::NotList(key)),
        }
    }
    if let Some(Shape::List(users)) = find("users")
        && users.iter().any(is_our_user)
    {
        return Err(UserDataError::OurUser(USER));
    }
    // It is merged with the entry of `users` that has its name, and wins.
    if find("user").is_some_and(is_our_user) {
        return Err(UserDataError::OurUser(USER));
    }
    for key in ["merge_how", "merge_type"] {
        if find(key).is_some_and(|how| !is_merge_how(how)) {
            return Err(UserDataError::MergeHow(key));
        }
    }
    Ok(())
}

fn is_our_user(entry: &Shape) -> bool {
    match entry {
        Shape::Text(names) => names.split(',').any(|name| name.trim() == USER),
        Shape::List(names) => names
            .iter()
            .any(|name| matches!(name, Shape::Text(name) if name == USER)),
        Shape::Map(keys) => keys
            .iter()
            .any(|(key, name)| key == "name" && matches!(name, Shape::Text(name) if name == USER)),
        Shape::Null => false,
    }
}

/// Whether cloud-init finds these mergers (`cloudinit/mergers/__init__.py`): `list(append)+dict()`,
/// or a list of `name` and `settings`.
pub(super) fn is_merge_how(how: &Shape) -> bool {
    let known = |name: &str| matches!(name, "list" | "dict" | "str");
    match how {
        Shape::Null => true,
        Shape::Text(how) => how.split('+').map(str::trim).all(|merger| {
            merger.is_empty()
                || merger
                    .strip_suffix(')')
                    .and_then(|merger| merger.split_once('('))
                    .is_some_and(|(name, _)| known(&name.to_ascii_lowercase()))
        }),
        Shape::List(mergers) => mergers.iter().all(|merger| match merger {
            Shape::Map(keys) => {
                let name = keys.iter().any(|(key, value)| {
                    key == "name" && matches!(value, Shape::Text(name) if known(name.trim()))
                });
                let settings = keys
                    .iter()
                    .any(|(key, value)| key == "settings" && matches!(value, Shape::List(_)));
                name && settings
            }
            Shape::List(words) => {
                matches!(words.first(), Some(Shape::Text(name)) if known(name))
            }
            Shape::Null | Shape::Text(_) => false,
        }),
        Shape::Map(_) => false,
    }
}
