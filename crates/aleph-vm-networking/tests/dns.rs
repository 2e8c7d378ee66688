//! The DNS forwarder on a node whose guests have kernels of their own, with a resolver in the
//! world outside.
//!
//! "No answer" is shown as in the tests of traffic: a marker that is sent later comes first.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::dns::{Answer, Forwarder, ForwarderConfig, Limits, Names, Upstreams};
use aleph_vm_networking::ruleset::DropReason;
use aleph_vm_networking::{Network, NetworkConfig, NetworkError};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use libtest_mimic::{Arguments, Trial};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use world::machine::Machine;
use world::{ARRIVES, NODE, OUTSIDE, World, spec, trial, vm, wait_until};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 11] = [
        ("a_guest_gets_the_worlds_answers", forwards),
        ("the_node_hears_of_addresses_first", hears_first),
        ("names_are_those_of_ones_private_network", private_names),
        ("nobody_else_gets_an_answer", no_open_resolver),
        ("a_resolver_that_fails_is_passed_over", next_resolver),
        ("a_flood_of_one_guest_does_not_stop_another", flood),
        ("a_guest_can_ask_by_tcp", by_tcp),
        ("guests_outlive_a_forwarder", another_port),
        ("a_listed_name_opens_its_addresses_for_a_time", listed),
        (
            "what_names_led_to_outlives_a_flush_and_a_node",
            listed_again,
        ),
        ("a_name_opens_nothing_of_the_hosts", rebound),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const BRIEF: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 81);
const RENEWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 82);
/// Of the host, of another guest, of loopback, of a cloud, of a group; and an honest one.
const HOSTILE: [Ipv4Addr; 7] = [
    NODE,
    Ipv4Addr::new(10, 0, 0, 6),
    Ipv4Addr::new(127, 0, 0, 53),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(224, 0, 0, 251),
    Ipv4Addr::new(192, 0, 2, 83),
];
const PRIVATE: &str = r#"{"mode": "private:x"}"#;
/// How long a resolver has to answer: longer than one of a busy host takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// The node hears of addresses where they open something alone.
const LISTED: &str = r#"{"mode": "private:x", "egress": {"only": ["*.example"]}}"#;

fn asked(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// What a resolver of the world says: `None` where it is silent.
fn says(query: &[u8], times: usize, is_tcp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let name = query.queries[0].name.clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(query.queries[0].clone());
    let address = |name: &Name, ttl, to| Record::from_rdata(name.clone(), ttl, RData::A(A(to)));
    let a = |name: &Name, ttl| address(name, ttl, WEB);
    match name.to_ascii().as_str() {
        "web.example." => {
            answer.add_answer(a(&name, 60));
        }
        "alias.example." => {
            let web = Name::from_ascii("web.example.").unwrap();
            answer.add_answer(a(&web, 60));
            answer.add_answer(Record::from_rdata(name, 30, RData::CNAME(CNAME(web))));
        }
        "long.example." if is_tcp => {
            for _ in 0..500 {
                answer.add_answer(a(&name, 60));
            }
        }
        "long.example." => answer.metadata.truncation = true,
        "silent.example." => return None,
        "brief.example." => {
            answer.add_answer(address(&name, 1, BRIEF));
        }
        // For longer the second time.
        "renewed.example." => {
            answer.add_answer(address(&name, if times > 1 { 600 } else { 1 }, RENEWED));
        }
        "hostile.example." => {
            for to in HOSTILE {
                answer.add_answer(address(&name, 600, to));
            }
        }
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer.to_vec().unwrap())
}

/// A resolver of the world at its port 53, and the names that it was asked for.
fn resolver(world: &World) -> Arc<Mutex<Vec<String>>> {
    let names = Arc::new(Mutex::new(Vec::new()));
    let (for_udp, for_tcp) = (Arc::clone(&names), Arc::clone(&names));
    let heard = |names: &Mutex<Vec<String>>, query: &[u8]| {
        let query = Message::from_vec(query).unwrap();
        let (name, mut names) = (query.queries[0].name.to_ascii(), names.lock().unwrap());
        names.push(name.clone());
        names.iter().filter(|heard| **heard == name).count()
    };
    // They end with the process.
    world.outside.run(move || {
        let udp = UdpSocket::bind((OUTSIDE, 53)).unwrap();
        let tcp = TcpListener::bind((OUTSIDE, 53)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok((n, from)) = udp.recv_from(&mut bytes) {
                let times = heard(&for_udp, &bytes[..n]);
                if let Some(answer) = says(&bytes[..n], times, false) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let Some(query) = read(&mut stream) else {
                    continue;
                };
                let times = heard(&for_tcp, &query);
                if let Some(answer) = says(&query, times, true) {
                    write(&mut stream, &answer);
                }
            }
        });
    });
    names
}

fn write(to: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    to.write_all(&[&length, message].concat()).unwrap();
}

/// `None` where the other side has closed.
fn read(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    from.read_exact(&mut message).unwrap();
    Some(message)
}

type Resolved = (Ipv4Addr, String, Vec<(IpAddr, Duration)>);

/// What the node knows, and what it heard. Where it has a gate, it hears nothing before that is
/// opened.
struct Node {
    network: Arc<Network>,
    resolved: Mutex<Sender<Resolved>>,
    gate: Option<Mutex<Receiver<()>>>,
}

impl Names for Node {
    fn of(&self, guest: Ipv4Addr, name: &str) -> Answer {
        self.network.name(guest, name)
    }

    fn resolved(
        &self,
        guest: Ipv4Addr,
        name: &str,
        addresses: &[(IpAddr, Duration)],
    ) -> Result<(), NetworkError> {
        let resolved = (guest, name.to_owned(), addresses.to_vec());
        let _ = self.resolved.lock().unwrap().send(resolved);
        if let Some(gate) = &self.gate {
            gate.lock().unwrap().recv().unwrap();
        }
        self.network.resolved(guest, addresses)
    }
}

/// A node with a forwarder. It ends when this is dropped.
struct Served {
    network: Arc<Network>,
    port: u16,
    resolved: Receiver<Resolved>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(world: &World) -> Self {
        Self::with(world, &[53], PATIENCE, None, |config| {
            Network::open(&config, vec![]).unwrap()
        })
    }

    fn with(
        world: &World,
        upstreams: &[u16],
        patience: Duration,
        gate: Option<Receiver<()>>,
        open: impl FnOnce(NetworkConfig) -> Network + Send + 'static,
    ) -> Self {
        let config = ForwarderConfig {
            pool: world.config().pool,
            upstreams: Upstreams::Given(
                upstreams
                    .iter()
                    .map(|port| (OUTSIDE, *port).into())
                    .collect(),
            ),
            limits: Limits {
                patience,
                ..Limits::default()
            },
        };
        let network = world.config();
        let (tell, resolved) = channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        world.node.run(move || {
            let forwarder = Forwarder::bind(config).unwrap();
            let port = forwarder.port();
            let network = Arc::new(open(NetworkConfig {
                dns_port: Some(port),
                ..network
            }));
            let names = Arc::new(Node {
                network: Arc::clone(&network),
                resolved: Mutex::new(tell),
                gate: gate.map(Mutex::new),
            });
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.spawn(forwarder.run(names));
                let _ = runtime.block_on(ended);
            });
            Self {
                network,
                port,
                resolved,
                end: Some(end),
                thread: Some(thread),
            }
        })
    }

    fn machine(&self, world: &World, account: &'static str, bits: u32, json: &str) -> Machine {
        Machine::new(world.guest_of(&self.network, account, bits, &spec(json)))
    }

    fn dropped(&self, machine: &Machine) -> u64 {
        self.dropped_for(machine, DropReason::Host)
    }

    fn dropped_for(&self, machine: &Machine, reason: DropReason) -> u64 {
        let counters = self.network.counters().unwrap();
        let mut drops = counters[&machine.guest.vm].drops.iter();
        let found = drops.find(|(r, _)| *r == reason);
        found.map_or(0, |(_, packets)| *packets)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn resolver_of(machine: &Machine) -> (Ipv4Addr, u16) {
    (machine.guest.gateway, 53)
}

/// The answer that comes next.
fn answer(socket: &UdpSocket) -> Message {
    let mut bytes = [0; 4096];
    let n = socket.recv(&mut bytes).expect("no answer");
    Message::from_vec(&bytes[..n]).unwrap()
}

fn ask(socket: &UdpSocket, id: u16, name: &str) -> Message {
    socket.send(&asked(id, name, RecordType::A)).unwrap();
    answer(socket)
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let records = message.answers.iter();
    let of = |record: &Record| match record.data {
        RData::A(A(address)) => Some(address),
        _ => None,
    };
    records.filter_map(of).collect()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

fn forwards() {
    let world = World::new();
    let heard = resolver(&world);
    let served = Served::new(&world);
    let machine = served.machine(&world, "a", 1, LISTED);
    let socket = machine.udp(resolver_of(&machine));
    let web = ask(&socket, 7, "web.example.");
    assert_eq!((web.metadata.id, addresses(&web)), (7, vec![WEB]));
    let alias = ask(&socket, 8, "Alias.Example.");
    assert_eq!((alias.metadata.id, alias.answers.len()), (8, 0));
    let alias = ask(&socket, 9, "alias.example.");
    assert_eq!((alias.metadata.id, alias.answers.len()), (9, 2));
    let long = ask(&socket, 10, "long.example.");
    assert!(long.metadata.truncation);
    assert_eq!(
        code(&ask(&socket, 11, "no.example.")),
        ResponseCode::NXDomain
    );
    assert_eq!(heard.lock().unwrap().len(), 5);
    let resolved: Vec<Resolved> = served.resolved.try_iter().collect();
    let by = |name: &str, ttl| {
        let addresses = vec![(WEB.into(), Duration::from_secs(ttl))];
        (machine.guest.address, name.to_owned(), addresses)
    };
    assert_eq!(resolved, [by("web.example", 60), by("alias.example", 30)]);
    // What is no question of a resolver's.
    socket
        .send(&asked(12, "web.example.", RecordType::AXFR))
        .unwrap();
    assert_eq!(code(&answer(&socket)), ResponseCode::Refused);
    socket.send(&[0, 13, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0]).unwrap();
    let refused = answer(&socket);
    assert_eq!(
        (refused.metadata.id, code(&refused)),
        (13, ResponseCode::FormErr)
    );
}

fn hears_first() {
    let world = World::new();
    resolver(&world);
    let (open, gate) = channel();
    let served = Served::with(&world, &[53], PATIENCE, Some(gate), |config| {
        Network::open(&config, vec![]).unwrap()
    });
    let machine = served.machine(&world, "a", 1, LISTED);
    let socket = machine.udp(resolver_of(&machine));
    socket
        .send(&asked(7, "web.example.", RecordType::A))
        .unwrap();
    served.resolved.recv_timeout(ARRIVES).unwrap();
    // An answer that is on its way already would come before this one.
    assert_eq!(ask(&socket, 8, "job-1.internal.").metadata.id, 8);
    open.send(()).unwrap();
    assert_eq!(answer(&socket).metadata.id, 7);
    // Where it comes to grief there, the guest hears of no address.
    drop(open);
    assert_eq!(
        code(&ask(&socket, 9, "web.example.")),
        ResponseCode::ServFail
    );
}

fn private_names() {
    let world = World::new();
    let heard = resolver(&world);
    let served = Served::new(&world);
    let (one, two) = (
        served.machine(&world, "a", 1, PRIVATE),
        served.machine(&world, "a", 2, PRIVATE),
    );
    let socket = one.udp(resolver_of(&one));
    for name in ["job-2.", "job-2.internal.", "JOB-2.Internal."] {
        let known = ask(&socket, 7, name);
        assert_eq!(
            (known.metadata.id, addresses(&known)),
            (7, vec![two.guest.address])
        );
    }
    socket
        .send(&asked(8, "job-2.internal.", RecordType::AAAA))
        .unwrap();
    let no_v6 = answer(&socket);
    assert_eq!(
        (code(&no_v6), no_v6.answers.len()),
        (ResponseCode::NoError, 0)
    );
    assert_eq!(heard.lock().unwrap().len(), 0);
    for (account, bits, json) in [
        ("b", 3, PRIVATE),
        ("a", 4, r#"{"mode": "private:y"}"#),
        ("a", 5, "{}"),
    ] {
        let stranger = served.machine(&world, account, bits, json);
        let socket = stranger.udp(resolver_of(&stranger));
        assert_eq!(
            code(&ask(&socket, 7, "job-2.internal.")),
            ResponseCode::NXDomain
        );
        assert_eq!(heard.lock().unwrap().len(), 0);
        assert_eq!(code(&ask(&socket, 8, "job-2.")), ResponseCode::NXDomain);
        assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), ["job-2."]);
    }
    let vm = two.guest.vm;
    served.network.detach(vm).unwrap();
    served.network.release(vm);
    assert_eq!(
        code(&ask(&socket, 9, "job-2.internal.")),
        ResponseCode::NXDomain
    );
}

fn no_open_resolver() {
    let world = World::new();
    let heard = resolver(&world);
    let served = Served::new(&world);
    let machine = served.machine(&world, "a", 1, "{}");
    let (gateway, port) = (machine.guest.gateway, served.port);
    let query = asked(7, "stranger.example.", RecordType::A);
    // From the world, to whichever address of the host.
    let outside = world.outside.run(|| UdpSocket::bind((OUTSIDE, 0)).unwrap());
    for at in [NODE, gateway] {
        outside.send_to(&query, (at, port)).unwrap();
        outside.send_to(&query, (at, 53)).unwrap();
        let soon = Duration::from_millis(300);
        let connected = world
            .outside
            .run(move || TcpStream::connect_timeout(&(at, port).into(), soon).is_ok());
        assert!(!connected);
    }
    // From the host itself.
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 0);
    host.send_to(&query, (Ipv4Addr::LOCALHOST, port)).unwrap();
    // From the guest, to all but its own gateway's port 53.
    let other = served.machine(&world, "a", 2, "{}");
    for to in [
        (gateway, port),
        (NODE, port),
        (NODE, 53),
        (other.guest.gateway, 53),
        (other.guest.gateway, port),
    ] {
        let before = served.dropped(&machine);
        machine.udp(to).send(&query).unwrap();
        assert!(machine.tcp(to, Duration::from_millis(300)).is_err());
        wait_until(&format!("what goes to {to:?} is dropped"), || {
            served.dropped(&machine) >= before + 2
        });
    }
    let socket = machine.udp(resolver_of(&machine));
    assert_eq!(addresses(&ask(&socket, 8, "web.example.")), [WEB]);
    assert_eq!(*heard.lock().unwrap(), ["web.example."]);
    outside.set_nonblocking(true).unwrap();
    assert!(outside.recv(&mut [0; 512]).is_err());
}

fn next_resolver() {
    let world = World::new();
    let heard = resolver(&world);
    // One port is nobody's, and one is of somebody who reads nothing.
    let _silent = world.outside_socket(5300);
    let patience = Duration::from_secs(3);
    let served = Served::with(&world, &[5301, 5300, 53], patience, None, |config| {
        Network::open(&config, vec![]).unwrap()
    });
    let machine = served.machine(&world, "a", 1, "{}");
    let socket = machine.udp(resolver_of(&machine));
    assert_eq!(addresses(&ask(&socket, 7, "web.example.")), [WEB]);
    let failed = ask(&socket, 8, "silent.example.");
    assert_eq!(
        (failed.metadata.id, code(&failed)),
        (8, ResponseCode::ServFail)
    );
    // Each round asks for it again, and one that was slow to answer is asked once more.
    wait_until("it is asked for twice", || {
        let heard = heard.lock().unwrap();
        heard
            .iter()
            .filter(|name| *name == "silent.example.")
            .count()
            == 2
    });
    let mut heard = heard.lock().unwrap().clone();
    heard.dedup();
    assert_eq!(heard, ["web.example.", "silent.example."]);
}

fn flood() {
    let world = World::new();
    resolver(&world);
    let served = Served::new(&world);
    let (hostile, other) = (
        served.machine(&world, "a", 1, "{}"),
        served.machine(&world, "a", 2, "{}"),
    );
    let (from, to) = (
        hostile.udp(resolver_of(&hostile)),
        other.udp(resolver_of(&other)),
    );
    let (end, ended) = channel::<()>();
    let flood = std::thread::spawn(move || {
        let query = asked(7, "silent.example.", RecordType::A);
        while let Err(std::sync::mpsc::TryRecvError::Empty) = ended.try_recv() {
            let _ = from.send(&query);
        }
    });
    // At least so often, and until the flood has met its limit.
    for id in 1..u16::MAX {
        let answer = ask(&to, id, "web.example.");
        assert_eq!((answer.metadata.id, addresses(&answer)), (id, vec![WEB]));
        if id >= 20 && served.dropped(&hostile) > 0 {
            break;
        }
    }
    drop(end);
    flood.join().unwrap();
    assert!(served.dropped(&hostile) > 0);
    assert_eq!(served.dropped(&other), 0);
}

fn by_tcp() {
    let world = World::new();
    resolver(&world);
    let served = Served::new(&world);
    let machine = served.machine(&world, "a", 1, PRIVATE);
    let connect = || machine.tcp(resolver_of(&machine), ARRIVES).unwrap();
    let mut streams: Vec<TcpStream> = (0..4).map(|_| connect()).collect();
    for (id, stream) in (1..).zip(&mut streams) {
        write(stream, &asked(id, "long.example.", RecordType::A));
        let long = Message::from_vec(&read(stream).unwrap()).unwrap();
        assert_eq!((long.metadata.id, long.answers.len()), (id, 500));
        write(stream, &asked(id, "job-1.", RecordType::A));
        let own = Message::from_vec(&read(stream).unwrap()).unwrap();
        assert_eq!(addresses(&own), [machine.guest.address]);
    }
    // A fifth is one too many, until another ends.
    assert_eq!(read(&mut connect()), None);
    write(&mut streams[0], &[0; 5000]);
    assert_eq!(read(&mut streams[0]), None);
    let mut again = connect();
    write(&mut again, &asked(9, "web.example.", RecordType::A));
    let web = Message::from_vec(&read(&mut again).unwrap()).unwrap();
    assert_eq!(addresses(&web), [WEB]);
}

fn another_port() {
    let world = World::new();
    resolver(&world);
    let first = Served::new(&world);
    let machine = first.machine(&world, "a", 1, PRIVATE);
    let socket = machine.udp(resolver_of(&machine));
    assert_eq!(addresses(&ask(&socket, 7, "web.example.")), [WEB]);
    let chain = |world: &World| {
        world
            .node
            .sh("nft -a list chain inet aleph-test destination")
    };
    let (rules, port) = (chain(&world), first.port);
    // Its port stays with somebody who reads nothing.
    drop(first);
    let _other = world.node_socket(Ipv4Addr::UNSPECIFIED, port);
    let claim = (vm(1), "job-1".to_owned(), machine.guest.claim.clone());
    let second = Served::with(&world, &[53], PATIENCE, None, move |config| {
        let network = Network::open(&config, vec![claim]).unwrap();
        network.adopt(vm(1)).unwrap();
        network
    });
    assert_ne!(second.port, port);
    assert_eq!(chain(&world), rules);
    assert_eq!(addresses(&ask(&socket, 8, "web.example.")), [WEB]);
    assert_eq!(
        addresses(&ask(&socket, 9, "job-1.")),
        [machine.guest.address]
    );
}

/// Addresses of names in the world outside, which has them, and sockets at them.
fn names_of_the_world(world: &World) -> [UdpSocket; 3] {
    [WEB, BRIEF, RENEWED].map(|address| {
        let add = format!("ip address add {address}/24 dev out0");
        world.outside.sh(&add);
        world.outside.run(move || world::socket(address, 7000))
    })
}

fn set_of_resolved(world: &World) -> String {
    world.node.sh("nft list set inet aleph-test resolved")
}

/// A flow of its own, which no earlier one opened.
fn reaches(machine: &Machine, to: Ipv4Addr, at: &UdpSocket) {
    let text = format!("to {to}");
    let socket = machine.udp((to, 7000));
    socket.send(text.as_bytes()).unwrap();
    assert_eq!(world::receive(at).0, text);
}

fn listed() {
    let world = World::new();
    let (heard, [web, brief, renewed]) = (resolver(&world), names_of_the_world(&world));
    let served = Served::new(&world);
    let machine = served.machine(&world, "a", 1, r#"{"egress": {"only": ["*.example"]}}"#);
    let dropped = |count| {
        let now = || served.dropped_for(&machine, DropReason::Egress);
        wait_until("it is dropped", || now() == count);
    };
    let socket = machine.udp(resolver_of(&machine));
    machine.udp((WEB, 7000)).send(b"too early").unwrap();
    dropped(1);
    assert_eq!(addresses(&ask(&socket, 1, "alias.example.")), [WEB]);
    reaches(&machine, WEB, &web);
    machine.udp((OUTSIDE, 7000)).send(b"never").unwrap();
    dropped(2);
    // Nobody hears of a name that is not on the list.
    for name in ["secret.org.", "example.", "secret.example.org."] {
        assert_eq!(
            code(&ask(&socket, 2, name)),
            ResponseCode::Refused,
            "{name}"
        );
    }
    assert_eq!(*heard.lock().unwrap(), ["alias.example."]);

    assert_eq!(addresses(&ask(&socket, 3, "renewed.example.")), [RENEWED]);
    assert_eq!(addresses(&ask(&socket, 4, "renewed.example.")), [RENEWED]);
    assert_eq!(addresses(&ask(&socket, 5, "brief.example.")), [BRIEF]);
    let open = machine.udp((BRIEF, 7000));
    open.send(b"hello").unwrap();
    let (_, from) = world::receive(&brief);
    brief.send_to(b"hello back", from).unwrap();
    assert_eq!(open.recv(&mut [0; 64]).unwrap(), 10);
    wait_until("its time is over", || {
        !set_of_resolved(&world).contains(&BRIEF.to_string())
    });
    machine.udp((BRIEF, 7000)).send(b"too late").unwrap();
    dropped(3);
    // What was open stays so.
    open.send(b"still there").unwrap();
    assert_eq!(world::receive(&brief).0, "still there");
    // The other one was there before, and has more time since.
    reaches(&machine, RENEWED, &renewed);

    let (network, vm) = (Arc::clone(&served.network), machine.guest.vm);
    world.node.run(move || {
        network.detach(vm).unwrap();
        network.reap().unwrap();
    });
    assert!(!set_of_resolved(&world).contains("elements"));
}

fn listed_again() {
    let world = World::new();
    resolver(&world);
    let [web, _, renewed] = names_of_the_world(&world);
    let served = Served::new(&world);
    let (machine, other) = (
        served.machine(&world, "a", 1, LISTED),
        served.machine(&world, "a", 2, LISTED),
    );
    for machine in [&machine, &other] {
        let socket = machine.udp(resolver_of(machine));
        assert_eq!(addresses(&ask(&socket, 1, "web.example.")), [WEB]);
    }
    world.node.sh("nft flush ruleset");
    let network = Arc::clone(&served.network);
    world.node.run(move || network.sweep().unwrap());
    reaches(&machine, WEB, &web);
    // It has what was left of its time, and not all of it again.
    let set = set_of_resolved(&world);
    assert!(
        set.contains("timeout") && !set.contains("timeout 1m1s"),
        "{set}"
    );
    // Where an answer finds them gone, its guest need not wait for a sweep.
    world.node.sh("nft flush ruleset");
    let (network, guest) = (Arc::clone(&served.network), machine.guest.address);
    let found = [(RENEWED.into(), Duration::from_secs(600))];
    world
        .node
        .run(move || network.resolved(guest, &found).unwrap());
    reaches(&machine, RENEWED, &renewed);
    reaches(&machine, WEB, &web);

    // The next process, with the rules of the last and with others.
    drop(served);
    let claims = || vec![(vm(1), "job-1".to_owned(), machine.guest.claim.clone())];
    let before = world.config();
    for config in [
        before.clone(),
        NetworkConfig {
            connections: before.connections + 1,
            ..before
        },
    ] {
        drop(world.try_open(config, claims()).unwrap());
        let set = set_of_resolved(&world);
        assert!(set.contains(&WEB.to_string()), "{set}");
        assert!(!set.contains(other.guest.tap()), "{set}");
        reaches(&machine, WEB, &web);
    }
}

fn rebound() {
    let world = World::new();
    resolver(&world);
    let served = Served::new(&world);
    let machine = served.machine(&world, "a", 1, LISTED);
    let socket = machine.udp(resolver_of(&machine));
    let told = addresses(&ask(&socket, 1, "hostile.example."));
    assert_eq!(told, HOSTILE);
    let set = set_of_resolved(&world);
    for address in &HOSTILE[..6] {
        assert!(!set.contains(&format!("{address} ")), "{address}: {set}");
    }
    assert!(set.contains(&format!("{} ", HOSTILE[6])), "{set}");
}
