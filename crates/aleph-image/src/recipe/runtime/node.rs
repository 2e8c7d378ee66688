//! Node.js 18.

use crate::error::ImageError;
use crate::progress::Progress;
use crate::staging::Staging;
use std::path::Path;

pub(super) const ENV: [(&str, &str); 0] = [];

pub(super) fn add(
    _tree: &Path,
    _staging: &Staging,
    _progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    Ok(())
}
