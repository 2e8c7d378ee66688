//! What guests report of their cloud-init, and what users give to it: an answer or an error, in
//! bounds. Whatever the user's part is, the node's own stand after it.

#![no_main]

use aleph_executor::cloud_init::{GuestSpec, GuestStatus, MAX_REASON};
use aleph_types::{JobId, NodeId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (status, result, user_data) = input;
    let reports = [
        GuestStatus::from_command(status),
        GuestStatus::from_files(status, None),
        GuestStatus::from_files(status, Some(result)),
    ];
    for report in reports.into_iter().flatten() {
        let text = report.with_log(result).to_string();
        assert!(text.len() <= MAX_REASON + 16);
        assert!(!text.contains(char::is_control));
    }
    let mut spec = GuestSpec::new(JobId::from_bits(1), NodeId::from_bits(2));
    spec.user_data = Some(user_data.to_vec().into());
    if let Ok(seed) = spec.seed() {
        let text = seed.user_data.expose_text().unwrap();
        let (_, rest) = text.split_once("boundary=\"").unwrap();
        let (boundary, _) = rest.split_once('"').unwrap();
        // Its boot hook comes before all, its configuration and its check after all.
        let parts: Vec<&str> = text.split(&format!("--{boundary}\n")).skip(1).collect();
        let [hook, .., config, check] = &parts[..] else {
            panic!("{} parts", parts.len());
        };
        assert!(hook.contains("aleph-report"));
        assert!(config.contains("aleph.yaml"));
        assert!(check.contains("zz-aleph-check"));
        assert!(text.ends_with(&format!("--{boundary}--\n")));
    }
});
