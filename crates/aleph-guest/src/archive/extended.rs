//! The records of a pax header: `LENGTH KEY=VALUE\n` each, with the record's own length.

use alloc::vec::Vec;

/// Facts of an entry that are not in its block, or are there in a form that is cut short.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Extended {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) modified: Option<i64>,
}

impl Extended {
    /// Takes in the records of a header. Those that say nothing here are passed over.
    pub(crate) fn read(&mut self, records: &[u8]) -> Result<(), &'static str> {
        const WRONG: &str = "a pax record is wrong";
        let mut rest = records;
        while !rest.is_empty() {
            let blank = rest.iter().position(|b| *b == b' ').ok_or(WRONG)?;
            let length: usize = number(&rest[..blank]).ok_or(WRONG)?;
            let (record, tail) = rest.split_at_checked(length).ok_or(WRONG)?;
            rest = tail;
            let record = record
                .get(blank + 1..)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or(WRONG)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(WRONG)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"uid" => self.uid = Some(number(value).ok_or(WRONG)?),
                b"gid" => self.gid = Some(number(value).ok_or(WRONG)?),
                b"size" => self.size = Some(number(value).ok_or(WRONG)?),
                b"mtime" => {
                    let seconds = value.split(|b| *b == b'.').next().unwrap_or_default();
                    self.modified = Some(number(seconds).ok_or(WRONG)?);
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err("a file with holes, which is not supported");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn number<T: core::str::FromStr>(digits: &[u8]) -> Option<T> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read() {
        let mut extended = Extended::default();
        let records = b"12 path=a=b\n20 mtime=-12.345678\n16 SCHILY.x=abc\n13 uid=70000\n";
        extended.read(records).unwrap();
        assert_eq!(extended.name.as_deref(), Some(&b"a=b"[..]));
        assert_eq!((extended.modified, extended.uid), (Some(-12), Some(70_000)));
        for wrong in [
            "x",
            "5 a=b",
            "99 a=b\n",
            "0 a=b\n",
            "6 ab\n",
            "8 uid=x\n",
            "3 \n",
        ] {
            assert!(
                Extended::default().read(wrong.as_bytes()).is_err(),
                "{wrong}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_records_are_read_or_refused(records in "[0-9]{1,2} [a-z=]{0,6}\n?([0-9] a=b\n)?") {
            let _ = Extended::default().read(records.as_bytes());
        }
    }
}
