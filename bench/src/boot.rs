//! Cold boots: as a user sees them, beside the same by hand, by phase, and what each choice
//! wins.

use crate::Bench;
use crate::by_hand::{ByHand, Variant};
use crate::row::Row;
use aleph_executor::guest::{BootReport, ExecRequest};
use aleph_executor::{Boot, Executor, ExecutorConfig};
use aleph_types::{JobId, JobSpec};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MILLI: f64 = 1000.0;
/// Boots in a row that must all come up.
const IN_A_ROW: usize = 100;
const PAIRS: usize = 15;
const EACH: usize = 5;

pub(crate) fn boot(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.root.path().join("by-hand");
    let by_hand = ByHand::new(bench, &dir.join("same"), &Variant::default())?;
    by_hand.run().context("the reference does not boot")?;
    bench.aleph_run()?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        theirs.push(by_hand.run()?.as_secs_f64() * MILLI);
        ours.push(bench.aleph_run()?.as_secs_f64() * MILLI);
    }
    let mut rows = vec![
        Row::new("cold boot: aleph run --rm busybox true", "ms", &ours)
            .against("the same by a shell script", &theirs)
            .at_most_times(1.10),
    ];
    rows.extend(phases(bench)?);
    rows.extend(choices(bench, &by_hand)?);
    rows.push(in_a_row(bench));
    Ok(rows)
}

impl Bench {
    /// One whole `aleph run`.
    pub(crate) fn aleph_run(&self) -> Result<Duration> {
        let began = Instant::now();
        let output = Command::new(&self.aleph)
            .arg("--root")
            .arg(self.root.path())
            .args(["--accel", "tcg", "run", "--rm", "-q", "busybox", "true"])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success(),
            "aleph run: {}: {said}",
            output.status
        );
        Ok(began.elapsed())
    }

    pub(crate) async fn executor(&self) -> Result<Executor> {
        let config = ExecutorConfig {
            accelerator: Some(aleph_executor::accel::Accelerator::Tcg),
            ..ExecutorConfig::default()
        };
        Ok(Executor::open(self.root.paths()?, config).await?)
    }

    pub(crate) fn executor_kernel_arguments(&self) -> Result<String> {
        Ok(self
            .runtime
            .block_on(self.executor())?
            .driver()
            .kernel_arguments())
    }

    pub(crate) fn open_boot(&self) -> Result<Boot> {
        let (bundle, image) = (self.root.bundle()?, self.root.busybox()?);
        let kernel = bundle
            .vmlinux()
            .context("the bundle has no uncompressed kernel")?;
        Ok(Boot {
            kernel: File::open(kernel)?,
            initrd: File::open(bundle.initrd())?,
            filesystem: image.filesystem().to_string(),
            image: File::open(image.rootfs())?,
        })
    }
}

/// Where the time goes, as host and guest clocks see it together.
fn phases(bench: &Bench) -> Result<Vec<Row>> {
    let mut reports: Vec<(BootReport, Duration, Duration)> = Vec::new();
    for _ in 0..EACH {
        reports.push(bench.runtime.block_on(one_life(bench))?);
    }
    type Phase = fn(&(BootReport, Duration, Duration)) -> Duration;
    let phases: [(&str, Phase); 7] = [
        (
            "phase: VMM process and firmware, to the kernel's first clock",
            |r| r.0.before_kernel,
        ),
        ("phase: kernel, to the agent's first instruction", |r| {
            r.0.kernel
        }),
        ("phase: agent, devices and channel modules", |r| r.0.agent),
        ("phase: agent, root filesystem", |r| r.0.root),
        ("phase: all of the above", |r| r.0.total),
        ("phase: command true, fork to reported exit", |r| r.1),
        ("phase: end of the VM and removal of all it had", |r| r.2),
    ];
    Ok(phases
        .into_iter()
        .map(|(name, phase)| {
            let samples: Vec<f64> = reports
                .iter()
                .map(|r| phase(r).as_secs_f64() * MILLI)
                .collect();
            Row::new(name, "ms", &samples)
        })
        .collect())
}

async fn one_life(bench: &Bench) -> Result<(BootReport, Duration, Duration)> {
    let executor = bench.executor().await?;
    let job = JobSpec::new("busybox", vec!["true".into()]);
    let vm = executor.create(JobId::random(), &job, bench.open_boot()?)?;
    vm.start(None).await?;
    let report = vm.running().await?;
    let began = Instant::now();
    vm.exec(&ExecRequest::new(["true"]))?.collect().await?;
    let ran = began.elapsed();
    let began = Instant::now();
    vm.kill().await?;
    vm.destroy().await?;
    Ok((report, ran, began.elapsed()))
}

/// What each choice wins: the boot by hand as the node does it, against the same without it.
fn choices(bench: &Bench, as_it_is: &ByHand) -> Result<Vec<Row>> {
    let dir = bench.root.path().join("by-hand");
    let without = |without| Variant {
        without: Some(without),
        ..Variant::default()
    };
    let cpu = |cpu| Variant {
        cpu: Some(cpu),
        ..Variant::default()
    };
    let mut variants = vec![
        (
            "the compressed kernel",
            Variant {
                compressed_kernel: true,
                ..Variant::default()
            },
        ),
        ("cryptomgr self-tests", without("cryptomgr.notests")),
        ("lock prefixes patched out", without("noreplace-smp")),
        ("tracefs set up", without("initcall_blacklist")),
        ("-cpu max", cpu("max")),
        ("mitigations", without("mitigations=off")),
    ];
    let initrd = bench.root.bundle()?.initrd().to_owned();
    for (name, program) in [
        ("a gzip initramfs", "gzip -9"),
        ("an lz4 initramfs", "lz4 -l -9"),
    ] {
        let packed = dir.join(program.split(' ').next().unwrap_or(program));
        let pack = format!(
            "{program} -c '{}' > '{}'",
            initrd.display(),
            packed.display()
        );
        if Command::new("sh")
            .args(["-c", &pack])
            .stderr(Stdio::null())
            .status()?
            .success()
        {
            variants.push((
                name,
                Variant {
                    initrd: Some(packed),
                    ..Variant::default()
                },
            ));
        }
    }
    let mut rows = Vec::new();
    for (number, (name, variant)) in variants.into_iter().enumerate() {
        let other = ByHand::new(bench, &dir.join(number.to_string()), &variant)?;
        let (mut with, mut instead) = (Vec::new(), Vec::new());
        for _ in 0..EACH {
            with.push(as_it_is.run()?.as_secs_f64() * MILLI);
            instead.push(other.run()?.as_secs_f64() * MILLI);
        }
        rows.push(
            Row::new("choice: boot by hand as it is", "ms", &with)
                .against(format!("with {name}"), &instead),
        );
    }
    Ok(rows)
}

/// Counts the boots that did not come up; there are no retries to hide one.
fn in_a_row(bench: &Bench) -> Row {
    let failed: Vec<String> = (0..IN_A_ROW)
        .filter_map(|_| bench.aleph_run().err().map(|e| e.to_string()))
        .collect();
    for why in &failed {
        eprintln!("a boot failed: {why}");
    }
    #[allow(clippy::cast_precision_loss)]
    let count = failed.len() as f64;
    let row = Row::new(
        "cold boots that failed, hung or were retried",
        "boots",
        &[count],
    );
    Row {
        n: IN_A_ROW,
        reference: format!("of {IN_A_ROW} in a row"),
        ..row.at_most(0.0)
    }
}
