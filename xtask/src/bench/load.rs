//! The load of short connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use tracer_abi::annotation::{Owner, Role, bind, end};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    annotate: bool,
    /// Connections a second; as many as can be without it.
    #[arg(long)]
    rate: Option<u32>,
}

/// Makes short connections on loopback, a byte each way. Prints the CPU time in nanoseconds that
/// they took: that of the start, in which a traced process enters its cgroup, is not theirs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let before_ns = cpu_ns();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&listener, 4096)?;
    let address = listener.local_addr()?;
    if args.annotate {
        bind(&listener, Role::Listener, owner(0), "listener")?;
    }
    let connections = args.connections;
    let server = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..connections {
            let (mut socket, _) = listener.accept()?;
            socket.read_exact(&mut [0; 1])?;
            socket.write_all(b"y")?;
        }
        Ok(())
    });
    let began = Instant::now();
    for n in 0..connections {
        if let Some(rate) = args.rate {
            let due = began + Duration::from_secs(1) * n / rate.max(1);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let mut socket = TcpStream::connect(address)?;
        if args.annotate {
            bind(&socket, Role::Stream, owner(n + 1), "a short connection")?;
        }
        socket.write_all(b"x")?;
        socket.read_exact(&mut [0; 1])?;
        if args.annotate {
            end(&socket, owner(n + 1), 0)?;
        }
    }
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server's thread failed"))??;
    println!("{}", cpu_ns() - before_ns);
    Ok(())
}

/// The CPU time of this process.
fn cpu_ns() -> i128 {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    i128::from(cpu.tv_sec) * 1_000_000_000 + i128::from(cpu.tv_nsec)
}

fn owner(stream: u32) -> Owner {
    Owner {
        session: 1,
        stream: u64::from(stream),
    }
}
