//! The work itself: closed loops, fixed rates, handshakes, connections that are held.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{Read as _, Write as _},
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{sync::Semaphore, task::spawn_local, time::sleep};

use crate::{
    clock::{self, Processors},
    connect::{Connector, is_resumed},
    http1, http3,
    lane::{Lane, Requests},
    plan::{Plan, Protocol, Work},
    tell::{Latency, Stretch, Told, cpu_us},
};

/// Handshakes at once while connections are opened: enough that the server is never idle, far below any
/// queue's length.
const OPENING_AT_ONCE: usize = 16;
/// A request that fails is not tried again at once: a server that is gone must not be asked a million times.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What all tasks count into.
#[derive(Default)]
struct Tally {
    answered: Cell<u64>,
    resumed: Cell<u64>,
    is_over: Cell<bool>,
    latencies_us: RefCell<Vec<u64>>,
    told: RefCell<Told>,
}

impl Tally {
    fn count(&self) {
        self.answered.set(self.answered.get() + 1);
    }
}

/// Does what the plan says.
///
/// # Errors
/// When the connections cannot be made, or the server is gone; later failures are results.
pub async fn work(plan: Plan) -> Result<Told> {
    let requests = Rc::new(Requests::new(&plan)?);
    let processors = Processors::of(&plan.process_ids)?;
    let tally = Rc::new(Tally::default());
    let milliseconds = Duration::from_millis;
    match plan.work {
        Work::Closed { connections, streams, warm_up_ms, lasts_ms, window_ms } => {
            for lane in open(&plan, connections, streams).await? {
                spawn_local(ask_again(lane, Rc::clone(&requests), Rc::clone(&tally)));
            }
            sleep(milliseconds(warm_up_ms)).await;
            look(&tally, &processors, milliseconds(lasts_ms), milliseconds(window_ms)).await?;
        }
        Work::Rate { per_s, connections, streams, warm_up_ms, lasts_ms, reconnects } => {
            ensure!(per_s > 0, "a rate of 0");
            ensure!(!reconnects || plan.protocol == Protocol::H1, "HTTP/1.1 is asked again");
            let again = reconnects.then(|| Connector::new(&plan, false)).transpose()?.map(Rc::new);
            let schedule = Arc::new(Schedule::default());
            for lane in open(&plan, connections, streams).await? {
                let (requests, tally) = (Rc::clone(&requests), Rc::clone(&tally));
                let again = again.clone();
                spawn_local(ask_when_due(lane, again, requests, tally, Arc::clone(&schedule)));
            }
            let ticker = thread::spawn({
                let schedule = Arc::clone(&schedule);
                move || release(&schedule, per_s)
            });
            sleep(milliseconds(warm_up_ms)).await;
            tally.latencies_us.borrow_mut().clear();
            // One stretch: at a rate the figure is the whole time's.
            look(&tally, &processors, milliseconds(lasts_ms), milliseconds(lasts_ms)).await?;
            schedule.is_over.store(true, Ordering::Relaxed);
            ensure!(ticker.join().is_ok(), "the ticking thread panicked");
            tally.told.borrow_mut().latency = Latency::of(tally.latencies_us.take());
        }
        Work::Handshakes { resumed, at_once, warm_up_ms, lasts_ms, window_ms } => {
            for _ in 0..at_once {
                // Sessions of its own each: a ticket is good for one connection.
                let connector = Connector::new(&plan, resumed)?;
                let (requests, tally) = (Rc::clone(&requests), Rc::clone(&tally));
                spawn_local(shake_hands(connector, plan.protocol, requests, tally));
            }
            sleep(milliseconds(warm_up_ms)).await;
            tally.resumed.set(0);
            look(&tally, &processors, milliseconds(lasts_ms), milliseconds(window_ms)).await?;
            tally.told.borrow_mut().resumed = tally.resumed.get();
        }
        Work::Once => {
            let connector = Connector::new(&plan, false)?;
            match shake_hands_once(&connector, plan.protocol, &requests).await {
                Ok(_resumed) => tally.told.borrow_mut().answered = 1,
                Err(why) => tally.told.borrow_mut().fail(&why),
            }
        }
        Work::Hold { connections } => hold(&plan, connections, &requests, &tally).await?,
    }
    tally.is_over.set(true);
    Ok(tally.told.take())
}

/// Opens connections with so many lanes each, some at once.
async fn open(plan: &Plan, connections: usize, lanes: usize) -> Result<Vec<Lane>> {
    open_and(plan, connections, lanes, async |lanes| Ok(lanes)).await
}

/// The same, and has something done with each before the next is opened.
async fn open_and<T: 'static>(
    plan: &Plan,
    connections: usize,
    lanes: usize,
    then: impl AsyncFn(Vec<Lane>) -> Result<Vec<T>> + Clone + 'static,
) -> Result<Vec<T>> {
    let connector = Rc::new(Connector::new(plan, false)?);
    let left = Rc::new(Cell::new(connections));
    let tasks: Vec<_> = (0..OPENING_AT_ONCE)
        .map(|_| {
            let (connector, left) = (Rc::clone(&connector), Rc::clone(&left));
            let (protocol, then) = (plan.protocol, then.clone());
            spawn_local(async move {
                let mut opened = Vec::new();
                while let Some(fewer) = left.get().checked_sub(1) {
                    left.set(fewer);
                    opened.extend(then(Lane::open(&connector, protocol, lanes).await?).await?);
                }
                anyhow::Ok(opened)
            })
        })
        .collect();
    let mut opened = Vec::new();
    for task in tasks {
        opened.extend(task.await??);
    }
    Ok(opened)
}

async fn ask_again(mut lane: Lane, requests: Rc<Requests>, tally: Rc<Tally>) {
    while !tally.is_over.get() {
        match lane.ask(&requests).await {
            Ok(()) => tally.count(),
            Err(why) => {
                tally.told.borrow_mut().fail(&why);
                sleep(AFTER_FAILURE).await;
                return;
            }
        }
    }
}

/// Watches answers and the server's time pass by, stretch after stretch.
async fn look(
    tally: &Tally,
    processors: &Processors,
    lasts: Duration,
    window: Duration,
) -> Result<()> {
    let start = clock::now();
    let answered_before = tally.answered.get();
    let switches_before = processors.switches();
    let ticks_before = processors.ticks();
    let mut before = Stretch { answered: answered_before, used: processors.used()? };
    let mut stretches = Vec::new();
    while start.elapsed() < lasts {
        sleep(window).await;
        let after = Stretch { answered: tally.answered.get(), used: processors.used()? };
        stretches.push(Stretch {
            answered: after.answered - before.answered,
            used: after.used.saturating_sub(before.used),
        });
        before = after;
    }
    let switches = processors.switches();
    let mut told = tally.told.borrow_mut();
    told.answered = before.answered - answered_before;
    let each =
        |after: u64, before: u64| after.saturating_sub(before) as f64 / told.answered.max(1) as f64;
    let voluntary = each(switches.voluntary, switches_before.voluntary);
    let involuntary = each(switches.involuntary, switches_before.involuntary);
    (told.voluntary_per_request, told.involuntary_per_request) = (voluntary, involuntary);
    told.elapsed_s = start.elapsed().as_secs_f64();
    (told.cpu_us_low, told.cpu_us_mean) = cpu_us(&stretches);
    told.kernel_us = told.cpu_us_low * processors.ticks().kernel_share(ticks_before);
    Ok(())
}

/// Moments at which requests are due, and have not been asked yet.
struct Schedule {
    due: Mutex<VecDeque<Instant>>,
    waiting: Semaphore,
    is_over: AtomicBool,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            due: Mutex::default(),
            waiting: Semaphore::new(0),
            is_over: AtomicBool::new(false),
        }
    }
}

impl Schedule {
    fn due(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes requests due at their moments, on a thread of its own: the runtime's timers are good for
/// milliseconds only.
fn release(schedule: &Schedule, per_s: u32) {
    let period = Duration::from_secs(1) / per_s;
    // Without this the kernel may be 50 µs late to save power.
    let _inexact = nix::sys::prctl::set_timerslack(1);
    let start = clock::now();
    let mut number: u32 = 0;
    while !schedule.is_over.load(Ordering::Relaxed) {
        let now = clock::now();
        let mut released = 0;
        while start + period * number <= now {
            schedule.due().push_back(start + period * number);
            number += 1;
            released += 1;
        }
        schedule.waiting.add_permits(released);
        thread::sleep((start + period * number).saturating_duration_since(clock::now()));
    }
}

/// With `again`, a connection that ended is replaced.
async fn ask_when_due(
    mut lane: Lane,
    again: Option<Rc<Connector>>,
    requests: Rc<Requests>,
    tally: Rc<Tally>,
    schedule: Arc<Schedule>,
) {
    while let Ok(permit) = schedule.waiting.acquire().await {
        permit.forget();
        let Some(due) = schedule.due().pop_front() else { continue };
        let mut asked = lane.ask(&requests).await;
        if let (Err(why), Some(connector)) = (&asked, &again)
            && !why.is::<http1::OtherAnswer>()
        {
            tally.told.borrow_mut().reconnected += 1;
            asked = ask_anew(&mut lane, connector, &requests).await;
        }
        if let Err(why) = asked {
            tally.told.borrow_mut().fail(&why);
            if again.is_none() {
                return;
            }
            sleep(AFTER_FAILURE).await;
            continue;
        }
        tally.count();
        let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        tally.latencies_us.borrow_mut().push(us);
    }
}

async fn ask_anew(lane: &mut Lane, connector: &Connector, requests: &Requests) -> Result<()> {
    *lane = Lane::Http1(http1::Connection::new(connector.connect().await?));
    lane.ask(requests).await
}

async fn shake_hands(
    connector: Connector,
    protocol: Protocol,
    requests: Rc<Requests>,
    tally: Rc<Tally>,
) {
    while !tally.is_over.get() {
        match shake_hands_once(&connector, protocol, &requests).await {
            Ok(resumed) => {
                tally.count();
                tally.resumed.set(tally.resumed.get() + u64::from(resumed));
            }
            Err(why) => {
                tally.told.borrow_mut().fail(&why);
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// Whether it resumed an earlier session.
async fn shake_hands_once(
    connector: &Connector,
    protocol: Protocol,
    requests: &Requests,
) -> Result<bool> {
    if protocol == Protocol::H3 {
        let connection = http3::Connection::new(connector.connect_quic().await?).await?;
        let mut lane = Lane::Http3(connection.clone());
        lane.ask(requests).await?;
        connection.close();
        // quinn does not tell; nobody asks for it.
        return Ok(false);
    }
    ensure!(protocol == Protocol::H1, "handshakes are shown with HTTP/1.1 and HTTP/3");
    let stream = connector.connect().await?;
    let resumed = is_resumed(&stream);
    let mut lane = Lane::Http1(http1::Connection::new(stream));
    lane.ask(requests).await?;
    if let Lane::Http1(connection) = lane {
        connection.close().await?;
    }
    Ok(resumed)
}

/// Opens them, asks once on each, says so and waits.
async fn hold(
    plan: &Plan,
    connections: usize,
    requests: &Rc<Requests>,
    tally: &Tally,
) -> Result<()> {
    let requests = Rc::clone(requests);
    let held = open_and(plan, connections, 1, async move |mut lanes: Vec<Lane>| {
        for lane in &mut lanes {
            lane.ask(&requests).await?;
        }
        Ok(lanes)
    });
    let held: Vec<Lane> = held.await?.into_iter().map(Lane::at_rest).collect();
    println!("{{\"held\":{}}}", held.len());
    std::io::stdout().flush()?;
    // Nothing else is to be done meanwhile: the server may end them, and nobody here minds.
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    tally.told.borrow_mut().answered = u64::try_from(held.len())?;
    Ok(())
}
