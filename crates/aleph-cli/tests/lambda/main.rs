//! Functions as their users meet them: a daemon, VMs, and clients that nobody changed.

#[path = "../support/mod.rs"]
mod support;

mod command_line;
mod events;
mod nats;
mod unique;
mod urls;
mod world;

use aleph_image::Recipe;
use aleph_testkit::functions;
use anyhow::Result;
use world::{World, app_zip, ran};

const RUNTIMES: [Recipe; 3] = [Recipe::ProvidedAl2023, Recipe::Python311, Recipe::Nodejs18];

#[test]
fn alone_clients_of_aws_run_functions_in_vms() -> Result<()> {
    let world = World::up(&RUNTIMES)?;
    world.archive("app", &app_zip("one")?)?;
    world.archive("app2", &app_zip("two")?)?;
    world.archive("echo", &functions::echo_zip()?)?;
    world.archive("node", &functions::node_zip()?)?;
    let daemon = world.daemon.pid().to_string();
    let mut clients = world.script("clients.py")?;
    let said = ran(clients.arg(daemon).arg(world.folder()))?;
    eprintln!("{said}");
    command_line::the_aws_cli(&world)?;
    command_line::aleph(&world)?;
    unique::clones_have_nothing_in_common(&world)?;
    world.end()
}

#[test]
fn alone_responses_come_as_functions_write_them() -> Result<()> {
    let world = World::up(&RUNTIMES)?;
    world.archive("echo", &functions::echo_zip()?)?;
    world.archive("node", &functions::node_zip()?)?;
    world.archive("server", &functions::server_zip()?)?;
    world.archive("python_server", &functions::python_server_zip()?)?;
    let daemon = world.daemon.pid().to_string();
    let mut clients = world.script("streams.py")?;
    let said = ran(clients.arg(daemon).arg(world.folder()))?;
    eprintln!("{said}");
    world.end()
}

#[test]
fn alone_events_outlive_a_daemon_that_is_killed() -> Result<()> {
    events::outlive_the_daemon()
}

#[test]
fn alone_urls_and_events_of_others_lead_to_guests() -> Result<()> {
    urls::lead_to_guests()
}

#[test]
fn alone_messages_outlive_a_daemon_and_a_server_that_are_killed() -> Result<()> {
    nats::outlive_the_daemon_and_the_server()
}
