//! Where the tasks of HTTP/2 run.

use std::future::Future;

use hyper::rt::Executor;

/// Runs them on the thread that made them; only inside a [`tokio::task::LocalSet`].
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
