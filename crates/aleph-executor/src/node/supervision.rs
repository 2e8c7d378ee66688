//! What follows when a job's VM has ended: pure.

use crate::journal::Desired;
use aleph_types::{ExitStatus, JobState, Restart, RestartPolicy};
use std::time::Duration;

/// How a start of a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Its command ended.
    Exited(ExitStatus),
    /// It was stopped before its command had ended.
    Stopped,
    /// It broke, or could not be started.
    Failed,
    /// Nobody saw its end: its VMM was gone when the node came back.
    Lost,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// It stays as it is.
    Rest(JobState),
    /// It starts again after this time.
    Restart(Duration),
    /// It is removed.
    Destroy,
}

/// A run of this length is no part of the row of failures before it.
const LONG_RUN: Duration = Duration::from_secs(600);

/// What follows an end. `in_a_row` counts the starts by policy without a long run in between.
pub(super) fn after(
    policy: &RestartPolicy,
    desired: Desired,
    end: &End,
    in_a_row: u32,
    auto_destroy: bool,
) -> Next {
    let rest = match end {
        End::Exited(_) | End::Stopped => JobState::Exited,
        End::Failed | End::Lost => JobState::Failed,
    };
    let wants = match (desired, policy.policy) {
        (Desired::Destroy, _) => return Next::Destroy,
        (Desired::Stop, _) | (_, Restart::No) => false,
        (_, Restart::OnFailure) => !matches!(end, End::Exited(ExitStatus::Code(0)) | End::Stopped),
        (_, Restart::UnlessStopped | Restart::Always) => true,
    };
    let may = policy.max_retries.is_none_or(|most| in_a_row < most);
    match (wants && may, auto_destroy) {
        (true, _) => Next::Restart(policy.backoff(in_a_row)),
        (false, true) => Next::Destroy,
        (false, false) => Next::Rest(rest),
    }
}

/// The row after a run of this length.
pub(super) fn row_after(in_a_row: u32, ran_for: Option<Duration>) -> u32 {
    match ran_for {
        Some(ran) if ran >= LONG_RUN => 0,
        _ => in_a_row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OK: End = End::Exited(ExitStatus::Code(0));
    const BAD: End = End::Exited(ExitStatus::Code(1));

    fn policy(policy: Restart, max_retries: Option<u32>) -> RestartPolicy {
        RestartPolicy {
            policy,
            max_retries,
            ..RestartPolicy::default()
        }
    }

    fn runs_again(which: Restart, end: &End) -> bool {
        let next = after(&policy(which, None), Desired::Run, end, 0, false);
        matches!(next, Next::Restart(_))
    }

    #[test]
    fn each_policy_has_its_ends() {
        for (which, ok, bad, lost) in [
            (Restart::No, false, false, false),
            (Restart::OnFailure, false, true, true),
            (Restart::UnlessStopped, true, true, true),
            (Restart::Always, true, true, true),
        ] {
            let found = [&OK, &BAD, &End::Lost].map(|end| runs_again(which, end));
            assert_eq!(found, [ok, bad, lost], "{which:?}");
        }
    }

    #[test]
    fn retries_have_an_end_and_a_long_run_begins_a_new_row() {
        let limited = policy(Restart::OnFailure, Some(2));
        let next = |row| after(&limited, Desired::Run, &BAD, row, false);
        assert!(matches!(next(1), Next::Restart(_)));
        assert_eq!(next(2), Next::Rest(JobState::Exited));
        assert_eq!(row_after(2, Some(LONG_RUN)), 0);
        assert_eq!(row_after(2, Some(Duration::from_secs(1))), 2);
    }

    fn any_end() -> impl Strategy<Value = End> {
        prop_oneof![
            any::<u8>().prop_map(|code| End::Exited(ExitStatus::Code(code))),
            Just(End::Stopped),
            Just(End::Failed),
            Just(End::Lost),
        ]
    }

    proptest! {
        /// Whoever asked for an end gets it, whatever the policy.
        #[test]
        fn a_wish_to_end_wins(end in any_end(), row in any::<u32>(), auto in any::<bool>()) {
            for which in [Restart::No, Restart::OnFailure, Restart::UnlessStopped, Restart::Always] {
                let policy = policy(which, None);
                prop_assert_eq!(after(&policy, Desired::Destroy, &end, row, auto), Next::Destroy);
                let stopped = after(&policy, Desired::Stop, &end, row, auto);
                prop_assert!(!matches!(stopped, Next::Restart(_)));
            }
        }
    }
}
