//! Who asks on the operators' socket, and the line that is written of what they change.

use std::{fs, io};

use tokio::net::UnixStream;

use super::socket::Question;

/// Nobody logged in: what started the asker did so by itself (`proc_pid_loginuid(5)`).
const NO_LOGIN: u32 = u32::MAX;

/// The process at the other end, as the kernel took it down when it connected (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its effective user.
    uid: u32,
    /// Its effective group.
    gid: u32,
    /// Its number; `None` when it is in a namespace of its own.
    pid: Option<i32>,
    /// Who logged in, however they became `uid` since, as by sudo; `None` where nobody did, or the kernel
    /// does not keep it.
    login_uid: Option<u32>,
}

impl Asker {
    /// Of a connection.
    ///
    /// # Errors
    /// The kernel does not say, which it always does for a socket that is connected.
    pub fn of(stream: &UnixStream) -> io::Result<Asker> {
        let told = stream.peer_cred()?;
        let login_uid = told.pid().and_then(|pid| {
            // It may be gone already, or its number another's: then this is one clue less.
            let text = fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
            text.trim().parse().ok().filter(|uid| *uid != NO_LOGIN)
        });
        Ok(Asker { uid: told.uid(), gid: told.gid(), pid: told.pid(), login_uid })
    }

    /// Writes down that it asked for a change, and what came of it; questions that change nothing are
    /// nobody's business.
    pub fn audit(&self, question: &Question, outcome: Result<(), &str>) {
        let Some(change) = change(question) else { return };
        let (result, detail) = match outcome {
            Ok(()) => ("done", None),
            Err(why) => ("refused", Some(why)),
        };
        let Asker { uid, gid, pid, login_uid } = *self;
        let (command, on) = change;
        tracing::warn!(command, on, uid, gid, pid, login_uid, result, detail, "operator");
    }
}

/// What a question changes, in the words of the command line, and on what; `None`: nothing.
fn change(question: &Question) -> Option<(&'static str, Option<String>)> {
    match question {
        Question::Status
        | Question::Bans
        | Question::Explain { .. }
        | Question::Top
        | Question::Drops => None,
        Question::Ban { source, .. } => Some(("bans add", Some(source.to_string()))),
        Question::Unban { source } => Some(("bans remove", Some(source.to_string()))),
        Question::Reload => Some(("reload", None)),
        Question::Drain => Some(("drain", None)),
        Question::Upgrade => Some(("upgrade", None)),
        Question::TakeOver { version, .. } => Some(("take over", Some(version.clone()))),
        Question::Detach => Some(("detach", None)),
        Question::Enforce { enforce: true, .. } => Some(("enforce", None)),
        Question::Enforce { enforce: false, .. } => Some(("observe", None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_has_a_name_and_what_only_looks_has_none() {
        let source = "192.0.2.1/32".parse().unwrap();
        for (question, command) in [
            (Question::Status, None),
            (Question::Top, None),
            (Question::Explain { source }, None),
            (Question::Ban { source, for_s: 1, note: None }, Some("bans add")),
            (Question::Unban { source }, Some("bans remove")),
            (Question::Reload, Some("reload")),
            (Question::Detach, Some("detach")),
            (Question::Enforce { enforce: true, confirm_within_s: None }, Some("enforce")),
            (Question::Enforce { enforce: false, confirm_within_s: None }, Some("observe")),
        ] {
            assert_eq!(change(&question).map(|(command, _)| command), command, "{question:?}");
        }
    }
}
