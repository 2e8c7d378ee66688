//! Bodies about devices.

use crate::gate::{Body, Field, always};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct TokenBucket {
    size: u64,
    one_time_burst: Option<u64>,
    refill_time: u64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) enum IoEngine {
    #[default]
    Sync,
    Async,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    pub(crate) drive_id: String,
    pub(crate) partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(default)]
    pub(crate) cache_type: CacheType,
    pub(crate) is_read_only: Option<bool>,
    pub(crate) path_on_host: Option<String>,
    pub(crate) rate_limiter: Option<RateLimiter>,
    #[serde(rename = "io_engine")]
    pub(crate) file_engine_type: Option<IoEngine>,
    pub(crate) socket: Option<String>,
}
impl Body for Drive {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriveUpdate {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: Option<String>,
    #[expect(
        dead_code,
        reason = "limits of rates are taken, and nothing is limited"
    )]
    pub(crate) rate_limiter: Option<RateLimiter>,
}
impl Body for DriveUpdate {}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nic {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
    #[serde(default, with = "mac")]
    pub(crate) guest_mac: Option<[u8; 6]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u16>,
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

impl Body for Nic {
    const FIELDS: &'static [Field] = &[
        ("iface_id", always),
        ("host_dev_name", always),
        ("guest_mac", always),
        ("mtu", |v| v.has(16)),
        ("rx_rate_limiter", always),
        ("tx_rate_limiter", always),
    ];
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NicUpdate {
    pub(crate) iface_id: String,
    #[expect(
        dead_code,
        reason = "limits of rates are taken, and nothing is limited"
    )]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    #[expect(
        dead_code,
        reason = "limits of rates are taken, and nothing is limited"
    )]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}
impl Body for NicUpdate {}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pmem {
    pub(crate) id: String,
    pub(crate) path_on_host: String,
    #[serde(default)]
    pub(crate) root_device: bool,
    #[serde(default)]
    pub(crate) read_only: bool,
    pub(crate) rate_limiter: Option<RateLimiter>,
}

impl Body for Pmem {
    const FIELDS: &'static [Field] = &[
        ("id", always),
        ("path_on_host", always),
        ("root_device", always),
        ("read_only", always),
        ("rate_limiter", |v| v.has(16)),
    ];
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PmemUpdate {
    pub(crate) id: String,
    #[expect(
        dead_code,
        reason = "limits of rates are taken, and nothing is limited"
    )]
    pub(crate) rate_limiter: Option<RateLimiter>,
}
impl Body for PmemUpdate {}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vsock_id: Option<String>,
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: String,
}
impl Body for Vsock {}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entropy {
    rate_limiter: Option<RateLimiter>,
}
impl Body for Entropy {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serial {
    pub(crate) serial_out_path: Option<PathBuf>,
    #[expect(
        dead_code,
        reason = "limits of rates are taken, and nothing is limited"
    )]
    pub(crate) rate_limiter: Option<TokenBucket>,
}

impl Body for Serial {
    const FIELDS: &'static [Field] =
        &[("serial_out_path", always), ("rate_limiter", |v| v.has(16))];
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Balloon {
    pub(crate) amount_mib: u32,
    pub(crate) deflate_on_oom: bool,
    #[serde(default)]
    pub(crate) stats_polling_interval_s: u16,
    #[serde(default)]
    pub(crate) free_page_hinting: bool,
    #[serde(default)]
    pub(crate) free_page_reporting: bool,
}

impl Body for Balloon {
    const FIELDS: &'static [Field] = &[
        ("amount_mib", always),
        ("deflate_on_oom", always),
        ("stats_polling_interval_s", always),
        ("free_page_hinting", |v| v.has(14)),
        ("free_page_reporting", |v| v.has(14)),
    ];
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonUpdate {
    pub(crate) amount_mib: u32,
}
impl Body for BalloonUpdate {}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonStatisticsUpdate {
    pub(crate) stats_polling_interval_s: u16,
}
impl Body for BalloonStatisticsUpdate {}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Hinting {
    #[serde(default)]
    #[expect(dead_code, reason = "no guest is hinted at")]
    pub(crate) acknowledge_on_stop: bool,
}
impl Body for Hinting {}

fn block() -> usize {
    2
}

fn slot() -> usize {
    128
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HotplugMemory {
    pub(crate) total_size_mib: usize,
    #[serde(default = "block")]
    pub(crate) block_size_mib: usize,
    #[serde(default = "slot")]
    pub(crate) slot_size_mib: usize,
}
impl Body for HotplugMemory {}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HotplugMemoryUpdate {
    #[expect(dead_code, reason = "no guest of the double has such a device")]
    pub(crate) requested_size_mib: usize,
}
impl Body for HotplugMemoryUpdate {}

/// Hardware addresses as `06:00:ac:10:00:02`.
mod mac {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn text(mac: [u8; 6]) -> String {
        mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    pub(super) fn serialize<S: Serializer>(
        mac: &Option<[u8; 6]>,
        writer: S,
    ) -> Result<S::Ok, S::Error> {
        match mac {
            Some(mac) => writer.serialize_str(&text(*mac)),
            None => writer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        reader: D,
    ) -> Result<Option<[u8; 6]>, D::Error> {
        let Some(text) = Option::<String>::deserialize(reader)? else {
            return Ok(None);
        };
        let parts: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                u8::from_str_radix(part, 16)
                    .ok()
                    .filter(|_| part.len() == 2)
            })
            .collect();
        parts
            .and_then(|parts| parts.try_into().ok())
            .map(Some)
            .ok_or_else(|| D::Error::custom("The provided MAC address is invalid."))
    }
}

/// A hardware address as text.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac::text(mac)
}
