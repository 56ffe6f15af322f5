//! Every timeout of a stream: that it comes, that it is counted, and what the kernel was told.

use std::fs::{read_dir, read_link, read_to_string};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::io::socket::{Keepalive, Options};
use tunnel::metrics::Metrics;
use tunnel::policy::Policy;
use tunnel::target::Target;

use crate::rig::{LONG, PROMPT, Rig, broken, drain, refused, round_trip, until, with_http, within};
use crate::world::{BlackHole, connect};

const SHORT: Duration = Duration::from_millis(300);

fn timeouts(counters: &Metrics, timeout: &str) -> u64 {
    let text = counters.text().unwrap();
    let name = format!("watertight_stream_timeouts_total{{timeout=\"{timeout}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

/// How often `timeout` came at the server and at the agent.
fn both(rig: &Rig, timeout: &str) -> (u64, u64) {
    let agent = rig.agent.counters().unwrap();
    (
        timeouts(rig.server.counters(), timeout),
        timeouts(agent, timeout),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_is_reset_by_whichever_end_is_told_to() {
    for at_server in [true, false] {
        let limit = 3 * SHORT;
        let idle = Some(limit);
        let rig = Rig::start_with(
            |server| server.splice.idle = idle.filter(|_| at_server),
            |agent| agent.splice.idle = idle.filter(|_| !at_server),
        )
        .await;
        let (mut visitor, mut target) = rig.pair().await;
        // Bytes in one direction are enough to keep it, for longer than it may be idle.
        for _ in 0..20 {
            target.write_all(b"!").await.unwrap();
            let read = within(PROMPT, "a byte", visitor.read_exact(&mut [0])).await;
            read.unwrap();
            tokio::time::sleep(limit / 8).await;
        }
        assert_eq!(both(&rig, "idle"), (0, 0));
        broken(&mut visitor, &mut target).await;
        rig.at_rest().await;
        let expected = if at_server { (1, 0) } else { (0, 1) };
        assert_eq!(both(&rig, "idle"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_half_is_counted_where_it_is_reset() {
    for at_server in [true, false] {
        let linger = |here| if here { SHORT } else { LONG };
        let rig = Rig::start_with(
            |server| server.splice.linger = linger(at_server),
            |agent| agent.splice.linger = linger(!at_server),
        )
        .await;
        for visitor_finishes in [true, false] {
            let (mut visitor, mut target) = rig.pair().await;
            round_trip(&mut visitor, &mut target).await;
            let (finished, silent) = if visitor_finishes {
                (&mut visitor, &mut target)
            } else {
                (&mut target, &mut visitor)
            };
            finished.shutdown().await.unwrap();
            let end = within(PROMPT, "the end", drain(silent)).await;
            assert_eq!(end.unwrap(), 0);
            within(PROMPT, "the reset", drain(finished))
                .await
                .unwrap_err();
            rig.at_rest().await;
        }
        let expected = if at_server { (2, 0) } else { (0, 2) };
        assert_eq!(both(&rig, "linger"), expected);
        assert_eq!(both(&rig, "idle"), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_and_opens_that_take_too_long_are_counted() {
    for (dial, open, expected) in [
        (SHORT, LONG, [(0, 1), (0, 0)]),
        (LONG, SHORT, [(0, 0), (1, 0)]),
    ] {
        let hole = BlackHole::open().await;
        let address = hole.address.to_string();
        let rig = Rig::start_with(
            |server| {
                server.forwards[0].target = Target::tcp(&address, None).unwrap();
                server.mux.open_timeout = open;
            },
            |agent| {
                agent.policy = Policy::new(vec![address.parse().unwrap()]);
                agent.dial_timeout = dial;
            },
        )
        .await;
        refused(rig.server.forwards()[0]).await;
        rig.at_rest().await;
        assert_eq!([both(&rig, "dial"), both(&rig, "open")], expected);
    }
}

/// Returns the socket of this process with these ports, 0 for any, that is connected
/// (`/proc/net/tcp`, ESTABLISHED).
fn socket(local: u16, remote: u16) -> OwnedFd {
    let port = |text: &str| u16::from_str_radix(text.rsplit_once(':').unwrap().1, 16).unwrap();
    let table = read_to_string("/proc/net/tcp").unwrap();
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let fits = |wanted, field| wanted == 0 || wanted == port(field);
        let is_it = fits(local, fields[1]) && fits(remote, fields[2]) && fields[3] == "01";
        is_it.then(|| format!("socket:[{}]", fields[9]))
    });
    let inode = inode.unwrap();
    let is_it = |fd: &i32| {
        let link = read_link(format!("/proc/self/fd/{fd}"));
        link.is_ok_and(|link| link.as_os_str() == inode.as_str())
    };
    let names = read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut numbers = names.map(|name| name.to_str().unwrap().parse().unwrap());
    let fd = numbers.find(is_it).unwrap();
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(own, fd, PidfdGetfdFlags::empty()).unwrap()
}

fn options(socket: &OwnedFd) -> Options {
    let socket = SockRef::from(socket);
    let keepalive = socket.keepalive().unwrap().then(|| Keepalive {
        idle: socket.tcp_keepalive_time().unwrap(),
        interval: socket.tcp_keepalive_interval().unwrap(),
        probes: socket.tcp_keepalive_retries().unwrap(),
    });
    Options {
        keepalive,
        user_timeout: socket.tcp_user_timeout().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_is_told_when_a_peer_is_gone() {
    let tcp = |seconds| Options {
        keepalive: Some(Keepalive {
            idle: Duration::from_secs(seconds),
            interval: Duration::from_secs(seconds + 1),
            probes: 9,
        }),
        user_timeout: Some(Duration::from_secs(seconds + 2)),
    };
    let off = Options {
        keepalive: None,
        user_timeout: None,
    };
    for [server_streams, server_links, agent_streams, agent_links] in [
        [tcp(100), tcp(200), tcp(300), tcp(400)],
        [
            Options::STREAMS,
            Options::LINKS,
            Options::STREAMS,
            Options::LINKS,
        ],
        [off, tcp(200), off, tcp(400)],
        [tcp(100), off, tcp(300), off],
    ] {
        let rig = Rig::start_with(
            |server| {
                server.splice.tcp = server_streams;
                server.link.tcp = server_links;
            },
            |agent| {
                agent.splice.tcp = agent_streams;
                agent.link.tcp = agent_links;
            },
        )
        .await;
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        let (here, there) = (visitor.local_addr().unwrap(), visitor.peer_addr().unwrap());
        assert_eq!(options(&socket(there.port(), here.port())), server_streams);
        let (here, there) = (target.local_addr().unwrap(), target.peer_addr().unwrap());
        assert_eq!(options(&socket(there.port(), here.port())), agent_streams);
        let front = rig.server.front().port();
        assert_eq!(options(&socket(front, 0)), server_links);
        assert_eq!(options(&socket(0, front)), agent_links);
        drop((visitor, target));
        until("the end of the stream", || {
            rig.server.counters().streams() == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_any_more_is_given_up_by_tcp() {
    for at_server in [true, false] {
        let tcp = |here: bool| Options {
            keepalive: None,
            user_timeout: here.then_some(SHORT),
        };
        let rig = Rig::start_with(
            |server| server.splice.tcp = tcp(at_server),
            |agent| agent.splice.tcp = tcp(!at_server),
        )
        .await;
        let (mut visitor, mut target) = rig.pair().await;
        // With its window shut a peer acknowledges probes and takes no byte (tcp(7),
        // TCP_USER_TIMEOUT).
        let (source, silent) = if at_server {
            (&mut target, &mut visitor)
        } else {
            (&mut visitor, &mut target)
        };
        let data = vec![1; 64 * 1024];
        let pour = async { while source.write_all(&data).await.is_ok() {} };
        within(LONG, "the end of the source", pour).await;
        let _ = within(PROMPT, "the end", drain(silent)).await;
        rig.at_rest().await;
        let expected = if at_server { (1, 0) } else { (0, 1) };
        assert_eq!(both(&rig, "tcp"), expected);
    }
}

/// Streams that no splice carries: a request at the front, one of the program, one of a peer's.
#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_of_the_front_and_of_the_program_are_reset() {
    let limit = 2 * SHORT;
    let rig = Rig::start_with(
        |server| {
            with_http(server);
            server.splice.idle = Some(limit);
        },
        |_| {},
    )
    .await;
    let address = rig.target.local_addr().unwrap();
    let dial = Target::tcp(&address.to_string(), None).unwrap();
    let dialer = rig.server.dialer("web");
    let mut stream = within(PROMPT, "the stream", dialer.dial(&dial))
        .await
        .unwrap();
    let (mut target, _) = rig.target.accept().await.unwrap();
    for _ in 0..10 {
        target.write_all(b"!").await.unwrap();
        let read = within(PROMPT, "a byte", stream.read_exact(&mut [0])).await;
        read.unwrap();
        tokio::time::sleep(limit / 6).await;
    }
    assert_eq!(both(&rig, "idle"), (0, 0));
    let read = within(PROMPT, "the reset", stream.read(&mut [0])).await;
    assert!(read.is_err(), "{read:?}");
    let reset = within(PROMPT, "the target's reset", drain(&mut target)).await;
    assert!(reset.is_err());
    assert_eq!(both(&rig, "idle"), (1, 0));
    drop(stream);

    let mut visitor = connect(rig.server.front()).await.unwrap();
    let request = format!("GET /client/web/http/{address}/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let (mut target, _) = within(PROMPT, "the dial", rig.target.accept())
        .await
        .unwrap();
    target.read_u8().await.unwrap();
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart";
    target.write_all(response).await.unwrap();
    let _ = within(PROMPT, "the visitor's end", drain(&mut visitor)).await;
    let _ = within(PROMPT, "the target's end", drain(&mut target)).await;
    assert_eq!(both(&rig, "idle"), (2, 0));
    drop((visitor, target));
    rig.at_rest().await;
}
