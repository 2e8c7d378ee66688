//! A stack over frames of a TAP, as a VMM that knows nothing else gives them.

use super::super::{MTU, Stack};
use super::kernel::{Kernel, LIMIT, PORT};
use super::real::{MUCH, converse, echo, pattern, serve};
use aleph_testkit::wait_until;
use aleph_vm_networking::frames::{self, FrameSocket, Waiting};
use aleph_vm_networking::tap::Tap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use tokio::runtime::Runtime;

const TAP: &str = "lnk-0";

/// A kernel, a stack over the socket, and the TAP as its VMM has it open: in the kernel's namespace, or
/// in the socket's.
struct World {
    kernel: Kernel,
    runtime: Runtime,
    socket: FrameSocket,
    tap: Option<File>,
    from: OwnedFd,
}

impl World {
    fn new(is_apart: bool) -> Option<Self> {
        let kernel = Kernel::boot()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let socket = FrameSocket::open().unwrap();
        let from = match is_apart {
            true => kernel.run(|| frames::here().unwrap()),
            false => socket.namespace().unwrap(),
        };
        let waiting = Waiting {
            name: TAP,
            owner: None,
            group: 7,
        };
        frames::make(from.as_fd(), &[waiting]).unwrap();
        assert_eq!(frames::group_of(from.as_fd(), TAP).unwrap(), 7);
        let at = from.try_clone().unwrap();
        let tap = std::thread::spawn(move || {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(at.as_fd(), network).unwrap();
            Tap::make(TAP, 1, None).unwrap().queues.remove(0)
        });
        Some(Self {
            kernel,
            runtime,
            socket,
            tap: Some(tap.join().unwrap()),
            from,
        })
    }

    fn stack(&self) -> Stack {
        let _within = self.runtime.enter();
        Stack::over(self.socket.duplicate().unwrap(), PORT, &[]).unwrap()
    }
}

#[test]
fn frames_come_as_a_kernel_leaves_them_to_its_device() {
    for is_apart in [false, true] {
        let Some(mut world) = World::new(is_apart) else {
            return;
        };
        let mut tap = world.tap.take().unwrap();
        // Nothing passes before it is taken.
        assert!(tap.write_all(&[0; 100]).is_err());
        let stack = world.stack();
        serve(&world.runtime, &stack, echo);
        world.socket.take(TAP, world.from.as_fd()).unwrap();
        let left = frames::group_of(world.from.as_fd(), TAP);
        assert_eq!(left.is_err(), is_apart, "{left:?}");
        let longest = world.kernel.plug_tap(tap);
        let mut stream = world.kernel.connect().unwrap();
        for length in [1, 100, 8960, 70_000, MUCH] {
            converse(&mut stream, &pattern(length));
        }
        // Its segments are cut nowhere, which the stack has to bear.
        assert!(longest.load(Ordering::Relaxed) > 2 * usize::from(MTU));
        // Once it is left, whoever speaks over it hears of it.
        world.socket.leave(TAP).unwrap();
        wait_until("the stack ends", LIMIT, || {
            stack.0.shared.core().is_over.then_some(())
        });
    }
}

#[test]
fn what_is_not_taken_is_removed() {
    let Some(world) = World::new(true) else {
        return;
    };
    frames::remove(world.from.as_fd(), TAP).unwrap();
    frames::remove(world.from.as_fd(), TAP).unwrap();
    let error = world.socket.take(TAP, world.from.as_fd()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(19), "{error}");
}
