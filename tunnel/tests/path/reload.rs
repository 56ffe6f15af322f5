//! The configuration of a server that runs changes under it, and no stream that may stay is lost.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use tunnel::wire::handshake::{PEER_NAME_HEADER, PEER_TOKEN_HEADER};

use crate::child::{Process, command, until};
use crate::world::of_the_world;

struct Site {
    server: Process,
    agent: Process,
    target: TcpListener,
    folder: tempfile::TempDir,
    digest: String,
}

fn digest_of(file: &Path) -> String {
    let output = command(&["token", "--file"]).arg(file).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.trim().strip_prefix("digest ").unwrap().to_owned()
}

/// Returns the first free port of a new socket; nothing listens there when this returns.
fn free_port() -> u16 {
    let probe = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    probe.local_addr().unwrap().port()
}

impl Site {
    fn start() -> (Self, u16) {
        let folder = tempfile::tempdir().unwrap();
        let digest = digest_of(&folder.path().join("token"));
        let target = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
        let forward = free_port();
        write(folder.path(), &target, &[forward], &[&digest]);
        let config = folder.path().join("server.toml");
        let mut server = Process::start(&["server", "--config", config.to_str().unwrap()]);
        let front = server.listening("front");
        server.listening("forward");
        let (url, token) = (format!("ws://{front}/connect"), folder.path().join("token"));
        let agent = Process::start(&[
            "agent",
            "--server",
            &url,
            "--name",
            "web",
            "--allow",
            "127.0.0.1:*",
            "--token-file",
            token.to_str().unwrap(),
        ]);
        let site = Self {
            server,
            agent,
            target,
            folder,
            digest,
        };
        (site, forward)
    }

    /// Writes the configuration as people do who know what they do: the new file takes the place of
    /// the old one.
    fn rewrite(&self, forwards: &[u16], tokens: &[&str]) {
        write(self.folder.path(), &self.target, forwards, tokens);
    }
}

fn write(folder: &Path, target: &TcpListener, forwards: &[u16], tokens: &[&str]) {
    let target = target.local_addr().unwrap();
    let forwards = forwards
        .iter()
        .map(|port| format!("127.0.0.1:{port}=web/tcp/{target}"));
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nforward = {:?}\n[server.agents.web]\ntokens = {tokens:?}\n",
        forwards.collect::<Vec<_>>()
    );
    let (new, file) = (folder.join("new"), folder.join("server.toml"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Connects through a forward until the agent serves it, and takes the target's end.
fn pair(site: &Site, forward: u16) -> (TcpStream, TcpStream) {
    let mut held = None;
    until("a stream", || {
        let Ok(visitor) = TcpStream::connect(("127.0.0.1", forward)) else {
            return false;
        };
        let mut visitor = of_the_world(visitor);
        let wait = Some(Duration::from_millis(200));
        visitor.set_read_timeout(wait).unwrap();
        let waits = matches!(visitor.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        visitor
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        held = waits.then_some(visitor);
        waits
    });
    let mut visitor = held.unwrap();
    visitor.write_all(b"hello").unwrap();
    loop {
        let (target, _) = site.target.accept().unwrap();
        let mut target = of_the_world(target);
        target
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // Visitors that only looked whether somebody listens say nothing.
        if target.read_exact(&mut [0; 5]).is_ok() {
            return (visitor, target);
        }
    }
}

fn talk(one: &mut TcpStream, other: &mut TcpStream) {
    one.write_all(b"ping").unwrap();
    let mut data = [0; 4];
    other.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"ping");
}

#[test]
fn forwards_come_and_go_and_no_stream_is_dropped() {
    let (mut site, first) = Site::start();
    let (mut visitor, mut target) = pair(&site, first);
    let second = free_port();
    site.rewrite(&[first, second], &[&site.digest]);
    let told = site.server.listening("forward");
    assert_eq!(told, format!("127.0.0.1:{second}"));
    let (mut another, mut its_target) = pair(&site, second);
    talk(&mut visitor, &mut target);
    site.rewrite(&[second], &[&site.digest]);
    until("the end of the first forward", || {
        TcpStream::connect(("127.0.0.1", first)).is_err()
    });
    talk(&mut visitor, &mut target);
    talk(&mut another, &mut its_target);

    // A configuration with an error changes nothing.
    std::fs::write(
        site.folder.path().join("server.toml"),
        "[server]\nlisen = 1\n",
    )
    .unwrap();
    site.server.hang_up();
    talk(&mut visitor, &mut target);
    let (mut third, mut its_target) = pair(&site, second);
    talk(&mut third, &mut its_target);
    for process in [&mut site.agent, &mut site.server] {
        process.signal();
        process.signal();
    }
}

#[test]
fn a_reload_under_load_drops_no_stream() {
    let (site, forward) = Site::start();
    let (mut visitor, mut target) = pair(&site, forward);
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read @ 1..) = target.read(&mut buffer) {
            target.write_all(&buffer[..read]).unwrap();
        }
    });
    let spare = [free_port(), free_port()];
    let began = Instant::now();
    let (mut moved, mut reloads) = (0_u64, 0);
    let piece = [7; 8 * 1024];
    let mut back = [0; 8 * 1024];
    while began.elapsed() < Duration::from_secs(3) {
        visitor.write_all(&piece).unwrap();
        visitor.read_exact(&mut back).unwrap();
        assert_eq!(back, piece);
        moved += 1;
        if moved % 200 == 0 {
            let ports = [forward, spare[reloads % 2]];
            site.rewrite(&ports, &[&site.digest]);
            site.server.hang_up();
            reloads += 1;
        }
    }
    assert!(reloads > 2, "{reloads} reloads beside {moved} pieces");
    drop(visitor);
    echo.join().unwrap();
}

#[test]
fn a_token_that_is_taken_out_of_the_file_cuts_its_sessions() {
    let (site, forward) = Site::start();
    let (mut visitor, _target) = pair(&site, forward);
    let other = digest_of(&site.folder.path().join("other"));
    let began = Instant::now();
    site.rewrite(&[forward], &[&other]);
    let ended = visitor.read(&mut [0]);
    assert!(ended.is_err(), "{ended:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

/// Asks for a link as the peer "east" does, and returns the status of the response.
fn ask_as_peer(front: &str, token: &str) -> String {
    let mut peer = of_the_world(TcpStream::connect(front).unwrap());
    let request = format!(
        "GET /connect HTTP/1.1\r\nhost: west\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         {PEER_NAME_HEADER}: east\r\n{PEER_TOKEN_HEADER}: {token}\r\n\r\n"
    );
    peer.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    peer.read_exact(&mut status).unwrap();
    String::from_utf8(status.to_vec()).unwrap()
}

#[test]
fn the_token_of_peers_is_taken_when_its_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "old").unwrap();
    let mut server = Process::start(&[
        "server",
        "--listen",
        "127.0.0.1:0",
        "--peer-id",
        "west",
        "--peer",
        &format!("east=ws://127.0.0.1:{}/connect", free_port()),
        "--peer-token-file",
        file.to_str().unwrap(),
    ]);
    let front = server.listening("front");
    assert_eq!(ask_as_peer(&front, "old"), "HTTP/1.1 101");
    assert_eq!(ask_as_peer(&front, "new"), "HTTP/1.1 401");
    std::fs::write(&file, "new").unwrap();
    until("the new token", || {
        ask_as_peer(&front, "new") == "HTTP/1.1 101"
    });
    assert_eq!(ask_as_peer(&front, "old"), "HTTP/1.1 401");
}

#[test]
fn an_agent_that_reads_its_line_from_standard_input_reloads_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let mut server = Process::start(&[
        "server",
        "--listen",
        "127.0.0.1:0",
        "--print-join",
        "--state-dir",
        state,
    ]);
    let front = server.listening("front");
    let line = server.line();
    assert!(line.contains(&front), "{line}");
    let log = folder.path().join("log");
    let mut agent = command(&["agent", "-", "--name", "web", "--state-dir", state]);
    agent
        .env_remove("TUNNEL_TOKEN")
        .stdin(std::process::Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut agent = Process::spawn(&mut agent);
    // As on a terminal: the line ends, the input does not.
    let mut input = agent.input();
    writeln!(input, "{line}").unwrap();
    let logged = |text: &str| std::fs::read_to_string(&log).unwrap().matches(text).count();
    until("the link", || logged(" connected ") == 1);
    for reloads in 1..=2 {
        agent.hang_up();
        until("the reload", || logged("was read again") == reloads);
    }
    agent.signal();
    assert_eq!(agent.status(), 0);
    drop(input);
}

#[test]
fn a_configuration_that_cannot_be_read_through_does_not_keep_the_program_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let fifo = fifo.to_str().unwrap();
    // An agent whose line never comes, one whose file never does, and a server likewise.
    for arguments in [
        &["agent", "-"][..],
        &["agent", "--config", fifo],
        &["server", "--config", fifo],
    ] {
        let mut process = command(arguments);
        process.stdin(std::process::Stdio::piped());
        let mut process = Process::spawn(&mut process);
        let input = process.input();
        std::thread::sleep(Duration::from_millis(300));
        process.signal();
        assert_eq!(process.status(), 0, "{arguments:?}");
        drop(input);
    }
}
