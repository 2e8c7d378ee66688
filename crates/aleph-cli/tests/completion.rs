//! Words are completed by a real shell.

mod support;

use aleph_testkit::wait_until;
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use support::{Daemon, LIMIT};

/// What bash offers for a line that is being typed, of which there is something. Completion waits
/// for no node that is slow, so it is tried again.
fn offered(daemon: &Daemon, line: &str) -> Result<Vec<String>> {
    wait_until(line, LIMIT, || match offered_now(daemon, line) {
        Ok(words) if words.is_empty() => None,
        offered => Some(offered),
    })
}

/// What it offers at the first attempt.
fn offered_now(daemon: &Daemon, line: &str) -> Result<Vec<String>> {
    let script = r#"
        source <(aleph completion bash)
        COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
        read -ra COMP_WORDS <<< "$COMP_LINE"
        [[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        _clap_complete_aleph aleph "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let programs = Path::new(env!("CARGO_BIN_EXE_aleph")).parent();
    let programs = programs.unwrap_or(Path::new("")).display();
    let done = Command::new("bash")
        .args(["--norc", "-c", script, "bash", line])
        .env("PATH", format!("{programs}:/usr/bin:/bin"))
        .env("ALEPH_ROOT", daemon.node.root.path())
        .env_remove("ALEPH_HOST")
        .output()?;
    let text = String::from_utf8(done.stdout)?;
    assert!(
        done.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let words = text.lines().map(|word| word.trim().to_owned());
    Ok(words.filter(|word| !word.is_empty()).collect())
}

#[test]
fn names_of_jobs_and_images_are_completed() -> Result<()> {
    let daemon = Daemon::up()?;
    daemon.start("web-front", "sleep 1000")?;
    daemon.ok(&["run", "-d", "--name", "web-done", "busybox", "true"])?;
    daemon.ok(&["wait", "web-done"])?;
    assert_eq!(offered(&daemon, "aleph stop w")?, ["web-front"]);
    let mut all = offered(&daemon, "aleph logs web")?;
    all.sort();
    assert_eq!(all, ["web-done", "web-front"]);
    assert_eq!(offered(&daemon, "aleph start web")?, ["web-done"]);
    assert_eq!(offered(&daemon, "aleph cp web-f")?, ["web-front:"]);
    assert_eq!(offered(&daemon, "aleph run busy")?, ["busybox"]);
    assert!(offered(&daemon, "aleph un")?.contains(&"unpause".to_owned()));
    assert!(offered(&daemon, "aleph run --health-i")?.contains(&"--health-interval".to_owned()));
    daemon.end()
}
