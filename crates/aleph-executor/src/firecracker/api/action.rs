//! What Firecracker does at once: `/actions` and `/vm`.

use super::{Body, Check};
use serde::Serialize;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Write the metrics now.
    FlushMetrics,
    /// Boot the guest.
    InstanceStart,
    /// Press these keys, which a guest takes for the wish to reboot. x86-64 only; the guest needs a
    /// driver for the keyboard (`i8042`, `atkbd`).
    SendCtrlAltDel,
}

impl Body for Action {
    fn check(&self, check: &mut Check) {
        check.refuse_if(
            "action_type",
            *self == Self::SendCtrlAltDel && !cfg!(target_arch = "x86_64"),
            "is there on x86-64 only",
        );
    }
}

/// Whether the guest runs. Setting what is so already is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// It stands still. The devices do too, the vsock among them.
    Paused,
    /// It runs.
    Resumed,
}

impl Body for VmState {
    fn check(&self, _: &mut Check) {}
}
