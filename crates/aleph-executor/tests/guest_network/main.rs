//! Real VMs with a real network: what the agent makes of a network that it is told of, and that
//! packets go both ways. The host's end is a TAP in a network namespace of each test's own; only
//! its queues leave it, and QEMU runs under a user without rights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aleph_executor::accel::Accelerator;
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::guest::{ExecRequest, GuestNetwork, GuestNetworkV6, SetupRequest, UpperKind};
use aleph_executor::hypervisor::{Driver, Machine, Memory, Nic};
use aleph_executor::lifecycle::{Outcome, Timeouts};
use aleph_executor::place::Place;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_executor::vm::{Begin, Ending};
use aleph_executor::{Vm, VmSpec, host};
use aleph_testkit::{Namespace, TestRoot};
use aleph_types::{ExitStatus, MiB, Resources};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

const MAC: [u8; 6] = [0x52, 0x54, 0, 0xa1, 0xe9, 2];
const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xa1, 0xe9, 1];

fn main() {
    let trials = vec![
        trial("packets_go_both_ways", || packets_go_both_ways(qemu)),
        trial("packets_go_both_ways_over_firecracker", || {
            packets_go_both_ways(firecracker)
        }),
        trial("every_cpu_has_a_queue", every_cpu_has_a_queue),
        trial(
            "a_guest_without_a_network_has_its_loopback_alone",
            a_guest_without_a_network_has_its_loopback_alone,
        ),
        trial(
            "an_interface_that_is_not_there_is_named",
            an_interface_that_is_not_there_is_named,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A test, or an ignored one that says why it cannot run here.
fn trial<F>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = Result<()>> + 'static,
{
    let has_ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"];
    let missing = if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new("/dev/net/tun").exists() {
        Some("needs /dev/net/tun")
    } else if !has_ip.iter().any(|path| Path::new(path).exists()) {
        Some("needs the program ip")
    } else {
        None
    };
    let trial = Trial::test(name, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        Ok(runtime
            .block_on(test())
            .map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

fn network() -> GuestNetwork {
    GuestNetwork {
        mac: MAC,
        address: [10, 77, 0, 2].into(),
        prefix_length: 30,
        gateway: [10, 77, 0, 1].into(),
        gateway_mac: HOST_MAC,
        mtu: 1400,
        resolver: Some([10, 77, 0, 1].into()),
        search: "jobs.internal".into(),
        v6: Some(GuestNetworkV6 {
            address: "fd77::2".parse().unwrap(),
            prefix_length: 64,
            gateway: "fe80::1".parse().unwrap(),
        }),
    }
}

/// A namespace with the host's end of `tap0`, and the queues for a guest.
fn host_end(queues: usize) -> Result<(Namespace, Vec<OwnedQueue>)> {
    let namespace = Namespace::new()?;
    let tap = namespace.tap("tap0", queues)?;
    let [a, b, c, d, e, f] = HOST_MAC;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    for words in [
        &format!("link set tap0 address {mac} mtu 1400 addrgenmode none")[..],
        "addr add 10.77.0.1/30 dev tap0",
        "addr add fd77::1/64 dev tap0 nodad",
        "addr add fe80::1/64 dev tap0 nodad",
        "link set tap0 up",
        // Beyond the subnet, so what reaches it went by the default route.
        "addr add 10.78.0.1/32 dev lo",
        "addr add fd78::1/128 dev lo nodad",
    ] {
        namespace.ip(words)?;
    }
    Ok((namespace, tap))
}

type OwnedQueue = std::os::fd::OwnedFd;

type MakeDriver = fn(&TestRoot) -> Result<Arc<dyn Driver>>;

fn qemu(root: &TestRoot) -> Result<Arc<dyn Driver>> {
    Ok(Arc::new(QemuDriver::new(QemuConfig {
        program: "qemu-system-x86_64".into(),
        accelerator: Accelerator::Tcg,
        tsc_khz: host::tsc_khz(&root.path().join("tsc-khz")),
        cache: root.path().join("qemu.json"),
    })))
}

/// What stands for Firecracker, in jails.
fn firecracker(root: &TestRoot) -> Result<Arc<dyn Driver>> {
    const VERSION: &str = "1.15.1";
    let jails = Jails::open(&root.path().join("jail"), UidRange::default())?;
    Ok(Arc::new(FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(VERSION)?,
        jail: Some((jails, aleph_testkit::jailer_double(VERSION)?)),
        needs_kvm: false,
        ..DriverConfig::default()
    })))
}

async fn create(
    root: &TestRoot,
    cpus: u16,
    nics: Vec<Nic>,
    network: Option<GuestNetwork>,
) -> Result<Vm> {
    create_over(qemu(root)?, root, cpus, nics, network).await
}

async fn create_over(
    driver: Arc<dyn Driver>,
    root: &TestRoot,
    cpus: u16,
    nics: Vec<Nic>,
    network: Option<GuestNetwork>,
) -> Result<Vm> {
    let (bundle, image) = (root.bundle()?, root.busybox()?);
    let place = Place::create(&root.paths()?, None)?;
    let spec = VmSpec {
        resources: Resources {
            cpus,
            memory: MiB(128),
            ..Resources::default()
        },
        machine: Machine::MicroVm,
        begin: Begin::Boot {
            kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
            initrd: File::open(bundle.initrd())?,
            command_line: COMMAND_LINE.to_owned(),
            setup: Box::new(SetupRequest {
                hostname: "net".into(),
                filesystem: image.filesystem().to_string(),
                upper: UpperKind::Memory,
                poweroff_on_hangup: true,
                network,
                mounts: Vec::new(),
            }),
        },
        image: Some(File::open(image.rootfs())?),
        disks: Vec::new(),
        memory: Memory::Own,
        nics,
        links: Vec::new(),
        timeouts: Timeouts::default(),
        ending: Ending {
            kept: false,
            stop_signal: 15,
            durable: false,
        },
    };
    let vm = Vm::create(place, driver, spec);
    vm.start(None).await?;
    Ok(vm)
}

fn nic(queues: Vec<OwnedQueue>) -> Vec<Nic> {
    vec![Nic { mac: MAC, queues }]
}

/// What a shell command in the guest prints, which has to succeed.
async fn guest(vm: &Vm, line: &str) -> Result<String> {
    let run = vm.exec(&ExecRequest::new(["sh", "-c", line]))?;
    let (stdout, stderr, status) = tokio::time::timeout(LIMIT, run.collect()).await??;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status == ExitStatus::Code(0), "{line}: {status:?}: {said}");
    Ok(String::from_utf8(stdout)?)
}

async fn ended(root: &TestRoot, vm: Vm) -> Result<()> {
    vm.kill().await?;
    vm.destroy().await?;
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

/// Answers one connection with what it says, in capitals.
fn answer_once(namespace: &Namespace, address: &'static str) -> Result<()> {
    let listener = namespace.run(move || TcpListener::bind(address))??;
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut said = [0; 6];
        stream.read_exact(&mut said)?;
        stream.write_all(&said.to_ascii_uppercase())
    });
    Ok(())
}

/// What an address of the guest answers, once somebody listens there.
fn ask(namespace: &Namespace, address: &'static str) -> Result<String> {
    let end = Instant::now() + LIMIT;
    namespace.run(move || {
        let mut stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"hello\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

async fn packets_go_both_ways(driver: MakeDriver) -> Result<()> {
    let root = TestRoot::new()?;
    let (namespace, queues) = host_end(1)?;
    let driver = driver(&root)?;
    let vm = create_over(driver, &root, 1, nic(queues), Some(network())).await?;
    vm.running().await?;

    // The guest is as it was told.
    let link = "cd /sys/class/net/eth0; cat address mtu operstate";
    assert_eq!(guest(&vm, link).await?, "52:54:00:a1:e9:02\n1400\nup\n");
    assert_eq!(guest(&vm, "ls /sys/class/net").await?, "eth0\nlo\n");
    let addresses = guest(&vm, "ip addr show dev eth0").await?;
    assert!(!addresses.contains("fe80:"), "{addresses}");
    for address in ["inet 10.77.0.2/30 ", "inet6 fd77::2/64 scope global"] {
        assert!(addresses.contains(address), "{address}: {addresses}");
    }
    let routes = guest(&vm, "ip route; ip -6 route").await?;
    for route in [
        "default via 10.77.0.1 dev eth0",
        "default via fe80::1 dev eth0",
    ] {
        assert!(routes.contains(route), "{route}: {routes}");
    }
    // Flags: complete and permanent.
    let neighbours = guest(&vm, "cat /proc/net/arp").await?;
    let known = neighbours.lines().nth(1).unwrap_or_default();
    let known: Vec<_> = known.split_whitespace().collect();
    assert_eq!(known[..4], ["10.77.0.1", "0x1", "0x6", "52:54:00:a1:e9:01"]);
    assert_eq!(
        guest(&vm, "cat /etc/resolv.conf").await?,
        "nameserver 10.77.0.1\nsearch jobs.internal\n"
    );
    assert_eq!(
        guest(&vm, "cat /etc/hosts").await?,
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.77.0.2\tnet\n"
    );

    // And packets go where they should, by both families, in the subnet and beyond it.
    for host in ["10.77.0.1", "10.78.0.1", "fd77::1", "fd78::1"] {
        guest(&vm, &format!("ping -c 1 -W 20 {host}")).await?;
    }
    // As large as the MTU allows.
    guest(&vm, "ping -c 1 -W 20 -s 1372 10.78.0.1").await?;
    for (listens, line) in [
        ("10.78.0.1:700", "echo hello | nc 10.78.0.1 700"),
        ("[fd78::1]:700", "echo hello | nc fd78::1 700"),
    ] {
        answer_once(&namespace, listens)?;
        assert_eq!(guest(&vm, line).await?, "HELLO\n");
    }
    for address in ["10.77.0.2:70", "[fd77::2]:70"] {
        let _echo = vm.exec(&ExecRequest::new(["nc", "-l", "-p", "70", "-e", "cat"]))?;
        assert_eq!(ask(&namespace, address)?, "hello\n");
    }
    ended(&root, vm).await
}

async fn every_cpu_has_a_queue() -> Result<()> {
    let root = TestRoot::new()?;
    let (namespace, queues) = host_end(2)?;
    let network = GuestNetwork {
        v6: None,
        ..network()
    };
    let vm = create(&root, 2, nic(queues), Some(network)).await?;
    vm.running().await?;
    // Nothing left the guest that no program of it sent.
    let counted = namespace.ip("-s link show tap0")?;
    let mut lines = counted.lines().skip_while(|line| !line.contains("RX:"));
    let received = lines.nth(1).context("no counters")?;
    assert_eq!(received.split_whitespace().nth(1), Some("0"), "{counted}");
    assert_eq!(
        guest(&vm, "ls /sys/class/net/eth0/queues").await?,
        "rx-0\nrx-1\ntx-0\ntx-1\n"
    );
    // From each of the processors, whose packets leave by its own queue.
    for cpu in 1..=2 {
        answer_once(&namespace, "10.78.0.1:700")?;
        let line = format!("echo hello | taskset {cpu} nc 10.78.0.1 700");
        assert_eq!(guest(&vm, &line).await?, "HELLO\n");
    }
    ended(&root, vm).await
}

async fn a_guest_without_a_network_has_its_loopback_alone() -> Result<()> {
    let root = TestRoot::new()?;
    let vm = create(&root, 1, Vec::new(), None).await?;
    vm.running().await?;
    assert_eq!(guest(&vm, "ls /sys/class/net").await?, "lo\n");
    guest(&vm, "ping -c 1 -W 20 127.0.0.1").await?;
    guest(
        &vm,
        "! ip route | grep . && ! grep virtio_net /proc/modules",
    )
    .await?;
    guest(&vm, "! test -e /etc/resolv.conf").await?;
    ended(&root, vm).await
}

async fn an_interface_that_is_not_there_is_named() -> Result<()> {
    let root = TestRoot::new()?;
    let vm = create(&root, 1, Vec::new(), Some(network())).await?;
    let Outcome::Failed(why) = vm.wait().await? else {
        panic!("{:?}", vm.status());
    };
    let why = why.to_string();
    let said = "finding the network interface 52:54:00:a1:e9:02: No such device";
    assert!(why.contains(said), "{why}");
    vm.destroy().await?;
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}
