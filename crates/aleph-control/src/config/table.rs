//! A configuration in the form of its file.

use super::{
    ApiSection, Config, ExecutorSection, FunctionsSection, ImagesSection, LimitsSection,
    LogsSection, NetworkSection, NodeSection, RetentionSection, VolumesSection,
};
use aleph_executor::functions::PoolConfig;
use std::path::PathBuf;
use toml::{Table, Value};

impl Config {
    /// The configuration in the form of its file, with all defaults.
    ///
    /// ```
    /// # use aleph_control::Config;
    /// let table = Config::default().table();
    /// assert_eq!(table["limits"]["reserved_memory"].as_str(), Some("512m"));
    /// ```
    #[must_use]
    pub fn table(&self) -> Table {
        table(self)
    }
}

// All fields are named, so that none that is new can be left out.
fn table(config: &Config) -> Table {
    let Config {
        node: NodeSection { root },
        api:
            ApiSection {
                socket,
                socket_group,
                listen,
                tls,
                max_connections,
                drain,
            },
        executor:
            ExecutorSection {
                hypervisor,
                qemu,
                gpu,
                accelerator,
                boot_timeout,
                reclaim_after,
                firecracker,
            },
        network:
            NetworkSection {
                enabled,
                pool,
                ipv6,
                cool_down,
                connections,
                bandwidth,
                packet_rate,
            },
        limits:
            LimitsSection {
                overcommit,
                reserved_memory,
                pids,
            },
        logs: LogsSection {
            max_bytes,
            segments,
        },
        images:
            ImagesSection {
                mirrors,
                plain_http,
                max_unpacked,
                docker_config,
                certificates,
                account_registries,
            },
        volumes:
            VolumesSection {
                backend,
                thin_pool,
                encrypt,
                key_file,
                grace,
                count,
                size,
                backup_key,
                default_size,
            },
        functions:
            FunctionsSection {
                listen: functions_listen,
                region,
                account_id,
                credentials,
                account_concurrency,
                nats,
                memory,
                processes,
                pool:
                    PoolConfig {
                        linger,
                        idle_timeout,
                        shortest,
                        break_even,
                        spares,
                    },
            },
        retention: RetentionSection { events },
    } = config;
    let path = |path: &PathBuf| text(&path.display());
    let mirrors = mirrors
        .iter()
        .map(|(registry, urls)| (registry.clone(), texts(urls)));
    // Secrets are not shown. What is shown in their place is none, so that it is not taken for one.
    let keys = credentials.iter().map(|credential| {
        let key = [
            ("access_key_id", credential.access_key_id.as_str()),
            ("secret_access_key", ""),
            ("account", credential.account.as_str()),
        ];
        let key = key.map(|(name, value)| (name.to_owned(), text(&value)));
        Value::Table(key.into_iter().collect())
    });
    let keys = (!credentials.is_empty()).then(|| Value::Array(keys.collect()));
    let sections = [
        ("node", vec![("root", root.as_ref().map(path))]),
        (
            "api",
            vec![
                ("socket", socket.as_ref().map(path)),
                ("socket_group", Some(text(socket_group))),
                ("listen", listen.as_ref().map(text)),
                ("tls_cert", tls.as_ref().map(|tls| path(&tls.certificate))),
                ("tls_key", tls.as_ref().map(|tls| path(&tls.key))),
                ("max_connections", Some(number(*max_connections))),
                ("drain_seconds", Some(number(drain.as_secs()))),
            ],
        ),
        (
            "executor",
            vec![
                ("qemu", Some(super::qemu::shown(qemu, gpu))),
                ("hypervisor", Some(text(hypervisor))),
                ("accel", accelerator.as_ref().map(text)),
                ("boot_timeout_seconds", Some(number(boot_timeout.as_secs()))),
                (
                    "reclaim_after_seconds",
                    Some(number(reclaim_after.as_secs())),
                ),
                ("firecracker", Some(super::firecracker::shown(firecracker))),
            ],
        ),
        (
            "network",
            vec![
                ("enabled", enabled.map(Value::Boolean)),
                ("pool", Some(text(pool))),
                ("ipv6", Some(text(ipv6))),
                ("cool_down_seconds", Some(number(cool_down.as_secs()))),
                ("max_connections_per_vm", Some(number(*connections))),
                ("max_bandwidth_per_vm", bandwidth.as_ref().map(text)),
                ("max_packet_rate_per_vm", packet_rate.as_ref().map(text)),
            ],
        ),
        (
            "limits",
            vec![
                ("overcommit_cpus", Some(Value::Float(overcommit.cpus))),
                ("overcommit_memory", Some(Value::Float(overcommit.memory))),
                ("overcommit_disk", Some(Value::Float(overcommit.disk))),
                (
                    "reserved_memory",
                    Some(text(&format!("{}m", reserved_memory.0))),
                ),
                ("pids_per_vm", Some(number(*pids))),
            ],
        ),
        (
            "logs",
            vec![
                (
                    "max_bytes_per_job",
                    Some(text(&format!("{}m", max_bytes >> 20))),
                ),
                ("max_segments", Some(number(*segments))),
            ],
        ),
        (
            "images",
            vec![
                ("mirrors", Some(Value::Table(mirrors.collect()))),
                ("plain_http", Some(texts(plain_http))),
                ("max_unpacked", Some(text(&format!("{}m", max_unpacked.0)))),
                ("docker_config", docker_config.as_ref().map(path)),
                (
                    "certificates",
                    Some(Value::Array(certificates.iter().map(path).collect())),
                ),
                ("account_registries", Some(texts(account_registries))),
            ],
        ),
        (
            "volumes",
            vec![
                ("backend", Some(text(backend))),
                ("thin_pool", thin_pool.as_ref().map(text)),
                ("encrypt", Some(Value::Boolean(*encrypt))),
                ("key_file", key_file.as_ref().map(path)),
                ("grace_seconds", Some(number(grace.as_secs()))),
                ("max_per_account", count.map(number)),
                (
                    "max_size_per_account",
                    size.map(|size| text(&format!("{}m", size.0))),
                ),
                ("backup_key_file", backup_key.as_ref().map(path)),
                ("default_size", Some(text(&format!("{}m", default_size.0)))),
            ],
        ),
        (
            "functions",
            vec![
                ("listen", functions_listen.as_ref().map(text)),
                ("region", Some(text(region))),
                ("account_id", Some(text(account_id))),
                ("credentials", keys),
                ("account_concurrency", Some(number(*account_concurrency))),
                ("nats", (!nats.is_empty()).then(|| super::nats::shown(nats))),
                (
                    "memory",
                    memory.map(|memory| text(&format!("{}m", memory.0))),
                ),
                ("processes", Some(number(*processes))),
                ("linger_seconds", Some(number(linger.as_secs()))),
                ("idle_timeout_seconds", Some(number(idle_timeout.as_secs()))),
                ("min_idle_seconds", Some(number(shortest.as_secs()))),
                ("break_even_seconds", Some(number(break_even.as_secs()))),
                ("spares", Some(number(*spares))),
            ],
        ),
        ("retention", vec![("events", Some(number(*events)))]),
    ];
    let section = |(name, keys): (&str, Vec<(&str, Option<Value>)>)| {
        let keys = keys.into_iter();
        let keys = keys.filter_map(|(key, value)| Some((key.to_owned(), value?)));
        (name.to_owned(), Value::Table(keys.collect()))
    };
    sections.into_iter().map(section).collect()
}

fn text(value: &impl ToString) -> Value {
    Value::String(value.to_string())
}

fn texts(values: &[String]) -> Value {
    Value::Array(values.iter().map(text).collect())
}

fn number(value: impl TryInto<i64>) -> Value {
    // All limits of the configuration are far below that.
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let all = r#"
            [node]
            root = "/srv/aleph"
            [api]
            socket = "/run/a.sock"
            listen = "0.0.0.0:7400"
            tls_cert = "/etc/c.pem"
            tls_key = "/etc/k.pem"
            drain_seconds = 3
            [executor]
            hypervisor = "qemu"
            accel = "tcg"
            [executor.qemu]
            program = "/opt/qemu"
            enable_gpu = true
            gpu_devices = ["0000:18:00.0"]
            iommu_group = [14, 20]
            huge_pages = "2m"
            gpu_rom = false
            [executor.firecracker]
            jailed = false
            chroot_base = "/srv/jail"
            uid_range = "300000-400000"
            [limits]
            overcommit_cpus = 2
            reserved_memory = "1g"
            [logs]
            max_bytes_per_job = "20m"
            [images]
            mirrors = { "docker.io" = ["http://127.0.0.1:5000"] }
            plain_http = ["registry.local:5000"]
            docker_config = "/etc/aleph/docker.json"
            certificates = ["/etc/aleph/registry.pem"]
            account_registries = ["docker.io"]
            [volumes]
            backend = "lvm-thin"
            thin_pool = "vg0/volumes"
            encrypt = true
            key_file = "/etc/aleph/volumes.key"
            grace_seconds = 60
            max_per_account = 5
            max_size_per_account = "100g"
            backup_key_file = "/etc/aleph/backup.key"
            default_size = "1g"
            [functions]
            listen = "127.0.0.1:9000"
            region = "eu-west-3"
            account_id = "123456789012"
            account_concurrency = 10
            memory = "8g"
            processes = 0
            linger_seconds = 0
            idle_timeout_seconds = 60
            min_idle_seconds = 10
            break_even_seconds = 10
            spares = 0
        "#;
        for config in ["", all].map(|text| Config::check(text).unwrap()) {
            let shown = toml::to_string(&config.table()).unwrap();
            assert_eq!(Config::check(&shown), Ok(config), "{shown}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "[functions]\ncredentials = [{ access_key_id = 'AK', secret_access_key = \
                    'hidden', account = 'team' }]";
        let config = Config::check(text).unwrap();
        let shown = toml::to_string(&config.table()).unwrap();
        assert!(shown.contains("AK") && !shown.contains("hidden"), "{shown}");
        assert!(!format!("{config:?}").contains("hidden"));
        // Nobody signs with what is shown instead.
        assert!(Config::check(&shown).is_err());
    }
}
