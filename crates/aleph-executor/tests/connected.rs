//! A node that connects its VMs, over a hypervisor that does what a script says, in a network
//! namespace of each test's own.

use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::{Node, NodeConfig, Paths};
use aleph_testkit::{Namespace, NoImages, ScriptedDriver, TestRoot, wait_until};
use aleph_types::{Classify, ErrorClass, JobSpec, JobState, NetworkLimits};
use aleph_vm_networking::{Ipv6Config, NetworkConfig};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use rusqlite::{Connection, OpenFlags};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let trials = vec![
        trial(
            "a_vm_whose_end_is_not_journaled_holds_no_port_of_the_next_start",
            || on_a_small_disk(Duration::from_secs(3600), start_again),
        ),
        trial("a_vm_whose_end_is_not_journaled_is_swept", || {
            on_a_small_disk(Duration::from_millis(100), swept)
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A test, or an ignored one that says why it cannot run here.
fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new("/dev/net/tun").exists() {
        Some("needs /dev/net/tun")
    } else if Command::new("nft").arg("-v").output().is_err() {
        Some("needs the program nft")
    } else {
        None
    };
    let trial = Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// A node on a disk of 3 MiB.
struct SmallNode {
    node: Node,
    driver: Arc<ScriptedDriver>,
    state: std::path::PathBuf,
}

type Scenario = fn(SmallNode) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

/// A scenario on a node that sweeps so often, in a namespace of its own.
fn on_a_small_disk(sweep_interval: Duration, scenario: Scenario) -> Result<()> {
    let (root, namespace) = (TestRoot::empty()?, Namespace::new()?);
    let state = root.path().join("small");
    std::fs::create_dir(&state)?;
    let at = state.to_str().context("a path")?.to_owned();
    sh(&format!("mount -t tmpfs -o size=3m tmpfs {at}"))?;
    let tried = namespace.run(move || -> Result<()> {
        // Its threads are in the namespace too.
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut config = NodeConfig::new(Paths::new(Some(&state))?);
            config.sweep_interval = sweep_interval;
            config.network = Some(NetworkConfig {
                name: "aleph-test".into(),
                pool: aleph_vm_networking::DEFAULT_POOL,
                ipv6: Ipv6Config::Off,
                limits: NetworkLimits::default(),
                cool_down: Duration::from_secs(60),
                connections: 64,
                dns_port: None,
                run: config.paths.run().to_owned(),
            });
            let driver = ScriptedDriver::new([]);
            let over = Arc::clone(&driver);
            let node = Node::with_driver(config, Arc::new(NoImages), over).await?;
            let end = node.clone();
            let small = SmallNode {
                node,
                driver,
                state,
            };
            scenario(small).await?;
            for job in end.list(&Scope::All, &JobFilter::default()).jobs {
                end.destroy(job.id, true).await?;
            }
            end.shutdown().await;
            let left = Command::new("nft").args(["list", "ruleset"]).output()?;
            ensure!(left.stdout.is_empty(), "rules are left: {left:?}");
            Ok(())
        })
    });
    sh(&format!("umount -l {at}"))?;
    tried?
}

fn sh(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-euc", line]).output()?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(())
}

impl SmallNode {
    fn spec(argv: &str, ports: &[&str]) -> Result<JobSpec> {
        let mut spec = JobSpec::new("x", vec![argv.into()]);
        let network = serde_json::json!({ "ports": ports });
        spec.network = serde_json::from_value(network)?;
        Ok(spec)
    }

    async fn create(&self, start: bool, ports: &[&str]) -> Result<aleph_types::Job> {
        let options = CreateOptions {
            account: "default".into(),
            start,
            idempotency_key: None,
        };
        let created = self
            .node
            .create(Self::spec("sleep", ports)?, options)
            .await?;
        Ok(created.job)
    }

    async fn wait(&self, id: aleph_types::JobId, state: JobState) -> Result<()> {
        let waited = tokio::time::timeout(LIMIT, self.node.wait(id, &[state])).await;
        waited.with_context(|| format!("{:?}", self.node.job(id)))??;
        Ok(())
    }

    /// Has the disk full until this returns.
    async fn with_a_full_disk(&self, done: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let ballast = self.state.join("ballast");
        let filled = std::fs::write(&ballast, vec![1_u8; 8 << 20]);
        ensure!(filled.is_err(), "the disk is not full");
        // The journal has room of its own for a while.
        let mut felt = None;
        for _ in 0..500 {
            if let Err(error) = self.create(false, &[]).await {
                felt = Some(error.downcast::<aleph_executor::NodeError>()?.class());
                break;
            }
        }
        ensure!(felt == Some(ErrorClass::Capacity), "{felt:?}");
        done().await?;
        std::fs::remove_file(&ballast)?;
        Ok(())
    }

    /// VMs that the journal knows.
    fn rows(&self) -> Result<u32> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let journal = Connection::open_with_flags(self.state.join("state.db"), flags)?;
        Ok(journal.query_row("SELECT count(*) FROM vms", [], |row| row.get(0))?)
    }

    /// A job that publishes a port, and whose VM has ended without a word of it in the journal.
    async fn unjournaled(&self) -> Result<aleph_types::JobId> {
        let job = self.create(true, &["8080:80"]).await?;
        self.wait(job.id, JobState::Running).await?;
        ensure!(is_kept(8080), "the port of a VM that runs");
        self.with_a_full_disk(async || {
            self.driver.end_all();
            self.wait(job.id, JobState::Failed).await?;
            ensure!(is_kept(8080), "what the journal has is taken");
            // It says so to whoever asks, and nothing has come of asking.
            let refused = self.create(true, &["8080:80"]).await;
            ensure!(refused.is_err(), "{refused:?}");
            Ok(())
        })
        .await?;
        Ok(job.id)
    }
}

/// Whether nobody else can have a port of this thread's namespace.
fn is_kept(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err()
}

fn start_again(small: SmallNode) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>> {
    Box::pin(async move {
        let job = small.unjournaled().await?;
        assert_eq!(small.rows()?, 1);
        small.node.start(job).await?;
        small.wait(job, JobState::Running).await?;
        assert_eq!(small.rows()?, 1, "the VM that runs");
        assert!(is_kept(8080));
        Ok(())
    })
}

fn swept(small: SmallNode) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>> {
    Box::pin(async move {
        small.unjournaled().await?;
        wait_until("a sweep", LIMIT, || {
            (small.rows().ok()? == 0 && !is_kept(8080)).then_some(())
        });
        let other = small.create(true, &["8080:80"]).await?;
        small.wait(other.id, JobState::Running).await
    })
}
