//! Whoever follows what the XDP program drops, as `portcullis drops --json` tells it; started again when it
//! ends with its daemon.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::harness::gateway::Launch;

/// Rows kept between two looks: more than a flood's samples in a minute.
const ROWS_MAX: usize = 100_000;

/// A follower; ended when dropped.
#[derive(Debug)]
pub(super) struct Drops {
    child: Child,
    rows: Arc<Mutex<Vec<Value>>>,
}

impl Drops {
    /// Begins to follow.
    pub(super) fn follow(launch: &Launch) -> Result<Drops> {
        let mut command = launch.command(&["drops", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("portcullis drops")?;
        let stdout = child.stdout.take().context("piped above")?;
        let rows = Arc::<Mutex<Vec<Value>>>::default();
        thread::spawn({
            let rows = Arc::clone(&rows);
            move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                for row in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                    if rows.len() < ROWS_MAX {
                        rows.push(row);
                    }
                }
            }
        });
        Ok(Drops { child, rows })
    }

    /// The rows since they were last taken.
    pub(super) fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it has ended: its daemon, or the agent, is gone.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Drops {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _gone = self.child.kill();
        let _buried = self.child.wait();
    }
}
