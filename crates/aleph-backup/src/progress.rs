//! How far an operation is.

use std::fmt;
use std::sync::Arc;

/// How far an operation is: in bytes of the volume for a backup or a restore, of packs for the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How much is done, zeros and unchanged parts included. It never shrinks.
    pub done: u64,
    /// How much there is.
    pub total: u64,
    /// How much was read: of the volume in a backup, of the store elsewhere.
    pub read: u64,
    /// How much was written: to the store (after compression), to the volume in a restore.
    pub written: u64,
}

/// Who is told about progress. Cloning gives the same one.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl ProgressSink {
    /// Calls this with each step, some ten times for each 100 MiB. It must not block.
    pub fn new(sink: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    pub(crate) fn tell(&self, progress: Progress) {
        if let Some(sink) = &self.0 {
            sink(progress);
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgressSink").finish_non_exhaustive()
    }
}
