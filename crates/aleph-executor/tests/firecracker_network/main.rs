//! Networks of Firecracker's VMs, over what stands for it, in a network namespace of each test's own:
//! functions over links, jobs with published ports, guests that go on with addresses of their own, and
//! what Firecracker cannot have.

#[path = "../function_world/mod.rs"]
mod function_world;
mod refused;

use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::functions::{FunctionRuntime, FunctionsConfig, Isolation};
use aleph_executor::guest::ExecRequest;
use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{Namespace, TestImages, TestRoot};
use aleph_types::{ExitStatus, ForkRequest, Job, JobSpec, JobState, MiB, NetworkLimits};
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::{Ipv6Config, NetworkConfig};
use anyhow::{Context, Result, ensure};
use function_world::{LIMIT, Program, World, pool, text};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the double stands for.
const VERSION: &str = "1.15.1";

/// A runtime in shell that says what its guest has of its own.
const RUNTIME: &str = r#"
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
while :; do
  event=$(wget -q -S -O - $api/invocation/next 2>/tmp/headers) || exit 9
  id=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  said="$(hostname) $(cat /sys/class/net/*/address | tr '\n' ' ')"
  if [ "$event" = '"much"' ]; then
    said=$(head -c 100000 /dev/zero | tr '\0' x)
  fi
  wget -q -O - --post-data "$said" $api/invocation/$id/response >/dev/null
done
"#;

fn main() {
    let root = (!rustix::process::geteuid().is_root()).then_some("needs root");
    let tun = (!Path::new("/dev/net/tun").exists()).then_some("needs /dev/net/tun");
    let nft = Command::new("nft").arg("-v").output().is_err();
    let missing = root.or(tun).or(nft.then_some("needs the program nft"));
    let missing = missing.or_else(|| open_device().is_err().then_some("needs mount namespaces"));
    let trials = [
        trial("functions_speak_over_links", || functions(false, false)),
        trial("functions_with_a_network_speak_over_links", || {
            functions(true, true)
        }),
        trial("jobs_are_reached_and_reach", || apart(jobs)),
        trial("guests_that_go_on_have_addresses_of_their_own", || {
            apart(forks)
        }),
        trial("what_it_cannot_have_is_refused", || {
            block_on(refused::devices())
        }),
        trial("a_device_that_its_user_may_not_open_is_refused", || {
            refused::closed_device()
        }),
    ];
    let trials = trials.into_iter().map(|trial| match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit()
}

/// Has this program, before it has threads, a device that VMMs in the open may open.
#[allow(unsafe_code)]
fn open_device() -> Result<()> {
    // SAFETY: no descriptor depends on which mounts there are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    device(0o666)
}

/// Makes the device that TAPs are opened by one of this mode, in this mount namespace.
fn device(mode: u32) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let device = dir.path().join("tun");
    let device = device.display();
    let line = format!(
        "mount --make-rprivate / && (umount /dev/net/tun 2>/dev/null || true) && mknod {device} c 10 200 && chmod {mode:o} {device} && \
         mount --bind {device} /dev/net/tun"
    );
    let output = Command::new("sh").args(["-euc", &line]).output()?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(())
}

fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    })
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(test)
}

/// Runs a test in a network namespace of its own, in which nothing may be left.
fn apart<F>(test: fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    // What is not there yet is fetched from where there is a network.
    let root = TestRoot::new()?;
    root.bundle()?;
    root.busybox()?;
    drop(root);
    let namespace = Namespace::new()?;
    // Its threads are in the namespace too.
    let tried = namespace.run(move || block_on(test()))?;
    let links = namespace.ip("-o link")?;
    tried?;
    let is_left = ["tap-", "lnk-"].iter().any(|name| links.contains(name));
    ensure!(!is_left, "a TAP is left: {links}");
    Ok(())
}

fn driver(root: &TestRoot, is_jailed: bool) -> Result<Arc<FirecrackerDriver>> {
    let jail = match is_jailed {
        true => {
            let jails = Jails::open(&root.path().join("jail"), UidRange::default())?;
            Some((jails, aleph_testkit::jailer_double(VERSION)?))
        }
        false => None,
    };
    Ok(Arc::new(FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(VERSION)?,
        jail,
        needs_kvm: false,
        ..DriverConfig::default()
    })))
}

fn network(config: &NodeConfig) -> NetworkConfig {
    NetworkConfig {
        name: "aleph-test".into(),
        pool: aleph_vm_networking::DEFAULT_POOL,
        ipv6: Ipv6Config::Off,
        limits: NetworkLimits::default(),
        cool_down: Duration::from_secs(60),
        connections: 64,
        dns_port: None,
        run: config.paths.run().to_owned(),
    }
}

async fn node(root: &TestRoot, is_jailed: bool, is_connected: bool) -> Result<Node> {
    let mut config = NodeConfig::new(root.paths()?);
    config.reserved_memory = MiB(0);
    config.network = is_connected.then(|| network(&config));
    let began = Instant::now();
    loop {
        let images = Arc::new(TestImages::new(root)?);
        let driver = driver(root, is_jailed)?;
        match Box::pin(Node::with_driver(config.clone(), images, driver)).await {
            // The last tasks of the node before may still hold the lock for a moment.
            Err(NodeError::Owned(_)) if began.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

fn functions(is_jailed: bool, is_connected: bool) -> Result<()> {
    match (is_jailed, is_connected) {
        (true, true) => apart(|| invoked(true, true)),
        _ => apart(|| invoked(false, false)),
    }
}

/// A template and its clones speak with the host over their links.
async fn invoked(is_jailed: bool, is_connected: bool) -> Result<()> {
    let program = Program {
        files: &[("name", b"first")],
        command: &["sh", "-c", RUNTIME],
    };
    let config = || FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let world = World::new(config(), &program).await?;
    world.runtime.shutdown().await;
    world.node.shutdown().await;
    let World {
        root,
        node: other,
        runtime: others,
        mut deployment,
    } = world;
    drop((other, others));
    let node = node(&root, is_jailed, is_connected).await?;
    deployment.isolation = Isolation::Invocation;
    let world = World {
        runtime: FunctionRuntime::open(&node, config()),
        root,
        node,
        deployment,
    };

    let (mut names, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..3 {
        let said = text(&world.invoke("1").await?);
        let mut words = said.split_whitespace();
        let name = words.next().context("no name")?.to_owned();
        assert!(names.insert(name), "{said}");
        let mut others: Vec<String> = words.map(str::to_owned).collect();
        others.retain(|mac| mac != "00:00:00:00:00:00" && mac != "52:54:00:a1:00:02");
        // That of its network; the link's is the same in each.
        assert_eq!(others.len(), usize::from(is_connected), "{said}");
        for mac in others {
            assert!(macs.insert(mac), "{said} comes twice");
        }
    }
    // More than a packet holds, of which the guest leaves much to its device.
    let much = text(&world.invoke("\"much\"").await?);
    assert_eq!(much.len(), 100_000);
    world.end().await
}

async fn create(node: &Node, spec: JobSpec) -> Result<Job> {
    let options = CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: None,
    };
    Ok(node.create(spec, options).await?.job)
}

async fn running(node: &Node, job: &Job) -> Result<Job> {
    let waited = tokio::time::timeout(LIMIT, node.wait(job.id, &[JobState::Running])).await;
    Ok(waited.with_context(|| format!("{:?}", node.job(job.id)))??)
}

async fn said(node: &Node, job: &Job, script: &str) -> Result<String> {
    let request = ExecRequest::new(["sh", "-c", script]);
    let collected = node.exec(job.id, &request)?.collect();
    let (stdout, stderr, status) = tokio::time::timeout(LIMIT, collected).await??;
    let error = String::from_utf8_lossy(&stderr);
    ensure!(status == ExitStatus::Code(0), "{script}: {error}");
    Ok(String::from_utf8(stdout)?)
}

fn spec(script: &str, ports: &[&str]) -> Result<JobSpec> {
    let mut spec = JobSpec::new("busybox", ["sh", "-c", script].map(String::from).to_vec());
    spec.resources.memory = MiB(128);
    spec.resources.disk = MiB(16);
    spec.stop_grace_seconds = 1;
    spec.network = serde_json::from_value(serde_json::json!({ "ports": ports }))?;
    Ok(spec)
}

/// Where a node's uplink leads: a namespace with one address.
struct Outside(Namespace);

/// Its address, and that of the node there.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

impl Outside {
    /// Connects this thread's namespace to one.
    fn new() -> Result<Self> {
        let outside = Namespace::new()?;
        let thread = outside.run(|| rustix::thread::gettid().as_raw_nonzero())?;
        for words in [
            format!("link add up0 type veth peer name out0 netns {thread}"),
            format!("address add {NODE}/24 dev up0"),
            "link set up0 up".into(),
            format!("route add default via {OUTSIDE}"),
        ] {
            let output = Command::new("ip").args(words.split(' ')).output()?;
            ensure!(output.status.success(), "ip {words}: {output:?}");
        }
        outside.ip(&format!("address add {OUTSIDE}/24 dev out0"))?;
        outside.ip("link set out0 up")?;
        Ok(Self(outside))
    }

    /// What a published port of the node answers, once somebody listens behind it.
    fn asks(&self, port: u16) -> Result<String> {
        let end = Instant::now() + LIMIT;
        self.0.run(move || {
            loop {
                match ask(port) {
                    Ok(answer) if !answer.is_empty() => return Ok(answer),
                    outcome => ensure!(Instant::now() < end, "{outcome:?}"),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })?
    }

    /// Greets whoever connects first, and says from where that was.
    fn greets(&self) -> Result<std::thread::JoinHandle<std::io::Result<IpAddr>>> {
        let listener = self.0.run(|| TcpListener::bind((OUTSIDE, 700)))??;
        Ok(std::thread::spawn(move || {
            let (mut stream, from) = listener.accept()?;
            stream.write_all(b"welcome\n")?;
            Ok(from.ip())
        }))
    }

    /// Has a job reach it, over the node's address.
    async fn is_reached(&self, node: &Node, job: &Job) -> Result<()> {
        let greeting = self.greets()?;
        let heard = said(node, job, &format!("nc {OUTSIDE} 700 < /dev/null")).await?;
        assert_eq!(heard, "welcome\n");
        let from = greeting.join().ok().context("it panicked")??;
        assert_eq!(from, IpAddr::from(NODE));
        Ok(())
    }
}

fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((NODE, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"hello\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn close(root: &TestRoot, node: Node) -> Result<()> {
    for job in node.list(&Scope::All, &JobFilter::default()).jobs {
        node.destroy(job.id, true).await?;
    }
    for snapshot in node.snapshots(&Scope::All) {
        node.remove_snapshot(snapshot.id).await?;
    }
    node.shutdown().await;
    drop(node);
    // Its last tasks let go of its folders a moment later.
    let began = Instant::now();
    while !root.residue()?.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

/// A published port leads to the guest, and the guest reaches what is outside.
async fn jobs() -> Result<()> {
    let (root, outside) = (TestRoot::new()?, Outside::new()?);
    let node = node(&root, true, true).await?;
    let serve = "while :; do nc -l -p 80 -e cat; done";
    let first = create(&node, spec(serve, &["8080:80"])?).await?;
    let first = running(&node, &first).await?;
    assert_eq!(outside.asks(8080)?, "hello\n");
    outside.is_reached(&node, &first).await?;
    close(&root, node).await
}

/// Guests that go on from one that was written down have addresses of their own, and the network
/// knows them by these.
async fn forks() -> Result<()> {
    let (root, outside) = (TestRoot::new()?, Outside::new()?);
    let node = node(&root, true, true).await?;
    let first = create(&node, spec("while :; do sleep 1; done", &[])?).await?;
    let first = running(&node, &first).await?;
    let request: ForkRequest = serde_json::from_value(serde_json::json!({ "copies": 2 }))?;
    let forked = node.fork(first.id, request).await?;
    assert_eq!(forked.jobs.len(), 2);
    let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for job in forked.jobs.iter().chain([&first]) {
        let job = running(&node, job).await?;
        let network = job.network.as_ref().context("no network")?;
        let mac = said(&node, &job, "cat /sys/class/net/eth0/address").await?;
        let vm = job.vm.context("no VM")?;
        assert_eq!(mac.trim(), Mac::of(vm).to_string());
        assert!(macs.insert(mac), "{macs:?}");
        assert!(addresses.insert(network.vm_ip), "{addresses:?}");
        // The node answers that hardware address alone.
        outside.is_reached(&node, &job).await?;
    }
    close(&root, node).await
}
