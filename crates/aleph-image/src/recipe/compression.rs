//! Reading a tar archive whatever it is compressed with: told by its content, not its name.

use super::archive_error::{ArchiveError, damaged};
use std::io::{BufReader, Chain, Cursor, Read};
use tar::Header;
use xz2::stream::{CONCATENATED, Stream};

/// What a decompressor may take: more than any usual preset needs, less than a small node has.
const MEMORY_LIMIT: u64 = 256 << 20;
/// Windows of up to 128 MiB, as the zstd program allows without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;
const BLOCK: usize = 512;

/// The bytes of the tar archive in `file`, decompressed, and seen to be one.
pub(crate) fn open<'a>(file: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ArchiveError> {
    let (first, file) = peek(file, 6)?;
    if first.is_empty() {
        return Err(ArchiveError::Empty);
    }
    let file = BufReader::with_capacity(1 << 16, file);
    let plain: Box<dyn Read + 'a> = match *first {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = Stream::new_stream_decoder(MEMORY_LIMIT, CONCATENATED)
                .map_err(|error| damaged(error.into()))?;
            Box::new(xz2::bufread::XzDecoder::new_stream(file, stream))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(damaged)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', ..] => return Err(ArchiveError::Compression { format: "bzip2" }),
        [0x04, 0x22, 0x4d, 0x18, ..] => return Err(ArchiveError::Compression { format: "lz4" }),
        _ => Box::new(file),
    };
    let (block, plain) = peek(plain, BLOCK)?;
    if is_header(&block) {
        Ok(Box::new(plain))
    } else {
        // What the file itself begins with says more than what it decompresses to.
        Err(ArchiveError::NotTar { first })
    }
}

type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Reads up to `n` bytes and puts them back.
fn peek<R: Read>(mut reader: R, n: usize) -> Result<(Vec<u8>, Peeked<R>), ArchiveError> {
    let mut first = Vec::with_capacity(n);
    reader
        .by_ref()
        .take(n as u64)
        .read_to_end(&mut first)
        .map_err(damaged)?;
    Ok((first.clone(), Cursor::new(first).chain(reader)))
}

/// Whether a block can begin a tar archive: all zero (an empty one), or a header whose
/// checksum is right. Archives from before POSIX have no magic number, but they have that.
pub(crate) fn is_header(block: &[u8]) -> bool {
    if block.len() != BLOCK {
        return false;
    }
    if block.iter().all(|b| *b == 0) {
        return true;
    }
    // The sum is over the block with its own field, bytes 148 to 155, as spaces.
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, b)| {
            if (148..156).contains(&i) {
                32
            } else {
                u32::from(*b)
            }
        })
        .sum();
    Header::from_byte_slice(block)
        .cksum()
        .is_ok_and(|recorded| recorded == sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io;
    use std::io::Write;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "a", &b"hello"[..])
            .unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn every_compression_is_told_by_its_content() {
        let plain = archive();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for file in [
            plain.clone(),
            gzip.finish().unwrap(),
            xz.finish().unwrap(),
            zstd,
        ] {
            let mut out = Vec::new();
            open(&file[..]).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, plain);
        }
    }

    #[test]
    fn what_is_no_tar_says_what_it_begins_with() {
        let error = open(&b"#!/bin/sh\necho this is no archive"[..])
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "it is not a tar archive (first bytes 23 21 2f 62 69 6e, \"#!/bin\")"
        );
        let bzip2 = open(&b"BZh91AY&SY"[..]).err().unwrap();
        assert!(bzip2.to_string().contains("bzip2"), "{bzip2}");
        assert!(matches!(open(&b""[..]).err().unwrap(), ArchiveError::Empty));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            magic in prop_oneof![
                Just(vec![]), Just(vec![0x1f, 0x8b, 8]), Just(b"\xfd7zXZ\0".to_vec()),
                Just(vec![0x28, 0xb5, 0x2f, 0xfd]),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..2048),
        ) {
            let bytes = [magic, rest].concat();
            if let Ok(mut plain) = open(&bytes[..]) {
                let _ = io::copy(&mut plain.by_ref().take(1 << 20), &mut io::sink());
            }
        }
    }
}
