//! A node with one full VM, and what its guest does: it writes numbered blocks one after the other, has each
//! made durable, and says so.

use aleph_executor::accel::Accelerator;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, Scope};
use aleph_executor::volumes::{BackendChoice, Import, NewVolume, Volumes};
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::{ShellGuest, TestImages, TestRoot};
use aleph_types::{
    CloudInitSpec, DiskImageFormat, Filesystem, Job, JobId, JobSpec, JobState, MiB, Mode,
    NetworkMode, Volume, VolumeAccess,
};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A limit that only a hang exceeds.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// What a guest writes at a time.
pub(crate) const BLOCK: u64 = 4096;

pub(crate) const ACCOUNT: &str = "a";

pub(crate) const fn all() -> Scope {
    Scope::All
}

/// A test with such a guest, which is ignored where there can be none.
pub(crate) fn trial<F>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = Result<()>>,
{
    let trial = Trial::test(name, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        Ok(runtime
            .block_on(test())
            .map_err(|error| format!("{error:?}"))?)
    });
    let needs = ["/usr/share/OVMF", "/usr/bin/qemu-img"];
    match needs.iter().find(|path| !Path::new(path).exists()) {
        None => trial,
        Some(path) => trial
            .with_kind(format!("needs {path}"))
            .with_ignored_flag(true),
    }
}

/// Opens the node of a root. One that was there a moment ago may still hold it.
pub(crate) async fn open(root: &TestRoot, backend: BackendChoice) -> Result<Node> {
    open_with(root, |config| config.volumes.backend = backend).await
}

/// The same with a configuration that differs.
pub(crate) async fn open_with(root: &TestRoot, differs: impl Fn(&mut NodeConfig)) -> Result<Node> {
    let began = Instant::now();
    loop {
        let mut config = NodeConfig::new(root.paths()?);
        config.executor.accelerator = Some(Accelerator::Tcg);
        config.reserved_memory = MiB(0);
        differs(&mut config);
        match Node::open(config, Arc::new(TestImages::new(root)?)).await {
            Ok(node) => return Ok(node),
            Err(error) if began.elapsed() > LIMIT => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Does something with a node's volumes, which blocks.
pub(crate) async fn volumes<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce(&Volumes) -> Result<T> + Send + 'static,
) -> Result<T> {
    let volumes = node.volumes().clone();
    tokio::task::spawn_blocking(move || work(&volumes)).await?
}

pub(crate) async fn volume(node: &Node, name: &str) -> Result<Volume> {
    let name = name.to_owned();
    volumes(node, move |v| Ok(v.find(&all(), &name)?)).await
}

/// A volume as a node's configuration says.
pub(crate) fn new<'a>(account: &'a str, name: &'a str) -> NewVolume<'a> {
    NewVolume {
        account,
        name,
        encrypted: None,
    }
}

pub(crate) async fn empty(node: &Node, name: &'static str, size: u32) -> Result<()> {
    volumes(node, move |v| {
        let account = ACCOUNT;
        v.create(new(account, name), MiB(size), Filesystem::None)?;
        Ok(())
    })
    .await
}

/// Waits for a condition, without holding up the node in this process.
pub(crate) async fn until(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while !condition().await? {
        ensure!(began.elapsed() < LIMIT, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A VM and its guest, whichever node has it just now.
pub(crate) struct Guest {
    pub(crate) job: JobId,
    /// How much of its console was looked at.
    seen: usize,
    questions: u32,
}

impl Guest {
    /// Makes a VM whose guest has QEMU's agent, and waits for its shell.
    pub(crate) async fn boot(root: &TestRoot, node: &Node) -> Result<Self> {
        Self::boot_as(root, node, |_| ()).await
    }

    /// The same of one that differs.
    pub(crate) async fn boot_as(
        root: &TestRoot,
        node: &Node,
        differs: impl FnOnce(&mut JobSpec),
    ) -> Result<Self> {
        let dir = root.path().join("guest");
        std::fs::create_dir(&dir)?;
        let path = dir.join("disk");
        tokio::task::spawn_blocking(move || {
            ShellGuest::with_guest_agent(&dir)?.disk(&dir.join("disk"))
        })
        .await??;
        let image = File::open(path)?;
        volumes(node, move |v| {
            let how = Import {
                format: Some(DiskImageFormat::Raw),
                size: None,
            };
            let (account, name) = (ACCOUNT, "image");
            v.import(new(account, name), &image, how)?;
            Ok(())
        })
        .await?;
        let mut spec = JobSpec::new("image", Vec::new());
        spec.name = Some("web".into());
        spec.mode = Mode::Vm;
        spec.cloud_init = Some(CloudInitSpec::default());
        spec.network.mode = Some(NetworkMode::None);
        spec.resources.memory = MiB(256);
        spec.resources.cpus = 1;
        differs(&mut spec);
        let options = CreateOptions {
            account: ACCOUNT.into(),
            start: true,
            idempotency_key: None,
        };
        let job = node.create(spec, options).await?.job.id;
        let mut guest = Self {
            job,
            seen: 0,
            questions: 0,
        };
        guest.ready(node).await?;
        Ok(guest)
    }

    /// Waits until the guest of a start listens.
    pub(crate) async fn ready(&mut self, node: &Node) -> Result<()> {
        let began = Instant::now();
        loop {
            let said = self.console(node).await?;
            if let Some(at) = said[self.seen..].find("\nready\n") {
                self.seen += at + 7;
                return Ok(());
            }
            let job = node.job(self.job)?;
            let runs = matches!(
                job.state,
                JobState::Preparing | JobState::Starting | JobState::Running | JobState::Unknown
            );
            ensure!(runs && began.elapsed() < LIMIT, "{job:?}: {said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a node that was opened over it has it.
    pub(crate) async fn adopted(&self, node: &Node) -> Result<Job> {
        until("the VM", async || {
            Ok(node.job(self.job)?.state == JobState::Running && node.input(self.job)?.is_some())
        })
        .await?;
        Ok(node.job(self.job)?)
    }

    /// All that it wrote to its console that was heard.
    async fn console(&self, node: &Node) -> Result<String> {
        let mut reader = node.logs(self.job, LogQuery::default()).await?;
        let mut text = Vec::new();
        while let Some(entry) = reader.next().await? {
            text.extend(entry.bytes);
        }
        Ok(String::from_utf8_lossy(&text).replace('\r', ""))
    }

    /// What tells of a guest that does not answer: how its job and its VM are, and the end of its console, twice.
    async fn last_words(&self, node: &Node) -> String {
        let job = node.job(self.job).map(|job| job.state);
        let mut ends = Vec::new();
        for n in 0..2 {
            tokio::time::sleep(Duration::from_secs(2 * n)).await;
            let said = self.console(node).await.unwrap_or_default();
            ends.push(said.chars().rev().take(500).collect::<Vec<_>>());
        }
        let [before, after] = [0, 1].map(|n| ends[n].iter().rev().collect::<String>());
        format!("{job:?}; its console: {before:?}; two seconds later: {after:?}")
    }

    async fn types(&self, node: &Node, line: &str) -> Result<()> {
        ensure!(line.len() < 4095, "a terminal takes no longer lines");
        let input = node.input(self.job)?.context("no console")?;
        input.write(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }

    /// Runs a line in it; gives what that wrote, without what others wrote meanwhile.
    pub(crate) async fn run(&mut self, node: &Node, line: &str) -> Result<String> {
        self.questions += 1;
        let mark = format!("q{}q", self.questions);
        // So that the mark is not in the question.
        let (one, rest) = mark.split_at(1);
        let line = format!("m={one}; said=$({line}); echo \"${{m}}{rest}:$?:$said:${{m}}{rest}\"");
        self.types(node, &line).await?;
        let mut found = None;
        let begin = format!("{mark}:");
        let what = format!("an answer to {line:?}");
        let answered = until(&what, async || {
            let said = self.console(node).await?;
            let Some((_, answer)) = said.split_once(&begin) else {
                return Ok(false);
            };
            found = answer
                .split_once(&format!(":{mark}"))
                .map(|(answer, _)| answer.to_owned());
            Ok(found.is_some())
        });
        if let Err(error) = answered.await {
            return Err(error.context(self.last_words(node).await));
        }
        let answer = found.context("no answer")?;
        let (status, said) = answer.split_once(':').context("no status")?;
        ensure!(status == "0", "{line:?} ended with {status}: {said}");
        Ok(said.trim().to_owned())
    }

    /// The device of a disk, once it is there.
    pub(crate) async fn device(&mut self, node: &Node, serial: &str) -> Result<String> {
        let line = format!(
            "n=0; until grep -l {serial} /sys/block/vd*/serial; do n=$((n+1)); test $n -lt 500 || break; sleep 0.1; done"
        );
        let said = self.run(node, &line).await?;
        let device = said.split('/').nth(3).context("no disk")?;
        Ok(format!("/dev/{device}"))
    }

    /// Waits until it has no disk of this serial number any more.
    pub(crate) async fn lacks(&mut self, node: &Node, serial: &str) -> Result<()> {
        let line = format!(
            "n=0; while grep -q {serial} /sys/block/vd*/serial; do n=$((n+1)); test $n -lt 500 || break; sleep 0.1; done; test $n -lt 500"
        );
        self.run(node, &line).await.map(drop)
    }

    /// Has it write blocks to a device from now on, from this one on: each is told once it is durable.
    pub(crate) async fn writes(
        &self,
        node: &Node,
        name: &str,
        device: &str,
        from: u64,
    ) -> Result<()> {
        // It has this very disk open all the time: one that is gone is no name for a file of the guest's own.
        let line = format!(
            "touch /w-{name}; (exec 3<>{device}; n={from}; while test -e /w-{name}; do \
             yes \"block $n of {name}\" | head -c {BLOCK} | \
             dd of=/proc/self/fd/3 bs={BLOCK} seek=$n conv=fsync,notrunc 2>/dev/null || break; \
             echo \"durable {name} $n.\"; n=$((n+1)); done; \
             echo \"stopped {name}.\"; rm -f /w-{name}) &"
        );
        self.types(node, &line).await
    }

    /// Whether something that it writes so is not at its end.
    pub(crate) async fn is_writing(&mut self, node: &Node, name: &str) -> Result<bool> {
        let line = format!("test -e /w-{name} && echo writes || echo rests");
        Ok(self.run(node, &line).await? == "writes")
    }

    /// Waits until that came to its end by itself, since its disk is gone or fails, and gives the last block that
    /// it was told to be durable.
    pub(crate) async fn ended(&mut self, node: &Node, name: &str) -> Result<u64> {
        until("the writer's end", async || {
            Ok(!self.is_writing(node, name).await?)
        })
        .await?;
        let durable = self.durable(node, name).await?;
        durable.context("nothing was written")
    }

    /// Has it stop, and gives the last block that it was told to be durable.
    pub(crate) async fn stops(&mut self, node: &Node, name: &str) -> Result<u64> {
        let last = format!("stopped {name}.");
        let before = self.console(node).await?.matches(&last).count();
        self.types(node, &format!("rm -f /w-{name}")).await?;
        until("the writer's end", async || {
            Ok(self.console(node).await?.matches(&last).count() > before)
        })
        .await?;
        self.durable(node, name)
            .await?
            .context("nothing was written")
    }

    /// The last block that it was told to be durable; what it said while no node listened is missing.
    pub(crate) async fn durable(&self, node: &Node, name: &str) -> Result<Option<u64>> {
        let said = self.console(node).await?;
        let begin = format!("durable {name} ");
        let said = said.split(&begin).skip(1);
        let numbers = said.filter_map(|rest| rest.split_once('.')?.0.parse().ok());
        Ok(numbers.max())
    }

    /// Waits until it has written so many more blocks.
    pub(crate) async fn goes_on(&self, node: &Node, name: &str, more: u64) -> Result<u64> {
        let before = self.durable(node, name).await?.unwrap_or(0);
        let mut now = before;
        until("more blocks", async || {
            now = self.durable(node, name).await?.unwrap_or(0);
            Ok(now >= before + more)
        })
        .await?;
        Ok(now)
    }
}

/// Checks that an image has each block up to the last one that is durable, then some that were on their way, and
/// nothing behind them: one after the other, as they were written.
pub(crate) fn check(image: &File, name: &str, durable: u64) -> Result<u64> {
    let length = image.metadata()?.len();
    let mut block = vec![0; usize::try_from(BLOCK)?];
    let mut missing = None;
    for n in 0..length / BLOCK {
        image.read_exact_at(&mut block, n * BLOCK)?;
        let line = format!("block {n} of {name}\n");
        let is_whole = line.bytes().cycle().zip(&block).all(|(a, b)| a == *b);
        match missing {
            None if is_whole => {}
            None => {
                ensure!(
                    n > durable,
                    "block {n} of {name} is lost: {durable} is durable"
                );
                missing = Some(n);
                // It may be half there, but nothing after it.
            }
            Some(first) => ensure!(
                block.iter().all(|byte| *byte == 0),
                "block {n} of {name} is there and block {first} is not"
            ),
        }
    }
    match missing {
        Some(first) => Ok(first),
        None => bail!(
            "all {} blocks are full: the writer was not slow enough",
            length / BLOCK
        ),
    }
}

/// What a volume, or a snapshot of it, holds.
pub(crate) async fn image(node: &Node, name: &str, snapshot: Option<&str>) -> Result<File> {
    let (name, snapshot) = (name.to_owned(), snapshot.map(str::to_owned));
    volumes(node, move |v| {
        let id = v.find(&all(), &name)?.id;
        let image = v.export(id, snapshot.as_deref(), DiskImageFormat::Raw)?;
        Ok(image.file().context("no file")?.try_clone()?)
    })
    .await
}

/// Whether somebody writes to a volume.
pub(crate) fn is_written(volume: &Volume) -> bool {
    let writes = |access| access == VolumeAccess::Exclusive;
    volume.leases.iter().any(|lease| writes(lease.access))
}

/// Checks that nothing is left of any change: no lease, and no file that no volume needs.
pub(crate) async fn nothing_is_left(root: &Path, node: &Node) -> Result<()> {
    let all_of_them = volumes(node, |v| Ok(v.list(&all(), true)?)).await?;
    for volume in &all_of_them {
        ensure!(volume.leases.is_empty(), "{volume:?}");
        let id = volume.id;
        volumes(node, move |v| Ok(v.remove(id, true)?)).await?;
    }
    for folder in ["layers", "work"] {
        let folder = root.join("volumes").join(folder);
        let left: Vec<_> = std::fs::read_dir(&folder)?.flatten().collect();
        ensure!(left.is_empty(), "{left:?} stays");
    }
    Ok(())
}
