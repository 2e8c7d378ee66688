//! How much of an account and of a function runs at once.
//!
//! What a function has reserved is its own: it runs at most so much, and nobody else gets it. The
//! functions without share the rest of their account's.

use aleph_executor::functions::{InvokeError, Throttle};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// When a throttled client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What runs of each account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission(Arc<Mutex<HashMap<String, Running>>>);

#[derive(Debug, Default)]
struct Running {
    /// Of functions without a reservation.
    shared: u64,
    /// Of each function that has one.
    reserved: HashMap<String, u64>,
}

/// The limits of a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// What the account may run.
    pub(crate) account: u64,
    /// What its functions have reserved together.
    pub(crate) reserved: u64,
    /// What this function has reserved.
    pub(crate) own: Option<u32>,
}

/// A place for an invocation, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Admission,
    account: String,
    /// `None` where it is one of those that are shared.
    function: Option<String>,
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for an invocation, if there is one.
    pub(crate) fn enter(
        &self,
        account: &str,
        function: &str,
        limits: Limits,
    ) -> Result<Place, InvokeError> {
        let full = |by| InvokeError::Throttled {
            by,
            retry_after: RETRY_AFTER,
        };
        let mut all = self.lock();
        let running = match all.get_mut(account) {
            Some(running) => running,
            None => all.entry(account.to_owned()).or_default(),
        };
        let function = match limits.own {
            Some(own) => {
                let runs = running.reserved.entry(function.to_owned()).or_default();
                if *runs >= u64::from(own) {
                    return Err(full(Throttle::Function));
                }
                *runs += 1;
                Some(function.to_owned())
            }
            None => {
                if running.shared >= limits.account.saturating_sub(limits.reserved) {
                    return Err(full(Throttle::Account));
                }
                running.shared += 1;
                None
            }
        };
        Ok(Place {
            admission: self.clone(),
            account: account.to_owned(),
            function,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.admission.lock();
        let Some(running) = all.get_mut(&self.account) else {
            return;
        };
        match &self.function {
            None => running.shared = running.shared.saturating_sub(1),
            Some(function) => {
                if let Some(runs) = running.reserved.get_mut(function) {
                    *runs = runs.saturating_sub(1);
                    if *runs == 0 {
                        running.reserved.remove(function);
                    }
                }
            }
        }
        if running.shared == 0 && running.reserved.is_empty() {
            all.remove(&self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(result: Result<Place, InvokeError>) -> Throttle {
        match result {
            Err(InvokeError::Throttled { by, .. }) => by,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_reserved_is_a_limit_and_a_promise() {
        let admission = Admission::default();
        let limits = |own| Limits {
            account: 3,
            reserved: 1,
            own,
        };
        let one = admission.enter("a", "own", limits(Some(1))).unwrap();
        let full = admission.enter("a", "own", limits(Some(1)));
        assert_eq!(by(full), Throttle::Function);
        let first = admission.enter("a", "f", limits(None)).unwrap();
        let _second = admission.enter("a", "g", limits(None)).unwrap();
        assert_eq!(
            by(admission.enter("a", "h", limits(None))),
            Throttle::Account
        );
        // Another account has its own.
        let other = admission.enter("b", "h", limits(None)).unwrap();
        drop((first, one, other));
        assert!(admission.enter("a", "h", limits(None)).is_ok());
        assert!(admission.enter("a", "own", limits(Some(1))).is_ok());
        assert!(!admission.lock().contains_key("b"));
    }

    #[test]
    fn nothing_reserved_means_nothing_runs() {
        let limits = Limits {
            account: 10,
            reserved: 0,
            own: Some(0),
        };
        let refused = Admission::default().enter("a", "f", limits);
        assert_eq!(by(refused), Throttle::Function);
    }
}
