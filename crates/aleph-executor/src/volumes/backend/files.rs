//! [`Files`]: a file for each disk.

use super::{Backend, Branch};

/// Files, each on its own.
#[derive(Debug, Clone, Copy)]
pub struct Files;

impl Backend for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn branch(&self, _depth: usize) -> Branch {
        Branch::Copy
    }
}
