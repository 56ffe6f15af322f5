//! The binary: its lines, its exit status, its signals and its descriptors.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use crate::child::{Process, command, until};
use crate::world::of_the_world;

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn get(front: &str, path: &str) -> String {
    let mut visitor = of_the_world(TcpStream::connect(front).unwrap());
    write!(
        visitor,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut reply = String::new();
    visitor.read_to_string(&mut reply).unwrap();
    reply
}

/// Answers every request on a connection of its own.
fn answer_ok(target: &TcpListener) {
    for stream in target.incoming() {
        let mut stream = of_the_world(stream.unwrap());
        std::thread::spawn(move || {
            let mut byte = [0];
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0)
            {
                head.push(byte[0]);
            }
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        });
    }
}

/// Returns the first of two free ports in a row.
fn two_free_ports() -> u16 {
    loop {
        let first = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
        let port = first.local_addr().unwrap().port();
        let next = port.checked_add(1);
        if let Some(Ok(next)) = next.map(|next| TcpListener::bind(("127.0.0.1", next))) {
            drop(of_the_world(next));
            return port;
        }
    }
}

#[test]
fn ports_listen_at_localhost_at_all_addresses_and_in_rows() {
    let first = two_free_ports();
    let (last, credentials) = (first + 1, tempfile::NamedTempFile::new().unwrap());
    std::fs::write(&credentials, "anna:secret").unwrap();
    let mut server = Process::start(&[
        "server",
        "--listen",
        "localhost:0",
        "--admin",
        "localhost:0",
        "--forward",
        &format!("localhost:{first}-{last}=web/tcp/127.0.0.1:80-81"),
        "--http-connect",
        ":0=web",
        "--proxy-credentials-file",
        credentials.path().to_str().unwrap(),
    ]);
    assert!(server.listening("front").starts_with("127.0.0.1:"));
    for port in [first, last] {
        assert_eq!(server.listening("forward"), format!("127.0.0.1:{port}"));
    }
    assert!(server.listening("http-connect").starts_with("0.0.0.0:"));
    assert!(server.listening("admin").starts_with("127.0.0.1:"));
}

#[test]
fn traffic_then_descriptors_at_their_baseline_then_a_drain() {
    let target = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = target.local_addr().unwrap().to_string();
    let forward = format!("127.0.0.1:0=web/tcp/{address}");
    let mut server = Process::start(&[
        "server",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "listen",
        "--forward",
        &forward,
        "--admin",
        "127.0.0.1:0",
        "--compat-metrics",
        "remotedialer",
        "--drain",
        "15s",
    ]);
    let front = server.listening("front");
    let forward = server.listening("forward");
    let metrics = server.listening("admin");
    let url = format!("ws://{front}/connect");
    let mut agent = Process::start(&[
        "agent", "--server", &url, "--name", "web", "--allow", &address,
    ]);
    until("the agent's coming", || {
        get(&metrics, "/metrics").contains("watertight_sessions 1")
    });
    let baseline = (server.sockets(), agent.sockets());

    std::thread::spawn(move || answer_ok(&target));
    for _ in 0..20 {
        assert!(get(&front, &format!("/client/web/http/{address}/")).ends_with("ok"));
        assert!(get(&forward, "/").ends_with("ok"));
    }
    // A scraper's connection may have been part of the baseline.
    until("the descriptors' baseline", || {
        server.sockets() <= baseline.0 && agent.sockets() <= baseline.1
    });
    let labels = format!("{{addr=\"{address}\",clientkey=\"web\",proto=\"tcp\"}} 40");
    // A socket goes before the word that its stream's last bytes arrived has crossed the link.
    until("the streams' being counted out", || {
        let text = get(&metrics, "/metrics");
        ["add", "remove"]
            .into_iter()
            .all(|name| text.contains(&format!("session_server_total_{name}_connections{labels}")))
    });

    let mut open = of_the_world(TcpStream::connect(&forward).unwrap());
    open.write_all(b"GET").unwrap();
    until("the stream", || {
        get(&metrics, "/metrics").contains("watertight_streams 1")
    });
    server.signal();
    until("the end of listening", || {
        TcpStream::connect(&forward).is_err()
    });
    open.write_all(b" / HTTP/1.1\r\n\r\n").unwrap();
    let mut reply = String::new();
    open.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("ok"));
    drop(open);
    assert_eq!(server.status(), 0);
    agent.signal();
    assert_eq!(agent.status(), 0);
}

#[test]
fn one_agent_serves_several_servers_in_either_dialect() {
    let target = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = target.local_addr().unwrap().to_string();
    let forward = format!("127.0.0.1:0=web/tcp/{address}");
    let listen = ["--listen", "127.0.0.1:0", "--forward", &forward];
    for dialect in ["native", "remotedialer"] {
        let mut servers: Vec<Process> = (0..2)
            .map(|_| Process::start(&[&["server", "--accept-remotedialer"], &listen[..]].concat()))
            .collect();
        let urls: Vec<String> = servers
            .iter_mut()
            .map(|server| format!("ws://{}/connect", server.listening("front")))
            .collect();
        let mut agent = Process::start(&[
            "agent",
            "--server",
            &urls[0],
            "--server",
            &urls[1],
            "--name",
            "web",
            "--allow",
            &address,
            "--dialect",
            dialect,
        ]);
        for server in &mut servers {
            let forward = server.listening("forward");
            let reaches = || {
                let mut visitor = of_the_world(TcpStream::connect(&forward).ok()?);
                visitor.write_all(b"x").ok()?;
                // A visitor that came before the agent is reset.
                visitor
                    .set_read_timeout(Some(Duration::from_millis(100)))
                    .ok()?;
                match visitor.read(&mut [0]) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(visitor),
                    Ok(_) | Err(_) => None,
                }
            };
            let mut visitor = None;
            until("the agent's coming", || {
                visitor = reaches();
                visitor.is_some()
            });
            let (stream, _) = target.accept().unwrap();
            let mut stream = of_the_world(stream);
            stream.write_all(b"y").unwrap();
            let mut byte = [0];
            let mut visitor = visitor.unwrap();
            visitor
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            visitor.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"y");
        }
        agent.signal();
        assert_eq!(agent.status(), 0);
    }
    let url = "ws://127.0.0.1:1/connect";
    let twice = run(&mut command(&[
        "agent", "--server", url, "--server", url, "--name", "web",
    ]));
    assert_eq!(twice.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("given twice"));
}

#[test]
fn a_second_signal_leaves_at_once() {
    let target = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = target.local_addr().unwrap().to_string();
    let forward = format!("127.0.0.1:0=web/tcp/{address}");
    let mut server = Process::start(&[
        "server",
        "--listen",
        "127.0.0.1:0",
        "--forward",
        &forward,
        "--drain",
        "1h",
    ]);
    let front = server.listening("front");
    let forward = server.listening("forward");
    let url = format!("ws://{front}/connect");
    let _agent = Process::start(&[
        "agent", "--server", &url, "--name", "web", "--allow", &address,
    ]);
    let mut held = None;
    until("the agent's coming", || {
        let mut visitor = of_the_world(TcpStream::connect(&forward).unwrap());
        visitor
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let waits = matches!(visitor.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        held = waits.then_some(visitor);
        waits
    });
    server.signal();
    until("the end of listening", || {
        TcpStream::connect(&forward).is_err()
    });
    server.signal();
    assert_eq!(server.status(), 1);
}

const EAST: &str = "east=ws://127.0.0.1:1/connect";

/// Runs a command that must fail and name `word` in its errors.
fn fails(command: &mut Command, word: &str) {
    let output = run(command);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains(word),
        "{word}: {text}"
    );
}

fn server() -> Command {
    command(&["server", "--listen", "127.0.0.1:0"])
}

#[test]
fn a_wrong_option_of_a_server_is_named() {
    fails(server().env_remove("TUNNEL_TOKEN"), "--token-file");
    fails(server().env("TUNNEL_TOKEN", " "), "TUNNEL_TOKEN is empty");
    for (arguments, word) in [
        (["--token-file", "/nonexistent"], "/nonexistent"),
        (["--forward", "127.0.0.1:0=web"], "AGENT/tcp/HOST:PORT"),
        (["--drain", "soon"], "--drain"),
        (["--compat-metrics", "remotedialer"], "--admin"),
    ] {
        fails(server().args(arguments), word);
    }
}

#[test]
fn a_wrong_option_of_peers_is_named() {
    fails(server().args(["--peer", EAST]), "--peer-id");
    let with_id = |peer: &str, id: &str| {
        let mut server = server();
        server.args(["--peer", peer, "--peer-id", id]);
        server
    };
    fails(&mut with_id("east", "west"), "ID=URL");
    fails(&mut with_id(EAST, "west"), "TUNNEL_PEER_TOKEN");
    fails(
        with_id(EAST, "west").env("TUNNEL_PEER_TOKEN", "secret"),
        "an agent could pass for a peer",
    );
    fails(
        with_id(EAST, "east").env("TUNNEL_PEER_TOKEN", "shared"),
        "the name east is taken",
    );
}

#[test]
fn a_wrong_option_of_an_agent_is_named() {
    let agent = |url: &str, name: &str| command(&["agent", "--server", url, "--name", name]);
    let url = "ws://a/connect";
    fails(agent(url, "web").args(["--links", "17"]), "1..=16");
    fails(
        agent(url, "web").args(["--links", "2", "--dialect", "remotedialer"]),
        "--dialect native",
    );
    fails(
        &mut agent("https://a/connect", "web"),
        "wss://HOST:PORT/connect",
    );
    fails(&mut agent(url, "a b"), "a name has");
    fails(
        agent(url, "a").args(["--allow", "10.0.0.0/40:1"]),
        "10.0.0.0/40:1",
    );
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    let word = format!("cannot listen on {address}");
    fails(&mut command(&["server", "--listen", &address]), &word);
}

#[test]
fn help_teaches() {
    let output = run(&mut command(&["--help"]));
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("tunnel agent --server ws://127.0.0.1:8123/connect"),
        "{text}"
    );
}

/// Returns the soft and the hard limit of open files of a process (`proc_pid_limits(5)`).
fn open_files(process: &Process) -> (String, String) {
    let limits = process.read("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut fields = line.unwrap().split_whitespace().skip(3).map(str::to_owned);
    (fields.next().unwrap(), fields.next().unwrap())
}

#[test]
fn the_soft_limit_of_open_files_is_raised_and_a_hard_one_that_is_too_low_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for (hard, options, told) in [
        (4096, "--max-connections 2000 --max-sessions 100", false),
        (4096, "--max-connections 3900 --max-sessions 100", true),
        (1024, "", true),
    ] {
        let program = env!("CARGO_BIN_EXE_tunnel");
        let script = format!(
            "ulimit -Sn 256 && ulimit -Hn {hard} && exec {program} server --listen 127.0.0.1:0 {options}"
        );
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script])
            .env("TUNNEL_TOKEN", "secret")
            .env_remove("TUNNEL_LOG")
            .env_remove("RUST_LOG")
            .stderr(std::fs::File::create(&log).unwrap());
        let mut server = Process::spawn(&mut shell);
        server.listening("front");
        let hard = hard.to_string();
        assert_eq!(open_files(&server), (hard.clone(), hard));
        let log = std::fs::read_to_string(&log).unwrap();
        assert_eq!(log.contains("cannot be reached"), told, "{log}");
    }
}
