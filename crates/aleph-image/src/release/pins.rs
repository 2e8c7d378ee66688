//! The digests of Firecracker's release archives that are known.
//!
//! The project publishes each beside its archive, as `firecracker-vVERSION-ARCH.tgz.sha256.txt`
//! (<https://github.com/firecracker-microvm/firecracker/releases>). Those here were not taken from
//! there: each was found, the same, in the public sources of at least two projects that pin the
//! archive: recipes of Yocto layers, of Homebrew, Bazel and Nix, build scripts and installers. An
//! archive without an entry needs its digest from whoever installs it.

use super::Version;
use crate::digest::Digest;

const X86: &str = "x86_64";
const ARM: &str = "aarch64";

/// Version, architecture, SHA-256 of `firecracker-vVERSION-ARCH.tgz`.
#[rustfmt::skip]
const PINS: [(Version, &str, &str); 19] = [
    (v(10, 1), X86, "36112969952b0e34fadcfca769d48a55dc22cbba99af17e02bd0e24fc35adc77"),
    (v(10, 1), ARM, "9e3641071de140979afaac0c52fdc107baeba398bdb5709c12f77ee469207fcd"),
    (v(11, 0), X86, "38ad6fb34273b2fa616956237b15ea6e064cf21336b0d990d5de347b35b9328b"),
    (v(11, 0), ARM, "4b98f7cd669a772716fd1bef59c75188ba05a683bc0759ee4169eb351274fcb0"),
    (v(12, 0), X86, "392b5f7e4bf12871d1e8377a60ed3b384a46bc2f7d3771caf202aa7a63e32676"),
    (v(12, 0), ARM, "55f3e76c6a16128e91aea1d2ed3d436f5d4e2e9547bfdd226ce570a89cd48921"),
    (v(12, 1), X86, "0a75e67ef6e4c540a2cf248b06822b0be9820cbba9fe19f9e0321200fe76ff6b"),
    (v(12, 1), ARM, "785bc9d30756bff0c03fb275baac957363f9ba98f78a2272405dcb6929ebb953"),
    (v(15, 0), X86, "00cadf7f21e709e939dc0c8d16e2d2ce7b975a62bec6c50f74b421cc8ab3cab4"),
    (v(15, 0), ARM, "58325e6c3c539482a412ec0b60e6f539c3320adebcf8179c7629d06736aee0bd"),
    (v(15, 1), X86, "d4a32ab2322d887ca1bc4a4e7afa9cc35393e6362dfc2b3becb389d362e4275a"),
    (v(15, 1), ARM, "00654ac1e702a22744121ea9f10a4f792ebd7c3a744cba587dfac9fcb79b41a5"),
    (v(16, 0), X86, "bd04e26952d4e158085778c6230a0b383d2619c319182e27eaa9d61a212e92d6"),
    (v(16, 0), ARM, "531c713cdbc37d4b8bc2533d851aabc0267096afa1768086a37672abb668efd7"),
    (v(16, 1), X86, "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6"),
    (v(16, 1), ARM, "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e"),
    (v(16, 2), X86, "32e3cdcd4081f91fe2b024a266f57dcb3b4e5fec5033e0cb22467ad7f7820bda"),
    (v(17, 0), X86, "06094a1108ae9e82aa4c23a775aa92758f53f1175d422270d9d6162cb9ade558"),
    (v(17, 0), ARM, "e351ebe4f7a16b5873bbd51005d2e6767103cff4d5ebc829df2d3f95a93e2256"),
];

/// What is installed where nobody says which: the newest but for those of 1.16, in which a paused
/// guest's vsock takes no connection any more, and 1.17, which is not tried.
pub(super) const DEFAULT: Version = v(15, 1);

const fn v(minor: u16, patch: u16) -> Version {
    Version {
        major: 1,
        minor,
        patch,
    }
}

/// The digest of a version's archive, if it is known.
pub(super) fn pinned(version: Version, arch: &str) -> Option<Digest> {
    PINS.iter()
        .find(|(v, a, _)| (*v, *a) == (version, arch))
        .and_then(|(_, _, hex)| Digest::from_hex(hex))
}

/// Versions with a known digest, the oldest first.
pub(super) fn versions(arch: &str) -> Vec<Version> {
    PINS.iter()
        .filter(|(_, a, _)| *a == arch)
        .map(|(version, _, _)| *version)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_pin_is_a_digest_and_there_once() {
        let digests: BTreeSet<_> = PINS.iter().map(|(_, _, hex)| hex).collect();
        assert_eq!(digests.len(), PINS.len());
        for (version, arch, hex) in PINS {
            assert_eq!(pinned(version, arch).unwrap().hex(), hex);
        }
        for arch in [X86, ARM] {
            let versions = versions(arch);
            assert!(versions.is_sorted() && versions.contains(&DEFAULT));
            assert_eq!(
                versions.iter().collect::<BTreeSet<_>>().len(),
                versions.len()
            );
        }
        assert_eq!(pinned(v(15, 1), "riscv64"), None);
    }
}
