//! Sizes, and the memory that our own processes add for each VM.

use crate::Bench;
use crate::row::Row;
use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::time::Duration;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

#[allow(clippy::cast_precision_loss)]
pub(crate) fn size(bench: &Bench) -> Result<Vec<Row>> {
    let bundle = bench.root.bundle()?;
    let initrd = std::fs::metadata(bundle.initrd())?.len() as f64;
    let agent = aleph_image::AGENT.len() as f64;
    let image = bench.root.busybox()?;
    let mut memory = Vec::new();
    for _ in 0..5 {
        memory.push(our_memory(bench)?);
    }
    Ok(vec![
        Row::new("agent", "KiB", &[agent / KIB]).at_most(1280.0),
        Row::new("initramfs with agent and modules", "KiB", &[initrd / KIB]),
        Row::new("busybox image", "KiB", &[image.record().size as f64 / KIB]),
        Row::new("memory of our own process for one VM (Pss)", "MiB", &memory).at_most(5.0),
    ])
}

/// The proportional set size of one `aleph run` while its guest runs; QEMU's is not in it.
fn our_memory(bench: &Bench) -> Result<f64> {
    let mut child = Command::new(&bench.aleph)
        .arg("--root")
        .arg(bench.root.path())
        .args([
            "--accel",
            "tcg",
            "run",
            "--rm",
            "-qi",
            "busybox",
            "sh",
            "-c",
            "echo up; cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    std::io::Read::read_exact(&mut stdout, &mut [0; 3])?;
    let rollup = format!("/proc/{}/smaps_rollup", child.id());
    let pss = wait_until("its memory map", Duration::from_secs(5), || {
        let text = std::fs::read_to_string(&rollup).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    drop(child.stdin.take());
    child.wait()?;
    Ok(pss * KIB / MIB)
}
