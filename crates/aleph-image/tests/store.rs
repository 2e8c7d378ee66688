//! The store: builds, names, removal, images in use, full disks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{Image, ImageError, NoProgress, Recipe, Source, Store};
use aleph_types::{Classify, ErrorClass};
use host::{Need, SmallDisk, State, dump, inside, names_in, output, run, trial};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const MKFS: Need = Need::Tool("mkfs.erofs");

fn main() {
    let build = [
        Need::Mount,
        Need::Root,
        Need::Apt,
        MKFS,
        Need::Tool("dpkg-deb"),
        Need::Tool("dump.erofs"),
    ];
    let disk = [Need::Root, MKFS, Need::Tool("mount")];
    run(vec![
        trial(
            "busybox_builds_twice_to_one_digest",
            &build,
            busybox_builds_twice_to_one_digest,
        ),
        trial(
            "references_lead_to_images",
            &[MKFS],
            references_lead_to_images,
        ),
        trial(
            "an_image_goes_with_its_last_name",
            &[MKFS],
            an_image_goes_with_its_last_name,
        ),
        trial("an_image_in_use_stays", &[MKFS], an_image_in_use_stays),
        trial(
            "a_new_import_takes_the_name_over",
            &[MKFS],
            a_new_import_takes_the_name_over,
        ),
        trial(
            "a_damaged_image_is_refused",
            &[MKFS],
            a_damaged_image_is_refused,
        ),
        trial(
            "many_builds_at_a_time_agree",
            &[MKFS],
            many_builds_at_a_time_agree,
        ),
        trial(
            "a_full_disk_leaves_nothing",
            &disk,
            a_full_disk_leaves_nothing,
        ),
        trial(
            "a_disk_too_small_for_a_package_leaves_nothing",
            &build,
            a_disk_too_small,
        ),
    ]);
}

fn import(store: &Store, tree: &Path, name: &str) -> Image {
    store.import(tree, name, &mut NoProgress).unwrap()
}

fn busybox_builds_twice_to_one_digest() {
    let (one, two) = (State::new(), State::new());
    let image = one.store().build(Recipe::Busybox, &mut NoProgress).unwrap();
    let again = two.store().build(Recipe::Busybox, &mut NoProgress).unwrap();
    assert_eq!(image.digest(), again.digest());
    assert_eq!(image.names(), ["busybox"]);
    assert_eq!(image.record().source, Source::Recipe(Recipe::Busybox));
    image.check().unwrap();
    for file in names_in(image.rootfs().parent().unwrap()) {
        let path = image.rootfs().with_file_name(file);
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o444
        );
    }
    assert!(dump(&image, "/bin/busybox").contains("0755"));
    assert!(dump(&image, "/bin/sh").contains("symlink"));
    let facts = inside(
        &image,
        "stat -c '%a %u %Y' tmp root && chroot . /bin/cat etc/group",
    );
    assert!(facts.starts_with("1777 0 0\n700 0 0\nroot:x:0:"), "{facts}");
    assert_eq!(one.left().len(), 2, "{:?}", one.left());

    // A second build in the same store is the same image.
    let third = one.store().build(Recipe::Busybox, &mut NoProgress).unwrap();
    assert_eq!(third, image);
    one.store().remove("busybox").unwrap();
    assert!(one.left().is_empty(), "{:?}", one.left());
}

fn references_lead_to_images() {
    let state = State::new();
    let store = state.store();
    let image = import(&store, &state.tree("a", "one"), "first");
    import(&store, &state.tree("b", "two"), "second");
    let hex = image.digest().hex();
    for reference in [
        "first",
        &hex,
        &hex[..8],
        &format!("sha256:{hex}"),
        &hex.to_uppercase(),
    ] {
        assert_eq!(store.resolve(reference).unwrap(), image, "{reference}");
    }
    let listed = store.list().unwrap();
    let names: Vec<&str> = listed.iter().map(|i| i.names()[0].as_str()).collect();
    assert_eq!(names, ["first", "second"]);

    for (reference, code, advice) in [
        ("fist", "image_not_found", "Did you mean first?"),
        (
            "busybox",
            "image_not_found",
            "Build it: aleph image build busybox.",
        ),
        ("0000000000", "image_not_found", "aleph image ls"),
        ("first!", "bad_image_reference", "aleph image ls"),
        ("sha256:12", "bad_image_reference", "digest"),
    ] {
        let error = store.resolve(reference).unwrap_err();
        assert_eq!(error.code(), code, "{reference}");
        assert!(
            error.advice().unwrap().contains(advice),
            "{:?}",
            error.advice()
        );
    }
}

fn an_image_goes_with_its_last_name() {
    let state = State::new();
    let store = state.store();
    let tree = state.tree("a", "one");
    let image = import(&store, &tree, "one");
    assert_eq!(import(&store, &tree, "two").digest(), image.digest());
    assert_eq!(store.resolve("one").unwrap().names(), ["one", "two"]);

    let error = store.remove(&image.digest().to_string()).unwrap_err();
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Conflict, "image_still_named")
    );
    let removed = store.remove("one").unwrap();
    assert_eq!(
        (removed.names, removed.image),
        (vec!["one".to_owned()], None)
    );
    assert!(matches!(
        store.resolve("one"),
        Err(ImageError::NotFound { .. })
    ));
    let removed = store.remove(&image.digest().hex()[..12]).unwrap();
    assert_eq!(removed.names, ["two"]);
    assert_eq!(removed.image.unwrap().digest(), image.digest());
    assert!(state.left().is_empty(), "{:?}", state.left());
    assert!(matches!(
        store.remove("two"),
        Err(ImageError::NotFound { .. })
    ));
}

fn an_image_in_use_stays() {
    let state = State::new();
    let store = state.store();
    let image = import(&store, &state.tree("a", "one"), "one");
    let first = image.hold().unwrap();
    let second = image.hold().unwrap().into_file();
    for _ in 0..2 {
        let error = store.remove("one").unwrap_err();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Conflict, "image_in_use")
        );
    }
    drop(first);
    assert!(matches!(store.remove("one"), Err(ImageError::InUse { .. })));
    assert_eq!(store.resolve("one").unwrap(), image);
    drop(second);
    store.remove("one").unwrap();
    assert!(matches!(image.hold(), Err(ImageError::NotFound { .. })));
    assert!(state.left().is_empty());
}

fn a_new_import_takes_the_name_over() {
    let state = State::new();
    let store = state.store();
    let old = import(&store, &state.tree("a", "one"), "app");
    let held = old.hold().unwrap();
    let new = import(&store, &state.tree("b", "two"), "app");
    assert_ne!(old.digest(), new.digest());
    assert_eq!(store.resolve("app").unwrap(), new);
    // The old one has no name and is there for as long as nobody removes it.
    assert!(
        store
            .resolve(&old.digest().hex())
            .unwrap()
            .names()
            .is_empty()
    );
    drop(held);
    store.remove(&old.digest().hex()).unwrap();
    assert_eq!(store.list().unwrap(), [new]);
}

fn a_damaged_image_is_refused() {
    let state = State::new();
    let store = state.store();
    let image = import(&store, &state.tree("a", "one"), "one");
    let size = image.record().size;
    let path = image.rootfs();
    for content in [vec![0; usize::try_from(size).unwrap()], vec![1; 100]] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, content).unwrap();
        assert!(matches!(image.check(), Err(ImageError::Damaged { .. })));
        assert_eq!(image.hold().unwrap_err().code(), "image_damaged");
    }
    let record = path.with_file_name("image.json");
    fs::set_permissions(&record, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&record, "{").unwrap();
    assert_eq!(store.resolve("one").unwrap_err().code(), "image_record");
    assert!(store.list().unwrap().is_empty());
    // Building it again mends it, and removal works without a record.
    assert_eq!(
        import(&store, &state.file("a"), "one").digest(),
        image.digest()
    );
    fs::remove_file(&record).unwrap();
    fs::write(&record, "{").unwrap();
    assert_eq!(store.remove("one").unwrap().names, ["one"]);
    assert!(state.left().is_empty(), "{:?}", state.left());
}

fn many_builds_at_a_time_agree() {
    let state = State::new();
    let tree = state.tree("a", "one");
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (state, tree) = (&state, &tree);
            scope.spawn(move || {
                let store = Store::open(state.path()).unwrap();
                let name = format!("image-{}", n % 3);
                for _ in 0..3 {
                    store.import(tree, &name, &mut NoProgress).unwrap();
                    if n < 3 {
                        // Another thread may have been faster, or has not named it again yet.
                        match store.remove(&name) {
                            Ok(_) | Err(ImageError::NotFound { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    let store = state.store();
    for image in store.list().unwrap() {
        image.check().unwrap();
        image
            .names()
            .iter()
            .for_each(|name| drop(store.remove(name).unwrap()));
    }
    assert!(state.left().is_empty(), "{:?}", state.left());
}

fn refused_for_room(disk: &SmallDisk, input: &Path) -> ImageError {
    let store = Store::open(&disk.path).unwrap();
    let error = store.import(input, "big", &mut NoProgress).unwrap_err();
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Capacity, "disk_full"),
        "{error:?}"
    );
    assert!(
        error.advice().unwrap().contains(" free"),
        "{:?}",
        error.advice()
    );
    assert!(
        error.to_string().contains(&disk.path.display().to_string()),
        "{error}"
    );
    let images = disk.path.join("images");
    let mut left = names_in(&images);
    left.sort();
    assert_eq!(left, [".lock", "names"]);
    assert!(names_in(&images.join("names")).is_empty());
    error
}

fn a_full_disk_leaves_nothing() {
    let state = State::new();
    let disk = SmallDisk::mount(state.file("disk"), "2m");

    // Known beforehand: the files alone are larger than the disk.
    let large = state.tree("large", "");
    let mut noise = vec![0; 4 << 20];
    let mut seed = 1_u64;
    for byte in &mut noise {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = seed.to_be_bytes()[0];
    }
    fs::write(large.join("noise"), &noise).unwrap();
    let error = refused_for_room(&disk, &large);
    assert!(
        error.advice().unwrap().contains("4.0 MiB needed"),
        "{:?}",
        error.advice()
    );

    // Found out while unpacking.
    let archive = state.file("large.tar");
    output(
        "tar",
        &[
            "-cf",
            &archive.display().to_string(),
            "-C",
            &large.display().to_string(),
            ".",
        ],
    );
    let error = refused_for_room(&disk, &archive);
    assert!(error.to_string().starts_with("cannot unpack"), "{error}");

    // Found out by the program that writes the image: names take the room, not content.
    let many = state.file("many");
    fs::create_dir(&many).unwrap();
    for n in 0..9000 {
        fs::write(many.join(format!("{n:0>240}")), "").unwrap();
    }
    let error = refused_for_room(&disk, &many);
    assert!(
        error.to_string().starts_with("cannot write an image to"),
        "{error}"
    );

    // And what fits, fits.
    let store = Store::open(&disk.path).unwrap();
    import(&store, &state.tree("small", "x"), "small");
    let mount = disk.path.display().to_string();
    drop(disk);
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&mount)
    );
}

fn a_disk_too_small() {
    let state = State::new();
    let disk = SmallDisk::mount(state.file("disk"), "512k");
    let store = Store::open(&disk.path).unwrap();
    let error = store.build(Recipe::Busybox, &mut NoProgress).unwrap_err();
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Capacity, "disk_full"),
        "{error:?}"
    );
    let mut left = names_in(&disk.path.join("images"));
    left.sort();
    assert_eq!(left, [".lock", "names"]);
}
