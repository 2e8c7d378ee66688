use super::*;
use crate::lambda::{Credential, NatsServer};
use aleph_executor::Hypervisor;
use aleph_executor::accel::Accelerator;
use aleph_executor::firecracker::MemoryMode;
use aleph_executor::firecracker::jail::JailConfig;
use aleph_executor::functions::PoolConfig;
use aleph_executor::gpu::{Allowed, GpuConfig};
use aleph_executor::node::Overcommit;
use aleph_executor::volumes::BackendChoice;
use aleph_types::{HugePages, MiB};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn every_key_is_read() {
    let text = r#"
        [node]
        root = "/srv/aleph"
        [api]
        socket = "/run/a.sock"
        socket_group = "wheel"
        listen = "0.0.0.0:7400"
        tls_cert = "/etc/c.pem"
        tls_key = "/etc/k.pem"
        max_connections = 10
        drain_seconds = 3
        [executor]
        hypervisor = "firecracker"
        accel = "tcg"
        boot_timeout_seconds = 90
        reclaim_after_seconds = 0
        [executor.qemu]
        program = "/opt/qemu"
        enable_gpu = true
        gpu_devices = ["0000:18:00.0", "3a:00.0"]
        iommu_group = [14, 0x14]
        vfio_driver = "nvgrace_gpu_vfio_pci"
        huge_pages = "1g"
        gpu_rom = false
        [executor.firecracker]
        firecracker = "/opt/firecracker"
        jailer = "/opt/jailer"
        jailed = false
        uid_range = "200000-265535"
        chroot_base = "/srv/jail"
        memory = "prefetch"
        track_dirty_pages = true
        [network]
        enabled = false
        pool = "10.7.0.0/16"
        ipv6 = "2001:db8:7::/56"
        cool_down_seconds = 30
        max_connections_per_vm = 100
        max_bandwidth_per_vm = "sent=100M,received=1G"
        max_packet_rate_per_vm = "50k"
        [limits]
        overcommit_cpus = 2
        overcommit_memory = 1.5
        overcommit_disk = 0.5
        reserved_memory = "1g"
        pids_per_vm = 100
        [logs]
        max_bytes_per_job = "20m"
        max_segments = 4
        [images]
        mirrors = { "docker.io" = ["http://127.0.0.1:5000"] }
        plain_http = ["registry.local:5000"]
        max_unpacked = "5g"
        docker_config = "/etc/aleph/docker.json"
        certificates = ["/etc/aleph/registry.pem"]
        account_registries = ["docker.io", "registry.local:5000"]
        [volumes]
        backend = "lvm-thin"
        thin_pool = "vg0/volumes"
        encrypt = true
        key_file = "/etc/aleph/volumes.key"
        grace_seconds = 60
        max_per_account = 10
        max_size_per_account = "100g"
        backup_key_file = "/etc/aleph/backup.key"
        default_size = "1g"
        [functions]
        listen = "0.0.0.0:9000"
        region = "eu-central-1"
        account_id = "123456789012"
        credentials = [
            { access_key_id = "AKIDEXAMPLE", secret_access_key = "s/e+c", account = "team" },
        ]
        account_concurrency = 50
        nats = [{ server = "127.0.0.1:4222" }]
        memory = "6g"
        processes = 5
        linger_seconds = 3
        idle_timeout_seconds = 120
        min_idle_seconds = 30
        break_even_seconds = 900
        spares = 4
        [retention]
        events = 500
    "#;
    let config = Config::check(text).unwrap();
    let want = Config {
        node: NodeSection {
            root: Some("/srv/aleph".into()),
        },
        api: ApiSection {
            socket: Some("/run/a.sock".into()),
            socket_group: "wheel".into(),
            listen: Some("0.0.0.0:7400".parse().unwrap()),
            tls: Some(TlsFiles {
                certificate: "/etc/c.pem".into(),
                key: "/etc/k.pem".into(),
            }),
            max_connections: 10,
            drain: Duration::from_secs(3),
        },
        executor: ExecutorSection {
            qemu: "/opt/qemu".into(),
            gpu: GpuConfig {
                enabled: true,
                allowed: Allowed {
                    devices: Some(["18:00.0", "3a:00.0"].map(|at| at.parse().unwrap()).into()),
                    groups: Some([14, 20].into()),
                },
                driver: "nvgrace_gpu_vfio_pci".into(),
                huge_pages: Some(HugePages::Gib1),
                rom: false,
            },
            hypervisor: Hypervisor::Firecracker,
            accelerator: Some(Accelerator::Tcg),
            boot_timeout: Duration::from_secs(90),
            reclaim_after: Duration::ZERO,
            firecracker: JailConfig {
                firecracker: Some("/opt/firecracker".into()),
                jailer: Some("/opt/jailer".into()),
                jailed: false,
                uid_range: "200000-265535".parse().unwrap(),
                chroot_base: Some("/srv/jail".into()),
                memory: MemoryMode::of_name("prefetch").unwrap(),
                track_dirty_pages: true,
            },
        },
        network: NetworkSection {
            enabled: Some(false),
            pool: "10.7.0.0/16".parse().unwrap(),
            ipv6: "2001:db8:7::/56".parse().unwrap(),
            cool_down: Duration::from_secs(30),
            connections: 100,
            bandwidth: Some("sent=100M,received=1G".parse().unwrap()),
            packet_rate: Some("50k".parse().unwrap()),
        },
        limits: LimitsSection {
            overcommit: Overcommit {
                cpus: 2.0,
                memory: 1.5,
                disk: 0.5,
            },
            reserved_memory: MiB(1024),
            pids: 100,
        },
        logs: LogsSection {
            max_bytes: 20 << 20,
            segments: 4,
        },
        images: ImagesSection {
            mirrors: BTreeMap::from([("docker.io".into(), vec!["http://127.0.0.1:5000".into()])]),
            plain_http: vec!["registry.local:5000".into()],
            max_unpacked: MiB(5 * 1024),
            docker_config: Some("/etc/aleph/docker.json".into()),
            certificates: vec!["/etc/aleph/registry.pem".into()],
            account_registries: vec!["docker.io".into(), "registry.local:5000".into()],
        },
        volumes: VolumesSection {
            backend: BackendChoice::LvmThin,
            thin_pool: Some("vg0/volumes".parse().unwrap()),
            encrypt: true,
            key_file: Some("/etc/aleph/volumes.key".into()),
            grace: Duration::from_secs(60),
            count: Some(10),
            size: Some(MiB(100 * 1024)),
            backup_key: Some("/etc/aleph/backup.key".into()),
            default_size: MiB(1024),
        },
        functions: FunctionsSection {
            listen: Some("0.0.0.0:9000".parse().unwrap()),
            region: "eu-central-1".into(),
            account_id: "123456789012".into(),
            credentials: vec![Credential {
                access_key_id: "AKIDEXAMPLE".into(),
                secret_access_key: crate::lambda::Secret::new("s/e+c"),
                account: "team".into(),
            }],
            account_concurrency: 50,
            nats: vec![NatsServer {
                server: "127.0.0.1:4222".into(),
                ..NatsServer::default()
            }],
            memory: Some(MiB(6 * 1024)),
            processes: 5,
            pool: PoolConfig {
                linger: Duration::from_secs(3),
                idle_timeout: Duration::from_secs(120),
                shortest: Duration::from_secs(30),
                break_even: Duration::from_secs(900),
                spares: 4,
            },
        },
        retention: RetentionSection { events: 500 },
    };
    assert_eq!(config, want);
    let runtime = config.functions.runtime_config();
    assert_eq!(
        (runtime.memory, runtime.processes, runtime.pool),
        (Some(MiB(6 * 1024)), 5, want.functions.pool)
    );
}

#[test]
fn the_example_is_valid_and_says_the_defaults() {
    let text = include_str!("../../../../packaging/aleph.toml");
    assert_eq!(Config::check(text), Ok(Config::default()));
    // With its comments taken away, each line that shows a key sets its default.
    let keys: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = Config::check(&keys).unwrap();
    assert_eq!(config.limits, LimitsSection::default());
    assert_eq!(config.logs, LogsSection::default());
    assert_eq!(config.volumes, VolumesSection::default());
    assert_eq!(config.retention, RetentionSection::default());
    assert_eq!(config.executor.boot_timeout, Duration::from_secs(60));
    assert_eq!(config.executor.hypervisor, Hypervisor::Auto);
    let (shown, default) = (config.executor.firecracker, JailConfig::default());
    assert_eq!(shown.jailed, default.jailed);
    assert_eq!(shown.uid_range, default.uid_range);
}

#[test]
fn each_mistake_has_its_path() {
    for (text, path, says) in [
        ("x = 1", "x", "no such key"),
        ("[nod]", "nod", "did you mean \"node\"?"),
        ("node = 1", "node", "is an integer, and has to be a table"),
        (
            "[volumes]\nbackend = \"lvm-thin\"",
            "volumes.thin_pool",
            "has to be there for the back end lvm-thin",
        ),
        (
            "[volumes]\nthin_pool = \"pool\"",
            "volumes.thin_pool",
            "is not of the form GROUP/POOL",
        ),
        ("[node]\nroot = 5", "node.root", "has to be a string"),
        ("[node]\nroot = 'x'", "node.root", "absolute path"),
        ("[api]\nlisten = 'here'", "api.listen", "127.0.0.1:7400"),
        (
            "[api]\nlisten = '0.0.0.0:1'",
            "api.listen",
            "needs tls_cert",
        ),
        (
            "[api]\nlisten = '127.0.0.1:1'\ntls_cert = '/c'",
            "api.tls_cert",
            "needs tls_key",
        ),
        (
            "[api]\ntls_cert = '/c'\ntls_key = '/k'",
            "api.listen",
            "missing",
        ),
        (
            "[api]\nmax_connections = 0",
            "api.max_connections",
            "between 1 and 100000",
        ),
        (
            "[network]\nmax_bandwidth_per_vm = \"fast\"",
            "network.max_bandwidth_per_vm",
            "is no rate; write 100M",
        ),
        (
            "[network]\nmax_packet_rate_per_vm = \"sent=1G\"",
            "network.max_packet_rate_per_vm",
            "from 1 to 100M",
        ),
        (
            "[api]\nmax_connections = 1.5",
            "api.max_connections",
            "is a float",
        ),
        ("[api]\nsocket_group = ''", "api.socket_group", "group"),
        (
            "[executor]\nhypervisor = 'xen'",
            "executor.hypervisor",
            "write auto, qemu or firecracker",
        ),
        (
            "[executor.firecracker]\nuid_range = '1879048192-1879050000'",
            "executor.firecracker.uid_range",
            "VMs on QEMU",
        ),
        (
            "[executor]\naccel = 'magic'",
            "executor.accel",
            "write kvm or tcg",
        ),
        (
            "[executor]\nboot_timeout_seconds = -1",
            "executor.boot_timeout_seconds",
            "between",
        ),
        (
            "[executor.firecracker]\nuid_range = '0-10'",
            "executor.firecracker.uid_range",
            "below 1000",
        ),
        (
            "[executor.firecracker]\nuid_range = 5",
            "executor.firecracker.uid_range",
            "range of user ids",
        ),
        (
            "[executor.firecracker]\njailed = 'no'",
            "executor.firecracker.jailed",
            "true or false",
        ),
        (
            "[executor.firecracker]\nmemory = 'swap'",
            "executor.firecracker.memory",
            "prefetch",
        ),
        (
            "[executor.firecracker]\nchroot_base = 'jail'",
            "executor.firecracker.chroot_base",
            "absolute path",
        ),
        (
            "[executor.firecracker]\nuids = '1000-2000'",
            "executor.firecracker.uids",
            "no such key",
        ),
        (
            "[executor]\nfirecracker = 1",
            "executor.firecracker",
            "a table",
        ),
        (
            "[limits]\novercommit_cpus = 0",
            "limits.overcommit_cpus",
            "between",
        ),
        (
            "[limits]\nreserved_memory = '1x'",
            "limits.reserved_memory",
            "not a size",
        ),
        (
            "[limits]\nreserved_memory = 512",
            "limits.reserved_memory",
            "has to be a string",
        ),
        (
            "[logs]\nmax_bytes_per_job = '0'",
            "logs.max_bytes_per_job",
            "at least",
        ),
        (
            "[images]\nmirrors = { 'docker.io' = 'x' }",
            "images.mirrors.\"docker.io\"",
            "has to be a list",
        ),
        (
            "[images]\nmirrors = { 'docker.io' = ['ftp://x'] }",
            "images.mirrors.\"docker.io\"[0]",
            "http://",
        ),
        (
            "[images]\nplain_http = ['a', 1]",
            "images.plain_http[1]",
            "has to be a string",
        ),
        (
            "[images]\nmirrors = { 'docker.io' = ['http://mirror.example.org'] }",
            "images.mirrors.\"docker.io\"",
            "list its host in plain_http",
        ),
        (
            "[images]\nmirrors = { 'docker.io' = ['https://m.example.org/path'] }",
            "images.mirrors.\"docker.io\"",
            "more than that",
        ),
        (
            "[images]\nplain_http = ['-x']",
            "images.plain_http",
            "is no host",
        ),
        (
            "[images]\naccount_registries = ['docker.io', 'index.docker.io']",
            "images.account_registries[1]",
            "is written \"docker.io\"",
        ),
        (
            "[images]\naccount_registries = ['docker']",
            "images.account_registries[0]",
            "is no registry",
        ),
        (
            "[images]\ncertificates = ['x.pem']",
            "images.certificates[0]",
            "absolute path",
        ),
        (
            "[functions]\nlisten = '0.0.0.0:9000'",
            "functions.listen",
            "needs credentials",
        ),
        (
            "[functions]\nlisten = '0.0.0.0:9000'\ncredentials = []",
            "functions.credentials",
            "at least one",
        ),
        (
            "[functions]\naccount_id = '12'",
            "functions.account_id",
            "12 digits",
        ),
        (
            "[functions]\nmemory = '100m'",
            "functions.memory",
            "at least 128m",
        ),
        (
            "[functions]\nbreak_even_seconds = 86401",
            "functions.break_even_seconds",
            "between 0 and 86400",
        ),
        (
            "[functions]\nprocesses = 101",
            "functions.processes",
            "between 0 and 100",
        ),
        (
            "[functions]\nspares = -1",
            "functions.spares",
            "between 0 and 100",
        ),
        (
            "[functions]\nlinger_seconds = 86401",
            "functions.linger_seconds",
            "between 0 and 86400",
        ),
        (
            "[functions]\nregion = 'here'",
            "functions.region",
            "is no region",
        ),
        (
            "[functions]\ncredentials = [{ access_key_id = 'A', account = 'team' }]",
            "functions.credentials[0].secret_access_key",
            "is missing",
        ),
        (
            "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = '', account = 'team' }]",
            "functions.credentials[0].secret_access_key",
            "is empty",
        ),
        (
            "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'Team' }]",
            "functions.credentials[0].account",
            "cannot be an account's name",
        ),
        (
            "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'a', x = 1 }]",
            "functions.credentials[0].x",
            "no such key",
        ),
        (
            "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'a' }, { access_key_id = 'A', secret_access_key = 't', account = 'b' }]",
            "functions.credentials[1].access_key_id",
            "is there twice",
        ),
        ("[retention]\nevents = 1", "retention.events", "between"),
    ] {
        let problems = Config::check(text).unwrap_err();
        let [problem] = problems.as_slice() else {
            panic!("{text}: {problems:?}");
        };
        assert_eq!(problem.path, path, "{text}");
        assert!(problem.to_string().contains(says), "{problem}");
        assert!(problem.line.is_some(), "{text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "[api]\nlisten = 1\nsokcet = '/x'\n[executr]\n[limits]\npids_per_vm = 'many'\n";
    let problems = Config::check(text).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        ["api.listen", "api.sokcet", "executr", "limits.pids_per_vm"]
    );
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let problems = Config::check("[api]\nlisten = \n\n[node\n").unwrap_err();
    assert_eq!(problems[0].line, Some(2), "{problems:?}");
    assert!(problems.len() >= 2, "{problems:?}");
}
