//! What the API refuses, in its own words.

use crate::version::Version;

/// A refusal: its status, and the whole text of its fault message.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self { status: 400, text }
    }
}

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Whether there is a guest yet.
pub(crate) const TOO_EARLY: &str =
    "The requested operation is not supported before starting the microVM.";
/// Whether there is a guest already.
pub(crate) const TOO_LATE: &str =
    "The requested operation is not supported after starting the microVM.";

/// What precedes refusals about something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    Balloon,
    BalloonUpdate,
    Boot,
    Create,
    Drive,
    Hotplug,
    HotplugUpdate,
    Load,
    Logger,
    Machine,
    Metrics,
    Mmds,
    MmdsConfig,
    MmdsLimit,
    Network,
    Pmem,
    Start,
    Vmm,
    Vsock,
}

impl About {
    /// A refusal.
    pub(crate) fn fault(self, version: Version, text: &str) -> Fault {
        let prefix = match self {
            Self::Balloon => "Balloon config error",
            Self::BalloonUpdate if version.has(13) => "Balloon update error",
            Self::BalloonUpdate => "Balloon config error",
            Self::Boot => "Boot source error",
            Self::Create => "Create snapshot error",
            Self::Drive => "Drive config error",
            Self::Hotplug => "Memory hotplug config error",
            Self::HotplugUpdate => "Memory hotplug update error",
            Self::Load => "Load snapshot error",
            Self::Logger => "Logger error",
            Self::Machine => "Machine config error",
            Self::Metrics => "Metrics error",
            Self::Mmds => "MMDS error",
            // As it is spelt there.
            Self::MmdsConfig => "MMMDS config error",
            Self::MmdsLimit => "MMDS limit exceeded error",
            Self::Network => "Network config error",
            Self::Pmem if version.has(16) => "Pmem config error",
            Self::Pmem => "Pmem device error",
            Self::Start => "Start microvm error",
            Self::Vmm => "Internal VMM error",
            Self::Vsock => "Vsock config error",
        };
        let status = if self == Self::MmdsLimit { 413 } else { 400 };
        Fault {
            status,
            text: format!("{prefix}: {text}"),
        }
    }
}

/// The text of an error of the operating system, in the words of the C library that Firecracker's
/// releases are built with.
pub(crate) fn os_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(16) => "Resource busy (os error 16)".to_owned(),
        Some(98) => "Address in use (os error 98)".to_owned(),
        _ => error.to_string(),
    }
}
