//! Network devices that Firecracker cannot have: each is refused by its name, and nothing is started.

use super::{VERSION, block_on};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::hypervisor::{
    Driver, Kernel, Launch, LaunchError, Link, LinkEnds, Machine, Memory, Nic, Sockets, Start,
};
use aleph_testkit::Namespace;
use aleph_types::{Classify, MiB, Resources, VmId};
use aleph_vm_networking::network::link_name;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn driver() -> Result<FirecrackerDriver> {
    Ok(FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(VERSION)?,
        needs_kvm: false,
        ..DriverConfig::default()
    }))
}

/// The code and the advice with which a VM with these devices is refused.
async fn refused(
    driver: &FirecrackerDriver,
    nics: Vec<Vec<OwnedFd>>,
    links: Vec<OwnedFd>,
) -> Result<LaunchError> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, b"nothing")?;
        File::open(path)
    };
    let listen = |name: &str| UnixListener::bind(dir.path().join(name));
    let nics = nics.into_iter().map(|queues| Nic { mac: MAC, queues });
    let links = links.into_iter().map(|socket| Link { mac: MAC, socket });
    let launch = Launch {
        vm: VmId::random(),
        machine: Machine::MicroVm,
        resources: Resources {
            memory: MiB(128),
            ..Resources::default()
        },
        start: Start::Boot(Kernel {
            kernel: file("kernel")?,
            initrd: file("initrd")?,
            command_line: "none".into(),
        }),
        memory: Memory::Own,
        disks: Vec::new(),
        nics: nics.collect(),
        links: links.collect(),
        sockets: Sockets {
            control: listen("vmm.sock")?,
            agent: listen("agent.sock")?,
            console: listen("console.sock")?,
        },
        run_dir: dir.path().to_owned(),
        cgroup: None,
        user: Some(300_000),
    };
    let error = driver.launch(launch).await.err().context("it is taken")?;
    ensure!(matches!(error, LaunchError::Nic(_)), "{error:?}");
    Ok(error)
}

pub(super) async fn devices() -> Result<()> {
    let driver = driver()?;
    let (one, other) = (Namespace::new()?, Namespace::new()?);

    let two = refused(&driver, vec![one.tap("two", 2)?], Vec::new()).await?;
    assert_eq!(two.code(), "firecracker_nic_queues");
    assert_eq!(
        two.to_string(),
        "a network device of Firecracker has one queue, not 2"
    );
    let none = refused(&driver, vec![Vec::new()], Vec::new()).await?;
    assert_eq!(none.code(), "firecracker_nic_queues");
    // Of a TAP that can have several it cannot have one either.
    let mut several = one.tap("several", 2)?;
    several.truncate(1);
    let several = refused(&driver, vec![several], Vec::new()).await?;
    assert_eq!(several.code(), "firecracker_nic_queues");
    assert!(several.to_string().starts_with("several "), "{several}");

    let passing = one.fleeting_tap("passing")?;
    let passing = refused(&driver, vec![vec![passing]], Vec::new()).await?;
    assert_eq!(passing.code(), "firecracker_nic_not_persistent");

    let apart = vec![one.tap("here", 1)?, other.tap("there", 1)?];
    let apart = refused(&driver, apart, Vec::new()).await?;
    assert_eq!(apart.code(), "firecracker_nic_namespaces");
    assert!(apart.to_string().starts_with("here and there "), "{apart}");

    // A link whose other end is nothing that a TAP's frames come from.
    let pair = LinkEnds::pair()?;
    let pair = refused(&driver, Vec::new(), vec![pair.vmm]).await?;
    assert_eq!(pair.code(), "firecracker_link");
    // Nothing is left of one that is refused after it was made.
    let links = one.ip("-o link")?;
    ensure!(
        !links.contains(&link_name(VmId::random(), 0)[..4]),
        "{links}"
    );
    Ok(())
}

/// In the open the VMM's user opens `/dev/net/tun`; where that may not be, it is said before anything
/// is started, and what to do.
pub(super) fn closed_device() -> Result<()> {
    // A mount namespace of this thread's, and of those that it starts.
    let checked = std::thread::spawn(|| -> Result<()> {
        // SAFETY: no descriptor depends on which mounts there are.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        super::device(0o600)?;
        block_on(async {
            let driver = driver()?;
            let space = Namespace::new()?;
            let tap = vec![space.tap("tap0", 1)?];
            let closed = refused(&driver, tap, Vec::new()).await?;
            assert_eq!(closed.code(), "firecracker_nic_device");
            let advice = closed.advice().context("no advice")?;
            assert!(advice.contains("chmod 0666 /dev/net/tun"), "{advice}");
            let link = driver.link().await?;
            let closed = refused(&driver, Vec::new(), vec![link.vmm]).await?;
            assert_eq!(closed.code(), "firecracker_nic_device");
            Ok(())
        })
    });
    checked.join().ok().context("it panicked")?
}
