//! The table of exchanges: what a client asks, what an upstream answers, and what the client gets.
//! Every row is run over HTTP/1.1, HTTP/2 and HTTP/3 and must come to the same.
//!
//! The clients are not ours: a socket with Python's `ssl`, the `h2` library, `aioquic`, and `curl`.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    binary,
    crowd::within,
    harness::{
        client::{Credential, Version},
        clock,
        gateway::{Gateway, SOON, write_config},
        origin::Origin,
        process, python,
        site::{HOST, SERVER, Site},
        tokens::AUDIENCE,
    },
    http3::client::{Client, Identity},
};

/// The streaming upstream, beside the gateway.
const ORIGIN: &str = "127.0.0.1:9002";

/// What clients are told of HTTP/3.
const ALTERNATIVE: &str = "h3=\":8443\"; ma=86400";

pub(crate) const PROTOCOLS: [&str; 3] = ["h1", "h2", "h3"];

/// A site whose gateway speaks all three, before a streaming upstream.
pub(crate) struct Streams {
    pub(crate) site: Site,
    pub(crate) gateway: Gateway,
    pub(crate) origin: Origin,
}

impl Streams {
    pub(crate) fn start(label: &str, workers: usize) -> Result<Streams> {
        Streams::start_as(label, workers, "enabled = false", "")
    }

    /// With lines of `[clients]`, and bans.
    pub(crate) fn start_with(label: &str, workers: usize, clients: &str) -> Result<Streams> {
        Streams::start_as(label, workers, "", clients)
    }

    fn start_as(label: &str, workers: usize, bans: &str, clients: &str) -> Result<Streams> {
        let mut site = Site::new(binary(), label)?;
        let address: SocketAddr = ORIGIN.parse()?;
        site.config.upstream = address;
        site.config.bans = bans.to_owned();
        site.config.clients = clients.to_owned();
        site.config.routes.push_str(
            "\n[[route]]\nname = \"readers\"\npath = \"/readers\"\nmethods = [\"GET\"]\n\
             upstream = \"orders\"\nrequire = []\n",
        );
        let origin = Origin::start(&site.gateway_host, address)?;
        let launch = site.launch()?;
        let text = site
            .config
            .to_string()
            .replace("[\"h2\", \"http/1.1\"]", "[\"h3\", \"h2\", \"http/1.1\"]")
            .replace("workers = 1", &format!("workers = {workers}"))
            // A busy machine is not what is tested.
            .replace("response_timeout = \"3s\"", "response_timeout = \"60s\"");
        write_config(&launch.config, &text)?;
        let gateway = launch.run_until_ready()?;
        Ok(Streams { site, gateway, origin })
    }

    /// What a client is told: where, and as whom.
    pub(crate) fn case(&self, protocol: &str, requests: &[Value]) -> Value {
        self.case_of(protocol, requests, Some(&self.site.client))
    }

    pub(crate) fn case_of(
        &self,
        protocol: &str,
        requests: &[Value],
        credential: Option<&Credential>,
    ) -> Value {
        json!({
            "protocol": protocol,
            "address": SERVER.ip().to_string(),
            "port": SERVER.port(),
            "host": HOST,
            "authority": format!("{HOST}:{}", SERVER.port()),
            "authority_file": self.site.authority.certificate(),
            "certificate": credential.map(|credential| &credential.certificate),
            "key": credential.map(|credential| &credential.key),
            "requests": requests,
        })
    }

    pub(crate) fn converse(&self, case: &Value) -> Result<Vec<Value>> {
        let answers = python::converse(&self.site.client_host, "exchange_client.py", case)?;
        answers.as_array().cloned().context("no array of answers")
    }
}

/// One row: its name, the request, and what must come of it. See [`wrong`] for the keys.
struct Row {
    name: String,
    request: Value,
    expected: Value,
    /// Over which protocols it can be asked at all.
    over: &'static [&'static str],
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn row(&mut self, name: &str, request: Value, expected: Value) {
        self.only(&PROTOCOLS, name, request, expected);
    }

    fn only(&mut self, over: &'static [&'static str], name: &str, request: Value, expected: Value) {
        self.0.push(Row { name: name.to_owned(), request, expected, over });
    }
}

/// What is not as expected of an answer. Keys: `status`, `complete`, `body_bytes`, `reason` (of the
/// problem), `fields` (of the answer; null: absent), `trailers`, `interim`, and of the upstream's echo
/// `line`, `arrived_bytes`, `arrived_trailers`, `seen` (fields, null: absent).
fn wrong(answer: &Value, expected: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, got: Value, wanted: &Value| {
        if got != *wanted {
            wrong.push(format!("{what}: {got} instead of {wanted}"));
        }
    };
    let body = answer["body"].as_str().unwrap_or_default();
    let told: Value = serde_json::from_str(body).unwrap_or_default();
    // An answer is whole unless the row says otherwise.
    let whole = json!(true);
    compare("complete", answer["complete"].clone(), expected.get("complete").unwrap_or(&whole));
    for (key, wanted) in expected.as_object().into_iter().flatten() {
        match key.as_str() {
            "complete" => {}
            "reason" => compare(key, told["reason"].clone(), wanted),
            "line" => compare(key, told["line"].clone(), wanted),
            "arrived_bytes" => {
                compare(key, told["body_bytes"].clone(), wanted);
                compare("intact", told["intact"].clone(), &json!(true));
            }
            "arrived_trailers" => compare(key, told["trailers"].clone(), wanted),
            "seen" => {
                for (name, wanted) in wanted.as_object().into_iter().flatten() {
                    compare(name, field(&told["headers"], name), wanted);
                }
            }
            "fields" => {
                for (name, wanted) in wanted.as_object().into_iter().flatten() {
                    compare(name, field(&answer["fields"], name), wanted);
                }
            }
            _ => compare(key, answer[key].clone(), wanted),
        }
    }
    if !wrong.is_empty() {
        let body: String = body.chars().take(600).collect();
        wrong.push(format!("error: {} body: {body}", answer["error"]));
    }
    wrong
}

/// The values of a field, joined as one (RFC 9110 section 5.3).
fn field(fields: &Value, name: &str) -> Value {
    let values: Vec<&str> = fields
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pair| pair[0].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name)))
        .filter_map(|pair| pair[1].as_str())
        .collect();
    if values.is_empty() { Value::Null } else { json!(values.join(", ")) }
}

fn table(token: &str, narrow: &str) -> Vec<Row> {
    let mut table = Table::default();
    heads(&mut table);
    bodies(&mut table);
    answers(&mut table);
    refusals(&mut table, token, narrow);
    ends(&mut table);
    table.0
}

/// Methods, targets, fields.
fn heads(table: &mut Table) {
    let get = |path: &str| json!({"method": "GET", "path": path});
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        table.row(
            &format!("{method} without a body"),
            json!({"method": method, "path": "/public/echo/0", "length": method == "POST"}),
            json!({"status": 200, "line": format!("{method} /public/echo/0 HTTP/1.1"),
                   "arrived_bytes": 0}),
        );
    }
    table.row(
        "a query",
        get("/public/echo/0?a=1&b=%20&b=/../"),
        json!({"status": 200, "line": "GET /public/echo/0?a=1&b=%20&b=/../ HTTP/1.1"}),
    );
    table.row(
        "an encoded path, written anew",
        get("/public/%65cho/0"),
        json!({"status": 200, "line": "GET /public/echo/0 HTTP/1.1"}),
    );
    table.row(
        "what every answer says",
        get("/public/echo/0"),
        json!({"status": 200, "fields": {
            "alt-svc": ALTERNATIVE, "strict-transport-security": "max-age=31536000"}}),
    );
    table.row(
        "who asks, and by what name",
        json!({"method": "GET", "path": "/public/echo/0",
               "fields": [["X-User-ID", "mallory"], ["X_User_ID", "mallory"]]}),
        json!({"status": 200, "seen": {"x-user-id": null, "x_user_id": null,
               "host": format!("{HOST}:8443"), "x-forwarded-for": "10.99.0.2",
               "x-forwarded-proto": "https", "x-client-cn": "client"}}),
    );
    table.row(
        "a request id that is kept",
        json!({"method": "GET", "path": "/public/echo/0",
               "fields": [["X-Request-ID", "one-and-the-same"]]}),
        json!({"status": 200, "seen": {"x-request-id": "one-and-the-same"}}),
    );
    table.row(
        "cookies one by one",
        json!({"method": "GET", "path": "/public/echo/0",
               "fields": [["Cookie", "a=1"], ["Cookie", "b=2"]]}),
        json!({"status": 200, "seen": {"cookie": "a=1; b=2"}}),
    );
    table.row(
        "the same field twice",
        json!({"method": "GET", "path": "/public/echo/0",
               "fields": [["Accept", "text/plain"], ["Accept", "text/html"]]}),
        json!({"status": 200, "seen": {"accept": "text/plain, text/html"}}),
    );
    table.row(
        "TE: trailers",
        json!({"method": "GET", "path": "/public/echo/0", "fields": [["TE", "trailers"]]}),
        json!({"status": 200, "seen": {"te": "trailers"}}),
    );
    for bytes in [1_000, 8_000, 16_000] {
        table.row(
            &format!("a field of {bytes} octets"),
            json!({"method": "GET", "path": "/public/echo/0",
                   "fields": [["x-long", "v".repeat(bytes)]]}),
            json!({"status": 200, "seen": {"x-long": "v".repeat(bytes)}}),
        );
    }
    let fields: Vec<_> = (0..80).map(|index| json!([format!("x-many-{index}"), "1"])).collect();
    table.row(
        "eighty fields",
        json!({"method": "GET", "path": "/public/echo/0", "fields": fields}),
        json!({"status": 200, "seen": {"x-many-0": "1", "x-many-79": "1"}}),
    );
    // What is far too large the libraries refuse before a request is made of it; over HTTP/1.1 their
    // answer is replaced by ours, and it is read after all of the head was sent.
    let too_large = json!({"status": 431, "reason": "head_too_large",
                           "fields": {"content-type": "application/problem+json"}});
    for (over, bytes, expected) in [
        (&PROTOCOLS[..], 33_000, &too_large),
        (&PROTOCOLS, 40_000, &too_large),
        (&["h1"], 6_000_000, &too_large),
        (&["h2", "h3"], 60_000, &json!({"status": 431})),
    ] {
        table.only(
            over,
            &format!("a head that is too large: {bytes} octets"),
            json!({"method": "GET", "path": "/public/echo/0",
                   "fields": [["x-long", "v".repeat(bytes)]]}),
            expected.clone(),
        );
    }
    table.only(
        &["h1"],
        "what is no head",
        json!({"method": "GET", "path": "/public/echo/0", "fields": [["not a name", "1"]]}),
        json!({"status": 400, "reason": "malformed_request",
               "fields": {"content-type": "application/problem+json", "connection": "close"}}),
    );
    table.only(
        &["h1"],
        "a field of the connection that is named",
        json!({"method": "GET", "path": "/public/echo/0",
               "fields": [["Connection", "x-drop"], ["x-drop", "1"], ["Keep-Alive", "5"]]}),
        json!({"status": 200, "seen": {"x-drop": null, "keep-alive": null, "connection": null}}),
    );
    for (name, value) in [("connection", "close"), ("transfer-encoding", "chunked"), ("te", "gzip")]
    {
        table.only(
            &["h3"],
            &format!("{name} has no place there"),
            json!({"method": "GET", "path": "/public/echo/0", "fields": [[name, value]]}),
            json!({"status": 0, "complete": false, "error": "reset 270"}),
        );
    }
}

/// What clients send.
fn bodies(table: &mut Table) {
    for length in [true, false] {
        for bytes in [0, 1, 1_000, 65_536, 3_000_000] {
            table.row(
                &format!("{bytes} octets, {}", if length { "announced" } else { "in chunks" }),
                json!({"method": "POST", "path": "/public/echo/0", "length": length,
                       "body_bytes": bytes}),
                json!({"status": 200, "arrived_bytes": bytes, "seen": {
                    "content-length": length.then(|| bytes.to_string())}}),
            );
        }
    }
    table.row(
        "a body in many small pieces",
        json!({"method": "PUT", "path": "/public/echo/0", "body_bytes": 2_000, "pieces": 7}),
        json!({"status": 200, "arrived_bytes": 2_000}),
    );
    for method in ["GET", "DELETE", "OPTIONS"] {
        table.row(
            &format!("{method} with a body"),
            json!({"method": method, "path": "/public/echo/0", "length": true, "body_bytes": 10}),
            json!({"status": 200, "arrived_bytes": 10}),
        );
    }
    table.row(
        "trailers that may pass, and others",
        json!({"method": "POST", "path": "/public/echo/0", "body_bytes": 10,
               "fields": [["Trailer", "x-sum, x-user-id"]],
               "trailers": [["x-sum", "42"], ["x-user-id", "mallory"]]}),
        json!({"status": 200, "arrived_bytes": 10, "arrived_trailers": [["x-sum", "42"]],
               "seen": {"trailer": "x-sum"}}),
    );
    table.only(
        &["h1", "h3"],
        "a body that waits until it is wanted",
        json!({"method": "POST", "path": "/public/echo/0", "length": true, "body_bytes": 5_000,
               "expect": true}),
        json!({"status": 200, "interim": [100], "arrived_bytes": 5_000,
               "seen": {"expect": "100-continue"}}),
    );
    // hyper sends no interim answers over HTTP/2; a client does not wait for ever.
    table.only(
        &["h2"],
        "a body that waits for a while",
        json!({"method": "POST", "path": "/public/echo/0", "length": true, "body_bytes": 5_000,
               "expect": true}),
        json!({"status": 200, "arrived_bytes": 5_000}),
    );
    table.only(
        &["h1", "h3"],
        "a body that the upstream does not want",
        json!({"method": "POST", "path": "/public/early/417", "length": true, "body_bytes": 5_000,
               "expect": true}),
        json!({"status": 417, "interim": [], "body_bytes": 5}),
    );
    table.row(
        "a body that no rule allows",
        json!({"method": "POST", "path": "/orders/1", "length": true, "body_bytes": 5_000,
               "expect": true}),
        json!({"status": 401, "interim": [], "reason": "missing_token"}),
    );
    table.row(
        "an answer before the body has come",
        json!({"method": "POST", "path": "/public/early/413", "length": true,
               "body_bytes": 3_000_000, "pause_after_bytes": 50_000}),
        json!({"status": 413, "body_bytes": 5}),
    );
    for (what, bytes) in [("short", 5), ("long", 15)] {
        table.only(
            &["h3"],
            &format!("a body that is too {what} for its length"),
            json!({"method": "POST", "path": "/public/echo/0", "length": true,
                   "announce_bytes": 10, "body_bytes": bytes}),
            json!({"status": 0, "complete": false, "error": "reset 270"}),
        );
    }
}

/// What upstreams answer.
fn answers(table: &mut Table) {
    let get = |path: String| json!({"method": "GET", "path": path});
    for bytes in [0, 1, 70_000, 3_000_000] {
        table.row(
            &format!("an answer of {bytes} octets"),
            get(format!("/public/bytes/{bytes}")),
            json!({"status": 200, "body_bytes": bytes,
                   "fields": {"content-length": bytes.to_string()}}),
        );
        table.row(
            &format!("an answer of {bytes} octets in chunks"),
            get(format!("/public/chunks/{bytes}")),
            json!({"status": 200, "body_bytes": bytes, "fields": {"content-length": null}}),
        );
    }
    table.row(
        "an answer that ends with its connection",
        get("/public/unframed/100000".to_owned()),
        json!({"status": 200, "body_bytes": 100_000}),
    );
    for path in ["bytes/5000", "chunks/5000", "status/404"] {
        let status = if path == "status/404" { 404 } else { 200 };
        let length = json!({"bytes/5000": "5000", "status/404": "5"})[path].clone();
        table.row(
            &format!("HEAD of {path}"),
            json!({"method": "HEAD", "path": format!("/public/{path}")}),
            json!({"status": status, "body_bytes": 0, "fields": {"content-length": length}}),
        );
    }
    for status in [200, 201, 301, 400, 404, 410, 418, 500, 503] {
        table.row(
            &format!("status {status}"),
            get(format!("/public/status/{status}")),
            json!({"status": status, "body_bytes": 5}),
        );
    }
    for status in [204, 304] {
        table.row(
            &format!("status {status}, which has no body"),
            get(format!("/public/status/{status}")),
            json!({"status": status, "body_bytes": 0}),
        );
    }
    table.row(
        "trailers to who takes them, but not those that say how to read the body",
        json!({"method": "GET", "path": "/public/trailers/100", "fields": [["TE", "trailers"]]}),
        json!({"status": 200, "body_bytes": 100, "trailers": [["x-sum", "42"]]}),
    );
    table.row(
        "fields of the upstream's connection stay there",
        get("/public/hop/0".to_owned()),
        json!({"status": 200, "fields": {"x-private": null, "keep-alive": null,
               "proxy-connection": null, "x-kept": "1"}}),
    );
    table.row(
        "fifty fields of an answer",
        get("/public/fields/50".to_owned()),
        json!({"status": 200, "fields": {"x-field-0": "0", "x-field-49": "49"}}),
    );
    table.row(
        "a long field of an answer",
        get("/public/wide/8000".to_owned()),
        json!({"status": 200, "fields": {"x-wide": "w".repeat(8_000)}}),
    );
    table.row(
        "interim answers come to nothing",
        get("/public/hints/3".to_owned()),
        json!({"status": 200, "body_bytes": 0}),
    );
}

/// What the gateway answers itself.
fn refusals(table: &mut Table, token: &str, narrow: &str) {
    let get = |path: &str| json!({"method": "GET", "path": path});
    let bearer = |path: &str, token: &str| {
        json!({"method": "GET", "path": path,
               "fields": [["Authorization", format!("Bearer {token}")]]})
    };
    for (name, request, status, reason) in [
        ("no such path", get("/nothing"), 404, "no_route"),
        ("half a segment", get("/publicity"), 404, "no_route"),
        ("out of the route and back", get("/public/../orders/1"), 400, "malformed_request"),
        ("doubly encoded", get("/public/%252e%252e/x"), 400, "malformed_request"),
        ("an encoded slash", get("/public%2fecho"), 400, "malformed_request"),
        (
            "another method",
            json!({"method": "DELETE", "path": "/readers"}),
            405,
            "method_not_allowed",
        ),
        ("no token", get("/orders/1"), 401, "missing_token"),
        ("no token at all", bearer("/orders/1", "none"), 401, "malformed_token"),
        ("a token without the scope", bearer("/orders/1", narrow), 403, "insufficient_scope"),
        (
            "another host",
            json!({"method": "GET", "path": "/public/echo/0", "authority": "other.test"}),
            421,
            "misdirected",
        ),
        ("an upstream that speaks no HTTP", get("/public/garbage/0"), 502, "upstream_failed"),
    ] {
        table.row(
            name,
            request,
            json!({"status": status, "reason": reason,
                   "fields": {"content-type": "application/problem+json", "alt-svc": ALTERNATIVE}}),
        );
    }
    table.row(
        "a good token",
        bearer("/orders/echo/0", token),
        json!({"status": 200, "seen": {"x-user-id": "alice", "authorization": null,
               "x-auth-method": "certificate+token"}}),
    );
    table.row(
        "a refusal of HEAD has no body",
        json!({"method": "HEAD", "path": "/nothing"}),
        json!({"status": 404, "body_bytes": 0}),
    );
    table.row(
        "the methods that are allowed",
        json!({"method": "PUT", "path": "/readers", "body_bytes": 10, "length": true}),
        json!({"status": 405, "reason": "method_not_allowed", "fields": {"allow": "GET"}}),
    );
}

/// Ends before the end.
fn ends(table: &mut Table) {
    let get = |path: &str| json!({"method": "GET", "path": path});
    // A reset of a stream may overtake what was sent before, the head too (RFC 9000 section 3.2).
    table.row("an answer that breaks off", get("/public/torn/100000"), json!({"complete": false}));
    table.row(
        "chunks that break off",
        get("/public/torn-chunks/100000"),
        json!({"complete": false}),
    );
    table.row(
        "the next is whole",
        get("/public/bytes/10"),
        json!({"status": 200, "body_bytes": 10}),
    );
    table.row(
        "a client that has read enough",
        json!({"method": "GET", "path": "/public/bytes/60000000", "give_up_after_bytes": 100_000}),
        json!({"status": 200, "complete": false, "error": "given up"}),
    );
    table.row(
        "the next is whole",
        get("/public/bytes/10"),
        json!({"status": 200, "body_bytes": 10}),
    );
    // More than lies between the two of them, so that the upstream has begun to read.
    table.row(
        "a client that stops sending",
        json!({"method": "POST", "path": "/public/echo/0", "length": true,
               "body_bytes": 60_000_000, "give_up_sending_after_bytes": 20_000_000}),
        json!({"complete": false, "error": "given up"}),
    );
    table.row(
        "the next is whole",
        get("/public/bytes/10"),
        json!({"status": 200, "body_bytes": 10}),
    );
}

#[test]
fn an_exchange_is_the_same_over_each_protocol() -> Result<()> {
    privileged!();
    let streams = Streams::start("exchanges", 1)?;
    let mint = &streams.site.mint;
    let token = mint.mint("alice", AUDIENCE, &["--scope", "read:orders"])?;
    let narrow = mint.mint("alice", AUDIENCE, &["--scope", "read:nothing"])?;
    let table = table(&token, &narrow);
    let mut failures = Vec::new();
    for protocol in PROTOCOLS {
        let rows: Vec<&Row> = table.iter().filter(|row| row.over.contains(&protocol)).collect();
        assert!(rows.len() >= 60, "{} rows over {protocol}", rows.len());
        let requests: Vec<Value> = rows.iter().map(|row| row.request.clone()).collect();
        let answers = streams.converse(&streams.case(protocol, &requests))?;
        assert_eq!(answers.len(), rows.len());
        for (row, answer) in rows.iter().zip(&answers) {
            for wrong in wrong(answer, &row.expected) {
                failures.push(format!("{protocol}: {}: {wrong}", row.name));
            }
        }
    }
    // What failed comes last: where only the end of what a test prints is kept, that is the end.
    assert!(failures.is_empty(), "log:\n{}\n{}", streams.gateway.log_text(), failures.join("\n"));
    // What the clients gave up was given up behind the gateway too, and nothing is left open.
    clock::wait_for("the upstream to see broken bodies and answers", SOON, || {
        let seen = streams.origin.torn() >= 3 && streams.origin.refused() >= 3;
        Ok(seen.then_some(()))
    })?;
    clock::wait_for("all connections to end", SOON, || {
        Ok((streams.gateway.metric("gateway_connections", &[])? == 0.0).then_some(()))
    })?;
    Ok(())
}

/// The same to curl, which is nobody's library of these tests.
#[test]
fn curl_gets_the_same_bodies() -> Result<()> {
    privileged!();
    let streams = Streams::start("curl", 1)?;
    let site = &streams.site;
    let upload = site.directory.path().join("upload");
    fs::write(&upload, vec![b'u'; 20_000_000])?;
    let data = format!("@{}", upload.display());
    for (version, number) in [(Version::Http1, "1.1"), (Version::Http2, "2")] {
        let request = |path: &str| site.request(path).version(version);
        let echoed = request("/public/echo/0").option("--data-binary").option(&data).send()?;
        assert_eq!((echoed.status, echoed.version.as_str()), (200, number), "{echoed:?}");
        assert_eq!(echoed.json()?["body_bytes"], 20_000_000);
        let streamed =
            request("/public/echo/0").option("--upload-file").option(&data[1..]).send()?;
        assert_eq!(streamed.json()?["body_bytes"], 20_000_000);
        let large = request("/public/chunks/20000000").send()?;
        assert_eq!((large.status, large.body.len()), (200, 20_000_000), "{}", large.error);
        assert_eq!(large.header("alt-svc"), Some(ALTERNATIVE));
        let torn = request("/public/torn/100000").send()?;
        assert_ne!(torn.exit, 0, "{number}: a torn answer looks whole");
    }
    Ok(())
}

/// Octets of a gibibyte, more than the gateway may hold: they can only have streamed.
const GIBIBYTE: u64 = 1 << 30;

/// Octets the other way: enough for that too, and not as long.
const UPLOAD: u64 = GIBIBYTE / 4;

/// For a gibibyte on a busy machine; some ten seconds on a quiet one.
const LONG: Duration = Duration::from_secs(300);

/// What the gateway may take meanwhile beyond what it had before: windows and buffers of one exchange.
const STREAMING_MAX_KIB: u64 = 48 * 1024;

/// Has a gibibyte pass, and sees that the gateway keeps little of it.
fn gibibyte(label: &str, pass: impl FnOnce(&Streams) -> Result<()>) -> Result<()> {
    let streams = Streams::start(label, 1)?;
    let before = streams.gateway.resident_kib()?;
    let passed = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let watching = scope.spawn(|| -> Result<u64> {
            let mut most = 0;
            while !passed.load(Ordering::Relaxed) {
                most = most.max(streams.gateway.resident_kib()?);
                thread::sleep(Duration::from_millis(20));
            }
            Ok(most)
        });
        let outcome = pass(&streams);
        passed.store(true, Ordering::Relaxed);
        let most = watching.join().map_err(|_panic| anyhow!("the watching thread panicked"))??;
        outcome.map(|()| most)
    })?;
    println!("{label}: resident {before} KiB before, {most} KiB at most");
    ensure!(most < before + STREAMING_MAX_KIB, "{label}: {before} KiB, then {most} KiB");
    let line = streams.gateway.wait_log("the download's line", |line| {
        line["event"] == "request" && line["bytes_out"].as_u64() == Some(GIBIBYTE)
    })?;
    assert_eq!(line["status"], 200);
    Ok(())
}

fn gibibyte_by_curl(streams: &Streams, version: Version) -> Result<()> {
    let request = |path: &str| streams.site.request(path).version(version).limit(LONG);
    let path = format!("/public/bytes/{GIBIBYTE}");
    let answer = request(&path).option("--output").option("/dev/null").send()?;
    assert_eq!((answer.exit, answer.status), (0, 200), "{}", answer.error);
    // Zeros that take no place.
    let upload = streams.site.directory.path().join("gibibyte");
    fs::File::create(&upload)?.set_len(UPLOAD)?;
    let upload = upload.display().to_string();
    let answer = request("/public/echo/0").option("--upload-file").option(&upload).send()?;
    assert_eq!(answer.json()?["body_bytes"], UPLOAD, "{answer:?}");
    Ok(())
}

#[test]
fn a_gibibyte_passes_through_http1() -> Result<()> {
    privileged!();
    gibibyte("gibibyte-1", |streams| gibibyte_by_curl(streams, Version::Http1))
}

#[test]
fn a_gibibyte_passes_through_http2() -> Result<()> {
    privileged!();
    gibibyte("gibibyte-2", |streams| gibibyte_by_curl(streams, Version::Http2))
}

#[test]
fn a_gibibyte_passes_through_http3() -> Result<()> {
    privileged!();
    gibibyte("gibibyte-3", |streams| {
        let identity = Identity::new(&streams.site, &streams.site.client)?;
        within(&streams.site, async || {
            let client = Client::connect(&identity).await?;
            let path = format!("/public/bytes/{GIBIBYTE}");
            let answer = timeout(LONG, client.get(&path)).await??;
            ensure!(answer == (200, GIBIBYTE), "{answer:?}");
            let (status, told) = timeout(LONG, client.put("/public/echo/0", UPLOAD)).await??;
            let told: Value = serde_json::from_slice(&told)?;
            ensure!(status == 200 && told["body_bytes"] == UPLOAD, "{status}: {told}");
            ensure!(told["intact"] == true, "{told}");
            Ok(())
        })
    })
}

/// nghttp2's load generator: many requests at once on many connections, each of them answered.
#[test]
fn h2load_gets_every_answer() -> Result<()> {
    privileged!();
    const REQUESTS: usize = 3_000;
    let mut site = Site::new(binary(), "h2load")?;
    site.config.bans = "enabled = false".to_owned();
    let launch = site.launch()?;
    // It has no certificate.
    let text = site.config.to_string().replace("\"required\"", "\"optional\"");
    write_config(&launch.config, &text)?;
    let gateway = launch.run_until_ready()?;
    for (protocol, streams) in [("h2", "20"), ("http/1.1", "1")] {
        let mut command = site.client_host.command("timeout");
        command.args(["--signal=KILL", "120", "h2load", "--requests", &REQUESTS.to_string()]);
        command.args(["--clients", "15", "--max-concurrent-streams", streams]);
        command.args(["--npn-list", protocol]).arg(format!("https://{SERVER}/public"));
        let said = process::succeed(&mut command)?;
        let expected = format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx");
        ensure!(said.contains(&expected), "{protocol}: {said}");
    }
    let served = [("route", "public"), ("code", "200")];
    gateway.wait_metric("gateway_http_requests_total", &served, 2.0 * REQUESTS as f64)
}
