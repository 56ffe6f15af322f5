//! Links inside TLS: bulk, half-close, resets, breaks, drains and a new certificate, in both
//! dialects.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::io::tls::authority::Authority;
use tunnel::io::tls::{Client, ClientFiles};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::wire::Dialect;
use tunnel::{agent, server};

use super::{Folder, Secured, Signer, by_tls};
use crate::rig::{
    LONG, PROMPT, Rig, agent_config, broken, drain, fill, pattern, reset, round_trip, until, within,
};
use crate::world::{Pace, Relay};

const DIALECTS: [Dialect; 2] = [Dialect::Native, Dialect::Remotedialer];

fn takes(dialect: Dialect) -> impl FnOnce(&mut server::Config) {
    move |config| {
        config.remotedialer = (dialect == Dialect::Remotedialer).then(Remotedialer::default)
    }
}

async fn start(dialect: Dialect) -> Secured {
    Secured::start_with(takes(dialect), |agent| agent.dialect = dialect).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_passes_both_ways_at_once() {
    for dialect in DIALECTS {
        let secured = start(dialect).await;
        let (visitor, target) = secured.rig.pair().await;
        let data = pattern(8 << 20);
        let (mut visitor_read, mut visitor_write) = visitor.into_split();
        let (mut target_read, mut target_write) = target.into_split();
        let (mut there, mut back) = (vec![0; data.len()], vec![0; data.len()]);
        let all = async {
            tokio::try_join!(
                visitor_write.write_all(&data),
                target_write.write_all(&data),
                async { target_read.read_exact(&mut there).await.map(drop) },
                async { visitor_read.read_exact(&mut back).await.map(drop) },
            )
        };
        within(LONG, "the bulk", all).await.unwrap();
        assert!(there == data && back == data, "{dialect:?}");
        drop((visitor_read, visitor_write, target_read, target_write));
        secured.rig.at_rest().await;
    }
}

/// Makes a stream and has a byte cross it.
async fn spoken(rig: &Rig) -> (TcpStream, TcpStream) {
    let (mut visitor, mut target) = rig.pair().await;
    visitor.write_all(b"x").await.unwrap();
    let mut byte = [0];
    within(PROMPT, "a byte", target.read_exact(&mut byte))
        .await
        .unwrap();
    (visitor, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_and_resets_pass() {
    let secured = start(Dialect::Native).await;
    let (mut visitor, mut target) = secured.rig.pair().await;
    visitor.write_all(b"question").await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut read = Vec::new();
    let question = target.read_to_end(&mut read);
    within(PROMPT, "the question", question).await.unwrap();
    let answer = pattern(1 << 20);
    let write = async {
        target.write_all(&answer).await.unwrap();
        target.shutdown().await.unwrap();
    };
    let mut answered = Vec::new();
    let read_answer = visitor.read_to_end(&mut answered);
    let (_, result) = within(LONG, "the answer", async {
        tokio::join!(write, read_answer)
    })
    .await;
    result.unwrap();
    assert!(read == b"question" && answered == answer);
    drop((visitor, target));

    for dialect in DIALECTS {
        let secured = start(dialect).await;
        // A stream that is only being opened is called off, which is no reset.
        let (visitor, mut target) = spoken(&secured.rig).await;
        reset(visitor);
        let end = within(PROMPT, "the reset", drain(&mut target)).await;
        assert!(end.is_err(), "{dialect:?}");
        let (mut visitor, target) = spoken(&secured.rig).await;
        reset(target);
        let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
        assert!(end.is_err(), "{dialect:?}");
        secured.rig.at_rest().await;
    }
    secured.rig.at_rest().await;
}

async fn behind_relay(dialect: Dialect, silence: Duration) -> (Secured, Relay) {
    let mut relay = None;
    let brisk = |mux: &mut tunnel::mux::native::Config,
                 legacy: &mut tunnel::mux::remotedialer::Config| {
        (mux.ping_interval, mux.silence) = (silence / 4, silence);
        (legacy.ping_interval, legacy.silence) = (silence / 4, silence);
    };
    let secured = Secured::start_with(
        |server| {
            brisk(&mut server.mux, &mut server.remotedialer_mux);
            takes(dialect)(server);
        },
        |agent| {
            brisk(&mut agent.mux, &mut agent.remotedialer_mux);
            agent.dialect = dialect;
            agent.backoff = (Duration::from_millis(1), Duration::from_millis(50));
            relay = Some(Relay::before(agent));
        },
    )
    .await;
    (secured, relay.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_that_breaks_ends_its_streams_and_comes_back() {
    for dialect in DIALECTS {
        let (secured, relay) = behind_relay(dialect, LONG).await;
        let rig = &secured.rig;
        for _ in 0..5 {
            let (mut visitor, mut target) = rig.pair().await;
            round_trip(&mut visitor, &mut target).await;
            let (mut full, mut silent) = rig.pair().await;
            fill(&mut full).await;
            relay.cut();
            broken(&mut visitor, &mut target).await;
            let _ = within(PROMPT, "the end", drain(&mut silent)).await;
            assert!(within(PROMPT, "the reset", drain(&mut full)).await.is_err());
            within(LONG, "the return", rig.agent.connected()).await;
            until("the registration", || rig.server.has_agent("web")).await;
        }
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_that_swallows_everything_is_given_up() {
    for dialect in DIALECTS {
        let (secured, relay) = behind_relay(dialect, Duration::from_millis(500)).await;
        let rig = &secured.rig;
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        let (mut full, mut silent) = rig.pair().await;
        relay.set(Pace::Stopped);
        fill(&mut full).await;
        until("the end at the server", || !rig.server.has_agent("web")).await;
        within(PROMPT, "the end at the agent", rig.agent.disconnected()).await;
        broken(&mut visitor, &mut target).await;
        broken(&mut full, &mut silent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drains_end_links_in_order() {
    for dialect in DIALECTS {
        let secured = start(dialect).await;
        let (mut visitor, mut target) = secured.rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        let Rig { server, agent, .. } = secured.rig;
        let began = Instant::now();
        within(PROMPT, "the drain", agent.drain(Duration::from_millis(100))).await;
        until("the end at the server", || !server.has_agent("web")).await;
        broken(&mut visitor, &mut target).await;
        within(
            PROMPT,
            "the drain",
            server.drain(Duration::from_millis(100)),
        )
        .await;
        assert!(began.elapsed() < PROMPT);
    }
}

/// Old links keep the certificate of their handshake. New links get the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_disturbs_no_stream() {
    for dialect in DIALECTS {
        let secured = start(dialect).await;
        let rig = &secured.rig;
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        let newer = Signer::new("newer");
        let folder = Folder::new();
        let pair = newer.sign(&["127.0.0.1"]);
        let carry = async {
            for _ in 0..200 {
                round_trip(&mut visitor, &mut target).await;
            }
        };
        let replace = async {
            assert!(rig.server.replace_tls(folder.server(&pair, &[&newer.pem])));
            for (name, files, welcome) in [
                ("old", secured.folder.trusting(&secured.signer), false),
                (
                    "new",
                    ClientFiles {
                        pins: vec![newer.pin()],
                        ..ClientFiles::default()
                    },
                    true,
                ),
            ] {
                let agent = another(rig, name, files, dialect);
                if welcome {
                    within(LONG, "connecting", agent.connected()).await;
                } else {
                    until("the distrust", || {
                        super::failures(&rig.server, "distrusted") > 0
                    })
                    .await;
                }
                within(PROMPT, "the drain", agent.drain(Duration::ZERO)).await;
            }
        };
        tokio::join!(carry, replace);
        assert_eq!(rig.agent.links(), 1);
        round_trip(&mut visitor, &mut target).await;
        drop((visitor, target));
        rig.at_rest().await;
    }
}

fn another(rig: &Rig, name: &str, files: ClientFiles, dialect: Dialect) -> Agent {
    let mut config: agent::Config = agent_config(&rig.server, &[]);
    config.name = name.to_owned();
    config.dialect = dialect;
    config.tls = Client::load(files).unwrap();
    by_tls(&mut config);
    Agent::start(config, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_stays_without() {
    let rig = Rig::start().await;
    let folder = Folder::new();
    let tls = folder.server(&Signer::new("authority").sign(&["127.0.0.1"]), &[]);
    assert!(!rig.server.replace_tls(tls));
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
}

/// What a server makes itself is enough for an agent that has the pin.
#[tokio::test(flavor = "multi_thread")]
async fn a_self_made_authority_and_its_pin_make_a_link() {
    let folder = Folder::new();
    let names = ["127.0.0.1".to_owned()];
    let open = || Authority::open(folder.path(), &names, tunnel::io::clock::wall()).unwrap();
    let authority = open();
    let pin = authority.pin().to_string();
    let rig = Rig::start_with(
        |server| server.tls = Some(tunnel::io::tls::Server::load(&authority.files()).unwrap()),
        |agent| {
            let files = ClientFiles {
                pins: vec![pin.parse().unwrap()],
                ..ClientFiles::default()
            };
            agent.tls = Client::load(files).unwrap();
            by_tls(agent);
        },
    )
    .await;
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    assert_eq!(open().pin().to_string(), pin);
}
