//! The keys that leave a job alone: Ctrl-P, then Ctrl-Q, as docker has them.

const CTRL_P: u8 = 16;
const CTRL_Q: u8 = 17;

/// Watches what is typed for the keys that leave.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    held: bool,
}

impl DetachKeys {
    /// What of these keys goes to the command, and whether its user leaves. The first of the
    /// two is held back until it is clear that the second does not follow.
    pub(super) fn pressed(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut on = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            match (std::mem::take(&mut self.held), *key) {
                (true, CTRL_Q) => return (on, true),
                (held, key) => {
                    if held {
                        on.push(CTRL_P);
                    }
                    if key == CTRL_P {
                        self.held = true;
                    } else {
                        on.push(key);
                    }
                }
            }
        }
        (on, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_a_row_leave() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pressed(b"a\x10b\x11"), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(keys.pressed(b"\x10"), (vec![], false));
        assert_eq!(keys.pressed(b"\x10"), (vec![CTRL_P], false));
        assert_eq!(keys.pressed(b"\x11x"), (vec![], true));
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pressed(b"x\x10\x11y"), (b"x".to_vec(), true));
    }
}
