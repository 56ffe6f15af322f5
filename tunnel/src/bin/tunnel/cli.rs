//! The command line.

use std::path::PathBuf;

use clap::{
    Arg, Args, Command as Clap, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueEnum,
};

use crate::nearest::nearest;
use crate::options::{AgentOptions, ServerOptions};

/// A reverse tunnel: reach private services through an agent that dials out over one WebSocket.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE, propagate_version = true)]
pub(crate) struct Cli {
    /// How log lines look; they go to standard error. TUNNEL_LOG (or RUST_LOG) filters them, as in
    /// TUNNEL_LOG=tunnel=debug.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLE: &str = "\
Example, two shells, and a service on port 9000 beside the agent:
  tunnel server --print-join=home --forward 127.0.0.1:8080=home/tcp/127.0.0.1:9000
  tunnel agent 'LINE' --allow 127.0.0.1:9000           # the line that the server printed
  curl http://127.0.0.1:8080/                          # what listens on port 9000

With a secret that both know instead:
  export TUNNEL_TOKEN=$(openssl rand -hex 32)
  tunnel server --forward 127.0.0.1:8080=home/tcp/127.0.0.1:9000
  tunnel agent --server ws://127.0.0.1:8123/connect --name home --allow 127.0.0.1:9000

An option --some-thing is also the environment variable TUNNEL_SOME_THING, and the
key some-thing in the table of its command in the file that --config names. In the
environment, commas separate the values of a list. The command line wins over the
environment, and the environment over the file.

SIGTERM and Ctrl-C drain: no new streams are taken, open ones may end (--drain), then
the exit status is 0. A second signal exits at once. SIGHUP, or a change of a file
that is in use, has the configuration read again.";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The public side: takes agents and visitors.
    ///
    /// Each listener is printed on standard output as one line `listening KIND=ADDRESS`. KIND is
    /// front, forward, socks5, http-connect, http or admin. Port 0 takes a free port.
    Server(Box<ServerArgs>),
    /// The private side: connects to the server and dials what --allow names.
    ///
    /// The links to the server, and nothing else, go through the HTTP proxy that http_proxy or else
    /// all_proxy names as http://[USER:PASSWORD@]HOST[:PORT]. no_proxy lists what is reached
    /// without it: names, which stand for all names below them, addresses, networks such as
    /// 10.0.0.0/8, or * for everything. All of these variables may be in capitals, too. Servers on
    /// this machine are reached without a proxy.
    Agent(Box<AgentArgs>),
    /// Checks a configuration file and everything that it names, and starts nothing.
    ///
    /// The exit status is 0 if `server` or `agent`, whichever the file has a table for, would start
    /// with it in this environment.
    Check(CheckArgs),
    /// Makes a token for an agent, and its digest for the server's configuration.
    Token(TokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) options: ServerOptions,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) options: AgentOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file, in TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The configuration file, in TOML.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// Write the token to this file, readable by its owner only, instead of to standard output. A
    /// file that exists is not overwritten: its digest is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

impl Cli {
    /// Reads the command line and the environment; ends the program where they are wrong.
    pub(crate) fn read() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Returns the command line, with a variable of the environment for every option.
fn command() -> Clap {
    let with_variables = |command: Clap| command.mut_args(with_variable);
    Cli::command()
        .mut_args(with_variable)
        .mut_subcommand("server", with_variables)
        .mut_subcommand("agent", with_variables)
}

fn with_variable(argument: Arg) -> Arg {
    let name = argument.get_id().as_str();
    if matches!(name, "help" | "version") {
        return argument;
    }
    let variable = variable(name);
    argument.env(variable).hide_env_values(true)
}

/// Warns of variables that look like options and are none: a setting that is misspelt must not be
/// thought to be in force.
pub(crate) fn warn_of_unknown_variables() {
    let known = variables();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for (variable, _) in std::env::vars_os() {
        let variable = variable.to_string_lossy();
        if variable.starts_with("TUNNEL_") && !known.contains(&&*variable) {
            let meant = nearest(&variable, &known).unwrap_or("none that is known");
            tracing::warn!(%variable, meant, "this variable sets nothing");
        }
    }
}

/// Returns every variable of the environment that has a meaning.
fn variables() -> Vec<String> {
    let command = command();
    let subcommands = command.get_subcommands().flat_map(Clap::get_arguments);
    let of_options = command.get_arguments().chain(subcommands);
    let of_options = of_options.filter_map(|argument| argument.get_env());
    of_options
        .map(|variable| variable.to_string_lossy().into_owned())
        .chain(
            [
                "TUNNEL_LOG",
                "TUNNEL_TOKEN",
                "TUNNEL_PEER_TOKEN",
                "TUNNEL_PROXY_CREDENTIALS",
            ]
            .map(str::to_owned),
        )
        .collect()
}

/// Returns the environment variable of an option.
fn variable(option: &str) -> String {
    format!("TUNNEL_{}", option.to_uppercase().replace('-', "_"))
}
