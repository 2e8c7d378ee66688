//! Jobs with networks: a real daemon in a network namespace of the test's own, real guests.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use support::namespace::{NODE, OUTSIDE, World};
use support::{Daemon, LIMIT};

/// A web server whose page is the job's name.
fn serve(daemon: &Daemon, name: &str, words: &[&str]) -> Result<()> {
    let script =
        format!("mkdir /www; echo page of {name} > /www/index.html; exec httpd -f -p 80 -h /www");
    let run = [&["run", "-d", "--name", name][..], words].concat();
    daemon.ok(&[&run[..], &["busybox", "sh", "-c", &script]].concat())?;
    Ok(())
}

fn get(world: &World, netns: &str, address: &str) -> String {
    wait_until(address, LIMIT, || world.get(netns, address))
}

#[test]
fn jobs_are_connected_and_kept_apart() -> Result<()> {
    let world = World::new()?;
    let config = "[network]\nmax_bandwidth_per_vm = \"sent=500M\"\n";
    let mut daemon = Daemon::configured(config, &["--netns", &world.node])?;
    let published = ["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "80"];
    serve(
        &daemon,
        "web",
        &[
            &published[..],
            &["--bandwidth", "1G", "--packet-rate", "sent=1M"],
        ]
        .concat(),
    )?;
    serve(&daemon, "other", &["--network", "private:x"])?;
    serve(
        &daemon,
        "third",
        &["--network", "private:x", "--egress", "none"],
    )?;

    // From the world, from the host, and by the port that the node picked.
    let page = "page of web";
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);
    for address in ["127.0.0.1:8080", "127.0.0.1:8081", "192.0.2.1:8080"] {
        assert_eq!(get(&world, &world.node, address), page, "{address}");
    }
    let ports = daemon.ok(&["port", "web"])?;
    let ports: Vec<&str> = ports.lines().collect();
    assert_eq!(
        ports[..2],
        ["80/tcp -> 0.0.0.0:8080", "80/tcp -> 127.0.0.1:8081"]
    );
    let picked = ports[2].rsplit_once(':').context("no port")?.1;
    assert_eq!(
        get(&world, &world.outside, &format!("{NODE}:{picked}")),
        page
    );
    assert_eq!(world.get(&world.outside, &format!("{NODE}:8081")), None);

    // What the user sees of it.
    let job = daemon.json(&["inspect", "web"])?[0].clone();
    let network = &job["network"];
    let vm = job["vm"].as_str().context("no VM")?;
    assert_eq!(network["tap_name"], format!("tap-{vm}"));
    let address = network["vm_ip"].as_str().context("no address")?.to_owned();
    assert!(address.starts_with("10.0."), "{network}");
    let ps = daemon.ok(&["ps", "--json"])?;
    assert!(ps.contains(&address), "{ps}");
    // The lower of what it asks for and of what the node allows.
    let limits = serde_json::json!({
        "sent": {"bits_per_second": 500_000_000, "packets_per_second": 1_000_000},
        "received": {"bits_per_second": 1_000_000_000},
    });
    assert_eq!(network["limits"], limits);
    let objects = world.text(&world.node, "nft list limits")?;
    assert!(
        objects.contains(&format!("limit sent-bytes-tap-{vm} ")),
        "{objects}"
    );

    // In the guest.
    let shell = |job: &str, line: &str| daemon.aleph(&["exec", job, "sh", "-c", line]);
    let works = |job: &str, line: &str| -> Result<bool> { Ok(shell(job, line)?.code == 0) };
    assert!(works(
        "web",
        &format!("ip -o address | grep -q {address}/30")
    )?);
    wait_until("a ping of the world", LIMIT, || {
        let reached = works("web", &format!("ping -c 1 -W 5 {OUTSIDE}")).ok()?;
        reached.then_some(())
    });
    assert!(!works("web", &format!("ping -c 1 -W 1 {NODE}"))?);
    let wget = |from: &str, to: &str| works(from, &format!("timeout 3 wget -qO- http://{to}/"));
    let of = |name: &str| -> Result<String> {
        let job = daemon.json(&["inspect", name])?;
        let ip = job[0]["network"]["vm_ip"].as_str().context("no address")?;
        Ok(ip.to_owned())
    };
    let (other, third) = (of("other")?, of("third")?);
    // What must be reached is given the time that it takes; what must not be has its three seconds.
    let reaches = |from: &str, to: &str, what: &str| {
        wait_until(&format!("{what}: {from} to {to}"), LIMIT, || {
            let line = format!("timeout 30 wget -qO- http://{to}/");
            works(from, &line).ok()?.then_some(())
        });
    };
    reaches("other", &third, "one private network");
    reaches("third", &other, "one private network");
    reaches("other", "third", "by its name");
    reaches("other", "third.internal", "by its name");
    assert!(!wget("web", "third")?, "a name of others");
    assert!(
        !wget("web", &other)? && !wget("other", &address)?,
        "strangers"
    );
    reaches("other", &format!("{NODE}:8080"), "a published port");
    assert!(
        !works("third", &format!("ping -c 1 -W 1 {OUTSIDE}"))?,
        "no egress"
    );

    // What went through, and what did not, is counted.
    let stats = daemon.json(&["stats", "--no-stream", "--json", "web"])?;
    let usage = &stats[0]["network"];
    let count = |key: &str| usage[key].as_u64().unwrap_or(0);
    assert!(
        count("sent_bytes") > 500 && count("received_packets") > 5,
        "{stats}"
    );
    let dropped = &usage["dropped"];
    assert!(dropped["host"].as_u64() >= Some(1), "{stats}");
    assert!(dropped["neighbour"].as_u64() >= Some(1), "{stats}");

    // A port has one owner, who is named to whoever asks next.
    let taken = daemon.aleph(&["run", "-d", "-p", "8080:81", "busybox", "true"])?;
    assert_eq!(taken.code, 125, "{taken:?}");
    assert!(
        taken
            .stderr
            .contains("0.0.0.0:8080/tcp is forwarded to the job web"),
        "{taken:?}"
    );

    // A daemon that is killed takes nothing down, and the next has it all.
    daemon.kill_and_restart()?;
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);
    let taken = daemon.aleph(&["run", "-d", "-p", "8080:81", "busybox", "true"])?;
    assert_eq!(taken.code, 125, "{taken:?}");
    world.text(&world.node, "nft flush ruleset")?;
    daemon.kill_and_restart()?;
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);

    // With a job goes its port, and comes back with it.
    daemon.ok(&["stop", "-t", "0", "web"])?;
    assert_eq!(world.get(&world.outside, &format!("{NODE}:8080")), None);
    assert_eq!(daemon.ok(&["port", "web"])?, "");
    daemon.ok(&["start", "web"])?;
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);

    daemon.ok(&["rm", "-f", "web", "other", "third"])?;
    wait_until("a network without residue", LIMIT, || {
        let links = world.text(&world.node, "ip -br link").ok()?;
        let rules = world.text(&world.node, "nft list ruleset").ok()?;
        let forwards = world
            .text(&world.node, "cat /proc/sys/net/ipv4/conf/up0/forwarding")
            .ok()?;
        let clean = !links.contains("tap-") && !rules.contains("tap-") && !rules.contains(": 10.");
        (clean && forwards.trim() == "0").then_some(())
    });
    daemon.end()?;
    assert_eq!(world.text(&world.node, "nft list ruleset")?, "");
    Ok(())
}

#[test]
fn rules_that_somebody_flushes_are_back_before_any_sweep() -> Result<()> {
    let world = World::new()?;
    let daemon = Daemon::configured("", &["--netns", &world.node])?;
    serve(&daemon, "web", &["-p", "8080:80"])?;
    let address = format!("{NODE}:8080");
    assert_eq!(get(&world, &world.outside, &address), "page of web");
    for harm in [
        "flush ruleset",
        "delete table arp TABLE",
        "flush chain inet TABLE forward",
    ] {
        let tables = world.text(&world.node, "nft list tables inet")?;
        let table = tables.split_whitespace().last().context("no table")?;
        let before = world.text(&world.node, "nft -t list ruleset")?;
        world.text(
            &world.node,
            &format!("nft {}", harm.replace("TABLE", table)),
        )?;
        // A sweep comes once a minute, and for one of them at most.
        wait_until(harm, LIMIT / 6, || {
            let now = world.text(&world.node, "nft -t list ruleset");
            (now.ok()? == before).then_some(())
        });
        assert_eq!(get(&world, &world.outside, &address), "page of web");
    }
    daemon.end()
}

#[test]
fn what_guests_use_is_not_changed_under_them() -> Result<()> {
    let world = World::new()?;
    let netns = ["--netns", &world.node];
    let mut daemon = Daemon::configured("", &netns)?;
    serve(&daemon, "web", &["-p", "8080:80"])?;
    let address = format!("{NODE}:8080");
    assert_eq!(get(&world, &world.outside, &address), "page of web");
    let inspect = |daemon: &Daemon| -> Result<_> {
        let job = daemon.json(&["inspect", "web"])?[0].clone();
        Ok([job["network"].clone(), job["guest_boot_id"].clone()])
    };
    // What is written of the host's: not what was counted, nor which port the forwarder has.
    let host = || {
        let list = "nft list set inet $(nft list tables inet | cut -d' ' -f3)";
        let sets = ["guests", "gateways"].map(|set| format!("{list} {set}"));
        let rest =
            "nft -t list ruleset; ip -br address; cat /proc/sys/net/ipv4/conf/up0/forwarding";
        world.text(&world.node, &format!("{}; {rest}", sets.join("; ")))
    };
    let (job, before) = (inspect(&daemon)?, host()?);
    let told = job[0]["vm_ip"].as_str().context("no address")?.to_owned();

    let why = daemon.is_refused("[network]\npool = \"10.9.0.0/16\"\n", &netns)?;
    let words =
        format!("the pool cannot become 10.9.0.0/16 while the job web has the address {told}");
    assert!(why.contains(&words), "{why}");
    assert!(why.contains("Put network.pool back"), "{why}");
    assert_eq!(host()?, before);
    assert_eq!(get(&world, &world.outside, &address), "page of web");

    let why = daemon.is_refused("[network]\nenabled = false\n", &netns)?;
    assert!(why.contains("connect"), "{why}");
    assert_eq!(host()?, before);
    assert_eq!(get(&world, &world.outside, &address), "page of web");

    daemon.kill_and_restart()?;
    assert_eq!(
        inspect(&daemon)?,
        job,
        "the same guest, at the same address"
    );
    assert_eq!(get(&world, &world.outside, &address), "page of web");
    daemon.ok(&["rm", "-f", "web"])?;
    daemon.end()?;
    assert_eq!(world.text(&world.node, "nft list ruleset")?, "");
    Ok(())
}

#[test]
fn a_node_without_networks_says_so() -> Result<()> {
    let daemon = Daemon::up()?;
    let refused = daemon.aleph(&["run", "-d", "-p", "80", "busybox", "true"])?;
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("connects no VMs"), "{refused:?}");
    let id = daemon.ok(&["run", "-d", "--network", "none", "busybox", "true"])?;
    assert_eq!(daemon.ok(&["wait", &id])?, "0");
    daemon.end()
}

/// A server that is written down goes on in copies that have networks of their own.
#[test]
fn copies_of_a_job_are_connected_on_their_own() -> Result<()> {
    let world = World::new()?;
    let daemon = Daemon::configured("", &["--netns", &world.node])?;
    serve(&daemon, "web", &["-p", "8080:80"])?;
    let page = "page of web";
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);
    let words = [
        "fork", "web", "-n", "2", "--name", "copy", "--keep", "--json",
    ];
    let forked = daemon.json(&words)?;
    let snapshot = forked["snapshot"].as_str().context("it stays")?;
    daemon.ok(&["restore", "--name", "again", "-p", "8090:80", snapshot])?;
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8080")), page);
    assert_eq!(get(&world, &world.outside, &format!("{NODE}:8090")), page);
    let mut seen = std::collections::BTreeSet::new();
    for name in ["web", "copy-1", "copy-2", "again"] {
        daemon.ok(&["wait", "--state", "running", name])?;
        let job = daemon.json(&["inspect", name])?;
        let address = job[0]["network"]["vm_ip"].as_str().context("no address")?;
        assert_eq!(
            get(&world, &world.node, &format!("{address}:80")),
            page,
            "{name}"
        );
        let line = "ip -4 -o address show scope global";
        let inside = daemon.ok(&["exec", name, "sh", "-c", line])?;
        assert_eq!(inside.lines().count(), 1, "{name}: {inside}");
        assert!(
            inside.contains(&format!("{address}/30")),
            "{name}: {inside}"
        );
        let mac = daemon.ok(&["exec", name, "sh", "-c", "cat /sys/class/net/e*/address"])?;
        assert!(
            seen.insert(address.to_owned()) && seen.insert(mac),
            "{name}: {seen:?}"
        );
        let out = format!("ping -c 1 -W 5 {OUTSIDE}");
        wait_until(&format!("{name} to reach the world"), LIMIT, || {
            let ended = daemon.aleph(&["exec", name, "sh", "-c", &out]).ok()?;
            (ended.code == 0).then_some(())
        });
    }
    assert_eq!(daemon.ok(&["port", "copy-1"])?, "");
    daemon.ok(&["snapshot", "rm", snapshot])?;
    daemon.end()
}
