//! Places where a test lets the process die.
//!
//! In a build with debug assertions, as tests make them, and with `ALEPH_FAILPOINT=NAME:WHEN` in
//! the environment (such as `vm.intend:after`, or `vm.intend:after:3` for the third time), the
//! process kills itself when it passes that place. In a release build this is nothing at all.

#[cfg(debug_assertions)]
pub(crate) fn pass(name: &str, when: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("ALEPH_FAILPOINT").ok()?;
        let mut parts = text.split(':');
        let place = format!("{}:{}", parts.next()?, parts.next()?);
        Some((
            place,
            parts.next().and_then(|n| n.parse().ok()).unwrap_or(1),
        ))
    });
    let Some((place, times)) = wanted else { return };
    let here = place.split_once(':') == Some((name, when));
    if here && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *times {
        // Not even destructors run, as with `kill -9` from outside.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn pass(_name: &str, _when: &str) {}
