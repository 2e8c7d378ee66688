//! Functions with real VMs: a runtime of shell, and what becomes of its events.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod function_world;

use aleph_executor::functions::{
    Code, Concurrency, Deployment, FunctionError, FunctionsConfig, InvokeError, Isolation,
    PoolConfig, Runner, Temperature, Throttle,
};
use aleph_types::{ErrorClass, MiB};
use anyhow::{Context, Result, ensure};
use function_world::{Program, World, log, open, pool, text};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A runtime in shell: `handle` gets the event as $1 and prints the answer.
const RUNTIME: &str = r#"
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
started=$(cat /proc/sys/kernel/random/uuid)
echo "initialised with $GREETING" >&2
. /var/task/init.sh
while :; do
  event=$(wget -q -S -O - $api/invocation/next 2>/tmp/headers) || exit 9
  id=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  deadline=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Dd]eadline-[Mm]s: *//p' /tmp/headers | tr -d '\r')
  echo "event $event" >&2
  case $event in
    '"exit"') exit 3 ;;
    '"hang"') sleep 1000 ;;
    '"fail"') wget -q -O - --post-data '{"errorType":"Oops","errorMessage":"as asked"}' $api/invocation/$id/error >/dev/null; continue ;;
    '"who"') answer="$(hostname) $(cat /etc/machine-id /run/aleph/generation | tr '\n' ' ') $(cat /proc/sys/kernel/random/uuid) $started" ;;
    '"clock"') answer="$(date +%s) $deadline" ;;
    '"sleep"') sleep 1; answer=slept ;;
    *) answer=$event ;;
  esac
  wget -q -O - --post-data "$answer" $api/invocation/$id/response >/dev/null
done
"#;

/// One that needs no code beside its image.
const IMAGE_RUNTIME: &str = r#"
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
while :; do
  event=$(wget -q -S -O - $api/invocation/next 2>/tmp/headers) || exit 9
  id=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  wget -q -O - --post-data "$event" $api/invocation/$id/response >/dev/null
done
"#;

async fn world(config: FunctionsConfig) -> Result<World> {
    with_init(config, "").await
}

async fn with_init(config: FunctionsConfig, init: &str) -> Result<World> {
    let program = Program {
        files: &[("init.sh", init.as_bytes())],
        command: &["sh", "-c", RUNTIME],
    };
    World::new(config, &program).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_to_a_clone_and_its_answer_comes_back() -> Result<()> {
    let config = FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    world
        .runtime
        .prepare(Arc::new(world.deployment.clone()))
        .await
        .map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
    let cold = world.invoke("{\"n\":1}").await?;
    assert_eq!(text(&cold), "{\"n\":1}");
    assert_eq!((cold.temperature, cold.error), (Temperature::Cold, None));
    // What it wrote may come too late for its log where the machine is busy.
    let mut is_logged = log(&cold).contains("event {\"n\":1}\n");
    assert!(
        !log(&cold).contains("initialised"),
        "what the template wrote is not written again"
    );
    for n in 2..12 {
        let event = format!("{{\"n\":{n}}}");
        let hot = world.invoke(&event).await?;
        assert_eq!((text(&hot), hot.temperature), (event, Temperature::Hot));
        eprintln!("{:?}", hot.timings);
    }
    eprintln!("{:?}", cold.timings);
    let failed = world.invoke("\"fail\"").await?;
    assert_eq!(failed.error, Some(FunctionError::Unhandled));
    assert!(text(&failed).contains("as asked"));
    let clock = text(&world.invoke("\"clock\"").await?);
    let (now, deadline) = clock.split_once(' ').context("two times")?;
    let (now, deadline): (u64, u64) = (now.parse()?, deadline.parse()?);
    let host = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
    assert!(host.as_secs().abs_diff(now) <= 5, "{clock}");
    assert!((deadline / 1000).abs_diff(now + 30) <= 5, "{clock}");
    for _ in 0..5 {
        let exited = world.invoke("\"exit\"").await?;
        assert_eq!(exited.error, Some(FunctionError::Unhandled));
        assert!(
            text(&exited).contains("Runtime.ExitError"),
            "{}",
            text(&exited)
        );
        let next = world.invoke("\"next\"").await?;
        assert_eq!(
            (text(&next).as_str(), next.temperature),
            ("\"next\"", Temperature::Cold)
        );
        is_logged |= log(&next).contains("event \"next\"\n");
        if is_logged {
            break;
        }
    }
    assert!(is_logged, "no log has what a cold clone wrote");
    world.end().await
}

/// Of clones of one template, no two have anything in common that tells one machine from another,
/// or that a program could draw.
#[tokio::test(flavor = "multi_thread")]
async fn no_two_clones_share_what_is_ones_own() -> Result<()> {
    const CLONES: usize = 50;
    let config = FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    let deployment = Deployment {
        isolation: Isolation::Invocation,
        ..world.deployment.clone()
    };
    let mut seen: [BTreeSet<String>; 4] = Default::default();
    let mut started = BTreeSet::new();
    for _ in 0..CLONES {
        let answer = world
            .invoke_as(&deployment, Concurrency::default(), "\"who\"")
            .await?;
        assert_eq!(
            (answer.temperature, answer.error),
            (Temperature::Cold, None)
        );
        let answer = text(&answer);
        let words: Vec<&str> = answer.split_whitespace().collect();
        ensure!(words.len() == 5, "{answer}");
        for (known, word) in seen.iter_mut().zip(&words) {
            assert!(known.insert((*word).to_owned()), "{word} comes twice");
        }
        started.insert(words[4].to_owned());
    }
    assert_eq!(started.len(), 1, "all are of one template");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_too_long_is_destroyed_and_costs_no_other() -> Result<()> {
    let config = FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    let deployment = Deployment {
        timeout: Duration::from_secs(10),
        ..world.deployment.clone()
    };
    let call = |event: &'static str| {
        let (world, deployment) = (&world, &deployment);
        async move {
            let concurrency = Concurrency {
                reserved: Some(2),
                ..Concurrency::default()
            };
            world.invoke_as(deployment, concurrency, event).await
        }
    };
    call("\"warm\"").await?;
    let (hung, fine) = tokio::join!(call("\"hang\""), call("\"fine\""));
    let hung = hung?;
    assert_eq!(hung.error, Some(FunctionError::Unhandled));
    assert!(text(&hung).contains("Sandbox.Timedout"), "{}", text(&hung));
    assert!(log(&hung).contains("Status: timeout"), "{}", log(&hung));
    assert_eq!(text(&fine?), "\"fine\"");
    let (one, two, three) = tokio::join!(call("\"sleep\""), call("\"sleep\""), call("\"sleep\""));
    let throttled = [one, two, three]
        .into_iter()
        .filter(|outcome| {
            matches!(
                outcome,
                Err(InvokeError::Throttled {
                    by: Throttle::Function,
                    ..
                })
            )
        })
        .count();
    assert_eq!(throttled, 1);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_clones_are_paused_and_go_on_and_go_in_the_end() -> Result<()> {
    let config = FunctionsConfig {
        pool: PoolConfig {
            linger: Duration::ZERO,
            idle_timeout: Duration::from_secs(3600),
            spares: 0,
            ..PoolConfig::default()
        },
        // Room for two clones.
        memory: Some(MiB(256)),
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    world.invoke("1").await?;
    let warm = wait_for(|| async {
        let again = world.invoke("\"clock\"").await?;
        Ok((again.temperature == Temperature::Warm).then_some(again))
    })
    .await?;
    let clock = text(&warm);
    let now: u64 = clock.split(' ').next().context("a time")?.parse()?;
    let host = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
    assert!(
        host.as_secs().abs_diff(now) <= 5,
        "a paused clone's clock is set: {clock}"
    );
    // One of another function takes the place of one that is idle.
    let other = Deployment {
        function: "other".into(),
        ..world.deployment.clone()
    };
    let concurrency = Concurrency::default();
    let (one, two) = tokio::join!(
        world.invoke_as(&other, concurrency, "\"sleep\""),
        world.invoke_as(&other, concurrency, "\"sleep\""),
    );
    assert_eq!(
        (text(&one?).as_str(), text(&two?).as_str()),
        ("slept", "slept")
    );
    let cold = world.invoke("2").await?;
    assert_eq!(cold.temperature, Temperature::Cold);
    world.end().await
}

/// An invocation that wants a clone of its own meets one that was made since the last.
#[tokio::test(flavor = "multi_thread")]
async fn where_events_come_a_clone_is_made_ahead() -> Result<()> {
    let config = FunctionsConfig {
        pool: PoolConfig {
            spares: 1,
            ..PoolConfig::default()
        },
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    let deployment = Deployment {
        isolation: Isolation::Invocation,
        ..world.deployment.clone()
    };
    let concurrency = Concurrency::default();
    let first = world.invoke_as(&deployment, concurrency, "1").await?;
    assert_eq!(first.temperature, Temperature::Cold);
    let ahead = wait_for(|| async {
        let next = world.invoke_as(&deployment, concurrency, "2").await?;
        Ok((next.temperature != Temperature::Cold).then_some(next))
    });
    assert_eq!(text(&ahead.await?), "2");
    world.end().await
}

async fn wait_for<T, F>(mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    for _ in 0..1200 {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("it never came to be")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_does_not_initialise_says_why() -> Result<()> {
    let init = "echo no such module >&2; exit 7";
    let world = with_init(FunctionsConfig::default(), init).await?;
    let deployment = Arc::new(world.deployment.clone());
    let problem = world.runtime.prepare(deployment).await.unwrap_err();
    assert_eq!(problem.code, "function_init");
    for part in ["exit 7", "no such module"] {
        assert!(problem.message.contains(part), "{}", problem.message);
    }
    let templates = world.root.path().join("templates");
    let left = std::fs::read_dir(templates)?.count();
    assert_eq!(left, 0, "nothing of it stays");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_outlives_the_daemon_and_what_it_left_is_removed() -> Result<()> {
    let config = FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let world = world(config.clone()).await?;
    let first = text(&world.invoke("\"who\"").await?);
    let started = |answer: &str| answer.split_whitespace().last().map(str::to_owned);
    let memory = world
        .root
        .path()
        .join("templates")
        .join(world.deployment.id().as_str())
        .join("memory");
    let before = std::fs::metadata(&memory)?.modified()?;
    world.runtime.shutdown().await;
    world.node.shutdown().await;
    let World {
        root,
        node,
        runtime,
        deployment,
    } = world;
    drop((node, runtime));
    let reopened = wait_for(|| async { Ok(open(&root, config.clone()).await.ok()) });
    let (node, runtime) = reopened.await?;
    let world = World {
        root,
        node,
        runtime,
        deployment,
    };
    let second = text(&world.invoke("\"who\"").await?);
    assert_eq!(started(&first), started(&second), "it is the same template");
    assert_eq!(
        std::fs::metadata(&memory)?.modified()?,
        before,
        "no clone wrote to it"
    );
    world.runtime.retire(&world.deployment.id()).await;
    assert!(!memory.exists());
    world.end().await
}

/// What is in the folder of templates, but for hidden names.
fn templates(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.root.path().join("templates"));
    let names = entries.into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The bytes on disk of a template's memory that is being made.
fn written(world: &World) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let made = templates(world)
        .into_iter()
        .find(|name| name.starts_with(".tmp-"));
    let memory = made.map(|name| {
        world
            .root
            .path()
            .join("templates")
            .join(name)
            .join("memory")
    });
    let memory = memory.and_then(|path| std::fs::metadata(path).ok());
    memory.map_or(0, |memory| memory.blocks() * 512)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_nobody_waits_for_leaves_nothing() -> Result<()> {
    let world = with_init(FunctionsConfig::default(), "sleep 1000").await?;
    let (runtime, deployment) = (world.runtime.clone(), Arc::new(world.deployment.clone()));
    let preparing = tokio::spawn(async move { runtime.prepare(deployment).await.map(drop) });
    // A guest that runs its kernel and init has touched that much.
    wait_for(|| async { Ok((written(&world) > 24 << 20).then_some(())) }).await?;
    preparing.abort();
    assert!(preparing.await.unwrap_err().is_cancelled());
    wait_for(|| async {
        let vms = std::fs::read_dir(world.root.paths()?.vms())?;
        let vms = vms.flatten().filter(|entry| entry.path().is_dir()).count();
        Ok((vms == 0 && templates(&world).is_empty()).then_some(()))
    })
    .await?;
    assert_eq!(world.runtime.clones(&world.deployment.id()), None);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_would_nearly_fill_the_disk_is_not_begun() -> Result<()> {
    let config = FunctionsConfig {
        memory: Some(MiB(u32::MAX)),
        ..FunctionsConfig::default()
    };
    let world = world(config).await?;
    let disk = aleph_executor::host::capacity(world.root.path())?.disk;
    let deployment = Deployment {
        memory: MiB(disk.0.saturating_sub(64)),
        ..world.deployment.clone()
    };
    let prepared = world.runtime.prepare(Arc::new(deployment)).await;
    let problem = prepared.unwrap_err();
    assert_eq!(problem.code, "function_disk", "{problem:?}");
    assert_eq!(problem.class, ErrorClass::Capacity);
    assert!(problem.advice.is_some());
    assert_eq!(templates(&world), Vec::<String>::new());
    world.runtime.shutdown().await;
    world.node.shutdown().await;
    assert!(!world.root.paths()?.vms().exists(), "no VM was ever begun");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_of_no_version_go_at_the_start() -> Result<()> {
    let world = world(FunctionsConfig::default()).await?;
    world.invoke("\"one\"").await?;
    let kept = Deployment {
        version: "1".into(),
        ..world.deployment.clone()
    };
    let folder = world.root.path().join("templates");
    for name in [kept.id().as_str(), "of-nobody", ".tmp-1-0"] {
        std::fs::create_dir(folder.join(name))?;
        std::fs::write(folder.join(name).join("memory"), "")?;
    }
    world.runtime.keep(&[kept.id()]).await;
    // What is asked for already is not swept, nor what another process makes.
    let mut left = vec![
        ".tmp-1-0".to_owned(),
        kept.id().to_string(),
        world.deployment.id().to_string(),
    ];
    left.sort();
    assert_eq!(templates(&world), left);
    std::fs::remove_dir_all(folder.join(".tmp-1-0"))?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_digest_is_pinned_to_what_it_is_when_prepared() -> Result<()> {
    let world = world(FunctionsConfig::default()).await?;
    let image = |digest: &str| Deployment {
        code: Code::Image {
            reference: "busybox".into(),
            digest: digest.into(),
        },
        command: ["sh", "-c", IMAGE_RUNTIME].map(Into::into).into(),
        ..world.deployment.clone()
    };
    let prepared = world.runtime.prepare(Arc::new(image(""))).await;
    let prepared = prepared.map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
    let Code::Image { digest, .. } = &prepared.code else {
        anyhow::bail!("no image")
    };
    let busybox = world.root.busybox()?.digest().to_string();
    assert_eq!(*digest, busybox);
    assert_eq!(templates(&world), [prepared.id().to_string()]);
    let answer = world.invoke_as(&prepared, Concurrency::default(), "1");
    assert_eq!(text(&answer.await?), "1");
    // What it was pinned to is taken by digest alone, whatever its reference leads to.
    let other = image(&busybox.replace(['0', '1', '2', '3'], "4"));
    let problem = world.runtime.prepare(Arc::new(other)).await.unwrap_err();
    assert_eq!(problem.code, "function_image_gone", "{problem:?}");
    assert!(problem.message.contains("busybox"), "{problem:?}");
    assert!(problem.advice.is_some());
    world.end().await
}
