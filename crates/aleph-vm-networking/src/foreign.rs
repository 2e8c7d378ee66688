//! Rules of others that drop what ours let pass.
//!
//! A packet passes when every table lets it. Docker's and firewalld's drop what is forwarded and
//! not known to them, so a node whose own rules are right has VMs without a network. Such chains
//! are found and named, with what lets VMs pass; nothing of others is changed.

use serde_json::Value;
use std::fmt;
use std::io;
use std::process::{Command, Stdio};

/// A chain of another table that drops forwarded packets unless a rule of its own accepts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    family: String,
    table: String,
    chain: String,
}

impl Obstacle {
    /// The commands that let VMs pass.
    #[must_use]
    pub fn mend(&self) -> String {
        let Self {
            family,
            table,
            chain,
        } = self;
        // Only the way out: to what is behind other links of the host, such as Docker's, no guest
        // is to come. Docker rewrites its own chains, and leaves DOCKER-USER to others.
        match (table.as_str(), chain.as_str()) {
            ("filter", "FORWARD") => "iptables -I DOCKER-USER -i tap-+ -o UPLINK -j ACCEPT; \
                                      iptables -I DOCKER-USER -o tap-+ -j ACCEPT"
                .into(),
            _ => format!(
                "nft insert rule {family} {table} {chain} iifname 'tap-*' oifname UPLINK accept; \
                 nft insert rule {family} {table} {chain} oifname 'tap-*' accept"
            ),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            chain,
        } = self;
        write!(
            f,
            "chain {chain} of the table {family} {table} drops forwarded packets"
        )
    }
}

/// The chains that are in the way of VMs, in this thread's network namespace.
///
/// # Errors
/// Where `nft` is missing or fails.
pub fn obstacles() -> io::Result<Vec<Obstacle>> {
    let output = Command::new("nft")
        .args(["-j", "list", "chains"])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("nft: {said}")));
    }
    Ok(in_the_way(&serde_json::from_slice(&output.stdout)?))
}

fn in_the_way(listing: &Value) -> Vec<Obstacle> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let chains = objects.map(|object| &object["chain"]);
    let drops = chains.filter(|chain| {
        let families = ["ip", "inet"];
        chain["hook"] == "forward"
            && chain["policy"] == "drop"
            && chain["family"]
                .as_str()
                .is_some_and(|f| families.contains(&f))
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    drops
        .map(|chain| Obstacle {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            chain: text(&chain["name"]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_are_named_with_what_helps() {
        let listing = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "mine", "name": "f", "hook": "forward",
                       "policy": "drop"}},
            {"chain": {"family": "inet", "table": "mine", "name": "i", "hook": "input",
                       "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "mine", "name": "f", "hook": "forward",
                       "policy": "drop"}},
            {"chain": {"family": "inet", "table": "aleph", "name": "forward", "hook": "forward",
                       "policy": "accept"}},
            {"chain": {"family": "inet", "table": "mine", "name": "plain"}},
        ]});
        let found: Vec<String> = in_the_way(&listing)
            .iter()
            .map(|obstacle| format!("{obstacle}: {}", obstacle.mend()))
            .collect();
        assert_eq!(
            found,
            [
                "chain FORWARD of the table ip filter drops forwarded packets: \
                 iptables -I DOCKER-USER -i tap-+ -o UPLINK -j ACCEPT; \
                 iptables -I DOCKER-USER -o tap-+ -j ACCEPT",
                "chain f of the table inet mine drops forwarded packets: \
                 nft insert rule inet mine f iifname 'tap-*' oifname UPLINK accept; \
                 nft insert rule inet mine f oifname 'tap-*' accept",
            ]
        );
    }
}
