//! Asks servers beside the requests whether they are well: one prober for the process, for whom it
//! does not matter how many workers there are.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode, Version, header};
use tokio::{task::spawn_local, time::timeout};

use super::{
    Upstream,
    dial::{Dialled, Purpose, dial},
    health::{Streak, Thresholds, Verdict},
    outgoing::Source,
    server::Server,
};
use crate::{
    config::{Endpoint, HealthProbe},
    http::body::RequestBody,
    snapshot::Published,
    time,
};

/// How often is looked who is to be asked: half the shortest interval that can be configured.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The same while nobody is to be asked.
const IDLE_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why, when a server took too long.
const LATE: &str = "no answer in time";

/// What is remembered of each server, by its id.
type Probes = Rc<RefCell<HashMap<u64, Probe>>>;

#[derive(Clone, Copy)]
struct Probe {
    streak: Streak,
    next_at: Instant,
    is_asking: bool,
}

/// Asks until the process ends. Must run inside a [`tokio::task::LocalSet`].
pub async fn follow(published: Published) {
    let probes = Probes::default();
    loop {
        let snapshot = published.load_full();
        let probed = snapshot.upstreams.iter().filter_map(|upstream| {
            let health = upstream.health.as_ref()?;
            Some((upstream, health))
        });
        let now = time::monotonic();
        let mut present = HashMap::new();
        for (upstream, health) in probed {
            for server in &upstream.servers {
                let mut probe = probes.borrow().get(&server.id()).copied().unwrap_or(Probe {
                    streak: Streak::default(),
                    next_at: now,
                    is_asking: false,
                });
                if !probe.is_asking && probe.next_at <= now {
                    probe.is_asking = true;
                    probe.next_at = now + health.interval;
                    let (upstream, server) = (upstream.clone(), server.clone());
                    spawn_local(judge(upstream, health.clone(), server, probes.clone()));
                }
                present.insert(server.id(), probe);
            }
        }
        let is_idle = present.is_empty();
        // Servers that are gone are forgotten here.
        *probes.borrow_mut() = present;
        tokio::time::sleep(if is_idle { IDLE_LOOK_EVERY } else { LOOK_EVERY }).await;
    }
}

/// Asks one server once: for its health where that is configured, else whether it takes connections.
///
/// # Errors
/// What is wrong with it.
pub async fn look(upstream: &Upstream, server: &Server) -> Result<(), String> {
    match &upstream.health {
        Some(health) => timeout(health.timeout, ask(upstream, health, server))
            .await
            .unwrap_or_else(|_| Err(LATE.to_owned())),
        None => {
            let dialled = dial(server, upstream, Purpose::Requests).await;
            dialled.map(drop).map_err(|error| error.to_string())
        }
    }
}

async fn judge(upstream: Upstream, health: HealthProbe, server: Arc<Server>, probes: Probes) {
    let answer = look(&upstream, &server).await;
    let mut probes = probes.borrow_mut();
    let Some(probe) = probes.get_mut(&server.id()) else { return };
    let thresholds = Thresholds { healthy: health.healthy, unhealthy: health.unhealthy };
    let before = probe.streak.verdict();
    probe.streak = probe.streak.observe(answer.is_ok(), thresholds);
    probe.is_asking = false;
    let after = probe.streak.verdict();
    server.set_verdict(after);
    tell(&upstream, &server, before, after, answer.err());
}

/// A change is a line in the log.
fn tell(
    upstream: &Upstream,
    server: &Server,
    before: Verdict,
    after: Verdict,
    detail: Option<String>,
) {
    let (name, address) = (&*upstream.name, server.address());
    match after {
        Verdict::Down if before != Verdict::Down => tracing::warn!(
            upstream = name,
            server = %server.endpoint(),
            address = %address,
            detail,
            "upstream server down"
        ),
        Verdict::Up if before == Verdict::Down => tracing::info!(
            upstream = name,
            server = %server.endpoint(),
            address = %address,
            "upstream server up again"
        ),
        _ => {}
    }
}

/// One question over a connection of its own: what is asked is whether a new client would get on.
async fn ask(upstream: &Upstream, health: &HealthProbe, server: &Server) -> Result<(), String> {
    let dialled = dial(server, upstream, Purpose::Requests).await;
    let body = || Source::new(RequestBody::empty(), time::monotonic()).attempt();
    let request = |target: String, version| {
        Request::get(target)
            .version(version)
            .header(header::USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*")
            .body(body())
            .map_err(|error| error.to_string())
    };
    let authority = authority(server.endpoint());
    let status = match dialled.map_err(|error| error.to_string())? {
        Dialled::Http1(mut connection) => {
            let mut request = request(health.path.clone(), Version::HTTP_11)?;
            let host = authority.parse().map_err(|_| "the host is no field value".to_owned())?;
            request.headers_mut().insert(header::HOST, host);
            let (head, body) = request.into_parts();
            connection
                .ask(&head, None, body, &Cell::default())
                .await
                .map_err(|lost| lost.detail)?
                .status()
        }
        Dialled::Http2(mut sender) => {
            let scheme = if upstream.tls.is_some() { "https" } else { "http" };
            let target = format!("{scheme}://{authority}{}", health.path);
            let sent = sender.send_request(request(target, Version::HTTP_2)?).await;
            sent.map_err(|error| error.to_string())?.status()
        }
    };
    match status {
        status if status.is_success() || status.is_redirection() => Ok(()),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
            Err(format!("answered {status}; is health.path the right one?"))
        }
        status => Err(format!("answered {status}")),
    }
}

/// Host and port as a client would write them.
fn authority(endpoint: &Endpoint) -> String {
    let host = if endpoint.host.contains(':') {
        format!("[{}]", endpoint.host)
    } else {
        endpoint.host.clone()
    };
    match (endpoint.is_tls, endpoint.port) {
        (true, 443) | (false, 80) => host,
        (_, port) => format!("{host}:{port}"),
    }
}
