//! The header of a qcow2 file, read strictly. Pure.
//!
//! A qcow2 file from a user can name other files of the host: a backing file, which its blocks fall
//! back to, and an external data file, which holds them. Whoever opens it with QEMU's tools opens those,
//! too. So a header that names one is refused before any tool sees the file.
//!
//! What a field means: QEMU's `docs/interop/qcow2.txt`.

/// How the file begins.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// How many of a file's first bytes [`Header::parse`] looks at.
pub const HEAD: usize = 64 * 1024;

/// The part of the header that version 2 has.
const V2_LENGTH: u32 = 72;
/// The part that each header of version 3 has.
const V3_LENGTH: u32 = 104;
/// QEMU takes no larger L1 table (`QCOW_MAX_L1_SIZE`).
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU takes no larger refcount table (`QCOW_MAX_REFTABLE_SIZE`).
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// QEMU takes no more internal snapshots (`QCOW_MAX_SNAPSHOTS`).
const MAX_SNAPSHOTS: u32 = 65_536;
/// The extension with the name of the external data file.
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// How it is encrypted.
const CRYPT_NONE: u32 = 0;
const CRYPT_LUKS: u32 = 2;

/// Features that a reader has to know.
mod incompatible {
    /// Reference counts may be stale, which a reader need not care for.
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    /// Clusters are compressed by something else than zlib.
    pub(super) const COMPRESSION: u64 = 1 << 3;
    /// Entries of L2 tables have a bitmap.
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// A header of a file that stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The disk's size in bytes.
    pub size: u64,
    /// The size of a cluster in bytes.
    pub cluster_size: u64,
}

/// Why a qcow2 file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// It begins with something else.
    #[error("it is no qcow2 file")]
    NotQcow2,
    /// It ends before what it says that it has.
    #[error("the qcow2 file is cut off: its {0} is not all there")]
    Truncated(&'static str),
    /// It is of a version that nobody knows.
    #[error("qcow2 version {0} is not known")]
    Version(u32),
    /// Its blocks fall back to another file.
    #[error("the qcow2 file has a backing file, which is never followed")]
    BackingFile,
    /// Its blocks are in another file.
    #[error("the qcow2 file keeps its data in another file, which is never followed")]
    DataFile,
    /// It is encrypted.
    #[error("the qcow2 file is encrypted")]
    Encrypted,
    /// QEMU marked it.
    #[error("the qcow2 file is marked as corrupt")]
    Corrupt,
    /// It needs what nobody knows.
    #[error("the qcow2 file has unknown features ({0:#x})")]
    Features(u64),
    /// A field makes no sense.
    #[error("the qcow2 file's {0} makes no sense")]
    Field(&'static str),
}

/// Numbers at places of a file's first bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Qcow2Error> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Qcow2Error::Truncated("header"))
    }

    fn u32(&self, at: usize) -> Result<u32, Qcow2Error> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Qcow2Error> {
        self.array(at).map(u64::from_be_bytes)
    }
}

impl Header {
    /// Reads the header in a file's first bytes, [`HEAD`] of them or all that there are. `length` is that
    /// of the whole file.
    ///
    /// # Errors
    /// Where the file names another one, is cut off, is encrypted or makes no sense.
    pub fn parse(head: &[u8], length: u64) -> Result<Self, Qcow2Error> {
        Self::read(head, length, CRYPT_NONE)
    }

    /// The same of a layer of ours, which is encrypted or not.
    pub(super) fn parse_layer(
        head: &[u8],
        length: u64,
        is_encrypted: bool,
    ) -> Result<Self, Qcow2Error> {
        let crypt = if is_encrypted { CRYPT_LUKS } else { CRYPT_NONE };
        Self::read(head, length, crypt)
    }

    fn read(head: &[u8], length: u64, crypt: u32) -> Result<Self, Qcow2Error> {
        if !head.starts_with(&MAGIC) {
            return Err(Qcow2Error::NotQcow2);
        }
        let fields = Fields(head);
        let version = fields.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        if fields.u64(8)? != 0 || fields.u32(16)? != 0 {
            return Err(Qcow2Error::BackingFile);
        }
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::Field("cluster size"));
        }
        let cluster_size = 1_u64 << cluster_bits;
        let size = fields.u64(24)?;
        match (fields.u32(32)?, crypt) {
            (found, wanted) if found == wanted => {}
            (_, CRYPT_NONE) => return Err(Qcow2Error::Encrypted),
            _ => return Err(Qcow2Error::Field("encryption")),
        }
        let mut entry_size = 8;
        let mut header_length = V2_LENGTH;
        if version == 3 {
            let features = fields.u64(72)?;
            if features & incompatible::DATA_FILE != 0 {
                return Err(Qcow2Error::DataFile);
            }
            if features & incompatible::CORRUPT != 0 {
                return Err(Qcow2Error::Corrupt);
            }
            let known = incompatible::DIRTY | incompatible::COMPRESSION | incompatible::EXTENDED_L2;
            if features & !known != 0 {
                return Err(Qcow2Error::Features(features & !known));
            }
            if features & incompatible::EXTENDED_L2 != 0 {
                entry_size = 16;
            }
            if fields.u32(96)? > 6 {
                return Err(Qcow2Error::Field("width of reference counts"));
            }
            header_length = fields.u32(100)?;
            let fits = u64::from(header_length) <= cluster_size;
            if header_length < V3_LENGTH || !header_length.is_multiple_of(8) || !fits {
                return Err(Qcow2Error::Field("header length"));
            }
        }
        let tables = Tables {
            fields: &fields,
            cluster_size,
            length,
        };
        tables.check(size, entry_size)?;
        extensions(&fields, header_length, cluster_size)?;
        Ok(Self {
            version,
            size,
            cluster_size,
        })
    }
}

/// The tables that the header points to.
struct Tables<'a> {
    fields: &'a Fields<'a>,
    cluster_size: u64,
    length: u64,
}

impl Tables<'_> {
    fn check(&self, size: u64, entry_size: u64) -> Result<(), Qcow2Error> {
        let fields = self.fields;
        // An entry of the L1 table stands for a table of one cluster, of entries for a cluster each.
        let covers = (self.cluster_size / entry_size) * self.cluster_size;
        let needed = size.div_ceil(covers);
        let entries = u64::from(fields.u32(36)?);
        if entries < needed || entries * 8 > MAX_L1_BYTES {
            return Err(Qcow2Error::Field("L1 table"));
        }
        self.within("L1 table", fields.u64(40)?, entries * 8)?;
        let clusters = u64::from(fields.u32(56)?);
        let bytes = clusters * self.cluster_size;
        if clusters == 0 || bytes > MAX_REFCOUNT_TABLE {
            return Err(Qcow2Error::Field("refcount table"));
        }
        self.within("refcount table", fields.u64(48)?, bytes)?;
        if fields.u32(60)? > MAX_SNAPSHOTS {
            return Err(Qcow2Error::Field("number of snapshots"));
        }
        Ok(())
    }

    fn within(&self, what: &'static str, at: u64, bytes: u64) -> Result<(), Qcow2Error> {
        if bytes == 0 {
            return Ok(());
        }
        if at == 0 || !at.is_multiple_of(self.cluster_size) {
            return Err(Qcow2Error::Field(what));
        }
        match at.checked_add(bytes) {
            Some(end) if end <= self.length => Ok(()),
            Some(_) => Err(Qcow2Error::Truncated(what)),
            None => Err(Qcow2Error::Field(what)),
        }
    }
}

/// Goes through the extensions that follow the header, within its first cluster.
fn extensions(
    fields: &Fields<'_>,
    header_length: u32,
    cluster_size: u64,
) -> Result<(), Qcow2Error> {
    let as_length = |n: u64| usize::try_from(n).map_err(|_| Qcow2Error::Field("header extension"));
    let end = as_length(cluster_size)?.min(fields.0.len());
    let mut at = as_length(u64::from(header_length))?;
    // A file of version 2 may have none at all, and end there.
    while at + 8 <= end {
        let (kind, length) = (fields.u32(at)?, fields.u32(at + 4)?);
        match kind {
            0 => break,
            EXTENSION_DATA_FILE => return Err(Qcow2Error::DataFile),
            _ => {}
        }
        let padded = as_length(u64::from(length).next_multiple_of(8))?;
        let next = (at + 8).checked_add(padded);
        at = next
            .filter(|next| *next <= end)
            .ok_or(Qcow2Error::Field("header extension"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The head of an empty disk of 1 GiB, as `qemu-img create` makes it.
    fn head() -> Vec<u8> {
        let mut head = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(36, &2_u32.to_be_bytes());
        put(40, &0x30000_u64.to_be_bytes());
        put(48, &0x10000_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        head
    }

    const LENGTH: u64 = 0x30010;

    #[test]
    fn a_plain_file_is_taken() {
        let parsed = Header::parse(&head(), LENGTH).unwrap();
        let wanted = Header {
            version: 3,
            size: 1 << 30,
            cluster_size: 65_536,
        };
        assert_eq!(parsed, wanted);
    }

    #[test]
    fn what_names_another_file_or_makes_no_sense_is_refused() {
        let truncated = Qcow2Error::Truncated;
        let field = Qcow2Error::Field;
        let cases: &[(usize, &[u8], Qcow2Error)] = &[
            (0, b"KDMV", Qcow2Error::NotQcow2),
            (7, &[4], Qcow2Error::Version(4)),
            (14, &[1, 0], Qcow2Error::BackingFile),
            (19, &[9], Qcow2Error::BackingFile),
            (23, &[8], field("cluster size")),
            (23, &[22], field("cluster size")),
            (24, &[0xff; 8], field("L1 table")),
            (35, &[1], Qcow2Error::Encrypted),
            (36, &[0xff; 4], field("L1 table")),
            (39, &[1], field("L1 table")),
            (39, &[3], truncated("L1 table")),
            (40, &[0xff; 8], field("L1 table")),
            (
                40,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
                truncated("L1 table"),
            ),
            (40, &[0, 0, 0, 0, 0, 0, 0, 0], field("L1 table")),
            (53, &[0x10], truncated("refcount table")),
            (56, &[0; 4], field("refcount table")),
            (56, &[0xff; 4], field("refcount table")),
            (60, &[0xff; 4], field("number of snapshots")),
            (79, &[2], Qcow2Error::Corrupt),
            (79, &[4], Qcow2Error::DataFile),
            (79, &[0x20], Qcow2Error::Features(0x20)),
            (72, &[0x80], Qcow2Error::Features(1 << 63)),
            (99, &[7], field("width of reference counts")),
            (103, &[96], field("header length")),
            (103, &[113], field("header length")),
            (100, &[0xff; 4], field("header length")),
            (112, b"DATA\0\0\0\x03abc", Qcow2Error::DataFile),
            (112, b"name\xff\xff\xff\xff", field("header extension")),
            // Behind another one.
            (
                112,
                b"name\0\0\0\x01x\0\0\0\0\0\0\0DATA\0\0\0\x03abc",
                Qcow2Error::DataFile,
            ),
        ];
        for (at, bytes, wanted) in cases {
            let mut spoilt = head();
            spoilt[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(
                Header::parse(&spoilt, LENGTH).as_ref(),
                Err(wanted),
                "{bytes:x?} at {at}"
            );
        }
        let mut luks = head();
        luks[35] = 2;
        assert_eq!(
            Header::parse(&luks, LENGTH),
            Err(Qcow2Error::Encrypted),
            "whose key nobody has"
        );
        Header::parse_layer(&luks, LENGTH, true).unwrap();
        Header::parse_layer(&head(), LENGTH, false).unwrap();
        // What its VMM may write there.
        let plain = Header::parse_layer(&head(), LENGTH, true);
        assert_eq!(plain, Err(field("encryption")));
        let cut = Header::parse(&head(), LENGTH - 1);
        assert_eq!(cut, Err(Qcow2Error::Truncated("L1 table")));
        for length in 4..104 {
            let cut = Header::parse(&head()[..length], LENGTH);
            assert_eq!(cut, Err(Qcow2Error::Truncated("header")), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            patches in prop::collection::vec((0_usize..512, any::<u8>()), 0..12),
            length in 0_u64..1 << 20,
        ) {
            let mut bytes = head();
            for (at, byte) in patches {
                bytes[at] = byte;
            }
            if let Ok(header) = Header::parse(&bytes, length) {
                prop_assert_eq!(&bytes[8..20], &[0; 12], "nothing is named");
                prop_assert!(header.cluster_size >= 512);
            }
        }
    }
}
