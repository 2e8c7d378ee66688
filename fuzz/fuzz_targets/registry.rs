//! What people type for an image, and what a registry sends: all of it is read or refused, and
//! a reference prints as what reads the same.

#![no_main]

use aleph_image::oci::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    aleph_image::fuzzing::read(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        let printed = reference.to_string();
        assert_eq!(printed.parse().as_ref(), Ok(&reference));
        // A tag may end in dots; what may not be is a part of a path that climbs.
        let climbs = printed
            .split('/')
            .any(|part| part == ".." || part.is_empty());
        assert!(!climbs && !printed.starts_with('/'));
    }
});
