//! The flags that describe a job.

use super::{environment, term};
use crate::duration::{duration, whole_seconds};
use crate::output::Advised;
use aleph_types::{
    BothWays, Egress, GpuRequest, HealthCheck, JobSpec, MiB, NetworkMode, PortForward, Probe,
    PullPolicy, Restart, VolumeMount, signal,
};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// What a job is like, where it differs from its file or from the defaults.
#[derive(Debug, Clone, Default, clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct JobFlags {
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Remove the job, with its logs, once it has ended
    #[arg(long)]
    pub(crate) rm: bool,

    /// A name for the job [default: one is made up]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Set an environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Working directory in the guest [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User in the guest: name or uid, optionally with :group [default: the image's]
    #[arg(short, long)]
    user: Option<String>,

    /// The program that gets the command, instead of the image's; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// The guest's hostname [default: job- and the job's short id]
    #[arg(long)]
    hostname: Option<String>,

    /// Set a label, for filters
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,

    /// Number of CPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u16>,

    /// Memory, such as 512m or 2g [default: 128m]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MiB>,

    /// GPUs of the node's host: type=h200,vram=80G,count=2, each left out or not; or how many
    #[arg(long, value_name = "GPUS")]
    gpus: Option<GpuRequest>,

    /// Size of a disk for what the guest writes, such as 10g [default: writes go to its memory]
    #[arg(long, value_name = "SIZE")]
    disk: Option<MiB>,

    /// Processes and threads that the VMM may have on the host [default: the node's limit]
    #[arg(long, value_name = "N")]
    pids_limit: Option<u32>,

    /// Give the guest a volume at this path, made where it is missing; options are ro, size=20G and fs=xfs
    #[arg(short, long, value_name = "VOLUME:PATH[:OPTIONS]")]
    volume: Vec<VolumeMount>,

    /// Let a port of the host lead to one of the guest; the node picks one where none is named
    #[arg(short, long, value_name = "[[ADDRESS:]HOST:]GUEST[/udp]")]
    pub(crate) publish: Vec<PortForward>,

    /// nat, none, or private:NAME, whose jobs reach each other [default: the node's]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<NetworkMode>,

    /// Let the guest connect to this alone: 192.0.2.0/24, x.org, *.x.org; none for nothing
    #[arg(long, value_name = "TARGET")]
    egress: Vec<String>,

    /// How many bits a second it may send and receive: 100M, or sent=10M,received=1G
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<BothWays>,

    /// How many packets a second it may send and receive: 100k, or sent=10k,received=1M
    #[arg(long, value_name = "RATE")]
    packet_rate: Option<BothWays>,

    /// Start it again after it ended: no, on-failure, on-failure:TIMES, unless-stopped or always
    #[arg(long, value_name = "POLICY", value_parser = restart, conflicts_with = "rm")]
    restart: Option<RestartWord>,

    /// Stop it after this time, such as 10m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,

    /// The signal that asks the command to stop [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal_name)]
    stop_signal: Option<String>,

    /// Seconds between the signal that asks the command to stop and SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    stop_timeout: Option<Duration>,

    /// Fetch the image: missing, always or never [default: missing]
    #[arg(long, value_name = "WHEN", value_parser = pull)]
    pub(crate) pull: Option<PullPolicy>,

    /// A command line that succeeds while the job is healthy; /bin/sh runs it in the guest
    #[arg(long, value_name = "COMMAND", group = "probe")]
    health_cmd: Option<String>,

    /// A port of the guest that accepts connections while the job is healthy
    #[arg(long, value_name = "PORT", group = "probe", value_parser = clap::value_parser!(u16).range(1..))]
    health_tcp: Option<u16>,

    /// A port and path of the guest that answer by HTTP while the job is healthy
    #[arg(long, value_name = "PORT[/PATH]", group = "probe", value_parser = http)]
    health_http: Option<HttpWord>,

    /// The time between two checks of health [default: 10s]
    #[arg(long, value_name = "TIME", requires = "probe", value_parser = duration)]
    health_interval: Option<Duration>,

    /// How long a check may take [default: 5s]
    #[arg(long, value_name = "TIME", requires = "probe", value_parser = duration)]
    health_timeout: Option<Duration>,

    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "N", requires = "probe")]
    health_retries: Option<u32>,

    /// How long after its start failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", requires = "probe", value_parser = duration)]
    health_start_period: Option<Duration>,
}

/// Where an HTTP probe asks, as a word.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HttpWord(u16, String);

fn http(text: &str) -> Result<HttpWord, String> {
    let (port, path) = match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, "/"),
    };
    match port.parse() {
        Ok(port) if port > 0 => Ok(HttpWord(port, path.to_owned())),
        _ => Err(format!(
            "{text:?} does not begin with a port, such as 8080/healthz"
        )),
    }
}

/// A restart policy as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RestartWord(Restart, Option<u32>);

fn restart(text: &str) -> Result<RestartWord, String> {
    let wrong = || {
        format!("{text:?} is none of no, on-failure, on-failure:TIMES, unless-stopped and always")
    };
    match text.split_once(':') {
        Some(("on-failure", times)) => {
            let times = times.parse().map_err(|_| wrong())?;
            Ok(RestartWord(Restart::OnFailure, Some(times)))
        }
        Some(_) => Err(wrong()),
        None => {
            let policy = match text {
                "no" => Restart::No,
                "on-failure" => Restart::OnFailure,
                "unless-stopped" => Restart::UnlessStopped,
                "always" => Restart::Always,
                _ => return Err(wrong()),
            };
            Ok(RestartWord(policy, None))
        }
    }
}

fn pull(text: &str) -> Result<PullPolicy, String> {
    match text {
        "missing" => Ok(PullPolicy::Missing),
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        _ => Err(format!("{text:?} is none of missing, always and never")),
    }
}

fn signal_name(text: &str) -> Result<String, String> {
    match signal::number(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("{text:?} is no signal: write a name or a number")),
    }
}

impl JobFlags {
    /// Lays the flags over a specification.
    pub(crate) fn apply(&self, job: &mut JobSpec) -> Result<()> {
        let set = |to: &mut Option<String>, from: &Option<String>| {
            if from.is_some() {
                to.clone_from(from);
            }
        };
        job.stdin |= self.interactive;
        job.tty |= self.tty;
        job.auto_destroy |= self.rm;
        set(&mut job.name, &self.name);
        set(&mut job.workdir, &self.workdir);
        set(&mut job.user, &self.user);
        set(&mut job.hostname, &self.hostname);
        set(&mut job.stop_signal, &self.stop_signal);
        job.env.extend(environment(&self.env_file, &self.env)?);
        if job.tty {
            job.env.entry("TERM".into()).or_insert_with(term);
        }
        if let Some(program) = &self.entrypoint {
            let words = [program].into_iter().filter(|word| !word.is_empty());
            job.entrypoint = Some(words.cloned().collect());
        }
        for label in &self.label {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            job.labels.insert(key.to_owned(), value.to_owned());
        }
        let resources = &mut job.resources;
        resources.cpus = self.cpus.unwrap_or(resources.cpus);
        resources.memory = self.memory.unwrap_or(resources.memory);
        resources.disk = self.disk.unwrap_or(resources.disk);
        resources.pids = self.pids_limit.or(resources.pids);
        if self.gpus.is_some() {
            job.gpus.clone_from(&self.gpus);
        }
        if let Some(RestartWord(policy, times)) = self.restart {
            job.restart.policy = policy;
            job.restart.max_retries = times;
        }
        if let Some(deadline) = self.deadline {
            job.deadline_seconds = Some(whole_seconds(deadline));
        }
        if let Some(grace) = self.stop_timeout {
            job.stop_grace_seconds = seconds("--stop-timeout", grace)?;
        }
        job.pull = self.pull.unwrap_or(job.pull);
        job.volumes.extend(self.volume.iter().cloned());
        self.apply_network(job)?;
        self.apply_health(job)
    }

    fn apply_network(&self, job: &mut JobSpec) -> Result<()> {
        let network = &mut job.network;
        network.ports.extend(&self.publish);
        if self.network.is_some() {
            network.mode.clone_from(&self.network);
        }
        match &self.egress[..] {
            [] => {}
            [none] if none == "none" => network.egress = Egress::Deny,
            targets => {
                let targets: Result<_, _> = targets.iter().map(|text| text.parse()).collect();
                network.egress = Egress::Only(targets?);
            }
        }
        network.limits = network
            .limits
            .with_bandwidth(self.bandwidth.unwrap_or_default())
            .with_packet_rate(self.packet_rate.unwrap_or_default());
        Ok(())
    }

    fn apply_health(&self, job: &mut JobSpec) -> Result<()> {
        let probe = match (&self.health_cmd, self.health_tcp, &self.health_http) {
            (Some(line), ..) => Probe::Exec(["/bin/sh", "-c", line].map(str::to_owned).into()),
            (_, Some(port), _) => Probe::Tcp { port },
            (.., Some(HttpWord(port, path))) => Probe::Http {
                port: *port,
                path: path.clone(),
            },
            (None, None, None) => return Ok(()),
        };
        let span = |flag, given: Option<Duration>, otherwise| match given {
            Some(span) => seconds(flag, span),
            None => Ok(otherwise),
        };
        job.health = Some(HealthCheck {
            probe,
            interval_seconds: span("--health-interval", self.health_interval, 10)?,
            timeout_seconds: span("--health-timeout", self.health_timeout, 5)?,
            retries: self.health_retries.unwrap_or(3),
            start_period_seconds: span("--health-start-period", self.health_start_period, 0)?,
            restart_unhealthy: false,
        });
        Ok(())
    }
}

fn seconds(flag: &str, span: Duration) -> Result<u32> {
    u32::try_from(whole_seconds(span)).map_err(|_| {
        Advised {
            what: format!("{flag} is longer than a node can count"),
            advice: "Ask for less.".into(),
        }
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        job: JobFlags,
    }

    fn spec(words: &[&str]) -> JobSpec {
        let words = ["run"].iter().chain(words);
        let mut spec = JobSpec::new("busybox", vec!["true".into()]);
        Words::try_parse_from(words)
            .unwrap()
            .job
            .apply(&mut spec)
            .unwrap();
        spec
    }

    #[test]
    fn no_flag_changes_nothing() {
        assert_eq!(spec(&[]), JobSpec::new("busybox", vec!["true".into()]));
    }

    #[test]
    fn flags_are_dockers() {
        let spec = spec(&[
            "--name=web",
            "-e",
            "A=1",
            "-w",
            "/srv",
            "-u",
            "1000:50",
            "--entrypoint",
            "/bin/x",
            "-l",
            "tier=front",
            "--label",
            "seen",
            "--cpus=2",
            "-m",
            "1g",
            "--disk=4g",
            "--gpus=type=h200,vram=80G,count=2",
            "--restart",
            "on-failure:5",
            "--stop-signal=SIGINT",
            "--stop-timeout=30",
            "--pull=always",
            "--health-cmd",
            "wget -q localhost",
            "--health-interval=1500ms",
            "--health-retries=7",
            "--deadline=1h",
            "-p",
            "8080:80",
            "--publish=127.0.0.1:5353:53/udp",
            "--network=private:db",
            "--egress=192.0.2.0/24",
            "--egress=*.Example.com",
            "--bandwidth=sent=10M,received=1g",
            "--packet-rate=100k",
            "-v",
            "data:/srv",
            "--volume=keys:/etc/keys:ro",
            "-v=cache:/cache:size=1g",
        ]);
        assert_eq!(spec.validate(), Ok(()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&spec).unwrap());
    }

    #[test]
    fn health_is_looked_at_in_one_way() {
        let probe = |words: &[&str]| spec(words).health.unwrap().probe;
        assert_eq!(probe(&["--health-tcp=80"]), Probe::Tcp { port: 80 });
        for (word, path) in [("8080", "/"), ("8080/up?a=b", "/up?a=b")] {
            let path = path.to_owned();
            let want = Probe::Http { port: 8080, path };
            assert_eq!(probe(&["--health-http", word]), want);
        }
        for words in [
            &["run", "--health-tcp=0"][..],
            &["run", "--health-http=/x"],
            &["run", "--health-tcp=1", "--health-cmd=true"],
            &["run", "--health-retries=1"],
        ] {
            assert!(Words::try_parse_from(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn an_empty_entrypoint_takes_the_images_away() {
        assert_eq!(spec(&["--entrypoint", ""]).entrypoint, Some(vec![]));
    }

    #[test]
    fn a_terminal_is_named_unless_it_is_named_already() {
        assert!(spec(&["-t"]).env.contains_key("TERM"));
        assert_eq!(spec(&["-t", "-e", "TERM=dumb"]).env["TERM"], "dumb");
    }
}
