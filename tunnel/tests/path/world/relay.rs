//! What lies between an agent and its server: it can slow down, stop and break what it carries, as
//! a bad network does.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use tunnel::agent;

use super::{connect, of_the_world};
use crate::rig::loopback;

/// How fast a relay carries bytes, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Free,
    /// Nothing is read, so sent bytes pile up and an end goes unnoticed.
    Stopped,
    BytesPerSecond(usize),
}

/// A relay in front of a server. Dropping it breaks what it carries.
pub(crate) struct Relay {
    pace: watch::Sender<Pace>,
    cut: broadcast::Sender<()>,
    /// How often an agent came.
    taken: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Puts a relay between an agent that is not yet started and its server.
    pub(crate) fn before(config: &mut agent::Config) -> Self {
        let url = config.server.to_string();
        let authority = url.split('/').nth(2).unwrap();
        let server = authority.parse().unwrap();
        let listener = of_the_world(std::net::TcpListener::bind(loopback()).unwrap());
        let address = listener.local_addr().unwrap();
        config.server = format!("ws://{address}/connect").parse().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (pace, paces) = watch::channel(Pace::Free);
        let (cut, _) = broadcast::channel(1);
        let cuts = cut.clone();
        let (count, taken) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                let (agent, _) = listener.accept().await.unwrap();
                count.send_modify(|count| *count += 1);
                let (paces, mut cut) = (paces.clone(), cuts.subscribe());
                carried.spawn(async move {
                    tokio::select! {
                        () = carry(of_the_world(agent), server, paces) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Self {
            pace,
            cut,
            taken,
            task,
        }
    }

    pub(crate) fn set(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Breaks the current connections.
    pub(crate) fn cut(&self) {
        let _ = self.cut.send(());
    }

    /// Breaks the current connections, and waits until the agent has noticed. It may be back before
    /// it is asked whether it was gone.
    pub(crate) async fn cut_off(&self, agent: &agent::Agent) {
        let mut taken = self.taken.clone();
        let before = *taken.borrow();
        self.cut();
        tokio::select! {
            () = agent.disconnected() => {}
            again = taken.wait_for(|taken| *taken > before) => drop(again.unwrap()),
        }
    }
}

async fn carry(agent: TcpStream, server: SocketAddr, pace: watch::Receiver<Pace>) {
    let server = connect(server).await.unwrap();
    for end in [&agent, &server] {
        end.set_nodelay(true).unwrap();
        // Small buffers keep pending bytes at the ends. A break is a reset.
        SockRef::from(end).set_recv_buffer_size(32 * 1024).unwrap();
        SockRef::from(end).set_send_buffer_size(32 * 1024).unwrap();
        end.set_zero_linger().unwrap();
    }
    let (from_agent, to_agent) = agent.into_split();
    let (from_server, to_server) = server.into_split();
    let _ = tokio::try_join!(
        copy(from_agent, to_server, pace.clone()),
        copy(from_server, to_agent, pace)
    );
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut pace: watch::Receiver<Pace>,
) -> std::io::Result<()> {
    const TICK: Duration = Duration::from_millis(5);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let now = *pace.borrow_and_update();
        let most = match now {
            Pace::Free => buffer.len(),
            Pace::Stopped => {
                pace.changed().await.map_err(std::io::Error::other)?;
                continue;
            }
            Pace::BytesPerSecond(rate) => {
                tokio::time::sleep(TICK).await;
                (rate / 200).clamp(1, buffer.len())
            }
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..most]) => read?,
            _ = pace.changed() => continue,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
