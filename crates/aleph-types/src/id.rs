//! Ids: of jobs and nodes (128 bits), of VMs (27 bits, unique on their node) and incarnations.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct ParseIdError {
    text: String,
    wanted: &'static str,
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    let mut filled = 0;
    while filled < N {
        // The pool is ready long before any program of this kind runs, and requests of up to
        // 256 bytes are never cut short: see getrandom(2). An error can only be an interruption.
        if let Ok(n) =
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
        {
            filled += n;
        }
    }
    bytes
}

macro_rules! wide_id {
    ($name:ident, $wanted:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// A new id from the kernel's random source.
            #[must_use]
            pub fn random() -> Self {
                Self(u128::from_le_bytes(random_bytes()))
            }

            /// The id with these bits.
            #[must_use]
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The first 8 hex digits, as in `0x1234abcd`: enough to tell ids apart on a screen.
            #[must_use]
            pub fn short(self) -> String {
                format!("0x{:08x}", self.0 >> 96)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix("0x")
                    .filter(|digits| digits.len() == 32 && is_lower_hex(digits))
                    .and_then(|digits| u128::from_str_radix(digits, 16).ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError {
                        text: text.to_owned(),
                        wanted: $wanted,
                    })
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

fn is_lower_hex(digits: &str) -> bool {
    digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

wide_id!(
    JobId,
    "a job id (0x and 32 hex digits)",
    "What a user asked to run, for its whole life."
);
wide_id!(
    SnapshotId,
    "a snapshot id (0x and 32 hex digits)",
    "A guest that was written down, for others to go on from."
);
wide_id!(
    VolumeId,
    "a volume id (0x and 32 hex digits)",
    "A disk that outlives jobs."
);
wide_id!(
    NodeId,
    "a node id (0x and 32 hex digits)",
    "A host that runs jobs."
);

impl JobId {
    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The name that the guest has for itself: `job-` and the short id.
    #[must_use]
    pub fn hostname(self) -> String {
        format!("job-{}", self.short())
    }
}

/// One guest on its node. Names of host objects (folder, cgroup, TAP, user id) derive from it,
/// so that a sweep can find those whose owner is gone.
///
/// It has 27 random bits so that an unprivileged user id of its own can be derived from it
/// without a table; who makes one checks that it is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(u32);

impl VmId {
    /// How many different ids there are.
    pub const SPACE: u32 = 1 << 27;

    /// The first user id given to a VMM. Above all ranges that Linux distributions and
    /// systemd hand out (<https://systemd.io/UIDS-GIDS/>), below 2³¹.
    const FIRST_UID: u32 = 0x7000_0000;

    /// A new id from the kernel's random source.
    #[must_use]
    pub fn random() -> Self {
        Self(u32::from_le_bytes(random_bytes()) % Self::SPACE)
    }

    /// The id with these bits, if they are in the space of ids.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits < Self::SPACE {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The user and group id under which this VM's VMM runs.
    #[must_use]
    pub const fn uid(self) -> u32 {
        Self::FIRST_UID + self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmId({self})")
    }
}

impl FromStr for VmId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Some(text)
            .filter(|digits| digits.len() == 8 && is_lower_hex(digits))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(Self::from_bits)
            .ok_or_else(|| ParseIdError {
                text: text.to_owned(),
                wanted: "a VM id (8 hex digits)",
            })
    }
}

impl TryFrom<String> for VmId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.to_string()
    }
}

/// Counts the starts and moves of one job. Commands and records carry it, so that an old owner
/// can be told from the new.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The incarnation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The incarnation with this count.
    #[must_use]
    pub const fn from_count(count: u64) -> Self {
        Self(count)
    }

    /// The bare count, 0 for the first.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn job_id_prints_its_full_and_its_short_form() {
        let id = JobId::from_bits(0x1f3a_5b7c_0000_0000_0000_0000_0000_0001);
        assert_eq!(id.to_string(), "0x1f3a5b7c000000000000000000000001");
        assert_eq!(id.hostname(), "job-0x1f3a5b7c");
    }

    #[test]
    fn a_tap_named_after_a_vm_fits_an_interface_name() {
        assert!(format!("tap-{}", VmId::random()).len() <= 15);
    }

    #[test]
    fn wrong_ids_are_refused() {
        for text in [
            "",
            "0x",
            "1f3a",
            "0xZZ3a5b7c000000000000000000000001",
            "0x+f3a5b7c0000000",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        for text in ["", "1f3a", "ffffffff", "0x12345678", "+1234567", "ABCDEF01"] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_survive_printing(job in any::<u128>(), vm in 0..VmId::SPACE) {
            let job = JobId::from_bits(job);
            prop_assert_eq!(job.to_string().parse::<JobId>(), Ok(job));
            let vm = VmId::from_bits(vm).unwrap();
            prop_assert_eq!(vm.to_string().parse::<VmId>(), Ok(vm));
            prop_assert!(vm.uid() >= 0x7000_0000 && vm.uid() < 0x7800_0000);
        }
    }
}
