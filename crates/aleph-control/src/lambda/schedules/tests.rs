use super::*;
use crate::lambda::EventPolicy;
use crate::lambda::events::tests::{LIMIT, function, letters, open, until_empty};
use aleph_executor::journal::Journal;
use aleph_testkit::{ScriptedRunner, TestRoot};
use serde_json::{Value, json};

/// Far from any clock, so that what is tested here alone says what time it is.
fn at(text: &str) -> i64 {
    let time: Timestamp = format!("2100-01-01T{text}Z").parse().unwrap();
    time.as_millisecond()
}

fn input(expression: &str, more: &Value) -> ScheduleInput {
    let mut wanted = json!({
        "ScheduleExpression": expression,
        "FlexibleTimeWindow": { "Mode": "OFF" },
        "Target": {
            "Arn": "arn:aws:lambda:us-east-1:000000000000:function:about",
            "RoleArn": "arn:aws:iam::000000000000:role/any",
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        match key.as_str() {
            "Target" => {
                for (key, value) in value.as_object().unwrap() {
                    wanted["Target"][key] = value.clone();
                }
            }
            key => wanted[key] = value.clone(),
        }
    }
    ScheduleInput::read(wanted.to_string().as_bytes()).unwrap()
}

/// From the beginning of that day.
fn hourly() -> ScheduleInput {
    let start = at("00:00:00") / 1000;
    input("cron(0 * * * ? *)", &json!({ "StartDate": start }))
}

async fn world(root: &TestRoot) -> (Functions, Arc<ScriptedRunner>, Journal) {
    let policy = EventPolicy {
        put_back: Duration::MAX,
        ..EventPolicy::default()
    };
    let world = open(root, policy).await;
    if world.0.registry.get("default", "about").is_none() {
        function(&world.0, "about").await;
    }
    world
}

/// Fires what is due, and waits until it has ended.
async fn fire(functions: &Functions, journal: &Journal, now: &str) {
    for _ in 0..100 {
        if functions.fire_due(at(now)).await > Duration::ZERO {
            break;
        }
    }
    until_empty(journal).await;
}

#[tokio::test]
async fn what_is_due_fires_once_whatever_clocks_do() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    let arn = functions
        .create_schedule("default", "s", hourly())
        .await
        .unwrap();
    let schedule = functions.schedule("default", "s").unwrap();
    let id = |time: &str| schedule.request_id(&arn, at(time) / 1000);
    fire(&functions, &journal, "00:30:00").await;
    assert_eq!(runner.seen(), [id("00:00:00")]);
    // The same again, and a clock that is put back.
    for now in ["00:30:00", "00:00:00", "00:59:59"] {
        fire(&functions, &journal, now).await;
    }
    assert_eq!(runner.seen().len(), 1);
    // A clock that is put forward: the last of those that were skipped.
    fire(&functions, &journal, "05:10:00").await;
    assert_eq!(runner.seen()[1..], [id("05:00:00")]);
    // A clock that is put back behind what has fired.
    fire(&functions, &journal, "03:10:00").await;
    fire(&functions, &journal, "05:59:59").await;
    assert_eq!(runner.seen().len(), 2);
    functions.stopping.cancel();
    // A daemon that was down for three hours.
    let (functions, runner, journal) = world(&root).await;
    fire(&functions, &journal, "05:59:59").await;
    assert_eq!(runner.seen(), Vec::<String>::new());
    fire(&functions, &journal, "08:45:00").await;
    assert_eq!(runner.seen(), [id("08:00:00")]);
    functions.stopping.cancel();
}

#[tokio::test]
async fn a_clock_that_was_far_ahead_silences_nothing() {
    let root = TestRoot::empty().unwrap();
    let (functions, _, journal) = world(&root).await;
    let cron = input("cron(0 * * * ? *)", &json!({}));
    functions
        .create_schedule("default", "s", cron)
        .await
        .unwrap();
    fire(&functions, &journal, "05:10:00").await;
    let settled = || functions.schedules.get_settled("default", "s").unwrap().1;
    assert_eq!(settled(), at("05:00:00"));
    functions.stopping.cancel();
    drop(functions);
    let (functions, _, journal) = open(&root, EventPolicy::default()).await;
    let settled = || functions.schedules.get_settled("default", "s").unwrap().1;
    // Its own clock is that of this host.
    let put_back = async {
        while settled() > wall() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, put_back).await.unwrap();
    assert!(journal.schedules().await.unwrap()[0].settled <= wall());
    let due = functions.schedules.pause(wall());
    assert!(due <= Duration::from_secs(3600), "{due:?}");
    functions.stopping.cancel();
}

#[tokio::test]
async fn an_account_has_so_much_input_and_no_more() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    // Each fires once, and stays.
    let text = format!("\"{}\"", "x".repeat(MOST_BYTES / 128 - 2));
    let large = || {
        let more = json!({ "Target": { "Input": text } });
        input("at(2100-01-01T00:00:00)", &more)
    };
    let create = async |name: &str, input| functions.create_schedule("default", name, input).await;
    for n in 0..128 {
        create(&format!("s{n}"), large()).await.unwrap();
    }
    let small = || input("rate(1 days)", &json!({ "Target": { "Input": "1" } }));
    let error = create("more", small()).await.unwrap_err();
    assert!(error.to_string().contains("32 MiB"), "{error}");
    // One that is there may be set anew.
    functions
        .update_schedule("default", "s0", large())
        .await
        .unwrap();
    // As many as an event holds fire in one write, and the rest in those that follow.
    functions.fire_due(at("00:00:00")).await;
    let fired = 128 - functions.schedules.due(at("00:00:00"), 128).len();
    assert!((1..32).contains(&fired), "{fired}");
    fire(&functions, &journal, "00:00:00").await;
    assert_eq!(runner.seen().len(), 128);
    functions.stopping.cancel();
}

#[tokio::test]
async fn what_is_too_old_is_left_out_and_the_last_takes_its_schedule_along() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    let more = json!({
        "ActionAfterCompletion": "DELETE",
        "Target": { "RetryPolicy": { "MaximumEventAgeInSeconds": 60 } },
    });
    for name in ["late", "kept"] {
        let mut once = input("at(2100-01-01T00:00:00)", &more);
        if name == "kept" {
            once = input("at(2100-01-01T00:05:00)", &json!({}));
        }
        functions
            .create_schedule("default", name, once)
            .await
            .unwrap();
    }
    fire(&functions, &journal, "00:01:01").await;
    assert_eq!(runner.seen(), Vec::<String>::new());
    assert!(functions.schedule("default", "late").is_err());
    assert_eq!(journal.schedules().await.unwrap().len(), 1);
    fire(&functions, &journal, "00:05:00").await;
    fire(&functions, &journal, "00:06:00").await;
    assert_eq!(runner.seen().len(), 1);
    functions.schedule("default", "kept").unwrap();
    functions.stopping.cancel();
}

#[tokio::test]
async fn events_of_a_function_that_is_gone_are_dead_letters() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    functions
        .create_schedule("default", "s", hourly())
        .await
        .unwrap();
    functions.registry.remove("default", "about").await.unwrap();
    fire(&functions, &journal, "00:00:00").await;
    fire(&functions, &journal, "01:00:00").await;
    let letters = letters(&root);
    assert_eq!(letters.len(), 2, "{letters:?}");
    for letter in letters {
        assert_eq!(letter["requestContext"]["condition"], "FunctionNotFound");
        assert_eq!(letter["requestPayload"]["source"], "aws.scheduler");
    }
    // Once there is one of this name, it gets what follows.
    function(&functions, "about").await;
    fire(&functions, &journal, "02:00:00").await;
    assert_eq!(runner.seen().len(), 1);
    functions.stopping.cancel();
}

#[tokio::test]
async fn while_too_much_waits_what_is_due_waits_too() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        waiting: 0,
        put_back: Duration::MAX,
        ..EventPolicy::default()
    };
    let (functions, _, journal) = open(&root, policy).await;
    function(&functions, "about").await;
    functions
        .create_schedule("default", "s", hourly())
        .await
        .unwrap();
    fire(&functions, &journal, "00:00:00").await;
    functions.stopping.cancel();
    let (functions, runner, journal) = world(&root).await;
    fire(&functions, &journal, "00:00:10").await;
    assert_eq!(runner.seen().len(), 1);
    functions.stopping.cancel();
}

#[tokio::test]
async fn a_rate_begins_at_once_and_goes_on_where_only_its_target_is_changed() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    let daily = input("rate(1 days)", &json!({}));
    functions
        .create_schedule("default", "s", daily)
        .await
        .unwrap();
    // It is the clock of this host that fires this one.
    let seen = async {
        while runner.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, seen).await.unwrap();
    until_empty(&journal).await;
    let (before, settled) = functions.schedules.get_settled("default", "s").unwrap();
    let change =
        |more: &Value| functions.update_schedule("default", "s", input("rate(1 days)", more));
    change(&json!({ "Target": { "Input": "1" } }))
        .await
        .unwrap();
    let (after, still) = functions.schedules.get_settled("default", "s").unwrap();
    assert_eq!((after.anchor, still), (before.anchor, settled));
    // One that rested goes on from then, and not from when it began to.
    change(&json!({ "State": "DISABLED" })).await.unwrap();
    change(&json!({})).await.unwrap();
    let (after, later) = functions.schedules.get_settled("default", "s").unwrap();
    assert!(after.anchor == before.anchor && later > settled);
    assert_eq!(runner.seen().len(), 1);
    functions.stopping.cancel();
}

#[tokio::test]
async fn what_a_window_spreads_comes_within_it() {
    let root = TestRoot::empty().unwrap();
    let (functions, runner, journal) = world(&root).await;
    let window = json!({ "Mode": "FLEXIBLE", "MaximumWindowInMinutes": 30 });
    let more = json!({ "FlexibleTimeWindow": window });
    let once = input("at(2100-01-01T00:00:00)", &more);
    let arn = functions
        .create_schedule("default", "spread", once)
        .await
        .unwrap();
    let offset = functions
        .schedule("default", "spread")
        .unwrap()
        .offset(&arn);
    assert!((1..1800).contains(&offset), "{offset}");
    let time = Timestamp::from_second(at("00:00:00") / 1000 + offset).unwrap();
    let before = Timestamp::from_second(time.as_second() - 1).unwrap();
    let clock = |time: Timestamp| time.strftime("%H:%M:%S").to_string();
    fire(&functions, &journal, &clock(before)).await;
    assert_eq!(runner.seen(), Vec::<String>::new());
    fire(&functions, &journal, &clock(time)).await;
    assert_eq!(runner.seen().len(), 1);
    functions.stopping.cancel();
}

#[test]
fn what_stands_for_a_time_or_a_name_is_put_in() {
    let identity = crate::lambda::FunctionsConfig::default().identity;
    let text = r#"{"at":"<aws.scheduler.scheduled-time>","of":"<aws.scheduler.schedule-arn>",
        "id":"<aws.scheduler.execution-id>","n":<aws.scheduler.attempt-number>}"#;
    let more = json!({ "Target": { "Input": text } });
    let schedule = input("rate(5 minutes)", &more)
        .schedule(&identity, "default", None, Timestamp::now())
        .unwrap();
    let place = Place {
        arn: "arn:x",
        identity: &identity,
        account: "default",
    };
    let time = at("12:00:00") / 1000;
    let put: Value = serde_json::from_str(&schedule.payload(&place, time, "r")).unwrap();
    let want = json!({ "at": "2100-01-01T12:00:00Z", "of": "arn:x", "id": "r", "n": 1 });
    assert_eq!(put, want);
}

#[test]
fn what_cannot_be_had_is_refused() {
    let identity = crate::lambda::FunctionsConfig::default().identity;
    let long = format!("cron({} 0 * * ? *)", vec!["0"; 200].join(","));
    let arns = format!("\"{}\"", "<aws.scheduler.schedule-arn>".repeat(5000));
    let sqs = "arn:aws:sqs:us-east-1:000000000000:q";
    for (expression, more, says) in [
        ("rate(0 minutes)", json!({}), "no rate"),
        (long.as_str(), json!({}), "less than or equal to 256"),
        ("at(2020-01-01T00:00:00)", json!({}), "has passed"),
        ("cron(0 0 30 2 ? *)", json!({}), "never comes"),
        ("cron(0 0 1 1 ? 2020)", json!({}), "never comes"),
        ("rate(1 minute)", json!({ "EndDate": 10 }), "never comes"),
        ("at(2200-01-01T00:00:00)", json!({}), "no time"),
        (
            "rate(1 minute)",
            json!({ "StartDate": "2200-01-01T00:00:00Z" }),
            "1970 to 2199",
        ),
        (
            "at(2027-03-28T02:30:00)",
            json!({ "ScheduleExpressionTimezone": "Europe/Berlin" }),
            "no clock",
        ),
        (
            "rate(1 minute)",
            json!({ "ScheduleExpressionTimezone": "Mars/Olympus" }),
            "no time zone",
        ),
        (
            "rate(1 minute)",
            json!({ "StartDate": 20, "EndDate": 10 }),
            "after the StartDate",
        ),
        ("rate(1 minute)", json!({ "State": "ON" }), "enum value set"),
        (
            "rate(1 minute)",
            json!({ "FlexibleTimeWindow": { "Mode": "FLEXIBLE" } }),
            "must not",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "Arn": sqs } }),
            "ARN of a function",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "Input": "{" } }),
            "no JSON",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "DeadLetterConfig": { "Arn": sqs } } }),
            "queue: this node has none",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "RetryPolicy": { "MaximumRetryAttempts": 186 } } }),
            "between 0 and 185",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "SqsParameters": {} } }),
            "SqsParameters",
        ),
        (
            "rate(1 minute)",
            json!({ "Target": { "Input": arns } }),
            "less than or equal to 262144",
        ),
        ("rate(1 minute)", json!({ "KmsKeyArn": "arn" }), "KmsKeyArn"),
    ] {
        let made = input(expression, &more).schedule(&identity, "default", None, Timestamp::now());
        let error = made.unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
