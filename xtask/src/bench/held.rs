//! Open sockets, held by processes that outlive the command.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracer_abi::annotation::{Owner, Role, bind, end};

pub(crate) const COMMAND: &str = "__held";
pub(crate) const HOLDER: &str = "__holder";

/// Connections a process has both ends of: their descriptors fit into common limits, their ports
/// into one listener's range.
const CONNECTIONS: u32 = 8_000;
const READY: &str = "ready";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    leaky: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HolderArgs {
    #[arg(long)]
    session: u64,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    leaky: bool,
}

/// Starts the holders, prints the moment at which all have all their sockets, and leaves them
/// behind.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut holders = Vec::new();
    let mut rest = args.connections;
    for session in 1.. {
        let connections = rest.min(CONNECTIONS);
        if connections == 0 {
            break;
        }
        rest -= connections;
        let mut holder = Command::new(std::env::current_exe()?);
        holder.args([HOLDER, "--session", &format!("{session}")]);
        holder.args(["--connections", &format!("{connections}")]);
        if args.leaky {
            holder.arg("--leaky");
        }
        holders.push(holder.stdout(Stdio::piped()).spawn()?);
    }
    for holder in &mut holders {
        let stdout = holder.stdout.take().context("a holder has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim_end() == READY, "a holder failed");
    }
    println!("{}", super::now_ns());
    Ok(())
}

/// Opens connections, each end for a request of its own, and holds them until standard input ends.
/// When it is leaky, the requests end at once.
pub(crate) fn hold(args: &HolderArgs) -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    let owner = |stream| Owner {
        session: args.session,
        stream,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    bind(&listener, Role::Listener, owner(u64::MAX), "listener")?;
    let address = listener.local_addr()?;
    let mut held = Vec::new();
    for _ in 0..args.connections {
        held.push(TcpStream::connect(address)?);
        held.push(listener.accept()?.0);
    }
    for (socket, stream) in held.iter().zip(1..) {
        bind(socket, Role::Stream, owner(stream), "one of very many")?;
    }
    for (socket, stream) in held.iter().zip(1..) {
        if args.leaky {
            end(socket, owner(stream), 0)?;
        }
    }
    println!("{READY}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
