//! libvirt and virt-install as a user of Debian has them.
//!
//! libvirtd runs in a mount namespace of its own, with folders in memory where it would keep the
//! host's: nothing of it is left, and a libvirtd of the host is not seen. It would choose KVM where the
//! device opens, so the emulator is said.

use super::space::{Shared, address};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes the folders, starts libvirtd and does what lines on its standard input say, each of which it
/// answers with one line.
const SCRIPT: &str = r#"
set -eu
for folder in /etc/libvirt /var/lib/libvirt /run /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
mkdir -p /run/libvirt
# Debian's other package makes these, and enables a daemon with them.
cp /etc/passwd /run/passwd
echo libvirt-qemu:x:64055:65534::/var/lib/libvirt:/usr/sbin/nologin >>/run/passwd
mount --bind /run/passwd /etc/passwd
cp /etc/group /run/group
echo libvirt-qemu:x:64055: >>/run/group
grep -q ^kvm: /run/group || echo kvm:x:64054: >>/run/group
mount --bind /run/group /etc/group
# Neither a security module nor cgroups: what it has is compared without them.
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
END
printf 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n' >/etc/libvirt/libvirtd.conf
/usr/sbin/libvirtd -f /etc/libvirt/libvirtd.conf >/dev/null 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon || true' EXIT
tries=0
until virsh -q -c qemu:///system list >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
echo ready
while read -r line; do
    if said=$(eval "$line" 2>&1); then echo done; else echo "failed: $said" | tr '\n' ' '; echo; fi
done
"#;

const NAME: &str = "bench";
const TAP: &str = "peer0";

/// libvirtd, which ends with its standard input.
pub(super) struct Libvirt {
    child: Child,
    ask: Option<ChildStdin>,
    answer: BufReader<std::process::ChildStdout>,
}

impl Libvirt {
    /// Starts it in the network namespace of this thread.
    pub(super) fn start() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--kill-child",
                "--fork",
            ])
            .args(["bash", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answer = BufReader::new(child.stdout.take().context("its output")?);
        let ask = child.stdin.take();
        let mut libvirt = Self { child, ask, answer };
        libvirt.hear("ready").context("libvirtd does not start")?;
        super::space::tap(TAP, address::PEER_HOST)?;
        Ok(libvirt)
    }

    /// Creates the VM as users do. Gives when the command began, and how long it took.
    pub(super) fn create(&mut self, shared: &Shared, disk: &Path) -> Result<(Instant, Duration)> {
        let (base, seed) = (shared.image.display(), shared.seed.display());
        let (cpus, memory) = (shared.cpus, shared.memory.0);
        let began = Instant::now();
        self.tell(&format!(
            "timeout 120 virt-install --connect qemu:///system --quiet --virt-type qemu --machine q35 \
             --name {NAME} --vcpus {cpus} --memory {memory} --cpu Nehalem --import --osinfo generic \
             --disk path={},backing_store={base},backing_format=qcow2,size={},bus=virtio \
             --disk path={seed},format=raw,readonly=on,bus=virtio \
             --network type=ethernet,target.dev={TAP},mac={},model=virtio,xpath1.set=./target/@managed=no \
             --boot loader={CODE},loader.readonly=yes,loader.type=pflash,nvram.template={VARIABLES} \
             --graphics none --noautoconsole",
            disk.display(),
            shared.disk.0 / 1024,
            address::PEER_MAC,
        ))?;
        Ok((began, began.elapsed()))
    }

    /// Takes the VM and its disk away.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.tell(&format!("virsh -q -c qemu:///system destroy {NAME}"))?;
        // Its disk alone: the seed is for the next one, too.
        self.tell(&format!(
            "virsh -q -c qemu:///system undefine --nvram --storage vda {NAME}"
        ))
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let ask = self.ask.as_mut().context("it has ended")?;
        writeln!(ask, "{line}")?;
        ask.flush()?;
        self.hear("done").with_context(|| line.to_owned())
    }

    fn hear(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.answer.read_line(&mut line)?;
        ensure!(line.trim_end() == wanted, "it says {line:?}");
        Ok(())
    }
}

const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

impl Drop for Libvirt {
    fn drop(&mut self) {
        drop(self.ask.take());
        let _ = self.child.wait();
    }
}
