//! Full VMs by the command line: a real daemon, real Debians with their own cloud-init, a real ssh.
//!
//! | file | what it is |
//! | --- | --- |
//! | `debian` | two Debians: what they are told, their daemon's end, the end of their machines |
//! | `bare` | machines without a system |
//! | `refused` | VMs that cannot be |
//! | `login` | ssh, as their users have it |
//! | `repository` | a repository of Debian packages |
//! | `screen` | a viewer of VNC |
//! | `secrets` | who may read what |

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod debian;
mod login;
mod refused;
mod repository;
mod screen;
mod secrets;

use aleph_testkit::wait_until;
use serde_json::Value;
use std::time::Duration;
use support::Daemon;

/// For a boot by emulation on a busy host: only what hangs takes longer.
const BOOT: Duration = Duration::from_secs(600);

/// A job in a state, where it is in that.
fn is(daemon: &Daemon, job: &str, state: &str) -> Option<Value> {
    let job = daemon.json(&["inspect", job]).ok()?[0].clone();
    (job["state"] == state).then_some(job)
}

/// Waits for a state; one that is over is told at once.
#[track_caller]
fn wait_for(daemon: &Daemon, name: &str, state: &str) -> Value {
    wait_until(&format!("{name} to be {state}"), BOOT, || {
        let job = daemon.json(&["inspect", name]).ok()?[0].clone();
        let failed = job["state"] == "failed" && state != "failed";
        assert!(!failed, "{job:#}");
        (job["state"] == state).then_some(job)
    })
}

/// Has cloud-init come to its end, and gives what it did.
#[track_caller]
fn told(daemon: &Daemon, name: &str) -> Value {
    wait_until(&format!("the end of {name}'s cloud-init"), BOOT, || {
        let job = daemon.json(&["inspect", name]).ok()?[0].clone();
        // A daemon that has just begun has not found its guests yet.
        if job["state"] == "unknown" {
            return None;
        }
        assert_eq!(job["state"], "running", "{job:#}");
        let told = job["cloud_init"].clone();
        (told["state"] != "running").then_some(told)
    })
}
