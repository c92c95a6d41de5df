//! The daemon's side: the agent's process, and the filter as it is told through it.

use std::{
    cell::{Cell, RefCell},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
    thread,
    time::Duration,
};

use gateway_ebpf::Source;
use ipnet::IpNet;

use super::{
    AgentError,
    channel::{Channel, ChannelError, Kind, Message},
    message::{Answer, ClassChange, News, Request, decode, encode},
    wire::WireError,
};
use crate::{
    kernel::{
        Ban, BanEntry, BanOutcome, Class, Count, Detached, DropEvent, KernelError, PrefixBan,
        PrefixBanEntry, PrefixBanOutcome, Reattached, Settings, SourceState, Status, TopSource,
    },
    time,
};

/// For an answer. It takes microseconds; a list of all bans, or a crowded machine, some more. The daemon
/// waits so long once, and asks nothing more until the answer has come: its service manager may wait no
/// longer than 30 s for a sign of life.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// For one that has the kernel verify the program, which takes seconds on an emulated processor, or
/// waits until the pins are free.
const LOAD_MAX: Duration = Duration::from_secs(120);

/// News kept until somebody asks for them: one agent a second may end, and each second is asked.
const NEWS_MAX: usize = 64;

/// It ends when it hears that nobody is at the other end any more.
const END_MAX_TRIES: u32 = 500;
const END_PAUSE: Duration = Duration::from_millis(2);

/// The process that holds what the daemon gives up.
#[derive(Debug)]
pub struct Agent {
    guard: RefCell<Child>,
    line: RefCell<Option<Line>>,
    /// Agents that came, and that ended.
    came: Cell<u32>,
    ended: Cell<u32>,
    is_loss_told: Cell<bool>,
    /// The question that it has not answered in time, nor since.
    unanswered: Cell<Option<u32>>,
    is_silence_told: Cell<bool>,
}

/// To the agent and back.
#[derive(Debug)]
struct Line {
    channel: Channel,
    number: u32,
    news: Vec<News>,
}

impl Agent {
    /// Starts it. To be called before this process has threads, gives anything up or hears from anybody.
    ///
    /// # Errors
    /// [`AgentError::NotStarted`].
    pub fn start(
        config: &Path,
        program: &Path,
        pin: Option<&Path>,
    ) -> Result<Rc<Self>, AgentError> {
        let begin = || -> io::Result<(Child, Channel)> {
            let (here, there) = Channel::pair()?;
            // The very program that runs, whatever is at its path by now.
            let mut guard = Command::new("/proc/self/exe");
            guard.arg0("portcullis").arg("--config").arg(config);
            guard.arg("agent").arg("--program").arg(program);
            if let Some(pin) = pin {
                guard.arg("--pin").arg(pin);
            }
            let guard = guard.stdin(Stdio::from(there)).spawn()?;
            Ok((guard, Channel::new(here)?))
        };
        let (guard, channel) = begin().map_err(AgentError::NotStarted)?;
        let line = Line { channel, number: 0, news: Vec::new() };
        Ok(Rc::new(Self {
            guard: RefCell::new(guard),
            line: RefCell::new(Some(line)),
            came: Cell::new(0),
            ended: Cell::new(0),
            is_loss_told: Cell::new(false),
            unanswered: Cell::new(None),
            is_silence_told: Cell::new(false),
        }))
    }

    /// What happened since the last time; to be asked again and again.
    pub fn news(&self) -> Vec<News> {
        let mut place = self.line.borrow_mut();
        let Some(line) = place.as_mut() else { return Vec::new() };
        let told = self.listen(line);
        let news = std::mem::take(&mut line.news);
        if told.is_err() {
            *place = None;
        }
        news
    }

    /// Whether there is one that answers, or will in a moment.
    pub fn is_there(&self) -> bool {
        let (came, ended) = (self.came.get(), self.ended.get());
        !self.is_gone() && !self.is_silent() && (ended == 0 || came > ended)
    }

    /// Whether it owes an answer for too long. It is stopped, or has too little of the machine.
    pub fn is_silent(&self) -> bool {
        self.unanswered.get().is_some()
    }

    /// [`Agent::is_silent`], once for each silence.
    pub fn fell_silent(&self) -> bool {
        let is_silent = self.is_silent();
        !self.is_silence_told.replace(is_silent) && is_silent
    }

    /// Whether there is none, and none will be: who would start another is gone too.
    pub fn is_gone(&self) -> bool {
        self.line.borrow().is_none()
    }

    /// [`Agent::is_gone`], once.
    pub fn was_lost(&self) -> bool {
        self.is_gone() && !self.is_loss_told.replace(true)
    }

    /// Starts the program that is installed now, to take over from this process; gives its number.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn upgrade(&self) -> Result<u32, KernelError> {
        match self.ask(&Request::Upgrade(()), ANSWER_MAX)? {
            Answer::Process(pid) => Ok(pid),
            _ => Err(AgentError::Strange.into()),
        }
    }

    /// How that program ended, once it has.
    ///
    /// # Errors
    /// Nobody knows any more.
    pub fn successor_ended(&self) -> Result<Option<String>, KernelError> {
        match self.ask(&Request::Successor(()), ANSWER_MAX)? {
            Answer::Ended(how) => Ok(how),
            _ => Err(AgentError::Strange.into()),
        }
    }

    /// Removes the filter and all pins.
    ///
    /// # Errors
    /// What is in the way.
    pub fn detach(&self) -> Result<Detached, KernelError> {
        match self.ask(&Request::Detach(()), ANSWER_MAX)? {
            Answer::Detached(detached) => Ok(detached),
            _ => Err(AgentError::Strange.into()),
        }
    }

    /// Takes what has come already.
    fn listen(&self, line: &mut Line) -> Result<(), AgentError> {
        let now = time::monotonic();
        while let Some(message) = line.channel.receive_until(now)? {
            self.hear(line, &message);
        }
        Ok(())
    }

    fn hear(&self, line: &mut Line, message: &Message) {
        if message.kind != Kind::News {
            // An answer to a question that was given up is no news, but a sign of life.
            if self.unanswered.get() == Some(message.number) {
                self.unanswered.set(None);
            }
            return;
        }
        let Ok(news) = decode::<News>(&message.bytes) else { return };
        // What one before it was asked, another one does not know.
        self.unanswered.set(None);
        let count = match news {
            News::Ended(_) => &self.ended,
            News::Ready(()) => &self.came,
        };
        count.set(count.get().wrapping_add(1));
        if line.news.len() < NEWS_MAX {
            line.news.push(news);
        }
    }

    /// One question, one answer.
    fn ask(&self, request: &Request, wait: Duration) -> Result<Answer, KernelError> {
        let mut place = self.line.borrow_mut();
        let Some(line) = place.as_mut() else { return Err(AgentError::Gone.into()) };
        match self.ask_by(line, request, wait) {
            Ok(Answer::Failed(error)) => Err(error),
            Ok(answer) => Ok(answer),
            Err(AgentError::Gone) => {
                *place = None;
                Err(AgentError::Gone.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn ask_by(
        &self,
        line: &mut Line,
        request: &Request,
        wait: Duration,
    ) -> Result<Answer, AgentError> {
        self.listen(line)?;
        let ended = self.ended.get();
        if ended > 0 && self.came.get() <= ended {
            return Err(AgentError::Ended);
        }
        // Who owes an answer is asked nothing more: each question would stand still as long again.
        if self.is_silent() {
            return Err(AgentError::Silent);
        }
        line.number = line.number.wrapping_add(1);
        let number = line.number;
        line.channel.send(&Message { kind: Kind::Request, number, bytes: encode(request) })?;
        let end = time::monotonic() + wait;
        while let Some(message) = line.channel.receive_until(end)? {
            if message.kind == Kind::Answer && message.number == number {
                return decode(&message.bytes).map_err(|_: WireError| AgentError::Strange);
            }
            self.hear(line, &message);
            if self.ended.get() != ended {
                return Err(AgentError::Ended);
            }
        }
        self.unanswered.set(Some(number));
        Err(AgentError::Silent)
    }
}

impl From<ChannelError> for AgentError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Closed => Self::Gone,
            ChannelError::Silent => Self::Silent,
            ChannelError::TooLong => Self::TooLong,
            ChannelError::Head | ChannelError::Wire(_) => Self::Strange,
            ChannelError::System(error) => Self::System(error),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // That is what it ends by.
        self.line.take();
        let guard = self.guard.get_mut();
        for _ in 0..END_MAX_TRIES {
            if !matches!(guard.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(END_PAUSE);
        }
    }
}

/// The filter, told through the agent: it has the methods of [`crate::kernel::Kernel`] that the daemon
/// uses. Dropping it leaves the filter in force, and lets another process have its maps.
#[derive(Debug)]
pub struct Filter {
    agent: Rc<Agent>,
    /// As they are in force, for an agent that knows nothing yet.
    settings: Settings,
    /// As it was last told.
    last: RefCell<Status>,
    /// After how many others came the agent that knows of it.
    told_after: Cell<Option<u32>>,
}

/// Asks, and takes the one answer that there is to it.
macro_rules! ask {
    ($filter:expr, $request:expr, $wait:expr => $answer:ident) => {
        match $filter.ask(&$request, $wait) {
            Ok(Answer::$answer(value)) => Ok(value),
            Ok(_) => Err(KernelError::from(AgentError::Strange)),
            Err(error) => Err(error),
        }
    };
    ($filter:expr, $request:expr => $answer:ident) => {
        ask!($filter, $request, ANSWER_MAX => $answer)
    };
}

impl Filter {
    /// Attaches the filter to every interface, taking over one that an earlier run left in force; with
    /// what is worth telling.
    ///
    /// # Errors
    /// Says why, and leaves nothing behind that was not there before.
    pub fn start(
        agent: &Rc<Agent>,
        settings: &Settings,
    ) -> Result<(Self, Vec<String>), KernelError> {
        let filter = Self {
            agent: agent.clone(),
            settings: settings.clone(),
            last: RefCell::new(Status {
                interfaces: Vec::new(),
                enforce: settings.enforce,
                fills: Vec::new(),
                evictions: 0,
                events_lost: 0,
            }),
            told_after: Cell::new(None),
        };
        let notices = filter.tell_all()?;
        Ok((filter, notices))
    }

    /// Tells an agent that knows of nothing yet everything that the one before it knew; the filter went
    /// on meanwhile.
    ///
    /// # Errors
    /// It does not take it, and is to be told again.
    pub fn tell_all(&self) -> Result<Vec<String>, KernelError> {
        let after = self.agent.ended.get();
        let notices = match self.agent.ask(&Request::Start(self.settings.clone()), LOAD_MAX)? {
            Answer::Notices(notices) => notices,
            _ => return Err(AgentError::Strange.into()),
        };
        self.told_after.set(Some(after));
        self.status();
        Ok(notices)
    }

    /// Whether there is an agent that knows of the filter. If not, the filter goes on as it is.
    pub fn is_told(&self) -> bool {
        self.told_after.get() == Some(self.agent.ended.get()) && !self.agent.is_gone()
    }

    /// What it was asked meanwhile it does not know, and is to be told of anew.
    fn forget_silent(&self) {
        if self.agent.is_silent() {
            self.told_after.set(None);
        }
    }

    fn ask(&self, request: &Request, wait: Duration) -> Result<Answer, KernelError> {
        if self.agent.is_gone() {
            return Err(AgentError::Gone.into());
        }
        if !self.is_told() {
            let why = if self.agent.is_silent() { AgentError::Silent } else { AgentError::Ended };
            return Err(why.into());
        }
        let answer = self.agent.ask(request, wait);
        self.forget_silent();
        answer
    }

    /// Takes over changed settings while the filter goes on.
    ///
    /// # Errors
    /// The old settings stay in force then.
    pub fn apply(&mut self, settings: &Settings) -> Result<Vec<String>, KernelError> {
        let notices = ask!(self, Request::Apply(settings.clone()), LOAD_MAX => Notices)?;
        self.settings = settings.clone();
        Ok(notices)
    }

    /// Switches between dropping and only counting.
    ///
    /// # Errors
    /// It does as before.
    pub fn set_enforce(&mut self, enforce: bool) -> Result<(), KernelError> {
        ask!(self, Request::Enforce(enforce) => Done)?;
        self.settings.enforce = enforce;
        Ok(())
    }

    /// Sets bans, each on its own: one that is refused does not keep the others.
    pub fn ban(&self, bans: &[Ban]) -> Vec<(Source, BanOutcome)> {
        match ask!(self, Request::Ban(bans.to_vec()) => Banned) {
            Ok(outcomes) if outcomes.len() == bans.len() => outcomes,
            outcome => {
                let why = outcome.err().unwrap_or_else(|| AgentError::Strange.into()).to_string();
                let told = || KernelError::Told { text: why.clone(), capability: None };
                bans.iter().map(|ban| (ban.source, BanOutcome::Failed(told()))).collect()
            }
        }
    }

    /// Lifts bans; tells how many there were.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn unban(&self, sources: &[Source]) -> Result<usize, KernelError> {
        ask!(self, Request::Unban(sources.to_vec()) => Number)
    }

    /// Gives a source more or less than everybody for a while; false when there is no room.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_class(
        &self,
        source: Source,
        class: Class,
        lasts: Duration,
    ) -> Result<bool, KernelError> {
        ask!(self, Request::SetClass(ClassChange { source, class, lasts }) => Is)
    }

    /// Bans every source of a prefix.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn ban_prefix(&self, ban: &PrefixBan) -> Result<PrefixBanOutcome, KernelError> {
        ask!(self, Request::BanPrefix(*ban) => PrefixBanned)
    }

    /// Lifts the ban of exactly this prefix; false when there is none.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn unban_prefix(&self, net: IpNet) -> Result<bool, KernelError> {
        ask!(self, Request::UnbanPrefix(net) => Is)
    }

    /// Every banned prefix.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn prefix_bans(&self) -> Result<Vec<PrefixBanEntry>, KernelError> {
        ask!(self, Request::PrefixBans(()) => PrefixBans)
    }

    /// Every banned source.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn bans(&self) -> Result<Vec<BanEntry>, KernelError> {
        ask!(self, Request::Bans(()) => Bans)
    }

    /// Removes bans that are over; tells how many.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sweep(&self) -> Result<usize, KernelError> {
        ask!(self, Request::Sweep(()) => Number)
    }

    /// Everything known about a source.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn explain(&self, source: Source) -> Result<SourceState, KernelError> {
        ask!(self, Request::Explain(source) => Source)
    }

    /// The sources that have used most of what they may have, at most so many.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn top(&self, max: usize) -> Result<Vec<TopSource>, KernelError> {
        ask!(self, Request::Top(max) => Top)
    }

    /// Frames that were dropped, or would have been, since the last call: at most so many. None when
    /// nobody is there to tell of them.
    pub fn take_events(&self, max: usize) -> Vec<DropEvent> {
        ask!(self, Request::TakeEvents(max) => Events).unwrap_or_default()
    }

    /// What was counted on each interface since its maps were made.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn counters(&self) -> Result<Vec<Count>, KernelError> {
        ask!(self, Request::Counters(()) => Counters)
    }

    /// How things stand; as they stood, when nobody is there to tell.
    pub fn status(&self) -> Status {
        if let Ok(status) = ask!(self, Request::Status(()) => Status) {
            *self.last.borrow_mut() = status;
        }
        self.last.borrow().clone()
    }

    /// Guards every configured interface again that is without the program, which the kernel has verified
    /// already. Asked each second, so it must not be waited for as long as a load.
    pub fn reattach(&self) -> Vec<Reattached> {
        ask!(self, Request::Reattach(()) => Reattached).unwrap_or_default()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // Without an agent nobody holds the maps.
        let _ = self.ask(&Request::Stop(()), ANSWER_MAX);
    }
}
