//! Whole lives of VMs over a hypervisor that does what a script says: every way to fail ends
//! the VM with a clear reason and leaves nothing on the host.

use aleph_executor::guest::{AgentError, ExecEvent, ExecRequest};
use aleph_executor::lifecycle::{Failure, Outcome, State, Timeouts};
use aleph_executor::{Boot, Executor, Vm, VmError};
use aleph_guest_proto::{HEADER, ToHost, Versions};
use aleph_testkit::{Guest, Script, ScriptedDriver, TestRoot, Vmm};
use aleph_types::{ExitStatus, JobId, JobSpec, MiB};
use anyhow::Result;
use std::fs::File;
use std::time::Duration;

/// Deadlines that are long against anything but a hang.
const TIMEOUTS: Timeouts = Timeouts {
    boot: Duration::from_secs(30),
    quit: Duration::from_millis(300),
    kill: Duration::from_secs(30),
};

struct Node {
    root: TestRoot,
    executor: Executor,
}

impl Node {
    async fn new(script: Script) -> Result<Self> {
        Self::with_timeouts(script, TIMEOUTS).await
    }

    async fn with_timeouts(script: Script, timeouts: Timeouts) -> Result<Self> {
        let root = TestRoot::empty()?;
        let driver = ScriptedDriver::new([script]);
        let executor = Executor::with_driver(root.paths()?, driver, timeouts).await?;
        Ok(Self { root, executor })
    }

    fn vm(&self) -> Result<Vm> {
        let null = || File::open("/dev/null");
        let boot = Boot {
            kernel: null()?,
            initrd: null()?,
            filesystem: "none".into(),
            image: null()?,
        };
        let job = JobSpec::new("none", vec!["true".into()]);
        Ok(self.executor.create(JobId::random(), &job, boot)?)
    }

    /// Checks that nothing is left once the VM is destroyed and the node is gone.
    async fn end(self, vm: Vm) -> Result<()> {
        vm.destroy().await?;
        assert!(matches!(vm.status().state, State::Destroyed { .. }));
        let Self { root, executor } = self;
        drop(executor);
        assert_eq!(root.residue()?, Vec::<String>::new());
        Ok(())
    }
}

fn main_command(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        main: true,
        ..ExecRequest::new(argv.iter().copied())
    }
}

fn guest(guest: Guest) -> Script {
    Script {
        guest,
        ..Script::default()
    }
}

fn vmm(vmm: Vmm) -> Script {
    Script {
        vmm,
        ..Script::default()
    }
}

#[tokio::test]
async fn a_command_runs_and_its_code_is_the_outcome() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let vm = node.vm()?;
    let exec = vm.start(Some(main_command(&["exit", "3"]))).await?.unwrap();
    let (stdout, _, status) = exec.collect().await?;
    assert_eq!(
        (stdout.as_slice(), status),
        (&b"exit 3"[..], ExitStatus::Code(3))
    );
    assert_eq!(vm.wait().await?, Outcome::Finished(ExitStatus::Code(3)));
    node.end(vm).await
}

#[tokio::test]
async fn a_command_that_is_not_there_is_127() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let vm = node.vm()?;
    let mut exec = vm.start(Some(main_command(&["nosuch"]))).await?.unwrap();
    let Err(AgentError::Failed { errno: 2, message }) = exec.next().await else {
        panic!()
    };
    assert_eq!(message, "nosuch: command not found");
    assert_eq!(vm.wait().await?, Outcome::Finished(ExitStatus::Code(127)));
    node.end(vm).await
}

#[tokio::test]
async fn an_idle_vm_takes_commands_pauses_and_stops() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let vm = node.vm()?;
    assert!(matches!(vm.agent(), Err(VmError::Denied(_))));
    assert!(matches!(vm.pause().await, Err(VmError::Denied(_))));
    vm.start(None).await?;
    vm.running().await?;
    vm.agent()?.ping().await?;
    let (stdout, ..) = vm.exec(&ExecRequest::new(["hello"]))?.collect().await?;
    assert_eq!(stdout, b"hello");
    vm.pause().await?;
    assert_eq!(vm.status().state, State::Paused);
    vm.resume().await?;
    assert!(
        matches!(vm.destroy().await, Err(VmError::Denied(_))),
        "it is live"
    );
    assert_eq!(vm.stop(Duration::from_secs(1)).await?, Outcome::Stopped);
    node.end(vm).await
}

#[tokio::test]
async fn a_vmm_that_does_not_start_says_why() -> Result<()> {
    let node = Node::new(vmm(Vmm::Broken)).await?;
    let vm = node.vm()?;
    let Err(VmError::Ended(Outcome::Failed(Failure::Launch(why)))) = vm.start(None).await else {
        panic!()
    };
    assert_eq!(why, "scripted is not installed");
    node.end(vm).await
}

#[tokio::test]
async fn a_vmm_that_dies_ends_the_vm() -> Result<()> {
    let node = Node::new(vmm(Vmm::Dies)).await?;
    let vm = node.vm()?;
    let Err(VmError::Ended(Outcome::Failed(Failure::Launch(why)))) = vm.start(None).await else {
        panic!()
    };
    assert_eq!(why, "it ended at once: exit 1");
    node.end(vm).await
}

#[tokio::test]
async fn a_silent_guest_runs_into_the_deadline() -> Result<()> {
    let timeouts = Timeouts {
        boot: Duration::from_millis(200),
        ..TIMEOUTS
    };
    let node = Node::with_timeouts(guest(Guest::Silent), timeouts).await?;
    let vm = node.vm()?;
    vm.start(None).await?;
    assert_eq!(
        vm.wait().await?,
        Outcome::Failed(Failure::Silent(timeouts.boot))
    );
    node.end(vm).await
}

#[tokio::test]
async fn a_deaf_vmm_is_killed() -> Result<()> {
    let node = Node::new(vmm(Vmm::Deaf)).await?;
    let vm = node.vm()?;
    vm.start(None).await?;
    vm.running().await?;
    assert_eq!(vm.stop(Duration::ZERO).await?, Outcome::Stopped);
    node.end(vm).await
}

#[tokio::test]
async fn a_guest_that_cannot_go_on_says_why() -> Result<()> {
    let node = Node::new(guest(Guest::Fatal(
        "the image is\x1b[2J no filesystem".into(),
    )))
    .await?;
    let vm = node.vm()?;
    vm.start(None).await?;
    let Outcome::Failed(Failure::Guest(why)) = vm.wait().await? else {
        panic!()
    };
    assert_eq!(
        why, "the image is\\u{1b}[2J no filesystem",
        "escapes are harmless"
    );
    node.end(vm).await
}

/// Whatever a guest sends instead of frames ends that VM, with a reason.
#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_killed() -> Result<()> {
    let frame = |message: ToHost<'_>, stream| {
        let mut bytes = Vec::new();
        message.encode(stream, &mut bytes).unwrap();
        bytes
    };
    let newer = Versions { min: 7, max: 9 };
    let hello = ToHost::Hello {
        versions: newer,
        started_us: 0,
        now_us: 0,
        boot_id: [0; 16],
        is_ready: false,
    };
    let mut endless = frame(ToHost::Pong(1), 0);
    endless[8..HEADER].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, reason) in [
        (b"login: ".to_vec(), "a frame begins with"),
        (endless, "over the limit"),
        (frame(hello, 0), "no common protocol version"),
        (frame(ToHost::Ready { now_us: 1 }, 0), "Ready before Hello"),
        (frame(ToHost::Data(b"x"), 5), "an answer before Hello"),
    ] {
        let node = Node::new(guest(Guest::Sends(bytes))).await?;
        let vm = node.vm()?;
        vm.start(None).await?;
        let Outcome::Failed(Failure::Guest(why)) = vm.wait().await? else {
            panic!("{reason}")
        };
        assert!(why.contains(reason), "{why}");
        node.end(vm).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_sends_more_than_its_window_is_killed() -> Result<()> {
    let mut flood = Vec::new();
    for _ in 0..5 {
        ToHost::Data(&[7; 64 * 1024]).encode(1, &mut flood)?;
    }
    let node = Node::new(guest(Guest::SendsLater(flood))).await?;
    let vm = node.vm()?;
    let exec = vm.start(Some(main_command(&["flood"]))).await?.unwrap();
    let Outcome::Failed(Failure::Guest(why)) = vm.wait().await? else {
        panic!()
    };
    assert!(why.contains("more data than the stream's window"), "{why}");
    drop(exec);
    node.end(vm).await
}

/// A frame that begins and never ends costs its VM ten seconds and nobody else anything.
#[tokio::test]
async fn half_a_frame_is_not_waited_for_forever() -> Result<()> {
    let mut half = Vec::new();
    ToHost::Data(&[7; 1000]).encode(1, &mut half)?;
    half.truncate(500);
    let node = Node::new(guest(Guest::SendsLater(half))).await?;
    let vm = node.vm()?;
    let mut exec = vm.start(Some(main_command(&["half"]))).await?.unwrap();
    vm.running().await?;
    assert!(matches!(exec.next().await, Err(AgentError::Stalled)));
    let Outcome::Failed(Failure::Guest(why)) = vm.wait().await? else {
        panic!()
    };
    assert_eq!(why, "it sent half a frame and then nothing");
    node.end(vm).await
}

#[tokio::test]
async fn a_kill_is_heard_while_the_launch_is_under_way() -> Result<()> {
    let script = Script {
        launch_time: Duration::from_millis(300),
        ..Script::default()
    };
    let node = Node::new(script).await?;
    let vm = node.vm()?;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start(None).await.map(drop) }
    });
    while vm.status().state == State::Created {
        tokio::task::yield_now().await;
    }
    assert_eq!(vm.kill().await?, Outcome::Stopped);
    let _ = starting.await?;
    node.end(vm).await
}

#[tokio::test]
async fn a_dropped_handle_takes_its_vm_along() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let vm = node.vm()?;
    vm.start(None).await?;
    let exec = vm.exec(&ExecRequest::new(["sleep"]))?;
    drop((vm, exec));
    let Node { root, executor } = node;
    for _ in 0..1000 {
        if root.paths()?.vms().read_dir()?.count() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(executor);
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_leaves_nothing() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let null = || File::open("/dev/null");
    for (cpus, memory) in [(0, 128), (1000, 128), (1, u32::MAX)] {
        let boot = Boot {
            kernel: null()?,
            initrd: null()?,
            filesystem: "none".into(),
            image: null()?,
        };
        let mut job = JobSpec::new("none", vec!["true".into()]);
        job.resources.cpus = cpus;
        job.resources.memory = MiB(memory);
        assert!(node.executor.create(JobId::random(), &job, boot).is_err());
    }
    let Node { root, executor } = node;
    drop(executor);
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn output_that_nobody_reads_does_not_stop_the_guest() -> Result<()> {
    let node = Node::new(Script::default()).await?;
    let vm = node.vm()?;
    let mut exec = vm.start(Some(main_command(&["sleep"]))).await?.unwrap();
    assert_eq!(exec.next().await?, ExecEvent::Started(7));
    exec.input().signal(15)?;
    assert_eq!(
        exec.next().await?,
        ExecEvent::Exited(ExitStatus::Signal(15))
    );
    assert_eq!(vm.wait().await?, Outcome::Finished(ExitStatus::Signal(15)));
    node.end(vm).await
}
