//! From the text of a file to its sections: which keys there are, and what each may be.

use super::reader::Document;
use super::{Config, TlsFiles, firecracker, nats, qemu, value};
use aleph_executor::volumes::BackendChoice;

/// Reads all sections; what is wrong is left with the document.
pub(super) fn read(document: &mut Document<'_>) -> Config {
    let mut config = Config::default();
    document.section("node", |s| {
        s.optional("root", &mut config.node.root, value::absolute);
    });
    document.section("api", |s| {
        let api = &mut config.api;
        s.optional("socket", &mut api.socket, value::absolute);
        s.read("socket_group", &mut api.socket_group, value::group);
        s.optional("listen", &mut api.listen, value::address);
        let (mut certificate, mut key) = (None, None);
        s.optional("tls_cert", &mut certificate, value::absolute);
        s.optional("tls_key", &mut key, value::absolute);
        let connections = value::whole(1..=100_000);
        s.read("max_connections", &mut api.max_connections, connections);
        s.read("drain_seconds", &mut api.drain, value::seconds(0..=3600));
        api.tls = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (Some(_), None) if !s.has("tls_key") => {
                s.problem("tls_cert", "needs tls_key beside it");
                None
            }
            (None, Some(_)) if !s.has("tls_cert") => {
                s.problem("tls_key", "needs tls_cert beside it");
                None
            }
            _ => None,
        };
        let tls = s.has("tls_cert") || s.has("tls_key");
        if let Some(listen) = api.listen.filter(|a| !a.ip().is_loopback() && !tls) {
            let why = format!(
                "{listen} can be reached from other hosts, which needs tls_cert and tls_key"
            );
            s.problem("listen", &why);
        }
        if tls && !s.has("listen") {
            s.problem("listen", "is missing, so that TLS has nowhere to listen");
        }
    });
    document.section("executor", |s| {
        let executor = &mut config.executor;
        let mut qemu = (executor.qemu.clone(), executor.gpu.clone());
        s.read("qemu", &mut qemu, qemu::settings);
        (executor.qemu, executor.gpu) = qemu;
        s.read("hypervisor", &mut executor.hypervisor, value::hypervisor);
        s.optional("accel", &mut executor.accelerator, value::accelerator);
        let boot = value::seconds(1..=86_400);
        s.read("boot_timeout_seconds", &mut executor.boot_timeout, boot);
        s.read(
            "reclaim_after_seconds",
            &mut executor.reclaim_after,
            value::seconds(0..=86_400),
        );
        s.read(
            "firecracker",
            &mut executor.firecracker,
            firecracker::settings,
        );
    });
    document.section("network", |s| {
        let network = &mut config.network;
        s.optional("enabled", &mut network.enabled, value::boolean);
        s.read("pool", &mut network.pool, value::pool);
        s.read("ipv6", &mut network.ipv6, value::ipv6);
        let rest = value::seconds(5..=86_400);
        s.read("cool_down_seconds", &mut network.cool_down, rest);
        let connections = value::whole(16..=1_000_000);
        s.read(
            "max_connections_per_vm",
            &mut network.connections,
            connections,
        );
        s.optional(
            "max_bandwidth_per_vm",
            &mut network.bandwidth,
            value::bandwidth,
        );
        s.optional(
            "max_packet_rate_per_vm",
            &mut network.packet_rate,
            value::packet_rate,
        );
    });
    document.section("limits", |s| {
        let limits = &mut config.limits;
        s.read("overcommit_cpus", &mut limits.overcommit.cpus, value::ratio);
        s.read(
            "overcommit_memory",
            &mut limits.overcommit.memory,
            value::ratio,
        );
        s.read("overcommit_disk", &mut limits.overcommit.disk, value::ratio);
        s.read("reserved_memory", &mut limits.reserved_memory, value::size);
        s.read("pids_per_vm", &mut limits.pids, value::whole(16..=1 << 22));
    });
    document.section("logs", |s| {
        let logs = &mut config.logs;
        s.read("max_bytes_per_job", &mut logs.max_bytes, value::log_bytes);
        s.read("max_segments", &mut logs.segments, value::whole(2..=1000));
    });
    document.section("images", |s| {
        let images = &mut config.images;
        s.read("mirrors", &mut images.mirrors, value::mirrors);
        s.read("plain_http", &mut images.plain_http, value::registries);
        s.read("max_unpacked", &mut images.max_unpacked, value::size);
        s.optional("docker_config", &mut images.docker_config, value::absolute);
        s.read("certificates", &mut images.certificates, value::files);
        let accounts = &mut images.account_registries;
        s.read("account_registries", accounts, value::named_registries);
        for (key, why) in images.pull_options().registries.faults() {
            // What the library calls insecure.
            let why = why.replace("in insecure", "in plain_http");
            match key.split_once('.') {
                Some((_, registry)) => s.problem_at("mirrors", &format!(".{registry:?}"), &why),
                None => s.problem("plain_http", &why),
            }
        }
    });
    document.section("volumes", |s| {
        let volumes = &mut config.volumes;
        s.read("backend", &mut volumes.backend, value::volume_backend);
        s.optional("thin_pool", &mut volumes.thin_pool, value::thin_pool);
        if volumes.backend == BackendChoice::LvmThin && volumes.thin_pool.is_none() {
            let why = "has to be there for the back end lvm-thin: GROUP/POOL";
            s.problem("thin_pool", why);
        }
        s.read("encrypt", &mut volumes.encrypt, value::boolean);
        s.optional("key_file", &mut volumes.key_file, value::absolute);
        let year = value::seconds(0..=366 * 86_400);
        s.read("grace_seconds", &mut volumes.grace, year);
        let count = value::whole(0..=1_000_000);
        s.optional("max_per_account", &mut volumes.count, count);
        s.optional("max_size_per_account", &mut volumes.size, value::size);
        s.optional("backup_key_file", &mut volumes.backup_key, value::absolute);
        s.read(
            "default_size",
            &mut volumes.default_size,
            value::volume_size,
        );
    });
    document.section("functions", |s| {
        let functions = &mut config.functions;
        s.optional("listen", &mut functions.listen, value::address);
        s.read("region", &mut functions.region, value::region);
        s.read("account_id", &mut functions.account_id, value::account_id);
        s.read(
            "credentials",
            &mut functions.credentials,
            value::credentials,
        );
        let concurrency = value::whole(1..=1_000_000);
        s.read(
            "account_concurrency",
            &mut functions.account_concurrency,
            concurrency,
        );
        s.read("nats", &mut functions.nats, nats::servers);
        s.optional("memory", &mut functions.memory, value::guest_memory);
        let processes = value::whole(0..=100);
        s.read("processes", &mut functions.processes, processes);
        let pool = &mut functions.pool;
        let day = || value::seconds(0..=86_400);
        s.read("linger_seconds", &mut pool.linger, day());
        s.read("idle_timeout_seconds", &mut pool.idle_timeout, day());
        s.read("min_idle_seconds", &mut pool.shortest, day());
        s.read("break_even_seconds", &mut pool.break_even, day());
        s.read("spares", &mut pool.spares, value::whole(0..=100));
        let keys = s.has("credentials");
        if let Some(listen) = functions.listen.filter(|a| !a.ip().is_loopback() && !keys) {
            let why = format!("{listen} can be reached from other hosts, which needs credentials");
            s.problem("listen", &why);
        }
    });
    document.section("retention", |s| {
        let events = value::whole(100..=100_000_000);
        s.read("events", &mut config.retention.events, events);
    });
    config
}
