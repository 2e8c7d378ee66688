//! Network devices: `/network-interfaces/{iface_id}`.

use super::wire::mac;
use super::{Body, Check, RateLimiter};
use crate::firecracker::Feature;
use aleph_vm_networking::mac::Mac;
use serde::{Deserialize, Serialize};

/// The least MTU that Firecracker takes: IPv4's.
const MIN_MTU: u64 = 68;

/// The guest's end of a TAP interface.
///
/// The interface has to be there, in the VMM's network namespace, with one queue, and be open to
/// its user: Firecracker opens it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its id: letters, digits and underscores.
    pub iface_id: String,
    /// The TAP interface's name.
    pub host_dev_name: String,
    /// The guest's hardware address; without one the guest draws its own.
    #[serde(default, with = "mac", skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<Mac>,
    /// The MTU that the guest is told. From 1.16 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    /// An interface without limits.
    #[must_use]
    pub fn tap(
        iface_id: impl Into<String>,
        host_dev_name: impl Into<String>,
        guest_mac: Mac,
    ) -> Self {
        Self {
            iface_id: iface_id.into(),
            host_dev_name: host_dev_name.into(),
            guest_mac: Some(guest_mac),
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

impl Body for NetworkInterface {
    fn check(&self, check: &mut Check) {
        check.id("iface_id", &self.iface_id);
        check.interface("host_dev_name", &self.host_dev_name);
        if let Some(Mac(bytes)) = self.guest_mac {
            check.refuse_if(
                "guest_mac",
                bytes[0] & 1 == 1 || bytes == [0; 6],
                "is an address of a group, or of nobody: guests take none of these",
            );
        }
        if let Some(mtu) = self.mtu {
            check.uses("mtu", Feature::Mtu);
            check.range("mtu", mtu, MIN_MTU, u64::from(u16::MAX));
        }
        limiters(check, &self.rx_rate_limiter, &self.tx_rate_limiter);
    }
}

/// A change of an interface while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Which.
    pub iface_id: String,
    /// Other limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl Body for NetworkInterfaceUpdate {
    fn check(&self, check: &mut Check) {
        check.id("iface_id", &self.iface_id);
        limiters(check, &self.rx_rate_limiter, &self.tx_rate_limiter);
    }
}

fn limiters(check: &mut Check, rx: &Option<RateLimiter>, tx: &Option<RateLimiter>) {
    for (field, limiter) in [("rx_rate_limiter", rx), ("tx_rate_limiter", tx)] {
        if let Some(limiter) = limiter {
            check.within(field, |check| limiter.check(check));
        }
    }
}
