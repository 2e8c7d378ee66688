//! Functions of a node that connects its guests: each clone has an address of its own, reaches the
//! world, and neither the host nor other clones; and what a template had of the network is not what
//! its clones have.

mod support;

use aleph_testkit::{functions::zip, recipe_image, wait_until};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use support::namespace::{NODE, OUTSIDE, World};
use support::{Daemon, LIMIT};

/// A runtime in shell. An event is an address to get a page from; the answer is who the clone is
/// and what it got. The world outside has time to answer; the host, which must not, has little.
const BOOTSTRAP: &str = r#"#!/bin/bash
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
before=$(hostname -I 2>/dev/null || busybox ip -4 address show dev eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')
while :; do
  event=$(curl -s -D /tmp/headers $api/next | tr -d '"')
  id=$(sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  address=$(busybox ip -4 address show dev eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')
  mac=$(cat /sys/class/net/eth0/address)
  case $event in 192.0.2.2:*) most=30 ;; *) most=3 ;; esac
  page=$(curl -s -m $most http://$event/ || echo nothing)
  known=$(sed -n "s/^$address[[:space:]]*//p" /etc/hosts)
  curl -s -d "\"$address $mac $before $known $page\"" $api/$id/response >/dev/null
done
"#;

/// Serves the same page to whoever comes, on a port of its own.
fn serve(world: &World, netns: &str, address: &str, page: &'static str) -> Result<u16> {
    let address: Ipv4Addr = address.parse()?;
    let listener = world.within(netns, || Ok(TcpListener::bind((address, 0))?))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{page}",
                page.len()
            );
        }
    });
    Ok(port)
}

#[test]
fn clones_have_addresses_of_their_own_and_reach_the_world_alone() -> Result<()> {
    let world = World::new()?;
    recipe_image(aleph_image::Recipe::ProvidedAl2023)?;
    let outside = serve(&world, &world.outside, OUTSIDE, "outside")?;
    let host = serve(&world, &world.node, NODE, "host")?;
    let daemon = Daemon::configured("", &["--netns", &world.node])?;
    let archive = tempfile::NamedTempFile::new()?;
    std::fs::write(
        archive.path(),
        zip(&[("bootstrap", 0o755, BOOTSTRAP.as_bytes())])?,
    )?;
    let file = archive.path().to_str().context("a path")?;
    daemon.ok(&[
        "fn",
        "create",
        "net",
        "--runtime",
        "provided.al2023",
        "--handler",
        "none",
        "--zip",
        file,
        "--isolation",
        "invocation",
        "--timeout",
        "60s",
        "--wait",
    ])?;
    let invoke = |event: &str| {
        let event = format!("\"{event}\"");
        let answer = daemon.ok(&["fn", "invoke", "net", "--payload", &event])?;
        let answer: String = serde_json::from_str(answer.trim())?;
        let words: Vec<String> = answer.split(' ').map(str::to_owned).collect();
        ensure!(words.len() == 5, "{answer}");
        Ok(words)
    };
    let (mut addresses, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..3 {
        let [address, mac, before, known, page] = &invoke(&format!("{OUTSIDE}:{outside}"))?[..]
        else {
            anyhow::bail!("another answer");
        };
        assert_eq!(page, "outside");
        assert!(address.starts_with("10."), "{address}");
        assert!(addresses.insert(address.clone()), "{address} comes twice");
        assert!(macs.insert(mac.clone()), "{mac} comes twice");
        assert_ne!(address, before, "that of the template");
        assert!(known.starts_with("fn-"), "/etc/hosts knows {known:?}");
    }
    assert_eq!(invoke(&format!("{NODE}:{host}"))?[4], "nothing");
    daemon.ok(&["fn", "rm", "net"])?;
    let taps = |present: bool| {
        wait_until("TAPs are there, or none", LIMIT, || {
            let links = world.text(&world.node, "ip -o link").ok()?;
            (links.contains("tap-") == present).then_some(())
        });
    };
    taps(false);
    // One that is deleted while its template is made leaves nothing either.
    std::fs::write(
        archive.path(),
        zip(&[("bootstrap", 0o755, b"#!/bin/bash\nsleep 1000\n")])?,
    )?;
    daemon.ok(&[
        "fn",
        "create",
        "hangs",
        "--runtime",
        "provided.al2023",
        "--handler",
        "none",
        "--zip",
        file,
    ])?;
    taps(true);
    daemon.ok(&["fn", "rm", "hangs"])?;
    taps(false);
    daemon.end()
}
