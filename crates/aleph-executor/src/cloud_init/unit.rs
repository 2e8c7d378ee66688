//! The files by which a guest runs its job: environment, unit, and a check of both.

use super::spec::{Command, USER};
use super::{CloudInitError, GuestSpec};

/// The environment of the job's command, readable by root.
pub const ENV_FILE: &str = "/etc/aleph/job.env";
/// The unit of systemd that runs it.
pub const UNIT: &str = "aleph-job.service";
/// What the check leaves where all is as it was described; it belongs to the instance, as the check
/// does, which runs at the first boot of a root disk alone.
pub(super) const CHECKED: &str = "/var/lib/cloud/instance/aleph-checked";
/// Where the unit is.
pub(super) const UNIT_FILE: &str = "/etc/systemd/system/aleph-job.service";

/// Where the rules are by which a guest takes into use what its machine gets while it runs.
pub(super) const RULES_FILE: &str = "/etc/udev/rules.d/60-aleph-hotplug.rules";

/// Those rules, for udev. Linux leaves it to its user whether processors and memory that come are used
/// (`Documentation/core-api/cpu_hotplug.rst`, `admin-guide/mm/memory-hotplug.rst`), and Debian says nothing.
pub(super) const RULES: &str = "\
ACTION==\"add\", SUBSYSTEM==\"cpu\", TEST==\"online\", ATTR{online}==\"0\", ATTR{online}=\"1\"
ACTION==\"add\", SUBSYSTEM==\"memory\", ATTR{state}==\"offline\", ATTR{state}=\"online\"
";

/// `job.env`, in a form that systemd's `EnvironmentFile=` and a shell's `.` read alike.
///
/// Both take a double-quoted value over several lines and the same four escapes in it
/// (systemd.exec(5), `EnvironmentFile=`; POSIX shell, 2.2.3).
pub(super) fn environment(spec: &GuestSpec) -> Result<String, CloudInitError> {
    let mut text = format!("JOB_ID=\"{}\"\nNODE_ID=\"{}\"\n", spec.job, spec.node);
    for (name, value) in &spec.env {
        let value = value
            .expose_text()
            .map_err(|_| CloudInitError::field(format!("env.{name}"), "is not UTF-8"))?;
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            if matches!(c, '"' | '\\' | '`' | '$') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

/// The unit. It starts after the last stage of cloud-init, and belongs to `cloud-init.target`
/// because `multi-user.target` comes before that stage. What it writes goes to the console, too.
///
/// A shell stands before the program, so that the job's own `PATH` finds it and no beginning of its
/// name means something to systemd. It goes to the working directory, too: `WorkingDirectory=` has
/// no quotes, and loses white space at its end.
pub(super) fn unit(command: &Command) -> String {
    let mut text = String::from(
        "[Unit]\n\
         Description=The job of this VM\n\
         After=cloud-final.service network-online.target\n\
         Wants=network-online.target\n\
         \n\
         [Service]\n\
         EnvironmentFile=/etc/aleph/job.env\n\
         StandardOutput=journal+console\n\
         StandardError=journal+console\n",
    );
    if let Some(user) = &command.user {
        text.push_str(&format!("User={user}\n"));
    }
    if let Some(group) = &command.group {
        text.push_str(&format!("Group={group}\n"));
    }
    text.push_str(
        "ExecStart=/bin/sh -c \"cd -- \\\"$$1\\\" && shift && exec \\\"$$@\\\"\" aleph-job",
    );
    let workdir = command.workdir.as_deref().unwrap_or("/");
    for word in std::iter::once(workdir).chain(command.args.iter().map(String::as_str)) {
        text.push(' ');
        text.push_str(&quoted(word));
    }
    text.push_str("\n\n[Install]\nWantedBy=cloud-init.target\n");
    text
}

/// One word of a unit's command line (systemd.service(5), "Command lines"; systemd.unit(5), specifiers).
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            // As UTF-8: a number below 256 after \x is a byte.
            c if c.is_control() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    text.push_str(&format!("\\x{byte:02x}"));
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A script that fails where the guest is not as the node described it. Its failure is in
/// cloud-init's status, so that user-data which takes away the node's part is not silent about it.
/// It is a part of its own: merging does not touch it.
pub(super) fn check(spec: &GuestSpec) -> String {
    let mut text = format!(
        "#!/bin/sh\n\
         # Fails where user-data took away what the node described.\n\
         fail() {{ echo \"aleph: $1\" >&2; exit 1; }}\n\
         grep -qx 'JOB_ID=\"{}\"' {ENV_FILE} || fail 'no {ENV_FILE}'\n\
         id {USER} >/dev/null || fail 'no user {USER}'\n",
        spec.job
    );
    if spec.command.is_some() {
        text.push_str(&format!(
            "[ -s {UNIT_FILE} ] || fail 'no {UNIT}'\n\
             systemctl is-enabled --quiet {UNIT} || fail '{UNIT} is not enabled'\n\
             [ \"$(systemctl show -p LoadState --value {UNIT})\" = loaded ] ||\n\
             \x20   fail '{UNIT} cannot be read'\n"
        ));
    }
    for volume in &spec.volumes {
        // A path has no quote that a shell would see: see the escape.
        let mount = volume.mount.replace('\'', "'\\''");
        text.push_str(&format!(
            "mountpoint -q -- '{mount}' || fail 'volume {} is not mounted'\n",
            volume.serial
        ));
    }
    text.push_str(&format!(": > {CHECKED}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{JobId, NodeId};

    #[test]
    fn a_value_is_quoted_for_systemd_and_shells() {
        let mut spec = GuestSpec::new(JobId::from_bits(1), NodeId::from_bits(2));
        spec.env.insert("A".into(), "a\"b\\c$d`e\nf 'g' #h".into());
        assert_eq!(
            environment(&spec)
                .unwrap()
                .lines()
                .skip(2)
                .collect::<Vec<_>>(),
            ["A=\"a\\\"b\\\\c\\$d\\`e", "f 'g' #h\""]
        );
    }

    #[test]
    fn a_word_means_itself_to_systemd() {
        assert_eq!(
            quoted("a b\"c\\d%e$f\n;\u{1}"),
            "\"a b\\\"c\\\\d%%e$$f\\n;\\x01\""
        );
    }
}
