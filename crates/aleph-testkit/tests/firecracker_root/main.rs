//! What of the double only root can try: TAPs in a network namespace, and jails.

#[path = "../firecracker_double/agent.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod agent;
#[path = "../firecracker_double/double.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod double;
mod jail;
mod network;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let trial = |name: &str, run: fn() -> anyhow::Result<()>| {
        let trial = Trial::test(name, move || {
            run().map_err(|error| format!("{error:?}").into())
        });
        match root {
            true => trial,
            false => trial.with_kind("needs root").with_ignored_flag(true),
        }
    };
    let trials = vec![
        trial("a_guest_lives_in_a_jail", jail::a_guest_lives_in_a_jail),
        trial("a_guest_has_its_network_devices", || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build()?;
            runtime.block_on(network::a_guest_has_its_network_devices())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
