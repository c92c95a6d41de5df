//! Names of upstream servers, asked of a name server that a test has in hand: one that is slow holds
//! nobody up, and what it says is followed, by requests and in the kernel.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, Launch, SOON},
        netns::Namespace,
        site::Site,
        upstream::Upstream,
    },
};

/// Types of records (RFC 1035 section 3.2.2).
const A: [u8; 2] = [0, 1];

/// A question that is held back is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A name server on port 53 of a namespace's loopback, until it is dropped.
#[derive(Clone, Default)]
struct Names {
    known: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
    /// Questions that have come.
    asked: Arc<AtomicU64>,
    is_held: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
}

impl Names {
    fn start(namespace: &Namespace) -> Result<Names> {
        let socket = namespace.within(|| UdpSocket::bind("127.0.0.1:53"))??;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        let names = Names::default();
        let answering = names.clone();
        thread::spawn(move || answering.answer(&socket));
        Ok(names)
    }

    fn is(&self, name: &str, address: [u8; 4]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_owned(), address.into());
    }

    /// Whether questions wait for their answers.
    fn hold(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::SeqCst);
    }

    /// Waits until so many more questions have come.
    fn wait_asked(&self, more: u64) -> Result<()> {
        let before = self.asked.load(Ordering::SeqCst);
        clock::wait_for("the next questions", SOON, || {
            Ok((self.asked.load(Ordering::SeqCst) >= before + more).then_some(()))
        })
    }

    fn answer(&self, socket: &UdpSocket) {
        let mut held = Vec::new();
        let mut question = [0; 512];
        while !self.is_over.load(Ordering::SeqCst) {
            if let Ok((length, from)) = socket.recv_from(&mut question) {
                held.push((question[..length].to_vec(), from));
                self.asked.fetch_add(1, Ordering::SeqCst);
            }
            if !self.is_held.load(Ordering::SeqCst) {
                for (question, from) in held.drain(..) {
                    if let Some(answer) = self.said(&question) {
                        // Who asked may have given up.
                        let _gone = socket.send_to(&answer, from);
                    }
                }
            }
        }
    }

    /// RFC 1035 section 4.1: the question again, and an address where one is asked for and known.
    fn said(&self, question: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while *question.get(at)? != 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8_lossy(question.get(at + 1..end)?).to_lowercase());
            at = end;
        }
        let asked = question.get(12..at + 5)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let address = known.get(&labels.join("."));
        let found = address.filter(|_| question[at + 1..at + 3] == A);
        // A name without that kind of address is there all the same; one that nobody knows is not.
        let code = if address.is_some() { 0x80 } else { 0x83 };
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, code, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
        answer.extend_from_slice(asked);
        if let Some(address) = found {
            // The name of the question, an address of the Internet, not to be kept, four octets.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}

/// Ends the name server with its test.
struct Ended(Names);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.hold(false);
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// How to start the site's gateway so that it asks that name server and nobody else.
fn launch(site: &Site) -> Result<Launch> {
    let directory = site.directory.path();
    fs::write(
        directory.join("resolv.conf"),
        "nameserver 127.0.0.1\noptions timeout:30 attempts:2\n",
    )?;
    fs::write(directory.join("nsswitch.conf"), "hosts: files dns\n")?;
    let mut launch = site.launch()?;
    let wrapper = directory.join("asks-there");
    let bind = |file: &str| format!("mount --bind {}/{file} /etc/{file}", directory.display());
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '{} && {} && exec {} \"$@\"' sh \"$@\"\n",
        bind("resolv.conf"),
        bind("nsswitch.conf"),
        launch.binary.display()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700))?;
    launch.binary = wrapper;
    Ok(launch)
}

/// A public route `/NAME` to a server of that name.
fn route(name: &str, host: &str, port: u16) -> String {
    format!(
        "\n[[upstream]]\nname = \"{name}\"\nservers = [\"http://{host}:{port}\"]\n\
         connect_timeout = \"1s\"\n[[route]]\nname = \"{name}\"\npath = \"/{name}\"\n\
         upstream = \"{name}\"\nrequire = []\n"
    )
}

fn answered(site: &Site, path: &str) -> Result<u16> {
    Ok(site.request(path).send()?.status)
}

fn wait_status(site: &Site, path: &str, status: u16) -> Result<()> {
    clock::wait_for(&format!("{path} to be answered with {status}"), SOON, || {
        Ok((answered(site, path)? == status).then_some(()))
    })
}

#[test]
fn a_slow_name_server_holds_nobody_up() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "slow-names")?;
    let names = Ended(Names::start(&site.gateway_host)?);
    names.0.is("orders.test", [127, 0, 0, 1]);
    names.0.hold(true);
    let port = site.config.upstream.port();
    site.config.routes.push_str(&route("named", "orders.test", port));
    let gateway = launch(&site)?.run_until_ready()?;
    // It serves without an answer, and nobody waits for one.
    let early = site.request("/named/x").send()?;
    assert_eq!((early.status, early.reason().as_str()), (503, "no_healthy_upstream"));
    for _ in 0..10 {
        assert_eq!(answered(&site, "/public")?, 200);
    }
    gateway.launch().succeed(&["reload"])?;
    assert_eq!(answered(&site, "/public")?, 200);
    names.0.hold(false);
    wait_status(&site, "/named/x", 200)?;
    // What was said once holds while nobody says anything.
    names.0.hold(true);
    names.0.wait_asked(1)?;
    assert_eq!(answered(&site, "/named/x")?, 200);
    Ok(())
}

/// Why it cannot be banned; `None`: it can, and was, and is not any more.
fn why_spared(gateway: &Gateway, source: &str) -> Result<Option<String>> {
    let ended = gateway.launch().ended(&["bans", "add", source])?;
    match ended.status {
        Some(0) => {
            gateway.launch().succeed(&["bans", "remove", source])?;
            Ok(None)
        }
        Some(1) if ended.stderr.contains("exempt") => Ok(Some(ended.stderr)),
        _ => anyhow::bail!("{ended:?}"),
    }
}

#[test]
fn where_a_name_leads_is_followed_by_requests_and_in_the_kernel() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "moving-names")?;
    let names = Ended(Names::start(&site.gateway_host)?);
    let port = site.config.upstream.port();
    let other = Upstream::start(&site.gateway_host, ([127, 0, 0, 2], port).into(), None)?;
    names.0.is("orders.test", [127, 0, 0, 1]);
    names.0.is("far.test", [10, 99, 0, 88]);
    site.config.routes.push_str(&route("named", "orders.test", port));
    site.config.routes.push_str(&route("far", "far.test", port));
    // One without an answer has all of them asked more often.
    site.config.routes.push_str(&route("lost", "lost.test", port));
    site.guard("");
    let gateway = launch(&site)?.run_until_ready()?;
    wait_status(&site, "/named/x", 200)?;
    let before = (site.upstream.requests(), other.requests());
    ensure!(before.0 > 0 && before.1 == 0, "{before:?}");
    clock::wait_for("the first address to be spared", SOON, || {
        Ok(why_spared(&gateway, "10.99.0.88")?.filter(|why| why.contains("upstream far")))
    })?;
    ensure!(why_spared(&gateway, "10.99.0.89")?.is_none(), "nobody's yet");

    names.0.is("orders.test", [127, 0, 0, 2]);
    names.0.is("far.test", [10, 99, 0, 89]);
    clock::wait_for("the next address to be spared", SOON, || {
        Ok(why_spared(&gateway, "10.99.0.89")?.filter(|why| why.contains("upstream far")))
    })?;
    ensure!(why_spared(&gateway, "10.99.0.88")?.is_none(), "it is nobody's any more");
    let told = gateway.launch().json(&["explain", "10.99.0.89"])?;
    ensure!(told["exempt"] == "10.99.0.89/32", "{told}");
    clock::wait_for("requests to go to the other server", SOON, || {
        let status = answered(&site, "/named/x")?;
        ensure!(status == 200, "{status} while the name moves");
        Ok((other.requests() > 0).then_some(()))
    })?;
    // A name that is lost leads where it led.
    names.0.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    // Each look asks for two kinds of addresses; when the next one begins, the last was taken in.
    names.0.wait_asked(6)?;
    ensure!(answered(&site, "/named/x")? == 200, "the last good answer stays");
    why_spared(&gateway, "10.99.0.89")?.context("so does its exemption")?;
    Ok(())
}
