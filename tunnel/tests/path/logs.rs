//! Log lines: whose they are, and what must not be in them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use data_encoding::BASE64;
use regex_automata::dfa::regex::Regex;
use regex_automata::util::syntax;
use serde_json::Value;

use crate::child::{command, until};
use crate::world::of_the_world;

const CANARY: &str = "canary-in-a-coal-mine-0123456789";

/// A process whose log goes to a file, and which is killed when it is dropped.
struct Logged(Child);

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str], level: &str, log: &Path) -> Logged {
    let mut command: Command = command(arguments);
    command
        .env("TUNNEL_TOKEN", CANARY)
        .env("TUNNEL_LOG", level)
        .stdout(Stdio::null())
        .stderr(File::create(log).unwrap());
    Logged(command.spawn().unwrap())
}

fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap()
}

/// The fields of an event and of all the spans around it.
fn fields(line: &str) -> Vec<(String, Value)> {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    let spans = line["spans"].as_array().cloned().unwrap_or_default();
    let all = spans.into_iter().chain([line["fields"].clone()]);
    all.flat_map(|fields| fields.as_object().unwrap().clone())
        .collect()
}

fn has(line: &str, wanted: &[&str]) -> bool {
    let fields = fields(line);
    wanted
        .iter()
        .all(|name| fields.iter().any(|(field, _)| field == name))
}

/// A free port, for a process that cannot be asked for its own before it runs.
fn free_port() -> u16 {
    let listener = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    listener.local_addr().unwrap().port()
}

#[test]
fn json_lines_say_whose_they_are_and_keep_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let [server_log, agent_log] = ["server", "agent"].map(|name| folder.path().join(name));
    let target = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = target.local_addr().unwrap().to_string();
    let [front, forward] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let rule = format!("{forward}=web/tcp/{address}");
    let json = ["--log-format", "json"];
    let server = ["server", "--listen", &front, "--forward", &rule];
    let _server = start(&[&json[..], &server].concat(), "debug", &server_log);
    let url = format!("ws://{front}/connect");
    let agent = [
        "agent", "--server", &url, "--name", "web", "--allow", &address,
    ];
    let _agent = start(&[&json[..], &agent].concat(), "debug", &agent_log);
    until("the connection", || {
        read(&server_log).contains("\"connected\"")
    });

    let mut visitor = of_the_world(TcpStream::connect(&forward).unwrap());
    let (mut accepted, _) = target.accept().unwrap();
    of_the_world(&accepted);
    visitor.write_all(b"hello").unwrap();
    visitor.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = String::new();
    accepted.read_to_string(&mut got).unwrap();
    drop((accepted, visitor));

    for (log, message) in [
        (&server_log, "visitor released"),
        (&agent_log, "target released"),
    ] {
        until(message, || {
            read(log).lines().any(|line| line.contains(message))
        });
        let text = read(log);
        let line = text.lines().find(|line| line.contains(message)).unwrap();
        assert!(
            has(line, &["agent", "session", "stream", "target"]),
            "{line}"
        );
        assert!(text.lines().any(|line| {
            line.contains("stream ended") && has(line, &["session", "stream", "ending"])
        }));
        for line in text.lines() {
            assert!(!line.contains(CANARY), "{line}");
            let _ = fields(line);
        }
    }
}

#[test]
fn a_server_cannot_write_lines_into_its_agents_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("agent");
    let liar = of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("ws://{}/connect", liar.local_addr().unwrap());
    let arguments = [
        "agent",
        "--server",
        &url,
        "--name",
        "web",
        "--allow",
        "127.0.0.1:1",
    ];
    let _agent = start(&arguments, "info", &log);
    let (mut agent, _) = liar.accept().unwrap();
    of_the_world(&agent);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        agent.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let lie = "no\nFORGED \x1b[31mred\r\n";
    let length = lie.len();
    // In one piece: the agent tells what has come when the head is there.
    let answer = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {length}\r\n\r\n{lie}");
    agent.write_all(answer.as_bytes()).unwrap();
    until("the refusal", || read(&log).contains("FORGED"));
    let text = read(&log);
    assert!(
        !text.lines().any(|line| line.starts_with("FORGED")),
        "{text}"
    );
    assert!(!text.contains('\x1b') && !text.contains('\r'), "{text}");
    assert!(!text.contains(CANARY), "{text}");
}

/// fail2ban's expression, as docs/tunnel.md has it, for one address.
fn fail2ban(address: &str) -> Regex {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tunnel.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let mut lines = docs.lines();
    let expression = lines.find_map(|line| line.strip_prefix("failregex = "));
    let address = address.replace('.', "\\.");
    let expression = expression.unwrap().replace("<HOST>", &address);
    let ascii = syntax::Config::new().unicode(false).utf8(false);
    Regex::builder().syntax(ascii).build(&expression).unwrap()
}

#[test]
fn a_refused_login_is_one_line_that_fail2ban_reads_and_nobody_forges() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("server");
    let credentials = folder.path().join("credentials");
    std::fs::write(&credentials, format!("anna:{CANARY}")).unwrap();
    let port = free_port();
    let connect = format!("127.0.0.1:{port}=web");
    let arguments = [
        "server",
        "--listen",
        "127.0.0.1:0",
        "--http-connect",
        &connect,
        "--proxy-credentials-file",
        &credentials.display().to_string(),
    ];
    let _server = start(&arguments, "info", &log);
    let address = format!("127.0.0.1:{port}");
    until("the port", || {
        TcpStream::connect(&address).map(of_the_world).is_ok()
    });
    let forged = "x\" address=10.9.9.9 suppressed=0 name=\"y\n  WARN tunnel::login: login refused port=http \
                  address=10.9.9.9 suppressed=0 name=\"z";
    for name in ["anna", forged, "\x1b[31m"] {
        let mut visitor = of_the_world(TcpStream::connect(&address).unwrap());
        let pair = BASE64.encode(format!("{name}:guess-{CANARY}").as_bytes());
        write!(
            visitor,
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\nProxy-Authorization: Basic {pair}\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        visitor.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 407 "), "{reply}");
    }
    let text = read(&log);
    let matching = |address: &str, prefix: &str| {
        let expression = fail2ban(address);
        let lines = text.lines();
        // fail2ban cuts the time out before it matches.
        let cut = |line: &str| {
            line.split_once(' ')
                .map(|(_, rest)| format!("{prefix}{rest}"))
        };
        lines
            .filter_map(cut)
            .filter(|line| expression.is_match(line.as_bytes()))
            .count()
    };
    for prefix in [
        "",
        " host tunnel[17]: 2026-01-01T00:00:00.000000Z ",
        "host tunnel[17]: 2026-01-01T00:00:00.000000Z ",
    ] {
        assert_eq!(matching("127.0.0.1", prefix), 3, "{text}");
        assert_eq!(matching("10.9.9.9", prefix), 0, "{text}");
    }
    assert!(text.contains("name=\"anna\""), "{text}");
    assert!(!text.contains(CANARY) && !text.contains('\x1b'), "{text}");
}

/// An agent that crashes again and again makes one warning, and not one for each time.
#[test]
fn a_name_that_flaps_is_warned_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let [server_log, agent_log] = ["server", "agent"].map(|name| folder.path().join(name));
    let front = format!("127.0.0.1:{}", free_port());
    let _server = start(&["server", "--listen", &front], "info", &server_log);
    let url = format!("ws://{front}/connect");
    let lines = |word: &str| {
        let text = read(&server_log);
        text.lines().filter(|line| line.contains(word)).count()
    };
    for count in 1..=6 {
        let agent = [
            "agent",
            "--server",
            &url,
            "--name",
            "web",
            "--allow",
            "127.0.0.1:1",
        ];
        let agent = start(&agent, "error", &agent_log);
        until("the connection", || lines(" connected") >= count);
        drop(agent);
        until("the end", || lines(" gone") >= count);
    }
    assert_eq!(lines("come and go quickly"), 1, "{}", read(&server_log));
}
