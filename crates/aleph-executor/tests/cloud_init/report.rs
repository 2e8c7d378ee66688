//! What guests report, of several versions and of none.

use crate::trial;
use aleph_executor::cloud_init::{GuestStatus, MAX_REASON, MAX_STATUS, StatusError};
use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_printed_status_is_read", a_printed_status_is_read),
        trial("status_files_are_read", status_files_are_read),
        trial(
            "warnings_make_a_boot_degraded",
            warnings_make_a_boot_degraded,
        ),
        trial("a_false_report_is_an_error", a_false_report_is_an_error),
        trial("a_reason_is_one_short_line", a_reason_is_one_short_line),
        trial(
            "any_bytes_are_an_answer_or_an_error",
            any_bytes_are_an_answer_or_an_error,
        ),
    ]
}

fn printed(value: &Value) -> Result<String, StatusError> {
    GuestStatus::from_command(value.to_string().as_bytes()).map(|status| status.to_string())
}

fn a_printed_status_is_read() {
    // 22.4, as Debian 12 prints it.
    let of_22 = |status: &str, errors: Value| {
        json!({
            "_schema_version": "1", "boot_status_code": "enabled-by-generator",
            "datasource": "nocloud", "detail": "DataSourceNoCloud [seed=/dev/vdb][dsmode=net]",
            "errors": errors, "last_update": "Thu, 01 Jan 1970 00:01:00 +0000",
            "schemas": {"1": {}}, "status": status,
        })
    };
    for (status, errors, wanted) in [
        ("not run", json!([]), "pending"),
        ("running", json!([]), "pending"),
        ("disabled", json!([]), "disabled"),
        ("done", json!([]), "done"),
        ("error", json!(["a\nb", "c", "c"]), "error: a b; c"),
        (
            "error",
            json!([]),
            "error: DataSourceNoCloud [seed=/dev/vdb][dsmode=net]",
        ),
        ("done", json!(["late"]), "error: late"),
    ] {
        assert_eq!(printed(&of_22(status, errors)).unwrap(), wanted);
    }
    // 24.1 and later.
    let of_24 = |extended: &str, errors: Value, recoverable: Value| {
        json!({
            "boot_status_code": "enabled-by-generator", "datasource": "nocloud",
            "detail": "", "errors": errors, "extended_status": extended,
            "init": {"errors": [], "finished": 1.5, "recoverable_errors": {}, "start": 1.25},
            "recoverable_errors": recoverable, "stage": null,
            "status": if extended.starts_with("error") { "error" } else { "done" },
        })
    };
    for (extended, errors, recoverable, wanted) in [
        ("done", json!([]), json!({}), "done"),
        (
            "degraded done",
            json!([]),
            json!({"WARNING": ["w"]}),
            "degraded: w",
        ),
        (
            "degraded done",
            json!([]),
            json!({}),
            "degraded: cloud-init warned and did not say of what",
        ),
        (
            "error - done",
            json!(["e"]),
            json!({"WARNING": ["w"]}),
            "error: e; w",
        ),
        (
            "error",
            json!([]),
            json!({}),
            "error: cloud-init failed and did not say why",
        ),
    ] {
        assert_eq!(
            printed(&of_24(extended, errors, recoverable)).unwrap(),
            wanted
        );
    }
}

fn files(status: &Value, result: Option<&Value>) -> Result<String, StatusError> {
    let result = result.map(Value::to_string);
    GuestStatus::from_files(
        status.to_string().as_bytes(),
        result.as_deref().map(str::as_bytes),
    )
    .map(|status| status.to_string())
}

fn status_files_are_read() {
    let stage = |errors: Value, finished: Value| json!({"errors": errors, "finished": finished, "start": 1.0});
    let status = |last: Value, at: Value| {
        json!({"v1": {
            "datasource": "DataSourceNoCloud [seed=/dev/vdb]", "stage": at,
            "init-local": stage(json!([]), json!(2.0)), "init": stage(json!([]), json!(3.0)),
            "modules-config": stage(json!([]), json!(4.0)), "modules-final": last,
        }})
    };
    let done = json!({"v1": {"datasource": "DataSourceNoCloud", "errors": []}});
    let finished = status(stage(json!([]), json!(5.0)), json!(null));
    let begun = status(stage(json!([]), json!(null)), json!("modules-final"));
    let failed = status(
        stage(
            json!(["('scripts_user', RuntimeError('Runparts: 1 failures'))"]),
            json!(5.0),
        ),
        json!(null),
    );
    let mut warned = finished.clone();
    warned["v1"]["init"]["recoverable_errors"] = json!({"WARNING": ["w"], "DEPRECATED": ["d"]});

    assert_eq!(files(&finished, Some(&done)).unwrap(), "done");
    assert_eq!(files(&finished, None).unwrap(), "pending");
    assert_eq!(files(&begun, Some(&done)).unwrap(), "pending");
    assert_eq!(files(&begun, None).unwrap(), "pending");
    assert_eq!(
        files(&failed, Some(&done)).unwrap(),
        "error: ('scripts_user', RuntimeError('Runparts: 1 failures'))"
    );
    assert_eq!(files(&warned, Some(&done)).unwrap(), "degraded: d; w");
    let failed_early = json!({"v1": {"datasource": null, "errors": ["no data source"]}});
    assert_eq!(
        files(&finished, Some(&failed_early)).unwrap(),
        "error: no data source"
    );
}

fn warnings_make_a_boot_degraded() {
    let log = b"2026-01-01 00:00:00,000 - util.py[DEBUG]: fine [WARNING] not\n\
        2026-01-01 00:00:01,000 - user_data.py[WARNING]: Failed at merging\n\
        2026-01-01 00:00:01,000 - x.py[ERROR]: \xff\xfe\n";
    let degraded = GuestStatus::Done.with_log(log).to_string();
    assert_eq!(degraded, "degraded: Failed at merging; \u{fffd}\u{fffd}");
    assert_eq!(GuestStatus::Done.with_log(b"fine\n"), GuestStatus::Done);
    // What is known for worse stays.
    assert_eq!(GuestStatus::Pending.with_log(log), GuestStatus::Pending);
    let error = GuestStatus::Error { reason: "e".into() };
    assert_eq!(error.clone().with_log(log), error);
}

fn a_false_report_is_an_error() {
    for value in [
        json!(null),
        json!([]),
        json!({}),
        json!({"status": 1}),
        json!({"status": "finished"}),
        json!({"status": "done", "errors": "none"}),
        json!({"status": "done", "errors": [1]}),
        json!({"status": "done", "recoverable_errors": []}),
    ] {
        assert!(printed(&value).is_err(), "{value}");
    }
    let done = json!({"v1": {"errors": []}});
    for value in [
        json!({}),
        json!({"v1": []}),
        json!({"v1": {"stage": 1}}),
        json!({"v1": {"init": "done"}}),
        json!({"v1": {"init": {"errors": {}}}}),
    ] {
        assert!(files(&value, Some(&done)).is_err(), "{value}");
    }
    let empty = json!({"v1": {}});
    assert!(files(&empty, Some(&json!({"v1": {"errors": [null]}}))).is_err());
    let many: serde_json::Map<_, _> = (0..17).map(|i| (i.to_string(), json!({}))).collect();
    let many = json!({ "v1": many });
    assert!(matches!(
        files(&many, Some(&done)),
        Err(StatusError::TooManyStages)
    ));
    let long = json!({"status": "done", "detail": "x".repeat(MAX_STATUS)});
    assert!(matches!(printed(&long), Err(StatusError::TooLong(_))));
    let deep = "[".repeat(MAX_STATUS);
    assert!(GuestStatus::from_command(deep.as_bytes()).is_err());
}

fn a_reason_is_one_short_line() {
    let errors = json!(["\u{1b}[31mred\r\n", "é".repeat(4000), "never seen"]);
    let said = printed(&json!({"status": "error", "errors": errors})).unwrap();
    let reason = said.strip_prefix("error: ").unwrap();
    assert!(reason.starts_with(" [31mred; é"), "{reason}");
    assert!(reason.len() <= MAX_REASON && reason.len() > MAX_REASON - 4);
    assert!(!reason.contains(char::is_control));
}

fn any_bytes_are_an_answer_or_an_error() {
    let json = prop_oneof![
        any::<Vec<u8>>(),
        "[\\[\\]{}\":,a-z0-9]{0,80}".prop_map(String::into_bytes),
        "\\{\"v1\":\\{\"init\":\\{\"errors\":\\[\"\\PC{0,20}\"\\]\\}\\}\\}"
            .prop_map(String::into_bytes),
    ];
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(2000)
    };
    TestRunner::new(config)
        .run(&(json.clone(), json.clone(), json), |(a, b, c)| {
            let _ = GuestStatus::from_command(&a);
            if let Ok(status) = GuestStatus::from_files(&a, Some(&b)) {
                let text = status.with_log(&c).to_string();
                prop_assert!(text.len() <= MAX_REASON + 16);
                prop_assert!(!text.contains(char::is_control));
            }
            Ok(())
        })
        .unwrap();
}
