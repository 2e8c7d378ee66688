//! Pulling a Debian image from a registry on this machine, beside skopeo and umoci.

use crate::Bench;
use crate::row::Row;
use aleph_image::oci::{PullOptions, Registries};
use aleph_image::{NoProgress, Recipe, Store};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MILLI: f64 = 1000.0;
const PAIRS: usize = 7;
/// The recipe's tree whole, as Debian's own image is, and cut by its top folders.
const LAYERS: [usize; 2] = [1, 4];

pub(crate) fn image(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.root.path().join("pulls");
    std::fs::create_dir_all(&dir)?;
    let registry = Registry::start(&dir)?;
    let tree = debian(&dir)?;
    let mut rows = Vec::new();
    for layers in LAYERS {
        let reference = format!("{}/debian:{layers}", registry.host);
        publish(
            &dir.join(format!("made-{layers}")),
            &tree,
            layers,
            &reference,
        )?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first of each fills caches, and does not count.
        for round in 0..=PAIRS {
            let by_tools = by_tools(&dir, &reference)?;
            let by_us = by_us(bench, &dir, &reference)?;
            if round > 0 {
                theirs.push(by_tools.as_secs_f64() * MILLI);
                ours.push(by_us.as_secs_f64() * MILLI);
            }
        }
        let name = match layers {
            1 => "pull of Debian 12, one layer, to a bootable image".to_owned(),
            n => format!("the same in {n} layers"),
        };
        rows.push(
            Row::new(name, "ms", &ours)
                .against("skopeo copy and umoci unpack", &theirs)
                .at_most_times(1.0),
        );
    }
    Ok(rows)
}

fn by_us(bench: &Bench, dir: &Path, reference: &str) -> Result<Duration> {
    let state = fresh(&dir.join("ours"))?;
    let nothing = dir.join("no-logins.json");
    std::fs::write(&nothing, "{}")?;
    let options = PullOptions {
        registries: Registries {
            docker_config: Some(nothing),
            ..Registries::default()
        },
        ..PullOptions::default()
    };
    let began = Instant::now();
    let store = Store::open(&state)?;
    let pulled = bench
        .runtime
        .block_on(store.pull(reference, &options, |_| {}))?;
    let took = began.elapsed();
    pulled.check()?;
    std::fs::remove_dir_all(&state)?;
    Ok(took)
}

fn by_tools(dir: &Path, reference: &str) -> Result<Duration> {
    let work = fresh(&dir.join("theirs"))?;
    let layout = work.join("layout").display().to_string();
    let bundle = work.join("bundle").display().to_string();
    let began = Instant::now();
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            &format!("docker://{reference}"),
            &format!("oci:{layout}:x"),
        ],
    )?;
    run(
        "umoci",
        &["unpack", "--image", &format!("{layout}:x"), &bundle],
    )?;
    let took = began.elapsed();
    std::fs::remove_dir_all(&work)?;
    Ok(took)
}

/// The tree of the recipe's image.
fn debian(dir: &Path) -> Result<std::path::PathBuf> {
    eprintln!("building Debian 12, which takes a minute or two");
    let image = Store::open(dir)?.build(Recipe::Debian12, &mut NoProgress)?;
    let tree = dir.join("tree");
    let rootfs = image.rootfs().display().to_string();
    run(
        "fsck.erofs",
        &[&format!("--extract={}", tree.display()), &rootfs],
    )?;
    Ok(tree)
}

/// Makes an image of a tree, in so many layers, with umoci, and copies it to the registry.
fn publish(work: &Path, tree: &Path, layers: usize, reference: &str) -> Result<()> {
    std::fs::create_dir_all(work)?;
    let layout = work.join("layout").display().to_string();
    let image = format!("{layout}:x");
    run("umoci", &["init", "--layout", &layout])?;
    run("umoci", &["new", "--image", &image])?;
    let mut tops: Vec<_> = std::fs::read_dir(tree.join("usr"))?
        .map(|entry| entry.map(|entry| format!("usr/{}", entry.file_name().to_string_lossy())))
        .collect::<std::io::Result<_>>()?;
    tops.sort();
    for layer in 0..layers {
        let bundle = work.join(format!("bundle-{layer}"));
        let root = bundle.join("rootfs");
        let at = bundle.display().to_string();
        run("umoci", &["unpack", "--image", &image, &at])?;
        // What this layer adds: everything beside /usr first, then shares of /usr.
        let mut copy = Command::new("cp");
        copy.arg("-a").arg("--parents");
        copy.current_dir(tree);
        if layers == 1 {
            copy.arg(".");
        } else if layer == 0 {
            for entry in std::fs::read_dir(tree)? {
                let name = entry?.file_name();
                if name != "usr" {
                    copy.arg(name);
                }
            }
        } else {
            copy.args(tops.iter().skip(layer - 1).step_by(layers - 1));
        }
        let copied = copy.arg(&root).status()?;
        ensure!(copied.success(), "cp: {copied}");
        run("umoci", &["repack", "--image", &image, &at])?;
        std::fs::remove_dir_all(&bundle)?;
    }
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            &format!("oci:{image}"),
            &format!("docker://{reference}"),
        ],
    )
}

fn fresh(dir: &Path) -> Result<std::path::PathBuf> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    Ok(dir.to_owned())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} is not there: setup/packages installs it"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(())
}

/// Debian's docker-registry, until the bench ends.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0")?;
        let host = free.local_addr()?.to_string();
        drop(free);
        let config = dir.join("registry.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
                 storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
                dir.join("registry").display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry is not there: setup/packages installs it")?;
        let registry = Self { child, host };
        wait_until("the registry", Duration::from_secs(20), || {
            TcpStream::connect(&registry.host).ok()
        });
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
