//! The node dies after each step of making a VM's place: the next one finds nothing but orphans
//! and removes them all, and it leaves alone what has an owner.

use aleph_executor::Paths;
use aleph_executor::cgroup::CgroupTree;
use aleph_executor::place::Place;
use aleph_executor::process::{Identity, Process, Spawn, boot_id};
use aleph_executor::sweep::{Grounds, sweep};
use aleph_testkit::TestRoot;
use aleph_types::MiB;
use anyhow::Result;
use std::fs::File;
use std::process::Command;

const LIMITS: aleph_executor::cgroup::Limits = aleph_executor::cgroup::Limits {
    cpus: 1,
    memory: MiB(128),
    pids: 64,
    io_bytes_per_second: None,
};

/// What a step makes, kept for as long as the node lives.
type Step = fn(&Place) -> Result<Box<dyn std::any::Any>>;

const STEPS: [Step; 4] = [
    |place| Ok(Box::new(place.listen()?)),
    |place| Ok(Box::new(place.make_cgroup(&LIMITS)?)),
    |place| Ok(Box::new(place.make_scratch(MiB(8))?)),
    // No process has this number: the kernel's limit is 2²².
    |place| {
        let nobody = Identity {
            pid: i32::MAX,
            start_time: 1,
            boot_id: boot_id()?,
        };
        Ok(Box::new(place.record(&nobody)?))
    },
];

fn grounds<'a>(paths: &'a Paths, cgroups: Option<&'a CgroupTree>) -> Grounds<'a> {
    Grounds {
        paths,
        cgroups,
        jails: None,
    }
}

#[tokio::test]
async fn a_crash_after_any_step_leaves_nothing_once_swept() -> Result<()> {
    for crash_after in 0..=STEPS.len() {
        let root = TestRoot::empty()?;
        let paths = root.paths()?;
        let cgroups = CgroupTree::open(paths.name());
        let place = Place::create(&paths, cgroups.as_ref())?;
        let vm = place.vm();
        let made = STEPS[..crash_after]
            .iter()
            .map(|step| step(&place))
            .collect::<Result<Vec<_>>>()?;

        assert_eq!(
            sweep(grounds(&paths, cgroups.as_ref()), None).await,
            [],
            "it has an owner"
        );
        // A dead process's descriptors close, its locks go: that is all a crash is here.
        drop((place, made));
        assert_eq!(sweep(grounds(&paths, cgroups.as_ref()), None).await, [vm]);
        assert_eq!(sweep(grounds(&paths, cgroups.as_ref()), None).await, []);
        if let Some(tree) = &cgroups {
            tree.remove_if_empty();
        }
        assert_eq!(
            root.residue()?,
            Vec::<String>::new(),
            "after step {crash_after}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn removing_twice_is_no_error() -> Result<()> {
    let root = TestRoot::empty()?;
    let paths = root.paths()?;
    let cgroups = CgroupTree::open(paths.name());
    let place = Place::create(&paths, cgroups.as_ref())?;
    let sockets = place.listen()?;
    place.make_cgroup(&LIMITS)?;
    place.remove()?;
    place.remove()?;
    drop(sockets);
    if let Some(tree) = &cgroups {
        tree.remove_if_empty();
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn an_orphans_process_is_killed_and_reaped() -> Result<()> {
    let root = TestRoot::empty()?;
    let paths = root.paths()?;
    let cgroups = CgroupTree::open(paths.name());
    let place = Place::create(&paths, cgroups.as_ref())?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = Process::spawn(Spawn {
        command,
        files: Vec::new(),
        user: None,
        device_group: None,
        cgroup: place.make_cgroup(&LIMITS)?,
        stdout: None,
        stderr: File::options().write(true).open("/dev/null")?.into(),
    })?;
    place.record(process.identity())?;
    let pid = process.identity().pid;
    let vm = place.vm();
    drop(place);
    assert_eq!(sweep(grounds(&paths, cgroups.as_ref()), None).await, [vm]);
    process.wait().await;
    assert!(Identity::of(pid).is_err(), "process {pid} is gone");
    if let Some(tree) = &cgroups {
        tree.remove_if_empty();
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn another_process_with_the_same_number_is_left_alone() -> Result<()> {
    let mut other = Command::new("sleep").arg("1000").spawn()?;
    let mut stale = Identity::of(i32::try_from(other.id())?)?;
    stale.start_time -= 1;
    assert!(Process::adopt(&stale).is_err());
    stale.start_time += 1;
    stale.boot_id = "an earlier boot".into();
    assert!(Process::adopt(&stale).is_err());
    assert!(other.try_wait()?.is_none(), "it still runs");
    other.kill()?;
    other.wait()?;
    Ok(())
}
