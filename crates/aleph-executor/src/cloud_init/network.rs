//! `network-config`, version 2.

use super::config::yaml;
use super::spec::{Nic, at_most, is_domain, require};
use super::{CloudInitError, GuestSpec};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// How many cards, and addresses of one.
const MAX_NICS: usize = 32;

/// <https://docs.cloud-init.io/en/22.4/topics/network-config-format-v2.html>
#[derive(Serialize)]
struct Document {
    version: u8,
    ethernets: BTreeMap<String, Ethernet>,
}

#[derive(Serialize)]
struct Ethernet {
    #[serde(rename = "match")]
    matching: Match,
    #[serde(rename = "set-name")]
    set_name: String,
    dhcp4: bool,
    dhcp6: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway6: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<Nameservers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

#[derive(Serialize)]
struct Route {
    to: &'static str,
    via: String,
}

#[derive(Serialize)]
struct Nameservers {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
}

/// The document. A guest without a card is told of none, or it would wait for DHCP.
pub(super) fn network_config(spec: &GuestSpec) -> Result<String, CloudInitError> {
    at_most("networks", spec.networks.len(), MAX_NICS)?;
    let (mut macs, mut ethernets) = (BTreeSet::new(), BTreeMap::new());
    for (i, nic) in spec.networks.iter().enumerate() {
        let field = |name: &str| format!("networks[{i}].{name}");
        nic.check(&field)?;
        require(
            macs.insert(nic.mac.0),
            field("mac"),
            "is that of another card, too",
        )?;
        require(
            ethernets.insert(nic.name.clone(), ethernet(nic)).is_none(),
            field("name"),
            "is that of another card, too",
        )?;
    }
    yaml(&Document {
        version: 2,
        ethernets,
    })
}

fn ethernet(nic: &Nic) -> Ethernet {
    let named = !(nic.nameservers.is_empty() && nic.search.is_empty());
    Ethernet {
        matching: Match {
            macaddress: nic.mac.to_string(),
        },
        set_name: nic.name.clone(),
        dhcp4: false,
        dhcp6: false,
        addresses: nic
            .addresses
            .iter()
            .map(|(address, prefix)| format!("{address}/{prefix}"))
            .collect(),
        // A route to ::/0 becomes one to ::/64 in guests without netplan (22.4, `_normalize_net_keys`
        // of `network_state.py`). For IPv4 there is no such fault, and gateway4 is on its way out.
        gateway6: nic
            .gateways
            .iter()
            .find(|via| via.is_ipv6())
            .map(IpAddr::to_string),
        routes: nic
            .gateways
            .iter()
            .filter(|via| via.is_ipv4())
            .map(|via| Route {
                // "default" is not known to all of cloud-init's renderers.
                to: "0.0.0.0/0",
                via: via.to_string(),
            })
            .collect(),
        nameservers: named.then(|| Nameservers {
            search: nic.search.clone(),
            addresses: nic.nameservers.iter().map(IpAddr::to_string).collect(),
        }),
        mtu: nic.mtu,
    }
}

impl Nic {
    fn check(&self, field: &impl Fn(&str) -> String) -> Result<(), CloudInitError> {
        let [first, ..] = self.mac.0;
        require(
            first & 1 == 0 && self.mac.0 != [0; 6],
            field("mac"),
            "is no card's address",
        )?;
        let name = self.name.as_bytes();
        require(
            (1..=15).contains(&name.len())
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
                && name[0].is_ascii_alphabetic()
                && self.name != "lo",
            field("name"),
            "is not a letter and at most 14 letters, digits and _",
        )?;
        for (name, there) in [
            ("addresses", self.addresses.len()),
            ("nameservers", self.nameservers.len()),
            ("search", self.search.len()),
        ] {
            at_most(field(name), there, MAX_NICS)?;
        }
        for (address, prefix) in &self.addresses {
            let most = if address.is_ipv4() { 32 } else { 128 };
            require(
                (1..=most).contains(prefix),
                field("addresses"),
                "has a prefix that is too short or too long",
            )?;
            require(
                is_host(*address) && !address.is_loopback(),
                field("addresses"),
                "has one that no host can have",
            )?;
        }
        for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            let gateways = self.gateways.iter().filter(|ip| family(ip)).count();
            require(
                gateways <= 1,
                field("gateways"),
                "has several of one family",
            )?;
        }
        require(
            self.gateways.iter().all(|&via| self.reaches(via)),
            field("gateways"),
            "has one that is in no network of the card",
        )?;
        for address in self.gateways.iter().chain(&self.nameservers) {
            require(
                is_host(*address),
                field("gateways or nameservers"),
                "has one that no host can have",
            )?;
        }
        require(
            self.search.iter().all(|domain| is_domain(domain)),
            field("search"),
            "has one that is no domain",
        )?;
        let ipv6 = self.addresses.iter().any(|(ip, _)| ip.is_ipv6());
        require(
            self.mtu
                .is_none_or(|mtu| mtu >= if ipv6 { 1280 } else { 68 }),
            field("mtu"),
            "is less than the protocol takes",
        )
    }

    /// Whether an address of it is in the same network, so that no route to `via` is needed.
    fn reaches(&self, via: IpAddr) -> bool {
        // Every card with IPv6 is in the network of its cable.
        let cable = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
        self.addresses.iter().any(|&(ip, prefix)| match (ip, via) {
            (IpAddr::V6(_), IpAddr::V6(_)) if cable => true,
            (IpAddr::V4(ip), IpAddr::V4(via)) => {
                let host = 32_u32.saturating_sub(u32::from(prefix));
                shifted(u128::from(ip.to_bits()), host) == shifted(u128::from(via.to_bits()), host)
            }
            (IpAddr::V6(ip), IpAddr::V6(via)) => {
                let host = 128_u32.saturating_sub(u32::from(prefix));
                shifted(ip.to_bits(), host) == shifted(via.to_bits(), host)
            }
            _ => false,
        })
    }
}

fn shifted(bits: u128, by: u32) -> u128 {
    bits.checked_shr(by).unwrap_or(0)
}

fn is_host(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let mapped = matches!(address, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    !address.is_unspecified() && !address.is_multicast() && !broadcast && !mapped
}
