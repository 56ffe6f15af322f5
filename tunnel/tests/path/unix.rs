//! Unix sockets as targets.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tunnel::io::socket::{NOBODY, Role, SocketFile};
use tunnel::policy::Policy;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::target::Target;
use tunnel::wire::Dialect;

use crate::rig::{
    LONG, PROMPT, Rig, drain, fill, pattern, refused, reset, until, with_http, within,
};
use crate::world::{connect, of_the_world};

/// A rig whose forward leads to `asked` and whose agent allows `rule`.
async fn rig(asked: &Path, rule: &Path, dialect: Dialect) -> Rig {
    let target: Target = format!("unix/{}", asked.display()).parse().unwrap();
    let rule = format!("unix:{}", rule.display()).parse().unwrap();
    Rig::start_with(
        |server| {
            with_http(server);
            server.forwards[0].target = target;
            server.remotedialer = Some(Remotedialer::default());
        },
        |agent| {
            agent.policy = Policy::new(vec![rule]);
            agent.dialect = dialect;
            agent.dial_timeout = Duration::from_secs(2);
        },
    )
    .await
}

fn socket() -> (TempDir, PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let listener = of_the_world(UnixListener::bind(&path).unwrap());
    (directory, path, listener)
}

async fn pair(rig: &Rig, listener: &UnixListener) -> (TcpStream, UnixStream) {
    let visitor = rig.visitor().await;
    let accepted = within(LONG, "the dial", listener.accept()).await.unwrap();
    (visitor, of_the_world(accepted.0))
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_and_each_direction_ends_by_itself() {
    let (_directory, path, listener) = socket();
    let rig = rig(&path, &path, Dialect::Native).await;
    let (mut visitor, mut target) = pair(&rig, &listener).await;
    let data = pattern(3 * 1024 * 1024);
    let mut received = Vec::new();
    within(LONG, "the question", async {
        let send = async {
            visitor.write_all(&data).await.unwrap();
            visitor.shutdown().await.unwrap();
        };
        tokio::join!(send, target.read_to_end(&mut received))
            .1
            .unwrap();
    })
    .await;
    assert!(received == data);
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let read = within(PROMPT, "the answer", drain(&mut visitor)).await;
    assert_eq!(read.unwrap(), 6);
    rig.at_rest().await;
    let text = rig.server.counters().text().unwrap();
    let labels = format!(
        "addr=\"{}\",clientkey=\"web\",proto=\"unix\"",
        path.display()
    );
    assert!(text.contains(&labels), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_aborts_ends_the_target_however_full_it_is() {
    let (_directory, path, listener) = socket();
    let rig = rig(&path, &path, Dialect::Native).await;
    let (mut visitor, mut target) = pair(&rig, &listener).await;
    fill(&mut visitor).await;
    reset(visitor);
    rig.at_rest().await;
    // A Unix socket has no reset to tell.
    let mut rest = Vec::new();
    let end = within(PROMPT, "the end", target.read_to_end(&mut rest)).await;
    assert!(end.is_ok() || !rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_goes_away_unread_aborts_the_visitor() {
    let (_directory, path, listener) = socket();
    let rig = rig(&path, &path, Dialect::Native).await;
    let (mut visitor, mut target) = pair(&rig, &listener).await;
    visitor.write_all(b"question").await.unwrap();
    let read = within(PROMPT, "the question", target.read_exact(&mut [0])).await;
    read.unwrap();
    drop(target);
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remotedialer_s_dialect_reaches_it_too() {
    let (_directory, path, listener) = socket();
    let rig = rig(&path, &path, Dialect::Remotedialer).await;
    let (mut visitor, mut target) = pair(&rig, &listener).await;
    visitor.write_all(b"question").await.unwrap();
    let mut question = [0; 8];
    let read = within(PROMPT, "the question", target.read_exact(&mut question)).await;
    read.unwrap();
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let read = within(PROMPT, "the answer", drain(&mut visitor)).await;
    assert_eq!(read.unwrap(), 6);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_front_speaks_http_to_it() {
    let (_directory, path, listener) = socket();
    let rig = rig(&path, &path, Dialect::Native).await;
    let mut visitor = connect(rig.server.front()).await.unwrap();
    let encoded = path.display().to_string().replace('/', "%2F");
    let request = format!(
        "GET /client/web/http+unix/{encoded}/v1/info?a=b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    visitor.write_all(request.as_bytes()).await.unwrap();
    let (mut target, _) = within(LONG, "the dial", listener.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = within(PROMPT, "the head", target.read_buf(&mut head)).await;
        assert!(read.unwrap() > 0, "{}", String::from_utf8_lossy(&head));
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /v1/info?a=b http/1.1\r\n"), "{head}");
    assert!(head.contains("host: localhost\r\n"), "{head}");
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    target.write_all(response).await.unwrap();
    let mut reply = String::new();
    let read = within(PROMPT, "the reply", visitor.read_to_string(&mut reply)).await;
    read.unwrap();
    assert!(reply.ends_with("\r\n\r\nok"), "{reply}");
    drop(target);
    rig.at_rest().await;
}

/// Asks for `asked` under the rule `rule`, and expects to be refused for `reason` and nobody to be
/// dialed.
async fn is_refused(asked: &Path, rule: &Path, reason: &str, listener: &UnixListener) {
    let rig = rig(asked, rule, Dialect::Native).await;
    refused(rig.server.forwards()[0]).await;
    let text = rig.server.counters().text().unwrap();
    let counter = format!("watertight_open_failures_total{{reason=\"{reason}\"}} 1");
    assert!(text.contains(&counter), "{text}");
    let dialed = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
    assert!(dialed.is_err());
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_is_about_is_refused_and_not_looked_at() {
    let (directory, path, listener) = socket();
    let other = directory.path().join("other.sock");
    is_refused(&path, &other, "denied", &listener).await;
    // There is no difference between what exists and what does not.
    is_refused(
        &directory.path().join("none.sock"),
        &other,
        "denied",
        &listener,
    )
    .await;
    is_refused(&other, &other, "unresolved", &listener).await;
    std::fs::write(&other, "").unwrap();
    is_refused(&other, &other, "refused", &listener).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_does_not_lead_out_of_the_rule() {
    let (directory, path, listener) = socket();
    let apps = directory.path().join("apps");
    std::fs::create_dir(&apps).unwrap();
    symlink(&path, apps.join("evil.sock")).unwrap();
    is_refused(
        &apps.join("evil.sock"),
        &apps.join("*"),
        "denied",
        &listener,
    )
    .await;
    is_refused(
        &apps.join("evil.sock"),
        &apps.join("evil.sock"),
        "denied",
        &listener,
    )
    .await;
    symlink(directory.path(), apps.join("up")).unwrap();
    is_refused(
        &apps.join("up/app.sock"),
        &apps.join("*"),
        "denied",
        &listener,
    )
    .await;
    // The way to an allowed directory may be a link.
    let way = directory.path().join("way");
    symlink(directory.path(), &way).unwrap();
    for (asked, rule) in [
        (way.join("app.sock"), way.join("app.sock")),
        (path.clone(), way.join("*")),
    ] {
        let rig = rig(&asked, &rule, Dialect::Native).await;
        drop(pair(&rig, &listener).await);
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_checked_is_what_is_dialed() {
    let (directory, path, checked) = socket();
    let file = SocketFile::find(&path).unwrap();
    assert_eq!(file.path(), path.canonicalize().unwrap());
    let other = UnixListener::bind(directory.path().join("other.sock")).unwrap();
    std::fs::rename(&path, directory.path().join("moved.sock")).unwrap();
    symlink(directory.path().join("other.sock"), &path).unwrap();
    let dialed = file.dial(Role::Stream, NOBODY, "target").await.unwrap();
    within(PROMPT, "the dial", checked.accept()).await.unwrap();
    let dial = tokio::time::timeout(Duration::from_millis(20), other.accept()).await;
    assert!(dial.is_err());
    drop(dialed);
    std::fs::remove_file(directory.path().join("moved.sock")).unwrap();
    assert!(SocketFile::find(&directory.path().join("moved.sock")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backlog_is_waited_for_until_the_dial_s_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("busy.sock");
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let address = socket2::SockAddr::unix(&path).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    listener.set_nonblocking(true).unwrap();
    let _full = UnixStream::connect(&path).await.unwrap();
    let rig = rig(&path, &path, Dialect::Native).await;
    let failures = |reason: &str| {
        let text = rig.server.counters().text().unwrap();
        text.contains(&format!(
            "watertight_open_failures_total{{reason=\"{reason}\"}} 1"
        ))
    };
    refused(rig.server.forwards()[0]).await;
    assert!(failures("timed out"));
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (_first, _) = listener.accept().unwrap();
    let mut second = None;
    until("the dial", || {
        second = listener.accept().ok();
        second.is_some()
    })
    .await;
    drop((visitor, second));
    rig.at_rest().await;
}
