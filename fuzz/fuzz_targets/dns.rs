//! DNS messages: what guests send, and what resolvers reply to it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|messages: (&[u8], &[u8])| {
    let (guest, resolver) = messages;
    aleph_vm_networking::dns::read(guest, resolver);
});
