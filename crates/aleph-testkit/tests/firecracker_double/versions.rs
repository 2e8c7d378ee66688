//! What each version knows.

use crate::api::JSON;
use crate::double::Double;
use anyhow::Result;
use serde_json::json;

/// A field, where it belongs, and the first version that has it.
#[test]
fn a_field_that_a_version_lacks_is_unknown_to_it() -> Result<()> {
    let nic = r#"{"iface_id":"a","host_dev_name":"","mtu":1400}"#;
    let load = |field: &str| {
        format!(
            r#"{{"snapshot_path":"/none","mem_backend":{{"backend_path":"/none","backend_type":"File"}},{field}}}"#
        )
    };
    let cases = [
        (
            "/network-interfaces/a",
            nic.to_owned(),
            "mtu",
            "1.15.1",
            "1.16.0",
        ),
        (
            "/serial",
            r#"{"rate_limiter":null}"#.into(),
            "rate_limiter",
            "1.15.1",
            "1.16.0",
        ),
        (
            "/balloon",
            r#"{"amount_mib":0,"deflate_on_oom":true,"free_page_reporting":true}"#.into(),
            "free_page_reporting",
            "1.13.2",
            "1.14.0",
        ),
        (
            "/mmds/config",
            r#"{"version":"V2","network_interfaces":[],"imds_compat":true}"#.into(),
            "imds_compat",
            "1.12.1",
            "1.13.0",
        ),
        (
            "/snapshot/load",
            load(r#""network_overrides":[]"#),
            "network_overrides",
            "1.11.0",
            "1.12.0",
        ),
        (
            "/snapshot/load",
            load(r#""track_dirty_pages":false"#),
            "track_dirty_pages",
            "1.12.1",
            "1.13.0",
        ),
        (
            "/snapshot/load",
            load(r#""clock_realtime":false"#),
            "clock_realtime",
            "1.14.3",
            "1.14.4",
        ),
        (
            "/snapshot/load",
            load(r#""clock_realtime":false"#),
            "clock_realtime",
            "1.15.0",
            "1.15.1",
        ),
        (
            "/snapshot/load",
            load(r#""vsock_override":{"uds_path":"/v"}"#),
            "vsock_override",
            "1.15.1",
            "1.16.0",
        ),
        (
            "/snapshot/load",
            load(r#""huge_pages":"None""#),
            "huge_pages",
            "1.16.1",
            "1.17.0",
        ),
    ];
    for (path, body, field, without, with) in cases {
        let mut refused = Double::start(without)?;
        let fault = refused.ask_text("PUT", path, Some(&body))?.fault()?;
        let unknown = format!("{JSON}unknown field `{field}`, expected one of ");
        let only = format!("{JSON}unknown field `{field}`, expected ");
        assert!(
            fault.starts_with(&unknown) || fault.starts_with(&only),
            "{without}: {fault}"
        );
        assert!(
            !fault.contains(&format!(", `{field}`")),
            "{without}: {fault}"
        );
        // The parser ends nothing.
        assert_eq!(refused.child.try_wait()?, None);
        let reply = Double::start(with)?.ask_text("PUT", path, Some(&body))?;
        assert!(!reply.body.contains("unknown field"), "{with}: {reply:?}");
    }
    // Where it is said, and what else there is: as the version's own parser.
    let fault = Double::start("1.12.1")?
        .ask_text("PUT", "/mmds/config", Some(r#"{"imds_compat":true}"#))?
        .fault()?;
    assert_eq!(
        fault,
        format!(
            "{JSON}unknown field `imds_compat`, expected one of `version`, `network_interfaces`, \
             `ipv4_address` at line 1 column 14."
        )
    );
    let body = r#"{"vcpu_count":1,"mem_size_mib":128,"huge_pages":"Transparent"}"#;
    let fault = Double::start("1.16.1")?.ask_text("PUT", "/machine-config", Some(body))?;
    assert_eq!(
        fault.fault()?,
        format!(
            "{JSON}unknown variant `Transparent`, expected `None` or `2M` at line 1 column 61."
        )
    );
    Double::start("1.17.0")?.put("/machine-config", &serde_json::from_str(body)?)?;
    Ok(())
}

#[test]
fn an_endpoint_that_a_version_lacks_is_no_path_of_it() -> Result<()> {
    let cases = [
        ("PUT", "/pmem/a", Some("{}"), "1.13.2", "1.14.0"),
        ("PUT", "/serial", Some("{}"), "1.13.2", "1.14.0"),
        ("PUT", "/hotplug/memory", Some("{}"), "1.13.2", "1.14.0"),
        ("GET", "/hotplug/memory", None, "1.13.2", "1.14.0"),
        ("PATCH", "/pmem/a", Some("{}"), "1.15.1", "1.16.0"),
    ];
    for (method, path, body, without, with) in cases {
        let first = path.split('/').nth(1).unwrap_or_default();
        let lacks = format!("Invalid request method and/or path: {method} {first}.");
        let reply = Double::start(without)?.ask_text(method, path, body)?;
        assert_eq!(reply.fault()?, lacks, "{without}");
        let reply = Double::start(with)?.ask_text(method, path, body)?;
        assert!(!reply.body.contains(&lacks), "{with}: {reply:?}");
    }
    Ok(())
}

#[test]
fn the_configuration_is_told_in_full() -> Result<()> {
    let double = Double::start("1.13.2")?;
    std::fs::write(double.path("disk"), [0; 4096])?;
    let path = double.path("disk");
    let drive = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": path });
    double.put("/drives/a", &drive)?;
    let path = path.display();
    assert_eq!(
        double.ask("GET", "/vm/config", None)?.body,
        format!(
            r#"{{"balloon":null,"drives":[{{"drive_id":"a","partuuid":null,"is_root_device":false,"cache_type":"Unsafe","is_read_only":false,"path_on_host":"{path}","rate_limiter":null,"io_engine":"Sync","socket":null}}],"boot-source":{{"kernel_image_path":"","initrd_path":null,"boot_args":null}},"cpu-config":null,"logger":null,"machine-config":{{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}},"metrics":null,"mmds-config":null,"network-interfaces":[],"vsock":null,"entropy":null}}"#
        )
    );
    let later = Double::start("1.14.4")?.get("/vm/config")?;
    assert_eq!(
        (&later["pmem"], &later["memory-hotplug"]),
        (&json!([]), &json!(null))
    );
    Ok(())
}
