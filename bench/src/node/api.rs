//! What the API costs, with 10,000 jobs in the journal.
//!
//! The daemon of `aleph up` serves in this process, on one core, over a driver that is called and
//! launches nothing: a create is measured up to that call. Clients have the other core.

use super::client::Client;
use super::cores::{Cores, pin};
use super::durable::Durable;
use super::{MICRO, at_once};
use crate::row::Row;
use aleph_control::{Config, Daemon};
use aleph_executor::hypervisor::{AdoptError, BoxFuture, Driver, Launch, LaunchError, Vmm};
use aleph_executor::node::{ImageDefaults, Images, Prepared};
use aleph_executor::process::Identity;
use aleph_executor::{Boot, Node};
use aleph_testkit::TestRoot;
use aleph_types::{ErrorClass, Job, JobSpec, MiB, Problem};
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

const JOBS: usize = 10_000;
/// Connections at once where a rate is measured.
const CONNECTIONS: usize = 8;
/// Rounds of each rate, in turn with its reference.
const ROUNDS: usize = 10;
/// Requests of one such round.
const GETS: usize = 5000;
const CREATES: usize = 100;
/// Requests one after the other, for how long one takes.
const SINGLE_GETS: usize = 5000;
const SINGLE_CREATES: usize = 300;

const CREATE: &str = r#"{"image": "x", "command": ["true"]}"#;

pub(super) fn api() -> Result<Vec<Row>> {
    let limit = open_many_files()?;
    let root = TestRoot::empty()?;
    let cores = Cores::choose()?;
    let server = Server::start(root.path(), cores.server)?;
    let clients = Clients {
        socket: server.socket.clone(),
        core: cores.client,
        driver: Arc::clone(&server.driver),
        durable: root.path().join("durable.db"),
    };
    let jobs = clients.fill()?;
    let mut rows = clients.gets(&jobs)?;
    rows.extend(clients.creates()?);
    server.stop()?;
    setrlimit(Resource::Nofile, limit)?;
    let left = root.residue()?;
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(rows)
}

/// Those who ask, all on one core.
struct Clients {
    socket: PathBuf,
    core: usize,
    driver: Arc<Doorstep>,
    durable: PathBuf,
}

impl Clients {
    fn begin(&self) -> Result<Client> {
        pin(self.core)?;
        Client::connect(&self.socket)
    }

    /// Makes the jobs that are there.
    fn fill(&self) -> Result<Vec<String>> {
        at_once(
            32,
            &[(); JOBS],
            || self.begin(),
            |client, ()| Ok(create(client, false)?.0),
        )
    }

    fn gets(&self, jobs: &[String]) -> Result<Vec<Row>> {
        let paths: Vec<String> = jobs.iter().map(|id| format!("/v1/jobs/{id}")).collect();
        let health = vec!["/healthz".to_owned()];
        let (mut ours, mut constant) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let from = round * GETS % paths.len();
            constant.push(self.rate(&health, 0)?);
            ours.push(self.rate(&paths, from)?);
        }
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let single = || -> Result<()> {
            let mut client = self.begin()?;
            for path in paths.iter().cycle().take(SINGLE_GETS) {
                other.push(micros(client.want(200, "GET", "/healthz", "")?.took));
                one.push(micros(client.want(200, "GET", path, "")?.took));
            }
            Ok(())
        };
        alone(single)?;
        let reference = "GET /healthz, a constant, of the same daemon";
        Ok(vec![
            Row::new(
                "API, 10,000 jobs: GET /v1/jobs/{id}, one core, 8 connections",
                "1/s",
                &ours,
            )
            .against(reference, &constant),
            Row::new("the same: one at a time", "µs", &one).against(reference, &other),
        ])
    }

    /// Requests in a second, of one round of these paths.
    fn rate(&self, paths: &[String], from: usize) -> Result<f64> {
        let round: Vec<&String> = paths.iter().cycle().skip(from).take(GETS).collect();
        let began = Instant::now();
        at_once(
            CONNECTIONS,
            &round,
            || self.begin(),
            |client, path| client.want(200, "GET", path, "").map(drop),
        )?;
        Ok(count(GETS) / began.elapsed().as_secs_f64())
    }

    fn creates(&self) -> Result<Vec<Row>> {
        let mut durable = Durable::open(&self.durable)?;
        let (mut answered, mut called, mut written) = (Vec::new(), Vec::new(), Vec::new());
        // They all wait at the driver until the end: a filesystem looks for free inodes far
        // longer where many were freed a moment ago, which would be what is measured.
        let mut jobs = Vec::new();
        let single = || -> Result<()> {
            let mut client = self.begin()?;
            for _ in 0..SINGLE_CREATES {
                written.push(micros(durable.write()?));
                let began = Instant::now();
                let (id, took) = create(&mut client, true)?;
                answered.push(micros(took));
                let call = self.driver.next_call()?;
                called.push(micros(call.saturating_duration_since(began)));
                jobs.push(id);
            }
            Ok(())
        };
        alone(single)?;
        let (mut rates, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for _ in 0..CREATES {
                durable.write()?;
            }
            writes.push(count(CREATES) / began.elapsed().as_secs_f64());
            let began = Instant::now();
            let made = at_once(
                CONNECTIONS,
                &[(); CREATES],
                || self.begin(),
                |client, ()| Ok(create(client, true)?.0),
            )?;
            let mut last = began;
            for _ in &made {
                last = last.max(self.driver.next_call()?);
            }
            let took = last.saturating_duration_since(began);
            rates.push(count(CREATES) / took.as_secs_f64());
            jobs.extend(made);
        }
        self.driver.send_away();
        at_once(
            CONNECTIONS,
            &jobs,
            || self.begin(),
            |client, id| {
                let path = format!("/v1/jobs/{id}?force=true");
                client.want(204, "DELETE", &path, "").map(drop)
            },
        )?;
        let reference = "one durable SQLite transaction on the same disk";
        Ok(vec![
            Row::new(
                "API, 10,000 jobs: POST /v1/jobs?start=true, one at a time, answered",
                "µs",
                &answered,
            )
            .against(reference, &written),
            Row::new("the same, to the call of the driver", "µs", &called)
                .against(reference, &written),
            Row::new(
                "the same, to the call of the driver, one core, 8 connections",
                "1/s",
                &rates,
            )
            .against(format!("{reference}, one after the other"), &writes),
        ])
    }
}

/// Makes a job. Gives its id, and how long the answer took.
fn create(client: &mut Client, start: bool) -> Result<(String, Duration)> {
    let path = format!("/v1/jobs?start={start}");
    let made = client.want(201, "POST", &path, CREATE)?;
    let job: Job = serde_json::from_slice(&made.body)?;
    Ok((job.id.to_string(), made.took))
}

/// Each job that waits at the driver has half a dozen files open. Gives the limit as it was, for
/// what this process starts later.
fn open_many_files() -> Result<Rlimit> {
    let before = getrlimit(Resource::Nofile);
    let current = before.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..before })?;
    Ok(before)
}

/// On a thread of its own, so that only that one is kept on a core.
fn alone(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_| anyhow!("a thread panicked"))?
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * MICRO
}

#[allow(clippy::cast_precision_loss)]
fn count(n: usize) -> f64 {
    n as f64
}

/// The daemon, with all its threads on one core.
struct Server {
    socket: PathBuf,
    driver: Arc<Doorstep>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Server {
    fn start(root: &Path, core: usize) -> Result<Self> {
        let mut config = Config::default();
        config.node.root = Some(root.to_owned());
        config.limits.reserved_memory = MiB(0);
        config.network.enabled = Some(false);
        config.limits.overcommit.cpus = 1e6;
        config.limits.overcommit.memory = 1e6;
        let (driver, (stop, stopped)) = (Arc::new(Doorstep::default()), oneshot::channel());
        let (tell, told) = mpsc::channel();
        let node_driver = Arc::clone(&driver);
        let serve = move || -> Result<()> {
            pin(core)?;
            // As `aleph up` makes it; it has as many threads as there are cores to use.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let images = Arc::new(NoImages);
                let node = Box::pin(Node::with_driver(
                    config.node_config()?,
                    images,
                    node_driver,
                ))
                .await?;
                let daemon = Box::pin(Daemon::with_node(&config, node)).await?;
                let _ = tell.send(daemon.socket().to_owned());
                daemon
                    .run(async move {
                        let _ = stopped.await;
                    })
                    .await;
                Ok(())
            })
        };
        let thread = std::thread::spawn(serve);
        match told.recv() {
            Ok(socket) => Ok(Self {
                socket,
                driver,
                stop,
                thread,
            }),
            Err(_) => Err(match thread.join() {
                Ok(Err(error)) => error,
                _ => anyhow!("the daemon did not begin"),
            }),
        }
    }

    fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.thread
            .join()
            .map_err(|_| anyhow!("the daemon panicked"))?
    }
}

/// A driver that keeps those who come waiting, and sends them all away in the end.
struct Doorstep {
    calls: mpsc::Sender<Instant>,
    heard: Mutex<mpsc::Receiver<Instant>>,
    away: watch::Sender<()>,
}

impl Default for Doorstep {
    fn default() -> Self {
        let (calls, heard) = mpsc::channel();
        Self {
            calls,
            heard: Mutex::new(heard),
            away: watch::Sender::new(()),
        }
    }
}

impl Doorstep {
    fn next_call(&self) -> Result<Instant> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .recv_timeout(super::client::LIMIT)
            .context("the driver was not called")
    }

    fn send_away(&self) {
        self.away.send_replace(());
    }
}

impl Driver for Doorstep {
    fn name(&self) -> String {
        "none".into()
    }

    fn compatibility(&self) -> String {
        self.name()
    }

    fn kernel_arguments(&self) -> String {
        String::new()
    }

    fn wants_uncompressed_kernel(&self) -> bool {
        false
    }

    fn check(&self) -> Result<(), LaunchError> {
        Ok(())
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Box<dyn Vmm>, LaunchError>> {
        let mut away = self.away.subscribe();
        let _ = self.calls.send(Instant::now());
        Box::pin(async move {
            let _ = away.changed().await;
            drop(launch);
            Err(LaunchError::Missing {
                program: "a VMM".into(),
            })
        })
    }

    fn adopt(&self, _: Identity, _: PathBuf) -> Result<Box<dyn Vmm>, AdoptError> {
        Err(AdoptError::Gone)
    }
}

/// Images of nothing.
struct NoImages;

impl Images for NoImages {
    fn prepare<'a>(
        &'a self,
        _: &'a str,
        _: &'a JobSpec,
        _: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>> {
        let null = || {
            File::open("/dev/null").map_err(|error| Problem {
                class: ErrorClass::Internal,
                code: "image".into(),
                message: error.to_string(),
                advice: None,
            })
        };
        Box::pin(async move {
            Ok(Prepared {
                kernel: None,
                boot: Boot {
                    kernel: null()?,
                    initrd: null()?,
                    filesystem: "none".into(),
                    image: null()?,
                },
                digest: "sha256:0".into(),
                defaults: ImageDefaults::default(),
            })
        })
    }
}
