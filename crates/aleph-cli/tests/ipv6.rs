//! Jobs with IPv6: a real daemon in a network namespace of the test's own, real guests.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use support::namespace::{NODE, NODE6, OUTSIDE6, World};
use support::{Daemon, LIMIT};

#[test]
fn guests_have_ipv6_where_the_host_has() -> Result<()> {
    let world = World::new()?.with_ipv6()?;
    let mut daemon = Daemon::configured("", &["--netns", &world.node])?;
    let script = "mkdir /www; echo a page > /www/index.html; exec httpd -f -p 80 -h /www";
    let on_v6 = format!("[{NODE6}]:8081:80");
    let web = ["-p", "8080:80", "-p", &on_v6, "--network", "private:x"];
    for (name, words) in [("web", &web[..]), ("other", &web[4..]), ("stranger", &[])] {
        let run = [&["run", "-d", "--name", name][..], words].concat();
        daemon.ok(&[&run[..], &["busybox", "sh", "-c", script]].concat())?;
    }
    let get = |netns: &str, address: &str| wait_until(address, LIMIT, || world.get(netns, address));
    let published = [
        format!("{NODE}:8080"),
        format!("[{NODE6}]:8080"),
        format!("[{NODE6}]:8081"),
    ];
    for address in &published {
        for netns in [&world.node, &world.outside] {
            assert_eq!(get(netns, address), "a page", "{address}");
        }
    }
    assert_eq!(world.get(&world.outside, &format!("{NODE}:8081")), None);
    let ports = daemon.ok(&["port", "web"])?;
    let ports: Vec<&str> = ports.lines().collect();
    let expected = format!("80/tcp -> [{NODE6}]:8081");
    assert_eq!(ports, ["80/tcp -> 0.0.0.0:8080", &expected]);

    let of = |name: &str| -> Result<String> {
        let job = daemon.json(&["inspect", name])?[0].clone();
        let ip = job["network"]["vm_ipv6"].as_str();
        Ok(ip.context("no IPv6 address")?.to_owned())
    };
    let (web, stranger) = (of("web")?, of("stranger")?);
    let works = |job: &str, line: &str| -> Result<bool> {
        Ok(daemon.aleph(&["exec", job, "sh", "-c", line])?.code == 0)
    };
    assert!(works(
        "web",
        &format!("ip -6 -o address | grep -q {web}/64")
    )?);
    let must = |what: &str, job: &str, line: &str| {
        wait_until(what, LIMIT, || works(job, line).ok()?.then_some(()));
    };
    must(
        "a ping of the world",
        "web",
        &format!("ping -6 -c 1 -W 5 {OUTSIDE6}"),
    );
    assert!(!works("web", &format!("ping -6 -c 1 -W 1 {NODE6}"))?);
    let wget = |from: &str, to: &str| works(from, &format!("timeout 3 wget -qO- 'http://{to}/'"));
    // What must be reached is given the time that it takes; what must not be has its three seconds.
    let reaches = |what: &str, from: &str, to: &str| {
        must(what, from, &format!("timeout 30 wget -qO- 'http://{to}/'"));
    };
    reaches("one private network", "other", &format!("[{web}]"));
    assert!(!wget("stranger", &format!("[{web}]"))?, "a stranger");
    assert!(!wget("web", &format!("[{stranger}]"))?, "a stranger");
    reaches("a published port", "stranger", &published[1]);

    // Guests keep what they were told, whatever has become of the host's way out.
    world.text(&world.node, "ip -6 route del default")?;
    daemon.kill_and_restart()?;
    assert_eq!(get(&world.outside, &published[1]), "a page");

    daemon.ok(&["rm", "-f", "web", "other", "stranger"])?;
    wait_until("a network without residue", LIMIT, || {
        let links = world.text(&world.node, "ip -br link; ip -6 route").ok()?;
        let setting = "cat /proc/sys/net/ipv6/conf/{all,up0}/forwarding";
        let forwarding = world.text(&world.node, setting).ok()?;
        (!links.contains("tap-") && forwarding == "0\n0\n").then_some(())
    });
    daemon.end()?;
    assert_eq!(world.text(&world.node, "nft list ruleset")?, "");
    Ok(())
}
