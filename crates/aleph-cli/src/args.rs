//! The command line. Its flags are docker's, where docker has them.

use aleph_executor::accel::Accelerator;
use aleph_types::MiB;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

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

    /// Log more to standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which node, and how it runs VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Keep all state and sockets under DIR [default: /var/lib/aleph and /run/aleph]
    #[arg(long, global = true, value_name = "DIR", env = "ALEPH_ROOT")]
    pub(crate) root: Option<PathBuf>,

    /// The QEMU program
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ALEPH_QEMU",
        hide_env_values = true,
        default_value = "qemu-system-x86_64"
    )]
    pub(crate) qemu: PathBuf,

    /// What runs the guests' instructions: kvm or tcg [default: kvm where it works, else tcg]
    #[arg(long, global = true, value_name = "NAME", env = "ALEPH_ACCEL")]
    pub(crate) accel: Option<Accelerator>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new microVM
    Run(RunArgs),
    /// Build, import, list and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Build and list kernel bundles
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Look for what this host lacks, and say how to mend it
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What to run, and how.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct RunArgs {
    /// The image, by name or digest
    pub(crate) image: String,

    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,

    /// Remove the VM when it ends. Without a node running it always is
    #[arg(long)]
    pub(crate) rm: bool,

    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Do not print aleph's own line at the end
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Set an environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User in the guest: name or uid, optionally with :group
    #[arg(short, long)]
    pub(crate) user: Option<String>,

    /// The guest's hostname [default: job- and the job's short id]
    #[arg(long)]
    pub(crate) hostname: Option<String>,

    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u16,

    /// Memory, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", default_value = "128m")]
    pub(crate) memory: MiB,

    /// Size of a disk for what the guest writes, such as 10g [default: writes go to its memory]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<MiB>,

    /// Boot this kernel instead of the node's bundle
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub(crate) kernel: Option<PathBuf>,

    /// The initramfs that goes with --kernel; it must hold the guest agent
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// How long the guest may take to boot, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) boot_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(number) {
        // Deadlines are computed by adding to a clock, which a day cannot overflow.
        Ok(time) if (0.001..=86_400.0).contains(&time.as_secs_f64()) => Ok(time),
        _ => Err(format!("{text} s is not between a millisecond and a day")),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image by a recipe of this program: busybox or debian-12
    Build {
        /// Which recipe
        recipe: String,
    },
    /// Make an image of a directory or a tar archive
    Import {
        /// The directory or archive
        source: PathBuf,
        /// The image's name
        #[arg(long)]
        name: String,
    },
    /// List images
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images
    Rm {
        /// Names or digests
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// Build the kernel bundle from Debian's cloud kernel
    Build,
    /// List kernel bundles
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a kernel bundle
    Rm {
        /// Its digest, or the beginning of it
        digest: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
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
        assert_eq!((run.image.as_str(), run.tty), ("busybox", false));
        assert_eq!(run.command, ["ls", "-t"]);
        let args = Args::try_parse_from(["aleph", "run", "-it", "busybox", "sh", "-c", "id"]);
        let Ok(Args {
            command: Command::Run(run),
            ..
        }) = args
        else {
            panic!("{args:?}")
        };
        assert!(run.tty && run.interactive);
        assert_eq!(run.command, ["sh", "-c", "id"]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            &["run", "--cpus", "-1", "x"][..],
            &["run", "-m", "lots", "x"],
            &["run", "--boot-timeout", "0", "x"],
            &["run", "--boot-timeout", "1e300", "x"],
            &["run", "--kernel", "k", "x"],
            &["--accel", "magic", "doctor"],
        ] {
            let words = ["aleph"].iter().chain(wrong);
            assert!(Args::try_parse_from(words).is_err(), "{wrong:?}");
        }
    }
}
