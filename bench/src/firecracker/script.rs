//! The reference: a shell script that knows nothing of Aleph starts the jailer and speaks to the API
//! with curl.

use super::Programs;
use super::life::{Guest, MEMORY, Template};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The user of its VMs, whom no node gives to one of its own.
const UID: u32 = 1_800_000_000;

pub(super) struct Script {
    dir: PathBuf,
    boot: PathBuf,
    restore: PathBuf,
}

impl Script {
    pub(super) fn new(
        dir: &Path,
        programs: &Programs,
        guest: &Guest,
        template: &Template,
    ) -> Result<Self> {
        let dir = dir.join("script");
        std::fs::create_dir_all(&dir)?;
        let begin = |files: &[(&Path, &str)]| {
            let (firecracker, jailer) = (&programs.firecracker, &programs.jailer);
            let mut text = format!(
                "#!/bin/bash\nset -e\ncd '{}'\n\
                 root=jail/$(basename '{fc}')/vm/root\n\
                 mkdir -p $root\nmkfifo console\nexec 9<>console 8<>console\n",
                dir.display(),
                fc = firecracker.display(),
            );
            for (path, name) in files {
                text.push_str(&format!("ln '{}' $root/{name}\n", path.display()));
            }
            text.push_str(&format!(
                "'{}' --id vm --exec-file '{}' --uid {UID} --gid {UID} --chroot-base-dir \"$PWD/jail\" \
                 -- --api-sock /api.sock --level Error </dev/null >&9 2>/dev/null &\n\
                 echo $! > pid\n\
                 until [ -S $root/api.sock ]; do sleep 0.001; done\n\
                 put() {{ curl -sf --unix-socket $root/api.sock -X PUT http://localhost/$1 -d \"$2\"; }}\n",
                jailer.display(),
                firecracker.display(),
            ));
            text
        };
        let mut boot = begin(&[(&guest.kernel, "kernel"), (&guest.initrd, "initramfs")]);
        boot.push_str(&format!(
            r#"put machine-config '{{"vcpu_count":1,"mem_size_mib":{}}}'
put boot-source '{{"kernel_image_path":"/kernel","initrd_path":"/initramfs","boot_args":"none"}}'
put vsock '{{"guest_cid":3,"uds_path":"/vsock.sock"}}'
put actions '{{"action_type":"InstanceStart"}}'
"#,
            MEMORY.0
        ));
        let mut restore = begin(&[(&template.state, "state"), (&template.memory, "template")]);
        restore.push_str(
            r#"put snapshot/load '{"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"/template"},"resume_vm":true}'
head -c 1 <&8 >/dev/null
"#,
        );
        let paths = ["boot.sh", "restore.sh"].map(|name| dir.join(name));
        let [boot_path, restore_path] = paths;
        std::fs::write(&boot_path, boot)?;
        std::fs::write(&restore_path, restore)?;
        Ok(Self {
            dir,
            boot: boot_path,
            restore: restore_path,
        })
    }

    pub(super) fn boots(&self) -> Result<Duration> {
        self.run(&self.boot)
    }

    pub(super) fn restores(&self) -> Result<Duration> {
        self.run(&self.restore)
    }

    /// Runs it, says how long it took, and takes all away that it made.
    fn run(&self, script: &Path) -> Result<Duration> {
        let began = Instant::now();
        let status = Command::new("timeout")
            .args(["60", "bash"])
            .arg(script)
            .stdin(Stdio::null())
            .status()?;
        let took = began.elapsed();
        let pid = std::fs::read_to_string(self.dir.join("pid"));
        let pid = pid.with_context(|| format!("{} ended with {status}", script.display()))?;
        if let Some(vm) = Pid::from_raw(pid.trim().parse()?) {
            kill_process(vm, Signal::KILL)?;
        }
        let gone = || (!Path::new("/proc").join(pid.trim()).exists()).then_some(());
        aleph_testkit::wait_until("the script's VM to be gone", Duration::from_secs(10), gone);
        std::fs::remove_dir_all(self.dir.join("jail"))?;
        for file in ["console", "pid"] {
            std::fs::remove_file(self.dir.join(file))?;
        }
        ensure!(status.success(), "{} ended with {status}", script.display());
        Ok(took)
    }
}
