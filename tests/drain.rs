//! SIGTERM: what is under way is finished, nothing new begins, then exit 0.

use std::{thread, time::Duration};

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        client::curl_exit,
        clock,
        gateway::SOON,
        load::Target,
        site::{HOST, SERVER, Site},
    },
};

/// Longer than the upstream takes for its answer, so that it is not the client who gives up.
const ENDLESS: Duration = Duration::from_secs(60);

#[test]
fn a_request_under_way_is_finished() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "drain")?;
    let mut gateway = site.start()?;
    thread::scope(|scope| {
        let under_way = scope.spawn(|| site.request("/public/delay/2000").send());
        clock::wait_for("the request to arrive", SOON, || {
            Ok((site.upstream.requests() == 1).then_some(()))
        })?;
        gateway.signal(Signal::SIGTERM)?;
        clock::wait_for("new connections to be refused", SOON, || {
            let answer = site.request("/public").send()?;
            Ok((answer.exit == curl_exit::COULD_NOT_CONNECT).then_some(()))
        })?;
        let answer = under_way.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
        assert_eq!(answer.status, 200, "{}", answer.error);
        assert_eq!(gateway.wait_exit(SOON)?, Some(0));
        anyhow::Ok(())
    })
}

#[test]
fn a_drain_ends_at_its_deadline_and_at_a_second_signal() -> Result<()> {
    privileged!();
    for (what, drain_timeout, second_signal) in
        [("the deadline", "1s", false), ("a second signal", "1h", true)]
    {
        let mut site = Site::new(binary(), "deadline")?;
        site.config.process = format!("drain_timeout = \"{drain_timeout}\"");
        let mut gateway = site.start()?;
        thread::scope(|scope| {
            let endless = scope.spawn(|| site.request("/public/delay/29000").limit(ENDLESS).send());
            clock::wait_for("the request to arrive", SOON, || {
                Ok((site.upstream.requests() == 1).then_some(()))
            })?;
            gateway.signal(Signal::SIGTERM)?;
            if second_signal {
                gateway.wait_log("the drain", |line| line["event"] == "draining")?;
                gateway.signal(Signal::SIGTERM)?;
            }
            assert_eq!(gateway.wait_exit(SOON)?, Some(0), "{what}");
            let answer = endless.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
            assert_ne!(answer.status, 200, "{what}: it cannot have been answered");
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn balancers_are_told_before_connections_are_refused() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "delay")?;
    site.config.process = "drain_delay = \"1h\"\ndrain_timeout = \"1h\"".to_owned();
    let mut gateway = site.start()?;
    gateway.signal(Signal::SIGTERM)?;
    clock::wait_for("/ready to say so", SOON, || {
        Ok((gateway.get("/ready")? == (503, "draining\n".to_owned())).then_some(()))
    })?;
    assert_eq!(site.request("/public").send()?.status, 200, "nobody is refused yet");
    assert!(site.launch()?.json(&["status"])?["drain"]["remaining_s"].as_f64() > Some(3600.0));
    let reload = site.launch()?.ended(&["reload"])?;
    assert!(reload.stderr.contains("draining"), "{reload:?}");
    gateway.signal(Signal::SIGTERM)?;
    assert_eq!(gateway.wait_exit(SOON)?, Some(0), "a second signal does not wait");
    Ok(())
}

#[test]
fn the_command_waits_and_counts() -> Result<()> {
    privileged!();
    for (what, drain_timeout, path, cut) in [
        ("idle connections end", "1h", "/public", 0),
        ("one that is answered too late is cut", "1s", "/public/delay/29000", 1),
    ] {
        let mut site = Site::new(binary(), "count")?;
        site.config.process = format!("drain_timeout = \"{drain_timeout}\"");
        let mut gateway = site.start()?;
        let launch = site.launch()?;
        let target = Target::new(
            &site.client_host,
            SERVER,
            HOST,
            &site.authority.certificate(),
            &site.client,
        )?;
        let mut kept = target.connect()?;
        thread::scope(|scope| {
            scope.spawn(move || {
                let answered = kept.ask(path, "").is_ok();
                // Kept open until the server ends it.
                (answered, kept.is_ended())
            });
            clock::wait_for("the request to arrive", SOON, || {
                Ok((site.upstream.requests() == 1).then_some(()))
            })?;
            let told = launch.json(&["drain"])?;
            assert_eq!((&told["cut"], &told["ended"]), (&cut.into(), &(1 - cut).into()), "{what}");
            assert_eq!(gateway.wait_exit(SOON)?, Some(0), "{what}");
            anyhow::Ok(())
        })?;
    }
    Ok(())
}
