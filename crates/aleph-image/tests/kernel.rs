//! Kernel bundles from a real package.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{Bundle, KernelError, KernelStore, NoProgress, Progress, Stage};
use aleph_types::{Classify, ErrorClass};
use host::{Need, State, names_in, run, trial};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    let needs = [
        Need::Root,
        Need::Apt,
        Need::Tool("dpkg-deb"),
        Need::Tool("cpio"),
    ];
    run(vec![
        trial(
            "a_bundle_is_built_once_and_found",
            &needs,
            a_bundle_is_built_once_and_found,
        ),
        trial(
            "packages_without_a_kernel_are_refused",
            &needs,
            packages_without_a_kernel,
        ),
    ]);
}

/// Hears how far the download got.
#[derive(Default)]
struct Heard {
    steps: Vec<(String, Option<u64>, u64)>,
}

impl Progress for Heard {
    fn begin(&mut self, what: &str, total: Option<u64>) {
        self.steps.push((what.into(), total, 0));
    }

    fn advance(&mut self, n: u64) {
        self.steps.last_mut().unwrap().2 += n;
    }

    fn end(&mut self) {}
}

fn a_bundle_is_built_once_and_found() {
    let state = State::new();
    let store = KernelStore::open(state.path()).unwrap();
    let agent = b"an agent that boots nothing";
    let mut heard = Heard::default();
    let bundle = store.build_default(agent, &mut heard).unwrap();
    let (_, total, seen) = heard
        .steps
        .iter()
        .find(|s| s.0.starts_with("download"))
        .unwrap();
    assert!(
        total.is_some() && total == &Some(*seen),
        "{:?}",
        heard.steps
    );

    let record = bundle.record().unwrap();
    assert!(record.release.ends_with("-cloud-amd64") && record.pvh && bundle.pvh());
    let place = |name: &str| record.modules.iter().position(|(_, n)| n == name).unwrap();
    assert!(place("virtio_ring") < place("virtio"));
    assert!(place("virtio") < place("virtio_mmio"));
    assert!(record.modules.contains(&(Stage::Root, "overlay".into())));
    // What a guest without a network does not load comes last, and in its own order.
    let net: Vec<_> = record
        .modules
        .iter()
        .filter(|(s, _)| *s == Stage::Net)
        .collect();
    let names: Vec<_> = net.iter().map(|(_, name)| &name[..]).collect();
    assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
    let balloon = [(Stage::Balloon, "virtio_balloon".to_owned())];
    let last: Vec<_> = net.into_iter().cloned().chain(balloon).collect();
    assert!(record.modules.ends_with(&last));
    // Of the two kinds of channel each guest loads one, whole.
    let of = |stage: Stage| -> Vec<&str> {
        let modules = record.modules.iter().filter(|(s, _)| *s == stage);
        modules.map(|(_, name)| &name[..]).collect()
    };
    assert_eq!(of(Stage::Serial), ["virtio_console"]);
    assert_eq!(
        of(Stage::Vsock),
        [
            "vsock",
            "vmw_vsock_virtio_transport_common",
            "vmw_vsock_virtio_transport"
        ]
    );
    let kernel = fs::read(bundle.vmlinux().unwrap()).unwrap();
    assert!(kernel.starts_with(b"\x7fELF"));
    for (name, file) in &record.files {
        let bytes = fs::read(bundle.initrd().with_file_name(name)).unwrap();
        assert_eq!(bytes.len() as u64, file.size);
        assert_eq!(aleph_image::Digest::of(&bytes), file.digest);
    }
    assert_has_the_agents_format(&bundle, agent);

    // Built once: the second time nothing is downloaded.
    let start = Instant::now();
    let mut heard = Heard::default();
    assert_eq!(store.build_default(agent, &mut heard).unwrap(), bundle);
    assert!(heard.steps.is_empty() && start.elapsed() < Duration::from_secs(60));

    let hex = bundle.digest().hex();
    for prefix in [&hex, &hex[..8], &hex[..16], &format!("sha256:{hex}")] {
        assert_eq!(store.by_digest(prefix).unwrap(), bundle);
    }
    let other = format!("{}{}", &hex[..16], "0".repeat(48));
    assert!(matches!(
        store.by_digest(&other),
        Err(KernelError::NotFound { .. })
    ));
    assert_eq!(store.default_bundle().unwrap(), bundle);
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&bundle));
    // The same files as a user's own.
    for kernel in [bundle.kernel(), bundle.vmlinux().unwrap()] {
        let own = Bundle::custom(kernel, bundle.initrd()).unwrap();
        assert_eq!(own.pvh(), own.vmlinux().is_some());
    }

    store.remove(&hex[..8]).unwrap();
    assert!(matches!(
        store.default_bundle(),
        Err(KernelError::NoDefault)
    ));
    let mut left = names_in(&state.file("kernels"));
    left.retain(|name| name != ".lock");
    assert!(left.is_empty(), "{left:?}");
}

fn assert_has_the_agents_format(bundle: &Bundle, agent: &[u8]) {
    let listed = cpio(bundle, &["-tv", "--quiet", "--numeric-uid-gid"]);
    let listed = String::from_utf8(listed).unwrap();
    for (line, name) in [
        ("-rwxr-xr-x", " init\n"),
        ("crw-------", " dev/console\n"),
        ("drwxr-xr-x", " upper\n"),
        ("drwxr-xr-x", " image\n"),
        ("-r--r--r--", " modules/overlay.ko\n"),
    ] {
        let found = listed
            .split_inclusive('\n')
            .any(|l| l.starts_with(line) && l.ends_with(name));
        assert!(found, "{line} {name}: {listed}");
    }
    assert!(
        listed.lines().all(|l| l.contains(" 0        0 ")),
        "{listed}"
    );
    assert_eq!(
        cpio(bundle, &["-i", "--quiet", "--to-stdout", "init"]),
        agent
    );
    let order = cpio(bundle, &["-i", "--quiet", "--to-stdout", "modules/order"]);
    let order = String::from_utf8(order).unwrap();
    let recorded: String = bundle
        .record()
        .unwrap()
        .modules
        .iter()
        .map(|(s, n)| format!("{s} {n}.ko\n"))
        .collect();
    assert_eq!(order, recorded);
}

fn cpio(bundle: &Bundle, args: &[&str]) -> Vec<u8> {
    let initrd = fs::File::open(bundle.initrd()).unwrap();
    let output = Command::new("cpio")
        .args(args)
        .stdin(Stdio::from(initrd))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn packages_without_a_kernel() {
    let state = State::new();
    let store = KernelStore::open(state.path()).unwrap();
    let error = store
        .build("busybox-static", b"agent", &mut NoProgress)
        .unwrap_err();
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Invalid, "kernel_not_meta")
    );
    assert!(store.list().unwrap().is_empty());
}
