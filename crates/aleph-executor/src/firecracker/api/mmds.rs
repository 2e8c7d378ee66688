//! The metadata service that guests reach at a link-local address: `/mmds/config` and `/mmds`.

use super::wire::is_false;
use super::{Body, Check};
use crate::firecracker::Feature;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::Ipv4Addr;

/// Who reaches the service, and where. Its data is not in a snapshot; this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Whether a guest needs a token. Firecracker takes the first version, which it has deprecated,
    /// where nothing is said; here it is always said.
    #[serde(default = "MmdsVersion::unsaid")]
    pub version: MmdsVersion,
    /// The ids of the network interfaces that reach it. They have to be there before.
    pub network_interfaces: Vec<String>,
    /// Its address; 169.254.169.254 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether it answers in plain text whatever is asked for, as EC2's does. From 1.13 on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub imds_compat: bool,
}

/// A version of the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// Requests without a token.
    V1,
    /// Requests with a token that the guest has asked for: programs that can be made to send plain
    /// requests cannot be made to read it.
    #[default]
    V2,
}

impl MmdsVersion {
    const fn unsaid() -> Self {
        Self::V1
    }
}

impl MmdsConfig {
    /// The second version, for those interfaces, at the usual address.
    #[must_use]
    pub fn new(network_interfaces: Vec<String>) -> Self {
        Self {
            version: MmdsVersion::V2,
            network_interfaces,
            ipv4_address: None,
            imds_compat: false,
        }
    }
}

impl Body for MmdsConfig {
    fn check(&self, check: &mut Check) {
        check.refuse_if(
            "network_interfaces",
            self.network_interfaces.is_empty(),
            "has to name one at least",
        );
        for (i, id) in self.network_interfaces.iter().enumerate() {
            check.id(&format!("network_interfaces[{i}]"), id);
        }
        if let Some([a, b, c, _]) = self.ipv4_address.map(|address| address.octets()) {
            check.refuse_if(
                "ipv4_address",
                (a, b) != (169, 254) || c == 0 || c == 255,
                "has to be within 169.254.1.0 to 169.254.254.255",
            );
        }
        if self.imds_compat {
            check.uses("imds_compat", Feature::ImdsCompat);
        }
    }
}

/// The service's data: what stands where, as objects within objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MmdsData(pub Value);

impl Body for MmdsData {
    fn check(&self, check: &mut Check) {
        check.refuse_if("", !self.0.is_object(), "has to be an object");
    }
}
