//! The header of a qcow2 file from a user: an answer or an error, and one that is taken names no other
//! file.

#![no_main]

use aleph_executor::volumes::qcow2::{Header, MAGIC};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (length, rest) = input;
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(rest);
    for head in [rest, &head] {
        let Ok(header) = Header::parse(head, length) else {
            continue;
        };
        assert_eq!(head[8..20], [0; 12], "no backing file");
        if header.version == 3 {
            assert_eq!(head[79] & 4, 0, "no external data file");
        }
        assert!(header.cluster_size.is_power_of_two());
    }
});
