//! What a pull tells while it runs.

use crate::digest::Digest;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A step of a pull; it serialises as an object with the field `event`.
///
/// Layers are known by their place in [`Resolved`](Self::Resolved), since an image may have the
/// same one twice. Figures of one layer never go down, except when a broken download begins
/// anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// It is known what there is to pull.
    Resolved {
        /// The digest of the image's manifest.
        manifest: Digest,
        /// The layers, the lowest first.
        layers: Vec<LayerInfo>,
    },
    /// Somebody else pulls the same image; its end is waited for.
    Waiting,
    /// A layer got further.
    Layer {
        /// Its place among the layers.
        index: usize,
        /// Its digest.
        digest: Digest,
        /// What happens to it.
        step: LayerStep,
        /// Compressed bytes that this step is through with.
        done: u64,
        /// Compressed bytes of the layer.
        total: u64,
    },
    /// The image's file system is written.
    Writing {
        /// Bytes written.
        done: u64,
        /// Bytes of all files.
        total: u64,
    },
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its size in bytes, compressed as it is.
    pub size: u64,
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerStep {
    /// It is being downloaded by another pull.
    Waiting,
    /// It is here from another image, and is verified.
    Present,
    /// It is downloaded.
    Downloading,
    /// All of it is here and has the right digest.
    Downloaded,
    /// It is unpacked, maybe while it is still being downloaded.
    Unpacking,
    /// It is in the image's tree.
    Unpacked,
}

impl LayerStep {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Present => "present",
            Self::Downloading => "downloading",
            Self::Downloaded => "downloaded",
            Self::Unpacking => "unpacking",
            Self::Unpacked => "unpacked",
        }
    }
}

/// Hears events, on any thread; it must not block.
pub(super) type Listener = Arc<dyn Fn(PullEvent) + Send + Sync>;

/// Tells of one step of one layer, about ten times a second at most.
pub(super) struct LayerReport {
    pub(super) listener: Listener,
    pub(super) index: usize,
    pub(super) digest: Digest,
    pub(super) total: u64,
    pub(super) pace: Pace,
}

/// Says when it is time to tell again.
pub(super) struct Pace(Option<Instant>);

impl Pace {
    const PAUSE: Duration = Duration::from_millis(100);

    pub(super) fn new() -> Self {
        Self(None)
    }

    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= Self::PAUSE);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

impl LayerReport {
    pub(super) fn tell(&self, step: LayerStep, done: u64) {
        (self.listener)(PullEvent::Layer {
            index: self.index,
            digest: self.digest,
            step,
            done,
            total: self.total,
        });
    }

    /// As [`tell`](Self::tell), when it is time.
    pub(super) fn pass(&mut self, step: LayerStep, done: u64) {
        if self.pace.is_due() {
            self.tell(step, done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_their_names_in_json() {
        use LayerStep::*;
        for step in [
            Waiting,
            Present,
            Downloading,
            Downloaded,
            Unpacking,
            Unpacked,
        ] {
            assert_eq!(serde_json::to_value(step).unwrap(), step.name());
        }
    }
}
