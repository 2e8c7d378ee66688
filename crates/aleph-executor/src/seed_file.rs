//! A guest's seed on the host: readable by the node alone, for it has the user's secrets.

use crate::cloud_init::Secret;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes an image to `path` with mode 0600, all of it or nothing. What was there is replaced, and
/// a guest that has it open keeps the old one.
///
/// # Errors
/// Where the folder is not there, or has no room. Nothing is left then but a file `PATH.new`.
pub fn write_seed(path: &Path, image: &Secret) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    // One of a node that was killed may be there, and is not trusted to be whole or private.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(new)?;
    file.write_all(image.expose())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
