//! What somebody imports as a kernel or as an initramfs: raw bytes, or bytes behind the magic numbers that lead further.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum File {
    Raw(Vec<u8>),
    /// A bzImage with this header and payload.
    Bzimage {
        header: Vec<u8>,
        payload: Vec<u8>,
    },
    /// An ELF file with an embedded configuration, or what stands in its place.
    Elf {
        head: Vec<u8>,
        config: Vec<u8>,
    },
    /// A cpio archive.
    Archive(Vec<u8>),
    /// Text of a configuration.
    Config(Vec<u8>),
}

fuzz_target!(|file: File| {
    let bytes = match file {
        File::Raw(bytes) => bytes,
        File::Bzimage { header, payload } => {
            let mut bytes = header;
            bytes.resize(0x400, 0);
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
            bytes.extend(payload);
            bytes
        }
        File::Elf { head, config } => [
            &b"\x7fELF\x02\x01\x01"[..],
            &head[..],
            &b"IKCFG_ST\x1f\x8b"[..],
            &config[..],
            &b"IKCFG_ED Linux version 6.1 "[..],
        ]
        .concat(),
        File::Archive(rest) => [&b"070701"[..], &rest[..]].concat(),
        File::Config(rest) => [&b"CONFIG_"[..], &rest[..]].concat(),
    };
    aleph_image::fuzzing::inspect_kernel(&bytes);
});
