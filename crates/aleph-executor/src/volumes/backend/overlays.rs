//! [`Overlays`]: files of what is different.

use super::{Backend, Branch, MAX_DEPTH};

/// qcow2 files over others.
#[derive(Debug, Clone, Copy)]
pub struct Overlays;

impl Backend for Overlays {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn branch(&self, depth: usize) -> Branch {
        match depth < MAX_DEPTH {
            true => Branch::Overlay,
            false => Branch::Copy,
        }
    }
}
