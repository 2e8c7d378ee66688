//! Every state against every event, written out: a change of any cell shows in review.

use super::*;
use aleph_types::ExitStatus;
use std::fmt::Write;
use std::time::Duration;

const NOW: Moment = Duration::from_secs(100);
const GRACE: Duration = Duration::from_secs(10);

fn states() -> Vec<State> {
    let outcome = || Outcome::Stopped;
    let deadline = NOW;
    let stopping = |stage| State::Stopping {
        stage,
        deadline,
        outcome: outcome(),
    };
    vec![
        State::Created,
        State::Starting { deadline },
        State::Running,
        State::Pausing,
        State::Paused,
        State::Resuming,
        stopping(Stage::Leaving),
        stopping(Stage::Asking),
        stopping(Stage::Quitting),
        stopping(Stage::Killing),
        State::Stopped { outcome: outcome() },
        State::Destroying { outcome: outcome() },
        State::Destroyed { outcome: outcome() },
        State::Unknown,
    ]
}

fn events() -> Vec<Event> {
    let requests = [
        Request::Start,
        Request::Stop { grace: GRACE },
        Request::Kill,
        Request::Pause,
        Request::Resume,
        Request::Destroy,
    ];
    let mut events: Vec<Event> = requests.into_iter().map(Event::Requested).collect();
    events.extend([
        Event::Launched,
        Event::LaunchFailed("why".into()),
        Event::GuestReady,
        Event::GuestFailed("why".into()),
        Event::MainExited(ExitStatus::Code(3)),
        Event::PauseDone,
        Event::PauseFailed,
        Event::ResumeDone,
        Event::ResumeFailed,
        Event::VmmExited("how".into()),
        Event::Tick,
        Event::Removed,
        Event::RemoveFailed,
        Event::Adopted { paused: false },
        Event::Adopted { paused: true },
        Event::Gone,
    ]);
    events
}

fn short(state: &State) -> String {
    match state {
        State::Starting { deadline } => format!("Starting(until {}s)", deadline.as_secs()),
        State::Stopping {
            stage,
            deadline,
            outcome,
        } => {
            format!(
                "Stopping({stage:?} until {}s, {outcome})",
                deadline.as_secs()
            )
        }
        State::Stopped { outcome } => format!("Stopped({outcome})"),
        State::Destroying { outcome } => format!("Destroying({outcome})"),
        State::Destroyed { outcome } => format!("Destroyed({outcome})"),
        plain => format!("{plain:?}"),
    }
}

fn table(ephemeral: bool) -> String {
    let mut table = String::new();
    for state in states() {
        writeln!(table, "{}", short(&state)).unwrap();
        for event in events() {
            let mut life = Lifecycle::with_state(state.clone(), ephemeral);
            let verdict = match &event {
                Event::Requested(request) => match life.admit(request) {
                    Admission::Deny(denial) => format!("denied: {denial}"),
                    Admission::Ignore => "ignored".into(),
                    Admission::Accept => String::new(),
                },
                _ => String::new(),
            };
            let effects = life.step(NOW, event.clone());
            let unchanged = *life.state() == state && effects.is_empty();
            let what = match (unchanged, verdict.is_empty()) {
                (true, true) => "-".into(),
                (true, false) => verdict,
                (false, _) => format!("{} {effects:?}", short(life.state())),
            };
            writeln!(table, "    {event:?} => {what}").unwrap();
        }
    }
    table
}

#[test]
fn every_state_against_every_event() {
    insta::assert_snapshot!("persistent", table(false));
    insta::assert_snapshot!("ephemeral", table(true));
}

#[test]
fn what_was_not_admitted_changes_nothing() {
    for state in states() {
        for event in events() {
            let Event::Requested(request) = &event else {
                continue;
            };
            let mut life = Lifecycle::with_state(state.clone(), false);
            if life.admit(request) != Admission::Accept {
                assert_eq!(life.step(NOW, event.clone()), []);
                assert_eq!(*life.state(), state);
            }
        }
    }
}

#[test]
fn a_boot_has_the_time_that_its_vmm_is_busy_before_it() {
    let timeouts = Timeouts::default();
    let busy = Duration::from_secs(256);
    let mut life = Lifecycle::new(timeouts.after(busy), false);
    let _ = life.step(NOW, Event::Requested(Request::Start));
    assert_eq!(life.deadline(), Some(NOW + timeouts.boot + busy));
    let _ = life.step(NOW + timeouts.boot, Event::Tick);
    assert!(matches!(life.state(), State::Starting { .. }));
    let _ = life.step(NOW + timeouts.boot + busy, Event::Tick);
    assert!(matches!(life.state(), State::Stopping { .. }));
}
