//! Signatures of kernel modules.
//!
//! Debian appends one to each module, and the guest's kernel would check it: a hash over the
//! module and an RSA verification, which cost an emulated processor some 20 ms for each module
//! and 200 to 300 ms for each boot. It protects nothing here, since host and bundle are trusted
//! by the guest in any case and the bundle is read-only under its digest. The kernel does not
//! insist on them (`MODULE_SIG_FORCE` is off) and marks itself as tainted (`E`) instead.
//!
//! Layout (Linux, `scripts/sign-file.c`): module, signature, 12 bytes of which the last four are
//! the signature's length in big-endian order, a magic text.

const MAGIC: &[u8] = b"~Module signature appended~\n";
const DESCRIPTION: usize = 12;

/// The module without its signature, where it has one.
pub(super) fn without(mut module: Vec<u8>) -> Vec<u8> {
    if let Some(length) = unsigned_length(&module) {
        module.truncate(length);
    }
    module
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let signed = module.strip_suffix(MAGIC)?;
    let (signed, description) = signed.split_at_checked(signed.len().checked_sub(DESCRIPTION)?)?;
    let length = u32::from_be_bytes(*description.last_chunk()?);
    signed.len().checked_sub(usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_signature_is_taken_off() {
        let signed = |length: u32| {
            let mut module = b"\x7fELF and more".to_vec();
            module.extend([7; 100]);
            module.extend([0; 8]);
            module.extend(length.to_be_bytes());
            module.extend(MAGIC);
            module
        };
        assert_eq!(without(signed(100)), b"\x7fELF and more");
        assert_eq!(without(signed(u32::MAX)), signed(u32::MAX));
        assert_eq!(without(b"\x7fELF".to_vec()), b"\x7fELF");
        assert_eq!(without(MAGIC.to_vec()), MAGIC);
    }
}
