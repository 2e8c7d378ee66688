//! The Debian recipe, for real: it takes a minute or two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{NoProgress, Recipe};
use host::{Need, State, dump, extract, mode, run, trial};

fn main() {
    let needs = [
        Need::Root,
        Need::Apt,
        Need::Tool("mkfs.erofs"),
        Need::Tool("dump.erofs"),
        Need::Tool("mmdebstrap"),
    ];
    run(vec![trial(
        "a_minimal_debian_is_built",
        &needs,
        a_minimal_debian_is_built,
    )]);
}

fn a_minimal_debian_is_built() {
    let state = State::new();
    let image = state
        .store()
        .build(Recipe::Debian12, &mut NoProgress)
        .unwrap();
    assert_eq!(image.names(), ["debian-12"]);
    image.hold().unwrap();
    let out = extract(&image);
    assert_eq!(mode(&out.path().join("usr/bin/su")), 0o4755);
    // Nothing of the host that it was built on.
    for path in ["etc/hostname", "etc/resolv.conf", "var/lib/apt/lists/lock"] {
        println!(
            "{path}: {:?}",
            std::fs::metadata(out.path().join(path)).map(|m| m.len())
        );
    }
    assert!(dump(&image, "/usr/bin/apt-get").contains("regular file"));
    assert!(dump(&image, "/bin").contains("symlink"));
    // Owners and times are Debian's, not the build's.
    let shadow = dump(&image, "/etc/shadow");
    assert!(
        shadow.contains("Gid: 42") && shadow.contains("0640"),
        "{shadow}"
    );
    assert!(!dump(&image, "/usr/bin/dpkg").contains("1970-"));
    assert_eq!(state.left().len(), 2, "{:?}", state.left());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(&state.path().display().to_string()),
        "{mounts}"
    );
}
