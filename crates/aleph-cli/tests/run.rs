//! Commands in real microVMs.

mod support;

use anyhow::Result;
use support::Node;

#[test]
fn a_command_runs_in_a_kernel_of_its_own() -> Result<()> {
    let node = Node::new()?;
    let line = "uname -a; echo hello from $(hostname)";
    let ran = node.aleph(&["run", "--rm", "busybox", "--", "sh", "-c", line])?;
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = ran.text();
    let (first, second) = text.trim().split_once('\n').unwrap();
    assert!(
        first.starts_with("Linux job-0x") && first.contains("cloud-amd64"),
        "{first}"
    );
    let name = second.strip_prefix("hello from job-0x").unwrap();
    assert!(
        name.len() == 8 && name.chars().all(|c| c.is_ascii_hexdigit()),
        "{name}"
    );
    let last = ran.stderr.lines().last().unwrap();
    assert!(
        last.starts_with("aleph: microVM on qemu/tcg · boot "),
        "{last}"
    );
    assert!(
        last.contains(" · run ") && last.ends_with(" · exit 0"),
        "{last}"
    );
    node.assert_clean()
}

#[test]
fn the_exit_code_is_the_commands_and_streams_stay_apart() -> Result<()> {
    let node = Node::new()?;
    let ran = node.sh("echo out; echo err >&2; exit 42")?;
    assert_eq!(
        (ran.code, ran.text().as_str(), ran.stderr.as_str()),
        (42, "out\n", "err\n")
    );
    let ran = node.sh("kill -9 $$")?;
    assert_eq!(ran.code, 137, "a signal counts from 128");
    node.assert_clean()
}

#[test]
fn ten_mebibytes_pass_through_unchanged() -> Result<()> {
    let node = Node::new()?;
    // Every byte value, in an order that shows a lost, doubled or moved chunk.
    let mut state = 1_u64;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(10 * 1024 * 1024)
    .collect();
    let ran = node.fed(&["run", "--rm", "-qi", "busybox", "cat"], &input)?;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.stdout.len(), input.len());
    assert!(ran.stdout == input, "the bytes differ");
    node.assert_clean()
}

#[test]
fn environment_folder_user_and_name_are_as_asked() -> Result<()> {
    let node = Node::new()?;
    let script = "echo $COLOUR; pwd; id -u; id -g; hostname";
    let ran = node.aleph(&[
        "run",
        "--rm",
        "-q",
        "-e",
        "COLOUR=a b=c",
        "-w",
        "/tmp/new",
        "-u",
        "1000:50",
        "--hostname",
        "box",
        "busybox",
        "--",
        "sh",
        "-c",
        script,
    ])?;
    assert_eq!(ran.text(), "a b=c\n/tmp/new\n1000\n50\nbox\n", "{ran:?}");
    let ran = node.aleph(&["run", "--rm", "-q", "-u", "ghost", "busybox", "true"])?;
    assert!(ran.code == 126 && ran.stderr.contains("ghost"), "{ran:?}");
    node.assert_clean()
}

#[test]
fn cpus_memory_and_disk_are_as_asked() -> Result<()> {
    let node = Node::new()?;
    let script = "nproc; grep MemTotal /proc/meminfo; df -m / | tail -1; \
                  dd if=/dev/zero of=/big bs=1M count=200 2>&1 | tail -1 >&2; ls -l /big";
    let ran = node.aleph(&[
        "run", "--rm", "-q", "--cpus", "2", "-m", "192m", "--disk", "512m", "busybox", "--", "sh",
        "-c", script,
    ])?;
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = ran.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "2");
    let kib: u64 = lines[1].split_whitespace().nth(1).unwrap().parse()?;
    assert!((120_000..196_608).contains(&kib), "{kib} KiB");
    assert!(
        lines[3].contains(" 209715200 "),
        "more than its memory fits on its disk: {text}"
    );
    node.assert_clean()
}

#[test]
fn what_is_written_is_gone_with_the_vm() -> Result<()> {
    let node = Node::new()?;
    assert_eq!(node.sh("echo x > /etc/mark; cat /etc/mark")?.text(), "x\n");
    assert_ne!(node.sh("cat /etc/mark")?.code, 0);
    node.assert_clean()
}

#[test]
fn a_reader_that_goes_away_ends_the_vm() -> Result<()> {
    let node = Node::new()?;
    let mut command = node.command(&["run", "--rm", "-q", "busybox", "yes"]);
    let mut child = command.spawn()?;
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first)?;
    assert_eq!(&first, b"y\n");
    drop(child.stdout.take());
    assert_eq!(support::finish(child)?.code, 141);
    node.assert_clean()
}

/// A pager that is not scrolled stops the guest, not aleph, and loses nothing.
#[test]
fn a_reader_that_takes_his_time_gets_all_of_it() -> Result<()> {
    let node = Node::new()?;
    let script = "seq 1 200000; echo done >&2";
    let mut child = node
        .command(&["run", "--rm", "-q", "busybox", "--", "sh", "-c", script])
        .spawn()?;
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first)?;
    // Longer than the guest once waited for its last frames to go out.
    std::thread::sleep(std::time::Duration::from_secs(7));
    let ran = support::finish(child)?;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "done\n"));
    let text = String::from_utf8_lossy(&first).into_owned() + &ran.text();
    assert!(
        text.lines()
            .map(str::to_owned)
            .eq((1..=200_000).map(|n| n.to_string()))
    );
    node.assert_clean()
}

#[test]
fn a_second_interrupt_is_heard_while_nobody_reads() -> Result<()> {
    let node = Node::new()?;
    let mut child = node
        .command(&["run", "--rm", "-q", "busybox", "yes"])
        .spawn()?;
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 2])?;
    let pipe = child.stdout.take();
    // Two at once may count as one signal, and nothing shows from outside that one was heard.
    let began = std::time::Instant::now();
    let status = loop {
        support::send(child.id(), rustix::process::Signal::INT)?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > support::LIMIT {
            child.kill()?;
            child.wait()?;
            panic!("it hears nothing");
        }
    };
    assert_eq!(status.code(), Some(130));
    drop(pipe);
    node.assert_clean()
}

#[test]
fn two_nodes_on_one_folder_do_not_disturb_each_other() -> Result<()> {
    let node = Node::new()?;
    let long = node.command(&["run", "--rm", "-qi", "busybox", "cat"]);
    let mut long = { long }.stdin(std::process::Stdio::piped()).spawn()?;
    node.qemu_pid()?;
    assert_eq!(node.sh("echo short")?.text(), "short\n");
    std::io::Write::write_all(long.stdin.as_mut().unwrap(), b"still here")?;
    drop(long.stdin.take());
    assert_eq!(support::finish(long)?.text(), "still here");
    node.assert_clean()
}

#[test]
fn alone_twenty_vms_at_once() -> Result<()> {
    let node = Node::new()?;
    let children: Vec<_> = (0..20)
        .map(|n| {
            let line = format!("echo {n}; sleep 1; exit {n}");
            // One of twenty may take long to boot.
            let run = ["run", "--rm", "-q", "--boot-timeout", "600"];
            node.command(&[&run[..], &["busybox", "--", "sh", "-c", &line]].concat())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    for (n, child) in children.into_iter().enumerate() {
        let ran = support::finish(child)?;
        assert_eq!(
            (ran.code, ran.text()),
            (i32::try_from(n)?, format!("{n}\n")),
            "{}",
            ran.stderr
        );
    }
    node.assert_clean()
}
