//! Taking the ELF kernel out of a bzImage.
//!
//! The layout is that of the kernel's Documentation/arch/x86/boot.rst: a setup header that
//! begins at byte 0x1f1 says where, behind the real-mode code, the compressed kernel is.

use std::io::{self, Read};

/// No kernel is larger; a file that claims to be is not unpacked to see.
const MOST_BYTES: usize = 512 << 20;
const SECTOR: usize = 512;
/// The length of one block of lz4's legacy format before compression.
const LZ4_BLOCK: usize = 8 << 20;

/// Why a kernel cannot be taken out of a bzImage.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The header's magic number is not there.
    #[error("it has no setup header of a bzImage")]
    NoHeader,
    /// The header is of a boot protocol that does not say where the kernel is.
    #[error("its boot protocol {}.{:02} is older than 2.08", version >> 8, version & 0xff)]
    OldProtocol {
        /// The version of the protocol.
        version: u16,
    },
    /// It ends before what its header says.
    #[error("its header leads out of the file")]
    Truncated,
    /// The compression is not known.
    #[error("its compression is not known (first bytes {0:02x?})")]
    Compression([u8; 6]),
    /// Decompression failed.
    #[error("its content cannot be decompressed")]
    Decompress(#[from] io::Error),
    /// The content is larger than any kernel.
    #[error("its content is larger than {} MiB", MOST_BYTES >> 20)]
    TooLarge,
    /// The content's length is another one than recorded.
    #[error("its content has {found} bytes instead of {expected}")]
    Length {
        /// What the file says.
        expected: u32,
        /// What came out.
        found: usize,
    },
    /// What came out is no ELF file.
    #[error("its content is not an ELF kernel")]
    NotElf,
}

/// Whether `image` has the setup header's magic number.
pub(crate) fn is_bzimage(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

/// The kernel's release, such as `6.1.0-56-cloud-amd64`.
pub(crate) fn release(image: &[u8]) -> Option<&str> {
    let offset = usize::from(u16_at(image, 0x20e)?);
    if !is_bzimage(image) || offset == 0 {
        return None;
    }
    let text = image.get(SECTOR + offset..)?;
    let end = text
        .iter()
        .take(256)
        .position(|b| *b == 0 || b.is_ascii_whitespace())?;
    std::str::from_utf8(&text[..end])
        .ok()
        .filter(|text| !text.is_empty())
}

/// The uncompressed kernel in `image`: an ELF file.
pub(crate) fn extract(image: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let kernel = decompress(payload(image)?)?;
    if kernel.starts_with(b"\x7fELF") {
        Ok(kernel)
    } else {
        Err(ExtractError::NotElf)
    }
}

/// The ELF kernel in a compressed file; `None` where it is compressed in no known way.
pub(crate) fn decompress_elf(file: &[u8]) -> Result<Option<Vec<u8>>, ExtractError> {
    match decompress_any(file)? {
        Some(kernel) if kernel.starts_with(b"\x7fELF") => Ok(Some(kernel)),
        Some(_) => Err(ExtractError::NotElf),
        None => Ok(None),
    }
}

/// The content of a file of gzip, xz or zstd; `None` where it is none.
pub(crate) fn decompress_any(file: &[u8]) -> Result<Option<Vec<u8>>, ExtractError> {
    Ok(Some(match *file {
        [0x1f, 0x8b, ..] => read_all(flate2::read::GzDecoder::new(file))?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read_all(xz2::read::XzDecoder::new(file))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(file)?;
            decoder.window_log_max(27)?;
            read_all(decoder)?
        }
        _ => return Ok(None),
    }))
}

fn payload(image: &[u8]) -> Result<&[u8], ExtractError> {
    if !is_bzimage(image) {
        return Err(ExtractError::NoHeader);
    }
    let version = u16_at(image, 0x206).ok_or(ExtractError::Truncated)?;
    if version < 0x208 {
        return Err(ExtractError::OldProtocol { version });
    }
    let setup_sectors = match image[0x1f1] {
        // For historical reasons, says the specification.
        0 => 4,
        n => usize::from(n),
    };
    let offset = size_at(image, 0x248)?;
    let length = size_at(image, 0x24c)?;
    let start = ((setup_sectors + 1) * SECTOR).checked_add(offset);
    let end = start.and_then(|start| start.checked_add(length));
    start
        .zip(end)
        .and_then(|(start, end)| image.get(start..end))
        .ok_or(ExtractError::Truncated)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, ExtractError> {
    // The build appends the uncompressed length, which for gzip is the format's own trailer.
    let (body, length) = payload
        .split_last_chunk::<4>()
        .ok_or(ExtractError::Truncated)?;
    let expected = u32::from_le_bytes(*length);
    let kernel = match *payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(body.get(4..).unwrap_or_default())?,
        [0x1f, 0x8b, ..] => read_all(flate2::read::GzDecoder::new(payload))?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read_all(xz2::read::XzDecoder::new(body))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(body)?;
            // The kernel's build uses windows of up to 128 MiB.
            decoder.window_log_max(27)?;
            read_all(decoder.single_frame())?
        }
        _ => {
            let mut first = [0; 6];
            for (to, from) in first.iter_mut().zip(payload) {
                *to = *from;
            }
            return Err(ExtractError::Compression(first));
        }
    };
    if u32::try_from(kernel.len()).is_ok_and(|length| length == expected) {
        Ok(kernel)
    } else {
        Err(ExtractError::Length {
            expected,
            found: kernel.len(),
        })
    }
}

fn read_all(reader: impl Read) -> Result<Vec<u8>, ExtractError> {
    let mut out = Vec::new();
    reader.take(MOST_BYTES as u64 + 1).read_to_end(&mut out)?;
    if out.len() > MOST_BYTES {
        return Err(ExtractError::TooLarge);
    }
    Ok(out)
}

/// Blocks, each behind its compressed length; the magic number is off already.
fn lz4_legacy(mut blocks: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (compressed, rest) = rest
            .split_at_checked(length)
            .ok_or(ExtractError::Truncated)?;
        let n = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if out.len() + n > MOST_BYTES {
            return Err(ExtractError::TooLarge);
        }
        out.extend_from_slice(&block[..n]);
        blocks = rest;
    }
    if blocks.is_empty() {
        Ok(out)
    } else {
        Err(ExtractError::Truncated)
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..offset + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn size_at(bytes: &[u8], offset: usize) -> Result<usize, ExtractError> {
    let bytes = bytes
        .get(offset..offset + 4)
        .and_then(|b| b.try_into().ok());
    let value = u32::from_le_bytes(bytes.ok_or(ExtractError::Truncated)?);
    usize::try_from(value).map_err(|_| ExtractError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF".to_vec();
        // Compressible, and more than one lz4 block.
        kernel.extend((0..LZ4_BLOCK + 5000).map(|i| u8::try_from(i / 7 % 251).unwrap()));
        kernel
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for block in data.chunks(LZ4_BLOCK) {
            let compressed = lz4_flex::block::compress(block);
            out.extend(u32::try_from(compressed.len()).unwrap().to_le_bytes());
            out.extend(compressed);
        }
        out
    }

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        let text = b"6.1.0-1-test (someone) #1\0";
        image[SECTOR + 0x300..SECTOR + 0x300 + text.len()].copy_from_slice(text);
        image.extend([0xcc; 16]);
        image.extend(payload);
        image.extend(b"what follows the payload");
        image
    }

    fn with_length(mut compressed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
        compressed.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        compressed
    }

    #[test]
    fn every_compression_gives_the_kernel_back() {
        let kernel = kernel();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&kernel).unwrap();
        for payload in [
            with_length(lz4(&kernel), &kernel),
            gzip.finish().unwrap(),
            with_length(xz.finish().unwrap(), &kernel),
            with_length(zstd::encode_all(&kernel[..], 1).unwrap(), &kernel),
        ] {
            let image = image(&payload);
            assert!(extract(&image).unwrap() == kernel);
            assert_eq!(release(&image), Some("6.1.0-1-test"));
        }
    }

    #[test]
    fn each_fault_has_its_error() {
        assert!(matches!(extract(b"short"), Err(ExtractError::NoHeader)));
        assert!(matches!(
            extract(&image(b"unknown?")),
            Err(ExtractError::Compression(_))
        ));
        let kernel = kernel();
        let wrong_length = image(&with_length(lz4(&kernel), &kernel[1..]));
        assert!(matches!(
            extract(&wrong_length),
            Err(ExtractError::Length { .. })
        ));
        let other = b"not an ELF file";
        let other = image(&with_length(lz4(other), other));
        assert!(matches!(extract(&other), Err(ExtractError::NotElf)));
        let whole = image(&with_length(lz4(&kernel), &kernel));
        let cut = whole.len() - 100;
        assert!(matches!(
            extract(&whole[..cut]),
            Err(ExtractError::Truncated)
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(
            magic in prop_oneof![
                Just(vec![0x02, 0x21, 0x4c, 0x18]), Just(vec![0x1f, 0x8b, 8, 0]),
                Just(b"\xfd7zXZ\0".to_vec()), Just(vec![0x28, 0xb5, 0x2f, 0xfd]), Just(vec![]),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..512),
        ) {
            let _ = extract(&image(&[magic, rest].concat()));
        }

        #[test]
        fn arbitrary_headers_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0x250..0x800),
        ) {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            let _ = (extract(&bytes), release(&bytes));
        }
    }
}
