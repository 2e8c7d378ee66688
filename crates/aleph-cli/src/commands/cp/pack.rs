//! Local files to an archive that is sent while it is made.

use crate::progress::Counter;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Body, Frame};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tar::Builder;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How much is collected before it is sent.
const PIECE: usize = 64 * 1024;

/// Packs a path under another name, or what is in it without one. The archive ends with the
/// body's end, and an error ends both.
pub(super) fn start(
    path: PathBuf,
    name: Option<String>,
    counter: Counter,
) -> (
    impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
    JoinHandle<io::Result<()>>,
) {
    let (sender, receiver) = mpsc::channel(4);
    let packed = tokio::task::spawn_blocking(move || {
        let sink = Sink {
            pieces: sender.clone(),
            pending: Vec::with_capacity(PIECE),
            counter,
        };
        let done = pack(&path, name.as_deref(), sink);
        if let Err(error) = &done {
            // A body that ends in order would be taken for the whole archive.
            let why = io::Error::new(error.kind(), error.to_string());
            let _ = sender.blocking_send(Err(why));
        }
        done
    });
    (body(receiver), packed)
}

/// A body of what somebody else packs.
pub(super) fn forward(
    pieces: mpsc::Receiver<Vec<u8>>,
    counter: Counter,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
    let pieces = stream::unfold((pieces, counter), async |(mut pieces, counter)| {
        let piece = pieces.recv().await?;
        counter.advance(piece.len());
        Some((Ok(Frame::data(Bytes::from(piece))), (pieces, counter)))
    });
    StreamBody::new(pieces)
}

fn body(
    pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
    let pieces = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((piece.map(Frame::data), pieces))
    });
    StreamBody::new(pieces)
}

struct Sink {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
    counter: Counter,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.pending, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        self.counter.advance(piece.len());
        let sent = self.pieces.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn pack(path: &Path, name: Option<&str>, sink: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(sink);
    archive.follow_symlinks(false);
    match name {
        Some(name) => add(&mut archive, path, Path::new(name))?,
        None => add_content(&mut archive, path, Path::new(""))?,
    }
    archive.into_inner()?.flush()
}

fn add(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    // A slash at a link's end means what it leads to, for the system as well.
    let kind = fs::symlink_metadata(path)?.file_type();
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if kind.is_dir() {
        archive.append_dir(name, path).map_err(told)?;
        add_content(archive, path, name)
    } else if kind.is_file() {
        let mut file = File::open(path).map_err(told)?;
        archive.append_file(name, &mut file).map_err(told)
    } else if kind.is_symlink() {
        archive.append_path_with_name(path, name).map_err(told)
    } else {
        // Sockets and devices mean nothing in another machine.
        Ok(())
    }
}

fn add_content(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        add(archive, &entry.path(), &name.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_packed_under_its_new_name() -> io::Result<()> {
        let here = tempfile::tempdir()?;
        let tree = here.path().join("tree");
        fs::create_dir_all(tree.join("sub"))?;
        fs::write(tree.join("sub/file"), "content")?;
        std::os::unix::fs::symlink("sub/file", tree.join("link"))?;
        let listed = |name: Option<&str>| -> io::Result<Vec<String>> {
            let mut bytes = Vec::new();
            pack(&tree, name, &mut bytes)?;
            let mut archive = tar::Archive::new(bytes.as_slice());
            let entries = archive.entries()?.map(|entry| {
                let entry = entry?;
                let path = entry.path()?.display().to_string();
                Ok(format!("{path} {:?}", entry.header().entry_type()))
            });
            entries.collect()
        };
        assert_eq!(
            listed(Some("new"))?,
            [
                "new Directory",
                "new/link Symlink",
                "new/sub Directory",
                "new/sub/file Regular"
            ]
        );
        assert_eq!(
            listed(None)?,
            ["link Symlink", "sub Directory", "sub/file Regular"]
        );
        Ok(())
    }
}
