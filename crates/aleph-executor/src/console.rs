//! A guest's serial console: the end of what the guest wrote, whoever hears all of it, and what it is
//! told.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// How many bytes of a console are kept.
pub const CAPACITY: usize = 64 * 1024;
/// Pieces that wait for whoever hears a console, and for the guest that is told something.
const WAITING: usize = 16;

/// A guest's console. However much a guest writes, it costs no more than its last bytes and those
/// that whoever hears it has not taken.
#[derive(Debug)]
pub struct Console {
    ring: Mutex<VecDeque<u8>>,
    ear: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    keys: mpsc::Sender<Vec<u8>>,
    typed: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
}

impl Default for Console {
    fn default() -> Self {
        let (keys, typed) = mpsc::channel(WAITING);
        Self {
            ring: Mutex::new(VecDeque::new()),
            ear: Mutex::new(None),
            keys,
            typed: tokio::sync::Mutex::new(typed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// All that the guest writes from now on, until its VMM ends. It waits for whoever hears it, and
    /// for one at a time: the one before hears no more.
    #[must_use]
    pub fn hear(&self) -> mpsc::Receiver<Vec<u8>> {
        let (ear, heard) = mpsc::channel(WAITING);
        *lock(&self.ear) = Some(ear);
        heard
    }

    /// What writes to the guest as its terminal would, while the VMM runs.
    #[must_use]
    pub fn keys(&self) -> mpsc::Sender<Vec<u8>> {
        self.keys.clone()
    }

    /// The next bytes that somebody wrote to the guest.
    pub(crate) async fn typed(&self) -> Option<Vec<u8>> {
        self.typed.lock().await.recv().await
    }

    /// Passes on what the guest wrote.
    pub(crate) async fn tell(&self, bytes: &[u8]) {
        let ear = lock(&self.ear).clone();
        if let Some(ear) = ear
            && ear.send(bytes.to_vec()).await.is_err()
        {
            // Nobody hears it any more, unless somebody else does by now.
            lock(&self.ear).take_if(|ear| ear.is_closed());
        }
    }

    /// The guest says no more.
    pub(crate) fn hush(&self) {
        lock(&self.ear).take();
    }

    /// Adds what the guest wrote.
    pub fn push(&self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let mut ring = lock(&self.ring);
        let excess = (ring.len() + kept.len()).saturating_sub(CAPACITY);
        ring.drain(..excess);
        ring.extend(kept);
    }

    /// The last `count` lines, with control characters other than tab made visible: a guest
    /// chose them, and they may end up on somebody's terminal.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = lock(&self.ring).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text
            .split('\n')
            .map(|l| l.trim_end_matches('\r'))
            .filter(|l| !l.is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| visible(line))
            .collect()
    }

    /// The kernel's last words, if it panicked: from the line that says so.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        self.last_lines(usize::MAX)
            .into_iter()
            .rev()
            .find(|line| line.contains("Kernel panic - not syncing"))
            .map(|line| {
                line.find("Kernel panic")
                    .map_or(line.clone(), |at| line[at..].to_owned())
            })
    }
}

/// A text in which every control character but tab is escaped.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_its_end_and_no_more() {
        let console = Console::default();
        for n in 0..100_000 {
            console.push(format!("line {n}\n").as_bytes());
        }
        assert_eq!(console.last_lines(2), ["line 99998", "line 99999"]);
        assert!(console.ring.lock().unwrap().len() <= CAPACITY);
        console.push(&vec![b'x'; 3 * CAPACITY]);
        assert_eq!(console.ring.lock().unwrap().len(), CAPACITY);
    }

    #[test]
    fn a_panic_is_found_and_escapes_are_made_harmless() {
        let console = Console::default();
        console
            .push(b"[ 0.1] boot\r\n\x1b[2J[    1.5] Kernel panic - not syncing: no init\r\nrest\n");
        assert_eq!(
            console.panic().as_deref(),
            Some("Kernel panic - not syncing: no init")
        );
        assert!(
            console
                .last_lines(9)
                .iter()
                .all(|line| !line.contains('\x1b'))
        );
    }
}
