//! Where a node keeps what it has.

use aleph_types::VmId;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The folders of one node. `--root DIR` moves them all under one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    state: PathBuf,
    run: PathBuf,
    name: String,
}

impl Paths {
    /// The folders under `root`, or the system's own where that is `None`.
    ///
    /// # Errors
    /// Where `root` is not there and cannot be made.
    pub fn new(root: Option<&Path>) -> std::io::Result<Self> {
        // Closed to others: VMMs get descriptors, and so need no way through.
        let private = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let Some(root) = root else {
            for dir in ["/var/lib/aleph", "/run/aleph"] {
                // Whoever may not make them is told so by what needs them.
                let _ = private(Path::new(dir));
            }
            return Ok(Self {
                state: "/var/lib/aleph".into(),
                run: "/run/aleph".into(),
                name: "node".into(),
            });
        };
        private(root)?;
        let root = root.canonicalize()?;
        let name = format!("{:016x}", fnv1a(root.as_os_str().as_encoded_bytes()));
        Ok(Self {
            run: root.join("run"),
            state: root,
            name,
        })
    }

    /// Images, kernels, and what VMs keep on disk.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What does not outlive the host's boot.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// A name for objects of this node outside its folders, unlike that of any other node on
    /// this host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder with all VMs' folders.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// What one VM keeps on disk.
    #[must_use]
    pub fn vm_state(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    /// One VM's sockets.
    #[must_use]
    pub fn vm_run(&self, vm: VmId) -> PathBuf {
        self.run.join("vms").join(vm.to_string())
    }
}

/// FNV-1a, 64 bits: short names that do not change from build to build
/// (<https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
