//! Which servers a client accepts, and what it says of the others.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::io::socket::{Listener, NOBODY, Role, Socket};
use tunnel::io::tls::{
    Client, ClientError, ClientFiles, Failure, HandshakeError, Pin, Server, TlsError, Transport,
};

use super::{DAY, Folder, Pair, Signer};
use crate::rig::{PROMPT, loopback, within};
use crate::world::{TcpListener, of_the_world};

/// Two ends of one connection.
pub(super) async fn sockets() -> (Socket, Socket) {
    let listener = Listener::listen(loopback(), "test").await.unwrap();
    let dial = Socket::dial(listener.address(), Role::Pool, NOBODY, "test");
    let (accepted, dialed) = tokio::join!(listener.accept(), dial);
    accepted.bind(Role::Pool, NOBODY, "test");
    (accepted, dialed.unwrap())
}

/// What the client found: a byte of the server, or why there is none.
async fn find(transport: Result<Transport, ClientError>) -> Result<(), HandshakeError> {
    let mut transport = transport.map_err(|error| match error {
        ClientError::Handshake(error) => error,
        ClientError::Files(error) => panic!("{error}"),
    })?;
    match transport.read_exact(&mut [0]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(HandshakeError::of(error)),
    }
}

pub(super) async fn shake(
    server: &Server,
    files: ClientFiles,
    host: &str,
) -> (Result<Transport, Failure>, Result<(), HandshakeError>) {
    let client = Client::load(files).unwrap();
    let (accepted, dialed) = sockets().await;
    let serve = async {
        let mut transport = server.accept(accepted).await?;
        let _ = transport.write_all(b"!").await;
        let _ = transport.flush().await;
        Ok(transport)
    };
    let ask = async { find(client.connect(host, dialed).await).await };
    within(PROMPT, "the handshake", async { tokio::join!(serve, ask) }).await
}

async fn verdict(server: &Server, files: ClientFiles, host: &str) -> Result<(), HandshakeError> {
    let (served, asked) = shake(server, files, host).await;
    if asked.is_ok() {
        served.unwrap();
    } else {
        let failure = served.unwrap_err();
        assert!(matches!(failure, Failure::Distrusted(_)), "{failure}");
    }
    asked
}

fn pinned(pin: Pin) -> ClientFiles {
    ClientFiles {
        pins: vec![pin],
        ..ClientFiles::default()
    }
}

macro_rules! refuses {
    ($verdict:expr, $pattern:pat, $told:expr) => {
        let error = $verdict.await.unwrap_err();
        assert!(matches!(error, $pattern), "{error:?}");
        let told = error.to_string();
        assert!(told.contains($told), "{told}");
    };
}

#[tokio::test]
async fn authorities_decide() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let trusting = || folder.trusting(&signer);
    let server = folder.server(&signer.sign(&["tunnel.test", "127.0.0.1", "::1"]), &[]);
    for host in ["tunnel.test", "TUNNEL.test", "127.0.0.1", "::1"] {
        verdict(&server, trusting(), host).await.unwrap();
    }
    let named = ClientFiles {
        server_name: Some("tunnel.test".to_owned()),
        ..trusting()
    };
    verdict(&server, named, "10.0.0.1").await.unwrap();
    for host in ["other.test", "127.0.0.2", "a.tunnel.test"] {
        refuses!(
            verdict(&server, trusting(), host),
            HandshakeError::WrongName { .. },
            host
        );
    }
    let expired = signer.sign_with(&["a"], |params| {
        params.not_after = (SystemTime::now() - DAY / 2).into();
    });
    refuses!(
        verdict(&folder.server(&expired, &[]), trusting(), "a"),
        HandshakeError::Expired(_),
        "renew it"
    );
    let early = signer.sign_with(&["a"], |params| {
        params.not_before = (SystemTime::now() + DAY).into();
    });
    refuses!(
        verdict(&folder.server(&early, &[]), trusting(), "a"),
        HandshakeError::NotYetValid(_),
        "clock"
    );
    let client = signer.sign_with(&["a"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    refuses!(
        verdict(&folder.server(&client, &[]), trusting(), "a"),
        HandshakeError::Certificate(_),
        "not accepted"
    );
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let trusting = || folder.trusting(&signer);
    // By the same name, too.
    for other in [Signer::new("another"), Signer::new("authority")] {
        let server = folder.server(&other.sign(&["a"]), &[&other.pem]);
        let error = verdict(&server, trusting(), "a").await.unwrap_err();
        let says_so = matches!(
            error,
            HandshakeError::UnknownIssuer | HandshakeError::Certificate(_)
        );
        assert!(says_so, "{error:?}");
    }
    let alone = folder.server(&Pair::self_signed(&["a"]), &[]);
    refuses!(
        verdict(&alone, trusting(), "a"),
        HandshakeError::UnknownIssuer,
        "--ca-file"
    );
    // Nor by the authorities of this system, if it has any.
    match Client::load(ClientFiles::default()) {
        Ok(_) => {
            refuses!(
                verdict(&alone, ClientFiles::default(), "a"),
                HandshakeError::UnknownIssuer,
                "join line"
            );
        }
        Err(error) => assert!(matches!(error, TlsError::NoRoots), "{error}"),
    }
    // A server certificate cannot sign others.
    let middle = signer.sign(&["b"]);
    let forger = Signer {
        name: "forger".to_owned(),
        pem: middle.pem.clone(),
        der: middle.der.clone(),
        issuer: rcgen::Issuer::new(super::params("of authority", &[]), middle.key),
    };
    let forged = folder.server(&forger.sign(&["a"]), &[&forger.pem, &signer.pem]);
    for files in [trusting(), pinned(signer.pin())] {
        let error = verdict(&forged, files, "a").await.unwrap_err();
        assert!(!matches!(error, HandshakeError::Io(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_pinned_authority_signs_servers_by_their_names() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let pin = signer.pin();
    let server = folder.server(&signer.sign(&["a"]), &[&signer.pem]);
    verdict(&server, pinned(pin), "a").await.unwrap();
    assert_eq!(server.pins()[1], pin);
    let several = ClientFiles {
        pins: vec![Signer::new("older").pin(), pin],
        ..ClientFiles::default()
    };
    verdict(&server, several, "a").await.unwrap();
    refuses!(
        verdict(&server, pinned(pin), "b"),
        HandshakeError::WrongName { .. },
        "not for b"
    );
    let unseen = folder.server(&signer.sign(&["a"]), &[]);
    refuses!(
        verdict(&unseen, pinned(pin), "a"),
        HandshakeError::NotPinned,
        "join line"
    );
    refuses!(
        verdict(&server, pinned(Signer::new("authority").pin()), "a"),
        HandshakeError::NotPinned,
        "another server"
    );
    let expired = signer.sign_with(&["a"], |params| {
        params.not_after = (SystemTime::now() - DAY / 2).into();
    });
    refuses!(
        verdict(&folder.server(&expired, &[&signer.pem]), pinned(pin), "a"),
        HandshakeError::Expired(_),
        "renew"
    );
    // The pinned one is shown, and did not sign; by the same name, too.
    for other in [Signer::new("another"), Signer::new("authority")] {
        let server = folder.server(&other.sign(&["a"]), &[&signer.pem, &other.pem]);
        let error = verdict(&server, pinned(pin), "a").await.unwrap_err();
        let says_so = matches!(
            error,
            HandshakeError::UnknownIssuer | HandshakeError::Certificate(_)
        );
        assert!(says_so, "{error:?}");
    }
    // One above and one between.
    let between = Signer::signed_by("between", Some(&signer));
    let server = folder.server(&between.sign(&["a"]), &[&between.pem, &signer.pem]);
    for pin in [pin, between.pin()] {
        verdict(&server, pinned(pin), "a").await.unwrap();
    }
}

#[tokio::test]
async fn a_pinned_server_has_any_name_but_not_any_time() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    for pair in [signer.sign(&["a"]), Pair::self_signed(&["a"])] {
        let server = folder.server(&pair, &[]);
        for host in ["a", "b", "10.0.0.1"] {
            verdict(&server, pinned(pair.pin()), host).await.unwrap();
        }
        refuses!(
            verdict(&server, pinned(signer.pin()), "a"),
            HandshakeError::NotPinned,
            "pinned key"
        );
    }
    // As `openssl req -x509` makes them.
    let both = Pair::self_signed_with(&["a"], |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let server = folder.server(&both, &[]);
    verdict(&server, pinned(both.pin()), "a").await.unwrap();
    let trusting = ClientFiles {
        ca_file: Some(folder.write("both.pem", &both.pem)),
        ..ClientFiles::default()
    };
    refuses!(
        verdict(&server, trusting, "a"),
        HandshakeError::Certificate(_),
        "CA:TRUE"
    );
    let expired = signer.sign_with(&["a"], |params| {
        params.not_after = (SystemTime::now() - DAY / 2).into();
    });
    refuses!(
        verdict(&folder.server(&expired, &[]), pinned(expired.pin()), "a"),
        HandshakeError::Expired(_),
        "expired"
    );
}

#[tokio::test]
async fn a_pin_and_an_authority_must_both_hold() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let other = Signer::new("another");
    let pair = signer.sign(&["a"]);
    let server = folder.server(&pair, &[]);
    let both = |signer: &Signer, pin| ClientFiles {
        pins: vec![pin],
        ..folder.trusting(signer)
    };
    // The server need not show the authority that the client has.
    for pin in [signer.pin(), pair.pin()] {
        verdict(&server, both(&signer, pin), "a").await.unwrap();
    }
    refuses!(
        verdict(&server, both(&signer, pair.pin()), "b"),
        HandshakeError::WrongName { .. },
        "not for b"
    );
    refuses!(
        verdict(&server, both(&signer, other.pin()), "a"),
        HandshakeError::NotPinned,
        "pinned"
    );
    refuses!(
        verdict(&server, both(&other, pair.pin()), "a"),
        HandshakeError::UnknownIssuer,
        "--ca-file"
    );
}

/// A server that shows the pinned certificate must have its key, in either version of TLS.
#[tokio::test]
async fn a_copied_certificate_is_worth_nothing() {
    let folder = Folder::new();
    let signer = Signer::new("authority");
    let (pair, thief) = (signer.sign(&["a"]), signer.sign(&["a"]));
    let provider = super::provider();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(thief.key.serialize_der()));
    let key = provider.key_provider.load_private_key(key).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stolen = CertifiedKey::new(vec![pair.der.clone()], Arc::clone(&key));
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(stolen)));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        for files in [pinned(pair.pin()), folder.trusting(&signer)] {
            let listener = TcpListener::bind(loopback()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let serve = async {
                let (socket, _) = listener.accept().await.unwrap();
                acceptor.accept(socket).await.map(drop)
            };
            let client = Client::load(files).unwrap();
            let ask = async {
                let socket = Socket::dial(address, Role::Pool, NOBODY, "test").await;
                find(client.connect("a", socket.unwrap()).await).await
            };
            let both = async { tokio::join!(serve, ask) };
            let (_, asked) = within(PROMPT, "the handshake", both).await;
            let error = asked.unwrap_err();
            let says_so = matches!(
                error,
                HandshakeError::Certificate(_) | HandshakeError::Protocol(_)
            );
            assert!(says_so, "{error:?}");
        }
    }
}

/// TLS 1.2 is the least.
#[tokio::test]
async fn old_versions_are_refused_by_both_ends() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let server = folder.server(&signer.sign(&["a"]), &[]);
    // A ClientHello of TLS 1.1 with one cipher (RFC 4346, section 7.4.1.2).
    let hello = [
        &[0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2][..],
        &[7; 32],
        &[0, 0, 2, 0xc0, 0x13, 1, 0],
    ]
    .concat();
    let (accepted, dialed) = sockets().await;
    let mut dialed = Transport::from(dialed);
    let ask = async {
        dialed.write_all(&hello).await.unwrap();
        let mut answer = Vec::new();
        dialed.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let both = async { tokio::join!(server.accept(accepted), ask) };
    let (served, answer) = within(PROMPT, "the refusal", both).await;
    let failure = served.unwrap_err();
    assert!(matches!(failure, Failure::Incompatible(_)), "{failure:?}");
    // A fatal alert and nothing else (RFC 8446, section 6).
    assert_eq!((answer[0], answer[5], answer.len()), (21, 2, 7));

    // A ServerHello of TLS 1.1.
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let listener = of_the_world(listener);
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let mut socket = of_the_world(listener.accept().await.unwrap().0);
        let hello = [
            &[0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2][..],
            &[7; 32],
            &[0, 0xc0, 0x13, 0],
        ]
        .concat();
        socket.write_all(&hello).await.unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    };
    let client = Client::load(folder.trusting(&signer)).unwrap();
    let ask = async {
        let socket = Socket::dial(address, Role::Pool, NOBODY, "test").await;
        find(client.connect("a", socket.unwrap()).await).await
    };
    let both = async { tokio::join!(serve, ask) };
    let ((), asked) = within(PROMPT, "the refusal", both).await;
    let error = asked.unwrap_err();
    let says_so = matches!(
        error,
        HandshakeError::Incompatible(_) | HandshakeError::Protocol(_)
    );
    assert!(says_so, "{error:?}");
}
