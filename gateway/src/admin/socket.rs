//! The Unix socket of the command line: one JSON object asked, one answered, then it closes.
//!
//! Who may open the socket may do everything: the file's owner and its group, which `[admin].group` names.
//! What they change is written down with who they are ([`super::asker`]).

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use nix::unistd::{Gid, Group, chown};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Longest question, in bytes: the longest command with a sentence of reason.
const QUESTION_MAX_BYTES: u64 = 8 * 1024;

/// Longest answer that the command line takes: a full table of bans is about 10 MiB.
const ANSWER_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// A question is one write; who needs longer has stopped.
const QUESTION_MAX: Duration = Duration::from_secs(5);

/// The command line waits no longer for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What the command line asks of a running daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// How it is.
    Status,
    /// Who is banned.
    Bans,
    /// Ban a source.
    Ban {
        /// Whom.
        source: IpNet,
        /// For how long.
        for_s: u64,
        /// The operator's words.
        #[serde(default)]
        note: Option<String>,
    },
    /// Lift a ban.
    Unban {
        /// Whose.
        source: IpNet,
    },
    /// What is known of a source.
    Explain {
        /// Whose.
        source: IpNet,
    },
    /// Packets, sources, refusals and consumers, as they are now.
    Top,
    /// Frames that are dropped, as they come: after the answer one [`DropRow`] a line, until the
    /// asker goes.
    Drops,
    /// Read the configuration anew, all or nothing.
    Reload,
    /// Drain and exit: after the answer one [`DrainRow`] a line, until it is over.
    Drain,
    /// Start the program that is installed now, to take over from this one.
    Upgrade,
    /// Hand the sockets over to the asker, then end: see [`crate::net::handover`].
    TakeOver {
        /// The language that the asker speaks.
        protocol: u32,
        /// The asker's version.
        version: String,
    },
    /// Take the XDP program off the interfaces.
    Detach,
    /// Switch the XDP program between dropping and only counting.
    Enforce {
        /// Drop, or only count.
        enforce: bool,
        /// Go back after this long unless asked again without it.
        #[serde(default)]
        confirm_within_s: Option<u64>,
    },
}

/// One ban, as listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BanRow {
    /// As a prefix.
    pub source: String,
    /// The reason's word.
    pub reason: String,
    /// `evidence` or `operator`.
    pub origin: String,
    /// Step of the ladder, from 0.
    pub level: u32,
    /// Time left, in seconds.
    pub remaining_s: f64,
    /// The operator's words, or what the ban rests on, while the daemon that set it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What is known of a source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// As a prefix.
    pub source: String,
    /// The prefix that exempts it from every ban, limit and list.
    pub exempt: Option<String>,
    /// The prefix that keeps it from being banned; limits and `[xdp].deny` hold all the same.
    pub never_banned: Option<String>,
    /// What that prefix is, as in `is a server of the upstream orders`.
    #[serde(default)]
    pub never_banned_because: Option<String>,
    /// The prefix of `[xdp].deny` that it lies in.
    pub denied: Option<String>,
    /// The ban in force.
    pub ban: Option<BanRow>,
    /// Whether the XDP program drops; `None` without one.
    pub enforce: Option<bool>,
    /// How often its limits are doubled; negative: halved.
    pub limits_doubled: i32,
    /// What the kernel would still let through at once; empty without an XDP program.
    pub allowances: Vec<AllowanceRow>,
    /// Penalty points now.
    pub points: f64,
    /// Points at which it would be banned.
    pub threshold: u32,
    /// Points at which sources are banned that nobody speaks for.
    #[serde(default)]
    pub threshold_of_everybody: u32,
    /// Good clients seen there of late, each by how long ago.
    #[serde(default)]
    pub good_clients: f64,
    /// Step of the ladder that the next ban would have.
    pub next_level: u32,
    /// The last refusals, the newest first.
    pub lately: Vec<PastRefusal>,
}

/// One limit of the kernel half in [`Explanation`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllowanceRow {
    /// `packets`, `connections` or `bytes`.
    pub quota: String,
    /// Whose: the source's, or that of the IPv6 /48 around it.
    pub of: String,
    /// What it may still send now.
    pub left: u64,
    /// What it may send at once after a pause.
    pub burst: u64,
}

/// One refusal in [`Explanation`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PastRefusal {
    /// The reason's word.
    pub reason: String,
    /// How long ago, in seconds.
    pub ago_s: f64,
}

/// A frame that was dropped, or would have been; or, without a reason, how many more there were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DropRow {
    /// When, in seconds since 1970; right to a tenth.
    pub at_s: f64,
    /// The interface it came in by.
    pub interface: Option<String>,
    /// Its sender's address, where it had one that could be read.
    pub source: Option<String>,
    /// What it was sent to, as in `8443/tcp`, where its headers tell.
    pub service: Option<String>,
    /// Why, in the word of the metric.
    pub reason: Option<String>,
    /// Its length from the Ethernet header on.
    pub frame_bytes: u64,
    /// Whether it was dropped, not only counted.
    pub enforced: bool,
    /// Frames that were dropped besides and not told of; 0 in the row of a frame.
    pub untold: u64,
}

/// How far a drain is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainRow {
    /// Connections that are open still.
    pub open: usize,
    /// Connections that have ended by themselves since the drain began.
    pub ended: usize,
    /// Until the others are cut, in seconds.
    pub remaining_s: f64,
    /// Whether this is the last row; `open` connections were cut then.
    pub over: bool,
}

/// What is going on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Overview {
    /// When, in seconds since the daemon's start.
    pub at_s: f64,
    /// Open connections.
    pub connections: usize,
    /// Bans in force.
    pub bans: usize,
    /// What the XDP program did, by interface, action and reason.
    pub packets: Vec<PacketRow>,
    /// The sources that have used most of what they may send, most first.
    pub sources: Vec<SourceRow>,
    /// Refusals by reason, of requests and handshakes.
    pub refusals: Vec<CountRow>,
    /// Requests by consumer.
    pub consumers: Vec<CountRow>,
    /// Requests over a limit, by limit and whom they were counted for.
    #[serde(default)]
    pub limited: Vec<CountRow>,
}

/// One counter of the XDP program in [`Overview`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PacketRow {
    /// The interface.
    pub interface: String,
    /// `pass`, `drop` or `would_drop`.
    pub action: String,
    /// Why, in the word of the metric.
    pub reason: String,
    /// Frames so far.
    pub packets: u64,
    /// Their octets.
    pub bytes: u64,
    /// Frames a second; the command line's to work out, from two looks.
    #[serde(default)]
    pub packets_per_s: f64,
}

/// One source in [`Overview`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SourceRow {
    /// As a prefix.
    pub source: String,
    /// What it may still send.
    pub allowances: Vec<AllowanceRow>,
}

/// One counter in [`Overview`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CountRow {
    /// Of what.
    pub name: String,
    /// So far.
    pub count: u64,
    /// A second; the command line's to work out, from two looks.
    #[serde(default)]
    pub per_s: f64,
}

/// How the daemon is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Whether `/ready` says yes.
    pub ready: bool,
    /// Why not, when not.
    pub not_ready: Option<String>,
    /// Generation of the configuration.
    pub generation: u64,
    /// Worker threads.
    pub workers: usize,
    /// Open connections.
    pub connections: usize,
    /// Bans in force.
    pub bans: usize,
    /// Time since the start, in seconds.
    pub uptime_s: u64,
    /// The kernel half; `None` without one.
    pub xdp: Option<XdpStatus>,
    /// What the daemon has given up; `None` of one that did not tell.
    #[serde(default)]
    pub confinement: Option<ConfinementStatus>,
    /// Whether another process has been started to take over.
    #[serde(default)]
    pub takes_over: bool,
    /// How far the drain is; `None` while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainRow>,
    /// What clients see and who signs for it.
    pub certificates: Vec<CertificateStatus>,
    /// The servers that requests go to.
    pub upstreams: Vec<UpstreamStatus>,
    /// Files that changed and are not good; what they are a part of is served as it was.
    pub refused_files: Vec<RefusedFile>,
    /// Who issues tokens, and how their keys stand.
    pub issuers: Vec<IssuerStatus>,
    /// Limits on requests.
    #[serde(default)]
    pub limits: Vec<LimitStatus>,
    /// The machine; `None` before it was looked at.
    #[serde(default)]
    pub host: Option<HostStatus>,
}

/// What the daemon has given up, in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfinementStatus {
    /// Capabilities that are left.
    pub capabilities: Vec<String>,
    /// Whether files are out of reach but for those that the configuration named.
    pub files: bool,
    /// Whether system calls that a gateway never makes are refused.
    pub system_calls: bool,
    /// What could not be given up, and why.
    pub lacking: Vec<String>,
    /// Whether the agent that keeps the kernel's maps is there.
    pub agent: bool,
}

/// The machine in [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// What is shed, in a word: `normal`, `strained`, `no_strangers`, `essential`, `critical`.
    pub stage: String,
    /// Why, when it is not `normal`.
    pub why: Option<String>,
    /// The hottest CPU sensor, in °C; `None` without sensors.
    pub celsius: Option<f64>,
    /// Times that CPUs were slowed down for their heat, since the machine's start.
    pub throttle_events: Option<u64>,
    /// Its clock.
    pub clock: ClockStatus,
}

/// The clock in [`HostStatus`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Who says so: `chrony`, `kernel`, `unknown`.
    pub keeper: String,
    /// Whether something keeps it right; `None`: nobody knows.
    pub synchronized: Option<bool>,
    /// How far it is ahead, in seconds.
    pub offset_s: Option<f64>,
    /// It is at most this far off, in seconds.
    pub max_error_s: Option<f64>,
    /// The longest leeway that tokens are granted, in seconds; `None` without issuers.
    pub leeway_s: Option<u64>,
}

/// One issuer in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IssuerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Where its keys come from: a file or an address.
    pub keys_from: String,
    /// Whether tokens of it can be verified now.
    pub available: bool,
    /// The names of its keys that can be used, `(no kid)` for one without.
    pub keys: Vec<String>,
    /// Time since it last gave its keys, in seconds; `None` for a file, and before the first answer.
    pub age_s: Option<u64>,
    /// Time until it is asked again, in seconds; `None` for a file, and while it is being asked.
    pub next_fetch_s: Option<u64>,
    /// Why the last question had no usable answer; `None` when it had one.
    pub last_error: Option<String>,
}

/// One limit in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitStatus {
    /// Its name.
    pub name: String,
    /// What it counts by.
    pub key: String,
    /// Its rates.
    pub rates: Vec<String>,
    /// Whether it refuses, or only counts.
    pub enforce: bool,
    /// Consumers that have used something of it.
    pub consumers: usize,
    /// Consumers that there is room for.
    pub entries: usize,
}

/// The kernel half in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct XdpStatus {
    /// Whether it drops, or only counts.
    pub enforce: bool,
    /// Where it is attached.
    pub interfaces: Vec<XdpInterface>,
}

/// One interface in [`XdpStatus`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct XdpInterface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; `none` when the program is gone.
    pub mode: String,
    /// The kernel's number of the program; 0 when it is gone.
    pub program_id: u32,
}

/// One certificate file in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The listener that presents it.
    pub listener: String,
    /// Its file.
    pub file: PathBuf,
    /// End of its validity, in seconds since 1970.
    pub not_after_s: u64,
    /// Time left, in seconds; negative when it has ended.
    pub remaining_s: i64,
}

/// One upstream in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Each address of each configured server.
    pub servers: Vec<UpstreamServerStatus>,
}

/// One server of an upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamServerStatus {
    /// As configured.
    pub server: String,
    /// Where it is; `None` while its name has no address.
    pub address: Option<String>,
    /// `up`; `down` by the prober's word; `out` for a while after failed requests; `unresolved`.
    pub state: String,
    /// Requests it has now.
    pub requests: usize,
}

/// One file of [`Status::refused_files`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusedFile {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub detail: String,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// Done; what was asked for.
    Ok(T),
    /// Not done; why, and what to do.
    Error(String),
}

impl<T> Answer<T> {
    /// Whether it was done, and why not.
    pub fn outcome(&self) -> Result<(), &str> {
        match self {
            Answer::Ok(_) => Ok(()),
            Answer::Error(why) => Err(why),
        }
    }
}

/// Why the command line has no answer.
#[derive(Debug)]
pub enum AskError {
    /// No daemon listens there.
    NoDaemon(PathBuf),
    /// The socket's mode says no.
    NotPermitted(PathBuf),
    /// The connection broke, or the answer is none.
    Broken(PathBuf, io::Error),
    /// The daemon says no.
    Refused(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::NoDaemon(path) => write!(
                formatter,
                "no daemon answers at {}; start it with `portcullis run`, or name its configuration with --config",
                path.display()
            ),
            AskError::NotPermitted(path) => write!(
                formatter,
                "not permitted to ask the daemon at {}; become root or a member of the socket's group",
                path.display()
            ),
            AskError::Broken(path, error) => {
                write!(
                    formatter,
                    "asking the daemon at {}: {error}; its log says whether it is well",
                    path.display()
                )
            }
            AskError::Refused(why) => formatter.write_str(why),
        }
    }
}

impl std::error::Error for AskError {}

/// The number of a group that is written as a name or a number.
///
/// # Errors
/// One sentence: there is none of this name.
pub fn group(written: &str) -> Result<Gid, String> {
    let named = Group::from_name(written).ok().flatten().map(|group| group.gid);
    named.or_else(|| written.parse().ok().map(Gid::from_raw)).ok_or_else(|| {
        format!(
            "there is no group {written}; make it (groupadd --system {written}), or correct [admin].group"
        )
    })
}

/// Lets a group use the socket.
///
/// # Errors
/// One sentence: what, where, what to do.
pub fn give_to(path: &Path, group: Gid) -> Result<(), String> {
    chown(path, None, Some(group)).map_err(|error| {
        format!(
            "cannot give {} to group {group}: {error}; run the daemon as root or as a member of it",
            path.display()
        )
    })
}

/// Binds the socket, for its owner and a group, the process's own where none is named. A file left by a
/// daemon that is gone is replaced; a live one is not.
///
/// # Errors
/// One sentence: what, where, what to do.
pub fn bind(path: &Path, group: Option<&str>) -> Result<StdUnixListener, String> {
    let gid = group.map(self::group).transpose()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    }
    if path.exists() {
        if StdUnixStream::connect(path).is_ok() {
            return Err(format!(
                "another daemon answers at {}; stop it, take over from it with --take-over, or set \
                 [admin].socket to another path",
                path.display()
            ));
        }
        std::fs::remove_file(path)
            .map_err(|error| format!("cannot replace {}: {error}", path.display()))?;
    }
    let bound = StdUnixListener::bind(path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        // The group is the operators'; everybody else stays out.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    });
    let bound = bound.map_err(|error| format!("cannot bind {}: {error}", path.display()))?;
    if let Some(gid) = gid {
        give_to(path, gid)?;
    }
    Ok(bound)
}

/// Reads one question.
///
/// # Errors
/// What is wrong with it.
pub async fn read(stream: &mut UnixStream) -> Result<Question, String> {
    let mut text = Vec::new();
    let mut limited = tokio::io::BufReader::new(stream.take(QUESTION_MAX_BYTES));
    let read = limited.read_until(b'\n', &mut text);
    match tokio::time::timeout(QUESTION_MAX, read).await {
        Ok(Ok(_)) => {
            serde_json::from_slice(&text).map_err(|error| format!("not a command: {error}"))
        }
        Ok(Err(error)) => Err(format!("question lost: {error}")),
        Err(_) => Err("no question came".to_owned()),
    }
}

/// Writes the answer.
///
/// # Errors
/// The other side is gone.
pub async fn write<T: Serialize>(stream: &mut UnixStream, answer: &Answer<T>) -> io::Result<()> {
    write_row(stream, answer).await
}

/// Writes one line of what goes on after an answer.
///
/// # Errors
/// The other side is gone.
pub async fn write_row<T: Serialize>(stream: &mut UnixStream, row: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec(row)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

/// The command line's side: asks, and waits for the answer.
///
/// # Errors
/// No daemon, no permission, or the daemon's own no.
pub fn ask<T: DeserializeOwned>(path: &Path, question: &Question) -> Result<T, AskError> {
    let here = path.to_path_buf();
    let stream = connect(path)?;
    let exchange = || -> io::Result<String> {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut question = serde_json::to_vec(question)?;
        question.push(b'\n');
        (&stream).write_all(&question)?;
        let mut answer = String::new();
        BufReader::new((&stream).take(ANSWER_MAX_BYTES)).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| AskError::Broken(here.clone(), error))?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(why)) => Err(AskError::Refused(why)),
        Err(error) => Err(AskError::Broken(here, error.into())),
    }
}

/// Whether a daemon listens there, even one that would not let this process in.
pub fn is_there(path: &Path) -> bool {
    let connected = StdUnixStream::connect(path);
    connected.map_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied, |_| true)
}

fn connect(path: &Path) -> Result<StdUnixStream, AskError> {
    let here = path.to_path_buf();
    StdUnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotPermitted(here),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NoDaemon(here),
        _ => AskError::Broken(here, error),
    })
}

/// The command line's side of what goes on after the answer: asks, then hands over one row after the
/// other until `take` has enough or the daemon ends.
///
/// # Errors
/// No daemon, no permission, the daemon's own no, or a row that is none.
pub fn follow<T: DeserializeOwned>(
    path: &Path,
    question: &Question,
    mut take: impl FnMut(T) -> bool,
) -> Result<(), AskError> {
    let broken = |error: io::Error| AskError::Broken(path.to_path_buf(), error);
    let stream = connect(path)?;
    stream.set_write_timeout(Some(ANSWER_MAX)).map_err(broken)?;
    let mut asked = serde_json::to_vec(question).map_err(|error| broken(error.into()))?;
    asked.push(b'\n');
    (&stream).write_all(&asked).map_err(broken)?;
    let mut lines = BufReader::new(&stream);
    let mut is_answered = false;
    loop {
        let mut line = String::new();
        // Rows come when they come; the daemon's end ends the line.
        if (&mut lines).take(QUESTION_MAX_BYTES).read_line(&mut line).map_err(broken)? == 0 {
            return Ok(());
        }
        let is_none = |error: serde_json::Error| broken(error.into());
        if is_answered {
            if !take(serde_json::from_str(&line).map_err(is_none)?) {
                return Ok(());
            }
        } else {
            match serde_json::from_str(&line).map_err(is_none)? {
                Answer::<serde_json::Value>::Ok(_) => is_answered = true,
                Answer::Error(why) => return Err(AskError::Refused(why)),
            }
        }
    }
}
