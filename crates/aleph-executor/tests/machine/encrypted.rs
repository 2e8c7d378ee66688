//! Encrypted volumes as a guest's disks: there at its start, and attached while it runs.

use crate::hotplug::see;
use crate::{LIMIT, World, powers_off, wanted};
use aleph_executor::hypervisor::{Disk, DiskFormat, Layer};
use aleph_executor::qemu::machine::Firmware;
use aleph_executor::volumes::{
    Attachment, BackendChoice, LayerFormat, NewVolume, Owner, Passphrase, Volumes, VolumesConfig,
};
use aleph_testkit::ShellGuest;
use aleph_types::{Filesystem, Incarnation, JobId, MiB, VolumeAccess};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

/// What the guest writes.
const MARK: &str = "written-by-the-guest-in-the-clear";

pub(crate) async fn what_a_guest_writes_to_an_encrypted_disk_is_not_in_the_clear() -> Result<()> {
    let world = World::new()?;
    let state = world.path("node");
    let config = VolumesConfig {
        backend: BackendChoice::Qcow2,
        encrypt: true,
        ..VolumesConfig::default()
    };
    let volumes = Volumes::open(&state, config)?;
    for name in ["cold", "hot"] {
        let new = NewVolume {
            account: "a",
            name,
            encrypted: None,
        };
        let volume = volumes.create(new, MiB(32), Filesystem::Ext4)?;
        // Two layers, each with the key.
        volumes.snapshot(volume.id, "empty")?;
    }
    let (who, at_first) = attach(&volumes, "cold")?;
    let key = text_of(&at_first)?;
    let guest = ShellGuest::new(world.dir.path())?;
    let wanted = wanted(Firmware::Bios);
    let mut plan = world.plan(&wanted, guest.boot("")?)?;
    plan.disks.push(disk("cold", at_first)?);
    let vm = world.launch(plan).await?;
    ShellGuest::ready(&vm).await?;
    fill(&vm, "vda").await?;

    let hotplug = vm.vmm.hotplug().context("no hotplug")?;
    let (other, hot) = attach(&volumes, "hot")?;
    let hot_key = text_of(&hot)?;
    hotplug.attach_disk(disk("hot", hot)?).await?;
    fill(&vm, "vdb").await?;
    hotplug.resize_disk("hot", 48 << 20).await?;
    see(&vm, "test $(cat /sys/block/vdb/size) = 98304").await?;
    hotplug.detach_disk("hot", LIMIT).await?;
    volumes.release(&other, true)?;
    // And once more, by the same name: it is there, and nothing of the first time is in the way.
    let (other, hot) = attach(&volumes, "hot")?;
    hotplug.attach_disk(disk("hot", hot)?).await?;
    let found = ShellGuest::run(
        &vm,
        "until test -e /dev/vdb; do sleep 0.1; done; \
         dd if=/dev/vdb bs=1M skip=8 count=1 2>/dev/null | head -n 1",
    );
    ensure!(found.await?.trim() == MARK, "it is not there any more");
    hotplug.detach_disk("cold", LIMIT).await?;

    // No process has a key in its words, and no log in its lines.
    for text in [&key, &hot_key] {
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            ensure!(!has(&line, text), "it is in a command line");
            let line = fs::read(entry.path().join("environ")).unwrap_or_default();
            ensure!(!has(&line, text), "it is in an environment");
        }
    }
    powers_off(&vm).await?;
    volumes.release(&who, true)?;
    volumes.release(&other, true)?;
    for text in [key.as_slice(), &hot_key, MARK.as_bytes()] {
        ensure!(!is_below(&world.path(""), text)?, "it is on the disk");
    }
    Ok(())
}

/// Writes a MiB of the mark, over and over.
async fn fill(vm: &aleph_testkit::DrivenVm, name: &str) -> Result<()> {
    let line = format!(
        "until test -e /dev/{name}; do sleep 0.1; done; yes {MARK} | head -c 1048576 | \
         dd of=/dev/{name} bs=1M seek=8 iflag=fullblock conv=fsync 2>/dev/null"
    );
    ShellGuest::run(vm, &line).await.map(drop)
}

fn attach(volumes: &Volumes, name: &str) -> Result<(Owner, Attachment)> {
    let owner = Owner {
        job: JobId::random(),
        incarnation: Incarnation::default(),
    };
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    ensure!(attached.layers.backing.len() == 1, "it has two layers");
    Ok((owner, attached))
}

fn text_of(attached: &Attachment) -> Result<Vec<u8>> {
    let key = attached.layers.key.as_ref().context("it has no key")?;
    let file = key.file()?;
    let mut text = Vec::new();
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.read_to_end(&mut text)?;
    Ok(text)
}

fn disk(serial: &'static str, attached: Attachment) -> Result<Disk> {
    let layers = attached.layers;
    let file_of = |key: Option<&Passphrase>| key.map(Passphrase::file).transpose();
    let key = file_of(layers.key.as_ref())?;
    let backing = layers.backing.into_iter().map(|layer| {
        Ok(Layer {
            is_qcow2: layer.format == LayerFormat::Qcow2,
            key: file_of(layer.key.as_ref())?,
            file: layer.file,
        })
    });
    let backing = backing.collect::<Result<_>>()?;
    Ok(Disk {
        format: DiskFormat::Qcow2 { backing },
        key,
        ..Disk::raw(serial, layers.top, false)
    })
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|some| some == text)
}

fn is_below(folder: &Path, text: &[u8]) -> Result<bool> {
    for entry in fs::read_dir(folder)?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let found = match (kind.is_dir(), kind.is_file()) {
            (true, _) => is_below(&path, text)?,
            (_, true) => has(&fs::read(&path)?, text),
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
