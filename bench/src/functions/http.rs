//! A function through the HTTP API of a daemon, as clients of AWS Lambda reach it.

use super::client::{Client, LIMIT};
use super::pool::Language;
use crate::Bench;
use aleph_testkit::TestRoot;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where events go.
const INVOKE: &str = "/2015-03-31/functions/echo/invocations";

/// A daemon with a function that is ready.
pub(super) struct Daemon {
    root: TestRoot,
    child: Child,
    address: SocketAddr,
}

/// Where the CPU went, in clock ticks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ticks {
    pub(super) daemon: u64,
    pub(super) vmms: u64,
}

impl Daemon {
    /// Starts it and deploys the function `echo`.
    pub(super) fn start(bench: &Bench, language: Language) -> Result<Self> {
        let root = TestRoot::new()?;
        let recipe = language.runtime().parse();
        aleph_testkit::recipe_image(recipe.map_err(|_| anyhow::anyhow!("no such recipe"))?)?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = free.local_addr()?;
        drop(free);
        let config = format!("[executor]\naccel = \"tcg\"\n[functions]\nlisten = \"{address}\"\n");
        let path = root.path().join("aleph.toml");
        std::fs::write(&path, config)?;
        let child = Command::new(&bench.aleph)
            .arg("--root")
            .arg(root.path())
            .args(["up", "--no-network", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(root.path().join("daemon.log"))?)
            .spawn()?;
        let daemon = Self {
            root,
            child,
            address,
        };
        let mut client = daemon.client()?;
        let zip = base64::engine::general_purpose::STANDARD.encode(language.zip()?);
        let body = serde_json::json!({
            "FunctionName": "echo", "Runtime": language.runtime(), "Handler": language.handler(),
            "Role": "arn:aws:iam::000000000000:role/none", "Code": { "ZipFile": zip },
            "Timeout": 60,
        });
        let (status, answer) = client.ask("POST", "/2015-03-31/functions", &body.to_string())?;
        ensure!(status == 201, "create: {status} {answer}");
        let began = Instant::now();
        loop {
            let (_, answer) = client.ask("GET", "/2015-03-31/functions/echo/configuration", "")?;
            let answer: serde_json::Value = serde_json::from_str(&answer)?;
            match answer["State"].as_str() {
                Some("Active") => return Ok(daemon),
                Some("Pending") if began.elapsed() < LIMIT => {}
                _ => bail!("the function is not ready: {answer}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A connection, as soon as it takes one.
    pub(super) fn client(&self) -> Result<Client> {
        Client::connect(self.address, INVOKE)
    }

    /// So many clients at once for so long: how many events per second, and where the CPU went.
    pub(super) fn load(&self, clients: usize, time: Duration) -> Result<(f64, Ticks)> {
        let over = AtomicBool::new(false);
        let before = self.ticks()?;
        let began = Instant::now();
        let work = || {
            let mut client = self.client()?;
            let mut count = 0_u32;
            while !over.load(Ordering::Relaxed) {
                client.invoke()?;
                count += 1;
            }
            Ok::<_, anyhow::Error>(count)
        };
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
            std::thread::sleep(time);
            over.store(true, Ordering::Relaxed);
            let mut all = 0;
            for thread in threads {
                all += thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok::<_, anyhow::Error>(all)
        })?;
        let rate = f64::from(all) / began.elapsed().as_secs_f64();
        let after = self.ticks()?;
        Ok((
            rate,
            Ticks {
                daemon: after.daemon - before.daemon,
                vmms: after.vmms.saturating_sub(before.vmms),
            },
        ))
    }

    fn ticks(&self) -> Result<Ticks> {
        let mut vmms = 0;
        for entry in std::fs::read_dir(self.root.paths()?.vms())?.flatten() {
            let Ok(record) = std::fs::read(entry.path().join("vmm.json")) else {
                continue;
            };
            let record: serde_json::Value = serde_json::from_slice(&record)?;
            let pid = record["pid"].as_u64().context("a record without a pid")?;
            // One that has just ended counts no more.
            vmms += ticks_of(u32::try_from(pid)?).unwrap_or(0);
        }
        Ok(Ticks {
            daemon: ticks_of(self.child.id())?,
            vmms,
        })
    }

    /// Ends it, and looks for what is left.
    pub(super) fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?);
        rustix::process::kill_process(
            pid.context("a process number")?,
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon: {status}");
        let left = self.root.residue()?;
        ensure!(left.is_empty(), "it left {left:?}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// User and system time of a process, in clock ticks.
fn ticks_of(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("another form")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || {
        fields
            .next()
            .context("too short")?
            .parse::<u64>()
            .map_err(Into::into)
    };
    let (user, system): (Result<u64>, Result<u64>) = (next(), next());
    Ok(user? + system?)
}
