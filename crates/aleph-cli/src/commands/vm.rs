//! `aleph vm`: full VMs, which boot disks of their own.

use super::completion::jobs;
use super::disk_image::DiskImage;
use super::run::tell_made;
use super::{ps, rm, start, stop};
use crate::client::JobQuery;
use crate::context::Context;
use crate::output::{Advised, print, print_json, print_json_line};
use crate::spec::JobFlags;
use aleph_types::{
    CloudInitSpec, Firmware, HotplugRoom, JobResize, JobSpec, MachineSpec, MiB, Mode, NumaNode,
};
use anyhow::{Context as _, Result};
use clap::Arg;
use clap_complete::ArgValueCompleter;
use std::path::{Path, PathBuf};

/// What to do with full VMs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Vm {
    /// Make a full VM and start it
    Create(Box<Create>),
    /// List full VMs, with what became of their cloud-init
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Start VMs that do not run, with their disks as they are
    Start(start::Start),
    /// Give a VM more CPUs and memory while it runs, or another size while it does not
    Resize(Resize),
    /// Stop VMs: press their power buttons, and take the power away from what stays up
    Stop(stop::Stop),
    /// Remove VMs with their root disks and logs; volumes stay
    Rm(rm::Rm),
}

/// A full VM that is to be.
#[derive(Debug, clap::Args)]
#[command(mut_args(of_full_vm))]
pub(crate) struct Create {
    /// Its name
    #[arg(value_name = "NAME")]
    vm: String,

    /// What its root disk is a copy of: a volume, or the file of a cloud image (raw or qcow2), which
    /// becomes a volume the first time
    #[arg(long, value_name = "VOLUME|FILE")]
    image: String,

    /// A program that runs as a service of the guest, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,

    /// Let the keys in this file (.pub or authorized_keys) log in as the user aleph
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,

    /// Have the guest's cloud-init carry this out: a cloud-config, a script or whatever else it takes
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Have the guest install a package of its distribution
    #[arg(long, value_name = "NAME")]
    package: Vec<String>,

    /// What starts the guest: uefi or bios [default: uefi]
    #[arg(long, value_name = "NAME", value_parser = firmware)]
    firmware: Option<Firmware>,

    /// Start this kernel of the node (aleph kernel ls) at once, with the initramfs that it was imported with
    #[arg(long, value_name = "NAME", conflicts_with = "firmware")]
    kernel: Option<String>,

    /// What that kernel is told, such as 'root=/dev/vda1 rw'
    #[arg(long, value_name = "WORDS", requires = "kernel")]
    append: Option<String>,

    /// Start only what is signed
    #[arg(long)]
    secure_boot: bool,

    /// Give it a TPM 2.0
    #[arg(long)]
    tpm: bool,

    /// A processor by QEMU's name for it [default: the host's own where that can be had]
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,

    /// Give it a NUMA node with these CPUs and so much memory, such as 0-3:8g; all of its CPUs (--max-cpus) and
    /// its memory are in one each
    #[arg(long, value_name = "CPUS:SIZE")]
    numa: Vec<NumaNode>,

    /// Let it have up to so many CPUs while it runs: aleph vm resize [default: what --cpus says]
    #[arg(long, value_name = "N")]
    max_cpus: Option<u16>,

    /// Let it have up to so much memory while it runs, what -m says and a multiple of 128m [default: what -m says]
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<MiB>,

    /// Make it, and do not start it
    #[arg(long)]
    no_start: bool,

    /// Print the job as a line of JSON instead of its id
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    job: JobFlags,
}

/// A size that a VM is to have.
#[derive(Debug, clap::Args)]
pub(crate) struct Resize {
    /// Name or id of the VM's job
    #[arg(value_name = "VM", add = ArgValueCompleter::new(jobs::any))]
    vm: String,

    /// How many CPUs it is to have
    #[arg(long, value_name = "N", required_unless_present = "memory")]
    cpus: Option<u16>,

    /// How much memory it is to have, such as 4g
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MiB>,

    /// Print the job as a line of JSON
    #[arg(long)]
    json: bool,
}

/// How to list full VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Leave out those that do not run
    #[arg(long)]
    running: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a VM has where nobody says how much: firmware and a system fit in.
const MEMORY: MiB = MiB(1024);

/// A flag as it is for full VMs, of those that all jobs have. What is refused for them, or has no effect on them, is
/// not shown: the refusal says why.
fn of_full_vm(flag: Arg) -> Arg {
    match flag.get_id().as_str() {
        "rm" => flag.help("Remove the VM, with its root disk and its logs, once it has ended"),
        "workdir" => flag.help("Working directory of the command [default: /]"),
        "user" => {
            flag.help("User of the command: name or uid, optionally with :group [default: root]")
        }
        "entrypoint" => flag.help("The program that gets the command; empty for none"),
        "memory" => flag.help("Memory, such as 512m or 2g [default: 1g]"),
        "disk" => flag.help("Size of its root disk, such as 40g [default, and least: the image's]"),
        "stop_timeout" => {
            flag.help("Seconds between its power button and taking the power away [default: 60]")
        }
        "interactive" | "tty" | "name" | "pull" | "stop_signal" => flag.hide(true),
        id if id.starts_with("health_") => flag.hide(true),
        _ => flag,
    }
}

fn firmware(text: &str) -> Result<Firmware, String> {
    match text {
        "uefi" => Ok(Firmware::Uefi),
        "bios" => Ok(Firmware::Bios),
        _ => Err(format!("{text:?} is neither uefi nor bios")),
    }
}

impl Vm {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::Ls(ls) => ls.run(context).await,
            Self::Resize(resize) => resize.run(context).await,
            Self::Start(start) => start.run(context).await,
            Self::Stop(stop) => stop.run(context).await,
            Self::Rm(rm) => rm.run(context).await,
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<u8> {
        let image = DiskImage::of(&self.image)?;
        // Before anything is sent.
        let spec = self.spec(image.volume())?;
        let client = context.client()?;
        image.bring(&client).await?;
        let job = client.create(&spec, !self.no_start).await?;
        tell_made(&job);
        match self.json {
            true => print_json_line(&job)?,
            false => print(job.id)?,
        }
        Ok(0)
    }

    /// What is asked for, with this volume as its image.
    fn spec(&self, image: &str) -> Result<JobSpec> {
        if let Some(name) = &self.job.name {
            return Err(Advised {
                what: format!("--name {name} names the VM a second time"),
                advice: "Leave --name out: the VM is called by the word after create.".into(),
            }
            .into());
        }
        let mut spec = JobSpec::new(image, self.command.clone());
        spec.resources.memory = MEMORY;
        // A guest takes its time to shut down.
        spec.stop_grace_seconds = 60;
        self.job.apply(&mut spec)?;
        spec.name = Some(self.vm.clone());
        spec.mode = Mode::Vm;
        spec.kernel.clone_from(&self.kernel);
        spec.machine = Some(MachineSpec {
            firmware: match (&self.kernel, self.firmware) {
                (Some(_), _) => Firmware::Kernel,
                (None, firmware) => firmware.unwrap_or_default(),
            },
            boot_args: self.append.clone(),
            secure_boot: self.secure_boot,
            tpm: self.tpm,
            cpu_model: self.cpu_model.clone(),
            numa: self.numa.clone(),
            room: self.room(&spec)?,
            ..MachineSpec::default()
        });
        let mut told = CloudInitSpec {
            packages: self.package.clone(),
            ..CloudInitSpec::default()
        };
        for file in &self.ssh_key {
            let keys = read(file)?;
            let keys = keys.lines().map(str::trim);
            let keys = keys.filter(|line| !line.is_empty() && !line.starts_with('#'));
            told.ssh_keys.extend(keys.map(str::to_owned));
        }
        if let Some(file) = &self.user_data {
            told.user_data = Some(read(file)?);
        }
        spec.cloud_init = Some(told);
        spec.validate()?;
        Ok(spec)
    }
}

impl Create {
    /// What it can have beside what it begins with.
    fn room(&self, spec: &JobSpec) -> Result<HotplugRoom> {
        let less = |flag: &str, most: String, begins: String| {
            Err(Advised {
                what: format!("{flag} {most} is less than the VM begins with, {begins}"),
                advice: format!("Give {flag} {begins} or more, or leave it out."),
            }
            .into())
        };
        let (cpus, memory) = (spec.resources.cpus, spec.resources.memory);
        let (most_cpus, most_memory) = (
            self.max_cpus.unwrap_or(cpus),
            self.max_memory.unwrap_or(memory),
        );
        if most_cpus < cpus {
            return less("--max-cpus", most_cpus.to_string(), cpus.to_string());
        }
        if most_memory < memory {
            let in_words = |memory: MiB| format!("{}m", memory.0);
            return less("--max-memory", in_words(most_memory), in_words(memory));
        }
        Ok(HotplugRoom {
            cpus: most_cpus - cpus,
            memory: MiB(most_memory.0 - memory.0),
            slots: 0,
        })
    }
}

impl Resize {
    async fn run(self, context: &Context) -> Result<u8> {
        let size = JobResize {
            cpus: self.cpus,
            memory: self.memory,
        };
        let job = context.client()?.resize(&self.vm, &size).await?;
        match self.json {
            true => print_json_line(&job)?,
            false => print(&self.vm)?,
        }
        Ok(0)
    }
}

/// A file of text. What is said of a private key shows nothing of it.
fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let text = String::from_utf8(bytes).map_err(|_| Advised {
        what: format!("{shown} is no text"),
        advice: "Give text in UTF-8; what is compressed or binary is not taken here.".into(),
    })?;
    if text.contains("PRIVATE KEY-----") && text.trim_start().starts_with("-----BEGIN") {
        return Err(Advised {
            what: format!("{shown} is a private key"),
            advice: "Name the public one, whose name ends in .pub.".into(),
        }
        .into());
    }
    Ok(text)
}

impl Ls {
    async fn run(self, context: &Context) -> Result<u8> {
        let mut jobs = context.client()?.jobs(&JobQuery::default()).await?;
        jobs.retain(|job| job.spec.is_full_vm() && (!self.running || job.state.is_live()));
        match self.json {
            true => print_json(&jobs)?,
            false => print(ps::vms(&jobs))?,
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        create: Create,
    }

    fn spec(words: &[&str]) -> Result<JobSpec> {
        let words = ["create"].iter().chain(words);
        let create = Words::try_parse_from(words)?.create;
        create.spec(&create.image)
    }

    #[test]
    fn words_become_a_vm() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, config) = (folder.path().join("k.pub"), folder.path().join("c.yaml"));
        let key = format!("ssh-ed25519 {} me", "A".repeat(68));
        fs::write(&keys, format!("# mine\n{key}\n\n")).unwrap();
        fs::write(&config, "#cloud-config\nruncmd: [[touch, /x]]\n").unwrap();
        let (keys, config) = (keys.to_str().unwrap(), config.to_str().unwrap());
        let words = [
            "web",
            "--image",
            "debian",
            "--cpus",
            "2",
            "-m",
            "2G",
            "--ssh-key",
            keys,
            "-v",
            "data:/srv",
            "--user-data",
            config,
            "--package",
            "nginx",
            "--tpm",
            "--max-cpus",
            "4",
            "--max-memory",
            "4G",
            "--",
            "serve",
            "-x",
        ];
        let spec = spec(&words).unwrap();
        assert_eq!(spec.validate(), Ok(()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&spec).unwrap());
    }

    #[test]
    fn nodes_come_in_the_order_of_the_words() {
        let words = ["web", "--image", "x", "--cpus", "2", "-m", "1g"];
        let nodes = ["--numa", "1:256m", "--numa", "0:768m"];
        let machine = spec(&[&words[..], &nodes].concat())
            .unwrap()
            .machine
            .unwrap();
        let nodes = machine
            .numa
            .iter()
            .map(|node| (node.cpus.to_string(), node.memory.0));
        assert!(nodes.eq([("1".to_owned(), 256), ("0".to_owned(), 768)]));
    }

    #[test]
    fn a_vm_that_cannot_be_is_refused_here() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("id");
        fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n").unwrap();
        let private = private.to_str().unwrap();
        for (words, why) in [
            (&["web"][..], "--image"),
            (&["web", "--image", "x", "-t"], "tty needs an agent"),
            (&["web", "--image", "x", "-i"], "stdin needs an agent"),
            (
                &["web", "--image", "x", "--stop-signal", "INT"],
                "stop_signal needs an agent",
            ),
            (
                &["web", "--image", "x", "--health-tcp", "80"],
                "health needs an agent",
            ),
            (
                &["web", "--image", "x", "--name", "other"],
                "names the VM a second time",
            ),
            (
                &["web", "--image", "x", "--firmware", "bios", "--secure-boot"],
                "uefi alone",
            ),
            (&["web", "--image", "x", "--firmware", "kernel"], "neither"),
            (
                &["web", "--image", "x", "--cpus", "2", "--max-cpus", "1"],
                "--max-cpus 1 is less than the VM begins with, 2",
            ),
            (
                &["web", "--image", "x", "-m", "2g", "--max-memory", "1g"],
                "--max-memory 1024m is less than the VM begins with, 2048m",
            ),
            (
                &["web", "--image", "x", "-m", "1g", "--max-memory", "1100m"],
                "machine.room.memory is no multiple of 128 MiB",
            ),
            (
                &["web", "--image", "x", "--numa", "0-1"],
                "its processors and its memory, such as 0-3:2g",
            ),
            (
                &["web", "--image", "x", "-m", "1g", "--numa", "0:512m"],
                "machine.numa does not add up to the memory",
            ),
            (&["web", "--image", "x", "-v", "data"], "NAME:PATH"),
            (
                &["web", "--image", "x", "--ssh-key", private],
                "is a private key",
            ),
            (
                &["web", "--image", "x", "--user-data", "/nowhere"],
                "cannot read",
            ),
        ] {
            let error = format!("{:#}", spec(words).unwrap_err());
            assert!(error.contains(why), "{words:?}: {error}");
            assert!(!error.contains("hunter2"));
        }
    }
}
