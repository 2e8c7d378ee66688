//! How fast a blob has to come: someone who sends a byte now and then must not keep others waiting.

use bytes::Bytes;
use reqwest::Response;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Bytes a second that are taken for a download that goes on.
const SLOWEST: u64 = 4 << 10;

/// Measures in windows, so that a fast beginning pays for nothing later. Only waiting for the
/// network counts: the disk may be slow.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    left: Duration,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            left: window,
            bytes: 0,
        }
    }

    /// The answer's next bytes; `None` when they come too slowly.
    pub(super) async fn next(
        &mut self,
        response: &mut Response,
    ) -> Option<reqwest::Result<Option<Bytes>>> {
        loop {
            let began = Instant::now();
            let came = timeout(self.left, response.chunk()).await.ok();
            if let Some(Ok(Some(bytes))) = &came {
                self.bytes += bytes.len() as u64;
            }
            if !self.waited(began.elapsed()) {
                return None;
            }
            if came.is_some() {
                return came;
            }
        }
    }

    /// Whether it is still fast enough, after so much more waiting.
    fn waited(&mut self, waited: Duration) -> bool {
        self.left = self.left.saturating_sub(waited);
        if !self.left.is_zero() {
            return true;
        }
        let enough = u128::from(self.bytes) * 1000 >= self.window.as_millis() * u128::from(SLOWEST);
        *self = Self::new(self.window);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_needs_its_own_bytes() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(2 * second);
        assert!(pace.waited(second));
        pace.bytes = 1 << 30;
        assert!(pace.waited(second));
        pace.bytes = 8 << 10;
        assert!(pace.waited(3 * second));
        pace.bytes = (8 << 10) - 1;
        assert!(pace.waited(second));
        assert!(!pace.waited(second));
    }
}
