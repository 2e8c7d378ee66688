//! Tar archives of the guest's files: out as GNU tar writes them, in as any tar writes them.
//!
//! | file | what it is |
//! | --- | --- |
//! | `header` | one entry's block, written and read |
//! | `extended` | the records of a pax header |
//! | `tree` | paths that cannot lead out of a folder |
//! | [`Pack`] | a file or folder on its way out |
//! | [`Unpack`] | an archive on its way in |
//!
//! Both hold a few blocks and never a file: what is under way is bounded by the window, and each
//! does a bounded part of its work in one turn of the loop.

mod extended;
mod header;
mod pack;
mod tree;
mod unpack;

pub(crate) use pack::Pack;
pub(crate) use unpack::Unpack;
