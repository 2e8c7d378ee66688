//! The agent's binary: what a program needs that has no library under it.
//!
//! It exists in a profile that aborts on panic, such as `guest`. Elsewhere a stand-in takes its
//! place, so that commands over all features still build.
#![cfg_attr(panic = "abort", no_std)]
#![cfg_attr(panic = "abort", no_main)]

#[cfg(panic = "abort")]
mod start;

#[cfg(not(panic = "abort"))]
fn main() {
    eprintln!("the agent is built with --profile guest");
}
