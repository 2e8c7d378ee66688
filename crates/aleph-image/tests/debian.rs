//! The Debian recipe, for real: it takes a minute or two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{NoProgress, Recipe};
use host::{Need, State, dump, inside, run, trial};

fn main() {
    let needs = [
        Need::Mount,
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
    let facts = inside(
        &image,
        "stat -c '%a' usr/bin/su && chroot . dpkg-query -W -f '${Status}' apt",
    );
    assert_eq!(facts, "4755\ninstall ok installed");
    // Nothing of the host that it was built on but where to get packages, and no caches.
    let left = inside(
        &image,
        "ls etc/hostname etc/resolv.conf var/cache/apt/*.bin 2>/dev/null; ls var/lib/apt/lists",
    );
    assert!(
        !left.contains("Packages") && !left.contains(".bin"),
        "{left}"
    );
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
