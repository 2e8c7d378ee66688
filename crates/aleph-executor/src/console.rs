//! The end of what a guest wrote to its serial console.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// How many bytes of a console are kept.
pub const CAPACITY: usize = 64 * 1024;

/// The last bytes of a guest's console. However much a guest writes, it costs no more.
#[derive(Debug)]
pub struct Console(Mutex<VecDeque<u8>>);

impl Default for Console {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }
}

impl Console {
    /// Adds what the guest wrote.
    pub fn push(&self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = (ring.len() + kept.len()).saturating_sub(CAPACITY);
        ring.drain(..excess);
        ring.extend(kept);
    }

    /// The last `count` lines, with control characters other than tab made visible: a guest
    /// chose them, and they may end up on somebody's terminal.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect();
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
        assert!(console.0.lock().unwrap().len() <= CAPACITY);
        console.push(&vec![b'x'; 3 * CAPACITY]);
        assert_eq!(console.0.lock().unwrap().len(), CAPACITY);
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
