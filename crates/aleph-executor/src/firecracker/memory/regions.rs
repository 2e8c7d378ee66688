//! Where a guest's memory is: in the VMM, and in the memory file.
//!
//! The VMM says it in JSON as it hands its userfaultfd over. `page_size_kib` is of 1.10 and 1.11, and
//! holds bytes for all that its name says; from 1.12 on `page_size` does, too.

use super::error::MemoryServerError;
use serde::Deserialize;

/// The most regions that are taken: Firecracker has two, and one for each piece of memory that was
/// plugged in.
const MAX_REGIONS: usize = 1024;

/// Pages as the kernel has them, and huge ones.
pub(super) const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

#[derive(Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

/// A part of the memory that is one piece in both places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    address: u64,
    length: u64,
    offset: u64,
}

/// All of the memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Regions {
    /// By address.
    regions: Vec<Region>,
    page: u64,
}

impl Regions {
    /// Reads what the VMM says; `None` where there is more to come. `file` is how long the memory
    /// file is.
    pub(super) fn parse(json: &[u8], file: u64) -> Result<Option<Self>, MemoryServerError> {
        let mappings: Vec<Mapping> = match serde_json::from_slice(json) {
            Ok(mappings) => mappings,
            Err(error) if error.is_eof() => return Ok(None),
            Err(error) => return Err(MemoryServerError::Handshake(error.to_string())),
        };
        Self::new(&mappings, file).map(Some)
    }

    fn new(mappings: &[Mapping], file: u64) -> Result<Self, MemoryServerError> {
        let wrong = |why: &str| MemoryServerError::Handshake(why.into());
        let size = |mapping: &Mapping| mapping.page_size.or(mapping.page_size_kib);
        let page = mappings.first().and_then(size);
        let page = page.ok_or_else(|| wrong("it has no memory, or no pages"))?;
        if page != PAGE && page != HUGE_PAGE {
            return Err(wrong(&format!("its pages have {page} bytes")));
        }
        if mappings.len() > MAX_REGIONS {
            return Err(wrong("its memory is in too many pieces"));
        }
        let mut regions = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let Mapping {
                base_host_virt_addr: address,
                size: length,
                offset,
                ..
            } = *mapping;
            if size(mapping) != Some(page) {
                return Err(wrong("its pages are of several sizes"));
            }
            if length == 0 || [address, length, offset].iter().any(|n| n % page != 0) {
                return Err(wrong("its memory does not begin or end with a page"));
            }
            let (Some(_), Some(end)) = (address.checked_add(length), offset.checked_add(length))
            else {
                return Err(wrong("its memory is beyond all numbers"));
            };
            if end > file {
                return Err(MemoryServerError::Short { file, wanted: end });
            }
            regions.push(Region {
                address,
                length,
                offset,
            });
        }
        regions.sort_by_key(|region| region.address);
        let overlap = |pair: &[Region]| pair[0].address + pair[0].length > pair[1].address;
        if regions.windows(2).any(overlap) {
            return Err(wrong("two pieces of its memory are in one place"));
        }
        Ok(Self { regions, page })
    }

    /// How large its pages are.
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// How many pages the memory file has, those of no region included.
    pub(super) fn pages(&self) -> u64 {
        let end = self.regions.iter().map(|r| r.offset + r.length).max();
        end.unwrap_or(0) / self.page
    }

    /// The page that an address is in: its address, and its number in the file.
    pub(super) fn page_at(&self, address: u64) -> Option<(u64, u64)> {
        let after = self.regions.partition_point(|r| r.address <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let within = address - region.address;
        let within = (within < region.length).then(|| within - within % self.page)?;
        let number = (region.offset + within) / self.page;
        Some((region.address + within, number))
    }

    /// Where a run of pages of the file is, which is cut where it is not in one piece.
    pub(super) fn place(&self, first: u64, count: u64) -> Option<(u64, u64)> {
        let (offset, length) = (first * self.page, count * self.page);
        let mut found = self.regions.iter();
        let region = found.find(|r| (r.offset..r.offset + r.length).contains(&offset))?;
        let within = offset - region.offset;
        let length = length.min(region.length - within);
        Some((region.address + within, length / self.page))
    }

    /// The numbers of the pages that are in a range of addresses.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let page = self.page;
        self.regions.iter().flat_map(move |region| {
            let from = start.max(region.address).next_multiple_of(page);
            let to = end.min(region.address + region.length);
            let count = to.saturating_sub(from) / page;
            let first = from.saturating_sub(region.address) + region.offset;
            (0..count).map(move |n| first / page + n)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn parsed(json: &str, file: u64) -> Result<Option<Regions>, String> {
        Regions::parse(json.as_bytes(), file).map_err(|error| error.to_string())
    }

    #[test]
    fn every_versions_form_is_read() {
        let old = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size_kib":4096}]"#;
        let new = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096}]"#;
        let (old, new) = (parsed(old, MIB).unwrap(), parsed(new, MIB).unwrap());
        assert_eq!(old, new);
        let old = old.unwrap();
        assert_eq!((old.page(), old.pages()), (4096, 2));
        assert_eq!(old.page_at(4096 + 5000), Some((8192, 1)));
        assert_eq!(old.page_at(4095), None);
        assert_eq!(old.page_at(4096 * 3), None);
    }

    #[test]
    fn what_came_in_part_is_waited_for() {
        let whole = r#"[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096}]"#;
        for cut in 0..whole.len() {
            assert_eq!(parsed(&whole[..cut], MIB), Ok(None), "{cut}");
        }
        assert!(parsed(whole, MIB).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_a_guests_memory_is_refused() {
        let region = |address: u64, size: u64, offset: u64, page: u64| {
            format!(
                r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":{page}}}"#
            )
        };
        let good = region(MIB, MIB, 0, 4096);
        for (json, why) in [
            ("[]".to_owned(), "no memory"),
            ("[1]".to_owned(), "invalid type"),
            ("{}x".to_owned(), ""),
            (format!("[{}]", region(MIB, MIB, 0, 4)), "4 bytes"),
            (format!("[{}]", region(MIB + 1, MIB, 0, 4096)), "page"),
            (format!("[{}]", region(MIB, 0, 0, 4096)), "page"),
            (format!("[{}]", region(MIB, MIB, 0, 2 << 20)), "page"),
            (format!("[{good},{good}]"), "one place"),
            (
                format!("[{good},{}]", region(0, 2 << 20, 0, 2 << 20)),
                "several",
            ),
            (
                format!("[{}]", region(u64::MAX - 4095, 4096, 0, 4096)),
                "beyond",
            ),
            (
                format!("[{}]", region(0, MIB, MIB, 4096)),
                "the memory file has 1048576 bytes",
            ),
        ] {
            let error = parsed(&json, MIB).unwrap_err();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn two_regions_with_a_gap_are_one_file() {
        let json = r#"[
            {"base_host_virt_addr":1048576,"size":8192,"offset":8192,"page_size":4096},
            {"base_host_virt_addr":65536,"size":8192,"offset":0,"page_size":4096}]"#;
        let regions = parsed(json, MIB).unwrap().unwrap();
        assert_eq!(regions.pages(), 4);
        assert_eq!(regions.page_at(1_048_576), Some((1_048_576, 2)));
        assert_eq!(regions.place(1, 3), Some((65536 + 4096, 1)));
        assert_eq!(regions.place(2, 9), Some((1_048_576, 2)));
        assert_eq!(regions.place(4, 1), None);
        let all: Vec<u64> = regions.within(0, u64::MAX / 2).collect();
        assert_eq!(all, [0, 1, 2, 3]);
        let some: Vec<u64> = regions.within(65537, 1_048_576 + 4096).collect();
        assert_eq!(some, [1, 2]);
    }

    proptest! {
        #[test]
        fn a_page_is_where_it_is_placed(pages in 1_u64..50, at in 0_u64..60) {
            let json = format!(
                r#"[{{"base_host_virt_addr":40960,"size":{},"offset":0,"page_size":4096}}]"#,
                pages * 4096
            );
            let regions = parsed(&json, MIB).unwrap().unwrap();
            match regions.page_at(40960 + at * 4096 + 7) {
                Some((address, number)) => {
                    prop_assert!(number == at && at < pages);
                    prop_assert_eq!(regions.place(number, 1), Some((address, 1)));
                    prop_assert!(regions.within(address, address + 4096).eq([number]));
                }
                None => prop_assert!(at >= pages),
            }
        }
    }
}
