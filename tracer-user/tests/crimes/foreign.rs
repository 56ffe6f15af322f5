//! Unmodified programs, which know nothing of a tracer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

pub(super) fn commit(name: &str) {
    match name {
        "foreign_curl" => curl(),
        "foreign_nginx" => nginx(),
        "foreign_python" => run(
            Command::new("python3").args(["-c", PYTHON, "release"]),
            true,
        ),
        "foreign_python_leaking" => {
            run(Command::new("python3").args(["-c", PYTHON, "keep"]), false)
        }
        "foreign_go" => go("release", true),
        "foreign_go_leaking" => go("keep", false),
        name => panic!("no deed is called {name:?}"),
    }
}

/// A server that answers one request a connection and finishes first, as upstreams do that do not keep alive.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::net::listen(&listener, 4096).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let _ = answer(socket.unwrap());
        }
    });
    address
}

fn answer(mut socket: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if socket.read(&mut byte)? == 0 {
            return Ok(());
        }
        request.push(byte[0]);
    }
    socket
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")?;
    socket.shutdown(Shutdown::Write)
}

fn curl() {
    let url = format!("http://{}/", upstream());
    for _ in 0..5 {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", &url, &url])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"hello\nhello\n");
    }
}

/// nginx as a proxy, under load, with an upstream that finishes first.
fn nginx() {
    const CONNECTIONS: usize = 8;
    const REQUESTS: usize = 50;
    let folder = tempfile::tempdir().unwrap();
    let front = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    let configuration = folder.path().join("nginx.conf");
    std::fs::write(
        &configuration,
        nginx_configuration(folder.path(), front, upstream()),
    )
    .unwrap();
    let mut server = Command::new("nginx")
        .args([
            "-p",
            folder.path().to_str().unwrap(),
            "-c",
            configuration.to_str().unwrap(),
        ])
        .spawn()
        .unwrap();
    wait_for(front);
    let visitors: Vec<_> = (0..CONNECTIONS)
        .map(|_| thread::spawn(move || visit(front, REQUESTS)))
        .collect();
    for visitor in visitors {
        visitor.join().unwrap();
    }
    // Longer than grace: what the proxy forgot would be found.
    thread::sleep(super::TOO_LONG);
    quit(&mut server);
}

fn nginx_configuration(folder: &Path, front: SocketAddr, upstream: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off;\n\
           client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;\n\
           uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
           server {{ listen {front}; location / {{ proxy_pass http://{upstream}; }} }} }}\n"
    )
}

fn wait_for(address: SocketAddr) {
    for _ in 0..500 {
        if TcpStream::connect(address).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody listens on {address}");
}

/// A kept-alive visitor.
fn visit(front: SocketAddr, requests: usize) {
    let mut socket = TcpStream::connect(front).unwrap();
    for _ in 0..requests {
        socket
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello\n") {
            let mut bytes = [0; 1024];
            let length = socket.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "the proxy ended the connection");
            answer.extend_from_slice(&bytes[..length]);
        }
    }
}

fn quit(server: &mut Child) {
    let pid = rustix::process::Pid::from_child(server);
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    assert!(server.wait().unwrap().success());
}

/// Fetches three times. With "keep" it keeps the connections that the server has finished.
const PYTHON: &str = r#"
import os, socket, sys, time
host, port = os.environ["UPSTREAM"].rsplit(":", 1)
kept = []
for _ in range(3):
    s = socket.create_connection((host, int(port)))
    s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    while s.recv(1000): pass
    if sys.argv[1] == "keep":
        print("guilty", os.getpid(), s.fileno(), flush=True)
        kept.append(s)
    else:
        s.close()
time.sleep(0.9)
for s in kept: s.close()
"#;

/// The same in Go; its own HTTP client when it behaves.
const GO: &str = r#"
package main

import ("fmt"; "io"; "net"; "net/http"; "os"; "time")

func main() {
    upstream := os.Getenv("UPSTREAM")
    if os.Args[1] == "release" {
        for i := 0; i < 20; i++ {
            response, err := http.Get("http://" + upstream + "/")
            if err != nil { panic(err) }
            if _, err = io.Copy(io.Discard, response.Body); err != nil { panic(err) }
            response.Body.Close()
        }
        time.Sleep(900 * time.Millisecond)
        return
    }
    var kept []net.Conn
    for i := 0; i < 3; i++ {
        conn, err := net.Dial("tcp", upstream)
        if err != nil { panic(err) }
        fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        io.Copy(io.Discard, conn)
        raw, _ := conn.(*net.TCPConn).SyscallConn()
        raw.Control(func(fd uintptr) { fmt.Println("guilty", os.Getpid(), fd) })
        kept = append(kept, conn)
    }
    time.Sleep(900 * time.Millisecond)
    for _, conn := range kept { conn.Close() }
}
"#;

fn run(command: &mut Command, quiet: bool) {
    command.env("UPSTREAM", upstream().to_string());
    if quiet {
        command.stdout(Stdio::null());
    }
    assert!(command.status().unwrap().success());
}

fn go(deed: &str, quiet: bool) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("main.go");
    std::fs::write(&source, GO).unwrap();
    let program = folder.path().join("program");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(&source)
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go-cache"))
        .env("GOFLAGS", "-mod=mod")
        .env("GO111MODULE", "off")
        .status()
        .unwrap();
    assert!(built.success());
    run(Command::new(&program).arg(deed), quiet);
}
