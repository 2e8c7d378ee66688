//! What extended headers say of the entry that follows them.

use super::archive_error::{ArchiveError, contradiction};
use super::root::Xattr;

/// What extension entries say of the next member.
#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<i64>,
    pub(crate) size: Option<u64>,
    pub(crate) sparse: bool,
    pub(crate) xattrs: Vec<Xattr>,
}

impl Extra {
    pub(crate) fn read_pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        const XATTR: &[u8] = b"SCHILY.xattr.";
        for record in (PaxRecords { left: bytes }) {
            let (key, value) = record?;
            match key {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                b"uid" => self.uid = Some(number(value)?),
                b"gid" => self.gid = Some(number(value)?),
                b"size" => self.size = Some(number(value)?),
                b"mtime" => {
                    let seconds = value.split(|b| *b == b'.').next().unwrap_or_default();
                    self.mtime = Some(number(seconds)?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, ArchiveError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| contradiction("a number in an extended header is none"))
}

/// Records of the form `<length> <key>=<value>\n`; a value may hold any byte, newlines too.
struct PaxRecords<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let record = split_record(self.left);
        self.left = record.map_or(&[], |(_, rest)| rest);
        Some(
            record
                .map(|(record, _)| record)
                .ok_or_else(|| contradiction("an extended header has no proper form")),
        )
    }
}

type PaxRecord<'a> = (&'a [u8], &'a [u8]);

fn split_record(bytes: &[u8]) -> Option<(PaxRecord<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some(((&body[..equals], &body[equals + 1..]), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_malformed_extended_header_is_refused() {
        for bytes in [
            &b"99 path=short\n"[..],
            b"x",
            b"12 uid=many\n",
            b"8 novalue",
        ] {
            assert!(Extra::default().read_pax(bytes).is_err(), "{bytes:?}");
        }
        let mut extra = Extra::default();
        extra
            .read_pax(b"24 mtime=1700000000.250\n12 uid=1000\n")
            .unwrap();
        assert_eq!((extra.mtime, extra.uid), (Some(1_700_000_000), Some(1000)));
    }

    proptest! {
        #[test]
        fn any_extended_header_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Extra::default().read_pax(&bytes);
        }

        #[test]
        fn written_records_are_read_back(
            path in proptest::collection::vec(any::<u8>(), 0..64),
            value in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut extra = Extra::default();
            let bytes = [record(b"path", &path), record(b"SCHILY.xattr.user.x", &value)].concat();
            extra.read_pax(&bytes).unwrap();
            prop_assert_eq!(extra.path, Some(path));
            prop_assert_eq!(extra.xattrs, vec![(b"user.x".to_vec(), value)]);
        }
    }

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }
}
