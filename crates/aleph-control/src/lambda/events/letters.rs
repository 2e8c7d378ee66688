//! Dead letters: what could not be carried out, a folder for each account.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Bytes of a file of dead letters.
const MOST_LETTERS: u64 = 64 * 1024 * 1024;

/// The file in an account's folder, and the one before it.
const FILE: &str = "letters.jsonl";
const EARLIER: &str = "letters.1.jsonl";

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
        // Names of accounts are names of folders, too. A name may end as a file's does.
        let folder = self.folder.join(account);
        let line = format!("{letter}\n");
        let work = move || {
            fs::create_dir_all(&folder)?;
            append(&folder.join(FILE), line.as_bytes(), MOST_LETTERS)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn append(path: &Path, line: &[u8], most: u64) -> io::Result<()> {
    let long = fs::metadata(path).is_ok_and(|there| there.len() > most);
    if long {
        fs::rename(path, path.with_file_name(EARLIER))?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    let written = file.write_all(line).and_then(|()| file.sync_data());
    if written.is_err() {
        // Half a line would spoil the next one.
        file.set_len(length)?;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_account_has_a_folder_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::new(dir.path().to_owned());
        for account in ["a", "a.1", "a.jsonl", "letters.jsonl"] {
            letters.write(account, &account.into()).await.unwrap();
        }
        let path = |account: &str| dir.path().join(account).join(FILE);
        append(&path("a"), b"2\n", 0).unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        assert_eq!(read(path("a")), "2\n");
        assert_eq!(read(dir.path().join("a").join(EARLIER)), "\"a\"\n");
        assert_eq!(read(path("a.1")), "\"a.1\"\n");
    }
}
