//! What happened, read from the journal in order.

use super::inner::{Inner, log_journal};
use super::{Node, NodeError};
use aleph_types::{Event, Timestamp};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// How many events are read at once.
const PART: usize = 256;

/// What happens, from some point on. Reads the journal, so a slow reader misses nothing and
/// costs nobody else anything.
#[derive(Debug)]
pub struct EventReader {
    inner: Arc<Inner>,
    newest: watch::Receiver<u64>,
    leaving: watch::Receiver<bool>,
    last: u64,
    read: VecDeque<Event>,
}

impl EventReader {
    /// The next event; `None` once the node shuts down, or where the journal cannot be read.
    /// Can be cancelled and called again.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.last = event.id;
                return Some(event);
            }
            let newest = *self.newest.borrow_and_update();
            if newest > self.last {
                match self.inner.journal.events(self.last, PART).await {
                    Ok(events) if events.is_empty() => self.last = newest,
                    Ok(events) => self.read = events.into(),
                    Err(error) => {
                        log_journal(&error);
                        return None;
                    }
                }
                continue;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                _ = self.leaving.wait_for(|leaving| *leaving) => return None,
            }
        }
    }
}

impl Node {
    /// Events after this one, or from now on. The stored ones come first.
    #[must_use]
    pub fn events(&self, after: Option<u64>) -> EventReader {
        let newest = self.inner.newest_event.subscribe();
        let last = after.unwrap_or(*newest.borrow());
        EventReader {
            inner: Arc::clone(&self.inner),
            newest,
            leaving: self.inner.leaving.subscribe(),
            last,
            read: VecDeque::new(),
        }
    }

    /// The stored events after this one.
    ///
    /// # Errors
    /// Where the journal cannot be read.
    pub async fn stored_events(&self, after: u64, limit: usize) -> Result<Vec<Event>, NodeError> {
        Ok(self.inner.journal.events(after, limit).await?)
    }

    /// Tells an event that no job has, such as `image.pulled`.
    pub fn tell(&self, kind: &str, message: String) {
        let event = Event {
            id: 0,
            time: Timestamp::now(),
            kind: kind.to_owned(),
            job: None,
            name: None,
            account: None,
            message: Some(message),
        };
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { inner.tell(event).await });
    }
}
