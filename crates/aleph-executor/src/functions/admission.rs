//! What may run at once: invocations of a function and an account, and memory of all clones.

use super::deployment::Deployment;
use super::invocation::{InvokeError, Throttle};
use super::runner::Concurrency;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// When it makes sense to try again: what is in the way is gone in a moment, or stays.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A function, by its account and name.
type Function = (String, String);

/// What runs, by whose it is.
#[derive(Debug, Default)]
struct Counts {
    by_function: HashMap<Function, usize>,
    by_account: HashMap<String, usize>,
    memory: u64,
    is_closed: bool,
}

/// What may run at once on a node.
#[derive(Debug)]
pub(super) struct Admission {
    counts: Mutex<Counts>,
    account_limit: usize,
    /// In MiB.
    memory_limit: u64,
}

impl Admission {
    pub(super) fn new(account_limit: usize, memory_limit: u64) -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::default(),
            account_limit,
            memory_limit,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits nothing from now on.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Admits an invocation, for as long as the turn lives.
    pub(super) fn admit(
        self: &Arc<Self>,
        deployment: &Deployment,
        concurrency: Concurrency,
    ) -> Result<Turn, InvokeError> {
        let throttled = |by| InvokeError::Throttled {
            by,
            retry_after: RETRY_AFTER,
        };
        let account = deployment.account.clone();
        let function = (account.clone(), deployment.function.clone());
        let mut counts = self.lock();
        if counts.is_closed {
            return Err(InvokeError::ShuttingDown);
        }
        let of = |count: Option<&usize>| count.copied().unwrap_or(0);
        let busy = of(counts.by_function.get(&function));
        if let Some(reserved) = concurrency.reserved
            && busy >= usize::try_from(reserved).unwrap_or(usize::MAX)
        {
            return Err(throttled(Throttle::Function));
        }
        if of(counts.by_account.get(&account)) >= self.account_limit {
            return Err(throttled(Throttle::Account));
        }
        *counts.by_function.entry(function.clone()).or_default() += 1;
        *counts.by_account.entry(account).or_default() += 1;
        drop(counts);
        Ok(Turn {
            admission: Arc::clone(self),
            function,
        })
    }

    /// Takes so many MiB for a clone, for as long as the charge lives; none where they are not
    /// there.
    pub(super) fn charge(self: &Arc<Self>, memory: u32) -> Option<Charge> {
        let memory = u64::from(memory);
        let mut counts = self.lock();
        if counts.memory + memory > self.memory_limit {
            return None;
        }
        counts.memory += memory;
        drop(counts);
        Some(Charge {
            admission: Arc::clone(self),
            memory,
        })
    }
}

/// An invocation's part of what may run at once.
#[derive(Debug)]
pub(super) struct Turn {
    admission: Arc<Admission>,
    function: Function,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        let (account, _) = &self.function;
        if let Some(count) = counts.by_account.get_mut(account) {
            *count -= 1;
            if *count == 0 {
                counts.by_account.remove(account);
            }
        }
        if let Some(count) = counts.by_function.get_mut(&self.function) {
            *count -= 1;
            if *count == 0 {
                counts.by_function.remove(&self.function);
            }
        }
    }
}

/// A clone's part of the memory.
#[derive(Debug)]
pub(super) struct Charge {
    admission: Arc<Admission>,
    memory: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.admission.lock().memory -= self.memory;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_once_and_comes_back() {
        let admission = Admission::new(1, 256);
        let one = admission.charge(128);
        let two = admission.charge(128);
        assert!(one.is_some() && two.is_some());
        assert!(admission.charge(1).is_none());
        drop(one);
        assert!(admission.charge(128).is_some());
    }
}
