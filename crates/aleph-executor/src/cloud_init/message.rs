//! A user's MIME message, taken apart into its documents.
//!
//! Its parts are decoded here and encoded again by [`mime`](super::mime), so that what is looked at is
//! what the guest reads, whatever two parsers make of one message. Of their headers those stay that mean
//! something to cloud-init: the type, the name and how a part is merged.

use super::user_data::{self, Document, UserDataKind};
use super::{UserDataError, shape::Shape};
use mailparse::{MailHeaderMap, ParsedMail};

/// Parts that a message may have, those of messages in it too.
const MAX_PARTS: usize = 256;
/// How deep messages may be in messages.
const MAX_DEPTH: usize = 8;

/// Types that cloud-init has a handler for, and what is in them. Those that run at other times than
/// once are shell scripts, too.
const TYPES: [(&str, Option<UserDataKind>); 13] = [
    ("text/cloud-config", Some(UserDataKind::CloudConfig)),
    ("text/cloud-config-archive", Some(UserDataKind::Archive)),
    ("text/cloud-config-jsonp", Some(UserDataKind::JsonPatch)),
    ("text/jinja2", Some(UserDataKind::Jinja)),
    ("text/cloud-boothook", Some(UserDataKind::Boothook)),
    ("text/x-include-url", Some(UserDataKind::Include)),
    ("text/x-include-once-url", Some(UserDataKind::Include)),
    ("text/x-shellscript", Some(UserDataKind::Script)),
    ("text/x-shellscript-per-boot", Some(UserDataKind::Script)),
    (
        "text/x-shellscript-per-instance",
        Some(UserDataKind::Script),
    ),
    ("text/x-shellscript-per-once", Some(UserDataKind::Script)),
    ("text/part-handler", None),
    ("text/x-part-handler", None),
];
/// Types that say nothing: what is in them is told by how it begins.
const PLAIN: [&str; 3] = [
    "text/plain",
    "text/x-not-multipart",
    "application/octet-stream",
];

/// Its documents in order, each looked at.
pub(super) fn read(text: &str) -> Result<Vec<Document>, UserDataError> {
    if !text.is_ascii() {
        return Err(UserDataError::MimeText);
    }
    let message = mailparse::parse_mail(text.as_bytes())
        .map_err(|_| UserDataError::Message("cannot be read"))?;
    let mut documents = Vec::new();
    take_apart(&message, 0, &mut documents)?;
    if documents.is_empty() {
        return Err(UserDataError::Empty);
    }
    Ok(documents)
}

fn take_apart(
    part: &ParsedMail<'_>,
    depth: usize,
    documents: &mut Vec<Document>,
) -> Result<(), UserDataError> {
    if depth > MAX_DEPTH || documents.len() >= MAX_PARTS {
        return Err(UserDataError::Message("has too many parts"));
    }
    if part.ctype.mimetype.starts_with("multipart/") {
        let mut parts = part.subparts.iter();
        return parts.try_for_each(|part| take_apart(part, depth + 1, documents));
    }
    let charset = part.ctype.charset.to_ascii_lowercase();
    if !matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii" | "ascii") {
        return Err(UserDataError::Message("has a part that is not in UTF-8"));
    }
    let body = part
        .get_body_raw()
        .map_err(|_| UserDataError::Message("has a part that cannot be decoded"))?;
    let text = String::from_utf8(body).map_err(|_| UserDataError::NotText)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let said = part.ctype.mimetype.as_str();
    let (mime, kind) = if PLAIN.contains(&said) {
        let kind = user_data::kind(&text)?.ok_or(UserDataError::Unknown)?;
        let mime = kind.mime_type();
        let nested = UserDataError::Message("has a message in a part of text");
        (mime.ok_or(nested)?, kind)
    } else {
        known(said)?
    };
    user_data::check(kind, &text, 0)?;
    documents.push(Document {
        mime,
        name: name_of(part)?,
        merge: merge_of(part)?,
        text,
    });
    Ok(())
}

/// What is in a part of this type.
pub(super) fn kind_of(said: &str) -> Result<UserDataKind, UserDataError> {
    known(said).map(|(_, kind)| kind)
}

fn known(said: &str) -> Result<(&'static str, UserDataKind), UserDataError> {
    let unknown = "has a part of a type that cloud-init does not know";
    match TYPES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(said))
    {
        Some((name, Some(kind))) => Ok((name, *kind)),
        Some((_, None)) => Err(UserDataError::PartHandler),
        None => Err(UserDataError::Message(unknown)),
    }
}

/// What cloud-init stores it as; scripts run in the order of their names.
fn name_of(part: &ParsedMail<'_>) -> Result<Option<String>, UserDataError> {
    let Some(name) = part.get_content_disposition().params.remove("filename") else {
        return Ok(None);
    };
    let is_plain = (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if is_plain {
        Ok(Some(name))
    } else {
        Err(UserDataError::Message(
            "has a part whose filename is not letters, digits, ., _ and -",
        ))
    }
}

fn merge_of(part: &ParsedMail<'_>) -> Result<Option<String>, UserDataError> {
    let headers = part.get_headers();
    let how = ["Merge-Type", "X-Merge-Type"]
        .iter()
        .find_map(|name| headers.get_first_value(name));
    match how {
        Some(how) if !user_data::is_merge_how(&Shape::Text(how.clone())) => {
            Err(UserDataError::MergeHow("Merge-Type"))
        }
        how => Ok(how),
    }
}
