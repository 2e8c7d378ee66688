//! Random lives against a model of the host: a VMM that may be slow, deaf or dead.

use super::*;
use aleph_types::ExitStatus;
use proptest::prelude::*;
use std::time::Duration;

/// What the world does next; what makes no sense for the VMM's present state is skipped.
#[derive(Debug, Clone, Copy)]
enum Move {
    Ask(Request),
    LaunchWorks,
    LaunchBreaks,
    Ready,
    GuestBreaks,
    MainEnds(u8),
    PauseWorks(bool),
    ResumeWorks(bool),
    VmmDies,
    Wait(u64),
    RemoveWorks(bool),
}

fn moves() -> impl Strategy<Value = Move> {
    let grace = Duration::from_secs(3);
    prop_oneof![
        4 => prop::sample::select(vec![
            Request::Start, Request::Stop { grace }, Request::Kill,
            Request::Pause, Request::Resume, Request::Destroy,
        ]).prop_map(Move::Ask),
        2 => Just(Move::LaunchWorks),
        1 => Just(Move::LaunchBreaks),
        2 => Just(Move::Ready),
        1 => Just(Move::GuestBreaks),
        1 => any::<u8>().prop_map(Move::MainEnds),
        1 => any::<bool>().prop_map(Move::PauseWorks),
        1 => any::<bool>().prop_map(Move::ResumeWorks),
        1 => Just(Move::VmmDies),
        2 => (0_u64..40).prop_map(Move::Wait),
        1 => any::<bool>().prop_map(Move::RemoveWorks),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Vmm {
    None,
    Launching,
    Alive,
    Dead,
}

/// The host as it would be: it carries effects out and keeps the rules.
struct World {
    life: Lifecycle,
    vmm: Vmm,
    killed: bool,
    launches: u32,
    removing: bool,
    removed: bool,
    frozen: Option<bool>,
    now: Moment,
    exit: Option<ExitStatus>,
}

impl World {
    fn new(ephemeral: bool) -> Self {
        Self {
            life: Lifecycle::new(Timeouts::default(), ephemeral),
            vmm: Vmm::None,
            killed: false,
            launches: 0,
            removing: false,
            removed: false,
            frozen: None,
            now: Duration::ZERO,
            exit: None,
        }
    }

    fn step(&mut self, event: Event) {
        let before = self.life.state().clone();
        let effects = self.life.step(self.now, event);
        if matches!(before, State::Destroyed { .. }) {
            assert_eq!(*self.life.state(), before, "nothing follows the end");
        }
        for effect in effects {
            match effect {
                Effect::Launch => {
                    assert_eq!(self.vmm, Vmm::None, "launched twice");
                    self.vmm = Vmm::Launching;
                    self.launches += 1;
                }
                Effect::Kill => self.killed |= self.vmm == Vmm::Alive,
                Effect::Quit | Effect::Shutdown { .. } => {}
                Effect::Pause => self.frozen = Some(true),
                Effect::Resume => self.frozen = Some(false),
                Effect::Remove => {
                    assert!(
                        matches!(self.vmm, Vmm::None | Vmm::Dead),
                        "removed under a live VMM"
                    );
                    self.removing = true;
                }
            }
        }
        match self.life.state() {
            State::Created | State::Unknown => assert_eq!(self.vmm, Vmm::None),
            State::Stopped { .. } | State::Destroying { .. } | State::Destroyed { .. } => {
                assert!(matches!(self.vmm, Vmm::None | Vmm::Dead), "{:?}", self.vmm);
            }
            _ => assert!(matches!(self.vmm, Vmm::Launching | Vmm::Alive)),
        }
        if let (
            Some(exit),
            State::Stopped {
                outcome: Outcome::Stopped,
            },
        ) = (self.exit, self.life.state())
        {
            panic!("the command's {exit} was forgotten");
        }
    }

    fn play(&mut self, next: Move) {
        let alive = self.vmm == Vmm::Alive;
        match next {
            Move::Ask(request) => self.step(Event::Requested(request)),
            Move::LaunchWorks if self.vmm == Vmm::Launching => {
                self.vmm = Vmm::Alive;
                self.step(Event::Launched);
            }
            Move::LaunchBreaks if self.vmm == Vmm::Launching => {
                self.vmm = Vmm::Dead;
                self.step(Event::LaunchFailed("broken".into()));
            }
            Move::Ready if alive => self.step(Event::GuestReady),
            Move::GuestBreaks if alive => self.step(Event::GuestFailed("broken".into())),
            Move::MainEnds(code) if alive => {
                let status = ExitStatus::Code(code);
                let told = matches!(
                    self.life.state(),
                    State::Starting { .. }
                        | State::Running
                        | State::Pausing
                        | State::Paused
                        | State::Resuming
                        | State::Stopping {
                            outcome: Outcome::Stopped,
                            ..
                        }
                );
                self.exit = self.exit.or(told.then_some(status));
                self.step(Event::MainExited(status));
            }
            Move::PauseWorks(works) if alive && self.frozen.take() == Some(true) => {
                self.step(if works {
                    Event::PauseDone
                } else {
                    Event::PauseFailed
                });
            }
            Move::ResumeWorks(works) if alive && self.frozen.take() == Some(false) => {
                self.step(if works {
                    Event::ResumeDone
                } else {
                    Event::ResumeFailed
                });
            }
            Move::VmmDies if alive => {
                self.vmm = Vmm::Dead;
                self.step(Event::VmmExited("died".into()));
            }
            Move::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.step(Event::Tick);
            }
            Move::RemoveWorks(works) if std::mem::take(&mut self.removing) => {
                self.removed |= works;
                self.step(if works {
                    Event::Removed
                } else {
                    Event::RemoveFailed
                });
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn every_life_keeps_the_rules_and_can_be_ended(
        ephemeral in any::<bool>(),
        moves in prop::collection::vec(moves(), 0..60),
    ) {
        let mut world = World::new(ephemeral);
        for next in moves {
            world.play(next);
        }
        // Whatever happened, a host whose VMM dies when killed gets rid of the VM.
        world.play(Move::LaunchWorks);
        world.step(Event::Requested(Request::Kill));
        for _ in 0..4 {
            if world.killed {
                world.play(Move::VmmDies);
            }
            world.play(Move::Wait(60));
        }
        prop_assert!(matches!(world.vmm, Vmm::None | Vmm::Dead), "{:?}", world.life.state());
        world.play(Move::RemoveWorks(true));
        world.step(Event::Requested(Request::Destroy));
        world.play(Move::RemoveWorks(true));
        let destroyed = matches!(world.life.state(), State::Destroyed { .. });
        prop_assert!(destroyed && world.removed && world.launches <= 1);
    }
}
