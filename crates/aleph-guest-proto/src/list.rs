//! Lists of byte strings: arguments and environment.

use crate::ProtocolError;
use crate::wire::{Reader, Writer};
use alloc::vec::Vec;

/// A list of byte strings without NUL, checked when it was read or made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct List<'a> {
    count: u32,
    items: &'a [u8],
}

/// A [`List`] that owns its strings.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ListBuf {
    count: u32,
    items: Vec<u8>,
}

impl ListBuf {
    /// A list of these strings.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] where one has a NUL byte.
    pub fn new<S: AsRef<[u8]>>(
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self, ProtocolError> {
        let mut list = Self::default();
        for string in strings {
            let string = string.as_ref();
            if string.contains(&0) {
                return Err(ProtocolError::Malformed("NUL in text"));
            }
            Writer(&mut list.items).bytes(string);
            list.count += 1;
        }
        Ok(list)
    }

    /// The list as messages carry it.
    #[must_use]
    pub fn as_list(&self) -> List<'_> {
        List {
            count: self.count,
            items: &self.items,
        }
    }
}

impl<'a> List<'a> {
    /// How many strings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.items);
        // Whoever made the list has checked it, so every read succeeds.
        (0..self.count).map_while(move |_| reader.text().ok())
    }

    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        let (count, items) = (r.u32()?, r.bytes()?);
        let mut reader = Reader::new(items);
        for _ in 0..count {
            reader.text()?;
        }
        reader.end()?;
        Ok(Self { count, items })
    }

    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.u32(self.count);
        w.bytes(self.items);
    }
}

impl core::fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(alloc::string::String::from_utf8_lossy))
            .finish()
    }
}

impl core::fmt::Debug for ListBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_list().fmt(f)
    }
}
