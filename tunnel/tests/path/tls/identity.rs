//! Mutual TLS: which clients need a certificate, and what it allows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::agent::Agent;
use tunnel::io::socket::{NOBODY, Role, Socket};
use tunnel::io::tls::{
    Client, ClientCertificates, ClientFiles, Failure, Files, HandshakeError, Identity,
};
use tunnel::io::token::Token;
use tunnel::login::{User, UserRights, Users};
use tunnel::metrics::Metrics;
use tunnel::policy::Policy;
use tunnel::server::auth::peers::Peers;
use tunnel::server::config::{HttpPort, HttpSocket};
use tunnel::server::{Port, Server};
use tunnel::{agent, server};

use super::front::https;
use super::trust::shake;
use super::{DAY, Folder, Signer, failures};
use crate::rig::{LONG, PROMPT, connect_fails, loopback, token, until, with_http, within};

/// A server that has an authority for clients.
struct Mutual {
    signer: Signer,
    folder: Folder,
}

impl Mutual {
    fn new() -> Self {
        Self {
            signer: Signer::new("authority"),
            folder: Folder::new(),
        }
    }

    fn server(&self, clients: ClientCertificates) -> tunnel::io::tls::Server {
        let ca = self.folder.write("clients.pem", &self.signer.pem);
        let files = Files {
            client_ca: Some(ca),
            clients,
            ..self
                .folder
                .files(&self.signer.sign(&["a", "127.0.0.1"]), &[])
        };
        tunnel::io::tls::Server::load(&files).unwrap()
    }

    fn anonymous(&self) -> ClientFiles {
        self.folder.trusting(&self.signer)
    }

    fn named(&self, names: &[&str]) -> ClientFiles {
        let pair = self.signer.sign(names);
        self.folder.showing(self.anonymous(), &pair)
    }
}

#[tokio::test]
async fn a_certificate_that_is_required_must_be_good() {
    let mutual = Mutual::new();
    let server = mutual.server(ClientCertificates::Required);
    let (served, asked) = shake(&server, mutual.named(&["web"]), "a").await;
    asked.unwrap();
    let identity = server.identity(&served.unwrap());
    assert_eq!(identity.allows("web"), Ok(()));
    assert!(identity.allows("other").is_err());

    let expired = mutual.signer.sign_with(&["web"], |params| {
        params.not_after = (SystemTime::now() - DAY / 2).into();
    });
    let servers = mutual.signer.sign_with(&["web"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let others = Signer::new("another").sign(&["web"]);
    let namesakes = Signer::new("authority").sign(&["web"]);
    let mut cases = vec![mutual.anonymous()];
    for pair in [expired, servers, others, namesakes] {
        cases.push(mutual.folder.showing(mutual.anonymous(), &pair));
        let (served, asked) = shake(&server, cases.pop().unwrap(), "a").await;
        let failure = served.unwrap_err();
        assert!(
            matches!(failure, Failure::ClientCertificate(_)),
            "{failure}"
        );
        let error = asked.unwrap_err();
        assert!(
            matches!(error, HandshakeError::ClientCertificate(_)),
            "{error:?}"
        );
    }
    let (served, asked) = shake(&server, cases.pop().unwrap(), "a").await;
    assert!(matches!(served.unwrap_err(), Failure::ClientCertificate(_)));
    let told = asked.unwrap_err().to_string();
    assert!(told.contains("client certificate"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_is_optional_must_be_good_if_it_is_shown() {
    let mutual = Mutual::new();
    let others = Signer::new("another").sign(&["web"]);
    for (clients, anonymous) in [
        (ClientCertificates::Optional, true),
        (ClientCertificates::Agents, false),
    ] {
        let server = mutual.server(clients);
        let (served, asked) = shake(&server, mutual.anonymous(), "a").await;
        asked.unwrap();
        let identity = server.identity(&served.unwrap());
        assert_eq!(identity.allows("web").is_ok(), anonymous);
        let (served, asked) = shake(&server, mutual.named(&["web"]), "a").await;
        asked.unwrap();
        let identity = server.identity(&served.unwrap());
        assert!(matches!(identity, Identity::Verified(_)));
        assert!(identity.allows("web").is_ok() && identity.allows("other").is_err());
        let wrong = mutual.folder.showing(mutual.anonymous(), &others);
        let (served, asked) = shake(&server, wrong, "a").await;
        assert!(matches!(served.unwrap_err(), Failure::ClientCertificate(_)));
        asked.unwrap_err();
    }
}

fn agent(server: &Server, name: &str, files: ClientFiles) -> (Agent, Arc<Metrics>) {
    let url = format!("wss://{}/connect", server.front());
    let policy = Policy::new(Vec::new());
    let mut config = agent::Config::new(url.parse().unwrap(), name.to_owned(), policy, token());
    config.tls = Client::load(files).unwrap();
    config.backoff = (Duration::from_millis(1), Duration::from_millis(20));
    let metrics = Metrics::new(None).unwrap();
    (Agent::start(config, Some(Arc::clone(&metrics))), metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_who_its_certificate_says() {
    let mutual = Mutual::new();
    let mut config = server::Config::new(loopback(), token());
    config.tls = Some(mutual.server(ClientCertificates::Agents));
    with_http(&mut config);
    let server = Server::start(config).await.unwrap();
    let (web, _) = agent(&server, "web", mutual.named(&["web", "web-2"]));
    within(LONG, "connecting", web.connected()).await;
    let (second, _) = agent(&server, "web-2", mutual.named(&["web", "web-2"]));
    within(LONG, "connecting", second.connected()).await;
    for (name, files) in [
        ("other", mutual.named(&["web"])),
        ("WEB", mutual.named(&["web"])),
        ("web", mutual.named(&["*.web"])),
        ("web", mutual.anonymous()),
    ] {
        let (refused, metrics) = agent(&server, name, files);
        connect_fails(&metrics, "refused").await;
        assert_eq!(refused.links(), 0);
    }
    assert!(server.has_agent("web") && !server.has_agent("other") && !server.has_agent("WEB"));
    assert_eq!(web.links(), 1);
    // Visitors need none here.
    let mut visitor = https(&server, mutual.anonymous()).await;
    let request =
        b"GET /client/absent/http/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    visitor.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = visitor.read_to_string(&mut answer);
    within(PROMPT, "the answer", read).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(failures(&server, "client certificate"), 0);
}

/// A user's certificate is a login, with the user's rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_is_who_its_certificate_says() {
    let mutual = Mutual::new();
    let mut config = server::Config::new(loopback(), token());
    config.tls = Some(mutual.server(ClientCertificates::Agents));
    let mut users = Users::default();
    let rights = UserRights {
        agents: Some(["absent".to_owned()].into()),
        targets: None,
    };
    let anna = User {
        rights,
        ..User::default()
    };
    users.add("anna", anna).unwrap();
    config.access.set_users(users);
    config.ports = [HttpSocket::Shared, HttpSocket::Tls]
        .map(|socket| {
            let port = HttpPort::new(config.listen.into(), socket);
            Port::from(HttpPort {
                login: true,
                ..port
            })
        })
        .into();
    let server = Server::start(config).await.unwrap();
    for (_, address) in server.ports() {
        for (names, agent, expected) in [
            (Some(&["x", "anna"][..]), "absent", "503"),
            (Some(&["anna"]), "other", "403"),
            (Some(&["bert"]), "absent", "401"),
            (None, "absent", "401"),
        ] {
            let files = names.map_or_else(|| mutual.anonymous(), |names| mutual.named(names));
            let client = Client::load(files).unwrap();
            let address = address.inet().unwrap();
            let socket = Socket::dial(address, Role::Pool, NOBODY, "test").await;
            let visitor = client.connect("127.0.0.1", socket.unwrap()).await;
            let mut visitor = visitor.unwrap();
            let request = format!(
                "GET /client/{agent}/http/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            visitor.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = visitor.read_to_string(&mut answer);
            within(PROMPT, "the answer", read).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expected} ")),
                "{answer}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_the_certificate_that_is_required_is_told() {
    let mutual = Mutual::new();
    let mut config = server::Config::new(loopback(), token());
    config.tls = Some(mutual.server(ClientCertificates::Required));
    let server = Server::start(config).await.unwrap();
    let (_refused, metrics) = agent(&server, "web", mutual.anonymous());
    connect_fails(&metrics, "client certificate").await;
    assert!(failures(&server, "client certificate") > 0);
    // What it is given now counts from the next attempt on.
    let files = mutual.named(&["late"]);
    let (certificate, key) = (
        files.certificate.clone().unwrap(),
        files.key.clone().unwrap(),
    );
    let (late, metrics) = agent(&server, "web", files);
    connect_fails(&metrics, "refused").await;
    let pair = mutual.signer.sign(&["web"]);
    std::fs::write(key, pair.key.serialize_pem()).unwrap();
    std::fs::write(certificate, pair.pem).unwrap();
    within(LONG, "connecting", late.connected()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_who_their_certificates_say() {
    for (names, known) in [(&["east"][..], true), (&["north"], false)] {
        let mutual = Mutual::new();
        let shared = Token::new("shared", "test").unwrap();
        let mut config = server::Config::new(loopback(), token());
        config.tls = Some(mutual.server(ClientCertificates::Required));
        let table = vec!["east=wss://127.0.0.1:9/connect".parse().unwrap()];
        config.peers = Some(Arc::new(Peers::new(
            "west".to_owned(),
            shared.clone(),
            table,
        )));
        let west = Server::start(config).await.unwrap();
        let mut config = server::Config::new(loopback(), token());
        let table = vec![
            format!("west=wss://{}/connect", west.front())
                .parse()
                .unwrap(),
        ];
        let mut peers = Peers::new("east".to_owned(), shared, table);
        peers.tls = Client::load(mutual.named(names)).unwrap();
        peers.backoff.1 = Duration::from_millis(50);
        config.peers = Some(Arc::new(peers));
        let east = Server::start(config).await.unwrap();
        let sessions = || {
            west.counters()
                .text()
                .unwrap()
                .contains("watertight_sessions 1\n")
        };
        if known {
            until("the peer's session", sessions).await;
        } else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(!sessions());
        }
        within(LONG, "the drain", east.drain(Duration::ZERO)).await;
        within(LONG, "the drain", west.drain(Duration::ZERO)).await;
    }
}
