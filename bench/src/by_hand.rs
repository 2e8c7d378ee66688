//! The reference for a cold boot: the same QEMU with the same kernel, initramfs and image,
//! started by a shell script that knows nothing of Aleph.
//!
//! The script hands QEMU's agent port the very frames that the node would send, from a file,
//! and ends when QEMU does, which the guest's own power-off brings about.

use crate::Bench;
use aleph_executor::guest::ExecRequest;
use aleph_executor::qemu::argv::{Begin, Machine, Ram, argv};
use aleph_executor::qemu::block::Drive;
use aleph_guest_proto::{
    CONTROL, Exec, ListBuf, MARK, Mounts, Root, Setup, ToGuest, Upper, Versions,
};
use aleph_types::{Resources, VmId};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is changed from the boot as the node does it, to see what it wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variant {
    /// Words to leave out of the kernel's command line.
    pub(crate) without: Option<&'static str>,
    /// Boot the compressed kernel.
    pub(crate) compressed_kernel: bool,
    /// Another emulated processor.
    pub(crate) cpu: Option<&'static str>,
    /// An initramfs of the same content in another form.
    pub(crate) initrd: Option<PathBuf>,
    /// An image of the same content in another form, and its filesystem.
    pub(crate) image: Option<(PathBuf, &'static str)>,
}

/// A script that boots a VM by hand, runs `true` in it and ends.
pub(crate) struct ByHand {
    script: PathBuf,
}

impl ByHand {
    pub(crate) fn new(bench: &Bench, dir: &Path, variant: &Variant) -> Result<Self> {
        let bundle = bench.root.bundle()?;
        let image = bench.root.busybox()?;
        let kernel = match bundle.vmlinux() {
            Some(vmlinux) if bundle.pvh() && !variant.compressed_kernel => vmlinux,
            _ => bundle.kernel(),
        };
        let initrd = variant.initrd.as_deref().unwrap_or(bundle.initrd());
        let (rootfs, filesystem) = match &variant.image {
            Some((path, filesystem)) => (path.clone(), (*filesystem).to_owned()),
            None => (image.rootfs(), image.filesystem().to_string()),
        };
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("frames"), frames(&filesystem)?)?;

        let driver_words = bench.executor_kernel_arguments()?;
        let words = format!("{} {driver_words}", aleph_executor::executor::COMMAND_LINE);
        let words: Vec<&str> = words
            .split(' ')
            .filter(|w| variant.without.is_none_or(|no| !w.starts_with(no)))
            .collect();
        let line = argv(&Machine {
            vm: VmId::from_bits(1).context("an id")?,
            accelerator: aleph_executor::accel::Accelerator::Tcg,
            resources: Resources::default(),
            begin: Begin::Boot(&words.join(" ")),
            ram: Ram::Own,
            disks: &[Drive::raw("rootfs", true)],
            nics: &[],
            links: &[],
        });
        let mut script = String::from("#!/bin/bash\ncd \"$(dirname \"$0\")\"\n");
        script.push_str(
            "rm -f fifo; mkfifo fifo; exec 9<>fifo; cat frames >&9\nexec qemu-system-x86_64",
        );
        for word in by_path(line, kernel, initrd, &rootfs, variant.cpu) {
            script.push_str(&format!(" '{word}'"));
        }
        script.push_str(" <&9 >/dev/null\n");
        let path = dir.join("boot.sh");
        std::fs::write(&path, script)?;
        Ok(Self { script: path })
    }

    /// Boots once, and says how long the script took.
    pub(crate) fn run(&self) -> Result<Duration> {
        let began = Instant::now();
        let status = Command::new("timeout")
            .args(["60", "bash"])
            .arg(&self.script)
            .stdin(Stdio::null())
            .status()?;
        ensure!(
            status.success(),
            "{} ended with {status}",
            self.script.display()
        );
        Ok(began.elapsed())
    }
}

/// The same line with paths for descriptors, the agent on standard input and output, and
/// without a control socket.
fn by_path(
    line: Vec<String>,
    kernel: &Path,
    initrd: &Path,
    rootfs: &Path,
    cpu: Option<&str>,
) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut line = line.into_iter().peekable();
    while let Some(word) = line.next() {
        let next = line.peek().cloned().unwrap_or_default();
        let replaced = match (word.as_str(), next.as_str()) {
            ("-kernel", _) => Some(vec!["-kernel".into(), kernel.display().to_string()]),
            ("-initrd", _) => Some(vec!["-initrd".into(), initrd.display().to_string()]),
            ("-cpu", _) => cpu.map(|cpu| vec!["-cpu".into(), cpu.into()]),
            ("-serial", _) => Some(vec!["-serial".into(), "null".into()]),
            ("-mon" | "-add-fd", _) => Some(Vec::new()),
            ("-chardev", next) if next.contains("id=agent") => {
                Some(vec!["-chardev".into(), "stdio,id=agent,signal=off".into()])
            }
            ("-chardev", _) => Some(Vec::new()),
            ("-blockdev", next) => {
                let file = next
                    .split(',')
                    .map(|part| match part.strip_prefix("filename=") {
                        Some(_) => format!("filename={}", rootfs.display()),
                        None => part.to_owned(),
                    });
                Some(vec!["-blockdev".into(), file.collect::<Vec<_>>().join(",")])
            }
            _ => None,
        };
        match replaced {
            Some(replacement) => {
                words.extend(replacement);
                line.next();
            }
            None => words.push(word),
        }
    }
    words
}

fn frames(filesystem: &str) -> Result<Vec<u8>> {
    let mut frames = Vec::new();
    frames.extend_from_slice(&MARK);
    let hello = ToGuest::Hello {
        versions: Versions::OURS,
        nonce: *b"sixteen by hand.",
    };
    hello.encode(CONTROL, &mut frames)?;
    let setup = Setup {
        hostname: b"by-hand",
        unix_ns: 1_700_000_000_000_000_000,
        entropy: &[42; 64],
        root: Root {
            image_serial: b"rootfs",
            filesystem: filesystem.as_bytes(),
            upper: Upper::Memory,
        },
        poweroff_on_hangup: true,
        network: None,
        mounts: Mounts::NONE,
    };
    ToGuest::Setup(setup).encode(CONTROL, &mut frames)?;
    let request = ExecRequest::new(["true"]);
    let (argv, env) = (ListBuf::new(&request.argv)?, ListBuf::default());
    let exec = Exec {
        argv: argv.as_list(),
        env: env.as_list(),
        workdir: b"",
        user: b"",
        terminal: None,
        stdin: false,
        main: true,
        keep: false,
    };
    ToGuest::Exec(exec).encode(1, &mut frames)?;
    Ok(frames)
}
