//! One VM's surroundings, and what is left of it there.

use crate::{LIMIT, VERSION};
use aleph_executor::cgroup::{Cgroup, CgroupTree};
use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::memory::ServerProgram;
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver, MemoryMode};
use aleph_executor::hypervisor::{Disk, Driver, Kernel, Link, LinkEnds, Memory, Nic, Start};
use aleph_testkit::{DrivenVm, FaultyFirecracker, Namespace, Plan, TestRoot};
use aleph_types::{MiB, VmId};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Enough for a kernel that begins to boot.
const SIZE: MiB = MiB(64);

/// How long what goes by itself may take to be gone: only what stays takes as long.
const GOING: Duration = Duration::from_secs(60);

/// What all worlds of a test have: programs, and what guests boot.
pub(crate) struct Parts {
    double: PathBuf,
    jailer: Option<PathBuf>,
    memory: MemoryMode,
    kernel: PathBuf,
    initrd: PathBuf,
    image: PathBuf,
    _root: TestRoot,
}

impl Parts {
    pub(crate) fn new(is_jailed: bool) -> Result<Self> {
        let root = TestRoot::new()?;
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        let jailer = is_jailed.then(|| aleph_testkit::jailer_double(VERSION));
        Ok(Self {
            double: aleph_testkit::firecracker_double(VERSION)?,
            jailer: jailer.transpose()?,
            memory: MemoryMode::File,
            kernel: bundle
                .vmlinux()
                .context("no uncompressed kernel")?
                .to_owned(),
            initrd: bundle.initrd().to_owned(),
            image: image.rootfs(),
            _root: root,
        })
    }

    /// The same in jails, where guests' memory is filled by servers.
    pub(crate) fn served() -> Result<Self> {
        let memory = MemoryMode::Userfaultfd {
            server: ServerProgram::this(),
            prefetch: false,
        };
        let parts = Self::new(true)?;
        Ok(Self { memory, ..parts })
    }

    pub(crate) fn world(&self) -> Result<World<'_>> {
        World::new(self, UidRange::default())
    }
}

/// All that a VM needs, and where it might leave something.
pub(crate) struct World<'a> {
    parts: &'a Parts,
    pub(crate) root: TestRoot,
    pub(crate) firecracker: FaultyFirecracker,
    pub(crate) driver: FirecrackerDriver,
    pub(crate) jails: Option<Jails>,
    tree: Option<CgroupTree>,
    /// Where its TAP is, where we may make one.
    space: Option<Namespace>,
}

impl<'a> World<'a> {
    pub(crate) fn new(parts: &'a Parts, users: UidRange) -> Result<Self> {
        let root = TestRoot::empty()?;
        let firecracker = FaultyFirecracker::of(&parts.double, root.path())?;
        let jail = match &parts.jailer {
            Some(jailer) => {
                let jails = Jails::open(&root.path().join("jail"), users)?;
                Some((jails, jailer.clone()))
            }
            None => None,
        };
        let jails = jail.as_ref().map(|(jails, _)| jails.clone());
        let driver = FirecrackerDriver::new(DriverConfig {
            program: firecracker.program().to_owned(),
            jail,
            needs_kvm: false,
            memory: parts.memory.clone(),
            ..DriverConfig::default()
        });
        let tree = CgroupTree::open(root.paths()?.name());
        let is_root = rustix::process::geteuid().is_root();
        Ok(Self {
            parts,
            space: is_root.then(Namespace::new).transpose()?,
            tree,
            root,
            firecracker,
            driver,
            jails,
        })
    }

    /// What a guest boots.
    pub(crate) fn boot(&self) -> Result<Plan> {
        Ok(Plan::new(Start::Boot(Kernel {
            kernel: File::open(&self.parts.kernel)?,
            initrd: File::open(&self.parts.initrd)?,
            command_line: self.driver.kernel_arguments(),
        })))
    }

    /// Launches a VM with all the devices that this host lets it have.
    pub(crate) async fn launch(&self, plan: Plan) -> Result<DrivenVm> {
        let folder = self.root.paths()?.run().join("vms");
        fs::create_dir_all(&folder)?;
        let mut plan = Plan { size: SIZE, ..plan };
        plan.cgroup = self.cgroup(plan.vm);
        if let Some(cgroup) = &plan.cgroup {
            cgroup.create()?;
        }
        plan.disks
            .push(Disk::raw("image", File::open(&self.parts.image)?, true));
        if let Some(space) = &self.space {
            // It is persistent: one that was there before is made anew.
            let _ = space.ip("link delete tap0");
            let queues = space.tap("tap0", 1)?;
            let mac = [2, 0, 0, 0, 0, 1];
            plan.nics.push(Nic { mac, queues });
            let LinkEnds { vmm: socket, .. } = self.driver.link().await?;
            let mac = [2, 0, 0, 0, 0, 2];
            plan.links.push(Link { mac, socket });
        }
        DrivenVm::launch(&self.driver, &folder, plan).await
    }

    fn cgroup(&self, vm: VmId) -> Option<Cgroup> {
        Some(self.tree.as_ref()?.group(&vm.to_string()))
    }

    /// The requests that a VM's Firecracker has had, while it is there.
    pub(crate) fn requests(&self, vm: VmId) -> Result<Vec<String>> {
        let jail = match &self.jails {
            None => None,
            Some(jails) => {
                let jail = jails.find(vm, self.firecracker.program())?;
                Some(jail.context("no jail")?.root().to_owned())
            }
        };
        let path = self.firecracker.requests_of(jail.as_deref());
        let text = fs::read_to_string(path)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Writes a guest of this world to a file, with its memory in it or beside it.
    pub(crate) async fn written(&self, is_template: bool) -> Result<Written> {
        let state = self.root.path().join("state");
        let memory = is_template.then(|| self.root.path().join("memory"));
        let mut plan = self.boot()?;
        if let Some(path) = &memory {
            let file = File::create_new(path)?;
            file.set_len(u64::from(SIZE.0) << 20)?;
            plan.memory = Memory::Template(file);
        }
        let first = self.launch(plan).await?;
        first.pause().await?;
        first.save(&state).await?;
        let vm = first.vm;
        first.end().await?;
        self.forget(vm).await?;
        if let Some(memory) = &memory {
            // As whoever makes templates closes them.
            std::os::unix::fs::chown(memory, Some(0), Some(0))?;
            fs::set_permissions(memory, fs::Permissions::from_mode(0o444))?;
        }
        Ok(Written { state, memory })
    }

    /// Removes what whoever launched a VM removes after it.
    pub(crate) async fn forget(&self, vm: VmId) -> Result<()> {
        if let Some(cgroup) = self.cgroup(vm) {
            let began = Instant::now();
            while cgroup.is_populated() {
                let left = self.root.residue()?;
                ensure!(began.elapsed() < LIMIT, "processes are left: {left:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            cgroup.remove()?;
        }
        let run_dir = self.root.paths()?.vm_run(vm);
        match fs::remove_dir_all(run_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// What is left on the host, a line each, once no VM is there any more: waits for what goes by
    /// itself.
    pub(crate) async fn left(&self) -> Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let left = self.left_now()?;
            if left.is_empty() || began.elapsed() > GOING {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn left_now(&self) -> Result<Vec<String>> {
        if let Some(tree) = &self.tree {
            tree.remove_if_empty();
        }
        let mut left = self.root.residue()?;
        if let Some(jails) = &self.jails {
            let claims = jails.users().claims()?;
            left.extend(claims.keys().map(|uid| format!("the claim of {uid}")));
            for program in fs::read_dir(jails.base())? {
                let program = program?.path();
                for jail in fs::read_dir(&program).into_iter().flatten() {
                    left.push(format!("jail {}", jail?.path().display()));
                }
            }
        }
        if let Some(space) = &self.space {
            let links = space.ip("-o link")?;
            let is_left = |line: &&str| {
                line.contains("lnk-") || line.contains("tap0: <BROADCAST,MULTICAST,UP,LOWER_UP")
            };
            left.extend(links.lines().filter(is_left).map(|l| format!("link {l}")));
        }
        left.extend(held(self.root.path()));
        Ok(left)
    }
}

/// A guest that was written down.
pub(crate) struct Written {
    pub(crate) state: PathBuf,
    /// Where its memory is, where that is not with the state.
    pub(crate) memory: Option<PathBuf>,
}

impl Written {
    pub(crate) fn plan(&self) -> Result<Plan> {
        let mut plan = Plan::restore(&self.state)?;
        if let Some(memory) = &self.memory {
            plan.memory = Memory::Clone(File::open(memory)?);
        }
        Ok(plan)
    }
}

/// What this process has open of a VM below a folder.
fn held(folder: &Path) -> Vec<String> {
    let mut held = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(to) = fs::read_link(entry.path()) else {
            continue;
        };
        let is_vms = ["jail", "run"].iter().any(|name| {
            let parts = to.strip_prefix(folder.join(name));
            // The folders themselves are the world's.
            parts.is_ok_and(|rest| rest.components().count() > 1)
        });
        if is_vms {
            held.push(format!("descriptor of {}", to.display()));
        }
    }
    held
}
