//! The guest agent that this build carries.

/// The agent's program, for [`KernelStore::build_default`](crate::KernelStore::build_default).
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_small_static_program() {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        assert!(AGENT.len() <= 1280 * 1024, "{} bytes", AGENT.len());
        // PT_INTERP would name a dynamic loader, which no initramfs has.
        assert!(!AGENT.windows(11).any(|w| w == b"/lib64/ld-l"));
        for path in ["/root/.", "/home/"] {
            assert!(
                !AGENT.windows(path.len()).any(|w| w == path.as_bytes()),
                "{path} is in it"
            );
        }
    }
}
