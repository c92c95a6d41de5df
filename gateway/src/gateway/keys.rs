//! Keys of issuers that publish them: asked for beside the requests, kept while the issuer is away,
//! put into the snapshot when they change. When to ask and how long to believe is [`Refresh`]'s to
//! say; this is the asking, and the memory of the answers.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration, time::Instant};

use tokio::{
    sync::mpsc,
    task::{spawn_blocking, spawn_local},
    time::MissedTickBehavior,
};

use super::control::Control;
use crate::{
    admin::metrics::Reading,
    config::{Config, KeyLocation, KeySource, RemoteKeys},
    fetch::{self, Document, FetchError, Url, Way},
    identity::token::{
        Algorithm, Issuers, KEY_SET_MAX_BYTES, KeySet, KeySetError, Keys, Refresh, TokenRules,
        jwks_uri,
    },
    net::handover::{DOCUMENTS_MAX_BYTES, KeptKeys, Secret},
    time,
};

/// How often it is looked whether a question is due, and whether an answer is still believed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Unknown keys on their way here. They are one question in the end, so that more need not wait.
pub(super) const UNKNOWN_KEYS_QUEUE: usize = 64;

/// The issuers whose keys are fetched.
#[derive(Debug)]
pub(super) struct IssuerKeys {
    issuers: Vec<Fetched>,
    seed: u64,
}

/// One issuer, and its last answer.
#[derive(Debug)]
struct Fetched {
    name: String,
    identifier: String,
    algorithms: Vec<Algorithm>,
    source: Arc<RemoteKeys>,
    refresh: Refresh,
    keys: Option<Known>,
    is_believed: bool,
    /// Where its documents came from last.
    found: Vec<(Url, SocketAddr)>,
    answers: u64,
    failures: u64,
    /// What the log has said of it last.
    told: Option<String>,
}

/// How the fetching of one issuer's keys stands.
pub(super) struct Standing<'k> {
    /// Time since its last good answer.
    pub(super) age: Option<Duration>,
    /// Time until it is asked again; `None` while it is being asked.
    pub(super) next_in: Option<Duration>,
    /// What was wrong with its last answer.
    pub(super) last_error: Option<&'k str>,
}

/// Keys, and the document that they are from.
#[derive(Clone, Debug)]
struct Known {
    set: Arc<KeySet>,
    document: Arc<[u8]>,
}

impl Known {
    /// Reads a document.
    fn read(document: &[u8], algorithms: &[Algorithm]) -> Result<Known, KeySetError> {
        let set = Arc::new(KeySet::parse(document, algorithms)?);
        Ok(Known { set, document: document.into() })
    }
}

/// A question that is to be put to an issuer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    name: String,
    identifier: String,
    algorithms: Vec<Algorithm>,
    source: Arc<RemoteKeys>,
    found: Vec<(Url, SocketAddr)>,
}

/// A good answer.
struct Answer {
    keys: Known,
    fresh: Option<Duration>,
    found: Vec<(Url, SocketAddr)>,
}

impl IssuerKeys {
    /// Nothing is known yet; every first question is due.
    pub(super) fn new(config: &Config, seed: u64, now: Instant) -> IssuerKeys {
        let mut keys = IssuerKeys { issuers: Vec::new(), seed };
        keys.replace(config, now);
        keys
    }

    /// After a reload. An issuer that is the same keeps its keys, also when they are to be fetched
    /// from elsewhere: they are believed until the first answer from there.
    pub(super) fn replace(&mut self, config: &Config, now: Instant) {
        let mut before = std::mem::take(&mut self.issuers);
        for issuer in &config.issuers {
            let KeySource::Remote(source) = &issuer.keys else { continue };
            let rules = &issuer.rules;
            let same = before.iter().position(|old| {
                old.identifier == rules.issuer && old.algorithms == rules.algorithms
            });
            let old = same.map(|index| before.swap_remove(index));
            let mut fetched = Fetched::new(rules, source.clone(), self.seed, now);
            if let Some(old) = old {
                let is_same = old.source == *source;
                if is_same {
                    fetched.refresh = old.refresh;
                    fetched.source = old.source;
                    fetched.found = old.found;
                } else {
                    fetched.refresh = old.refresh.under(source.refresh, now);
                }
                (fetched.keys, fetched.told) = (old.keys, old.told);
                (fetched.answers, fetched.failures) = (old.answers, old.failures);
                fetched.is_believed = fetched.refresh.is_believed(now);
            }
            self.issuers.push(fetched);
        }
    }

    /// What another process may go on with: what is believed now.
    pub(super) fn kept(&self, now: Instant) -> Vec<KeptKeys> {
        let mut room_bytes = DOCUMENTS_MAX_BYTES;
        let believed = self.issuers.iter().filter(|issuer| issuer.refresh.is_believed(now));
        let kept = |issuer: &Fetched| {
            let (known, age) = issuer.keys.as_ref().zip(issuer.refresh.age(now))?;
            room_bytes = room_bytes.checked_sub(known.document.len())?;
            let document = Secret(known.document.to_vec());
            Some(KeptKeys { identifier: issuer.identifier.clone(), document, age })
        };
        believed.filter_map(kept).collect()
    }

    /// Goes on with what another process had: believed for as long as it would have been there, and asked
    /// for at once all the same.
    pub(super) fn inherit(&mut self, kept: &[KeptKeys], now: Instant) {
        for issuer in &mut self.issuers {
            let of_issuer = kept.iter().find(|kept| kept.identifier == issuer.identifier);
            let Some(KeptKeys { document: Secret(document), age, .. }) = of_issuer else {
                continue;
            };
            // What this version or this configuration makes nothing of is asked for like any.
            let Ok(known) = Known::read(document, &issuer.algorithms) else { continue };
            let Some(answered) = now.checked_sub(*age) else { continue };
            issuer.refresh = issuer.refresh.clone().answered_at(answered);
            issuer.is_believed = issuer.refresh.is_believed(now);
            issuer.keys = Some(known);
        }
    }

    /// A token of this issuer named a key that is not there.
    pub(super) fn want(&mut self, issuer: &str) {
        if let Some(issuer) = self.issuers.iter_mut().find(|one| one.name == issuer) {
            issuer.refresh.want();
        }
    }

    /// The questions that are due now.
    pub(super) fn questions(&mut self, now: Instant) -> Vec<Question> {
        let due = self.issuers.iter_mut().filter(|issuer| issuer.refresh.is_due(now));
        due.map(|issuer| {
            issuer.refresh.ask(now);
            Question {
                name: issuer.name.clone(),
                identifier: issuer.identifier.clone(),
                algorithms: issuer.algorithms.clone(),
                source: issuer.source.clone(),
                found: issuer.found.clone(),
            }
        })
        .collect()
    }

    /// Takes note of what became of a question. A reload in between may have made it nobody's.
    fn take(&mut self, question: &Question, answer: Result<Answer, String>, now: Instant) {
        let same = |one: &&mut Fetched| Arc::ptr_eq(&one.source, &question.source);
        let Some(issuer) = self.issuers.iter_mut().find(same) else { return };
        match answer {
            Ok(answer) => issuer.succeed(answer, now),
            Err(why) => issuer.fail(why, now),
        }
    }

    /// True when some answer has grown too old since the last look, or is believed again.
    fn has_turned(&mut self, now: Instant) -> bool {
        let mut has_turned = false;
        for issuer in &mut self.issuers {
            let is_believed = issuer.refresh.is_believed(now);
            if issuer.is_believed && !is_believed {
                tracing::error!(
                    issuer = issuer.name,
                    failures = issuer.refresh.failures(),
                    "issuer keys too old: its tokens are refused until it answers"
                );
            }
            has_turned |= std::mem::replace(&mut issuer.is_believed, is_believed) != is_believed;
        }
        has_turned
    }

    /// The same issuers with the keys that hold now. What changed since `before` gets a generation
    /// of its own, so that no worker goes on believing a token by a key that is gone.
    pub(super) fn put_into(
        &self,
        issuers: &Arc<Issuers>,
        before: &Arc<Issuers>,
        generation: u64,
    ) -> Arc<Issuers> {
        let keys = |rules: &TokenRules| self.keys_of(&rules.name);
        let is_same = |(rules, present): (&TokenRules, &Keys)| {
            keys(rules).is_none_or(|keys| keys.is_same(present))
        };
        if Arc::ptr_eq(issuers, before) && issuers.iter().all(is_same) {
            return issuers.clone();
        }
        Arc::new(issuers.revised(keys, generation))
    }

    /// `None` for an issuer whose keys are not fetched.
    fn keys_of(&self, issuer: &str) -> Option<Keys> {
        let issuer = self.issuers.iter().find(|one| one.name == issuer)?;
        Some(match &issuer.keys {
            Some(known) if issuer.is_believed => Keys::Known(known.set.clone()),
            _ => Keys::Unavailable,
        })
    }

    /// An issuer that has been asked for the first time and has not answered yet.
    pub(super) fn starting(&self) -> Option<&str> {
        let starting = self.issuers.iter().find(|issuer| issuer.refresh.is_starting());
        starting.map(|issuer| issuer.name.as_str())
    }

    /// How one issuer's fetching stands; `None` for one whose keys are not fetched.
    pub(super) fn standing(&self, issuer: &str, now: Instant) -> Option<Standing<'_>> {
        let issuer = self.issuers.iter().find(|one| one.name == issuer)?;
        Some(Standing {
            age: issuer.refresh.age(now),
            next_in: issuer.refresh.next_in(now),
            last_error: issuer.told.as_deref(),
        })
    }

    /// For the page of metrics.
    pub(super) fn readings(&self, now: Instant) -> [Reading; 2] {
        let age = |issuer: &Fetched| {
            let age = issuer.refresh.age(now)?;
            Some((vec![("issuer", issuer.name.clone())], age.as_secs_f64()))
        };
        let fetches = |issuer: &Fetched| {
            [("answered", issuer.answers), ("failed", issuer.failures)].map(|(result, count)| {
                let labels = vec![("issuer", issuer.name.clone()), ("result", result.to_owned())];
                (labels, count as f64)
            })
        };
        [
            Reading {
                name: "gateway_jwks_age_seconds",
                help: "Time since an issuer last gave its keys; no series before it did.",
                kind: "gauge",
                series: self.issuers.iter().filter_map(age).collect(),
            },
            Reading {
                name: "gateway_jwks_fetches_total",
                help: "Questions for an issuer's keys, by result.",
                kind: "counter",
                series: self.issuers.iter().flat_map(fetches).collect(),
            },
        ]
    }
}

impl Fetched {
    /// Nothing is known yet.
    fn new(rules: &TokenRules, source: Arc<RemoteKeys>, seed: u64, now: Instant) -> Fetched {
        Fetched {
            name: rules.name.clone(),
            identifier: rules.issuer.clone(),
            algorithms: rules.algorithms.clone(),
            refresh: Refresh::new(source.refresh, seed, now),
            source,
            keys: None,
            is_believed: false,
            found: Vec::new(),
            answers: 0,
            failures: 0,
            told: None,
        }
    }

    fn succeed(&mut self, answer: Answer, now: Instant) {
        self.answers += 1;
        self.refresh.succeed(answer.fresh, now);
        self.found = answer.found;
        let is_new = self.keys.as_ref().is_none_or(|known| known.document != answer.keys.document);
        if is_new || self.told.is_some() {
            let names: Vec<_> =
                answer.keys.set.key_ids().map(|kid| kid.unwrap_or("(no kid)")).take(16).collect();
            tracing::info!(
                issuer = self.name,
                keys = names.join(" "),
                unusable = answer.keys.set.unusable().len(),
                changed = is_new,
                "issuer keys fetched"
            );
        }
        // The same document keeps the same set, so that no remembered token is verified again.
        if is_new {
            self.keys = Some(answer.keys);
        }
        self.told = None;
    }

    fn fail(&mut self, why: String, now: Instant) {
        self.failures += 1;
        self.refresh.fail(now);
        // Once for each kind of trouble; how often is in the metrics.
        if self.told.as_ref() != Some(&why) {
            tracing::error!(
                issuer = self.name,
                url = %self.source.location.url(),
                detail = why,
                believed = self.refresh.is_believed(now),
                "issuer keys not fetched"
            );
            self.told = Some(why);
        }
    }
}

/// Asks until the process ends. `unknown` names issuers of tokens whose key is not there.
pub(super) async fn follow(control: Rc<Control>, mut unknown: mpsc::Receiver<Arc<str>>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut names = Vec::with_capacity(UNKNOWN_KEYS_QUEUE);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = unknown.recv_many(&mut names, UNKNOWN_KEYS_QUEUE) => {}
        }
        names.sort_unstable();
        names.dedup();
        for name in names.drain(..) {
            control.issuer_keys(|keys| keys.want(&name));
        }
        for question in control.issuer_keys(|keys| keys.questions(time::monotonic())) {
            let control = control.clone();
            spawn_local(async move {
                let answer = put(&question).await;
                control.issuer_keys(|keys| keys.take(&question, answer, time::monotonic()));
                look_at(&control);
            });
        }
        look_at(&control);
    }
}

/// Publishes what has changed.
fn look_at(control: &Control) {
    control.issuer_keys(|keys| keys.has_turned(time::monotonic()));
    control.publish_keys();
}

/// Every issuer with its keys, fetched once where they are to be fetched: for commands that look at
/// tokens. Those that give none are named with the reason, and are as an issuer that is away.
pub fn fetched_issuers(config: &Config, issuers: &Issuers) -> (Issuers, Vec<String>) {
    let now = time::monotonic();
    let mut keys = IssuerKeys::new(config, 0, now);
    let mut failures = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, async {
            for question in keys.questions(now) {
                let answer = put(&question).await;
                if let Err(why) = &answer {
                    failures.push(format!("keys of issuer {} not fetched: {why}", question.name));
                }
                keys.take(&question, answer, time::monotonic());
            }
        }),
        Err(error) => failures.push(format!("cannot start the runtime: {error}")),
    }
    keys.has_turned(time::monotonic());
    (issuers.revised(|rules| keys.keys_of(&rules.name), issuers.generation()), failures)
}

/// Puts a question.
async fn put(question: &Question) -> Result<Answer, String> {
    let mut found = Vec::new();
    let place = match &question.source.location {
        KeyLocation::Keys(url) => url.clone(),
        KeyLocation::Description(url) => {
            let document = get(url, question, &mut found).await?;
            let place = jwks_uri(&document.body, &question.identifier)
                .map_err(|error| format!("{url}: {error}"))?;
            let place = Url::parse(&place).map_err(|error| format!("{url}: jwks_uri: {error}"))?;
            if url.is_tls() && !place.is_tls() {
                return Err(format!("{url}: jwks_uri is {place}, which is not https"));
            }
            place
        }
    };
    let Document { body, fresh, .. } = get(&place, question, &mut found).await?;
    let algorithms = question.algorithms.clone();
    let keys = spawn_blocking(move || Known::read(&body, &algorithms))
        .await
        .map_err(|error| error.to_string())?;
    let keys = keys.map_err(|error| format!("{place}: {error}"))?;
    Ok(Answer { keys, fresh, found })
}

/// Fetches a document; from where it came from last when its name is not resolved today.
async fn get(
    url: &Url,
    question: &Question,
    found: &mut Vec<(Url, SocketAddr)>,
) -> Result<Document, String> {
    let source = &question.source;
    let addresses = if url.is_beside(source.location.url()) { &source.addresses[..] } else { &[] };
    let way =
        Way { addresses, authorities: source.authorities.as_ref(), limit_bytes: KEY_SET_MAX_BYTES };
    let mut document = fetch::fetch(url, &way).await;
    if let Err(FetchError::Name(_)) = document
        && let Some((_, last)) = question.found.iter().find(|(before, _)| before.is_beside(url))
    {
        document = fetch::fetch(url, &Way { addresses: &[*last], ..way }).await;
    }
    let document = document.map_err(|error| format!("{url}: {error}"))?;
    found.push((url.clone(), document.address));
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::KeyLocation,
        identity::token::{RefreshRules, verify},
    };
    use rustls_pki_types::UnixTime;

    /// The key of RFC 7515 appendix A.3, under this name.
    fn known(kid: &str) -> Known {
        let text = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"{kid}",
                "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}]}}"#
        );
        Known::read(text.as_bytes(), &[Algorithm::Es256]).unwrap()
    }

    fn answer(kid: &str) -> Answer {
        Answer { keys: known(kid), fresh: None, found: Vec::new() }
    }

    fn rules() -> TokenRules {
        TokenRules {
            name: "corp".to_owned(),
            issuer: "https://idp.example".to_owned(),
            audiences: vec!["orders".to_owned()],
            algorithms: vec![Algorithm::Es256],
            leeway: Duration::ZERO,
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: Vec::new(),
        }
    }

    fn one_issuer(now: Instant) -> IssuerKeys {
        let refresh = RefreshRules {
            every: Duration::from_secs(60),
            cooldown: Duration::from_secs(30),
            believed: Duration::from_secs(300),
        };
        let url = Url::parse("https://idp.example/keys").unwrap();
        let source = RemoteKeys {
            location: KeyLocation::Keys(url),
            authorities: None,
            addresses: Vec::new(),
            refresh,
        };
        let issuer = Fetched::new(&rules(), Arc::new(source), 1, now);
        IssuerKeys { issuers: vec![issuer], seed: 1 }
    }

    /// What a token with this kid comes to: whether the key is known, before its signature is.
    fn reason(issuers: &Issuers, kid: &str) -> &'static str {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
        let parts = [header.as_str(), r#"{"iss":"https://idp.example"}"#, "no signature"];
        let token = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        verify(&token, issuers, UnixTime::since_unix_epoch(Duration::ZERO)).unwrap_err().reason()
    }

    #[test]
    fn failures_take_nothing_away_and_a_good_answer_replaces_all() {
        let start = time::monotonic();
        let mut keys = one_issuer(start);
        let mut published = Arc::new(Issuers::with_keys(vec![(rules(), Keys::Unavailable)], 1));
        let failed = || Err("no connection".to_owned());
        // At this second, this answer; then the reasons for a token by "a" and one by "b", and
        // whether what workers remember is still good.
        for (at_s, answered, by_a, by_b, is_kept) in [
            (0, failed(), "issuer_unavailable", "issuer_unavailable", true),
            (10, Ok(answer("a")), "bad_signature", "unknown_key", false),
            (100, failed(), "bad_signature", "unknown_key", true),
            (200, Ok(answer("a")), "bad_signature", "unknown_key", true),
            (300, Ok(answer("b")), "unknown_key", "bad_signature", false),
            (500, failed(), "unknown_key", "bad_signature", true),
            (599, failed(), "unknown_key", "bad_signature", true),
            (600, failed(), "issuer_unavailable", "issuer_unavailable", false),
            (700, Ok(answer("b")), "unknown_key", "bad_signature", false),
        ] {
            let now = start + Duration::from_secs(at_s);
            // Long enough after the last one for a question to be due.
            let questions = keys.questions(now + Duration::from_secs(61));
            assert_eq!(questions.len(), 1, "at {at_s} s");
            keys.take(&questions[0], answered, now);
            keys.has_turned(now);
            let next = keys.put_into(&published, &published, published.generation() + 1);
            assert_eq!(Arc::ptr_eq(&next, &published), is_kept, "at {at_s} s");
            assert_eq!(next.generation() == published.generation(), is_kept, "at {at_s} s");
            published = next;
            let found = (reason(&published, "a"), reason(&published, "b"));
            assert_eq!(found, (by_a, by_b), "at {at_s} s");
        }
        assert!(keys.starting().is_none());
        assert_eq!((keys.issuers[0].answers, keys.issuers[0].failures), (4, 5));
    }

    #[test]
    fn who_takes_over_believes_what_was_believed_and_no_longer() {
        let start = time::monotonic();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut before = one_issuer(start);
        assert!(before.kept(start).is_empty(), "nothing is known");
        let questions = before.questions(start);
        before.take(&questions[0], Ok(answer("a")), start);
        assert!(before.kept(at(300)).is_empty(), "nothing is believed any more");
        let kept = before.kept(at(100));
        let text = serde_json::to_string(&kept).unwrap();
        let kept: Vec<KeptKeys> = serde_json::from_str(&text).unwrap();

        let mut after = one_issuer(at(100));
        after.inherit(&kept, at(100));
        let none = Arc::new(Issuers::with_keys(vec![(rules(), Keys::Unavailable)], 1));
        assert_eq!(reason(&after.put_into(&none, &none, 1), "a"), "bad_signature");
        assert!(after.starting().is_none(), "it is ready");
        assert_eq!(after.questions(at(100)).len(), 1, "and asks all the same");
        assert!(!after.has_turned(at(299)) && after.has_turned(at(300)), "200 s were left");

        for (identifier, document) in [("https://other.example", None), ("", Some("{}"))] {
            let mut odd = kept.clone();
            if let Some(document) = document {
                odd[0].document = Secret(document.into());
            } else {
                odd[0].identifier = identifier.to_owned();
            }
            let mut after = one_issuer(at(100));
            after.inherit(&odd, at(100));
            assert!(after.starting().is_some(), "{identifier}{document:?}");
        }
    }
}
