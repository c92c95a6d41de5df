//! Builds the stages from a [`Config`], wires them, runs, drains: the picture as code.
//!
//! The main thread is the control thread: it alone talks to the agent that owns the kernel's maps, and
//! owns the ledger of penalties and the published snapshot, so nothing of them needs a lock. Workers
//! send it evidence and never wait for it.

mod advice;
mod control;
mod course;
mod doors;
mod heap;
mod keys;
mod listeners;
mod material;
mod refresh;
mod spared;
mod takeover;
mod vouching;

use std::{
    collections::BTreeSet, fmt, path::Path, process::ExitCode, rc::Rc, sync::Arc, time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_getaffinity};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::LocalSet,
};

pub use self::advice::advice;
pub use self::keys::fetched_issuers;
pub use self::material::{MaterialError, load_snapshot, revoked_tokens, token_issuers};
use self::{
    control::{Control, Seen, Serving, Tell, upstreams},
    course::Course,
    doors::Doors,
    listeners::{Listeners, ListenersError},
    refresh::Followed,
    takeover::Estate,
};
use crate::{
    admin::{
        asker::Asker,
        audit::{Log, TracingLayer},
        metrics::Consumers,
        monitor,
        notify::Notify,
        socket,
    },
    config::{self, Config, Disk, KeySource, Problems, Warning},
    confinement::{Confinement, Reach, confine},
    host,
    kernel::{Agent, Filter, KernelError},
    net::{
        activation, addresses,
        admission::Admission,
        descriptors,
        handover::Taken,
        listen::ListenError,
        quic,
        worker::{self, Listening, Phase, Shared},
    },
    time,
    upstream::{
        probe,
        resolve::{self, Addresses},
    },
};

/// Evidence on its way to the control thread. At 48 bytes each that is 400 KiB; what finds it full is
/// counted, and whoever fills it earns a ban by what got through.
const EVIDENCE_QUEUE: usize = 8_192;

/// Evidence judged in one turn, so that its bans are written in one batch.
const EVIDENCE_BATCH: usize = 512;

/// How far drains are is looked at this often: a stop that nothing holds up takes no longer.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Expired bans are removed this often; the kernel judges the expiry itself, so this is tidiness.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the daemon does not run.
#[derive(Debug)]
pub enum RunError {
    /// The configuration is refused.
    Configuration(Problems),
    /// A file that the configuration names is not good.
    Material(Vec<MaterialError>),
    /// An address is not to be had.
    Listen(ListenError),
    /// The kernel half cannot be set up.
    Kernel(KernelError),
    /// Something else of the system.
    System(String),
}

impl RunError {
    /// The process' exit status: 78 configuration, 77 not permitted, 1 anything else.
    pub fn exit_status(&self) -> u8 {
        match self {
            RunError::Configuration(_) | RunError::Material(_) => 78,
            RunError::Listen(error)
                if error.error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                77
            }
            RunError::Kernel(error) if error.not_permitted().is_some() => 77,
            RunError::Listen(_) | RunError::Kernel(_) | RunError::System(_) => 1,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Configuration(problems) => write!(formatter, "{problems}"),
            RunError::Material(errors) => {
                for (index, error) in errors.iter().enumerate() {
                    if index > 0 {
                        formatter.write_str("\n")?;
                    }
                    write!(formatter, "{error}")?;
                }
                Ok(())
            }
            RunError::Listen(error) => write!(formatter, "{error}"),
            RunError::Kernel(error) => write!(formatter, "{error}"),
            RunError::System(text) => formatter.write_str(text),
        }
    }
}

impl std::error::Error for RunError {}

impl From<ListenError> for RunError {
    fn from(error: ListenError) -> Self {
        RunError::Listen(error)
    }
}

impl From<ListenersError> for RunError {
    fn from(error: ListenersError) -> Self {
        match error {
            ListenersError::Listen(error) => RunError::Listen(error),
            ListenersError::Places | ListenersError::Renamed(_) => {
                RunError::System(error.to_string())
            }
        }
    }
}

impl From<KernelError> for RunError {
    fn from(error: KernelError) -> Self {
        RunError::Kernel(error)
    }
}

/// Serves until SIGTERM or SIGINT. With `take_over` it gets the sockets of the daemon that runs, if
/// one does, and ends it when it serves.
///
/// # Errors
/// Why it cannot start. Once it serves, nothing ends it but a signal.
pub fn run(path: &Path, take_over: bool) -> Result<ExitCode, RunError> {
    // Before anything else opens descriptors, or another program takes this one's place.
    let passed = activation::passed();
    let system = |what: &str, error: std::io::Error| RunError::System(format!("{what}: {error}"));
    let program = std::env::current_exe()
        .map_err(|error| system("cannot find this program's file", error))?;
    let (config, warnings) = config::load(path, &Disk::new()).map_err(RunError::Configuration)?;
    // Before there are threads, keys in memory, or anything that this process gives up.
    let pin = config.xdp.as_ref().map(|settings| settings.pin.as_path());
    let agent = Agent::start(path, &program, pin).map_err(KernelError::from)?;
    let confinement = confine(&reach(path, &config));
    let watch = Followed::look(&config);
    let mut snapshot = load_snapshot(&config, 1).map_err(RunError::Material)?;
    let mut addresses = Addresses::default();
    upstreams::look_up_new(&config, &mut addresses);
    resolve::settle(&mut snapshot.upstreams, &addresses, &[], time::monotonic());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| system("cannot start the runtime", error))?;

    // From here on a signal is an event: the default action would end the process half way.
    let signals = {
        let _inside = runtime.enter();
        Signals::new()
    };
    // Everything that can be refused is asked for before the program is put on an interface.
    let cpus = cpus();
    let workers = if config.server.workers == 0 { cpus.len() } else { config.server.workers };
    let steered = (config.server.cpu_steering && workers == cpus.len()).then(|| cpus.clone());
    let mut estate = Estate::gather(&config, passed, take_over)?;
    let quic_keys = estate.quic_keys.take().map(|keys| quic::Keys::from_bytes(&keys));
    let quic_keys =
        quic_keys.transpose().map_err(|error| system("cannot make keys for QUIC", error))?;
    let run_id = run_id();
    // Digits that differ from run to run; when they are none, the spread is that of others too.
    let seed = u64::from_str_radix(&run_id, 16).unwrap_or_default();
    let mut issuer_keys = keys::IssuerKeys::new(&config, seed, time::monotonic());
    // Before the first worker accepts.
    issuer_keys.inherit(estate.issuer_keys(), time::monotonic());
    snapshot.issuers = issuer_keys.put_into(&snapshot.issuers, &snapshot.issuers, 1);
    let mut listeners = Listeners::new(config.server.backlog, steered, quic_keys);
    let bound = listeners.prepare(&config.listeners, workers, &mut estate.listeners)?;
    let doors = estate.doors(&config)?;
    let kernel = start_kernel(&agent, &config, &upstreams::networks(&addresses))?;
    let room = descriptors::make_room(config.server.max_connections)
        .map_err(|error| system("cannot read the limit of descriptors", error.into()))?;

    let (log, writer) =
        Log::start(config.log.format).map_err(|error| system("cannot start the log", error))?;
    trace_to(&log);
    announce(&config, &warnings, workers);
    announce_confinement(&confinement);
    if let Some(shortage) = room.shortage() {
        tracing::warn!(detail = %shortage, "descriptors");
    }
    if config.server.cpu_steering && workers != cpus.len() {
        let detail =
            "cpu_steering does nothing: there is not one worker for each CPU; write workers = 0";
        tracing::warn!(detail, "configuration");
    }
    for unused in &estate.unused {
        tracing::warn!(detail = unused, "a socket that was passed has no use here and is closed");
    }
    let (evidence, evidence_receiver) = mpsc::channel(EVIDENCE_QUEUE);
    let (vouchers, voucher_receiver) = mpsc::channel(vouching::VOUCHERS_QUEUE);
    let (unknown_keys, unknown_receiver) = mpsc::channel(keys::UNKNOWN_KEYS_QUEUE);
    let (phase, phase_receiver) = watch::channel(Phase::Running);
    let (news, news_receiver) = watch::channel(());
    let shared = Shared {
        published: Arc::new(ArcSwap::from_pointee(snapshot)),
        admission: Admission::new(room.connections_max, config.server.max_connections_per_source),
        host: host::Published::default(),
        evidence,
        news: news_receiver,
        unknown_keys,
        vouchers,
        phase: phase_receiver,
        log: log.clone(),
        consumers: Consumers::default(),
        run_id: run_id.into(),
        token_cache_entries: config.token_cache.entries.div_ceil(workers),
        token_cache_ttl: config.token_cache.ttl,
    };
    let mut sockets: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
    for of_listener in listeners.make(bound, Course::of_leave(time::monotonic(), Duration::ZERO)) {
        for (number, socket) in of_listener.into_iter().enumerate() {
            sockets[number % workers].push(socket);
        }
    }
    let mut handles = Vec::new();
    for (id, sockets) in sockets.into_iter().enumerate() {
        // With a worker for each CPU, each keeps to its own; fewer go where there is room.
        let cpu = (workers == cpus.len()).then(|| cpus[id]);
        let handle = worker::start(id, cpu, sockets, shared.clone())
            .map_err(|error| system("cannot start a worker", error))?;
        handles.push(handle);
    }
    let tell = Tell { phase, news };
    let serving = Serving {
        listeners,
        doors: Doors::new(doors),
        workers: handles,
        notify: Notify::from_environment(),
        agent,
        confinement,
        stale: estate.stale,
    };
    let seen = Seen { files: watch, addresses, issuer_keys };
    let control = Control::new(path, config, shared, serving, kernel, tell, seen);
    let went_well = LocalSet::new().block_on(&runtime, async {
        let control = Rc::new(control);
        tokio::task::spawn_local(keys::follow(control.clone(), unknown_receiver));
        tokio::task::spawn_local(control::host::follow(control.clone()));
        tokio::task::spawn_local(heap::follow());
        tokio::task::spawn_local(vouching::follow(control.clone(), voucher_receiver));
        serve(control, signals, evidence_receiver, estate.before).await
    });
    tracing::info!("stopped");
    writer.finish(&log);
    Ok(if went_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn start_kernel(
    agent: &Rc<Agent>,
    config: &Config,
    upstreams: &[IpNet],
) -> Result<Option<(Filter, Vec<String>)>, RunError> {
    let Some(settings) = kernel_settings(config, upstreams)? else { return Ok(None) };
    Ok(Some(Filter::start(agent, &settings)?))
}

/// The configured settings, and the addresses that must never be dropped although nobody wrote them
/// down: this host's own, its gateways' and those that the names of upstream servers lead to.
fn kernel_settings(
    config: &Config,
    upstreams: &[IpNet],
) -> Result<Option<crate::kernel::Settings>, RunError> {
    let Some(mut settings) = config.xdp.clone() else { return Ok(None) };
    let found = addresses::infrastructure().map_err(|error| {
        RunError::System(format!("cannot read this host's addresses and routes: {error}"))
    })?;
    settings.exempt.extend(found);
    settings.exempt.extend(upstreams);
    settings.exempt.sort();
    settings.exempt.dedup();
    Ok(Some(settings))
}

fn trace_to(log: &Log) {
    use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("PORTCULLIS_LOG")
        .from_env_lossy();
    // It fails only when one is set already, as in a test that runs two gateways.
    let _ = tracing_subscriber::registry().with(filter).with(TracingLayer(log.clone())).try_init();
}

fn announce(config: &Config, warnings: &[Warning], workers: usize) {
    for warning in warnings {
        tracing::warn!(detail = %warning, "configuration");
    }
    let listeners: Vec<_> =
        config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workers,
        listeners = listeners.join(" "),
        metrics = %config.admin.metrics,
        routes = config.routes.len(),
        "started"
    );
}

fn announce_confinement(confinement: &Confinement) {
    tracing::info!(detail = confinement.in_words(), "confined");
    for lacking in &confinement.lacking {
        tracing::warn!(detail = lacking, "not confined");
    }
}

/// The files that this process goes on to need.
fn reach(path: &Path, config: &Config) -> Reach {
    let mut files = material::files(config);
    files.insert(path.to_path_buf());
    let of_issuers = config.issuers.iter().filter_map(|issuer| match &issuer.keys {
        KeySource::Remote(remote) => remote.authorities.clone(),
        KeySource::File(_) => None,
    });
    files.extend(of_issuers);
    Reach {
        files,
        directories: BTreeSet::from([config.host.sysfs.clone()]),
        sockets: BTreeSet::from([config.admin.socket.clone()]),
    }
}

/// The CPUs that this process may run on.
fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Eight hexadecimal digits that differ from run to run, so that ids of two runs do not meet.
fn run_id() -> String {
    let mut bytes = [0u8; 4];
    // It fails only before the kernel's generator is seeded; then the process id has to do.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        bytes = std::process::id().to_be_bytes();
    }
    format!("{:08x}", u32::from_be_bytes(bytes))
}

/// The control thread's loop: evidence, signals, operators, monitors, until the drain is over.
async fn serve(
    control: Rc<Control>,
    mut signals: Signals,
    mut evidence: mpsc::Receiver<crate::policy::penalty::Evidence>,
    before: Option<Taken>,
) -> bool {
    let went_well = before.is_none_or(|before| succeed(&control, before));
    control.started(went_well);
    tokio::task::spawn_local(refresh::follow(control.clone()));
    tokio::task::spawn_local(upstreams::follow_names(control.clone()));
    tokio::task::spawn_local(probe::follow(control.published()));
    let mut tell = tokio::time::interval(control::drops::TELL_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut batch = Vec::with_capacity(EVIDENCE_BATCH);
    let mut poll = tokio::time::interval(DRAIN_LOOK_EVERY);
    let is_watched = control.alive_every().is_some();
    let mut alive = tokio::time::interval(control.alive_every().unwrap_or(SWEEP_EVERY));
    loop {
        tokio::select! {
            biased;
            count = evidence.recv_many(&mut batch, EVIDENCE_BATCH) => {
                if count > 0 {
                    control.judge(batch.drain(..));
                }
            }
            event = signals.next() => match event {
                Event::Reload => {
                    // What came of it is in the log and the metrics.
                    let _told = control.reload();
                }
                Event::Stop if !control.is_draining() => control.drain(),
                Event::Stop => {
                    tracing::warn!("second signal: open connections are cut");
                    control.stop();
                    break;
                }
                Event::Ignored => {}
            },
            _ = sweep.tick() => control.sweep(),
            _ = tell.tick() => control.tell_drops(),
            _ = second.tick() => {
                control.go_back_unless_confirmed();
                control.look_after_agent();
                control.keep_attached();
                control.look_after_successor();
            }
            _ = alive.tick(), if is_watched => control.tell_alive(),
            _ = poll.tick() => {
                if control.follow_courses() {
                    break;
                }
            }
        }
    }
    control.tell_end();
    control.close();
    went_well
}

/// This process serves: the one before is told, and what it knew is taken. False: it serves on by itself,
/// and this one, which has no right to the sockets then, has to end.
fn succeed(control: &Control, before: Taken) -> bool {
    let pid = before.offer.pid;
    match before.serving() {
        Ok(state) => {
            control.begin_datagrams();
            control.inherit(&state);
            tracing::info!(pid, "took over from the process before");
            true
        }
        Err(error) => {
            tracing::error!(pid, detail = %error, "the process before went on; this one ends");
            false
        }
    }
}

async fn answer_operators(control: Rc<Control>, listener: UnixListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let control = control.clone();
        tokio::task::spawn_local(async move {
            let asker = match Asker::of(&stream) {
                Ok(asker) => asker,
                Err(error) => {
                    tracing::error!(error = %error, "the kernel does not say who asks");
                    return;
                }
            };
            let question = socket::read(&mut stream).await;
            let answer = match question.clone() {
                Ok(socket::Question::Drops) => return tell_drops(&control, &mut stream).await,
                Ok(asked @ socket::Question::Drain) => {
                    asker.audit(&asked, Ok(()));
                    return control.drain_for(stream);
                }
                Ok(asked @ socket::Question::TakeOver { protocol, .. }) => {
                    asker.audit(&asked, Ok(()));
                    return takeover::hand_over(control, protocol, stream).await;
                }
                Ok(socket::Question::Top) => match control.top().await {
                    Ok(overview) => socket::Answer::Ok(serde_json::json!(overview)),
                    Err(why) => socket::Answer::Error(why),
                },
                Ok(question) => control.answer(question),
                Err(why) => socket::Answer::Error(why),
            };
            if let Ok(question) = &question {
                asker.audit(question, answer.outcome());
            }
            // Who asked may be gone.
            let _ = socket::write(&mut stream, &answer).await;
        });
    }
}

/// Answers, then tells of dropped frames until the asker goes.
async fn tell_drops(control: &Control, stream: &mut UnixStream) {
    let mut rows = match control.follow_drops() {
        Ok(rows) => rows,
        Err(why) => {
            // Who asked may be gone.
            let _ = socket::write(stream, &socket::Answer::<()>::Error(why)).await;
            return;
        }
    };
    let mut went = socket::write(stream, &socket::Answer::Ok(())).await.is_err();
    let mut nothing = [0; 1];
    while !went {
        went = tokio::select! {
            row = rows.recv() => match row {
                Some(row) => socket::write_row(stream, &row).await.is_err(),
                None => true,
            },
            // Whoever asked has no more to say: a word and the end alike end it.
            _ = stream.read(&mut nothing) => true,
        };
    }
}

async fn answer_monitors(control: Rc<Control>, listener: TcpListener) {
    let allowed = control.clone();
    let allow = Rc::new(move |address| allowed.may_monitor(address));
    monitor::serve(listener, allow, move |page| {
        let control = control.clone();
        async move {
            match page {
                monitor::Page::Metrics => monitor::Content::Metrics(control.metrics().await),
                monitor::Page::Figures => monitor::Content::Figures(control.figures().await),
                monitor::Page::Live => monitor::Content::Health(Ok(())),
                monitor::Page::Ready => match control.readiness() {
                    Ok(()) => monitor::Content::Ready(control.notes()),
                    Err(why) => monitor::Content::Health(Err(why)),
                },
            }
        }
    })
    .await;
}

/// What a signal asks for.
enum Event {
    Reload,
    Stop,
    Ignored,
}

struct Signals {
    hangup: Option<Signal>,
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    reopen: Option<Signal>,
}

impl Signals {
    fn new() -> Signals {
        // Registering fails only for signals that cannot be caught, which these are not.
        let catch = |kind| signal(kind).ok();
        Signals {
            hangup: catch(SignalKind::hangup()),
            terminate: catch(SignalKind::terminate()),
            interrupt: catch(SignalKind::interrupt()),
            // Logs go to standard error; there is no file to open again, and the signal's default
            // action would end the process.
            reopen: catch(SignalKind::user_defined1()),
        }
    }

    async fn next(&mut self) -> Event {
        async fn come(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = come(&mut self.hangup) => Event::Reload,
            () = come(&mut self.terminate) => Event::Stop,
            () = come(&mut self.interrupt) => Event::Stop,
            () = come(&mut self.reopen) => Event::Ignored,
        }
    }
}
