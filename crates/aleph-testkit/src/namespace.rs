//! A network namespace of a test's own, and a TAP in it. Nothing of it is ever seen outside, and
//! all of it goes with the last thread, socket and queue.
#![allow(unsafe_code)]

use aleph_vm_networking::tap::Tap;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::ioctl::{Updater, ioctl};
use rustix::thread::UnshareFlags;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it, which ends when this is dropped. Nothing of it is seen
/// outside, and it goes with the last thread, socket and queue.
#[derive(Debug)]
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    /// One with nothing in it but `lo`, which is up.
    ///
    /// # Errors
    /// Where we are not root.
    pub fn new() -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: only the namespace of the network is left, which no descriptor depends on.
            let _ = ready.send(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) });
            inbox.into_iter().for_each(|job| job());
        });
        entered.recv()?.context("cannot make a network namespace")?;
        let namespace = Self { jobs };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs a closure in the namespace: sockets that it opens and programs that it starts are of
    /// it.
    ///
    /// # Errors
    /// Where its thread has ended.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let job = Box::new(move || drop(answer.send(job())));
        self.jobs.send(job).map_err(|_| anyhow!("no thread"))?;
        Ok(answered.recv()?)
    }

    /// Runs `ip` with these words.
    ///
    /// # Errors
    /// Where it is not there or fails.
    pub fn ip(&self, words: &str) -> Result<String> {
        let split: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(split).output())??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {words}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The queues of a new persistent TAP interface, several of them where asked for.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn tap(&self, name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
        let name = name.to_owned();
        self.run(move || {
            let tap = Tap::make(&name, queues, None)?;
            Ok(tap.queues.into_iter().map(OwnedFd::from).collect())
        })?
    }

    /// The queue of a new TAP interface that goes with it.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn fleeting_tap(&self, name: &'static str) -> Result<OwnedFd> {
        self.run(move || open_queue(name))?
    }
}

fn open_queue(name: &str) -> Result<OwnedFd> {
    const TAP: u16 = 0x2;
    const NO_PACKET_INFO: u16 = 0x1000;
    const HEADERS: u16 = 0x4000;
    const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
    let queue = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let flags = TAP | NO_PACKET_INFO | HEADERS;
    // struct ifreq: a name of 16 bytes with its NUL, then the flags in a union of 24.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a whole ifreq, which outlives the call.
    unsafe { ioctl(&queue, Updater::<TUNSETIFF, _>::new(&mut request)) }.context("TUNSETIFF")?;
    Ok(queue.into())
}
