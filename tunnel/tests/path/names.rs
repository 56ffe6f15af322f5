//! Names: what is asked of a name server that the test plays, and what is left of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tunnel::io::resolver::{ANSWERS_MAX, Files, LOOKUPS_MAX, ResolveError, Resolver};
use tunnel::io::socket::{NOBODY, Owner, Role, Socket};
use tunnel::mux::{Ending, Reason};
use tunnel::policy::Policy;
use tunnel::target::{Endpoint, Target};

use crate::rig::{LONG, Rig, loopback, until, within};
use crate::world::{TcpListener, of_the_world};

/// What a name server has for a name.
#[derive(Clone)]
enum Answer {
    Addresses(Vec<IpAddr>),
    /// Only the head by UDP, and an address by TCP.
    Truncated(IpAddr),
    /// A response code (RFC 1035, section 4.1.1).
    Code(u8),
    Silence,
}

/// A name server of a few lines on loopback, and the files that lead to it.
struct World {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl World {
    async fn start(answer: fn(&str) -> Answer) -> Self {
        let (udp, tcp) = loop {
            let udp = of_the_world(UdpSocket::bind(loopback()).await.unwrap());
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut query = [0; 512];
            loop {
                let (length, peer) = udp.recv_from(&mut query).await.unwrap();
                let (name, response) = respond(&query[..length], answer, true);
                log.lock().unwrap().push(name);
                if let Some(response) = response {
                    udp.send_to(&response, peer).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (stream, _) = tcp.accept().await.unwrap();
                serve_tcp(stream, answer).await;
            }
        });
        let world = Self {
            port,
            asked,
            folder: tempfile::tempdir().unwrap(),
            _tasks: tasks,
        };
        world.write("resolv.conf", "nameserver 127.0.0.1\nsearch .\n");
        world
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn files(&self) -> Files {
        Files {
            hosts: self.folder.path().join("hosts"),
            resolv_conf: self.folder.path().join("resolv.conf"),
            port: self.port,
        }
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(self.files())
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Sockets whose peer is the name server.
    fn sockets(&self) -> usize {
        let peer = format!(":{:04X} ", self.port);
        let count = |table: &str| {
            let table = std::fs::read_to_string(table).unwrap();
            let peers = table
                .lines()
                .filter_map(|line| line.split_whitespace().nth(2));
            let peers = peers.filter(|address| format!("{address} ").ends_with(&peer));
            peers.count()
        };
        count("/proc/net/udp")
    }
}

async fn serve_tcp(mut stream: TcpStream, answer: fn(&str) -> Answer) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await.unwrap();
        let (_, Some(response)) = respond(&query, answer, false) else {
            return;
        };
        let length = u16::try_from(response.len()).unwrap();
        stream.write_u16(length).await.unwrap();
        stream.write_all(&response).await.unwrap();
    }
}

/// Returns the name that is asked for, and the response (RFC 1035, section 4).
fn respond(query: &[u8], answer: fn(&str) -> Answer, is_udp: bool) -> (String, Option<Vec<u8>>) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    let (name, kind, question) = (labels.join("."), query[at + 2], &query[12..at + 5]);
    let (addresses, truncated, code) = match answer(&name) {
        Answer::Addresses(addresses) => (addresses, false, 0),
        Answer::Truncated(_) if is_udp => (vec![], true, 0),
        Answer::Truncated(address) => (vec![address], false, 0),
        Answer::Code(code) => (vec![], false, code),
        Answer::Silence => return (name, None),
    };
    let records: Vec<_> = addresses
        .into_iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let count = u8::try_from(records.len()).unwrap();
    let mut response = query[..2].to_vec();
    response.extend([0x81 | (u8::from(truncated) << 1), 0x80 | code]);
    response.extend([0, 1, 0, count, 0, 0, 0, 0]);
    response.extend(question);
    for record in records {
        // A pointer to the question's name, its type and class, and a minute to live.
        response.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
        response.push(u8::try_from(record.len()).unwrap());
        response.extend(record);
    }
    (name, Some(response))
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn look_up(resolver: &Resolver, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let endpoint = Endpoint::parse(host, Some(80)).unwrap();
    let found = resolver.resolve(&endpoint, NOBODY);
    let found = within(LONG, "the lookup's end", found).await?;
    assert!(found.iter().all(|address| address.port() == 80));
    Ok(found.iter().map(SocketAddr::ip).collect())
}

#[tokio::test]
async fn a_name_s_addresses_are_those_of_both_families() {
    let world = World::start(|_| Answer::Addresses(addresses(&["192.0.2.1", "2001:db8::1"]))).await;
    let found = look_up(&world.resolver(), "a.example").await;
    assert_eq!(found, Ok(addresses(&["2001:db8::1", "192.0.2.1"])));
    assert_eq!(world.asked(), ["a.example", "a.example"]);
    assert_eq!(world.sockets(), 0);
}

#[tokio::test]
async fn no_more_addresses_are_used_than_the_bound() {
    let many = |_: &str| {
        let of_both = |n: u8| [[192, 0, 2, n].into(), IpAddr::from([n; 16])];
        Answer::Addresses((1..=16).flat_map(of_both).collect())
    };
    let world = World::start(many).await;
    let found = look_up(&world.resolver(), "a.example").await.unwrap();
    let of_v4 = found.iter().filter(|address| address.is_ipv4()).count();
    assert_eq!((found.len(), of_v4), (ANSWERS_MAX, ANSWERS_MAX / 2));
}

#[tokio::test]
async fn what_needs_no_name_server_asks_none() {
    let world = World::start(|_| Answer::Silence).await;
    world.write(
        "hosts",
        "192.0.2.7 Own.example short # comment\n::7 own.example\n10.0.0.1 other.localhost\nnonsense line\n",
    );
    let resolver = world.resolver();
    for (host, expected) in [
        ("192.0.2.1", vec!["192.0.2.1"]),
        ("[::1]", vec!["::1"]),
        ("OWN.example", vec!["::7", "192.0.2.7"]),
        ("short", vec!["192.0.2.7"]),
        ("localhost", vec!["::1", "127.0.0.1"]),
        ("a.localhost", vec!["::1", "127.0.0.1"]),
        ("other.localhost", vec!["10.0.0.1"]),
    ] {
        let found = look_up(&resolver, host).await;
        assert_eq!(found, Ok(addresses(&expected)), "{host}");
    }
    world.write("hosts", "192.0.2.8 own.example\n127.9.9.9 localhost\n");
    assert_eq!(
        look_up(&resolver, "own.example").await,
        Ok(addresses(&["192.0.2.8"]))
    );
    assert_eq!(
        look_up(&resolver, "localhost").await,
        Ok(addresses(&["127.9.9.9"]))
    );
    let long = format!("{}.example", "a".repeat(64));
    assert_eq!(look_up(&resolver, &long).await, Err(ResolveError::NotAName));
    assert_eq!(world.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn short_names_are_searched() {
    let world = World::start(|name| match name {
        "db.two.example" | "a.b.c" => Answer::Addresses(addresses(&["192.0.2.1"])),
        _ => Answer::Code(3),
    })
    .await;
    world.write(
        "resolv.conf",
        "nameserver 127.0.0.1\nsearch one.example two.example\noptions ndots:2 no-aaaa\n",
    );
    let resolver = world.resolver();
    for (host, found, asked) in [
        ("db", true, vec!["db.one.example", "db.two.example"]),
        ("a.b.c", true, vec!["a.b.c"]),
        (
            "x.y",
            false,
            vec!["x.y.one.example", "x.y.two.example", "x.y"],
        ),
    ] {
        assert_eq!(look_up(&resolver, host).await.is_ok(), found, "{host}");
        assert_eq!(world.asked(), asked, "{host}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_asked_for_by_tcp() {
    let world = World::start(|_| Answer::Truncated([192, 0, 2, 1].into())).await;
    world.write(
        "resolv.conf",
        "nameserver 127.0.0.1\nsearch .\noptions no-aaaa\n",
    );
    let found = look_up(&world.resolver(), "a.example").await;
    assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let world = World::start(|name| match name {
        "nowhere.example" => Answer::Code(3),
        "empty.example" => Answer::Addresses(vec![]),
        "broken.example" => Answer::Code(2),
        _ => Answer::Code(5),
    })
    .await;
    let resolver = world.resolver();
    let nowhere = look_up(&resolver, "nowhere.example").await;
    assert_eq!(nowhere, Err(ResolveError::NoSuchName));
    let empty = look_up(&resolver, "empty.example").await;
    assert_eq!(empty, Err(ResolveError::NoAddress));
    for (host, text) in [
        ("broken.example", "Server Failure"),
        ("no.example", "Refused"),
    ] {
        let error = look_up(&resolver, host).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    world.write("resolv.conf", "nameserver 127.0.0.9\nsearch .\n");
    let error = look_up(&resolver, "a.example").await.unwrap_err();
    assert!(matches!(error, ResolveError::Failed(_)), "{error}");
}

#[tokio::test]
async fn servers_are_asked_in_their_order_each_for_its_time() {
    let world = World::start(|_| Answer::Addresses(addresses(&["192.0.2.1"]))).await;
    let silent = UdpSocket::bind(("127.0.0.8", world.port)).await.unwrap();
    let silent = of_the_world(silent);
    world.write(
        "resolv.conf",
        "nameserver 127.0.0.8\nnameserver 127.0.0.1\nsearch .\noptions timeout:1 no-aaaa\n",
    );
    let begun = Instant::now();
    let found = look_up(&world.resolver(), "a.example").await;
    assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    drop(silent);
    // Where nobody listens nobody is waited for.
    let begun = Instant::now();
    let found = look_up(&world.resolver(), "a.example").await;
    assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn other_settings_apply_from_the_next_lookup() {
    let world = World::start(|_| Answer::Addresses(addresses(&["192.0.2.1"]))).await;
    let file = world.folder.path().join("resolv.conf");
    std::fs::remove_file(&file).unwrap();
    // Without the file it is the server on this machine.
    let resolver = world.resolver();
    assert!(look_up(&resolver, "a.example").await.is_ok());
    world.write("resolv.conf", "nameserver 127.0.0.9\nsearch .\n");
    assert!(look_up(&resolver, "a.example").await.is_err());
    world.write(
        "resolv.conf",
        "\0\u{fffd} nonsense\nnameserver\noptions ndots:x timeout:-1\n",
    );
    assert!(look_up(&resolver, "a.example").await.is_ok());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(look_up(&resolver, "a.example").await.is_ok());
}

#[tokio::test]
async fn no_socket_outlives_a_lookup() {
    let world = World::start(|_| Answer::Silence).await;
    let resolver = world.resolver();
    let endpoint = Endpoint::parse("a.example", Some(80)).unwrap();
    let owner = Owner {
        session: 0x006e_616d_6573,
        stream: 1,
    };
    let mut lookup = Box::pin(resolver.resolve(&endpoint, owner));
    tokio::select! {
        _ = &mut lookup => panic!("nobody answers"),
        () = until("a query in each family", || world.sockets() >= 2) => {}
    }
    drop(lookup);
    assert_eq!(world.sockets(), 0);
    // A tracer convicts whatever of it were open now.
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let control = Socket::dial(address, Role::Control, NOBODY, "tells an END");
    control.await.unwrap().mark().end(owner, Ending::Finished);
}

#[tokio::test]
async fn a_dead_zone_is_bounded_and_does_not_hold_up_others() {
    let world = World::start(|name| match name {
        "good.example" | "good.dead.example" => Answer::Addresses(addresses(&["192.0.2.1"])),
        _ => Answer::Silence,
    })
    .await;
    let resolver = world.resolver();
    let dead = (0..5000).map(|number| {
        let endpoint = Endpoint::parse(&format!("n{number}.dead.example"), Some(80)).unwrap();
        let resolver = &resolver;
        async move { resolver.resolve(&endpoint, NOBODY).await }
    });
    let dead = join_all(dead);
    let good = async {
        sleep(Duration::from_millis(50)).await;
        for host in ["good.example", "good.dead.example", "good.example"] {
            // A query is sent up to four times, each time from another socket, for each family.
            let sockets = world.sockets();
            assert!((1..=8 * LOOKUPS_MAX).contains(&sockets), "{sockets}");
            let begun = Instant::now();
            let found = look_up(&resolver, host).await;
            assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
            let took = begun.elapsed();
            println!("{host} took {took:?} behind 5,000 dead names");
            assert!(took < Duration::from_secs(1), "{took:?}");
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        _ = dead => panic!("nobody answers"),
        () = good => {}
    }
    assert_eq!(world.sockets(), 0);
}

/// Asks an agent with these rules for a target, as a visitor does.
async fn dial_by(world: &World, allow: &str, target: &str) -> Result<(), Option<Reason>> {
    let files = world.files();
    let rig = Rig::start_with(
        |_| {},
        |config| {
            config.policy = Policy::new(vec![allow.parse().unwrap()]);
            config.resolver = files;
        },
    )
    .await;
    let target = Target::tcp(target, None).unwrap();
    let dialer = rig.server.dialer("web");
    let dialed = within(LONG, "the dial", dialer.dial(&target)).await;
    dialed.map(drop).map_err(|error| error.reason())
}

#[tokio::test]
async fn a_name_that_no_rule_could_allow_is_not_asked_for() {
    let world = World::start(|name| match name {
        "in.example" => Answer::Addresses(addresses(&["192.0.2.1"])),
        "to.example" => Answer::Addresses(addresses(&["127.0.0.1"])),
        _ => Answer::Code(3),
    })
    .await;
    let (denied, unresolved) = (Err(Some(Reason::Denied)), Err(Some(Reason::Unresolved)));
    for (allow, target, expected, asked) in [
        ("db.example:5432", "in.example:5432", denied, false),
        ("db.example:5432", "db.example:80", denied, false),
        ("*.db.example:5432", "in.example:5432", denied, false),
        ("10.0.0.0/8:5432", "in.example:80", denied, false),
        ("udp:10.0.0.0/8:53", "in.example:53", denied, false),
        ("unix:/run/*", "in.example:80", denied, false),
        // Whether the name exists cannot be told from the answer.
        ("10.0.0.0/8:5432", "in.example:5432", denied, true),
        ("10.0.0.0/8:5432", "out.example:5432", denied, true),
        ("*.example:5432", "out.example:5432", unresolved, true),
        ("*.example:5432", "to.example:5432", denied, true),
    ] {
        let found = dial_by(&world, allow, target).await;
        assert_eq!(found, expected, "{allow} {target}");
        assert_eq!(!world.asked().is_empty(), asked, "{allow} {target}");
    }
}
