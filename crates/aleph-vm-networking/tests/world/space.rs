//! A network namespace with a thread in it.

#![allow(unsafe_code)] // unshare(2)

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Work = Box<dyn FnOnce() + Send>;

/// It ends, with all that is in it, when this is dropped.
pub(crate) struct Space {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Space {
    pub(crate) fn new() -> Self {
        let (work, to_do) = channel::<Work>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: only the network namespace of this one thread changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("no network namespace");
            let (process, thread) = (std::process::id(), rustix::thread::gettid());
            let path = format!("/proc/{process}/task/{}/ns/net", thread.as_raw_nonzero());
            tell.send(path).unwrap();
            for work in to_do {
                work();
            }
        });
        Self {
            work: Some(work),
            thread: Some(thread),
            path: told.recv().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Does something in it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let work = Box::new(move || {
            let _ = tell.send(work());
        });
        self.work.as_ref().unwrap().send(work).unwrap();
        told.recv().expect("it panicked")
    }

    /// Runs commands in it, and gives what they print.
    pub(crate) fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-euc", &script]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{script}: {said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is missing for one.
pub(crate) fn missing() -> Option<String> {
    let can = std::thread::spawn(|| {
        // SAFETY: only the network namespace of this one thread changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_ok()
    });
    if !can.join().unwrap_or(false) {
        return Some("it needs the right to make network namespaces (root)".into());
    }
    for tool in ["ip", "nft"] {
        if Command::new(tool).arg("-V").output().is_err() {
            return Some(format!("it needs the program {tool}"));
        }
    }
    let tun = std::fs::File::open("/dev/net/tun").is_err();
    tun.then(|| "it needs /dev/net/tun".into())
}
