//! The decisions that every packet and every request pays for, one at a time, for an instrument that
//! counts instructions.
//!
//! `cores NAME CALLS` makes that many calls of one of them within [`measured`], which is what the
//! instrument looks at, and prints the allocations of them all; `cores` prints the names. What has to
//! be there first (keys, tokens, tables that are warm) is made outside. `cargo xtask perf cores` runs
//! this under valgrind and compares it with `perf/baseline.json`.

mod counting;

use std::{
    env,
    hint::black_box,
    net::Ipv4Addr,
    process::ExitCode,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway::{
    http::{
        headers,
        introduction::{Introductions, Origin},
    },
    identity::token::{Algorithm, Cache, Issuers, KeySet, TokenRules, verify},
    policy::{
        admit,
        authorize::Demands,
        facts::Facts,
        limit::{Counting, Key, Limit, Limiters, Mode, Rate, Unit},
        permit,
        route::{Priority, Route, Routes},
    },
    time,
};
use gateway_ebpf::{
    Outcome, Source,
    abi::Budget,
    bucket::{self, Others, Set},
    last::Last,
    packet::{Address, Target},
    verdict::{Listed, NETWORK_DOUBLINGS, Quota, Service, Standing, Tables, judge},
};
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use rustls_pki_types::UnixTime;
use serde_json::json;

use self::counting::allocations;

const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_772_366_400));
/// Calls before anything counts: tables, caches and the allocator are as they are after a while.
const WARM_UP: u32 = 16;

/// Runs a call so many times: what is in here is counted.
#[inline(never)]
fn measured(call: &mut dyn FnMut(), calls: u32) {
    for _ in 0..calls {
        call();
    }
}

/// Makes the calls of one case and gives their allocations.
type Case = fn(calls: u32) -> u64;

const CASES: [(&str, Case); 10] = [
    ("packet-known", packet_known),
    ("packet-banned", packet_banned),
    ("packet-known-again", packet_known_again),
    ("packet-banned-again", packet_banned_again),
    ("token-hit", token_hit),
    ("token-miss", token_miss),
    ("limit-take", limit_take),
    ("limit-refuse", limit_refuse),
    ("route-match", route_match),
    ("header-rewrite", header_rewrite),
];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let [name, calls] = &words[..] else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let case = CASES.iter().find(|(known, _)| known == name);
    let (Some((_, case)), Ok(calls)) = (case, calls.parse()) else {
        eprintln!("cores [NAME CALLS]; `cores` alone prints the names");
        return ExitCode::from(2);
    };
    println!("{}", case(calls));
    ExitCode::SUCCESS
}

/// Warms up, then counts.
fn run(calls: u32, call: &mut dyn FnMut()) -> u64 {
    (0..WARM_UP).for_each(|_| call());
    let before = allocations();
    measured(call, calls);
    allocations() - before
}

/// What the XDP program asks its maps, answered by a few words of memory: one place for everybody.
struct OnePlace {
    banned: Option<Source>,
    limit: bucket::Limit,
    newcomers: Budget,
    set: Set,
    others: Others,
}

impl OnePlace {
    fn new(banned: Option<Source>) -> OnePlace {
        OnePlace {
            banned,
            limit: bucket::Limit::new(1_000_000, 1_000_000_000, 1_000_000),
            newcomers: Budget::default(),
            set: Set::default(),
            others: Others::default(),
        }
    }
}

impl Tables for OnePlace {
    fn revision(&self) -> u64 {
        0
    }

    fn service(&self, target: Target) -> Service {
        match target {
            Target::Tcp(8443) | Target::Udp(8443) => Service::Guarded,
            _ => Service::Other,
        }
    }

    fn hash(&self, source: Source) -> u64 {
        bucket::hash(source, 0)
    }

    fn standing(&self, source: Source, _: u64, _: u64) -> Standing {
        if self.banned == Some(source) { Standing::Banned } else { Standing::Limited(0) }
    }

    fn marks(&self, _: Address) -> u8 {
        0
    }

    fn listed(&self, _: Address, _: u8, _: u64) -> Listed {
        Listed::Nowhere
    }

    fn is_exempt(&self, _: Address, _: u8) -> bool {
        false
    }

    fn limit(&self, quota: Quota) -> bucket::Limit {
        if quota == Quota::Bytes { bucket::Limit::NONE } else { self.limit }
    }

    fn network_limit(&self, quota: Quota) -> bucket::Limit {
        self.limit(quota).doubled(NETWORK_DOUBLINGS)
    }

    fn newcomers(&self) -> (bucket::Limit, &Budget) {
        (bucket::Limit::NONE, &self.newcomers)
    }

    fn set(&self, _: u64) -> Option<&Set> {
        Some(&self.set)
    }

    fn others(&self, _: u64) -> Option<&Others> {
        Some(&self.others)
    }

    fn evicted(&self) {}
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A TCP segment to the guarded port.
fn frame() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(CLIENT.octets());
    frame.extend([198, 51, 100, 1, 0x30, 0x39]);
    frame.extend(8443_u16.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10]);
    frame
}

/// Slower than its limit, and each in another tick.
const SLOWLY_NS: u64 = 10_000;

fn packet(calls: u32, banned: Option<Source>, expected: Outcome, pause_ns: u64) -> u64 {
    let (frame, tables, mut last) = (frame(), OnePlace::new(banned), Last::default());
    let mut now_ns = 1 << 40;
    run(calls, &mut || {
        now_ns += pause_ns;
        let outcome = judge(black_box(frame.as_slice()), black_box(&tables), &mut last, now_ns);
        assert_eq!(outcome, expected);
    })
}

fn packet_known(calls: u32) -> u64 {
    packet(calls, None, Outcome::WithinLimit, SLOWLY_NS)
}

fn packet_banned(calls: u32) -> u64 {
    packet(calls, Some(CLIENT.into()), Outcome::Banned, SLOWLY_NS)
}

/// In the tick of the one before.
fn packet_known_again(calls: u32) -> u64 {
    packet(calls, None, Outcome::WithinLimit, 0)
}

fn packet_banned_again(calls: u32) -> u64 {
    packet(calls, Some(CLIENT.into()), Outcome::Banned, 0)
}

/// An issuer with one key, and tokens by it.
struct Issuer {
    issuers: Issuers,
    key: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Issuer {
        let key = rcgen::KeyPair::generate().expect("an EC key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
            .expect("its own serialization");
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "k",
                          "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) });
        let rules = TokenRules {
            name: "corp".to_owned(),
            issuer: "https://idp.example.org".to_owned(),
            audiences: vec!["orders-api".to_owned()],
            algorithms: vec![Algorithm::Es256],
            leeway: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".to_owned()],
        };
        let set = json!({ "keys": [jwk] }).to_string();
        let keys = KeySet::parse(set.as_bytes(), &[Algorithm::Es256]).expect("one good key");
        Issuer { issuers: Issuers::new(vec![(rules, keys)], 1), key }
    }

    fn token(&self, number: u32) -> String {
        let head = json!({ "alg": "ES256", "kid": "k", "typ": "at+jwt" }).to_string();
        let claims = json!({
            "iss": "https://idp.example.org", "aud": ["orders-api", "account"],
            "sub": "f2b4a7f0-4c3a-4d0e-9d7e-0b8e3e0c7a11", "client_id": "orders-frontend",
            "iat": 1_772_366_390, "exp": 1_772_366_690, "jti": format!("6f0a2b4c-{number:08}"),
            "scope": "openid read:orders write:orders", "email": "alice@example.org",
            "tenant": "acme", "roles": ["buyer", "approver"],
        });
        let [head, claims] = [head, claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
        let input = format!("{head}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), input.as_bytes()).expect("a signature");
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn token_hit(calls: u32) -> u64 {
    let issuer = Issuer::new();
    let token = issuer.token(0);
    let mut cache = Cache::new(1_024, Duration::from_secs(300));
    run(calls, &mut || {
        let claims = cache.verify(black_box(&token), &issuer.issuers, NOW).expect("good");
        black_box(&claims);
    })
}

fn token_miss(calls: u32) -> u64 {
    let issuer = Issuer::new();
    let tokens: Vec<String> = (0..calls + WARM_UP).map(|number| issuer.token(number)).collect();
    let mut next = tokens.iter();
    run(calls, &mut || {
        let token = next.next().expect("one for each call");
        black_box(verify(black_box(token), &issuer.issuers, NOW).expect("good"));
    })
}

fn route(name: &str, host: Option<&str>, path: &str, limits: Vec<usize>) -> Route {
    Route {
        name: name.into(),
        index: 0,
        hosts: host.map(str::to_owned).into_iter().collect(),
        path: path.to_owned(),
        methods: vec![],
        upstream: 0,
        demands: Demands::default(),
        pass_authorization: false,
        priority: Priority::Normal,
        limits,
    }
}

fn limiters(per_s: u32, now: Instant) -> Limiters {
    let limit = Limit {
        name: "each".into(),
        key: Key::SOURCE,
        rates: vec![Rate::new(per_s, Unit::Second, per_s), Rate::new(per_s, Unit::Hour, per_s)],
        tiers: vec![],
        mode: Mode::Enforce,
        entries: 4_096,
        announce: false,
    };
    Limiters::new(&[limit], now)
}

fn limit(calls: u32, per_s: u32, is_within: bool) -> u64 {
    let start = time::monotonic();
    let (limiters, route) = (limiters(per_s, start), route("orders", None, "", vec![0]));
    let mut verdicts = Vec::with_capacity(1);
    let mut first = true;
    run(calls, &mut || {
        verdicts.clear();
        let counting = Counting { limiters: &limiters, address: CLIENT.into(), now: start };
        let arrived = counting.arrive(black_box(&route), false, &mut verdicts);
        // The very first is within any limit.
        assert_eq!(arrived.is_ok(), is_within || first);
        first = false;
    })
}

fn limit_take(calls: u32) -> u64 {
    limit(calls, 1_000_000, true)
}

fn limit_refuse(calls: u32) -> u64 {
    limit(calls, 1, false)
}

/// A browser's, over HTTP/1.1.
fn fields() -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in [
        (header::HOST, "orders.example.com"),
        (
            header::USER_AGENT,
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        ),
        (header::ACCEPT, "application/json, text/plain;q=0.9, */*;q=0.8"),
        (header::ACCEPT_LANGUAGE, "en-US,en;q=0.5"),
        (header::ACCEPT_ENCODING, "gzip, deflate, br, zstd"),
        (header::CONNECTION, "keep-alive"),
        (header::COOKIE, "session=2f1c8a90; theme=dark"),
        (header::AUTHORIZATION, "Bearer x"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    fields
}

fn route_match(calls: u32) -> u64 {
    let hosts = [Some("orders.example.com"), Some("www.example.com"), None];
    let paths = ["/", "/orders", "/orders/archive", "/invoices", "/static"];
    let all = hosts.iter().flat_map(|host| paths.map(|path| route(path, *host, path, vec![])));
    let routes = Routes::new(all.collect());
    let (fields, uri) = (fields(), Uri::from_static("/orders/4711?expand=items"));
    run(calls, &mut || {
        let facts = Facts::read(&Method::GET, black_box(&uri), &fields, None).expect("plain");
        let route = routes.find(&facts).expect("there is one");
        assert_eq!(black_box(route).path, "/orders");
    })
}

fn header_rewrite(calls: u32) -> u64 {
    let issuer = Issuer::new();
    let claims = verify(&issuer.token(0), &issuer.issuers, NOW).expect("good");
    let route = route("orders", None, "", vec![]);
    let now = time::monotonic();
    let limiters = limiters(1, now);
    let counting = Counting { limiters: &limiters, address: CLIENT.into(), now };
    let arrived = counting.arrive(&route, false, &mut Vec::new()).expect("no limit");
    let candidate = admit(&route, &arrived, None, NOW).expect("public").join(Some(claims.into()));
    let permit = permit(candidate, &counting, &mut Vec::new()).expect("public");
    let origin = Origin {
        source: CLIENT.into(),
        host: Some("orders.example.com"),
        request_id: "84f670ac-0-1-2f",
    };
    let mut all = vec![fields(); (calls + WARM_UP) as usize];
    let mut next = all.iter_mut();
    let mut introductions = Introductions::default();
    let mut text = Vec::new();
    run(calls, &mut || {
        let fields = next.next().expect("one for each call");
        headers::to_upstream(black_box(fields), black_box(&permit));
        text.clear();
        introductions.of(&permit, origin).write_lines(black_box(&mut text));
    })
}
