//! What the API takes and refuses before there is a guest.

use crate::double::Double;
use anyhow::Result;
use serde_json::json;

pub(crate) const JSON: &str = "An error occurred when deserializing the json body of a request: ";

#[test]
fn requests_that_are_not_understood() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let id = "API Resource IDs can only contain alphanumeric characters and underscores.";
    let drive = r#"{"drive_id":"b","is_root_device":false,"path_on_host":"/dev/null"}"#;
    let nic = r#"{"iface_id":"b","host_dev_name":"none"}"#;
    let cases = [
        (
            "GET",
            "/nonsense",
            None,
            "Invalid request method and/or path: GET nonsense.",
        ),
        (
            "GET",
            "/vm/x",
            None,
            "Invalid request method and/or path: GET vm.",
        ),
        (
            "GET",
            "/version?x",
            None,
            "Invalid request method and/or path: GET version?x.",
        ),
        ("GET", "/", Some("{}"), "GET request cannot have a body."),
        ("PUT", "/nonsense", None, "Empty PUT request."),
        (
            "PUT",
            "/nonsense",
            Some("{}"),
            "Invalid request method and/or path: PUT nonsense.",
        ),
        ("PATCH", "/nonsense", None, "Empty PATCH request."),
        (
            "PATCH",
            "/machine-config",
            Some("{}"),
            "Empty PATCH request.",
        ),
        (
            "DELETE",
            "/nonsense/a",
            None,
            "Invalid request method and/or path: DELETE nonsense.",
        ),
        ("DELETE", "/drives/a", Some("{}"), "Empty Delete request."),
        (
            "PUT",
            "/snapshot",
            Some("{}"),
            "Missing snapshot operation type.",
        ),
        (
            "PUT",
            "/snapshot/x",
            Some("{}"),
            "Invalid request method and/or path: PUT /snapshot/x.",
        ),
        (
            "PUT",
            "/mmds/x",
            Some("{}"),
            "Unrecognized PUT request path `x`.",
        ),
        ("PUT", "/drives", Some(drive), "The ID cannot be empty."),
        ("PUT", "/drives/a-b", Some(drive), id),
        (
            "PUT",
            "/drives/a",
            Some(drive),
            "The id from the path does not match the id from the body!",
        ),
        (
            "PUT",
            "/network-interfaces/a",
            Some(nic),
            "The id from the path [a] does not match the id from the body [b]!",
        ),
        (
            "GET",
            "/balloon/x",
            None,
            "Unrecognized GET request path `x`.",
        ),
        (
            "PATCH",
            "/balloon/hinting/x",
            None,
            "Unrecognized PATCH request path `/hinting/x`.",
        ),
    ];
    for (method, path, body, why) in cases {
        let reply = double.ask_text(method, path, body)?;
        assert_eq!(reply.status, 400, "{method} {path}: {reply:?}");
        assert_eq!(reply.fault()?, why, "{method} {path}");
    }
    // What follows is not looked at.
    assert_eq!(double.ask("GET", "/version/x", None)?.status, 200);
    Ok(())
}

#[test]
fn bodies_that_are_not_understood() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let cases = [
        ("/actions", "", "Empty PUT request."),
        (
            "/actions",
            "{",
            "EOF while parsing an object at line 1 column 1",
        ),
        ("/actions", "nonsense", "expected ident at line 1 column 2"),
        (
            "/actions",
            "{}",
            "missing field `action_type` at line 1 column 2",
        ),
        (
            "/actions",
            r#"{"action_type":"Reboot"}"#,
            "unknown variant `Reboot`, expected one of `FlushMetrics`, `InstanceStart`, \
             `SendCtrlAltDel` at line 1 column 23",
        ),
        (
            "/actions",
            r#"{"action_type":"InstanceStart","payload":""}"#,
            "unknown field `payload`, expected `action_type` at line 1 column 40",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":"1","mem_size_mib":128}"#,
            r#"invalid type: string "1", expected u8 at line 1 column 17"#,
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":300,"mem_size_mib":128}"#,
            "invalid value: integer `300`, expected u8 at line 1 column 17",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1}"#,
            "missing field `mem_size_mib` at line 1 column 16",
        ),
        (
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"none","guest_mac":"06:00"}"#,
            "The provided MAC address is invalid. at line 1 column 59",
        ),
        (
            "/logger",
            r#"{"level":"loud"}"#,
            "Invalid LevelFilter at line 1 column 16",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"a"}"#,
            "missing field: either `mem_backend` or `mem_file_path` is required",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"a","mem_file_path":"b","mem_backend":{"backend_path":"b","backend_type":"File"}}"#,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
        ),
    ];
    for (path, body, why) in cases {
        let body = Some(body).filter(|body| !body.is_empty());
        let fault = double.ask_text("PUT", path, body)?.fault()?;
        match body {
            Some(_) => assert_eq!(fault, format!("{JSON}{why}."), "{path}"),
            None => assert_eq!(fault, why),
        }
    }
    Ok(())
}

#[test]
fn what_wants_a_guest_is_refused_before_there_is_one() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let early = "The requested operation is not supported before starting the microVM.";
    let cases = [
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PATCH", "/vm", json!({ "state": "Resumed" })),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
        (
            "PUT",
            "/actions",
            json!({ "action_type": "SendCtrlAltDel" }),
        ),
        (
            "PUT",
            "/snapshot/create",
            json!({ "snapshot_path": "a", "mem_file_path": "b" }),
        ),
        ("PATCH", "/drives/a", json!({ "drive_id": "a" })),
        ("PATCH", "/network-interfaces/a", json!({ "iface_id": "a" })),
        ("PATCH", "/balloon", json!({ "amount_mib": 1 })),
        (
            "PATCH",
            "/hotplug/memory",
            json!({ "requested_size_mib": 1 }),
        ),
    ];
    for (method, path, body) in cases {
        assert_eq!(double.refuses(method, path, &body)?, early, "{path}");
    }
    assert_eq!(double.ask("DELETE", "/drives/a", None)?.fault()?, early);
    assert_eq!(
        double.ask("GET", "/balloon/statistics", None)?.fault()?,
        early
    );
    assert_eq!(
        double.refuses(
            "PUT",
            "/actions",
            &json!({ "action_type": "InstanceStart" })
        )?,
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
    // Nothing of that was of what is booted.
    let body = json!({ "snapshot_path": "a", "mem_file_path": "b" });
    let fault = double.refuses("PUT", "/snapshot/load", &body)?;
    assert!(
        fault.starts_with("Load snapshot error: Failed to restore"),
        "{fault}"
    );
    Ok(())
}

#[test]
fn limits_are_told_in_these_words() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let machine = |cpus: u8, mib: u32, smt: bool| json!({ "vcpu_count": cpus, "mem_size_mib": mib, "smt": smt });
    let cpus = "Machine config error: The number of vCPUs must be greater than 0, less than 32 \
                and must be 1 or an even number if SMT is enabled.";
    for refused in [
        machine(0, 128, false),
        machine(33, 128, false),
        machine(3, 128, true),
    ] {
        assert_eq!(double.refuses("PUT", "/machine-config", &refused)?, cpus);
    }
    // The text says less than 32; the code does not.
    double.put("/machine-config", &machine(32, 128, false))?;
    let odd = json!({ "vcpu_count": 1, "mem_size_mib": 129, "huge_pages": "2M" });
    assert_eq!(
        double.refuses("PUT", "/machine-config", &odd)?,
        "Machine config error: The memory size (MiB) is either 0, or not a multiple of the \
         configured page size."
    );
    let none = json!({ "kernel_image_path": "/none" });
    assert_eq!(
        double.refuses("PUT", "/boot-source", &none)?,
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    let drive = json!({ "drive_id": "a", "is_root_device": true, "path_on_host": "/none" });
    assert_eq!(
        double.refuses("PUT", "/drives/a", &drive)?,
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error \
         manipulating the backing file: No such file or directory (os error 2) /none"
    );
    for (id, root) in [("a", true), ("b", false)] {
        std::fs::write(double.path(id), [0; 4096])?;
        let path = double.path(id);
        let drive = json!({ "drive_id": id, "is_root_device": root, "path_on_host": path });
        double.put(&format!("/drives/{id}"), &drive)?;
    }
    let second =
        json!({ "drive_id": "b", "is_root_device": true, "path_on_host": double.path("b") });
    assert_eq!(
        double.refuses("PUT", "/drives/b", &second)?,
        "Drive config error: A root block device already exists!"
    );
    let socket = json!({ "guest_cid": 3, "uds_path": double.path("api") });
    assert_eq!(
        double.refuses("PUT", "/vsock", &socket)?,
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side \
         Unix socket: Address in use (os error 98)"
    );
    assert_eq!(
        double.refuses(
            "PUT",
            "/balloon",
            &json!({ "amount_mib": 129, "deflate_on_oom": true })
        )?,
        "Balloon config error: Amount of pages requested is too large."
    );
    assert_eq!(
        double.ask("GET", "/balloon", None)?.fault()?,
        "Balloon config error: No balloon device found."
    );
    let mmds = json!({ "version": "V2", "network_interfaces": ["a"] });
    assert_eq!(
        double.refuses("PUT", "/mmds/config", &mmds)?,
        "MMMDS config error: The list of network interface IDs provided contains at least one ID \
         that does not correspond to any existing network interface."
    );
    assert_eq!(
        double.refuses("PATCH", "/mmds", &json!({}))?,
        "MMDS error: The MMDS data store is not initialized."
    );
    let metrics = json!({ "metrics_path": double.path("metrics") });
    double.put("/metrics", &metrics)?;
    assert_eq!(
        double.refuses("PUT", "/metrics", &metrics)?,
        "Metrics error: Cannot initialize the metrics system due to bad user input: \
         Reinitialization of metrics not allowed."
    );
    Ok(())
}
