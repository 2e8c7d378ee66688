//! Cutting bytes into chunks and runs of zeros (pure).

use crate::config::ChunkBounds;
use fastcdc::v2020::{FastCDC, Normalization};
use std::ops::Range;

/// Zeros are looked for in blocks of this size.
const BLOCK: usize = 4096;

/// The shortest run of zeros that is worth an entry of its own.
const ZEROS: usize = 32 << 10;

/// A piece of what was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes with content.
    Data(Range<usize>),
    /// Zeros.
    Zeros(Range<usize>),
}

/// Cuts bytes into pieces that follow each other without gaps, from the first byte to the last. Another seed
/// cuts elsewhere.
pub(crate) fn cut(bytes: &[u8], (bounds, seed): (&ChunkBounds, u64)) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut data = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = zeros_from(bytes, at);
        let long = end - at >= ZEROS || (end == bytes.len() && end > at && at == 0);
        if long {
            cut_data(bytes, data..at, (bounds, seed), &mut pieces);
            pieces.push(Piece::Zeros(at..end));
            data = end;
            at = end;
        } else {
            at = end.max(at + BLOCK).min(bytes.len());
        }
    }
    cut_data(bytes, data..bytes.len(), (bounds, seed), &mut pieces);
    pieces
}

/// The end of the zero blocks that begin here.
fn zeros_from(bytes: &[u8], start: usize) -> usize {
    let mut end = start;
    for block in bytes.get(start..).unwrap_or_default().chunks(BLOCK) {
        if !is_zero(block) {
            break;
        }
        end += block.len();
    }
    end
}

fn is_zero(block: &[u8]) -> bool {
    const WORD: usize = 64;
    let mut words = block.chunks_exact(WORD);
    words.all(|word| word == [0; WORD]) && words.remainder().iter().all(|byte| *byte == 0)
}

fn cut_data(
    bytes: &[u8],
    range: Range<usize>,
    (bounds, seed): (&ChunkBounds, u64),
    pieces: &mut Vec<Piece>,
) {
    let Some(source) = bytes.get(range.clone()).filter(|data| !data.is_empty()) else {
        return;
    };
    let ChunkBounds { min, average, max } = *bounds;
    let level = Normalization::Level1;
    let cuts = FastCDC::with_level_and_seed(source, min, average, max, level, seed);
    pieces.extend(cuts.map(|chunk| {
        let start = range.start + chunk.offset;
        Piece::Data(start..start + chunk.length)
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(pieces: &[Piece]) -> Vec<Range<usize>> {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Data(range) | Piece::Zeros(range) => range.clone(),
            })
            .collect()
    }

    #[test]
    fn zeros_alone_are_one_piece_of_any_length() {
        let bounds = ChunkBounds::default();
        for length in [1, 511, 4096, 4097, 1 << 20] {
            assert_eq!(
                cut(&vec![0; length], (&bounds, 0)),
                [Piece::Zeros(0..length)]
            );
        }
        assert_eq!(cut(&[], (&bounds, 0)), []);
    }

    proptest! {
        #[test]
        fn pieces_cover_all_and_zeros_are_zero(
            parts in proptest::collection::vec((any::<bool>(), 1usize..120_000, any::<u64>()), 0..8),
            seed in 0u64..3,
        ) {
            let mut bytes = Vec::new();
            for (zero, length, seed) in parts {
                let mut state = seed | 1;
                bytes.extend((0..length).map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    if zero { 0 } else { state.to_le_bytes()[3] }
                }));
            }
            let bounds = ChunkBounds::default();
            let pieces = cut(&bytes, (&bounds, seed));
            let mut at = 0;
            for range in ranges(&pieces) {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start);
                at = range.end;
            }
            prop_assert_eq!(at, bytes.len());
            for piece in pieces {
                match piece {
                    Piece::Zeros(range) => prop_assert!(bytes[range].iter().all(|byte| *byte == 0)),
                    Piece::Data(range) => prop_assert!(range.len() <= bounds.max),
                }
            }
        }
    }

    #[test]
    fn an_insertion_moves_few_chunks() {
        let mut state = 7u64;
        let bytes: Vec<u8> = (0..2 << 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[2]
            })
            .collect();
        let mut moved = bytes.clone();
        moved.splice(1 << 20..1 << 20, *b"inserted");
        let chunks = |bytes: &[u8]| -> std::collections::HashSet<Vec<u8>> {
            ranges(&cut(bytes, (&ChunkBounds::default(), 0)))
                .into_iter()
                .map(|range| bytes.get(range).unwrap().to_vec())
                .collect()
        };
        let before = chunks(&bytes);
        let new = chunks(&moved).difference(&before).count();
        assert!(new <= 3, "{new} of {} chunks are new", before.len());
    }
}
