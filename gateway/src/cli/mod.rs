//! The command line: one file a command.

mod agent;
mod bans;
mod check;
mod config;
mod detach;
mod doctor;
mod drops;
mod enforce;
mod explain;
mod file;
mod manual;
pub mod pki;
mod reload;
mod run;
mod status;
pub mod token;
mod top;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    admin::socket::{self, AskError, Question},
    config::{Config, Disk, Problems, load},
    identity::token::Judges,
    time,
};

/// Done.
const DONE: u8 = 0;
/// Failed at run time.
const FAILED: u8 = 1;
/// Not permitted.
const NOT_PERMITTED: u8 = 77;
/// The configuration is refused.
const CONFIGURATION: u8 = 78;

/// Guards the edge of a network: drops abusers in the kernel, ends mutual TLS, checks tokens, proxies.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    /// Configuration file; `conf.d/*.toml` beside it is read too.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_CONFIG",
        value_name = "FILE",
        default_value = "/etc/portcullis/portcullis.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve in the foreground until SIGTERM or SIGINT.
    Run(run::Arguments),
    /// Judge the configuration and every file it names; list all problems.
    Check(check::Arguments),
    /// Print the configuration with every default filled in, as TOML.
    Config(config::Arguments),
    /// Look at this host: whether it has what the configuration needs, and what to do if not.
    Doctor(doctor::Arguments),
    /// Show how the running daemon is.
    Status(status::Arguments),
    /// List, set and lift bans.
    #[command(subcommand)]
    Bans(bans::Command),
    /// Tell everything that is known of a source, and why it is treated as it is.
    Explain(explain::Arguments),
    /// Show packets, sources, refusals and consumers, with their rates; every second on a terminal.
    Top(top::Arguments),
    /// Follow the frames that the XDP program drops: some of them, and how many more there are.
    Drops(drops::Arguments),
    /// Let the XDP program drop; until the next reload or restart, which do what is configured.
    Enforce(enforce::Arguments),
    /// Let the XDP program only count; until the next reload or restart.
    Observe,
    /// Read the configuration anew, all or nothing, and tell what came of it.
    Reload(reload::Arguments),
    /// Have the program that is installed now take over from the running daemon, without a lost
    /// connection.
    Upgrade(reload::Arguments),
    /// Finish what is under way, then end the daemon; tell how many connections were cut.
    Drain(reload::Arguments),
    /// Take the XDP program and all its pins off this host, with or without a daemon.
    Detach(detach::Arguments),
    /// A private certificate authority for labs and small fleets.
    Pki(pki::Arguments),
    /// Make and look at tokens, for development.
    Token(token::Arguments),
    /// Keep the kernel's maps for a daemon; `run` starts it.
    #[command(hide = true)]
    Agent(agent::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory, each into its section's.
    Man(manual::Arguments),
}

/// Why a command failed, with its exit status.
pub(crate) struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    fn new(status: u8, text: impl ToString) -> Failure {
        Failure { status, text: text.to_string() }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        Failure::new(CONFIGURATION, problems)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        let status = match error {
            AskError::NotPermitted(_) => NOT_PERMITTED,
            AskError::NoDaemon(_) | AskError::Broken(..) | AskError::Refused(_) => FAILED,
        };
        Failure::new(status, error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(FAILED, format!("{error:#}"))
    }
}

/// Reads the arguments, does what they ask, and says how it went.
pub fn main() -> ExitCode {
    // A reader that went away (`portcullis bans list | head`) ends the command quietly.
    let arguments = Arguments::parse();
    let config = arguments.config;
    let done =
        |result: anyhow::Result<()>| result.map(|()| ExitCode::from(DONE)).map_err(Failure::from);
    let result = match arguments.command {
        Command::Run(arguments) => run::run(&config, &arguments),
        Command::Check(arguments) => check::run(&config, &arguments),
        Command::Config(arguments) => config::run(&config, &arguments),
        Command::Doctor(arguments) => doctor::run(&config, &arguments),
        Command::Status(arguments) => status::run(&config, &arguments),
        Command::Bans(command) => bans::run(&config, command),
        Command::Explain(arguments) => explain::run(&config, &arguments),
        Command::Top(arguments) => top::run(&config, &arguments),
        Command::Drops(arguments) => drops::run(&config, &arguments),
        Command::Enforce(arguments) => enforce::run(&config, true, &arguments),
        Command::Observe => enforce::run(&config, false, &enforce::Arguments::default()),
        Command::Reload(arguments) => reload::reload(&config, &arguments),
        Command::Upgrade(arguments) => reload::upgrade(&config, &arguments),
        Command::Drain(arguments) => reload::drain(&config, &arguments),
        Command::Detach(arguments) => detach::run(&config, &arguments),
        Command::Pki(arguments) => done(pki::run(&arguments, time::wall(), &mut std::io::stdout())),
        Command::Token(arguments) => token(&config, &arguments),
        Command::Agent(arguments) => agent::run(config, arguments),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "portcullis",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::from(DONE))
        }
        Command::Man(arguments) => done(manual::run(Arguments::command(), &arguments)),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{}", failure.text);
            ExitCode::from(failure.status)
        }
    }
}

/// The configuration, for commands that need to know where the daemon is.
fn loaded(path: &std::path::Path) -> Result<Config, Failure> {
    Ok(load(path, &Disk::new())?.0)
}

/// Where the daemon answers, for commands that only look, or that must work when little else does: a
/// configuration that is being mended does not keep an operator from a daemon that runs on the last one.
fn daemon(path: &std::path::Path) -> Result<PathBuf, Failure> {
    let problems = match load(path, &Disk::new()) {
        Ok((config, _)) => return Ok(config.admin.socket),
        Err(problems) => problems,
    };
    let socket = crate::config::operators_socket(path, &Disk::new());
    if !path.exists() || !socket::is_there(&socket) {
        return Err(problems.into());
    }
    eprintln!(
        "{} has problems (portcullis check lists them); asking the daemon at {}",
        path.display(),
        socket.display()
    );
    Ok(socket)
}

/// `token inspect` judges by the configured issuers when the configuration can be read.
fn token(path: &std::path::Path, arguments: &token::Arguments) -> Result<ExitCode, Failure> {
    let configured = || {
        let (config, _) = load(path, &Disk::new()).ok()?;
        let issuers = crate::gateway::token_issuers(&config, 0).ok()?;
        let (issuers, failures) = crate::gateway::fetched_issuers(&config, &issuers);
        for failure in failures {
            eprintln!("{failure}");
        }
        Some((issuers, crate::gateway::revoked_tokens(&config).ok()?))
    };
    let configured = if arguments.wants_issuers() { configured() } else { None };
    let judges = configured.as_ref().map(|(issuers, revoked)| Judges { issuers, revoked });
    token::run(arguments, judges, time::wall(), &mut std::io::stdout())?;
    Ok(ExitCode::from(DONE))
}
