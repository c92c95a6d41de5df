//! Issuers that publish their keys: rotated, away, slow, garbled, impostors; and one that somebody
//! else wrote. Whatever they do, no request waits for them and what was good stays good for a time.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    binary,
    handover::{GONE, successor},
    harness::{
        clock,
        fixture_clock::FixtureClock,
        gateway::{Gateway, Launch, SOON, START_LIMIT},
        idp::{Idp, Manner},
        process, python,
        site::Site,
        tokens::{self, AUDIENCE, Mint},
    },
};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9444);

/// A site whose issuer publishes what is in `live.jwks`.
fn site(label: &str) -> Result<(Site, PathBuf)> {
    let mut site = Site::new(binary(), label)?;
    site.config.bans = "enabled = false".to_owned();
    let live = site.directory.path().join("live.jwks");
    fs::copy(site.mint.jwks(), &live)?;
    site.config.jwks = live.clone();
    Ok((site, live))
}

/// Replaces a file in one step, so that nobody reads half of it.
fn replace(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = file.with_extension("new");
    write(&beside)?;
    Ok(fs::rename(beside, file)?)
}

fn fetches(gateway: &Gateway, result: &str) -> Result<f64> {
    gateway.metric("gateway_jwks_fetches_total", &[("issuer", "corp"), ("result", result)])
}

/// Status and reason of a request with this token.
fn answer(site: &Site, token: &str) -> Result<(u16, String)> {
    let answer = site.request("/orders/1").token(token).send()?;
    Ok((answer.status, answer.reason()))
}

fn wait_for_answer(site: &Site, token: &str, status: u16, reason: &str) -> Result<()> {
    clock::wait_for(&format!("{status} {reason}"), SOON, || {
        Ok((answer(site, token)? == (status, reason.to_owned())).then_some(()))
    })
}

#[test]
fn a_new_key_is_known_soon_and_an_old_one_dies_with_the_set() -> Result<()> {
    privileged!();
    let (mut site, live) = site("rotation")?;
    let idp = Idp::start(&site.gateway_host, ADDRESS, live.clone(), None)?;
    site.config.keys =
        format!("jwks_url = \"{}\"\nrefresh = \"1h\"\ncooldown = \"1s\"", idp.keys_url());
    let next = Mint::new(binary(), site.directory.path(), "next", "EdDSA")?;
    site.config.algorithms = "\"ES256\", \"EdDSA\"".to_owned();
    let (old_token, new_token) = (site.mint.good("alice")?, next.good("alice")?);
    let gateway = site.start()?;
    wait_for_answer(&site, &old_token, 200, "")?;
    assert_eq!(answer(&site, &new_token)?, (401, "unknown_key".to_owned()));
    let age = gateway.metric("gateway_jwks_age_seconds", &[("issuer", "corp")])?;
    assert!((0.0..60.0).contains(&age), "{age}");

    // Both for a while: the first token with the new key makes it known.
    replace(&live, |file| tokens::join_key_sets(&[&site.mint, &next], file))?;
    wait_for_answer(&site, &new_token, 200, "")?;
    assert_eq!(answer(&site, &old_token)?.0, 200, "remembered, and its key is still there");

    // The old key goes; a stranger's token is enough to notice, and what was remembered dies too.
    replace(&live, |file| Ok(fs::copy(next.jwks(), file).map(|_| ())?))?;
    let stranger =
        Mint::new(binary(), site.directory.path(), "stranger", "ES256")?.good("alice")?;
    clock::wait_for("the old key to die", SOON, || {
        assert_eq!(answer(&site, &stranger)?, (401, "unknown_key".to_owned()));
        Ok((answer(&site, &old_token)? == (401, "unknown_key".to_owned())).then_some(()))
    })?;
    assert_eq!(answer(&site, &new_token)?.0, 200);
    Ok(())
}

#[test]
fn a_storm_of_unknown_keys_asks_once_in_a_cooldown() -> Result<()> {
    privileged!();
    let (mut site, live) = site("storm")?;
    let idp = Idp::start(&site.gateway_host, ADDRESS, live, None)?;
    site.config.keys =
        format!("jwks_url = \"{}\"\nrefresh = \"1h\"\ncooldown = \"1h\"", idp.keys_url());
    let good = site.mint.good("alice")?;
    let gateway = site.start()?;
    wait_for_answer(&site, &good, 200, "")?;
    let signature = good.rsplit('.').next().context("a token")?;
    for number in 0..100 {
        let header = tokens::encode(&serde_json::json!({
            "alg": "ES256", "kid": format!("unknown-{number}"),
        }));
        let claims = good.split('.').nth(1).context("a token")?;
        let token = format!("{header}.{claims}.{signature}");
        assert_eq!(answer(&site, &token)?, (401, "unknown_key".to_owned()));
    }
    assert_eq!(answer(&site, &good)?.0, 200);
    assert_eq!((idp.asked(), fetches(&gateway, "answered")?), (1, 1.0));
    Ok(())
}

#[test]
fn whatever_an_issuer_answers_its_last_good_keys_stay() -> Result<()> {
    privileged!();
    let (mut site, live) = site("manners")?;
    let idp = Idp::start(&site.gateway_host, ADDRESS, live, None)?;
    site.config.keys = format!("discovery_url = \"{}\"\nrefresh = \"1s\"", idp.description_url());
    let good = site.mint.good("alice")?;
    let gateway = site.start()?;
    wait_for_answer(&site, &good, 200, "")?;
    for (manner, said) in [
        (Manner::Status(500), "answered 500"),
        (Manner::Redirect, "redirects are not followed"),
        (Manner::Garbage("<html>"), "not a JSON object"),
        (Manner::Garbage("{\"keys\":[]}"), "names no issuer"),
        (Manner::Huge(2 << 20), "limit"),
        (Manner::Close, "no usable answer"),
        (Manner::Impostor, "describes issuer"),
        (Manner::Drip, "no whole answer in 10 s"),
    ] {
        idp.behave(manner.clone());
        gateway.wait_log(&format!("what {manner:?} led to"), |line| {
            line["event"] == "issuer keys not fetched"
                && line["detail"].as_str().is_some_and(|detail| detail.contains(said))
        })?;
        assert_eq!(answer(&site, &good)?.0, 200, "{manner:?}");
        idp.behave(Manner::Well);
        let before = fetches(&gateway, "answered")?;
        clock::wait_for("a good answer", START_LIMIT, || {
            Ok((fetches(&gateway, "answered")? > before).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn an_issuer_that_is_away_too_long_makes_its_tokens_wait() -> Result<()> {
    privileged!();
    let (mut site, live) = site("away")?;
    let idp = Idp::start(&site.gateway_host, ADDRESS, live.clone(), None)?;
    let url = idp.keys_url();
    site.config.keys = format!("jwks_url = \"{url}\"\nrefresh = \"1s\"\nmax_stale = \"4s\"");
    let good = site.mint.good("alice")?;
    let _gateway = site.start()?;
    wait_for_answer(&site, &good, 200, "")?;
    drop(idp);
    // Also the remembered token: strictness that a cache could evade would be none.
    wait_for_answer(&site, &good, 503, "issuer_unavailable")?;
    let refused = site.request("/orders/1").token(&good).send()?;
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(site.request("/machines").send()?.status, 200, "who needs no token is served");
    let _idp = clock::wait_for("the port", SOON, || {
        Ok(Idp::start(&site.gateway_host, ADDRESS, live.clone(), None).ok())
    })?;
    wait_for_answer(&site, &good, 200, "")
}

/// Clients ask the next process before it has heard of any issuer.
#[test]
fn who_takes_over_knows_the_keys_of_an_issuer_that_is_away() -> Result<()> {
    privileged!();
    let (mut site, live) = site("heir-keys")?;
    let idp = Idp::start(&site.gateway_host, ADDRESS, live, None)?;
    site.config.keys = format!("jwks_url = \"{}\"\nrefresh = \"1h\"", idp.keys_url());
    let good = site.mint.good("alice")?;
    let mut gateway = site.start()?;
    wait_for_answer(&site, &good, 200, "")?;
    drop(idp);
    let next = successor(gateway.launch())?;
    for _ in 0..5 {
        assert_eq!(answer(&site, &good)?, (200, String::new()));
    }
    assert_eq!(gateway.wait_exit(GONE)?, Some(0));
    clock::wait_for("the next one to have asked too", SOON, || {
        Ok((fetches(&next, "failed")? >= 1.0).then_some(()))
    })?;
    assert_eq!((answer(&site, &good)?.0, next.get("/ready")?.0), (200, 200));
    Ok(())
}

#[test]
fn an_issuer_is_believed_over_tls_only_with_the_right_certificate() -> Result<()> {
    privileged!();
    let (mut site, live) = site("idp-tls")?;
    let credential = site.authority.server(&["idp.test"], "idp")?;
    let tls = Some(("idp.test", &credential));
    let idp = Idp::start(&site.gateway_host, ADDRESS, live, tls)?;
    let good = site.mint.good("alice")?;
    let ca = site.authority.certificate().display().to_string();
    let at = format!("addresses = [\"{ADDRESS}\"]");
    let elsewhere = idp.description_url().replace("idp.test", "other.test");
    for (what, lines, expected) in [
        // There is no such name here: the addresses do without.
        (
            "right",
            format!("discovery_url = \"{}\"\nca = {ca:?}\n{at}", idp.description_url()),
            None,
        ),
        (
            "not of this authority",
            format!("jwks_url = \"{}\"\n{at}", idp.keys_url()),
            Some("TLS: invalid peer certificate: UnknownIssuer"),
        ),
        (
            "for another name",
            format!("discovery_url = \"{elsewhere}\"\nca = {ca:?}\n{at}"),
            Some("TLS: invalid peer certificate"),
        ),
        (
            "a name that does not exist",
            format!("jwks_url = \"{}\"\nca = {ca:?}", idp.keys_url()),
            Some("its name was not resolved"),
        ),
    ] {
        site.config.keys = lines;
        let gateway = site.start()?;
        let Some(said) = expected else {
            wait_for_answer(&site, &good, 200, "").context(what)?;
            continue;
        };
        let line = gateway.wait_log(what, |line| line["event"] == "issuer keys not fetched")?;
        assert!(line["detail"].as_str().is_some_and(|text| text.contains(said)), "{what}: {line}");
        // Ready all the same: an issuer that is away must not take the whole gateway with it.
        assert_eq!(answer(&site, &good)?, (503, "issuer_unavailable".to_owned()), "{what}");
    }
    Ok(())
}

/// A provider of somebody else's: a process that is ended when dropped.
struct Provider(Child);

impl Drop for Provider {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _buried = self.0.wait();
    }
}

/// Starts one in a site's gateway host; `None` where it is not installed.
fn provider(site: &Site) -> Result<Option<Provider>> {
    let Some(python) = python::interpreter() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs oidc-provider-mock in .tools/python; `cargo xtask setup` puts it there"
        );
        eprintln!("NOT RUN: needs oidc-provider-mock in .tools/python (cargo xtask setup)");
        return Ok(None);
    };
    let mut command = site.gateway_host.command(python);
    command.args(["-m", "oidc_provider_mock", "--port", &ADDRESS.port().to_string()]);
    let provider = Provider(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    clock::wait_for("the provider", START_LIMIT, || Ok(ask(site, &[&description()]).ok()))?;
    Ok(Some(provider))
}

fn description() -> String {
    format!("http://{ADDRESS}/.well-known/openid-configuration")
}

/// `curl` beside the provider.
fn ask(site: &Site, words: &[&str]) -> Result<String> {
    let mut command = site.gateway_host.command("curl");
    process::succeed(command.args(["--silent", "--show-error", "--fail"]).args(words))
}

/// A token for alice by the code flow (OpenID Connect Core section 3.1), as alice and as the client.
fn token_of_provider(site: &Site) -> Result<String> {
    let base = format!("http://{ADDRESS}");
    let place = format!(
        "{base}/oauth2/authorize?client_id={AUDIENCE}&redirect_uri=http://127.0.0.1/back&\
         response_type=code&scope=openid"
    );
    let words = ["--output", "/dev/null", "--write-out", "%{redirect_url}", "-d", "sub=alice"];
    let back = ask(site, &[&words[..], &[&place]].concat())?;
    let (_, code) = back.split_once("code=").with_context(|| format!("no code in {back}"))?;
    let form =
        format!("grant_type=authorization_code&code={code}&redirect_uri=http://127.0.0.1/back");
    let client = format!("{AUDIENCE}:secret");
    let given = ask(site, &["--user", &client, "-d", &form, &format!("{base}/oauth2/token")])?;
    let given: Value = serde_json::from_str(&given)?;
    Ok(given["id_token"].as_str().with_context(|| given.to_string())?.to_owned())
}

/// The site of a provider's clients; `lines` are further ones of its `[[issuer]]`.
fn of_provider(site: &mut Site, lines: &str) {
    site.config.issuer = format!("http://{ADDRESS}");
    site.config.keys = format!("discovery_url = \"{}\"\n{lines}", description());
    site.config.routes = site.config.routes.replace("scopes = [\"read:orders\"]", "");
}

#[test]
fn tokens_of_another_ones_provider_are_understood() -> Result<()> {
    privileged!();
    let (mut site, _) = site("provider")?;
    let Some(_provider) = provider(&site)? else { return Ok(()) };
    let token = token_of_provider(&site)?;
    of_provider(&mut site, "");
    let _gateway = site.start()?;
    wait_for_answer(&site, &token, 200, "")?;
    let seen = site.request("/orders/1").token(&token).send()?;
    assert!(String::from_utf8_lossy(&seen.body).contains("alice"), "{seen:?}");
    // The first digit of the signature: of the last one some bits count for nothing.
    let (signed, signature) = token.rsplit_once('.').context("a token")?;
    let (first, rest) = signature.split_at(1);
    let altered = format!("{signed}.{}{rest}", if first == "A" { "B" } else { "A" });
    assert_eq!(answer(&site, &altered)?, (401, "bad_signature".to_owned()));
    Ok(())
}

#[test]
fn a_strict_issuer_that_is_away_for_five_minutes_is_believed_no_more() -> Result<()> {
    privileged!();
    let (mut site, _) = site("strict")?;
    let Some(fixture) = FixtureClock::new(site.directory.path())? else {
        assert!(std::env::var_os("CI").is_none(), "needs the package faketime (cargo xtask setup)");
        eprintln!("NOT RUN: needs the package faketime (cargo xtask setup)");
        return Ok(());
    };
    let Some(first) = provider(&site)? else { return Ok(()) };
    let token = token_of_provider(&site)?;
    of_provider(&mut site, "idp_lost = \"strict\"\nrefresh = \"1m\"\nmax_lifetime = \"1h\"");
    site.config.bans = "enabled = false".to_owned();
    let launch = Launch { environment: fixture.environment(), ..site.launch()? };
    let gateway = launch.run_until_ready()?;
    wait_for_answer(&site, &token, 200, "")?;

    drop(first);
    fixture.set_ahead(Duration::from_secs(120))?;
    gateway
        .wait_log("that the issuer is away", |line| line["event"] == "issuer keys not fetched")?;
    assert_eq!(answer(&site, &token)?, (200, String::new()), "two minutes are no reason");
    assert_eq!(launch.json(&["status"])?["issuers"][0]["available"], true);
    fixture.set_ahead(Duration::from_secs(320))?;
    wait_for_answer(&site, &token, 503, "issuer_unavailable")?;
    let issuer = launch.json(&["status"])?["issuers"][0].clone();
    assert_eq!(
        (&issuer["name"], &issuer["available"]),
        (&"corp".into(), &false.into()),
        "{issuer}"
    );
    assert!(issuer["age_s"].as_u64() >= Some(300), "{issuer}");
    assert!(issuer["last_error"].as_str().is_some_and(|why| !why.is_empty()), "{issuer}");
    assert!(launch.succeed(&["status"])?.contains("NO KEYS"), "and for people");
    assert_eq!(site.request("/machines").send()?.status, 200, "who needs no token is served");

    let Some(_second) = provider(&site)? else { return Ok(()) };
    // Its keys are others, for it remembers nothing; the longest wait for the next question is a minute.
    let token = token_of_provider(&site)?;
    fixture.set_ahead(Duration::from_secs(390))?;
    wait_for_answer(&site, &token, 200, "")?;
    let issuer = launch.json(&["status"])?["issuers"][0].clone();
    assert_eq!(
        (&issuer["available"], &issuer["last_error"]),
        (&true.into(), &Value::Null),
        "{issuer}"
    );
    assert_eq!(issuer["keys"].as_array().map(Vec::len), Some(1), "{issuer}");
    Ok(())
}
