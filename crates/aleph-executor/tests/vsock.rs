//! A real guest whose agent is reached by vsock, as Firecracker has it.
//!
//! QEMU runs without a node here, with a vsock device whose other end is a Unix socket: what is
//! tested is the channel, from the handshake on the socket to the agent and back.

use aleph_executor::accel::Accelerator;
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::guest::{
    Agent, AgentError, ExecEvent, ExecHandle, ExecRequest, FileMeta, MainPosition, Reattach,
    SetupRequest, UpperKind,
};
use aleph_executor::host;
use aleph_executor::hypervisor::Driver;
use aleph_executor::qemu::qmp::Qmp;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_executor::vsock::{self, VsockError};
use aleph_guest_proto::{CONTROL, MARK, ToGuest, VSOCK_ARGUMENT, VSOCK_PORT, Versions};
use aleph_testkit::{TestRoot, VsockDevice};
use aleph_types::ExitStatus;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest of QEMU's with a vsock device.
struct Machine {
    qemu: Child,
    /// Where hosts connect.
    socket: PathBuf,
    control: PathBuf,
    console: PathBuf,
    launched: Instant,
}

/// What a guest begins with.
enum Begin<'a> {
    Boot,
    /// Where another was written down.
    State(&'a Path),
}

impl Machine {
    fn launch(root: &TestRoot, name: &str, begin: &Begin<'_>) -> Result<Self> {
        let at = |what: &str| root.path().join(format!("{name}-{what}"));
        let (socket, control, console) = (at("vsock"), at("control"), at("console"));
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        let driver = QemuDriver::new(QemuConfig {
            program: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            tsc_khz: host::tsc_khz(&root.path().join("tsc-khz")),
            cache: root.path().join("qemu.json"),
        });
        let device = VsockDevice::build()?;
        let launched = Instant::now();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-accel", "tcg"])
            // What goes on from a state runs at once.
            .args(["-global", "migration.store-global-state=off"])
            .args(["-machine", "microvm,acpi=on"])
            .args(["-cpu", "Nehalem-v1,+arat", "-m", "128M"])
            .arg("-kernel")
            .arg(bundle.vmlinux().context("no uncompressed kernel")?)
            .arg("-initrd")
            .arg(bundle.initrd())
            .arg("-append")
            .arg(format!(
                "{COMMAND_LINE} {} {VSOCK_ARGUMENT}",
                driver.kernel_arguments()
            ))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", control.display()))
            .arg("-blockdev")
            .arg(format!(
                "driver=file,node-name=rootfs,filename={},read-only=on",
                image.rootfs().display()
            ))
            .args(["-device", "virtio-blk-device,drive=rootfs,serial=rootfs"])
            .stdin(Stdio::null());
        device.attach(&mut command, UnixListener::bind(&socket)?, 3)?;
        if let Begin::State(file) = begin {
            command.args(["-incoming", &format!("exec:cat {}", file.display())]);
        }
        Ok(Self {
            qemu: command.spawn()?,
            socket,
            control,
            console,
            launched,
        })
    }

    /// A guest that is up, with a conversation.
    async fn boot(root: &TestRoot, name: &str) -> Result<(Self, Agent)> {
        let machine = Self::launch(root, name, &Begin::Boot)?;
        let setup = SetupRequest {
            hostname: "vsock".into(),
            filesystem: root.busybox()?.filesystem().to_string(),
            upper: UpperKind::Memory,
            poweroff_on_hangup: false,
            network: None,
            mounts: Vec::new(),
        };
        let opened = async {
            let stream = vsock::reach(&machine.socket, VSOCK_PORT, LIMIT).await?;
            let agent = Agent::open(stream, &setup, machine.launched)?;
            tokio::time::timeout(LIMIT, agent.ready()).await??;
            anyhow::Ok(agent)
        };
        let opened = opened.await;
        let said = std::fs::read_to_string(&machine.console)?;
        Ok((machine, opened.context(said)?))
    }

    async fn reattach(&self, main: Option<MainPosition>) -> Result<(Agent, Option<ExecHandle>)> {
        let reattached = async {
            loop {
                let stream = vsock::reach(&self.socket, VSOCK_PORT, LIMIT).await?;
                let reattach = Reattach { main, setup: None };
                match Agent::reattach(stream, reattach).await {
                    // A guest that goes on from a state hears after its first instructions that
                    // its connections are gone, and may have taken this one before.
                    Err(AgentError::Closed) => {}
                    other => return anyhow::Ok(other?),
                }
            }
        };
        tokio::time::timeout(LIMIT, reattached).await?
    }

    /// Waits for the guest's own end.
    async fn ended(mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.qemu.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the guest goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = self.qemu.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    /// Writes the guest down, as it stands still from then on.
    async fn save(&self, to: &Path) -> Result<()> {
        let (qmp, _) = Qmp::connect(&self.control, LIMIT).await?;
        let tell = async |command: &str, arguments| qmp.execute(command, arguments, LIMIT).await;
        tell("stop", json!({})).await?;
        let uri = format!("exec:cat > {}", to.display());
        tell("migrate", json!({ "uri": uri })).await?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = tell("query-migrate", json!({})).await?;
            match now["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("{now}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            ensure!(Instant::now() < deadline, "{now}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// What a command printed and how it ended.
async fn ran(agent: &Agent, argv: &[&str]) -> Result<(String, ExitStatus)> {
    let ran = agent.exec(&ExecRequest::new(argv.to_vec()))?.collect();
    let (out, _, status) = tokio::time::timeout(LIMIT, ran).await??;
    Ok((String::from_utf8(out)?, status))
}

/// A main command that counts on as it is told to, and says so.
const COUNTER: &str = "n=0; while read line; do n=$((n+1)); echo $n $line; done; exit 23";

/// Gives a counter a line and hears that it counted.
async fn count(handle: &mut ExecHandle, line: &str) -> Result<String> {
    handle.input().write(format!("{line}\n").as_bytes()).await?;
    let said = async {
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            match handle.next().await? {
                ExecEvent::Started(_) => {}
                ExecEvent::Stdout(bytes) => said.extend(bytes),
                other => bail!("{other:?}"),
            }
        }
        Ok(String::from_utf8(said)?.trim_end().to_owned())
    };
    tokio::time::timeout(LIMIT, said).await?
}

fn counter() -> ExecRequest {
    ExecRequest {
        main: true,
        keep: true,
        stdin: true,
        ..ExecRequest::new(["sh", "-c", COUNTER])
    }
}

#[tokio::test]
async fn a_guest_on_vsock_outlives_its_hosts() -> Result<()> {
    let root = TestRoot::new()?;
    let (machine, mut agent) = Machine::boot(&root, "guest").await?;
    let (said, status) = ran(&agent, &["hostname"]).await?;
    assert_eq!((&said[..], status), ("vsock\n", ExitStatus::Code(0)));
    // The channel is what it was asked to be, and the module of the other kind stays away.
    let (modules, _) = ran(&agent, &["cat", "/proc/modules"]).await?;
    let has = |name: &str| modules.lines().any(|line| line.starts_with(name));
    let is_vsock = has("vmw_vsock_virtio_transport ") && !has("virtio_console ");
    assert!(is_vsock, "{modules}");

    // Nobody listens on other ports.
    let refused = vsock::connect(&machine.socket, VSOCK_PORT + 1, LIMIT).await;
    let is_refused = matches!(refused, Err(VsockError::Refused { .. }));
    assert!(is_refused, "{refused:?}");

    let mut handle = agent.exec(&counter())?;
    let stream = handle.stream();
    assert_eq!(count(&mut handle, "first").await?, "1 first");
    let boot_id = agent.boot_id().context("no boot id")?;
    for round in 2..6 {
        let received = handle.position();
        handle.stored(received)?;
        // Something large is under way both ways when the host goes.
        let flood = agent.exec(&ExecRequest::new(["cat", "/dev/zero"]))?;
        let busy = tokio::spawn(put(agent.clone(), vec![7; 24_000_000]));
        agent.ping().await?;
        busy.abort();
        let _ = busy.await;
        drop((agent, handle, flood));
        let record = MainPosition { stream, received };
        let back = machine.reattach(Some(record)).await?;
        (agent, handle) = (back.0, back.1.context("no main command")?);
        assert_eq!(agent.boot_id().as_ref(), Some(&boot_id));
        assert_eq!(handle.position(), received);
        assert_eq!(count(&mut handle, "again").await?, format!("{round} again"));
    }

    vanish_unheard(&machine).await?;
    let record = MainPosition {
        stream,
        received: handle.position(),
    };
    handle.stored(record.received)?;
    agent.ping().await?;
    drop((agent, handle));
    let back = machine.reattach(Some(record)).await?;
    (agent, handle) = (back.0, back.1.context("no main command")?);

    // The next host's turn comes when this one goes, and not before.
    let next = tokio::spawn({
        let socket = machine.socket.clone();
        async move {
            let stream = vsock::reach(&socket, VSOCK_PORT, LIMIT).await?;
            let reattach = Reattach {
                main: None,
                setup: None,
            };
            anyhow::Ok(Agent::reattach(stream, reattach).await?)
        }
    });
    assert_eq!(count(&mut handle, "still").await?, "6 still");
    assert!(!next.is_finished());
    handle.stored(handle.position())?;
    agent.ping().await?;
    drop((agent, handle));
    let (_agent, handle) = tokio::time::timeout(LIMIT, next).await???;
    let mut handle = handle.context("no main command")?;

    // The end reaches the host though the guest's power goes off with it.
    handle.input().close()?;
    let ended = async {
        loop {
            if let ExecEvent::Exited(status) = handle.next().await? {
                return anyhow::Ok(status);
            }
        }
    };
    let status = tokio::time::timeout(LIMIT, ended).await??;
    assert_eq!(status, ExitStatus::Code(23));
    handle.end_stored()?;
    machine.ended().await
}

/// A host that asks so much and reads so little that the agent does not listen to it any more, in
/// the queue behind the one that speaks now; and gone.
async fn vanish_unheard(machine: &Machine) -> Result<()> {
    let mut wire = MARK.to_vec();
    let hello = ToGuest::Hello {
        versions: Versions::OURS,
        nonce: [9; 16],
    };
    hello.encode(CONTROL, &mut wire)?;
    for n in 0..400_000 {
        ToGuest::Ping(n).encode(CONTROL, &mut wire)?;
    }
    let mut socket = vsock::reach(&machine.socket, VSOCK_PORT, LIMIT).await?;
    tokio::spawn(async move {
        // Neither it nor anybody on the way takes all of that.
        let _ = tokio::time::timeout(Duration::from_secs(4), socket.write_all(&wire)).await;
    });
    Ok(())
}

async fn put(agent: Agent, bytes: Vec<u8>) -> Result<()> {
    let meta = FileMeta {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    Ok(agent.put("/tmp/large", meta, &bytes).await?)
}

/// A main command that is not kept takes the guest with it, where its host is quick: its last
/// words wait in the guest's kernel then. What is larger has gone both ways before.
#[tokio::test]
async fn last_words_reach_the_host() -> Result<()> {
    let root = TestRoot::new()?;
    let (machine, agent) = Machine::boot(&root, "words").await?;
    let bytes: Vec<u8> = (0..8_000_000_u32)
        .flat_map(u32::to_be_bytes)
        .step_by(3)
        .collect();
    put(agent.clone(), bytes.clone()).await?;
    let got = tokio::time::timeout(LIMIT, agent.get("/tmp/large", bytes.len())).await??;
    assert!(got.1 == bytes, "{} bytes of {}", got.1.len(), bytes.len());
    let main = agent.exec(&ExecRequest {
        main: true,
        ..ExecRequest::new(["head", "-c", "40000", "/tmp/large"])
    })?;
    let (said, _, status) = tokio::time::timeout(LIMIT, main.collect()).await??;
    assert!(said == bytes[..40_000], "{} bytes", said.len());
    assert_eq!(status, ExitStatus::Code(0));
    machine.ended().await
}

/// Where a guest goes on from a snapshot, its connections are gone and it takes another.
#[tokio::test]
async fn a_guest_that_was_written_down_takes_new_connections() -> Result<()> {
    let root = TestRoot::new()?;
    let (machine, agent) = Machine::boot(&root, "origin").await?;
    let mut handle = agent.exec(&counter())?;
    let stream = handle.stream();
    assert_eq!(count(&mut handle, "before").await?, "1 before");
    let received = handle.position();
    handle.stored(received)?;
    agent.ping().await?;
    let state = root.path().join("state");
    // The origin's host is connected as it is written down.
    machine.save(&state).await?;
    drop((agent, handle, machine));

    // Each clone takes the same turn.
    for name in ["one", "another"] {
        let clone = Machine::launch(&root, name, &Begin::State(&state))?;
        let record = MainPosition { stream, received };
        let (agent, handle) = clone.reattach(Some(record)).await?;
        let mut handle = handle.context("no main command")?;
        assert_eq!(count(&mut handle, name).await?, format!("2 {name}"));
        let (said, _) = ran(&agent, &["hostname"]).await?;
        assert_eq!(said, "vsock\n");
    }
    Ok(())
}
