//! Dead letters: what could not be carried out, a file for each account.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Bytes of a file of dead letters.
const MOST_LETTERS: u64 = 64 * 1024 * 1024;

/// The files of dead letters.
pub(super) struct Letters {
    folder: PathBuf,
    turn: Mutex<()>,
}

impl Letters {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            turn: Mutex::new(()),
        }
    }

    /// Adds a letter to the file of an account. It is on disk once this returns.
    pub(super) async fn write(&self, account: &str, letter: &Value) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        // Names of accounts are names of files, too.
        let path = self.folder.join(format!("{account}.jsonl"));
        let line = format!("{letter}\n");
        let folder = self.folder.clone();
        let work = move || {
            fs::create_dir_all(folder)?;
            append(&path, line.as_bytes())
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let long = fs::metadata(path).is_ok_and(|there| there.len() > MOST_LETTERS);
    if long {
        fs::rename(path, path.with_extension("1.jsonl"))?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(line)?;
    file.sync_data()
}
