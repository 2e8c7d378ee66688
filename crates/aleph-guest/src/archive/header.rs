//! One entry's block.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 100 | name |
//! | 100, 108, 116 | 8 each | mode, owner, group |
//! | 124, 136 | 12 each | size, time of the last change |
//! | 148 | 8 | sum of all bytes, with blanks in its own place |
//! | 156 | 1 | kind |
//! | 157 | 100 | what a link leads to |
//! | 257 | 8 | `ustar` and its version: POSIX or GNU |
//! | 345 | 155 | what comes before the name (POSIX) |
//!
//! Numbers are octal digits; GNU tar has larger ones in base 256. Names that do not fit are
//! entries of their own before it, which every tar knows.

use alloc::vec::Vec;

/// Everything in an archive is padded to blocks of this size.
pub(crate) const BLOCK: usize = 512;

/// The longest name that a block has.
const NAME: usize = 100;

/// What an entry is, by its byte in the block.
pub(crate) mod kind {
    pub(crate) const FILE: u8 = b'0';
    /// A file as archives before POSIX have it.
    pub(crate) const OLD_FILE: u8 = 0;
    /// A file that is to be contiguous, which no filesystem cares about.
    pub(crate) const CONTIGUOUS: u8 = b'7';
    pub(crate) const HARD_LINK: u8 = b'1';
    pub(crate) const LINK: u8 = b'2';
    pub(crate) const FOLDER: u8 = b'5';
    /// The name of the next entry.
    pub(crate) const LONG_NAME: u8 = b'L';
    /// What the next entry leads to.
    pub(crate) const LONG_TARGET: u8 = b'K';
    /// Facts of the next entry.
    pub(crate) const EXTENDED: u8 = b'x';
    /// Facts of all entries that follow.
    pub(crate) const GLOBAL: u8 = b'g';
    /// A file with holes, in GNU's own form.
    pub(crate) const SPARSE: u8 = b'S';
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// What it is.
    pub(crate) kind: u8,
    /// Its path.
    pub(crate) name: Vec<u8>,
    /// What it leads to, where it is a link.
    pub(crate) target: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Bytes that follow.
    pub(crate) size: u64,
    /// When it was changed last, in seconds since 1970.
    pub(crate) modified: i64,
}

impl Entry {
    /// Appends the block, and entries for what does not fit it before.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (kind, text) in [
            (kind::LONG_TARGET, &self.target),
            (kind::LONG_NAME, &self.name),
        ] {
            if text.len() > NAME {
                let long = Self {
                    kind,
                    name: b"././@LongLink".to_vec(),
                    size: text.len() as u64 + 1,
                    ..Self::default()
                };
                long.write_block(out);
                out.extend_from_slice(text);
                out.push(0);
                pad(out, text.len() + 1);
            }
        }
        self.write_block(out);
    }

    fn write_block(&self, out: &mut Vec<u8>) {
        let mut block = [0; BLOCK];
        let name = &self.name[..self.name.len().min(NAME)];
        let target = &self.target[..self.target.len().min(NAME)];
        block[..name.len()].copy_from_slice(name);
        block[157..157 + target.len()].copy_from_slice(target);
        put_number(&mut block[100..108], self.mode.into());
        put_number(&mut block[108..116], self.uid.into());
        put_number(&mut block[116..124], self.gid.into());
        put_number(
            &mut block[124..136],
            i64::try_from(self.size).unwrap_or(i64::MAX),
        );
        put_number(&mut block[136..148], self.modified);
        block[156] = self.kind;
        block[257..265].copy_from_slice(b"ustar  \0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put_number(&mut block[148..155], sum.into());
        out.extend_from_slice(&block);
    }

    /// Reads a block; none where it has only zeros, which ends an archive.
    pub(crate) fn read(block: &[u8; BLOCK]) -> Result<Option<Self>, &'static str> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // Some old tars have summed signed bytes.
        let bytes = || {
            let in_sum = |(at, byte): (usize, &u8)| match at {
                148..156 => b' ',
                _ => *byte,
            };
            block.iter().enumerate().map(in_sum)
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        let sum = number(&block[148..156])?;
        if sum != unsigned && sum != signed {
            return Err("a block's sum is wrong");
        }
        let mut name = text(&block[..NAME]).to_vec();
        let prefix = text(&block[345..500]);
        if block[257..263] == *b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let small =
            |field: &[u8]| u32::try_from(number(field)?).map_err(|_| "a number is too large");
        Ok(Some(Self {
            kind: block[156],
            name,
            target: text(&block[157..257]).to_vec(),
            mode: small(&block[100..108])?,
            uid: small(&block[108..116])?,
            gid: small(&block[116..124])?,
            size: u64::try_from(number(&block[124..136])?).map_err(|_| "a size is wrong")?,
            modified: number(&block[136..148])?,
        }))
    }
}

/// Appends zeros to the end of a block, behind so many bytes.
pub(crate) fn pad(out: &mut Vec<u8>, size: usize) {
    out.resize(out.len() + size.next_multiple_of(BLOCK) - size, 0);
}

/// A text up to its first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits and a zero where they fit, else base 256.
fn put_number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    let mut rest = value;
    if value >= 0 && (3 * digits >= 63 || value >> (3 * digits) == 0) {
        for digit in field[..digits].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest & 7).unwrap_or(0);
            rest >>= 3;
        }
        field[digits] = 0;
        return;
    }
    for byte in field.iter_mut().rev() {
        *byte = u8::try_from(rest & 0xff).unwrap_or(0);
        rest >>= 8;
    }
    field[0] = if value < 0 { 0xff } else { 0x80 };
}

fn number(field: &[u8]) -> Result<i64, &'static str> {
    const LARGE: &str = "a number is too large";
    let is_negative = field[0] == 0xff;
    if is_negative || field[0] == 0x80 {
        let start = if is_negative { -1 } else { 0 };
        return field[1..].iter().try_fold(start, |sum: i64, byte| {
            let shifted = sum.checked_mul(256).ok_or(LARGE)?;
            shifted.checked_add(i64::from(*byte)).ok_or(LARGE)
        });
    }
    let digits = field
        .split(|byte| matches!(byte, 0 | b' '))
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    // Twelve digits are the most that a field has.
    digits.iter().try_fold(0, |sum: i64, digit| match digit {
        b'0'..=b'7' => Ok(sum << 3 | i64::from(digit - b'0')),
        _ => Err("a number is wrong"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_survive_their_blocks(
            name in prop::collection::vec(1_u8.., 1..=NAME),
            target in prop::collection::vec(1_u8.., 0..=NAME),
            mode in 0_u32..0o10000, uid in any::<u32>(), gid in any::<u32>(),
            size in 0_u64..1 << 63, modified in any::<i64>(),
        ) {
            let entry = Entry { kind: kind::LINK, name, target, mode, uid, gid, size, modified };
            let mut out = Vec::new();
            entry.write(&mut out);
            let block = out.first_chunk().unwrap();
            prop_assert_eq!(out.len(), BLOCK);
            prop_assert_eq!(Entry::read(block), Ok(Some(entry)));
        }

        #[test]
        fn any_block_is_read_or_refused(
            mut block in prop::collection::vec(any::<u8>(), BLOCK), is_summed in any::<bool>(),
        ) {
            if is_summed {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                put_number(&mut block[148..155], sum.into());
            }
            let _ = Entry::read(block.first_chunk().unwrap());
        }
    }
}
