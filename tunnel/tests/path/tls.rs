//! TLS: whom each end trusts, and that a link behaves inside it as it does without.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use tempfile::TempDir;
use tunnel::io::tls::{Client, ClientCertificates, ClientFiles, Files, Pin, Server};
use tunnel::{agent, server};

use crate::rig::Rig;

mod files;
mod front;
mod identity;
mod live;
mod trust;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(provider)
}

/// A certificate authority.
struct Signer {
    name: String,
    pem: String,
    der: rustls_pki_types::CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
struct Pair {
    pem: String,
    der: rustls_pki_types::CertificateDer<'static>,
    key: KeyPair,
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names = names.iter().map(|name| (*name).to_owned());
    let mut params = CertificateParams::new(Vec::from_iter(names)).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + 60 * DAY).into();
    params
}

impl Signer {
    fn new(name: &str) -> Self {
        Self::signed_by(name, None)
    }

    fn signed_by(name: &str, above: Option<&Self>) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = match above {
            Some(above) => params.signed_by(&key, &above.issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        Self {
            name: name.to_owned(),
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, names: &[&str]) -> Pair {
        self.sign_with(names, |_| {})
    }

    fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = params(&format!("of {}", self.name), names);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key,
        }
    }

    fn pin(&self) -> Pin {
        Pin::of(&self.der).unwrap()
    }
}

impl Pair {
    fn self_signed(names: &[&str]) -> Self {
        Self::self_signed_with(names, |_| {})
    }

    fn self_signed_with(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = params("of nobody", names);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key,
        }
    }

    fn pin(&self) -> Pin {
        Pin::of(&self.der).unwrap()
    }
}

/// Files that go when the test does.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes the files of a server that shows `more` after its certificate.
    fn files(&self, pair: &Pair, more: &[&str]) -> Files {
        Files {
            certificate: self.write("server.pem", &(pair.pem.clone() + &more.concat())),
            key: self.write("server.key", &pair.key.serialize_pem()),
            client_ca: None,
            clients: ClientCertificates::default(),
        }
    }

    fn server(&self, pair: &Pair, more: &[&str]) -> Server {
        Server::load(&self.files(pair, more)).unwrap()
    }

    /// Writes the files of a client that trusts `signer`.
    fn trusting(&self, signer: &Signer) -> ClientFiles {
        ClientFiles {
            ca_file: Some(self.write("ca.pem", &signer.pem)),
            ..ClientFiles::default()
        }
    }

    /// Makes the client show a certificate.
    fn showing(&self, files: ClientFiles, pair: &Pair) -> ClientFiles {
        ClientFiles {
            certificate: Some(self.write("client.pem", &pair.pem)),
            key: Some(self.write("client.key", &pair.key.serialize_pem())),
            ..files
        }
    }
}

/// A server with a certificate and an agent that trusts its authority.
pub(crate) struct Secured {
    pub(crate) rig: Rig,
    signer: Signer,
    folder: Folder,
}

/// Goes to the same server by TLS.
fn by_tls(config: &mut agent::Config) {
    let url = config.server.to_string();
    config.server = url.replacen("ws://", "wss://", 1).parse().unwrap();
}

impl Secured {
    pub(crate) async fn start_with(
        server: impl FnOnce(&mut server::Config),
        agent: impl FnOnce(&mut agent::Config),
    ) -> Self {
        let (signer, folder) = (Signer::new("authority"), Folder::new());
        let pair = signer.sign(&["127.0.0.1", "tunnel.test"]);
        let rig = Rig::start_with(
            |config| {
                config.tls = Some(folder.server(&pair, &[]));
                server(config);
            },
            |config| {
                config.tls = Client::load(folder.trusting(&signer)).unwrap();
                agent(config);
                by_tls(config);
            },
        )
        .await;
        Self {
            rig,
            signer,
            folder,
        }
    }
}

/// Returns how many handshakes failed for a reason.
fn failures(server: &server::Server, reason: &str) -> u64 {
    let text = server.counters().text().unwrap();
    let name = format!("watertight_tls_handshake_failures_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}
