//! Several documents in one: a MIME message of cloud-init's kind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

/// Bytes of a line of base64 (RFC 2045, 6.8).
const LINE: usize = 76;

/// One document.
pub(super) struct Part<'a> {
    /// Its type.
    pub(super) kind: &'a str,
    /// What cloud-init stores and sorts it by; it makes one up where there is none.
    pub(super) name: Option<&'a str>,
    /// How it is merged with those before it, where that is not in it.
    pub(super) merge: Option<&'a str>,
    pub(super) text: &'a str,
}

/// The message with these parts in this order. Texts are in base64: cloud-init reads other
/// encodings of characters beyond ASCII wrongly.
pub(super) fn message(parts: &[Part<'_>]) -> String {
    let boundary = boundary(parts);
    let mut text =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n");
    for part in parts {
        text.push_str(&format!(
            "--{boundary}\n\
             Content-Type: {}; charset=\"utf-8\"\n\
             Content-Transfer-Encoding: base64\n",
            part.kind
        ));
        if let Some(name) = part.name {
            text.push_str(&format!(
                "Content-Disposition: attachment; filename=\"{name}\"\n"
            ));
        }
        if let Some(merge) = part.merge {
            text.push_str(&format!("X-Merge-Type: {merge}\n"));
        }
        text.push('\n');
        // So many bytes give a whole line.
        for bytes in part.text.as_bytes().chunks(LINE / 4 * 3) {
            BASE64.encode_string(bytes, &mut text);
            text.push('\n');
        }
    }
    text.push_str(&format!("--{boundary}--\n"));
    text
}

/// A line that is in no part: it depends on all that is in them, and so nobody can have written it
/// into one.
fn boundary(parts: &[Part<'_>]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        let length = u64::try_from(part.text.len()).unwrap_or(u64::MAX);
        digest.update(length.to_be_bytes());
        digest.update(part.text);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("aleph-{digest}")
}
