//! Files that cannot be used, and the errors that name them.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tunnel::io::socket::{NOBODY, Role, Socket};
use tunnel::io::tls::{Client, ClientFiles, Files, Server, Warning};

use super::{DAY, Folder, Signer};
use crate::rig::{PROMPT, loopback, within};
use crate::world::TcpListener;

#[test]
fn files_that_make_no_server_are_named() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let (pair, other) = (signer.sign(&["a"]), signer.sign(&["a"]));
    let good = folder.files(&pair, &[]);
    let key = pair.key.serialize_pem();
    let file = |name: &str, text: &str| folder.write(name, text);
    let truncated = &pair.pem[..pair.pem.len() / 2];
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let canary = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n";
    let with_ca = |path| Files {
        client_ca: Some(path),
        ..good.clone()
    };
    let with_certificate = |certificate| Files {
        certificate,
        ..good.clone()
    };
    let with_key = |key| Files {
        key,
        ..good.clone()
    };
    for (files, told) in [
        (
            with_certificate(folder.path().join("absent.pem")),
            "cannot read",
        ),
        (with_certificate(file("empty.pem", "")), "no certificate"),
        (with_certificate(file("key.pem", &key)), "no certificate"),
        (
            with_certificate(file("cut.pem", truncated)),
            "cannot be read",
        ),
        (
            with_certificate(file("bad.pem", nonsense)),
            "cannot be read",
        ),
        (
            with_certificate(file("large.pem", &"a".repeat(1 << 21))),
            "1 MiB",
        ),
        (
            with_certificate(file("old.pem", include_str!("version1.pem"))),
            "is of version 1",
        ),
        (with_key(folder.path().join("absent.key")), "cannot read"),
        (with_key(file("no.key", &pair.pem)), "no private key"),
        (with_key(file("bad.key", canary)), "cannot be used"),
        (
            with_key(file("other.key", &other.key.serialize_pem())),
            "does not belong",
        ),
        (with_ca(folder.path().join("absent.ca")), "cannot read"),
        (with_ca(file("empty.ca", "")), "no certificate"),
    ] {
        let error = Server::load(&files).unwrap_err();
        let all = format!("{error} {error:?}");
        let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let names = [
            Some(&files.certificate),
            Some(&files.key),
            files.client_ca.as_ref(),
        ];
        let names: Vec<_> = names.into_iter().flatten().map(|path| name(path)).collect();
        let unusual = names.iter().find(|name| !name.starts_with("server."));
        assert!(
            all.contains(told) && all.contains(unusual.unwrap()),
            "{all}"
        );
        assert!(!all.contains("canary"), "{all}");
    }
    assert!(Server::load(&good).is_ok());
}

#[test]
fn files_that_make_no_client_are_named() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let pair = signer.sign(&["web"]);
    let showing = folder.showing(ClientFiles::default(), &pair);
    let other = folder.write("other.key", &signer.sign(&["web"]).key.serialize_pem());
    let pins = vec![signer.pin()];
    let files = |change: &dyn Fn(&mut ClientFiles)| {
        let mut files = ClientFiles {
            pins: pins.clone(),
            ..showing.clone()
        };
        change(&mut files);
        Client::load(files)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    files(&|_| {}).unwrap();
    let absent = folder.path().join("absent.pem");
    for (told, change) in [
        (
            "go together",
            &(|files: &mut ClientFiles| files.key = None) as &dyn Fn(&mut ClientFiles),
        ),
        ("go together", &|files| files.certificate = None),
        ("absent.pem", &|files| {
            files.certificate = Some(absent.clone())
        }),
        ("absent.pem", &|files| files.ca_file = Some(absent.clone())),
        ("other.key does not belong", &|files| {
            files.key = Some(other.clone())
        }),
        ("neither a host's name", &|files| {
            files.server_name = Some("a b".to_owned())
        }),
    ] {
        let error = files(change).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_certificate_out_of_its_time_is_warned_of() {
    let (folder, signer) = (Folder::new(), Signer::new("authority"));
    let server = folder.server(&signer.sign(&["a"]), &[]);
    let now = SystemTime::now();
    assert_eq!(server.warning(now), None);
    let soon = server.warning(now + 47 * DAY);
    assert!(matches!(soon, Some(Warning::ExpiresSoon(_))), "{soon:?}");
    let late = server.warning(now + 61 * DAY);
    assert!(matches!(late, Some(Warning::Expired(_))), "{late:?}");
    let early = server.warning(now - 2 * DAY);
    assert!(matches!(early, Some(Warning::NotYetValid(_))), "{early:?}");
}

/// What a server shows that some other program has set up.
#[tokio::test]
async fn a_server_s_certificate_of_version_1_is_called_that() {
    let folder = Folder::new();
    let provider = super::provider();
    let der = CertificateDer::from_pem_slice(include_bytes!("version1.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("version1.key")).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![der], key));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let signer = Signer::new("other");
    let pinned = ClientFiles {
        pins: vec![signer.pin()],
        ..ClientFiles::default()
    };
    for files in [pinned, folder.trusting(&signer)] {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            acceptor.accept(socket).await.map(drop)
        };
        let client = Client::load(files).unwrap();
        let ask = async {
            let socket = Socket::dial(address, Role::Pool, NOBODY, "test").await;
            client.connect("127.0.0.1", socket.unwrap()).await
        };
        let both = async { tokio::join!(serve, ask) };
        let (_, asked) = within(PROMPT, "the handshake", both).await;
        let error = asked.map(drop).unwrap_err().to_string();
        assert!(error.contains("is of version 1"), "{error}");
    }
}
