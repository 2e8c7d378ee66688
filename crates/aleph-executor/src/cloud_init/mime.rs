//! Several documents in one: a MIME message of cloud-init's kind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

/// Bytes of a line of base64 (RFC 2045, 6.8).
const LINE: usize = 76;

/// One part.
pub(super) enum Part<'a> {
    /// A document: its type, the name that cloud-init stores and sorts it by, its text.
    Document {
        kind: &'static str,
        name: &'static str,
        text: &'a str,
    },
    /// A message with headers of its own, in ASCII.
    Message(&'a str),
}

/// The message with these parts in this order. Texts are in base64: cloud-init reads other
/// encodings of characters beyond ASCII wrongly.
pub(super) fn message(parts: &[Part<'_>]) -> String {
    let boundary = boundary(parts);
    let mut text =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n");
    for part in parts {
        text.push_str(&format!("--{boundary}\n"));
        match part {
            Part::Document {
                kind,
                name,
                text: document,
            } => {
                text.push_str(&format!(
                    "Content-Type: {kind}; charset=\"utf-8\"\n\
                     Content-Transfer-Encoding: base64\n\
                     Content-Disposition: attachment; filename=\"{name}\"\n\n"
                ));
                // So many bytes give a whole line.
                for bytes in document.as_bytes().chunks(LINE / 4 * 3) {
                    BASE64.encode_string(bytes, &mut text);
                    text.push('\n');
                }
            }
            Part::Message(message) => {
                text.push_str(message);
                text.push('\n');
            }
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
        let text = match part {
            Part::Document { text, .. } | Part::Message(text) => text,
        };
        digest.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(text);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("aleph-{digest}")
}
