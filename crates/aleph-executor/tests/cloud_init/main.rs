//! What guests are told by cloud-init, against cloud-init itself: Debian's, unpacked and not
//! installed, whose parser, mergers and schema read what the node wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod boot;
mod boundaries;
mod guest;
mod image;
mod merging;
mod report;
mod strategy;

use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use std::process::Command;

fn main() {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(boundaries::trials());
    trials.extend(merging::trials());
    trials.extend(image::trials());
    trials.extend(report::trials());
    trials.extend(boot::trials());
    libtest_mimic::run(&args, trials).exit()
}

/// A test that needs nothing.
fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// A test with Debian's packages; where they cannot be had it is ignored, and says why.
fn debian_trial(name: &str, test: fn()) -> Trial {
    let uris = Command::new("apt-get")
        .args(["download", "--print-uris", "cloud-init"])
        .output();
    let known = uris.is_ok_and(|o| o.status.success() && !o.stdout.is_empty());
    let trial = trial(name, test);
    if !Path::new("/usr/bin/python3").exists() {
        trial
            .with_kind("needs Debian's Python")
            .with_ignored_flag(true)
    } else if !known {
        trial
            .with_kind("needs apt with package lists")
            .with_ignored_flag(true)
    } else {
        trial
    }
}
