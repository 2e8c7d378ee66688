//! The real program with a guest that every KVM runs: it writes letters from pages of its own, and
//! counts in them.

use crate::{LIMIT, jail, program, server_program};
use aleph_executor::firecracker::jail::Jails;
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver, MemoryMode};
use aleph_executor::hypervisor::{Driver, Launch, Machine, Memory, Sockets, Start};
use aleph_executor::process::{Identity, Process};
use aleph_testkit::{DrivenVm, Plan};
use aleph_types::{MiB, Resources, VmId};
use anyhow::{Context, Result};
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

pub(crate) const MEMORY: MiB = MiB(32);

/// A page that no guest uses.
const UNUSED: u64 = 20 << 20;

pub(crate) fn settings(jail: Option<(Jails, PathBuf)>) -> Result<DriverConfig> {
    Ok(DriverConfig {
        program: program("FIRECRACKER_BIN").context("no firecracker")?,
        jail,
        ..DriverConfig::default()
    })
}

pub(crate) fn by_server(prefetch: bool) -> MemoryMode {
    MemoryMode::Userfaultfd {
        server: server_program(),
        prefetch,
    }
}

/// Boots the guest.
async fn boot(driver: &FirecrackerDriver, dir: &Path, memory: Memory) -> Result<DrivenVm> {
    let plan = Plan::freestanding(dir)?;
    DrivenVm::launch(driver, dir, Plan { memory, ..plan }).await
}

/// The next letters that it writes.
pub(crate) async fn writes(vm: &DrivenVm) -> Result<String> {
    vm.writes(40).await
}

/// Writes it down while it stands still.
pub(crate) async fn save(vm: &DrivenVm, to: &Path) -> Result<()> {
    let pause = vm.vmm.pause().context("no pause")?;
    if !pause.is_paused().await? {
        pause.pause().await?;
    }
    vm.save(to).await
}

/// The process that fills its memory.
fn server(vm: &DrivenVm) -> Result<Process> {
    let text = std::fs::read(vm.run_dir.join("memory-server.json"))?;
    let identity: Identity = serde_json::from_slice(&text)?;
    Ok(Process::adopt(&identity)?)
}

/// Letters that follow each other.
pub(crate) fn is_in_order(letters: &str) -> bool {
    letters.as_bytes().windows(2).all(|pair| match pair[0] {
        b'z' => pair[1] == b'a',
        letter => pair[1] == letter + 1,
    })
}

/// A template: its state, and its memory.
async fn template(driver: &FirecrackerDriver, dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (state, memory) = (dir.join("state"), dir.join("memory"));
    let file = File::create_new(&memory)?;
    file.set_len(u64::from(MEMORY.0) << 20)?;
    let first = boot(driver, dir, Memory::Template(file)).await?;
    writes(&first).await?;
    save(&first, &state).await?;
    first.end().await?;
    // As whoever makes templates closes them.
    std::os::unix::fs::chown(&memory, Some(0), Some(0))?;
    std::fs::set_permissions(&memory, Permissions::from_mode(0o444))?;
    Ok((state, memory))
}

async fn clone(
    driver: &FirecrackerDriver,
    dir: &Path,
    (state, memory): &(PathBuf, PathBuf),
) -> Result<DrivenVm> {
    let memory = Memory::Clone(File::open(memory)?);
    let plan = Plan::restore(state)?;
    DrivenVm::launch(driver, dir, Plan { memory, ..plan }).await
}

/// Clones go on from the same moment whatever fills their memory; a server ends with its VM.
pub(crate) async fn clones(jailed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| program("JAILER_BIN")).flatten();
    let jail = jail(dir.path(), jailer)?;
    let jails = jail.as_ref().map(|(jails, _)| jails.clone());
    let driver = |memory| {
        let settings = settings(jail.clone())?;
        Ok::<_, anyhow::Error>(FirecrackerDriver::new(DriverConfig { memory, ..settings }))
    };
    let template = template(&driver(MemoryMode::File)?, dir.path()).await?;
    let record = dir.path().join("memory.working-set");
    let mut written = Vec::new();
    for (memory, is_recorded) in [
        (MemoryMode::File, false),
        (by_server(false), false),
        (by_server(true), true),
        (by_server(true), true),
    ] {
        let is_served = memory != MemoryMode::File;
        let clone = clone(&driver(memory)?, dir.path(), &template).await?;
        let letters = writes(&clone).await?;
        assert!(is_in_order(&letters), "{letters}");
        written.push(letters);
        let server = is_served.then(|| server(&clone)).transpose()?;
        clone.end().await?;
        if let Some(server) = server {
            assert!(server.has_ended(), "a server is left");
        }
        assert_eq!(record.exists(), is_recorded);
    }
    written.dedup();
    assert_eq!(written.len(), 1, "from the same moment");
    let record = std::fs::read(&record)?;
    assert!(record.starts_with(b"ALEPHWS1") && record.len() > 32 + 4 * 20);
    if let Some(jails) = jails {
        assert!(jails.vms()?.is_empty(), "a jail is left");
    }
    Ok(())
}

/// A VM whose server is killed ends, and says why; also where a node adopts it afterwards.
pub(crate) async fn ends_with_its_server() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let driver = FirecrackerDriver::new(DriverConfig {
        memory: by_server(false),
        ..settings(None)?
    });
    let template = template(&driver, dir.path()).await?;
    let life = clone(&driver, dir.path(), &template).await?;
    writes(&life).await?;
    server(&life)?.kill()?;
    let exit = tokio::time::timeout(LIMIT, life.vmm.wait()).await?;
    let said = exit.to_string();
    assert!(said.contains("its memory server ended: killed"), "{said}");

    let life = clone(&driver, dir.path(), &template).await?;
    writes(&life).await?;
    let adopted = driver.adopt(life.vmm.identity(), life.run_dir.clone())?;
    server(&life)?.kill()?;
    let exit = tokio::time::timeout(LIMIT, adopted.wait()).await?;
    let said = exit.to_string();
    assert!(said.contains("its memory server ended"), "{said}");
    Ok(())
}

/// A launch that fails behind the start of its server leaves nobody, not even a zombie.
pub(crate) async fn fails_behind_its_server(jailed: bool) -> Result<()> {
    const VERSION: &str = "1.15.1";
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| aleph_testkit::jailer_double(VERSION));
    let jail = jail(dir.path(), jailer.transpose()?)?;
    let jails = jail.as_ref().map(|(jails, _)| jails.clone());
    let driver = FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(VERSION)?,
        jail,
        needs_kvm: false,
        memory: by_server(false),
        ..DriverConfig::default()
    });
    let memory = dir.path().join("memory");
    std::fs::write(&memory, vec![0; usize::try_from(MEMORY.0)? << 20])?;
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir)?;
    // Something is where its console is to be.
    std::fs::write(run_dir.join("console.pipe"), "")?;
    let listen = |name: &str| UnixListener::bind(run_dir.join(name));
    let launch = Launch {
        vm: VmId::random(),
        machine: Machine::MicroVm,
        resources: Resources {
            memory: MEMORY,
            ..Resources::default()
        },
        start: Start::Restore {
            state: File::open("/dev/null")?.into(),
        },
        memory: Memory::Clone(File::open(&memory)?),
        disks: Vec::new(),
        nics: Vec::new(),
        links: Vec::new(),
        sockets: Sockets {
            control: listen("vmm.sock")?,
            agent: listen("agent.sock")?,
            console: listen("console.sock")?,
        },
        run_dir: run_dir.clone(),
        cgroup: None,
        user: None,
    };
    let refused = driver.launch(launch).await.err();
    let refused = refused.context("it runs")?.to_string();
    assert!(refused.contains("the console's pipe"), "{refused}");
    let record = std::fs::read(run_dir.join("memory-server.json"))?;
    let server: Identity = serde_json::from_slice(&record)?;
    let process = PathBuf::from(format!("/proc/{}", server.pid));
    assert!(!process.exists(), "its server is left");
    if let Some(jails) = jails {
        assert!(jails.vms()?.is_empty(), "a jail is left");
    }
    Ok(())
}

/// A memory file that is cut is refused before a load, and ends a VM that needs more of it.
pub(crate) async fn ends_where_the_file_does() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let with = |memory| {
        let settings = settings(None)?;
        Ok::<_, anyhow::Error>(FirecrackerDriver::new(DriverConfig { memory, ..settings }))
    };
    let served = with(by_server(false))?;
    let template = template(&served, dir.path()).await?;
    let memory = File::options().write(true).open(&template.1)?;

    let life = clone(&served, dir.path(), &template).await?;
    // Nothing that the guest has not touched yet is there any more, as far as it has come.
    memory.set_len(0)?;
    let exit = tokio::time::timeout(LIMIT, life.vmm.wait()).await?;
    let said = exit.to_string();
    assert!(said.contains("its memory server ended"), "{said}");
    assert!(said.contains("memory file has"), "{said}");

    for driver in [served, with(MemoryMode::File)?] {
        let refused = clone(&driver, dir.path(), &template).await.err();
        let refused = format!("{:?}", refused.context("a cut file was taken")?);
        assert!(refused.contains("the memory file has 0 bytes"), "{refused}");
    }
    Ok(())
}

/// A guest that is written down again is written as what has changed since: where it began, or was
/// written down before.
pub(crate) async fn differs(jailed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| program("JAILER_BIN")).flatten();
    let driver = FirecrackerDriver::new(DriverConfig {
        track_dirty_pages: true,
        ..settings(jail(dir.path(), jailer)?)?
    });
    let [first, second, third] = ["first", "second", "third"].map(|name| dir.path().join(name));
    let life = boot(&driver, dir.path(), Memory::Own).await?;
    writes(&life).await?;
    save(&life, &first).await?;
    // What is told apart from the guest's own is told by where it came from: a page of the base.
    mark(&first)?;
    life.resume().await?;
    writes(&life).await?;
    save(&life, &second).await?;
    assert!(is_marked(&second)?, "all of it was written again");
    let by_difference = std::fs::read(&second)?;
    // Onto its own base nothing is laid: that is all of it.
    save(&life, &second).await?;
    assert!(!is_marked(&second)?);
    let mut whole = std::fs::read(&second)?;
    let at = usize::try_from(unused(&second)?)?;
    whole[at..at + 4096].fill(MARK);
    let begin = at - usize::try_from(UNUSED)?;
    assert!(whole[begin..] == by_difference[begin..], "other memory");
    life.end().await?;

    // One that goes on from there differs from there.
    std::fs::write(&second, by_difference)?;
    let again = DrivenVm::launch(&driver, dir.path(), Plan::restore(&second)?).await?;
    let letters = writes(&again).await?;
    assert!(is_in_order(&letters), "{letters}");
    save(&again, &third).await?;
    assert!(is_marked(&third)?, "the base's page is not there");
    let (before, after) = (count(&second)?, count(&third)?);
    assert!(after > before && before > 0, "{before} {after}");
    again.end().await
}

const MARK: u8 = 0xa5;

/// Where memory begins in a file that a guest was written to.
fn memory_in(file: &Path) -> Result<u64> {
    let mut length = [0; 8];
    File::open(file)?.read_exact_at(&mut length, 8)?;
    Ok((24 + u64::from_le_bytes(length)).next_multiple_of(4096))
}

fn unused(file: &Path) -> Result<u64> {
    Ok(memory_in(file)? + UNUSED)
}

fn mark(file: &Path) -> Result<()> {
    let at = unused(file)?;
    Ok(File::options()
        .write(true)
        .open(file)?
        .write_all_at(&[MARK; 4096], at)?)
}

fn is_marked(file: &Path) -> Result<bool> {
    let mut page = [0; 4096];
    File::open(file)?.read_exact_at(&mut page, unused(file)?)?;
    Ok(page == [MARK; 4096])
}

/// How often the guest has been at its first page.
fn count(file: &Path) -> Result<u32> {
    let mut count = [0; 4];
    File::open(file)?.read_exact_at(&mut count, memory_in(file)? + (4 << 20) + 8)?;
    Ok(u32::from_le_bytes(count))
}
