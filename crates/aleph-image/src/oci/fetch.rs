//! One layer, from where it can be had into the store's blobs.
//!
//! Bytes go from the connection over a short queue to a thread that writes and hashes them, and
//! whoever unpacks the layer reads behind. A connection that breaks is made again from where it
//! broke; what has arrived stays for the next pull when this one fails.

use super::blobs::{Blobs, Part};
use super::document::Descriptor;
use super::error::RegistryError;
use super::event::{LayerReport, LayerStep};
use super::growth::Growing;
use super::remote::Remote;
use crate::digest::{Digest, Hasher};
use crate::disk::{DiskError, Doing};
use crate::error::ImageError;
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Tries of one place that together do not get further than `PROGRESS`.
const TRIES: u32 = 4;
const PROGRESS: u64 = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How often to look whether another download of the same layer has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Pieces of a connection, of some 16 KiB each, on their way to the disk.
const QUEUE: usize = 64;
const BUFFER: usize = 256 << 10;

/// One layer to be had.
pub(super) struct Fetch {
    pub(super) blobs: Blobs,
    /// Where, the first choice first.
    pub(super) remotes: Arc<[Remote]>,
    pub(super) layer: Descriptor,
    pub(super) growing: Growing,
    pub(super) report: LayerReport,
}

/// What a writer is through with.
struct Written {
    part: Part,
    growing: Growing,
    report: LayerReport,
    digest: Digest,
}

impl Fetch {
    /// Returns when the layer is complete and verified, in the blobs and to the reader.
    pub(super) async fn run(self) -> Result<(), ImageError> {
        let part = loop {
            if let Some(file) = self.blobs.open(&self.layer.digest)? {
                return blocking(move || self.verify(&file)).await;
            }
            match self.blobs.try_part(&self.layer.digest)? {
                // Another one may have completed it between the two looks.
                Some(part) if self.blobs.open(&self.layer.digest)?.is_some() => part.discard()?,
                Some(part) => break part,
                None => {
                    self.report.tell(LayerStep::Waiting, 0);
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        };
        self.download(part).await
    }

    /// Reads what another image left here, which may have been damaged since.
    fn verify(mut self, mut file: &File) -> Result<(), ImageError> {
        let layer = self.layer.digest;
        let path = Path::new("a stored layer");
        let reader = file.try_clone().doing("open", path)?;
        self.growing.begin(reader, 0);
        let mut hash = Hasher::default();
        let mut buffer = vec![0; BUFFER];
        let mut done = 0;
        loop {
            let n = file.read(&mut buffer).doing("read", path)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            done += n as u64;
            self.growing.grow(n as u64);
            self.report.pass(LayerStep::Present, done);
        }
        let found = hash.finish();
        if found != layer || done != self.layer.size {
            self.blobs.remove(&layer)?;
            return Err(mismatch("this node's store", layer, found, true));
        }
        self.growing.finish();
        self.report.tell(LayerStep::Present, done);
        Ok(())
    }

    async fn download(self, part: Part) -> Result<(), ImageError> {
        let Self {
            remotes,
            layer,
            growing,
            report,
            ..
        } = self;
        let mut kept = part.size()?;
        if kept > layer.size {
            part.file().set_len(0).doing("shorten", part.path())?;
            kept = 0;
        }
        let (pieces, queue) = mpsc::channel(QUEUE);
        let writer = blocking(move || write(part, growing, report, queue));
        let transfer = async {
            let moved = transfer(&remotes, &layer, kept, &pieces).await;
            drop(pieces);
            moved
        };
        let (moved, written) = tokio::join!(transfer, writer);
        // A full disk is why a transfer stops, and not the other way around.
        let Written {
            part,
            growing,
            report,
            digest,
        } = written?;
        let host = match moved {
            Ok(host) => host,
            Err(error) => {
                if matches!(error, ImageError::Registry(RegistryError::Mismatch { .. })) {
                    part.discard()?;
                }
                return Err(error);
            }
        };
        if digest != layer.digest {
            part.discard()?;
            return Err(mismatch(&host, layer.digest, digest, kept > 0));
        }
        part.complete()?;
        growing.finish();
        report.tell(LayerStep::Downloaded, layer.size);
        Ok(())
    }
}

fn mismatch(host: &str, expected: Digest, found: Digest, kept: bool) -> ImageError {
    RegistryError::Mismatch {
        host: host.to_owned(),
        expected,
        found: format!("its digest is {found}"),
        kept,
    }
    .into()
}

/// Moves what is missing of a layer into the queue, and tells where the last of it came from.
async fn transfer(
    remotes: &[Remote],
    layer: &Descriptor,
    kept: u64,
    pieces: &mpsc::Sender<Bytes>,
) -> Result<String, ImageError> {
    let mut at = kept;
    let mut last = None;
    for remote in remotes {
        let (mut tries, mut since) = (0, at);
        while at < layer.size {
            let Err(error) = from(remote, layer, &mut at, pieces).await else {
                break;
            };
            if at - since >= PROGRESS {
                (tries, since) = (0, at);
            } else {
                tries += 1;
            }
            let again = error.is_passing() && tries < TRIES;
            tracing::debug!(%error, layer = %layer.digest, at, again, "a download broke");
            last = Some(error);
            if !again {
                break;
            }
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
        }
        if at == layer.size || pieces.is_closed() {
            return Ok(remote.host().to_owned());
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => Ok(String::new()),
    }
}

/// One connection's worth; `Ok` when the layer is complete or nobody wants it any more.
async fn from(
    remote: &Remote,
    layer: &Descriptor,
    at: &mut u64,
    pieces: &mpsc::Sender<Bytes>,
) -> Result<(), RegistryError> {
    let mut bytes = remote.blob(layer.digest, *at).await?;
    while let Some(piece) = bytes.next().await? {
        let end = *at + piece.len() as u64;
        if end > layer.size {
            return Err(RegistryError::Mismatch {
                host: remote.host().to_owned(),
                expected: layer.digest,
                found: format!("it is longer than {} bytes", layer.size),
                kept: false,
            });
        }
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
        *at = end;
    }
    if *at == layer.size {
        return Ok(());
    }
    // With a length in the answer, a connection that ends early is an error before this.
    Err(remote.form(
        "layer",
        format!("it ends after {at} of {} bytes", layer.size),
    ))
}

/// Hashes what is there, then writes and hashes what comes.
fn write(
    part: Part,
    growing: Growing,
    mut report: LayerReport,
    mut queue: mpsc::Receiver<Bytes>,
) -> Result<Written, ImageError> {
    let mut hash = Hasher::default();
    let mut done = 0;
    let mut run = || -> Result<(), DiskError> {
        growing.begin(part.reader()?, 0);
        let mut file = part.file();
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = file.read(&mut buffer).doing("read", part.path())?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            done += n as u64;
            growing.grow(n as u64);
        }
        report.tell(LayerStep::Downloading, done);
        while let Some(piece) = queue.blocking_recv() {
            file.write_all(&piece).doing("write", part.path())?;
            hash.update(&piece);
            done += piece.len() as u64;
            growing.grow(piece.len() as u64);
            report.pass(LayerStep::Downloading, done);
        }
        Ok(())
    };
    if let Err(error) = run() {
        if error.is_full() {
            // Room is what is needed most now.
            part.discard()?;
        }
        return Err(error.into());
    }
    Ok(Written {
        digest: hash.finish(),
        part,
        growing,
        report,
    })
}

/// Runs what blocks on the runtime's threads for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down does that.
            Err(_) => Err(ImageError::Stopped),
        },
    }
}
