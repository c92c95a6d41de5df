//! SIGTERM: what is under way is finished, nothing new begins, then exit 0.

use std::{thread, time::Duration};

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{client::curl_exit, clock, gateway::SOON, site::Site},
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
