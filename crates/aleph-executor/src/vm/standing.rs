//! Guests that stand still, and go on.

use crate::hypervisor::Pause;

/// Has a guest stand still, or go on, and says whether it does. A VMM that gives no answer may do it yet, so it is
/// asked what it did; where it does not say that either, it is told to undo it. It does one thing after the
/// other: whenever it goes on, its guest is as it was.
pub(super) async fn stand(facet: &dyn Pause, still: bool) -> bool {
    let tell = |still| match still {
        true => facet.pause(),
        false => facet.resume(),
    };
    if tell(still).await.is_ok() {
        return true;
    }
    match facet.is_paused().await {
        Ok(paused) => paused == still,
        Err(_) => {
            let _ = tell(!still).await;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{BoxFuture, VmmError};
    use std::sync::{Mutex, MutexGuard};

    /// A VMM that is silent for so many commands, and does all of them later, one after the other.
    #[derive(Default)]
    struct Late {
        silent: Mutex<u32>,
        refuses: bool,
        told: Mutex<Vec<bool>>,
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    impl Late {
        fn hear(&self, still: Option<bool>) -> Result<bool, VmmError> {
            let refused = || VmmError::Refused {
                command: "stop",
                why: "no".into(),
            };
            let mut told = lock(&self.told);
            match still {
                Some(_) if self.refuses => return Err(refused()),
                Some(still) => told.push(still),
                None => {}
            }
            let mut silent = lock(&self.silent);
            if *silent > 0 {
                *silent -= 1;
                return Err(VmmError::Silent { command: "stop" });
            }
            Ok(told.last() == Some(&true))
        }
    }

    impl Pause for Late {
        fn pause(&self) -> BoxFuture<'_, Result<(), VmmError>> {
            Box::pin(async { self.hear(Some(true)).map(drop) })
        }

        fn resume(&self) -> BoxFuture<'_, Result<(), VmmError>> {
            Box::pin(async { self.hear(Some(false)).map(drop) })
        }

        fn is_paused(&self) -> BoxFuture<'_, Result<bool, VmmError>> {
            Box::pin(async { self.hear(None) })
        }
    }

    #[tokio::test]
    async fn a_guest_is_recorded_as_what_its_vmm_does_late() {
        for (silent, still, is_done, told) in [
            (0, true, true, vec![true]),
            (1, true, true, vec![true]),
            (2, true, false, vec![true, false]),
            (3, true, false, vec![true, false]),
            (1, false, true, vec![false]),
            (3, false, false, vec![false, true]),
        ] {
            let vmm = Late {
                silent: Mutex::new(silent),
                ..Late::default()
            };
            assert_eq!(stand(&vmm, still).await, is_done, "{silent} {still}");
            assert_eq!(*lock(&vmm.told), told, "{silent} {still}");
        }
        let vmm = Late {
            refuses: true,
            ..Late::default()
        };
        assert!(!stand(&vmm, true).await);
        assert!(lock(&vmm.told).is_empty());
    }
}
