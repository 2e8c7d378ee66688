//! `[executor.firecracker]`: how Firecracker is run.

use super::value::{self, Fault, Parsed};
use aleph_executor::firecracker::MemoryMode;
use aleph_executor::firecracker::jail::JailConfig;
use std::path::Path;
use toml::de::DeValue;
use toml::{Table, Value};

/// Reads the table, with all that is wrong with it.
pub(super) fn settings(value: &DeValue<'_>) -> Parsed<JailConfig> {
    let mut config = JailConfig::default();
    let Some(table) = value.as_table() else {
        return Err(vec![Fault::kind(value, "a table")]);
    };
    let mut faults = Vec::new();
    for (name, value) in table {
        let (name, value) = (&**name.get_ref(), value.get_ref());
        let read = match name {
            "firecracker" => value::program(value).map(|path| config.firecracker = Some(path)),
            "jailer" => value::program(value).map(|path| config.jailer = Some(path)),
            "jailed" => value::boolean(value).map(|jailed| config.jailed = jailed),
            "uid_range" => match value.as_str().map(str::parse) {
                Some(Ok(range)) => {
                    config.uid_range = range;
                    Ok(())
                }
                Some(Err(error)) => Err(vec![Fault::new(error.to_string())]),
                None => Err(vec![Fault::kind(
                    value,
                    "a range of user ids, such as \"200000-265535\"",
                )]),
            },
            "memory" => match value.as_str().and_then(MemoryMode::of_name) {
                Some(mode) => {
                    config.memory = mode;
                    Ok(())
                }
                None => Err(vec![Fault::new(
                    "has to be \"file\", \"userfaultfd\" or \"prefetch\"",
                )]),
            },
            "track_dirty_pages" => {
                value::boolean(value).map(|tracks| config.track_dirty_pages = tracks)
            }
            "chroot_base" => value::absolute(value).map(|path| config.chroot_base = Some(path)),
            _ => Err(vec![Fault::new("there is no such key")]),
        };
        let at = |fault: Fault| fault.at(&format!(".{name}"));
        faults.extend(read.err().into_iter().flatten().map(at));
    }
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(faults)
    }
}

/// The table as it is written.
pub(super) fn shown(config: &JailConfig) -> Value {
    let JailConfig {
        firecracker,
        jailer,
        jailed,
        uid_range,
        chroot_base,
        memory,
        track_dirty_pages,
    } = config;
    let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
    let mut table = Table::new();
    for (name, path) in [
        ("firecracker", firecracker),
        ("jailer", jailer),
        ("chroot_base", chroot_base),
    ] {
        if let Some(path) = path {
            table.insert(name.into(), text(path));
        }
    }
    table.insert("jailed".into(), Value::Boolean(*jailed));
    table.insert("memory".into(), Value::String(memory.name().into()));
    let tracks = Value::Boolean(*track_dirty_pages);
    table.insert("track_dirty_pages".into(), tracks);
    table.insert("uid_range".into(), Value::String(uid_range.to_string()));
    Value::Table(table)
}
