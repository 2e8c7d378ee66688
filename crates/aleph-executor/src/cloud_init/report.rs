//! How a guest without an agent tells what became of its cloud-init: a script in the guest, and what is
//! read of it.
//!
//! The script is a boot hook, so it runs at each boot, before any configuration is merged. It writes to
//! the virtio-serial port that an agent has in other guests, one line at a time:
//!
//! ```text
//! aleph-report 1 STATUS RESULT WARNINGS CHECKED
//! ```
//!
//! The first two are `status.json` and `result.json` of `/run/cloud-init`, then what its log warns of,
//! each in base64 and `-` where there is none; the last is `checked` where the node's check has found
//! all as it was described, else `unchecked`. Once cloud-init has ended it says so until the host
//! answers `seen`: what a host that is killed has read is said again to the next.

use super::status::{MAX_LOG, MAX_STATUS};
use super::{GuestStatus, StatusError, unit};
use aleph_guest_proto::PORT_NAME;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Bytes of a line that is read; the script writes no longer ones.
pub const MAX_REPORT: usize = 192 * 1024;
/// What the host answers to what it need not be told again.
pub const SEEN: &[u8] = b"seen\n";

/// The script. Bytes of each document are bounded, so that a line is.
pub(super) fn script() -> String {
    SCRIPT
        .replace("@PORT@", PORT_NAME)
        .replace("@CHECKED@", unit::CHECKED)
}

/// Opening the port fails while another process has it, and a write waits for a host that listens.
const SCRIPT: &str = r#"#!/bin/sh
# Tells the host of this VM what became of cloud-init.
port=/dev/virtio-ports/@PORT@
say() {
    base64 2>/dev/null | tr -d '\n' | grep . || printf -- '-'
}
report() {
    last=
    while :; do
        end=
        [ -s /run/cloud-init/result.json ] && end=1
        checked=unchecked
        [ -e @CHECKED@ ] && checked=checked
        status=$(head -c 40000 /run/cloud-init/status.json 2>/dev/null | say)
        result=$(head -c 40000 /run/cloud-init/result.json 2>/dev/null | say)
        warned=$(grep -E '\[(WARNING|ERROR|CRITICAL)\]: ' /var/log/cloud-init.log 2>/dev/null |
            tail -n 8 | head -c 8000 | say)
        line="aleph-report 1 $status $result $warned $checked"
        if [ -n "$end" ] || [ "$line" != "$last" ]; then
            answer=
            if [ -c "$port" ]; then
                {
                    printf '%s\n' "$line" >&3
                    [ -z "$end" ] || answer=$(timeout 5 head -n 1 <&3)
                } 3<>"$port" && last=$line
            fi
            [ "$answer" = seen ] && return
        fi
        sleep 2
    done
}
# Cloud-init waits for the end of what it hears, and a shell would keep that open for a function.
(
    exec </dev/null >/dev/null 2>&1
    report
) &
"#;

impl GuestStatus {
    /// From a line of the script, without its end.
    ///
    /// # Errors
    /// [`StatusError`] for any other line.
    pub fn from_report(line: &[u8]) -> Result<Self, StatusError> {
        if line.len() > MAX_REPORT {
            return Err(StatusError::TooLong(line.len()));
        }
        let text = std::str::from_utf8(line).map_err(|_| StatusError::NoReport)?;
        let words: Vec<&str> = text.split(' ').collect();
        let ["aleph-report", "1", status, result, warned, checked] = words[..] else {
            return Err(StatusError::NoReport);
        };
        let is_checked = match checked {
            "checked" => true,
            "unchecked" => false,
            _ => return Err(StatusError::NoReport),
        };
        let Some(status) = document(status, MAX_STATUS)? else {
            return Ok(Self::Pending);
        };
        let found = Self::from_files(&status, document(result, MAX_STATUS)?.as_deref())?;
        let found = match document(warned, MAX_LOG)? {
            Some(log) => found.with_log(&log),
            None => found,
        };
        Ok(match found {
            Self::Done | Self::Degraded { .. } if !is_checked => Self::Error {
                reason: UNCHECKED.into(),
            },
            found => found,
        })
    }
}

/// What is wrong where cloud-init is content and the node's check left nothing: its modules were switched
/// off, or the guest is another one since.
const UNCHECKED: &str = "the node's check did not run: something took the node's part away";

fn document(word: &str, most: usize) -> Result<Option<Vec<u8>>, StatusError> {
    if word == "-" {
        return Ok(None);
    }
    let bytes = BASE64.decode(word).map_err(|_| StatusError::NoReport)?;
    if bytes.len() > most {
        return Err(StatusError::TooLong(bytes.len()));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: &str =
        r#"{"v1":{"datasource":"x","stage":null,"init":{"start":1.0,"finished":2.0,"errors":[]}}}"#;
    const RESULT: &str = r#"{"v1":{"datasource":"x","errors":[]}}"#;

    fn line(status: &str, result: &str, warned: &str, rest: &str) -> Vec<u8> {
        let word = |text: &str| match text {
            "" => "-".into(),
            text => BASE64.encode(text),
        };
        format!(
            "aleph-report 1 {} {} {} {rest}",
            word(status),
            word(result),
            word(warned)
        )
        .into_bytes()
    }

    #[test]
    fn nothing_is_done_that_was_not_checked() {
        let of = |line: Vec<u8>| GuestStatus::from_report(&line).unwrap();
        assert_eq!(of(line(DONE, RESULT, "", "checked")), GuestStatus::Done);
        assert_eq!(of(line(DONE, "", "", "checked")), GuestStatus::Pending);
        assert_eq!(of(line("", "", "", "unchecked")), GuestStatus::Pending);
        let GuestStatus::Error { reason } = of(line(DONE, RESULT, "", "unchecked")) else {
            panic!("it counts as done");
        };
        assert_eq!(reason, UNCHECKED);
        let warned = "2026 - util.py[WARNING]: odd\n";
        let degraded = of(line(DONE, RESULT, warned, "checked"));
        assert_eq!(degraded.to_string(), "degraded: odd");
        let unchecked = of(line(DONE, RESULT, warned, "unchecked"));
        assert!(unchecked.to_string().starts_with("error"), "{unchecked}");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        let whole = line(DONE, RESULT, "", "checked");
        for end in 0..whole.len() {
            let cut = GuestStatus::from_report(&whole[..end]);
            assert!(cut.is_err(), "{end}: {cut:?}");
        }
        for wrong in [
            line("{}", RESULT, "", "checked"),
            line(DONE, RESULT, "", "checked "),
            line(DONE, RESULT, "", "done"),
            line(&"x".repeat(MAX_REPORT), RESULT, "", "checked"),
            b"aleph-report 1 ! - - checked".to_vec(),
            b"aleph-report 2 - - - checked".to_vec(),
            vec![0xff; 16],
        ] {
            assert!(GuestStatus::from_report(&wrong).is_err());
        }
    }

    #[test]
    fn a_shell_takes_the_script() {
        let checked = std::process::Command::new("sh")
            .args(["-n", "-c", &script()])
            .status();
        assert!(checked.unwrap().success());
        assert!(script().contains(PORT_NAME) && !script().contains('@'));
    }
}
