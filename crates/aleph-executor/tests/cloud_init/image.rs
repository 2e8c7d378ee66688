//! The seed's disk, read by mtools, and its file.

use crate::{debian_trial, trial};
use aleph_executor::cloud_init::{File, GuestSpec, Owner, Secret};
use aleph_executor::seed_file::write_seed;
use aleph_testkit::mtools;
use aleph_types::{JobId, NodeId};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        debian_trial("mtools_read_the_disk", mtools_read_the_disk),
        trial(
            "equal_guests_have_equal_disks",
            equal_guests_have_equal_disks,
        ),
        trial("a_seed_is_the_nodes_alone", a_seed_is_the_nodes_alone),
    ]
}

fn spec(bytes: usize) -> GuestSpec {
    let mut spec = GuestSpec::new(JobId::from_bits(1), NodeId::from_bits(2));
    spec.files.push(File {
        path: "/large".into(),
        content: Secret::new(vec![0xfe; bytes]),
        mode: 0o600,
        owner: Owner::Ids { uid: 0, gid: 0 },
    });
    spec
}

fn of_mtools(program: &str, disk: &Path, args: &[&str]) -> Vec<u8> {
    let ran = mtools(program)
        .unwrap()
        .arg("-i")
        .arg(disk)
        .args(args)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    ran.stdout
}

fn mtools_read_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("seed");
    // The largest is one that FAT12 does not hold.
    for bytes in [0, 100_000, aleph_executor::cloud_init::MAX_FILES] {
        let seed = spec(bytes).seed().unwrap();
        let image = seed.image().unwrap();
        assert_eq!(image.len() % (1 << 20), 0);
        write_seed(&disk, &image).unwrap();
        let label = of_mtools("mlabel", &disk, &["-s", "::"]);
        assert!(String::from_utf8_lossy(&label).contains("cidata"));
        let names = String::from_utf8(of_mtools("mdir", &disk, &["-b", "::"])).unwrap();
        let mut names: Vec<_> = names.lines().collect();
        names.sort_unstable();
        let wanted = ["meta-data", "network-config", "user-data", "vendor-data"];
        assert_eq!(names, wanted.map(|name| format!("::/{name}")));
        for (name, bytes) in seed.files() {
            assert_eq!(of_mtools("mtype", &disk, &[&format!("::{name}")]), bytes);
        }
    }
}

fn equal_guests_have_equal_disks() {
    let image = || spec(1000).seed().unwrap().image().unwrap();
    assert_eq!(image(), image());
    assert_ne!(image(), spec(1001).seed().unwrap().image().unwrap());
}

fn a_seed_is_the_nodes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seed");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    write_seed(&path, &"one".into()).unwrap();
    assert_eq!(mode(), 0o600);
    // What is there may be anybody's, and so may what a write that was cut short left.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(folder.path().join("seed.new"), "old and longer").unwrap();
    write_seed(&path, &"two".into()).unwrap();
    assert_eq!(mode(), 0o600);
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // A link in its place is replaced, and what it leads to is left alone.
    let victim = folder.path().join("victim");
    fs::write(&victim, "whole").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    write_seed(&path, &"three".into()).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"whole");
    assert_eq!(fs::read(&path).unwrap(), b"three");
}
