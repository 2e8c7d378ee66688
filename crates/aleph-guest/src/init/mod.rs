//! What PID 1 does: from the kernel's start to the session, and from its end to power-off.

mod boot;
mod clone;
mod console;
mod disk;
mod freezer;
mod modules;
mod mounts;
mod netlink;
mod network;
mod port;
mod power;
mod root;
mod settling;
mod setup;
mod virtio;
mod vsock;

pub use console::print;
pub use power::off;

use crate::census;
use crate::channel::Channel;
use crate::dialogue::Machine;
use crate::failure::Failure;
use crate::session::{End, Session};
use crate::sys;
use aleph_guest_proto::{Link, Mount, Network, Resume, Setup};
use alloc::vec::Vec;
use freezer::Gate;
use modules::Modules;
use rustix::fd::OwnedFd;

/// Runs the guest, from the agent's start to power-off. A process that is not PID 1 is ended
/// with a message instead: what follows would reboot the machine that it runs on.
pub fn run() -> ! {
    if !power::is_init() {
        print("this program is the PID 1 of a guest, and nothing else");
        sys::exit(1);
    }
    let started_us = sys::monotonic_us();
    let mut disks = Vec::new();
    match serve(started_us, &mut disks) {
        Ok(End::Finished | End::HungUp) => {}
        Ok(End::Failed(failure)) | Err(failure) => print(&failure.message),
    }
    off(&disks);
}

fn serve(started_us: u64, disks: &mut Vec<OwnedFd>) -> Result<End, Failure> {
    boot::mount_basics()?;
    let mut modules = Modules::read();
    let is_vsock = vsock::is_wanted();
    modules.load_early(is_vsock);
    let failed = |errno| Failure::new("serving the port", errno);
    let channel = if is_vsock {
        Channel::listening(vsock::listen().map_err(|failure| modules.blame(failure))?)
    } else {
        let port = port::open().map_err(|failure| modules.blame(failure))?;
        Channel::new(port).map_err(failed)?
    };
    let mut session = Session::new(
        channel,
        Guest {
            modules,
            disks: Vec::new(),
            network: None,
            own: None,
            gate: None,
            stands_still: false,
        },
        started_us,
    )
    .map_err(failed)?;
    let end = session.run();
    *disks = session.into_machine().disks;
    Ok(end)
}

/// The machine that the agent is PID 1 of.
struct Guest {
    modules: Modules,
    /// The root folders of the disks that take writes.
    disks: Vec<OwnedFd>,
    /// Its network's interface, address and prefix, until a clone takes it over.
    network: Option<Interface>,
    /// What clones of it write to, once it was about to be written down.
    own: Option<clone::Own>,
    /// What holds its processes back, once they were. To close it would cost each clone a grace
    /// period of the kernel's.
    gate: Option<Gate>,
    /// Whether none of its processes has run since it was readied.
    stands_still: bool,
}

impl Machine for Guest {
    fn set_up(&mut self, setup: &Setup<'_>) -> Result<(), Failure> {
        setup::apply_facts(setup);
        let has_network = setup.network.is_some() || virtio::has(virtio::NETWORK);
        let has_balloon = virtio::has(virtio::BALLOON);
        self.modules.load_rest(has_network, has_balloon);
        if let Some(network) = &setup.network {
            network::configure(network).map_err(|failure| self.modules.blame(failure))?;
            self.network = Some(Interface::of(network));
        }
        let root = root::assemble(&setup.root).map_err(|failure| self.modules.blame(failure));
        self.disks.extend(root?);
        setup::complete(setup.hostname, setup.network.as_ref())?;
        for mount in setup.mounts.iter() {
            let mounted = mounts::mount(&mount).and_then(|()| mounts::root_of(&mount));
            let root = mounted.map_err(|failure| self.modules.blame(failure))?;
            if !mount.read_only {
                self.disks.push(root);
            }
        }
        Ok(())
    }

    fn mount(&mut self, mount: &Mount<'_>) -> Result<(), Failure> {
        mounts::mount(mount)
    }

    fn link(&mut self, link: &Link) -> Result<(), Failure> {
        network::link(link).map_err(|failure| self.modules.blame(failure))
    }

    fn freeze(&mut self) -> Result<(), Failure> {
        self.stands_still = false;
        let gate = freezer::freeze()?;
        match self.ready() {
            Ok(()) => {
                self.gate = Some(gate);
                self.stands_still = true;
                Ok(())
            }
            Err(failure) => {
                gate.open()?;
                Err(failure)
            }
        }
    }

    fn settle(&mut self) {
        settling::settle();
    }

    fn resume(&mut self, resume: &Resume<'_>) -> Result<(), Failure> {
        let own = self.own.as_mut();
        let own = own.ok_or_else(|| Failure::violation("a guest that was never frozen"))?;
        own.apply(resume, self.stands_still);
        if let Some(network) = &resume.network {
            match &self.network {
                Some(before) => network::take_over(before.mac, network)?,
                None => network::configure(network)?,
            }
            self.network = Some(Interface::of(network));
            network::write_resolver(network)?;
        }
        self.stands_still = false;
        self.gate.as_ref().map_or(Ok(()), Gate::open)
    }

    fn set_clock(&mut self, unix_ns: u64) {
        setup::set_clock(unix_ns);
    }

    fn signal_all(&mut self, signal: u8, except: &[i32]) {
        if !power::is_init() {
            return;
        }
        if except.is_empty() {
            // That nobody is there is seen when children are collected.
            let _ = sys::kill(-1, signal);
            return;
        }
        census::each(|process| {
            let is_spared = process.pid == 1 || except.contains(&process.group);
            if !is_spared && !process.is_kernel() {
                let _ = sys::kill(process.pid, signal);
            }
        });
    }
}

impl Guest {
    /// Readies it to be written down, once its processes stand still.
    fn ready(&mut self) -> Result<(), Failure> {
        if let Some(network) = &self.network {
            network::quiet(network)?;
        }
        match &mut self.own {
            Some(own) => own.ready(),
            none => {
                *none = Some(clone::Own::lay_out()?);
                Ok(())
            }
        }
    }
}

/// A network interface, and the address that it has.
#[derive(Debug, Clone, Copy)]
struct Interface {
    mac: [u8; 6],
    address: [u8; 4],
    prefix_length: u8,
}

impl Interface {
    fn of(network: &Network<'_>) -> Self {
        Self {
            mac: network.mac,
            address: network.address,
            prefix_length: network.prefix_length,
        }
    }
}

/// What a panic comes to.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    print(info);
    off(&[]);
}
