//! Figures for Prometheus.
//!
//! What the API does is counted as it happens. What the node and its jobs have is read when it
//! is asked for, so that the figures of a job vanish with it.

use crate::server::Service;
use aleph_types::{JobStats, NodeInfo, NodeResources};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// The form of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;
type Latencies = Family<Labels, Histogram, fn() -> Histogram>;

/// What is counted. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Labels, Counter>,
    latencies: Latencies,
    /// Clients that are connected.
    pub connections: Gauge,
    /// Clients that were sent away because there were too many.
    pub refused: Counter,
}

/// From a tenth of a millisecond to ten seconds.
fn latency() -> Histogram {
    Histogram::new([
        0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("aleph");
        let requests = Family::default();
        let latencies = Latencies::new_with_constructor(latency);
        let connections = Gauge::default();
        let refused = Counter::default();
        registry.register("api_requests", "Requests", requests.clone());
        registry.register(
            "api_request_seconds",
            "Time until a request's answer began",
            latencies.clone(),
        );
        registry.register(
            "api_connections",
            "Clients that are connected",
            connections.clone(),
        );
        registry.register(
            "api_connections_refused",
            "Clients that were sent away because there were too many",
            refused.clone(),
        );
        Self {
            registry: Arc::new(registry),
            requests,
            latencies,
            connections,
            refused,
        }
    }
}

impl Metrics {
    /// All figures as text, with those of functions where there are any.
    ///
    /// # Errors
    /// None: a text can always be written to.
    pub fn text(
        &self,
        node: &NodeInfo,
        jobs: &[JobStats],
        functions: Option<&Registry>,
    ) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &of_node(node))?;
        encode_registry(&mut text, &of_jobs(jobs))?;
        if let Some(functions) = functions {
            encode_registry(&mut text, functions)?;
        }
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn of_node(node: &NodeInfo) -> Registry {
    let mut registry = Registry::with_prefix("aleph");
    let jobs = Family::<Labels, FloatGauge>::default();
    for (state, count) in &node.jobs {
        jobs.get_or_create(&vec![("state", state.clone())])
            .set(float(*count));
    }
    registry.register("jobs", "Jobs by state", jobs);
    let resources = Family::<Labels, FloatGauge>::default();
    let parts = [
        ("total", node.total),
        ("allocatable", node.allocatable),
        ("allocated", node.allocated),
    ];
    for (part, NodeResources { cpus, memory, disk }) in parts {
        let figures = [
            ("cpus", f64::from(cpus)),
            ("memory_bytes", float(memory.bytes())),
            ("disk_bytes", float(disk.bytes())),
        ];
        for (resource, figure) in figures {
            let labels = vec![("part", part.to_owned()), ("resource", resource.to_owned())];
            resources.get_or_create(&labels).set(figure);
        }
    }
    let help = "What the node has, may give away and has given away";
    registry.register("node_resources", help, resources);
    let uptime = FloatGauge::default();
    uptime.set(float(node.uptime_seconds));
    registry.register("node_uptime_seconds", "How long the daemon has run", uptime);
    registry
}

fn of_jobs(jobs: &[JobStats]) -> Registry {
    type Read = fn(&JobStats) -> f64;
    const FIGURES: [(&str, &str, Read); 5] = [
        (
            "job_cpu_seconds",
            "Processor time of a job's VM since it started",
            |job| float(job.cpu_usec) / 1e6,
        ),
        (
            "job_memory_bytes",
            "Memory of a job's VM, its VMM included",
            |job| float(job.memory_bytes),
        ),
        (
            "job_memory_limit_bytes",
            "Memory that a job's guest may use",
            |job| float(job.memory_limit_bytes),
        ),
        (
            "job_io_read_bytes",
            "Bytes read from a job's disks",
            |job| float(job.io_read_bytes),
        ),
        (
            "job_io_write_bytes",
            "Bytes written to a job's disks",
            |job| float(job.io_write_bytes),
        ),
    ];
    let mut registry = Registry::with_prefix("aleph");
    for (name, help, read) in FIGURES {
        let family = Family::<Labels, FloatGauge>::default();
        for job in jobs {
            let labels = vec![("id", job.id.to_string()), ("name", job.name.clone())];
            family.get_or_create(&labels).set(read(job));
        }
        registry.register(name, help, family);
    }
    of_networks(&mut registry, jobs);
    of_vmms(&mut registry, jobs);
    registry
}

/// Only jobs that have a network have these.
fn of_networks(registry: &mut Registry, jobs: &[JobStats]) {
    let through = Family::<Labels, FloatGauge>::default();
    let packets = Family::<Labels, FloatGauge>::default();
    let dropped = Family::<Labels, FloatGauge>::default();
    for job in jobs {
        let Some(network) = &job.network else {
            continue;
        };
        let labels = |key, value: &str| {
            vec![
                ("id", job.id.to_string()),
                ("name", job.name.clone()),
                (key, value.to_owned()),
            ]
        };
        let ways = [
            ("sent", network.sent_bytes, network.sent_packets),
            ("received", network.received_bytes, network.received_packets),
        ];
        for (way, bytes, count) in ways {
            let labels = labels("direction", way);
            through.get_or_create(&labels).set(float(bytes));
            packets.get_or_create(&labels).set(float(count));
        }
        for (reason, count) in &network.dropped {
            dropped
                .get_or_create(&labels("reason", reason))
                .set(float(*count));
        }
    }
    let help = "Bytes that a job's guest sent and received";
    registry.register("job_network_bytes", help, through);
    let help = "Packets that a job's guest sent and received";
    registry.register("job_network_packets", help, packets);
    let help = "Packets of a job that the node's rules dropped";
    registry.register("job_network_dropped_packets", help, dropped);
}

/// Only jobs whose VMM counts have these. The names are the VMM's.
fn of_vmms(registry: &mut Registry, jobs: &[JobStats]) {
    let figures = Family::<Labels, FloatGauge>::default();
    for job in jobs {
        for (figure, number) in job.vmm.iter().flatten() {
            let labels = vec![
                ("id", job.id.to_string()),
                ("name", job.name.clone()),
                ("figure", figure.clone()),
            ];
            figures.get_or_create(&labels).set(float(*number));
        }
    }
    let help = "What the VMM of a job counts of itself, by the VMM's names";
    registry.register("job_vmm", help, figures);
}

/// Prometheus knows floats only; what is lost beyond 2⁵³ does not matter to a graph.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

/// The layer that counts requests, by route and not by path, so that there are few series.
pub(crate) async fn measure(
    State(service): State<Service>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    // Any word can be a method; what no route takes is counted as one.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let response = next.run(request).await;
    let metrics = &service.metrics;
    let mut labels = vec![("method", method), ("route", route)];
    let latency = metrics.latencies.get_or_create(&labels);
    latency.observe(began.elapsed().as_secs_f64());
    drop(latency);
    labels.push(("status", response.status().as_u16().to_string()));
    metrics.requests.get_or_create(&labels).inc();
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{JobId, MiB, NodeId};

    #[test]
    fn figures_of_jobs_are_there_and_vanish_with_them() {
        let resources = NodeResources {
            cpus: 2,
            memory: MiB(1),
            disk: MiB(2),
        };
        let node = NodeInfo {
            id: NodeId::from_bits(1),
            version: "1".into(),
            hostname: "h".into(),
            kernel: "k".into(),
            driver: "qemu/tcg".into(),
            total: resources,
            allocatable: resources,
            allocated: resources,
            jobs: [("running".to_owned(), 3)].into(),
            uptime_seconds: 5,
        };
        let job = JobStats {
            id: JobId::from_bits(7),
            name: "web".into(),
            cpu_usec: 1_500_000,
            cpus: 0.5,
            memory_bytes: 10,
            memory_limit_bytes: 20,
            guest_processes: None,
            guest_memory_bytes: None,
            io_read_bytes: 0,
            io_write_bytes: 0,
            network: None,
            vmm: Some([("net_eth0.rx_bytes_count".to_owned(), 1500)].into()),
            source: "proc".into(),
        };
        let metrics = Metrics::default();
        let labels = vec![("method", "GET".to_owned()), ("route", "/x".to_owned())];
        metrics.latencies.get_or_create(&labels).observe(0.002);
        let text = metrics.text(&node, &[job], None).unwrap();
        for line in [
            "aleph_jobs{state=\"running\"} 3.0",
            "aleph_node_resources{part=\"total\",resource=\"memory_bytes\"} 1048576.0",
            "aleph_job_cpu_seconds{id=\"0x00000000000000000000000000000007\",name=\"web\"} 1.5",
            "aleph_job_vmm{id=\"0x00000000000000000000000000000007\",name=\"web\",\
             figure=\"net_eth0.rx_bytes_count\"} 1500.0",
            "aleph_api_request_seconds_count{method=\"GET\",route=\"/x\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!metrics.text(&node, &[], None).unwrap().contains("web"));
    }
}
