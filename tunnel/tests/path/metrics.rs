//! remotedialer's counters on both ends, in both dialects: whatever ends a stream or a session
//! counts it out.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::wire::Dialect;

use crate::rig::{LONG, PROMPT, Rig, drain, left, refused, reset, sum, until, within};

async fn rig(dialect: Dialect) -> Rig {
    Rig::start_with(
        |server| server.remotedialer = Some(Remotedialer::default()),
        |agent| agent.dialect = dialect,
    )
    .await
}

fn texts(rig: &Rig) -> [String; 2] {
    [
        rig.server.counters().text().unwrap(),
        rig.agent.counters().unwrap().text().unwrap(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_which_a_stream_ends_counts_it_out_once() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let mut rig = rig(dialect).await;
        let address = rig.target.local_addr().unwrap();

        let (mut visitor, mut target) = rig.pair().await;
        visitor.write_all(b"ping").await.unwrap();
        target.read_exact(&mut [0; 4]).await.unwrap();
        target.write_all(b"pong!").await.unwrap();
        visitor.read_exact(&mut [0; 5]).await.unwrap();
        for text in texts(&rig) {
            assert_eq!(left(&text, "connections"), 1, "{text}");
            let labels = format!("{{addr=\"{address}\",clientkey=\"web\",proto=\"tcp\"}} 1");
            assert!(
                text.contains(&format!("total_add_connections{labels}")),
                "{text}"
            );
        }
        target.shutdown().await.unwrap();
        visitor.shutdown().await.unwrap();
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap();
        rig.at_rest().await;
        let [server, agent] = texts(&rig);
        assert_eq!(
            (sum(&server, "receive_bytes"), sum(&agent, "receive_bytes")),
            (5, 4)
        );
        // Messages have heads.
        assert!(sum(&server, "transmit_bytes") > 4 && sum(&agent, "transmit_bytes") > 5);
        assert_eq!(left(&server, "websocket_session"), 1);
        assert_eq!(sum(&agent, "add_websocket_session"), 0);

        let (visitor, mut target) = rig.pair().await;
        reset(visitor);
        assert!(
            within(PROMPT, "the reset", drain(&mut target))
                .await
                .is_err()
        );
        let (mut visitor, target) = rig.pair().await;
        reset(target);
        assert!(
            within(PROMPT, "the reset", drain(&mut visitor))
                .await
                .is_err()
        );
        rig.at_rest().await;
        let [server, agent] = texts(&rig);
        assert!(
            sum(&server, "transmit_error_bytes") > 0 && sum(&agent, "transmit_error_bytes") > 0
        );

        let closed = std::mem::replace(
            &mut rig.target,
            crate::world::TcpListener::bind(crate::rig::loopback())
                .await
                .unwrap(),
        );
        drop(closed);
        refused(rig.server.forwards()[0]).await;
        rig.at_rest().await;
        for text in texts(&rig) {
            assert_eq!(sum(&text, "add_connections"), 4, "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_counts_out_its_streams_and_itself() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let rig = rig(dialect).await;
        let (mut visitor, mut target) = rig.pair().await;
        let Rig { server, agent, .. } = rig;
        drop(agent);
        assert!(
            within(PROMPT, "the reset", drain(&mut visitor))
                .await
                .is_err()
        );
        // The agent was dropped with its sockets.
        let _ = within(PROMPT, "the end", drain(&mut target)).await;
        until("the end of the session", || server.tasks() == 0).await;
        let text = server.counters().text().unwrap();
        assert_eq!(
            (
                sum(&text, "add_connections"),
                sum(&text, "add_websocket_session")
            ),
            (1, 1)
        );
        assert_eq!(
            (left(&text, "connections"), left(&text, "websocket_session")),
            (0, 0),
            "{text}"
        );
        within(LONG, "the drain", server.drain(Duration::ZERO)).await;
    }
}
