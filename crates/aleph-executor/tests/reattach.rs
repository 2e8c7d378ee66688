//! Hosts that vanish and come back to a real VM, whose port tells the guest of it when it likes.
//!
//! QEMU runs without a node here: what is tested is the channel, from socket to agent and back.

use aleph_executor::accel::Accelerator;
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::guest::{
    Agent, AgentError, ExecEvent, ExecHandle, ExecRequest, FileKind, FileMeta, MainPosition,
    Reattach, SetupRequest, UpperKind,
};
use aleph_executor::host;
use aleph_executor::hypervisor::{Disk, Driver, Kernel, Launch, Memory, Sockets, Start, Vmm};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_guest_proto::{CONTROL, MARK, Put, ToGuest, Versions};
use aleph_testkit::TestRoot;
use aleph_types::{ExitStatus, MiB, Resources, VmId};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

struct Machine {
    root: TestRoot,
    vmm: Box<dyn Vmm>,
    setup: SetupRequest,
    launched: Instant,
}

impl Machine {
    async fn launch() -> Result<Self> {
        let root = TestRoot::new()?;
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        let listen = |name: &str| UnixListener::bind(root.path().join(name));
        let driver = QemuDriver::new(QemuConfig {
            program: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            tsc_khz: host::tsc_khz(&root.path().join("tsc-khz")),
            cache: root.path().join("qemu.json"),
        });
        let launched = Instant::now();
        let vmm = driver
            .launch(Launch {
                vm: VmId::random(),
                machine: aleph_executor::hypervisor::Machine::MicroVm,
                resources: Resources {
                    memory: MiB(128),
                    ..Resources::default()
                },
                start: Start::Boot(Kernel {
                    kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
                    initrd: File::open(bundle.initrd())?,
                    command_line: format!("{COMMAND_LINE} {}", driver.kernel_arguments()),
                }),
                memory: Memory::Own,
                disks: vec![Disk::raw("rootfs", File::open(image.rootfs())?, true)],
                nics: Vec::new(),
                links: Vec::new(),
                sockets: Sockets {
                    control: listen("control")?,
                    agent: listen("agent")?,
                    console: listen("console")?,
                },
                run_dir: root.path().to_owned(),
                cgroup: None,
                user: None,
            })
            .await?;
        let setup = SetupRequest {
            hostname: "back".into(),
            filesystem: image.filesystem().to_string(),
            upper: UpperKind::Memory,
            poweroff_on_hangup: false,
            network: None,
            mounts: Vec::new(),
        };
        Ok(Self {
            root,
            vmm,
            setup,
            launched,
        })
    }

    async fn connect(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect(self.root.path().join("agent")).await?)
    }

    async fn open(&self) -> Result<Agent> {
        let agent = Agent::open(self.connect().await?, &self.setup, self.launched)?;
        tokio::time::timeout(LIMIT, agent.ready()).await??;
        Ok(agent)
    }

    async fn reattach(&self, main: Option<MainPosition>) -> Result<(Agent, Option<ExecHandle>)> {
        let reattach = Reattach { main, setup: None };
        let socket = self.connect().await?;
        Ok(tokio::time::timeout(LIMIT, Agent::reattach(socket, reattach)).await??)
    }

    /// Waits for the guest's own end.
    async fn ended(self) -> Result<()> {
        let exit = tokio::time::timeout(LIMIT, self.vmm.wait()).await?;
        assert_eq!(exit.exit, ProcessExit::Code(0), "{exit}");
        Ok(())
    }
}

/// Numbers that are as good as random, and the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> Result<usize> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Ok(usize::try_from(self.0 >> 33)? % n)
    }
}

/// What outlives a host: bytes with their flow, and what is known to be stored.
#[derive(Default)]
struct Log {
    bytes: Vec<(bool, u8)>,
    stored: usize,
}

impl Log {
    fn take(&mut self, at: u64, is_error: bool, bytes: &[u8]) -> Result<()> {
        for (at, byte) in (usize::try_from(at)?..).zip(bytes) {
            match self.bytes.get(at) {
                Some(known) => assert_eq!(*known, (is_error, *byte), "another byte at {at}"),
                None => self.bytes.push((is_error, *byte)),
            }
        }
        Ok(())
    }

    fn of(&self, is_error: bool) -> String {
        let of_flow = self.bytes.iter().filter(|(flow, _)| *flow == is_error);
        of_flow.map(|(_, byte)| char::from(*byte)).collect()
    }
}

/// A host in the middle of a large frame, and gone.
async fn vanish_within_a_frame(machine: &Machine, dice: &mut Dice) -> Result<()> {
    let mut wire = MARK.to_vec();
    let hello = ToGuest::Hello {
        versions: Versions::OURS,
        nonce: [9; 16],
    };
    hello.encode(CONTROL, &mut wire)?;
    let put = ToGuest::Put(Put {
        path: b"/tmp/half",
        mode: 0o644,
        uid: 0,
        gid: 0,
    });
    put.encode(900, &mut wire)?;
    let whole = wire.len();
    ToGuest::Data(&[b'h'; 60_000]).encode(900, &mut wire)?;
    let cut = whole + 1 + dice.below(wire.len() - whole - 1)?;
    let mut socket = machine.connect().await?;
    socket.write_all(&wire[..cut]).await?;
    Ok(())
}

/// Two dozen hosts, killed at any byte of anything: the guest stays the same, and not a byte of
/// its main command's output is lost, doubled or out of order; and its end waits for the last.
#[tokio::test]
async fn a_guest_and_its_output_outlive_any_number_of_hosts() -> Result<()> {
    const LINES: usize = 60_000;
    let machine = Machine::launch().await?;
    let mut agent = machine.open().await?;
    let boot_id = agent.boot_id().context("no boot id")?;
    let script = format!(
        "i=0; while [ $i -lt 40 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; \
         seq 1 {LINES}; seq 1 9000 >&2; echo last; exit 23"
    );
    let request = ExecRequest {
        main: true,
        keep: true,
        ..ExecRequest::new(["sh", "-c", &script])
    };
    let mut handle = agent.exec(&request)?;
    let stream = handle.stream();
    let (mut log, mut dice, mut hosts) = (Log::default(), Dice(0x5eed), 0);
    let status = 'hosts: loop {
        for _ in 0..1 + dice.below(9)? {
            let at = handle.position();
            let next = tokio::time::timeout(LIMIT, handle.next()).await?;
            match next? {
                ExecEvent::Started(_) => {}
                ExecEvent::Stdout(bytes) => log.take(at, false, &bytes)?,
                ExecEvent::Stderr(bytes) => log.take(at, true, &bytes)?,
                ExecEvent::Exited(status) if hosts >= 24 => break 'hosts status,
                // This host goes before it has stored that.
                ExecEvent::Exited(_) => break,
            }
            if dice.below(2)? == 0 {
                log.stored = usize::try_from(handle.position())?;
                handle.stored(handle.position())?;
            }
        }
        // Something is under way when it dies that is too large to end in the 20 ms before.
        let put = agent.clone();
        let busy = tokio::spawn(async move {
            let bytes = vec![7; 24_000_000];
            let meta = FileMeta {
                mode: 0o600,
                uid: 0,
                gid: 0,
            };
            let _ = put.put("/tmp/large", meta, &bytes).await;
        });
        let sleeper = agent.exec(&ExecRequest::new(["sleep", "1000"]))?;
        tokio::time::sleep(Duration::from_micros(dice.below(20_000)?.try_into()?)).await;
        busy.abort();
        let _ = busy.await;
        drop((agent, handle, sleeper));
        hosts += 1;
        if dice.below(2)? == 0 {
            vanish_within_a_frame(&machine, &mut dice).await?;
        }
        // A host that has no record of the command finds it, and hears all that is there.
        let record = MainPosition {
            stream,
            received: log.stored as u64,
        };
        let known = log.stored > 0 || dice.below(2)? == 0;
        let back = machine.reattach(known.then_some(record)).await?;
        (agent, handle) = (back.0, back.1.context("no main command")?);
        assert_eq!(handle.position(), log.stored as u64);
        assert_eq!(agent.boot_id().as_ref(), Some(&boot_id));
    };
    assert_eq!(status, ExitStatus::Code(23));
    let lines = |range: std::ops::RangeInclusive<usize>| -> String {
        range.map(|n| format!("{n}\n")).collect()
    };
    let marks = |word: &str| -> String { (0..40).map(|i| format!("{word} {i}\n")).collect() };
    assert!(log.of(false) == marks("out") + &lines(1..=LINES) + "last\n");
    assert!(log.of(true) == marks("err") + &lines(1..=9000));
    // Nothing that the others began is left: no half file, no session.
    let left = "ls -A /tmp; for p in /proc/[0-9]*; do readlink $p/exe; tr '\\0' ' ' <$p/cmdline; \
        done 2>/dev/null | grep '^sleep 1000'";
    let gone = async {
        loop {
            let look = agent.exec(&ExecRequest::new(["sh", "-c", left]))?;
            let (out, ..) = look.collect().await?;
            let out = String::from_utf8_lossy(&out).into_owned();
            // Files are given up at once, commands a moment later.
            assert!(!out.contains("half") && !out.contains("large"), "{out}");
            if out.is_empty() {
                return Ok::<_, AgentError>(());
            }
        }
    };
    tokio::time::timeout(LIMIT, gone).await??;
    assert_eq!(agent.kept(), []);
    handle.end_stored()?;
    assert_eq!(agent.main_exit().await, status);
    machine.ended().await
}

/// The end of a command while nobody was there, and then a stop with another signal.
#[tokio::test]
async fn an_end_waits_for_a_host_and_a_stop_signal_is_the_commands_own() -> Result<()> {
    let machine = Machine::launch().await?;
    let agent = machine.open().await?;
    let script = "trap 'echo usr1; exit 7' USR1; echo on; while :; do sleep 0.1; done";
    let request = ExecRequest {
        main: true,
        keep: true,
        ..ExecRequest::new(["sh", "-c", script])
    };
    let mut handle = agent.exec(&request)?;
    while !matches!(handle.next().await?, ExecEvent::Stdout(_)) {}
    agent.shutdown(LIMIT, 10)?;
    // The frame goes out, and its host with it.
    agent.ping().await?;
    drop((agent, handle));
    let (agent, handle) = machine.reattach(None).await?;
    let (stdout, _, status) = handle.context("no main command")?.collect().await?;
    assert_eq!(stdout, b"on\nusr1\n");
    assert_eq!(status, ExitStatus::Code(7));
    machine.ended().await?;
    drop(agent);
    Ok(())
}

#[tokio::test]
async fn archives_connections_and_facts_of_a_real_guest() -> Result<()> {
    let machine = Machine::launch().await?;
    let agent = machine.open().await?;
    let script = "mkdir -p /tmp/a/b; seq 1 200000 >/tmp/a/b/file; ln -s b /tmp/a/link; \
        nc -l -p 7777 -e cat";
    let mut server = agent.exec(&ExecRequest::new(["sh", "-c", script]))?;
    server.next().await?;
    let connection = async {
        loop {
            match agent.connect(7777).await {
                Err(AgentError::Failed { errno: 111, .. }) => {}
                other => return other,
            }
        }
    };
    let connection = tokio::time::timeout(LIMIT, connection).await??;
    let (mut reader, mut writer) = connection.into_inner();
    let sent: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let expected = sent.clone();
    let feed = tokio::spawn(async move {
        writer.write_all(&sent).await?;
        writer.shutdown().await?;
        anyhow::Ok(writer)
    });
    let mut echoed = Vec::new();
    reader.read_to_end(&mut echoed).await?;
    feed.await??;
    assert!(echoed == expected);

    let mut archive = Vec::new();
    agent.pack("/tmp/a", "")?.read_to_end(&mut archive).await?;
    let (_, _, status) = agent
        .exec(&ExecRequest::new(["mkdir", "/tmp/copy"]))?
        .collect()
        .await?;
    assert_eq!(status, ExitStatus::Code(0));
    let mut sink = agent.unpack("/tmp/copy", true)?;
    sink.write_all(&archive).await?;
    sink.finish().await?;
    let compare = "diff -r /tmp/a /tmp/copy/a && readlink /tmp/copy/a/link";
    let (out, ..) = agent
        .exec(&ExecRequest::new(["sh", "-c", compare]))?
        .collect()
        .await?;
    assert_eq!(out, b"b\n");
    let mut sink = agent.unpack("/tmp/copy", true)?;
    let _ = sink.write_all(&[b'x'; 100_000]).await;
    let Err(AgentError::Failed { message, .. }) = sink.finish().await else {
        bail!("garbage was taken for an archive");
    };
    assert!(message.starts_with("the archive is malformed"), "{message}");

    let stat = agent.stat("/tmp/a/link", false).await?;
    assert_eq!((stat.kind, &stat.target[..]), (FileKind::Link, &b"b"[..]));
    let stat = agent.stat("/tmp/a/b/file", true).await?;
    assert_eq!((stat.kind, stat.size), (FileKind::File, 1_288_895));
    let usage = agent.usage().await?;
    assert!(usage.memory_total > 90 << 20 && usage.memory_total <= 128 << 20);
    assert!(usage.memory_available < usage.memory_total);
    assert!(usage.disk_used > 1_288_895 && usage.disk_used < usage.disk_total);
    assert!(usage.uptime < machine.launched.elapsed());
    agent.shutdown(Duration::from_secs(5), 15)?;
    machine.ended().await
}
