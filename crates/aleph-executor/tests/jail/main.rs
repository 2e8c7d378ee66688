//! Jails of Firecracker with real mounts, owners and processes, in a mount namespace of the test
//! program's own: what goes in, who may read it, and that all of it comes out again, whatever a
//! VMM left and wherever the node died.

mod elf;
mod enemy;
mod world;

use aleph_executor::firecracker::jail::{
    Access, Brought, JailError, JailerCgroup, JailerCommand, Jails, ResourceLimits, UidRange,
};
use aleph_testkit::wait_until;
use aleph_types::{Classify, ErrorClass, VmId};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use world::{World, as_user, exec_file, is_unshared, missing, unshare};

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);
/// Makes the program the node that dies: what it is to do in the world at this path.
const NODE: &str = "ALEPH_JAIL_NODE";

fn main() {
    if let Some(root) = std::env::var_os(NODE) {
        return node_that_dies(Path::new(&root));
    }
    if missing().is_none() && !is_unshared() {
        unshare();
    }
    let trials = vec![
        trial("files_come_in_as_links_or_mounts", files_come_in),
        trial("files_that_are_not_for_a_vm_stay_outside", unsuitable),
        trial("nothing_of_a_vm_is_readable_by_anothers_user", apart),
        trial("a_jail_that_an_enemy_filled_is_removed", enemy_filled),
        trial("what_a_vmm_put_in_the_way_is_not_taken", enemy_answers),
        trial("a_crash_at_any_point_leaves_nothing_once_swept", crashes),
        trial("a_sweep_leaves_what_has_an_owner", owned),
        trial("the_last_user_is_the_last", exhausted),
        trial("many_jails_at_once_are_not_in_each_others_way", many),
        trial("folders_that_jails_do_not_work_in_are_refused", bases),
        trial("a_program_runs_in_a_jail", || runs(None)),
        jailer_trial(),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let trial = Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing() {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// With the jailer itself, where it is there.
fn jailer_trial() -> Trial {
    let name = "a_program_runs_in_a_jail_that_the_jailer_makes";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let jailer = std::env::var_os("JAILER_BIN")
        .map(PathBuf::from)
        .or_else(|| {
            std::env::split_paths(&path)
                .map(|dir| dir.join("jailer"))
                .find(|path| path.is_file())
        });
    match jailer {
        Some(jailer) => trial(name, move || runs(Some(&jailer))),
        None => trial(name, || Ok(()))
            .with_kind("needs JAILER_BIN")
            .with_ignored_flag(true),
    }
}

fn vm(bits: u32) -> VmId {
    VmId::from_bits(bits).unwrap_or_else(VmId::random)
}

fn files_come_in() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let jail = jails.create(vm(7), exec_file())?;
    let uid = jail.uid();

    for (name, folder, brought) in [
        ("near", world.near(), Brought::Linked),
        ("far", world.far(), Brought::Mounted),
    ] {
        let shared = world::file(&folder, "image", 0o644, b"image")?;
        let before = shared.metadata()?;
        assert_eq!(jail.bring_in(name, &shared, Access::Shared)?, brought);
        let inside = jail.root().join(name);
        let after = fs::metadata(&inside)?;
        let whose = |meta: &fs::Metadata| (meta.ino(), meta.uid(), meta.gid(), meta.mode());
        assert_eq!(
            whose(&after),
            whose(&before),
            "{name}: it stays whose it was"
        );
        assert_eq!(fs::read(&inside)?, b"image");

        let own = world::file(&folder, "disk", 0o644, b"disk")?;
        let own_name = format!("{name}-disk");
        assert_eq!(jail.bring_in(&own_name, &own, Access::Own)?, brought);
        let meta = fs::metadata(jail.root().join(&own_name))?;
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (uid, uid, 0o600)
        );
        // What the VM writes is in the file that is outside.
        let script = format!("printf more >> {own_name}");
        world::give_root_as_the_jailer_does(&jail)?;
        ensure!(as_user(uid, jail.root(), &script)?.success());
        assert_eq!(fs::read(folder.join("disk"))?, b"diskmore");
        // The mount is read-only for root as well; nobody but root may write to the link.
        let script = format!("printf more >> {name}");
        ensure!(!as_user(uid, jail.root(), &script)?.success());
        let write = File::options().append(true).open(&inside);
        assert_eq!(
            write.is_ok(),
            brought == Brought::Linked,
            "{name}: {write:?}"
        );
    }
    assert_eq!(world.mounts()?.len(), 2);

    let (near, far) = (world.near(), world.far());
    jails.remove(vm(7))?;
    jails.remove(vm(7))?;
    world.assert_empty()?;
    for folder in [near, far] {
        assert_eq!(fs::read(folder.join("image"))?, b"image");
        assert_eq!(fs::read(folder.join("disk"))?, b"diskmore");
        assert_eq!(fs::metadata(folder.join("image"))?.nlink(), 1);
    }
    Ok(())
}

fn unsuitable() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let other = jails.create(vm(8), exec_file())?;
    for folder in [world.near(), world.far()] {
        let jail = jails.create(vm(7), exec_file())?;
        let refuse = |name: &str, file: &File, access, says: &str| -> Result<()> {
            let before = file.metadata()?;
            match jail.bring_in(name, file, access) {
                Err(error @ JailError::Refused { .. }) => {
                    ensure!(error.to_string().contains(says), "{says}: {error}");
                    ensure!(error.code() == "jail_file_refused");
                }
                done => ensure!(false, "{says}: {done:?}"),
            }
            let after = file.metadata()?;
            let whose = |meta: &fs::Metadata| (meta.uid(), meta.mode(), meta.nlink());
            ensure!(whose(&before) == whose(&after), "{says}: it was changed");
            ensure!(!jail.root().join(name).exists(), "{says}");
            Ok(())
        };
        let file = |mode| world::file(&folder, "file", mode, b"x");
        refuse("a", &file(0o600)?, Access::Shared, "may not read")?;
        refuse("a", &file(0o646)?, Access::Shared, "may write")?;
        refuse("a", &file(0o664)?, Access::Shared, "may write")?;
        refuse("a", &file(0o4755)?, Access::Shared, "changes who")?;
        let theirs = file(0o644)?;
        world::chown(&theirs, other.uid())?;
        refuse("a", &theirs, Access::Shared, "a VM's own")?;
        refuse("a", &theirs, Access::Own, "another user's")?;
        world::chown(&theirs, 1234)?;
        refuse("a", &theirs, Access::Shared, "another user's")?;
        let twice = file(0o644)?;
        fs::hard_link(folder.join("file"), folder.join("twin"))?;
        refuse("a", &twice, Access::Own, "other names")?;
        fs::remove_file(folder.join("twin"))?;
        let gone = file(0o644)?;
        fs::remove_file(folder.join("file"))?;
        refuse("a", &gone, Access::Shared, "no name")?;
        refuse(
            "a",
            &File::open(&folder)?,
            Access::Shared,
            "no regular file",
        )?;
        refuse(
            "a",
            &File::open("/dev/null")?,
            Access::Own,
            "no regular file",
        )?;
        for name in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "/a",
            "a b",
            "a\n",
            &"a".repeat(65),
        ] {
            let error = jail
                .bring_in(name, &file(0o644)?, Access::Shared)
                .err()
                .context("it came in")?;
            ensure!(error.to_string().contains("its name"), "{error}");
        }
        for name in ["firecracker", "firecracker.pid", "dev", "run", "old_root"] {
            refuse_taken(&jail.bring_in(name, &file(0o644)?, Access::Shared))?;
        }
        // A name is given once.
        jail.bring_in("once", &file(0o644)?, Access::Shared)?;
        let again = jail.bring_in("once", &file(0o644)?, Access::Shared);
        ensure!(matches!(again, Err(JailError::Io { .. })), "{again:?}");
        jails.remove(vm(7))?;
    }
    jails.remove(vm(8))?;
    world.assert_empty()
}

fn refuse_taken(done: &Result<Brought, JailError>) -> Result<()> {
    match done {
        Err(JailError::Refused { why, .. }) => {
            ensure!(why.contains("the jailer makes"), "{why}");
            Ok(())
        }
        done => anyhow::bail!("{done:?}"),
    }
}

fn apart() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let jail = jails.create(vm(7), exec_file())?;
    let other = jails.create(vm(8), exec_file())?;
    ensure!(jail.uid() != other.uid());
    let image = world::file(&world.near(), "image", 0o644, b"image")?;
    for jail in [&jail, &other] {
        let name = format!("disk-{}", jail.vm());
        let disk = world::file(&world.near(), &name, 0o644, b"secret")?;
        jail.bring_in("disk", &disk, Access::Own)?;
        jail.bring_in("image", &image, Access::Shared)?;
        jail.make_file("log")?;
        jail.make_fifo("metrics")?;
        world::give_root_as_the_jailer_does(jail)?;
    }
    // The jail's own user, within it.
    let all = "cat disk && cat image && echo x >> log && test -p metrics";
    ensure!(as_user(jail.uid(), jail.root(), all)?.success());
    ensure!(!as_user(jail.uid(), jail.root(), "echo x > image")?.success());
    ensure!(!as_user(jail.uid(), jail.root(), "chmod 666 image")?.success());
    // Another's user: by path, and even from within, where it could not come by itself.
    for file in ["disk", "image", "log", "metrics"] {
        for access in ["-r", "-w", "-e"] {
            let path = jail.root().join(file);
            let by_path = format!("test {access} {}", path.display());
            ensure!(
                !as_user(other.uid(), Path::new("/"), &by_path)?.success(),
                "{by_path}"
            );
            let by_name = format!("test {access} {file}");
            ensure!(
                !as_user(other.uid(), jail.root(), &by_name)?.success(),
                "{by_name}"
            );
        }
    }
    ensure!(
        !as_user(
            other.uid(),
            Path::new("/"),
            &format!("ls {}", jails.base().display())
        )?
        .success()
    );
    // Nobody else's either, as long as the disk is there.
    let disk = world.near().join(format!("disk-{}", jail.vm()));
    let read = format!("cat {}", disk.display());
    ensure!(!as_user(other.uid(), Path::new("/"), &read)?.success());
    jails.remove(vm(7))?;
    jails.remove(vm(8))?;
    world.assert_empty()
}

fn enemy_filled() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let canary = world::file(&world.far(), "canary", 0o644, b"alive")?;
    let jail = jails.create(vm(7), exec_file())?;
    jail.bring_in("image", &canary, Access::Shared)?;
    let near = world::file(&world.near(), "near", 0o644, b"alive")?;
    jail.bring_in("kernel", &near, Access::Shared)?;
    world::give_root_as_the_jailer_does(&jail)?;
    let outside = world.far();
    enemy::fill(&jail, &outside)?;

    jails.remove(vm(7))?;
    jails.remove(vm(7))?;
    world.assert_empty()?;
    assert_eq!(fs::read(outside.join("canary"))?, b"alive");
    assert_eq!(fs::read(world.near().join("near"))?, b"alive");
    let meta = fs::metadata(outside.join("canary"))?;
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o644));
    Ok(())
}

fn enemy_answers() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let jail = jails.create(vm(7), exec_file())?;
    world::give_root_as_the_jailer_does(&jail)?;
    enemy::answer(&jail, &world.far())?;
    // What the VM made and may be spoken with is found.
    let listener = jail.listen("vsock_1024")?;
    let meta = fs::symlink_metadata(jail.root().join("vsock_1024"))?;
    assert_eq!(
        (meta.uid(), meta.file_type().is_socket()),
        (jail.uid(), true)
    );
    let socket = jail.socket("vsock_1024")?;
    let _client = std::os::unix::net::UnixStream::connect(socket.path())?;
    listener.accept()?;
    jails.remove(vm(7))?;
    world.assert_empty()
}

/// Where the node dies: each place that its way through a jail's life passes.
const DEATHS: [&str; 14] = [
    "jail.claim:before",
    "jail.claim:after",
    "jail.root:between",
    "jail.root:after",
    "jail.link:before:1",
    "jail.link:after:1",
    "jail.link:before:2",
    "jail.bind:before",
    "jail.bind:between",
    "jail.bind:after",
    "jail.bind:after:2",
    "jail.unmount:after",
    "jail.remove:after",
    "jail.sweep:none",
];

/// One life of a jail, in a process that a failpoint ends.
fn node_that_dies(root: &Path) {
    let life = || -> Result<()> {
        let world = World::at(root);
        let jails = world.jails()?;
        let jail = jails.create(vm(7), exec_file())?;
        let open = |folder: &Path, name| File::open(folder.join(name));
        jail.bring_in("near", &open(&world.near(), "image")?, Access::Shared)?;
        jail.bring_in("disk", &open(&world.near(), "disk")?, Access::Own)?;
        jail.bring_in("far", &open(&world.far(), "image")?, Access::Shared)?;
        jail.bring_in("far-disk", &open(&world.far(), "disk")?, Access::Own)?;
        jails.remove(vm(7))?;
        Ok(())
    };
    if let Err(error) = life() {
        eprintln!("{error:?}");
        std::process::exit(1);
    }
}

fn crashes() -> Result<()> {
    for death in DEATHS {
        let world = World::new()?;
        for folder in [world.near(), world.far()] {
            world::file(&folder, "image", 0o644, b"image")?;
            world::file(&folder, "disk", 0o600, b"disk")?;
        }
        let ended = Command::new(std::env::current_exe()?)
            .env(NODE, world.root())
            .env("ALEPH_FAILPOINT", death)
            .status()?;
        // The last one lives to its end, so that all places before are known to be passed.
        let lived = death == "jail.sweep:none";
        assert_eq!(ended.success(), lived, "{death}: {ended}");
        assert_eq!(ended.signal(), (!lived).then_some(9), "{death}: {ended}");

        let jails = world.jails()?;
        let left = jails.vms()?;
        let nothing = lived || death == "jail.claim:before";
        assert_eq!(left.is_empty(), nothing, "{death}: {left:?}");
        let swept = world.block_on(jails.sweep(|_| false))?;
        assert_eq!(swept, left.into_iter().collect::<Vec<_>>(), "{death}");
        world.assert_empty().context(death)?;
        for folder in [world.near(), world.far()] {
            assert_eq!(fs::read(folder.join("image"))?, b"image", "{death}");
            let meta = fs::metadata(folder.join("image"))?;
            assert_eq!(
                (meta.uid(), meta.mode() & 0o777, meta.nlink()),
                (0, 0o644, 1)
            );
            assert_eq!(fs::read(folder.join("disk"))?, b"disk", "{death}");
        }
        // The id, and the user that it had, can be used again.
        let jail = jails.create(vm(7), exec_file())?;
        assert_eq!(jail.uid(), jails.users().range().preferred(vm(7)));
        jails.remove(vm(7))?;
    }
    Ok(())
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that was reaped already has another's number at worst once its pid is used again,
        // so only what is still ours is killed.
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn owned() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let mut vmms = Vec::new();
    for bits in [7, 8, 9] {
        let jail = jails.create(vm(bits), exec_file())?;
        let image = world::file(&world.far(), "image", 0o644, b"image")?;
        jail.bring_in("image", &image, Access::Shared)?;
        world::give_root_as_the_jailer_does(&jail)?;
        // In its jail, where it keeps the mount busy and makes files as fast as it can.
        let script = "exec 3< image; while :; do mktemp -d -p . >/dev/null; done";
        let mut vmm = world::user(jail.uid(), jail.root(), script);
        let vmm = vmm.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        vmms.push((jail, Running(vmm)));
    }
    for (jail, _) in &vmms {
        let made = || (fs::read_dir(jail.root()).ok()?.count() > 3).then_some(());
        wait_until("files of the VMM", LIMIT, made);
    }
    let swept = world.block_on(jails.sweep(|which| which == vm(8)))?;
    assert_eq!(swept, [vm(7), vm(9)]);
    for (jail, vmm) in &mut vmms {
        if jail.vm() == vm(8) {
            ensure!(vmm.0.try_wait()?.is_none(), "a VM with an owner was killed");
            assert_eq!(fs::read(jail.root().join("image"))?, b"image");
        } else {
            // Who swept has seen its end, and taken its status.
            ensure!(!Path::new(&format!("/proc/{}", vmm.0.id())).exists());
            ensure!(!jail.root().exists());
        }
    }
    assert_eq!(jails.vms()?, BTreeSet::from([vm(8)]));
    let found = jails.find(vm(8), exec_file())?.context("it is there")?;
    assert_eq!(found.uid(), vmms[1].0.uid());
    ensure!(jails.find(vm(7), exec_file())?.is_none());
    world.block_on(jails.end_and_remove(vm(8)))??;
    ensure!(!Path::new(&format!("/proc/{}", vmms[1].1.0.id())).exists());
    world.assert_empty()
}

fn exhausted() -> Result<()> {
    let world = World::new()?;
    let jails = Jails::open(&world.base(), UidRange::new(300_000, 300_002)?)?;
    let mut uids = BTreeSet::new();
    for bits in [1, 2, 3] {
        uids.insert(jails.create(vm(bits), exec_file())?.uid());
    }
    assert_eq!(uids, BTreeSet::from([300_000, 300_001, 300_002]));
    let error = jails.create(vm(4), exec_file()).err();
    let error = error.context("there was a user for it")?;
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Capacity, "jail_uids_exhausted")
    );
    ensure!(
        error
            .advice()
            .is_some_and(|advice| advice.contains("uid_range"))
    );
    // What failed left nothing, and what has one keeps it.
    assert_eq!(jails.vms()?, BTreeSet::from([vm(1), vm(2), vm(3)]));
    let again = jails.create(vm(2), exec_file());
    ensure!(matches!(again, Err(JailError::Exists { .. })), "{again:?}");
    let freed = jails
        .find(vm(2), exec_file())?
        .context("it is there")?
        .uid();
    jails.remove(vm(2))?;
    assert_eq!(jails.create(vm(4), exec_file())?.uid(), freed);
    for bits in [1, 3, 4] {
        jails.remove(vm(bits))?;
    }
    world.assert_empty()
}

fn many() -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let near = world::file(&world.near(), "image", 0o644, b"image")?;
    let far = world::file(&world.far(), "image", 0o644, b"image")?;
    // Two hundred, of whom at most eight are there at once, and as many for each user.
    let one_after_another = |thread: u32| -> Result<()> {
        for n in 0..25 {
            let vm = vm(100 * (25 * thread + n) + thread % 2);
            let jail = jails.create(vm, exec_file())?;
            jail.bring_in("near", &near, Access::Shared)?;
            jail.bring_in("far", &far, Access::Shared)?;
            world::give_root_as_the_jailer_does(&jail)?;
            let read = fs::read(jail.root().join("far"))?;
            ensure!(read == b"image");
            jails.remove(vm)?;
            ensure!(!jail.root().exists());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| scope.spawn(move || one_after_another(thread)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("a thread panicked"))?
        })
    })?;
    assert_eq!(near.metadata()?.nlink(), 1);
    world.assert_empty()
}

fn bases() -> Result<()> {
    let world = World::new()?;
    let range = UidRange::default();
    let refused = |path: &Path, says: &str| -> Result<()> {
        match Jails::open(path, range) {
            Err(error @ JailError::Base { .. }) if error.to_string().contains(says) => Ok(()),
            done => anyhow::bail!("{}: {done:?}", path.display()),
        }
    };
    for option in ["ro", "nodev", "noexec"] {
        let path = world.root().join(option);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("mode=0700,{option}"), "tmpfs"])
            .arg(&path)
            .status()?;
        ensure!(mounted.success());
        refused(&path, if option == "ro" { "read-only" } else { option })?;
    }
    let open = world.root().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    refused(&open, "open to others")?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    let below = open.join("below");
    refused(&below, "may change a folder")?;
    let theirs = world.root().join("theirs");
    fs::create_dir(&theirs)?;
    std::os::unix::fs::chown(&theirs, Some(1234), None)?;
    refused(&theirs.join("below"), "may change a folder")
}

/// A real program in a real jail: made by the jailer, or by what does the same where there is none.
fn runs(jailer: Option<&Path>) -> Result<()> {
    let world = World::new()?;
    let jails = world.jails()?;
    let program = world.root().join("firecracker");
    let image = world::file(&world.far(), "image", 0o644, b"*")?;
    let disk = world::file(&world.near(), "disk", 0o600, b"+")?;
    for (what, exit) in [
        (
            elf::read_and_exit("/image", libc_flags::O_RDONLY),
            i32::from(b'*'),
        ),
        (
            elf::read_and_exit("/disk", libc_flags::O_RDWR),
            i32::from(b'+'),
        ),
        (
            elf::read_and_exit("/image", libc_flags::O_RDWR),
            libc_flags::EACCES,
        ),
        (
            elf::read_and_exit("/etc/passwd", libc_flags::O_RDONLY),
            libc_flags::ENOENT,
        ),
    ] {
        fs::write(&program, what)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let jail = jails.create(vm(7), &program)?;
        jail.bring_in("image", &image, Access::Shared)?;
        jail.bring_in("disk", &disk, Access::Own)?;
        let command = command(&jail, &jails, &program, false);
        let ended = match jailer {
            Some(jailer) => Command::new(jailer).args(command.argv()?).output()?,
            None => world::as_the_jailer(&jail, &program)?.output()?,
        };
        assert_eq!(ended.status.code(), Some(exit), "{ended:?}");
        // The disk is the VM's now, and goes back before the next takes it.
        world::chown(&disk, 0)?;
        jails.remove(vm(7))?;
        world.assert_empty()?;
    }
    let Some(jailer) = jailer else {
        return Ok(());
    };

    // In a process namespace of its own, it is known by the file that the jailer leaves.
    fs::write(&program, elf::pause())?;
    let jail = jails.create(vm(7), &program)?;
    ensure!(matches!(jail.pid(), Err(JailError::Io { .. })));
    let ended = Command::new(jailer)
        .args(command(&jail, &jails, &program, true).argv()?)
        // What it starts keeps these, and nobody waits for its end.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(ended.success(), "{ended:?}");
    let pid = wait_until("the program as the VM's user", LIMIT, || jail.pid().ok());
    let process = PathBuf::from(format!("/proc/{pid}"));
    assert_eq!(fs::metadata(&process)?.uid(), jail.uid());
    let limits = fs::read_to_string(process.join("limits"))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    ensure!(line.is_some_and(|line| line.contains(" 77 ")), "{limits}");
    let own = |name| fs::read_link(process.join("ns").join(name));
    for name in ["pid", "mnt"] {
        ensure!(
            own(name)? != fs::read_link(format!("/proc/self/ns/{name}"))?,
            "{name}"
        );
    }
    // A crash of the node now: the next one's sweep ends it and removes all.
    assert_eq!(world.block_on(jails.sweep(|_| false))?, [vm(7)]);
    // Its status is init's to take, not ours.
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    ensure!(
        status.is_empty() || status.contains("State:\tZ"),
        "{status}"
    );
    world.assert_empty()
}

fn command<'a>(
    jail: &aleph_executor::firecracker::jail::Jail,
    jails: &'a Jails,
    program: &'a Path,
    new_pid_ns: bool,
) -> JailerCommand<'a> {
    JailerCommand {
        id: "00000007",
        exec_file: program,
        uid: jail.uid(),
        gid: jail.uid(),
        chroot_base: jails.base(),
        netns: None,
        new_pid_ns,
        daemonize: false,
        cgroup: JailerCgroup::Inherited,
        limits: ResourceLimits {
            file_size: Some(1 << 30),
            open_files: Some(77),
        },
        arguments: &[],
    }
}

/// Numbers of Linux on x86-64 that the programs of these tests use.
mod libc_flags {
    pub(crate) const O_RDONLY: u32 = 0;
    pub(crate) const O_RDWR: u32 = 2;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EACCES: i32 = 13;
}
