//! A Debian of its own, with the cloud-init that it comes with, for tests of full VMs.

use crate::debian::run;
use crate::root::target;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a cloud image of Debian 12 has of these, and no more.
const PACKAGES: &str = "systemd-sysv,dbus,udev,cloud-init,cloud-guest-utils,netplan.io,\
                        openssh-server,sudo,e2fsprogs,iproute2,initramfs-tools,\
                        linux-image-cloud-amd64";
/// What of them is not needed.
const PATHS: [&str; 4] = [
    "exclude=/usr/share/man/*",
    "exclude=/usr/share/doc/*",
    "exclude=/usr/share/locale/*",
    // Without it no locale can be set.
    "include=/usr/share/locale/locale.alias",
];
/// What of it a boot waits for and no test looks at. By emulation each costs a second or so.
const MASKED: [&str; 10] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-binfmt.service",
    "systemd-journal-flush.service",
    "systemd-pstore.service",
    "systemd-update-utmp.service",
];
/// Where it asks first, a locale that is to be made, a boot loader that is to be described and keys on a
/// console decide how long a boot takes.
const CLOUD_CONFIG: &str = "datasource_list: [ NoCloud, None ]\n\
    locale: C.UTF-8\n\
    grub_dpkg: {enabled: false}\n\
    ssh: {emit_keys_to_console: false}\n";
/// An initramfs with what these machines have, a third as large as one for all machines.
const INITRAMFS: &str = "set -e; cd \"$1\"/etc/initramfs-tools; \
    printf '%s\\n' virtio_pci virtio_blk ext4 > modules; \
    sed -i 's/^MODULES=.*/MODULES=list/' initramfs.conf; \
    chroot \"$1\" update-initramfs -u -k all";
/// Changes with what is made below.
const VERSION: &str = "3";
const UNIT: &str = "[Unit]\n\
    Description=Tells the test what became of this guest\n\
    After=cloud-final.service\n\
    [Service]\n\
    Type=oneshot\n\
    ExecStart=/bin/sh -c '/bin/sh /dev/disk/by-id/virtio-report >/dev/ttyS1 2>&1; sync; poweroff -f'\n\
    [Install]\n\
    WantedBy=cloud-init.target\n";

/// Debian 12 as a guest's root: a raw ext4 disk, which no test may write to, with its kernel and
/// initrd. At the end of cloud-init it runs the shell script that is on the virtio disk with the
/// serial number `report`, with the second serial port as output, and powers off.
#[derive(Debug)]
pub struct DebianRoot {
    /// The disk.
    pub disk: PathBuf,
    /// For `-kernel`.
    pub kernel: PathBuf,
    /// For `-initrd`.
    pub initrd: PathBuf,
}

impl DebianRoot {
    /// What its kernel is told beside its root. What an emulator has no need of, and modules for what only
    /// an emulated processor claims to have, take their time.
    pub const OPTIONS: &str = "console=ttyS0 quiet mitigations=off cryptomgr.notests noreplace-smp audit=0 \
        module_blacklist=kvm,kvm_amd,kvm_intel,aesni_intel,ghash_clmulni_intel,crc32_pclmul,\
        crct10dif_pclmul,sha512_ssse3";

    /// The root of all tests, made with mmdebstrap at the first call, which takes minutes and root's
    /// rights.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new() -> Result<Self> {
        let debian = target().join("test-root/debian-12");
        fs::create_dir_all(&debian)?;
        let debian = debian.canonicalize()?;
        let lock = File::create(debian.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let root = Self {
            disk: debian.join("root.ext4"),
            kernel: debian.join("vmlinuz"),
            initrd: debian.join("initrd"),
        };
        let (done, wanted) = (debian.join("made-of"), format!("{VERSION} {PACKAGES}"));
        if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
            return Ok(root);
        }
        let work = tempfile::tempdir_in(&debian)?;
        let tree = work.path().join("tree");
        root.make(&tree)?;
        fs::write(done, wanted)?;
        Ok(root)
    }

    fn make(&self, tree: &Path) -> Result<()> {
        let languages = "--aptopt=Acquire::Languages \"none\"";
        // What it mounts goes with it, also where it is killed.
        run(Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "mmdebstrap"])
            .args(["--quiet", "--variant=minbase", languages])
            .args(PATHS.map(|path| format!("--dpkgopt=path-{path}")))
            .arg(format!("--customize-hook={INITRAMFS}"))
            .arg(format!("--include={PACKAGES}"))
            .arg("bookworm")
            .arg(tree))?;
        let units = tree.join("etc/systemd/system");
        fs::write(units.join("report.service"), UNIT)?;
        let wants = units.join("cloud-init.target.wants");
        fs::create_dir_all(&wants)?;
        std::os::unix::fs::symlink("../report.service", wants.join("report.service"))?;
        fs::write(tree.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
        for unit in MASKED {
            std::os::unix::fs::symlink("/dev/null", units.join(unit))?;
        }
        fs::write(
            tree.join("etc/cloud/cloud.cfg.d/10_nocloud.cfg"),
            CLOUD_CONFIG,
        )?;
        for (name, to) in [("vmlinuz-", &self.kernel), ("initrd.img-", &self.initrd)] {
            let boot = fs::read_dir(tree.join("boot"))?;
            let from = boot
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| {
                    path.file_name()
                        .is_some_and(|it| it.to_string_lossy().starts_with(name))
                })
                .with_context(|| format!("no {name} in the root"))?;
            fs::copy(from, to)?;
        }
        File::create(&self.disk)?.set_len(2 << 30)?;
        run(Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(tree)
            .arg(&self.disk))
    }
}
