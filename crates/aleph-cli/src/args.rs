//! The command line. Its flags are docker's, where docker has them.

use crate::client::Endpoint;
use crate::commands::Command;
use aleph_control::config::ExecutorSection;
use aleph_executor::Hypervisor;
use aleph_executor::accel::Accelerator;
use clap::Parser;
use std::path::PathBuf;

/// Run jobs in microVMs, full VMs and functions.
#[derive(Debug, Parser)]
#[command(
    name = "aleph",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(flatten)]
    pub(crate) api: ApiArgs,

    /// Log more to standard error; twice for everything
    #[arg(long, global = true, action = clap::ArgAction::Count, hide_short_help = true)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A node of this host, and how it runs VMs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node on this host")]
pub(crate) struct NodeArgs {
    /// Keep all state and sockets under DIR [default: /var/lib/aleph and /run/aleph]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "ALEPH_ROOT",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) root: Option<PathBuf>,

    /// What runs VMs: auto, qemu or firecracker [default: auto, which is firecracker where it works]
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "ALEPH_HYPERVISOR",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) hypervisor: Option<Hypervisor>,

    /// The Firecracker program [default: the installed one, see aleph setup, or that in PATH]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "FIRECRACKER_BIN",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) firecracker: Option<PathBuf>,

    /// Firecracker's jailer, of the same version [default: as for --firecracker]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "JAILER_BIN",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) jailer: Option<PathBuf>,

    /// The QEMU program [default: qemu-system-x86_64]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ALEPH_QEMU",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) qemu: Option<PathBuf>,

    /// What runs the guests' instructions: kvm or tcg [default: kvm where it works, else tcg]
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "ALEPH_ACCEL",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) accel: Option<Accelerator>,
}

impl NodeArgs {
    /// Puts what the flags say over a configuration.
    pub(crate) fn go_over(&self, executor: &mut ExecutorSection) {
        executor.hypervisor = self.hypervisor.unwrap_or(executor.hypervisor);
        executor.accelerator = self.accel.or(executor.accelerator);
        if let Some(qemu) = &self.qemu {
            executor.qemu.clone_from(qemu);
        }
        let firecracker = &mut executor.firecracker;
        for (flag, place) in [
            (&self.firecracker, &mut firecracker.firecracker),
            (&self.jailer, &mut firecracker.jailer),
        ] {
            if flag.is_some() {
                place.clone_from(flag);
            }
        }
    }
}

/// A node that is reached by its API.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node by its API")]
pub(crate) struct ApiArgs {
    /// Where the node listens: unix:///PATH or https://HOST:PORT [default: this host's]
    #[arg(
        short = 'H',
        long,
        global = true,
        value_name = "ADDRESS",
        env = "ALEPH_HOST",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) host: Option<Endpoint>,

    /// The token that says who asks; rather set ALEPH_TOKEN, which no list of processes shows
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "ALEPH_TOKEN",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) token: Option<String>,

    /// Act for this account, as an operator
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "ALEPH_ACCOUNT",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) account: Option<String>,

    /// Trust these certificate authorities, in PEM, instead of this host's
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ALEPH_CACERT",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) cacert: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    /// What a command takes must not be taken for a flag before all commands.
    #[test]
    fn no_command_has_a_global_flags_id() {
        fn check(command: &clap::Command, global: &[clap::Id]) {
            for argument in command.get_arguments().filter(|a| !a.is_global_set()) {
                let name = command.get_name();
                assert!(!global.contains(argument.get_id()), "{name}: {argument}");
            }
            command.get_subcommands().for_each(|sub| check(sub, global));
        }
        let command = Args::command();
        let global = command.get_arguments().filter(|a| a.is_global_set());
        let global: Vec<_> = global.map(|a| a.get_id().clone()).collect();
        assert!(global.len() > 5);
        check(&command, &global);
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let args = Args::try_parse_from(["aleph", "run", "--rm", "busybox", "--", "ls", "-t"]);
        let Ok(Args {
            command: Command::Run(run),
            ..
        }) = args
        else {
            panic!("{args:?}")
        };
        assert_eq!(
            (run.image.as_deref(), run.job.tty),
            (Some("busybox"), false)
        );
        assert_eq!(run.command, ["ls", "-t"]);
        let args = Args::try_parse_from(["aleph", "run", "-it", "busybox", "sh", "-c", "id"]);
        let Ok(Args {
            command: Command::Run(run),
            ..
        }) = args
        else {
            panic!("{args:?}")
        };
        assert!(run.job.tty && run.job.interactive);
        assert_eq!(run.command, ["sh", "-c", "id"]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            &["run", "--cpus", "-1", "x"][..],
            &["run"],
            &["run", "-m", "lots", "x"],
            &["run", "--boot-timeout", "0", "x"],
            &["run", "--boot-timeout", "1e300", "x"],
            &["run", "--initrd", "i", "x"],
            &["run", "--restart", "sometimes", "x"],
            &["run", "--stop-signal", "SIGNONE", "x"],
            &["run", "--restart", "always", "--rm", "x"],
            &["run", "-d", "-i", "x", "--rm"][..2],
            &["run", "--health-interval", "5s", "x"],
            &["--accel", "magic", "doctor"],
            &["--host", "node", "ps"],
            &["logs"],
            &["logs", "--tail", "some", "x"],
            &["wait", "--state", "asleep", "x"],
            &["cp", "a"],
        ] {
            let words = ["aleph"].iter().chain(wrong);
            assert!(Args::try_parse_from(words).is_err(), "{wrong:?}");
        }
    }

    /// Every command's help as people see it. A change of a flag shows here.
    #[test]
    fn help_is_as_reviewed() {
        fn all(command: &mut clap::Command, path: &str, text: &mut String) {
            let help = command.clone().term_width(100).render_help();
            text.push_str(&format!("$ {path} -h\n{help}\n"));
            let names: Vec<String> = command
                .get_subcommands()
                .map(|sub| sub.get_name().to_owned())
                .filter(|name| name != "help")
                .collect();
            for name in names {
                if let Some(sub) = command.find_subcommand_mut(&name) {
                    all(sub, &format!("{path} {name}"), text);
                }
            }
        }
        let mut text = String::new();
        let mut command = Args::command();
        command.build();
        all(&mut command, "aleph", &mut text);
        insta::assert_snapshot!(text);
    }
}
