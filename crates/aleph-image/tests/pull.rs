//! Images from a real registry, cross-checked by another tool, from registries that misbehave,
//! and hostile ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::oci::{LayerStep, Login, PullEvent, PullOptions, Registries};
use aleph_image::{Digest, Image, ImageError, PruneOptions, Source};
use aleph_types::{Classify, ErrorClass};
use host::layout::{Layer, Layout, Packed, Tar, architecture, noise};
use host::registry::{Act, Front, LOGIN, Registry};
use host::{Need, SmallDisk, State, inside, names_in, output, run, trial, wait_until};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tar::EntryType;

fn main() {
    if let Some(pull) = std::env::var_os(CHILD) {
        return child(pull.to_str().unwrap());
    }
    let needs = [
        Need::Root,
        Need::Tool("mkfs.erofs"),
        Need::Tool("docker-registry"),
        Need::Tool("skopeo"),
    ];
    let compared = [
        &needs[..],
        &[Need::Mount, Need::Tool("umoci"), Need::Tool("python3")],
    ]
    .concat();
    let mounts = [&needs[..], &[Need::Mount]].concat();
    macro_rules! trials {
        ($($needs:ident: $($test:ident)*;)*) => {
            vec![$($(trial(stringify!($test), &$needs, $test),)*)*]
        };
    }
    run(trials![
        compared: the_tree_is_the_one_that_umoci_unpacks;
        mounts: every_compression_makes_the_same_file_system no_layer_leaves_the_image;
        needs: an_index_leads_to_the_image_for_this_host
            a_registry_with_logins_is_logged_in_to
            tokens_are_got_from_the_service_that_is_named
            a_mirror_is_asked_first_and_passed_over_when_it_fails
            a_mirror_whose_login_is_broken_is_passed_over
            what_trickles_is_given_up
            a_broken_download_goes_on_where_it_broke
            a_download_that_failed_is_resumed_by_the_next_pull
            a_pull_that_is_dropped_leaves_nothing_but_parts
            a_pull_that_is_killed_leaves_nothing_but_parts
            what_is_not_what_was_asked_for_is_refused
            hostile_layers_are_refused_and_leave_nothing
            pulls_of_one_image_at_a_time_share_the_work
            layers_are_shared_and_go_with_the_last_image
            a_moved_tag_leaves_an_image_that_a_prune_removes
            a_full_disk_is_said_and_leaves_nothing
            a_registry_with_its_own_certificates_is_trusted_when_told;
    ]);
}

fn attempt(state: &State, reference: &str, options: &PullOptions) -> Result<Image, ImageError> {
    runtime().block_on(state.store().pull(reference, options, |_| {}))
}

fn pull(state: &State, reference: &str) -> Image {
    attempt(state, reference, &options()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

const NO_LOGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/no-logins.json");

/// Without the logins of whoever runs the test.
fn options() -> PullOptions {
    PullOptions {
        registries: registries(),
        ..PullOptions::default()
    }
}

fn registries() -> Registries {
    Registries {
        docker_config: Some(NO_LOGINS.into()),
        ..Registries::default()
    }
}

/// What is in `images/` but locks: objects, names, and blobs.
fn left(state: &State) -> Vec<String> {
    let mut left = state.left();
    left.retain(|name| name != "blobs");
    let blobs = state.file("images/blobs");
    if blobs.exists() {
        left.extend(names_in(&blobs).iter().map(|n| format!("blobs/{n}")));
    }
    left.sort();
    left
}

fn class_and_code(error: &ImageError) -> (ErrorClass, &'static str) {
    assert!(error.advice().is_some(), "{error:?}");
    (error.class(), error.code())
}

/// A registry with one small image as `app:1`.
fn with_app(registry: &Registry, state: &State, layers: &[Layer]) -> Layout {
    let layout = Layout::new(state.file("layout"));
    let image = layout.image(layers, &json!({"Cmd": ["/bin/app"]}));
    registry.push(layout.tag("1", &image), "1", "app:1");
    layout
}

fn small() -> Vec<Layer> {
    vec![
        Layer::gzip(Tar::new().dir("bin/").file("bin/app", "one")),
        Layer::gzip(Tar::new().file("two", "2")),
    ]
}

/// Three layers with one of everything.
fn layers(packed: [Packed; 3]) -> Vec<Layer> {
    use EntryType::{Char, Fifo, Regular};
    let base = Tar::new()
        .owned(0o755, 0, 0)
        .entry(EntryType::Directory, "./", "", b"")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .file("etc/gone", "x")
        .owned(0o640, 0, 42)
        .entry(Regular, "etc/shadow", "", b"secret")
        .owned(0o1777, 0, 0)
        .entry(EntryType::Directory, "tmp/", "", b"")
        .dir("usr/")
        .dir("usr/bin/")
        .owned(0o4755, 0, 0)
        .entry(Regular, "usr/bin/su", "", b"#!su")
        .link("usr/bin/sudo", "usr/bin/su")
        .xattr("user.note", b"with\n=1")
        .file("usr/bin/noted", "n")
        .symlink("bin", "usr/bin")
        .symlink("absolute", "/etc/passwd")
        .owned(0o600, 1000, 70_000)
        .entry(Fifo, "pipe", "", b"")
        .dir("opaque/")
        .dir("opaque/deep/")
        .file("opaque/deep/old", "old")
        .file("opaque/old", "old")
        .dir("becomes-file/")
        .file("becomes-file/x", "x")
        .file("becomes-dir", "x")
        .dir("removed/")
        .dir("removed/tree/")
        .file("removed/tree/x", "x")
        .owned(0o604, 12_345, 54_321)
        .entry(Regular, "odd owner", "", b"o");
    let middle = Tar::new()
        .dir("etc/")
        .file("etc/.wh.gone", "")
        .file("etc/passwd", "changed\n")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new")
        .file("becomes-file", "now a file")
        .dir("becomes-dir/")
        .file("becomes-dir/y", "y")
        .file(".wh.removed", "")
        .file("bin/through-the-link", "t")
        .file("big", noise(7, 3 << 20));
    let top = Tar::new()
        .link("su-again", "usr/bin/su")
        .owned(0o711, 5, 6)
        .entry(EntryType::Directory, "usr/", "", b"")
        .file("usr/bin/.wh.noted", "")
        .dir("removed/")
        .file("removed/fresh", "f")
        .entry(Char, "not-a-device-any-more", "", b"");
    [base, middle, top]
        .into_iter()
        .zip(packed)
        .map(|(tar, packed)| Layer::new(&tar.bytes(), packed))
        .collect()
}

/// Prints a tree, one entry a line, with all that a file system keeps.
const LISTING: &str = r#"
import hashlib, os, stat, sys
root = sys.argv[1]
for dir, dirs, files in os.walk(root):
    for name in ["."] * (dir == root) + dirs + files:
        path = os.path.join(dir, name)
        s = os.lstat(path)
        kind = stat.S_IFMT(s.st_mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK): continue
        more = ""
        if kind == stat.S_IFLNK: more = os.readlink(path)
        if kind == stat.S_IFREG:
            more = "%d %s" % (s.st_nlink, hashlib.sha256(open(path, "rb").read()).hexdigest())
        xattrs = [] if kind == stat.S_IFLNK else [
            (n, os.getxattr(path, n)) for n in sorted(os.listxattr(path))]
        time = int(s.st_mtime) if name != "." else 0
        print(os.path.relpath(path, root), oct(s.st_mode), s.st_uid, s.st_gid, time, more, xattrs)
"#;

fn listing(image: &Image, state: &State) -> Vec<String> {
    let script = state.file("listing.py");
    fs::write(&script, LISTING).unwrap();
    sorted(&inside(image, &format!("python3 {} .", script.display())))
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn the_tree_is_the_one_that_umoci_unpacks() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = Layout::new(state.file("layout"));
    let config = json!({"Env": ["PATH=/bin", "A=b"], "Cmd": ["sh"], "Entrypoint": ["/init"],
        "User": "1:2", "WorkingDir": "/srv", "StopSignal": "SIGINT",
        "Labels": {"by": "test"}, "ExposedPorts": {"80/tcp": {}}});
    let image = layout.image(&layers([Packed::Gzip; 3]), &config);
    registry.push(layout.tag("1", &image), "1", "some/app:1");
    let front = Front::before(&registry.host, |_, _| Act::Forward);
    let reference = format!("{}/some/app:1", front.host);
    let ours = pull(&state, &reference);

    let bundle = state.file("bundle").display().to_string();
    let source = format!("{}:1", layout.dir.display());
    output("umoci", &["unpack", "--image", &source, &bundle]);
    let script = state.file("listing.py");
    let tree = listing(&ours, &state);
    let theirs = output(
        "python3",
        &[&script.display().to_string(), &format!("{bundle}/rootfs")],
    );
    assert_eq!(tree, sorted(&theirs));
    assert!(tree.len() > 20, "{tree:#?}");

    let read = &ours.record().config;
    assert_eq!((&read.env["PATH"][..], &read.env["A"][..]), ("/bin", "b"));
    assert_eq!(
        (&read.cmd[..], &read.entrypoint[..]),
        (&["sh".to_owned()][..], &["/init".to_owned()][..])
    );
    assert_eq!(read.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(read.workdir.as_deref(), Some("/srv"));
    assert_eq!(read.user.as_deref(), Some("1:2"));
    assert_eq!(
        (&read.labels["by"][..], &read.exposed_ports[..]),
        ("test", &["80/tcp".to_owned()][..])
    );

    // Known by its name, by its digest as it is in the registry, and by its own.
    assert_eq!(ours.names(), [&*reference]);
    let store = state.store();
    let Source::Registry { manifest, .. } = &ours.record().source else {
        panic!("{:?}", ours.record())
    };
    assert_eq!(manifest.to_string(), image["digest"]);
    let by_manifest = format!("{}/some/app@{manifest}", front.host);
    for name in [&reference, &by_manifest, &ours.digest().to_string()] {
        assert_eq!(
            store.resolve(name).unwrap().digest(),
            ours.digest(),
            "{name}"
        );
    }
    ours.hold().unwrap();
    // Nothing is downloaded twice.
    let blobs = front.blobs().len();
    assert_eq!(pull(&state, &reference), ours);
    // But for the configuration, which says what it is.
    assert_eq!(front.blobs().len(), blobs + 1);
    assert_eq!(blobs, 4);
}

fn every_compression_makes_the_same_file_system() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = Layout::new(state.file("layout"));
    let mut images = Vec::new();
    for (tag, packed) in [
        ("gzip", [Packed::Gzip; 3]),
        ("zstd", [Packed::Zstd; 3]),
        ("mixed", [Packed::Zstd, Packed::Plain, Packed::Gzip]),
    ] {
        // Another configuration is another image, even with the same layers.
        let image = layout.image(&layers(packed), &json!({"Cmd": [tag]}));
        registry.push(layout.tag(tag, &image), tag, &format!("x:{tag}"));
        let own = State::new();
        images.push(listing(
            &pull(&own, &format!("{}/x:{tag}", registry.host)),
            &own,
        ));
        pull(&state, &format!("{}/x:{tag}", registry.host));
    }
    assert_eq!(images[0], images[1]);
    assert_eq!(images[0], images[2]);
    // In one store they are three images with one file.
    let listed = state.store().list().unwrap();
    let commands: Vec<&str> = listed.iter().map(|i| &*i.record().config.cmd[0]).collect();
    assert_eq!(commands, ["gzip", "mixed", "zstd"]);
    let inodes: Vec<u64> = listed
        .iter()
        .map(|image| fs::metadata(image.rootfs()).unwrap().ino())
        .collect();
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    // Each lives on its own, and what is in use stays.
    let held = listed[0].hold().unwrap();
    let name = format!("{}/x:mixed", registry.host);
    assert!(matches!(
        state.store().remove(&name),
        Err(ImageError::InUse { .. })
    ));
    drop(held);
    state.store().remove(&name).unwrap();
    state
        .store()
        .remove(&format!("{}/x:gzip", registry.host))
        .unwrap();
    assert_eq!(listing(&listed[2], &state), images[0]);
}

fn an_index_leads_to_the_image_for_this_host() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = Layout::new(state.file("layout"));
    let ours = layout.image(&small(), &json!({}));
    let other = layout.image_for("riscv64", &small()[..1], &json!({}));
    let index = layout.index(&[("riscv64", other.clone()), (architecture(), ours.clone())]);
    registry.push(layout.tag("both", &index), "both", "app:both");
    let image = pull(&state, &format!("{}/app:both", registry.host));
    let Source::Registry {
        manifest, layers, ..
    } = &image.record().source
    else {
        panic!("{:?}", image.record())
    };
    assert_eq!(
        (manifest.to_string(), layers.len()),
        (ours["digest"].as_str().unwrap().to_owned(), 2)
    );
    // By the digest of the index, too.
    let by_digest = format!(
        "{}/app@{}",
        registry.host,
        index["digest"].as_str().unwrap()
    );
    assert_eq!(pull(&state, &by_digest).digest(), image.digest());

    let foreign = layout.index(&[("riscv64", other.clone())]);
    registry.push(layout.tag("one", &foreign), "one", "app:one");
    registry.push(layout.tag("bare", &other), "bare", "app:bare");
    for tag in ["one", "bare"] {
        let error = attempt(&state, &format!("{}/app:{tag}", registry.host), &options());
        let error = error.unwrap_err();
        assert_eq!(
            class_and_code(&error),
            (ErrorClass::Invalid, "image_platform")
        );
        assert!(
            error.to_string().contains("but for linux/riscv64"),
            "{error}"
        );
    }
    let missing = attempt(&state, &format!("{}/app:none", registry.host), &options());
    let error = missing.unwrap_err();
    assert_eq!(
        class_and_code(&error),
        (ErrorClass::NotFound, "registry_not_found")
    );
}

fn a_registry_with_logins_is_logged_in_to() {
    let (registry, state) = (Registry::with_logins(), State::new());
    with_app(&registry, &state, &small());
    let reference = format!("{}/app:1", registry.host);
    let refused = attempt(&state, &reference, &options()).unwrap_err();
    assert_eq!(
        class_and_code(&refused),
        (ErrorClass::Invalid, "registry_unauthorized")
    );
    assert!(
        refused.advice().unwrap().contains("docker login"),
        "{refused:?}"
    );

    let file = state.file("config.json");
    let with = |user: &str, password: &str| {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let config = json!({"auths": {&registry.host: {"auth": auth}}});
        fs::write(&file, config.to_string()).unwrap();
        let registries = Registries {
            docker_config: Some(file.clone()),
            ..Registries::default()
        };
        PullOptions {
            registries,
            ..PullOptions::default()
        }
    };
    let refused = attempt(&state, &reference, &with(LOGIN.0, "wrong")).unwrap_err();
    assert_eq!(refused.code(), "registry_unauthorized");
    assert!(
        refused.to_string().contains("the login that it has"),
        "{refused}"
    );
    // The node's logins are none of everybody's business.
    let mut anonymous = with(LOGIN.0, LOGIN.1);
    anonymous.registries.anonymous = true;
    let login = Login::Password {
        user: LOGIN.0.into(),
        password: LOGIN.1.into(),
    };
    anonymous.registries.logins = BTreeMap::from([(registry.host.clone(), login)]);
    let refused = attempt(&state, &reference, &anonymous).unwrap_err();
    assert_eq!(refused.code(), "registry_unauthorized");
    assert!(
        refused.to_string().contains("those who are not logged in"),
        "{refused}"
    );
    attempt(&state, &reference, &with(LOGIN.0, LOGIN.1)).unwrap();
}

fn tokens_are_got_from_the_service_that_is_named() {
    let (registry, state) = (Registry::start(), State::new());
    with_app(&registry, &state, &small());
    let service = Front::before(&registry.host, |request, _| {
        let token = if request.method == "POST" {
            "for-identity"
        } else {
            "for-anybody"
        };
        let named = request.header("authorization").starts_with("Basic ");
        let token = if named { "for-password" } else { token };
        Act::Answer(
            200,
            vec![],
            json!({"token": token}).to_string().into_bytes(),
        )
    });
    let realm = format!("http://{}/token", service.host);
    let wanted = Arc::new(Mutex::new("for-anybody"));
    let shared = Arc::clone(&wanted);
    let front = Front::before(&registry.host, move |request, _| {
        if request.header("authorization") == format!("Bearer {}", shared.lock().unwrap()) {
            return Act::Without("authorization");
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=\"here\"");
        Act::Answer(401, vec![("www-authenticate".into(), challenge)], vec![])
    });
    let reference = format!("{}/app:1", front.host);
    for (token, login) in [
        ("for-anybody", None),
        (
            "for-password",
            Some(Login::Password {
                user: "u".into(),
                password: "p".into(),
            }),
        ),
        ("for-identity", Some(Login::Identity("refresh me".into()))),
    ] {
        *wanted.lock().unwrap() = token;
        let state = State::new();
        let mut options = options();
        options.registries.logins = login.into_iter().map(|l| (front.host.clone(), l)).collect();
        attempt(&state, &reference, &options).unwrap();
    }
    let asked = service.seen();
    assert_eq!(
        asked[0].path,
        "/token?service=here&scope=repository%3Aapp%3Apull"
    );
    assert!(
        asked
            .last()
            .unwrap()
            .body
            .contains("grant_type=refresh_token")
    );
    assert!(
        asked
            .last()
            .unwrap()
            .body
            .contains("refresh_token=refresh+me")
    );
    // One token does for a whole image.
    assert_eq!(asked.len(), 3);

    // A login is never sent to a service in the clear elsewhere.
    let elsewhere = Front::before(&registry.host, |_, _| {
        let challenge = "Bearer realm=\"http://192.0.2.1/token\"";
        Act::Answer(
            401,
            vec![("www-authenticate".into(), challenge.into())],
            vec![],
        )
    });
    let refused = attempt(&state, &format!("{}/app:1", elsewhere.host), &options());
    assert_eq!(refused.unwrap_err().code(), "registry_form");
}

fn a_mirror_is_asked_first_and_passed_over_when_it_fails() {
    let registry = Registry::start();
    let state = State::new();
    let layout = with_app(&registry, &state, &small());
    registry.push(&layout.dir, "1", "library/debian:12");
    let origin = Front::before(&registry.host, |_, _| Act::Forward);
    let with = |mirrors: &[&str], of: &str| {
        let mut options = options();
        let mirrors = mirrors
            .iter()
            .map(|host| format!("http://{host}"))
            .collect();
        options.registries.mirrors = BTreeMap::from([(of.to_owned(), mirrors)]);
        options
    };
    // Docker Hub itself is never asked where a mirror has the image.
    let mirror = Front::before(&registry.host, |_, _| Act::Forward);
    let image = attempt(&state, "debian:12", &with(&[&mirror.host], "docker.io")).unwrap();
    assert_eq!(image.names(), ["debian:12"]);
    for name in [
        "debian:12",
        "docker.io/library/debian:12",
        "index.docker.io/debian:12",
    ] {
        assert_eq!(
            state.store().resolve(name).unwrap().digest(),
            image.digest()
        );
    }
    assert!(state.store().resolve("debian").is_err());
    assert!(
        mirror
            .seen()
            .iter()
            .all(|request| request.path.ends_with("?ns=docker.io"))
    );

    // Those that lack it, are not there, or answer nonsense.
    let nonsense = Front::before(&registry.host, |_, _| {
        Act::Answer(200, vec![], b"<html>".into())
    });
    let lacking = Front::before("127.0.0.1:1", |_, _| Act::Answer(404, vec![], vec![]));
    let own = State::new();
    let mirrors = ["127.0.0.1:1", &*nonsense.host, &*lacking.host];
    let reference = format!("{}/app:1", origin.host);
    attempt(&own, &reference, &with(&mirrors, &origin.host)).unwrap();
    assert_eq!(
        own.store().resolve(&reference).unwrap().names(),
        [&*reference]
    );

    // One that has other bytes under the same digest, or no layers.
    for bad in [
        Front::before(&registry.host, |request, _| match request.is_blob() {
            true => Act::Answer(200, vec![], b"something else".into()),
            false => Act::Forward,
        }),
        Front::before(&registry.host, |request, blobs| {
            match request.is_blob() && blobs > 0 {
                true => Act::Answer(503, vec![], vec![]),
                false => Act::Forward,
            }
        }),
        Front::before(&registry.host, |request, blobs| {
            match request.is_blob() && blobs > 0 {
                true => Act::Answer(200, vec![], vec![b'x'; 200]),
                false => Act::Forward,
            }
        }),
    ] {
        let own = State::new();
        attempt(&own, &reference, &with(&[&bad.host], &origin.host)).unwrap();
        assert!(own.store().resolve(&reference).is_ok());
        assert!(
            !left(&own).iter().any(|name| name.ends_with(".part")),
            "{:?}",
            left(&own)
        );
    }
}

fn a_mirror_whose_login_is_broken_is_passed_over() {
    let (registry, state) = (Registry::start(), State::new());
    with_app(&registry, &state, &small());
    let mirror = Front::before(&registry.host, |_, _| Act::Forward);
    let file = state.file("config.json");
    let mut options = options();
    let mirrors = vec![format!("http://{}", mirror.host)];
    options.registries.mirrors = BTreeMap::from([(registry.host.clone(), mirrors)]);
    options.registries.docker_config = Some(file.clone());
    let reference = format!("{}/app:1", registry.host);
    // The registry's own has to be right: without it, others may see less than they should.
    for (broken, is_pulled) in [(&registry.host, false), (&mirror.host, true)] {
        let config = json!({"credHelpers": {broken: "not-installed"}});
        fs::write(&file, config.to_string()).unwrap();
        match attempt(&state, &reference, &options) {
            Ok(_) => assert!(is_pulled),
            Err(error) => {
                assert!(!is_pulled, "{error:?}");
                assert_eq!(error.code(), "registry_credentials");
            }
        }
    }
    assert!(mirror.seen().is_empty());
}

fn what_trickles_is_given_up() {
    let (registry, state) = (Registry::start(), State::new());
    let noisy = Layer::gzip(Tar::new().file("noise", noise(9, 64 << 10)));
    with_app(&registry, &state, &[noisy]);
    let patient = PullOptions {
        patience: Duration::from_secs(8),
        ..options()
    };
    let stalled = (ErrorClass::Unavailable, "registry_stalled");

    // A layer. What has arrived stays.
    let front = Front::before(&registry.host, |request, blobs| match request.is_blob() {
        true if blobs > 0 => Act::Trickle,
        _ => Act::Forward,
    });
    let error = attempt(&state, &format!("{}/app:1", front.host), &patient).unwrap_err();
    assert_eq!(class_and_code(&error), stalled);
    assert!(
        matches!(&left(&state)[..], [part] if part.ends_with(".part")),
        "{:?}",
        left(&state)
    );

    // A manifest, of a registry and of a mirror.
    let front = Front::before(&registry.host, |_, _| Act::Trickle);
    let error = attempt(&state, &format!("{}/app:1", front.host), &patient).unwrap_err();
    assert_eq!(class_and_code(&error), stalled);
    let mut mirrored = patient.clone();
    let mirrors = vec![format!("http://{}", front.host)];
    mirrored.registries.mirrors = BTreeMap::from([(registry.host.clone(), mirrors)]);
    attempt(&state, &format!("{}/app:1", registry.host), &mirrored).unwrap();

    // Connections that each end after a little.
    let own = State::new();
    let front = Front::before(&registry.host, |request, blobs| match request.is_blob() {
        true if blobs > 0 => Act::Cut(1000),
        _ => Act::Forward,
    });
    let error = attempt(&own, &format!("{}/app:1", front.host), &options()).unwrap_err();
    assert_eq!(error.code(), "registry_unreachable");
    assert_eq!(front.blobs().len(), 1 + 4);
}

fn a_broken_download_goes_on_where_it_broke() {
    let (registry, state) = (Registry::start(), State::new());
    let content = noise(1, 1 << 20);
    with_app(
        &registry,
        &state,
        &[Layer::gzip(Tar::new().file("noise", &content))],
    );
    // Every answer ends after 300,000 bytes.
    let front = Front::before(&registry.host, |request, _| match request.is_blob() {
        true => Act::Cut(300_000),
        false => Act::Forward,
    });
    let image = pull(&state, &format!("{}/app:1", front.host));
    image.check().unwrap();
    let mut ranges: Vec<String> = front.blobs()[1..]
        .iter()
        .map(|r| r.header("range").to_owned())
        .collect();
    ranges.sort();
    assert_eq!(ranges[0], "");
    assert_eq!(
        ranges[1..],
        ["bytes=300000-", "bytes=600000-", "bytes=900000-"]
    );

    // A registry that knows no ranges gives all of it again.
    let own = State::new();
    let deaf = Front::before(&registry.host, |request, blobs| match request.is_blob() {
        true if blobs == 1 => Act::Cut(300_000),
        _ => Act::Without("range"),
    });
    pull(&own, &format!("{}/app:1", deaf.host)).check().unwrap();
    assert_eq!(deaf.blobs()[2].header("range"), "bytes=300000-");
}

fn a_download_that_failed_is_resumed_by_the_next_pull() {
    let (registry, state) = (Registry::start(), State::new());
    let content = noise(2, 1 << 20);
    with_app(
        &registry,
        &state,
        &[Layer::gzip(Tar::new().file("noise", &content))],
    );
    let breaks = Arc::new(Mutex::new(true));
    let shared = Arc::clone(&breaks);
    let front = Front::before(&registry.host, move |request, blobs| {
        match request.is_blob() && blobs > 0 && *shared.lock().unwrap() {
            true if blobs == 1 => Act::Cut(500_000),
            true => Act::Answer(503, vec![], vec![]),
            false => Act::Forward,
        }
    });
    let reference = format!("{}/app:1", front.host);
    let error = attempt(&state, &reference, &options()).unwrap_err();
    assert_eq!(
        class_and_code(&error),
        (ErrorClass::Unavailable, "registry_answer")
    );
    let parts = left(&state);
    assert_eq!(parts.len(), 1, "{parts:?}");
    let part = state.file("images").join(&parts[0]);
    assert_eq!(fs::metadata(&part).unwrap().len(), 500_000);

    *breaks.lock().unwrap() = false;
    pull(&state, &reference).check().unwrap();
    assert_eq!(
        front.blobs().last().unwrap().header("range"),
        "bytes=500000-"
    );

    // A part that was damaged meanwhile is found out, and begun anew.
    state.store().remove(&reference).unwrap();
    assert!(left(&state).is_empty(), "{:?}", left(&state));
    fs::write(&part, vec![0; 1000]).unwrap();
    pull(&state, &reference).check().unwrap();
    let ranges: Vec<_> = front
        .blobs()
        .iter()
        .rev()
        .take(3)
        .map(|r| r.header("range").to_owned())
        .collect();
    assert_eq!(ranges, ["", "", "bytes=1000-"]);
}

fn a_pull_that_is_dropped_leaves_nothing_but_parts() {
    let (registry, state) = (Registry::start(), State::new());
    let content = noise(3, 4 << 20);
    with_app(
        &registry,
        &state,
        &[Layer::gzip(Tar::new().file("noise", &content))],
    );
    let front = Front::before(&registry.host, |request, blobs| match request.is_blob() {
        true if blobs == 1 => Act::Slow,
        _ => Act::Forward,
    });
    let reference = format!("{}/app:1", front.host);
    let seen = Arc::new(Mutex::new(0));
    let shared = Arc::clone(&seen);
    let runtime = runtime();
    let store = state.store();
    runtime.block_on(async {
        let options = options();
        let pull = store.pull(&reference, &options, move |event| {
            if let PullEvent::Layer {
                step: LayerStep::Downloading,
                done,
                ..
            } = event
            {
                *shared.lock().unwrap() = done;
            }
        });
        tokio::pin!(pull);
        while *seen.lock().unwrap() == 0 {
            tokio::select! {
                ended = &mut pull => panic!("{ended:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    });
    drop(runtime);
    let parts = left(&state);
    assert!(parts.len() == 1 && parts[0].ends_with(".part"), "{parts:?}");
    pull(&state, &reference).check().unwrap();
    assert!(
        front
            .blobs()
            .last()
            .unwrap()
            .header("range")
            .starts_with("bytes=")
    );
}

/// Set to `STATE REFERENCE`, this program pulls that and nothing else.
const CHILD: &str = "ALEPH_TEST_PULL";

fn child(pull: &str) {
    let (state, reference) = pull.split_once(' ').unwrap();
    let store = aleph_image::Store::open(state).unwrap();
    let pulled = runtime().block_on(store.pull(reference, &options(), |_| {}));
    pulled.unwrap();
}

fn a_pull_that_is_killed_leaves_nothing_but_parts() {
    let (registry, state) = (Registry::start(), State::new());
    let noisy = Layer::gzip(Tar::new().file("noise", noise(3, 4 << 20)));
    with_app(&registry, &state, &[small().remove(0), noisy.clone()]);
    let digest = Digest::of(&noisy.bytes);
    let wanted = digest.to_string();
    let slow = Arc::new(Mutex::new(true));
    let shared = Arc::clone(&slow);
    let front = Front::before(&registry.host, move |request, _| {
        match request.path.contains(&wanted) && *shared.lock().unwrap() {
            true => Act::Slow,
            false => Act::Forward,
        }
    });
    let reference = format!("{}/app:1", front.host);
    let mut pulling = std::process::Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{} {reference}", state.path().display()))
        .spawn()
        .unwrap();
    let part = state
        .file("images/blobs")
        .join(format!("sha256-{}.part", digest.hex()));
    wait_until("a part", || {
        assert!(pulling.try_wait().unwrap().is_none());
        fs::metadata(&part).is_ok_and(|part| part.len() > 100_000)
    });
    // Another process waits for the same image meanwhile, and takes over.
    let waiting = std::process::Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{} {reference}", state.path().display()))
        .spawn();
    let mut waiting = waiting.unwrap();
    let others = || {
        let blobs = front.blobs().into_iter();
        blobs
            .filter(|r| !r.path.contains(&digest.to_string()))
            .count()
    };
    wait_until("the second process", || others() == 3);
    assert!(state.store().list().unwrap().is_empty());
    *slow.lock().unwrap() = false;
    pulling.kill().unwrap();
    pulling.wait().unwrap();
    assert!(waiting.wait().unwrap().success());
    assert!(
        front
            .blobs()
            .last()
            .unwrap()
            .header("range")
            .starts_with("bytes=")
    );
    state.store().resolve(&reference).unwrap().check().unwrap();
    let mut left = left(&state);
    left.retain(|name| name.starts_with('.') || name.contains(".part") || name.contains(".lock"));
    assert!(left.is_empty(), "{left:?}");
}

fn what_is_not_what_was_asked_for_is_refused() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = with_app(&registry, &state, &small());
    let layers = small();
    let (first, second) = (layers[0].bytes.clone(), layers[1].bytes.clone());
    let body = |bytes: Vec<u8>| Act::Answer(200, vec![], bytes);
    let longer = [&second[..], b"more"].concat();
    let mut other = second.clone();
    *other.last_mut().unwrap() ^= 1;
    let cases: [(&str, Vec<u8>); 4] = [
        ("digest_mismatch", other),
        ("digest_mismatch", longer),
        ("registry_form", second[..second.len() - 1].to_vec()),
        ("digest_mismatch", noise(9, second.len())),
    ];
    let digest = Digest::of(&second).to_string();
    for (code, bytes) in cases {
        let digest = digest.clone();
        let front = Front::before(&registry.host, move |request, _| {
            match request.path.contains(&digest) {
                true => body(bytes.clone()),
                false => Act::Forward,
            }
        });
        let error = attempt(&state, &format!("{}/app:1", front.host), &options()).unwrap_err();
        assert_eq!(
            class_and_code(&error),
            (ErrorClass::Unavailable, code),
            "{error}"
        );
        let mut left = left(&state);
        // What is right is kept, and what may still become right.
        left.retain(|name| !name.contains(&Digest::of(&first).hex()));
        let part = format!("blobs/sha256-{}.part", Digest::of(&second).hex());
        assert!(
            left.is_empty() || (code == "registry_form" && left == [part]),
            "{left:?}"
        );
        state.store().prune(&PruneOptions::default()).unwrap();
    }
    // A manifest that is not the one of the digest, a configuration that is not, JSON bombs.
    let wrong = format!("{}/app@{}", registry.host, Digest::of(b"none"));
    assert_eq!(
        attempt(&state, &wrong, &options()).unwrap_err().code(),
        "registry_not_found"
    );
    let lying = Front::before(&registry.host, |request, _| match request.is_blob() {
        true => Act::Answer(200, vec![], b"{}".into()),
        false => Act::Forward,
    });
    let error = attempt(&state, &format!("{}/app:1", lying.host), &options()).unwrap_err();
    assert_eq!(error.code(), "digest_mismatch");
    let endless = Front::before(&registry.host, |_, _| {
        Act::Answer(200, vec![], vec![b'['; 5 << 20])
    });
    let error = attempt(&state, &format!("{}/app:1", endless.host), &options()).unwrap_err();
    assert_eq!(error.code(), "registry_form");
    let manifest = fs::read(layout.dir.join("index.json")).unwrap();
    let other = Front::before(&registry.host, move |_, _| {
        Act::Answer(200, vec![], manifest.clone())
    });
    let digest = format!("{}/app@{}", other.host, Digest::of(b"none"));
    assert_eq!(
        attempt(&state, &digest, &options()).unwrap_err().code(),
        "digest_mismatch"
    );
    assert!(left(&state).is_empty(), "{:?}", left(&state));
}

/// A limit that real layers of this test stay below.
fn tight() -> PullOptions {
    PullOptions {
        most_bytes: 8 << 20,
        most_entries: 5000,
        ..options()
    }
}

fn hostile_layers_are_refused_and_leave_nothing() {
    let (registry, state) = (Registry::start(), State::new());
    let outside = state.file("outside");
    fs::write(&outside, "secret").unwrap();
    let outside = outside.display().to_string();
    let layout = Layout::new(state.file("layout"));
    let gzip = |tar: Tar| Layer::gzip(tar);
    let many = (0..5001).fold(Tar::new(), |tar, n| tar.file(&n.to_string(), ""));
    let zeros = vec![0; 64 << 20];
    let mut behind_the_end = Tar::new().file("a", "a").bytes();
    behind_the_end.extend(&zeros);
    let mut lying = Layer::gzip(Tar::new().file("a", "a"));
    lying.diff_id = Digest::of(b"else").to_string();
    let half = Tar::new().file("a", noise(1, 9000)).bytes();
    let mut cut = Layer::new(&half, Packed::Gzip);
    cut.bytes.truncate(cut.bytes.len() / 2);
    let mut not_gzip = Layer::new(&half, Packed::Plain);
    not_gzip.bytes = b"\x1f\x8bnothing of the kind".to_vec();
    let cases: Vec<(&str, Vec<Layer>)> = vec![
        ("archive_path", vec![gzip(Tar::new().file("../evil", "x"))]),
        (
            "archive_path",
            vec![gzip(Tar::new().file("a/../../evil", "x"))],
        ),
        (
            "archive_path",
            vec![gzip(Tar::new().link("a", "../../etc/passwd"))],
        ),
        ("archive_entry", vec![gzip(Tar::new().link("a", &outside))]),
        (
            "archive_entry",
            vec![gzip(Tar::new().symlink("a", "/nowhere").file("a/b", "x"))],
        ),
        ("archive_entry", vec![gzip(Tar::new().file("a/.wh.", ""))]),
        ("archive_entry", vec![gzip(Tar::new().file("a/.wh...", ""))]),
        ("archive_entry", vec![gzip(Tar::new().file(".wh.a/b", ""))]),
        (
            "archive_entry",
            vec![gzip(Tar::new().dir("a/").link("b", "a"))],
        ),
        (
            "archive_entry",
            vec![gzip(Tar::new().xattr("nonsense", b"x").file("a", ""))],
        ),
        (
            "archive_entry",
            vec![gzip(Tar::new().entry(EntryType::GNUSparse, "x", "", b""))],
        ),
        ("archive_too_much", vec![gzip(many)]),
        (
            "archive_too_much",
            vec![gzip(Tar::new().file("zeros", &zeros))],
        ),
        (
            "archive_too_much",
            vec![Layer::new(&behind_the_end, Packed::Zstd)],
        ),
        (
            "archive_too_much",
            vec![gzip(Tar::new().entry(
                EntryType::XHeader,
                "n",
                "",
                &vec![b'x'; 2 << 20],
            ))],
        ),
        // Each is within the limit, and not all of them together.
        (
            "archive_too_much",
            (0..3)
                .map(|n| gzip(Tar::new().file("f", vec![n; 3 << 20])))
                .collect(),
        ),
        ("archive_damaged", vec![lying]),
        ("archive_damaged", vec![cut]),
        ("archive_damaged", vec![not_gzip]),
        (
            "archive_not_tar",
            vec![Layer::new(&b"no tar at all ".repeat(100), Packed::Gzip)],
        ),
    ];
    for (n, (code, layers)) in cases.into_iter().enumerate() {
        let image = layout.image(&layers, &json!({}));
        let tag = n.to_string();
        registry.push(layout.tag(&tag, &image), &tag, &format!("hostile:{tag}"));
        let reference = format!("{}/hostile:{tag}", registry.host);
        let error = attempt(&state, &reference, &tight()).unwrap_err();
        assert_eq!(
            class_and_code(&error),
            (ErrorClass::Invalid, code),
            "{n}: {error:?}"
        );
        // Verified blobs may stay, as what they are; nothing else.
        state.store().prune(&PruneOptions::default()).unwrap();
        assert!(left(&state).is_empty(), "{n}: {:?}", left(&state));
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "secret");
    // Larger than the limit as it is: not even downloaded.
    let large = layout.image(
        &[Layer::gzip(Tar::new().file("n", noise(4, 9 << 20)))],
        &json!({}),
    );
    registry.push(layout.tag("large", &large), "large", "hostile:large");
    let front = Front::before(&registry.host, |_, _| Act::Forward);
    let error = attempt(&state, &format!("{}/hostile:large", front.host), &tight());
    assert_eq!(error.unwrap_err().code(), "image_unsupported");
    assert_eq!(front.blobs().len(), 1);
}

fn no_layer_leaves_the_image() {
    let (registry, state) = (Registry::start(), State::new());
    let outside = state.file("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let target = outside.display().to_string();
    let up = format!("../../../../../../../..{target}");
    // Deeper than a process can open folders, and deeper than a path may be: by links.
    let deep = "d/".repeat(250);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    for n in 0..7 {
        // Each link leads 250 levels below the one before.
        let at = if n == 0 {
            deep.clone()
        } else {
            format!("link-{n}/{deep}")
        };
        builder
            .append_data(&mut header, format!("{at}f"), &b""[..])
            .unwrap();
        let mut link = header.clone();
        link.set_entry_type(EntryType::Symlink);
        let name = format!("link-{}", n + 1);
        builder.append_link(&mut link, name, at).unwrap();
    }
    let layers = [
        Layer::new(&builder.into_inner().unwrap(), Packed::Gzip),
        Layer::gzip(
            Tar::new()
                .dir(target.trim_start_matches('/'))
                .symlink("absolute", &target)
                .symlink("relative", &up),
        ),
        Layer::gzip(
            Tar::new()
                .file("absolute/a", "a")
                .file("relative/b", "b")
                .file("absolute/.wh.kept", "")
                .file("relative/.wh..wh..opq", "")
                .file(".wh.d", ""),
        ),
    ];
    with_app(&registry, &state, &layers);
    let image = pull(&state, &format!("{}/app:1", registry.host));
    assert_eq!(names_in(&outside), ["kept"]);
    let there = inside(&image, &format!("ls -R .{target} && ls"));
    assert!(
        there.contains("a\nb\n") && !there.contains("\nd\n"),
        "{there}"
    );
}

fn pulls_of_one_image_at_a_time_share_the_work() {
    let (registry, state) = (Registry::start(), State::new());
    with_app(&registry, &state, &layers([Packed::Gzip; 3]));
    let front = Front::before(&registry.host, |_, _| Act::Forward);
    let reference = format!("{}/app:1", front.host);
    let events = Arc::new(Mutex::new(Vec::new()));
    let runtime = runtime();
    let digests = runtime.block_on(async {
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let (store, reference, events) =
                (state.store(), reference.clone(), Arc::clone(&events));
            pulls.spawn(async move {
                let note = move |event| events.lock().unwrap().push(event);
                store
                    .pull(&reference, &options(), note)
                    .await
                    .unwrap()
                    .digest()
            });
        }
        pulls.join_all().await
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // Six configurations, and each layer once.
    assert_eq!(front.blobs().len(), 6 + 3);
    assert_eq!(left(&state).len(), 2 + 3, "{:?}", left(&state));
    let events = events.lock().unwrap();
    let unpacked = |index| {
        let is_end = |event: &&PullEvent| {
            matches!(event, PullEvent::Layer { index: i, step: LayerStep::Unpacked, done, total, .. }
                if *i == index && done == total)
        };
        events.iter().filter(is_end).count()
    };
    assert_eq!([unpacked(0), unpacked(1), unpacked(2)], [1, 1, 1]);
    let text = serde_json::to_string(&events[0]).unwrap();
    assert!(
        text.starts_with(r#"{"event":"resolved","manifest":"sha256:"#),
        "{text}"
    );
}

fn layers_are_shared_and_go_with_the_last_image() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = Layout::new(state.file("layout"));
    let base = Layer::gzip(Tar::new().file("base", noise(5, 1 << 20)));
    for name in ["one", "two"] {
        let own = Layer::gzip(Tar::new().file(name, name));
        // The same layer may come twice in one image.
        let image = layout.image(&[base.clone(), own, base.clone()], &json!({}));
        registry.push(layout.tag(name, &image), name, &format!("app:{name}"));
    }
    let front = Front::before(&registry.host, |_, _| Act::Forward);
    let reference = |name: &str| format!("{}/app:{name}", front.host);
    pull(&state, &reference("one"));
    pull(&state, &reference("two"));
    let digest = Digest::of(&base.bytes);
    let gets = front.blobs();
    assert_eq!(
        gets.iter()
            .filter(|r| r.path.contains(&digest.to_string()))
            .count(),
        1
    );
    assert_eq!(gets.len(), 2 + 3);

    // A damaged layer is found out when it is used again.
    let path = state
        .file("images/blobs")
        .join(format!("sha256-{}", digest.hex()));
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    state.store().remove(&reference("two")).unwrap();
    assert_eq!(names_in(&state.file("images/blobs")).len(), 2);
    pull(&state, &reference("two")).check().unwrap();

    state.store().remove(&reference("one")).unwrap();
    assert_eq!(names_in(&state.file("images/blobs")).len(), 2);
    // Layers of images are a cache, for those who want the room.
    let asked = PruneOptions {
        layers: true,
        dry_run: true,
        ..PruneOptions::default()
    };
    let would = state.store().prune(&asked).unwrap();
    assert_eq!((would.layers.len(), would.images.len()), (2, 0));
    assert!(would.bytes > 1 << 20);
    assert_eq!(
        state.store().prune(&PruneOptions::default()).unwrap().bytes,
        0
    );
    state.store().remove(&reference("two")).unwrap();
    assert!(left(&state).is_empty(), "{:?}", left(&state));
}

fn a_moved_tag_leaves_an_image_that_a_prune_removes() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = with_app(&registry, &state, &small());
    let reference = format!("{}/app:1", registry.host);
    let old = pull(&state, &reference);
    let moved = layout.image(&[Layer::gzip(Tar::new().file("new", "n"))], &json!({}));
    registry.push(layout.tag("1", &moved), "1", "app:1");
    let new = pull(&state, &reference);
    assert_ne!(old.digest(), new.digest());
    let store = state.store();
    assert!(
        store
            .resolve(&old.digest().to_string())
            .unwrap()
            .names()
            .is_empty()
    );

    let held = old.hold().unwrap();
    assert!(
        store
            .prune(&PruneOptions::default())
            .unwrap()
            .images
            .is_empty()
    );
    drop(held);
    fs::write(
        state
            .file("images/blobs")
            .join(format!("sha256-{}.part", "0".repeat(64))),
        "half",
    )
    .unwrap();
    let dry = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let would = store.prune(&dry).unwrap();
    assert!(store.resolve(&old.digest().to_string()).is_ok());
    let pruned = store.prune(&PruneOptions::default()).unwrap();
    assert_eq!(would, pruned);
    assert_eq!(pruned.images[0].digest(), old.digest());
    assert_eq!((pruned.layers.len(), pruned.partial.len()), (2, 1));
    assert!(pruned.bytes > old.record().size, "{pruned:?}");
    assert_eq!(store.resolve(&reference).unwrap(), new);

    let keep = PruneOptions {
        all: true,
        keep: [new.digest()].into(),
        ..PruneOptions::default()
    };
    assert!(store.prune(&keep).unwrap().images.is_empty());
    let all = PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert_eq!(store.prune(&all).unwrap().images, [new]);
    assert!(left(&state).is_empty(), "{:?}", left(&state));
}

fn a_full_disk_is_said_and_leaves_nothing() {
    let (registry, state) = (Registry::start(), State::new());
    let layout = Layout::new(state.file("layout"));
    let files = |n: u32| (0..n).fold(Tar::new(), |tar, n| tar.file(&format!("{n:0>90}"), "x"));
    for (tag, tar) in [
        // Larger than the disk as it is; when unpacked; and beside its tree, as a file system.
        ("blob", Tar::new().file("n", noise(6, 6 << 20))),
        ("tree", Tar::new().file("n", vec![0; 6 << 20])),
        ("many", files(3000)),
        ("image", Tar::new().file("n", vec![0; 3 << 20])),
    ] {
        let image = layout.image(&[Layer::gzip(tar)], &json!({}));
        registry.push(layout.tag(tag, &image), tag, &format!("app:{tag}"));
        let disk = SmallDisk::mount(state.file(&format!("disk-{tag}")), "4m");
        let store = aleph_image::Store::open(&disk.path).unwrap();
        let reference = format!("{}/app:{tag}", registry.host);
        let error = runtime()
            .block_on(store.pull(&reference, &options(), |_| {}))
            .unwrap_err();
        assert_eq!(
            class_and_code(&error),
            (ErrorClass::Capacity, "disk_full"),
            "{tag}: {error:?}"
        );
        assert!(
            error.to_string().contains(&disk.path.display().to_string()),
            "{error}"
        );
        assert!(store.list().unwrap().is_empty());
        let images = disk.path.join("images");
        let mut left = names_in(&images);
        left.sort();
        assert_eq!(left, [".lock", "blobs", "names"], "{tag}");
        // Unpacking may fail before the last of a download has got its name: a cache either way,
        // which the next pull goes on with.
        let blobs = names_in(&images.join("blobs"));
        let most = usize::from(tag != "blob");
        assert!(
            blobs.len() <= most && blobs.iter().all(|n| !n.ends_with(".lock")),
            "{tag}: {blobs:?}"
        );
    }
    // Nobody said how large it is: found out while it is written.
    let front = Front::before(&registry.host, |_, _| Act::Forward);
    let disk = SmallDisk::mount(state.file("disk"), "4m");
    fs::create_dir_all(disk.path.join("images")).unwrap();
    let store = aleph_image::Store::open(&disk.path).unwrap();
    let image = layout.image(
        &[Layer::gzip(Tar::new().file("n", noise(8, 3 << 20)))],
        &json!({}),
    );
    registry.push(layout.tag("late", &image), "late", "app:late");
    let filler = disk.path.join("filler");
    let path = filler.clone();
    let reference = format!("{}/app:late", front.host);
    let error = runtime().block_on(store.pull(&reference, &options(), move |event| {
        if matches!(
            event,
            PullEvent::Resolved { .. } | PullEvent::Layer { done: 0, .. }
        ) {
            // Somebody else takes the room at this moment.
            let _ = fs::write(&path, vec![1; 2 << 20]);
        }
    }));
    let error = error.unwrap_err();
    assert_eq!(
        class_and_code(&error),
        (ErrorClass::Capacity, "disk_full"),
        "{error:?}"
    );
    assert!(names_in(&disk.path.join("images/blobs")).is_empty());
    fs::remove_file(filler).unwrap();
    drop(disk);
}

fn a_registry_with_its_own_certificates_is_trusted_when_told() {
    let state = State::new();
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".into()]);
    let rcgen::CertifiedKey { cert, signing_key } = key.unwrap();
    let (certificate, key) = (state.file("cert.pem"), state.file("key.pem"));
    fs::write(&certificate, cert.pem()).unwrap();
    fs::write(&key, signing_key.serialize_pem()).unwrap();
    let registry = Registry::with_tls(&certificate, &key);
    with_app(&registry, &state, &small());
    let reference = format!("{}/app:1", registry.host);
    let mut options = options();
    options.registries.tls_on_loopback = true;
    let refused = attempt(&state, &reference, &options).unwrap_err();
    assert_eq!(
        class_and_code(&refused),
        (ErrorClass::Unavailable, "registry_unreachable")
    );
    options.registries.certificates = vec![certificate];
    attempt(&state, &reference, &options).unwrap();
    options.registries.certificates = vec![Path::new("/no/such/file").into()];
    assert_eq!(
        attempt(&state, &reference, &options).unwrap_err().code(),
        "registry_certificates"
    );
}
