//! Sessions whose host hung up.
//!
//! They end as those of a terminal that is closed: hang-up first, and KILL for what is left a
//! moment later. What made a session of its own stays, as it would there.

use crate::census::signal_session;
use crate::command::Parts;
use crate::sys;

/// Between hang-up and KILL, in microseconds.
const GRACE_US: u64 = 1_000_000;

/// A session on its way out.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// Its leader's process id, which is the session's too.
    session: i32,
    /// Whether the guest ends with its leader.
    main: bool,
    /// Its descriptors stay open until KILL: a shell that writes of the hang-up to a closed pipe
    /// would die of that before its trap runs.
    parts: Option<Parts>,
    /// When KILL comes, until it has come.
    kill_at: Option<u64>,
    /// Whether its leader was collected.
    is_headless: bool,
}

impl Leaving {
    /// Hangs up on a session; `has_ended` where its leader was collected before.
    pub(crate) fn begin(parts: Parts, has_ended: bool, now: u64) -> Self {
        let (session, main) = (parts.pid, parts.main);
        signal_session(session, sys::SIGHUP);
        // One that is stopped would not see it.
        signal_session(session, sys::SIGCONT);
        Self {
            session,
            main,
            parts: Some(parts),
            kill_at: Some(now + GRACE_US),
            is_headless: has_ended,
        }
    }

    /// Takes note of a process that was collected; gives whether the guest ends with it.
    pub(crate) fn collected(&mut self, pid: i32) -> bool {
        let is_leader = pid == self.session && !self.is_headless;
        self.is_headless |= is_leader;
        is_leader && self.main
    }

    /// When there is something to do.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.kill_at
    }

    /// Does it; gives whether there is more to come.
    pub(crate) fn advance(&mut self, now: u64) -> bool {
        if self.kill_at.is_some_and(|at| now >= at) {
            // What is forked meanwhile may slip through a look; there is an end to that, too.
            for _ in 0..8 {
                if signal_session(self.session, sys::SIGKILL) == 0 {
                    break;
                }
            }
            self.kill_at = None;
            self.parts = None;
        }
        self.kill_at.is_some() || self.main && !self.is_headless
    }
}
