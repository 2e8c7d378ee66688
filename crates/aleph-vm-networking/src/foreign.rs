//! Rules of others that drop what ours let pass.
//!
//! A packet passes when every table lets it. Docker's and firewalld's drop what is forwarded and
//! not known to them, so a node whose own rules are right has VMs without a network. Docker's does
//! so by its policy, and firewalld's by a last rule that rejects all that came so far. Such chains
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
    /// Whether packets of IPv4 do not meet it.
    #[must_use]
    pub fn is_of_ipv6(&self) -> bool {
        self.family == "ip6"
    }

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
            ("filter", "FORWARD") => {
                let program = match self.is_of_ipv6() {
                    true => "ip6tables",
                    false => "iptables",
                };
                format!(
                    "{program} -I DOCKER-USER -i tap-+ -o UPLINK -j ACCEPT; \
                     {program} -I DOCKER-USER -o tap-+ -j ACCEPT"
                )
            }
            // It would forget rules that are not its own with its next reload (firewalld.zone(5),
            // firewalld.policies(5)). Published ports it lets in.
            ("firewalld", _) => "firewall-cmd --permanent --new-zone=aleph; \
                                 firewall-cmd --permanent --zone=aleph --add-interface=tap-+; \
                                 firewall-cmd --permanent --zone=aleph --add-forward; \
                                 firewall-cmd --permanent --new-policy=aleph-out; \
                                 firewall-cmd --permanent --policy=aleph-out --add-ingress-zone=aleph; \
                                 firewall-cmd --permanent --policy=aleph-out --add-egress-zone=ZONE-OF-UPLINK; \
                                 firewall-cmd --permanent --policy=aleph-out --set-target=ACCEPT; \
                                 firewall-cmd --reload"
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
    let mut found = Vec::new();
    for (chain, drops) in forward_chains(&list(&["chains"])?) {
        // It may be gone by now.
        let Obstacle {
            family,
            table,
            chain: name,
        } = &chain;
        let rules = || list(&["chain", family, table, name]);
        if drops || rules().is_ok_and(|listing| ends_all(&listing)) {
            found.push(chain);
        }
    }
    Ok(found)
}

fn list(what: &[&str]) -> io::Result<Value> {
    let output = Command::new("nft")
        .args(["-j", "-t", "list"])
        .args(what)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("nft: {said}")));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The chains that all forwarded packets come through, and whether their policy drops them.
fn forward_chains(listing: &Value) -> Vec<(Obstacle, bool)> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let chains = objects.map(|object| &object["chain"]);
    let forwards = chains.filter(|chain| {
        let families = ["ip", "ip6", "inet"];
        let family = chain["family"].as_str();
        chain["hook"] == "forward" && family.is_some_and(|family| families.contains(&family))
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let chain = |chain: &Value| {
        let obstacle = Obstacle {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            chain: text(&chain["name"]),
        };
        (obstacle, chain["policy"] == "drop")
    };
    forwards.map(chain).collect()
}

/// Whether a rule of a chain drops or rejects all that came so far.
fn ends_all(listing: &Value) -> bool {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let mut rules = objects.filter_map(|object| object["rule"]["expr"].as_array());
    rules.any(|statements| {
        let is = |statement: &Value, names: &[&str]| {
            names.iter().any(|name| statement.get(name).is_some())
        };
        statements.split_last().is_some_and(|(last, before)| {
            is(last, &["drop", "reject"]) && before.iter().all(|s| is(s, &["counter", "log"]))
        })
    })
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
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward",
                       "policy": "drop"}},
            {"chain": {"family": "bridge", "table": "mine", "name": "f", "hook": "forward",
                       "policy": "drop"}},
            {"chain": {"family": "inet", "table": "aleph", "name": "forward", "hook": "forward",
                       "policy": "accept"}},
            {"chain": {"family": "inet", "table": "mine", "name": "plain"}},
        ]});
        let found: Vec<String> = forward_chains(&listing)
            .iter()
            .filter(|(_, drops)| *drops)
            .map(|(obstacle, _)| format!("{obstacle}: {}", obstacle.mend()))
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
                "chain FORWARD of the table ip6 filter drops forwarded packets: \
                 ip6tables -I DOCKER-USER -i tap-+ -o UPLINK -j ACCEPT; \
                 ip6tables -I DOCKER-USER -o tap-+ -j ACCEPT",
            ]
        );
    }
}
