//! Where operators and monitors come in: two sockets that a reload may move.

use std::{
    cell::RefCell,
    io,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::unistd::Gid;
use tokio::task::AbortHandle;

use super::{answer_monitors, answer_operators, control::Control};
use crate::{
    admin::socket,
    config::Admin,
    net::{
        handover::Offered,
        listen::{self, ListenError},
    },
};

/// The sockets, held so that they can be given to others; tasks answer on copies.
#[derive(Debug)]
pub(super) struct Doors {
    sockets: RefCell<Sockets>,
    answering: RefCell<Vec<AbortHandle>>,
}

/// The operators' and the monitors'.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) operators: UnixListener,
    pub(super) monitors: TcpListener,
}

/// Sockets in place of those there are; `None`: it stays.
#[derive(Debug)]
pub(super) struct Moved {
    operators: Option<Fresh>,
    monitors: Option<TcpListener>,
    /// The operators' socket stays, and is another group's from now on.
    given: Option<(PathBuf, Gid)>,
}

/// An operators' socket that nobody answers at yet. Its file goes with it, unless it is taken: where the
/// rest of a change is refused, there is to be no file that leads nowhere.
#[derive(Debug)]
struct Fresh {
    socket: Option<UnixListener>,
    path: PathBuf,
}

impl Fresh {
    fn bind(path: &Path, group: Option<&str>) -> Result<Fresh, String> {
        Ok(Fresh { socket: Some(socket::bind(path, group)?), path: path.to_owned() })
    }

    fn take(mut self) -> Option<UnixListener> {
        self.socket.take()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.socket.is_some() {
            // That it is gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Doors {
    pub(super) fn new(sockets: Sockets) -> Doors {
        Doors { sockets: RefCell::new(sockets), answering: RefCell::default() }
    }

    /// Binds what is to be elsewhere.
    ///
    /// # Errors
    /// One sentence: what, where, what to do.
    pub(super) fn prepare(before: &Admin, after: &Admin) -> Result<Moved, String> {
        let monitors = (before.metrics != after.metrics)
            .then(|| listen::single(after.metrics))
            .transpose()
            .map_err(|error: ListenError| error.to_string())?;
        let bind = || Fresh::bind(&after.socket, after.group.as_deref());
        let operators = (before.socket != after.socket).then(bind).transpose()?;
        let is_regrouped = operators.is_none() && before.group != after.group;
        let group = after.group.as_deref().filter(|_| is_regrouped);
        let given = group.map(socket::group).transpose()?.map(|gid| (after.socket.clone(), gid));
        Ok(Moved { operators, monitors, given })
    }

    /// Answers there from now on, and no longer where it was before.
    pub(super) fn take(&self, control: &Rc<Control>, moved: Moved, old_socket: &Path) {
        if let Some((path, gid)) = &moved.given
            && let Err(why) = socket::give_to(path, *gid)
        {
            tracing::error!(detail = why, "[admin].group is not in force");
        }
        if moved.operators.is_none() && moved.monitors.is_none() {
            return;
        }
        let mut sockets = self.sockets.borrow_mut();
        if let Some(operators) = moved.operators.and_then(Fresh::take) {
            sockets.operators = operators;
            // Nobody answers there any more; that it is gone already is as good.
            let _ = std::fs::remove_file(old_socket);
        }
        if let Some(monitors) = moved.monitors {
            sockets.monitors = monitors;
        }
        drop(sockets);
        self.close();
        self.open(control);
    }

    /// Answers operators and monitors.
    pub(super) fn open(&self, control: &Rc<Control>) {
        let sockets = self.sockets.borrow();
        let operators = sockets.operators.try_clone().and_then(tokio::net::UnixListener::from_std);
        let monitors = sockets.monitors.try_clone().and_then(tokio::net::TcpListener::from_std);
        let mut answering = self.answering.borrow_mut();
        match operators {
            Ok(socket) => {
                let task = tokio::task::spawn_local(answer_operators(control.clone(), socket));
                answering.push(task.abort_handle());
            }
            Err(error) => tracing::error!(error = %error, "operators are not answered"),
        }
        match monitors {
            Ok(socket) => {
                let task = tokio::task::spawn_local(answer_monitors(control.clone(), socket));
                answering.push(task.abort_handle());
            }
            Err(error) => tracing::error!(error = %error, "monitors are not answered"),
        }
    }

    /// Copies of the sockets, to be given to another process.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub(super) fn offered(&self) -> io::Result<Vec<(Offered, OwnedFd)>> {
        let sockets = self.sockets.borrow();
        let address = sockets.monitors.local_addr()?;
        Ok(vec![
            (Offered::Monitors { address }, sockets.monitors.try_clone()?.into()),
            (Offered::Operators, sockets.operators.try_clone()?.into()),
        ])
    }

    /// Takes no more questions; who asked already is answered.
    pub(super) fn close(&self) {
        for task in self.answering.borrow_mut().drain(..) {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_taken_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let fresh = Fresh::bind(&path, None).unwrap();
        assert!(path.exists());
        drop(fresh);
        assert!(!path.exists());
        let taken = Fresh::bind(&path, None).unwrap().take();
        assert!(taken.is_some() && path.exists());
    }
}
