//! Files that the configuration names, followed while the daemon runs: what changed is read and
//! published, what is not good is said once and tried again, and what ran goes on running.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::MissedTickBehavior};

use super::{
    control::Control,
    material::{self, MaterialError, Refreshed},
};
use crate::{
    admin::metrics::Reading,
    config::Config,
    snapshot::Snapshot,
    time,
    watch::{self, LOOK_EVERY, Watch},
};

/// A file that is not good is tried again after this, changed or not: what kept it from being read
/// may have been elsewhere (too many open files, a directory's permissions).
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// The files, and what became of them.
#[derive(Debug)]
pub(super) struct Followed {
    watch: Watch,
    /// Why a file is not in use as it is now. What it is a part of is served as it was before.
    refused: BTreeMap<PathBuf, String>,
    retry_at: Instant,
    /// Snapshots published because files had changed.
    taken: u64,
    /// Files refused, each time anew.
    refusals: u64,
}

impl Followed {
    /// Looks at every file of the configuration. To be done before they are read, so that a change
    /// in between is not missed.
    pub(super) fn look(config: &Config) -> Watch {
        Watch::new(watch::marks(material::files(config)))
    }

    /// Follows files whose last reading was good.
    pub(super) fn new(watch: Watch) -> Followed {
        let retry_at = time::monotonic();
        Followed { watch, refused: BTreeMap::new(), retry_at, taken: 0, refusals: 0 }
    }

    /// After a reload: other files, all of them read and good.
    pub(super) fn replace(&mut self, watch: Watch) {
        self.watch = watch;
        self.refused.clear();
    }

    /// What is not in use as it is now, and why.
    pub(super) fn refused(&self) -> &BTreeMap<PathBuf, String> {
        &self.refused
    }

    /// For the page of metrics.
    pub(super) fn readings(&self) -> [Reading; 2] {
        let result = |result: &str, count: u64| (vec![("result", result.to_owned())], count as f64);
        [
            Reading {
                name: "gateway_file_changes_total",
                help: "Changes of certificates, keys and lists that were taken, and files refused.",
                kind: "counter",
                series: vec![result("taken", self.taken), result("refused", self.refusals)],
            },
            Reading {
                name: "gateway_files_refused",
                help: "Files that are not good now; what they are a part of is as it was before.",
                kind: "gauge",
                series: vec![(Vec::new(), self.refused.len() as f64)],
            },
        ]
    }

    /// The files that are to be read now.
    fn due(&mut self, marks: Vec<(PathBuf, watch::Mark)>, now: Instant) -> BTreeSet<PathBuf> {
        let mut due = self.watch.observe(marks, now);
        if due.is_empty() && !self.refused.is_empty() && now >= self.retry_at {
            due = self.refused.keys().cloned().collect();
        }
        if !due.is_empty() {
            self.retry_at = now + RETRY_EVERY;
        }
        due
    }

    /// Takes note of a reading; gives what has not been said before, and what is good again.
    fn note(
        &mut self,
        read: &BTreeSet<PathBuf>,
        errors: Vec<MaterialError>,
    ) -> (Vec<MaterialError>, Vec<PathBuf>) {
        let before: BTreeMap<_, _> = read
            .iter()
            .filter_map(|file| Some((file.clone(), self.refused.remove(file)?)))
            .collect();
        let is_new = |error: &MaterialError| before.get(&error.file) != Some(&error.text);
        let new: Vec<_> = errors.iter().filter(|error| is_new(error)).cloned().collect();
        self.refusals += new.len() as u64;
        self.refused.extend(errors.into_iter().map(|error| (error.file, error.text)));
        let good = before.into_keys().filter(|file| !self.refused.contains_key(file)).collect();
        (new, good)
    }
}

/// Follows the files until the process ends. Files are looked at and read on a thread of their own:
/// one on a network that hangs holds up nobody, and a list of a million entries no evidence.
pub(super) async fn follow(control: Rc<Control>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let paths = control.followed(|files| files.watch.paths());
        let Ok(marks) = spawn_blocking(move || watch::marks(paths)).await else { continue };
        let due = control.followed(|files| files.due(marks, time::monotonic()));
        if due.is_empty() {
            continue;
        }
        let (config, before): (Config, Arc<Snapshot>) = control.in_force();
        let reloads = control.generation();
        let number = before.generation + 1;
        let reading = move || material::refresh(&config, &before, &due, number);
        let Ok(Refreshed { snapshot, read, errors }) = spawn_blocking(reading).await else {
            continue;
        };
        // A reload in between has read everything later than this.
        if control.generation() != reloads {
            continue;
        }
        let (new, good) = control.followed(|files| files.note(&read, errors));
        for MaterialError { file, text } in new {
            tracing::error!(
                file = %file.display(),
                detail = text.replace('\n', "; "),
                "file refused: what it is a part of stays as it was"
            );
        }
        for file in good {
            tracing::info!(file = %file.display(), "file good again");
        }
        let Some(snapshot) = snapshot else { continue };
        let files: Vec<_> = read.iter().map(|file| file.display().to_string()).collect();
        tracing::info!(generation = number, files = files.join(" "), "files taken");
        control.publish(snapshot);
        control.followed(|files| files.taken += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(file: &str, text: &str) -> MaterialError {
        MaterialError { file: file.into(), text: text.to_owned() }
    }

    #[test]
    fn a_refusal_is_said_once_and_tried_again() {
        let paths = || ["a", "b"].map(PathBuf::from);
        let mut files = Followed::new(Watch::new(watch::marks(paths())));
        let start = time::monotonic();
        let read = BTreeSet::from(paths());
        for (what, errors, new, good) in [
            ("first", vec![error("a", "torn")], 1, 0),
            ("the same", vec![error("a", "torn")], 0, 0),
            ("another", vec![error("a", "empty")], 1, 0),
            ("of another file", vec![error("b", "empty")], 1, 1),
            ("none", vec![], 0, 1),
            ("again", vec![error("a", "torn")], 1, 0),
        ] {
            let told = files.note(&read, errors);
            assert_eq!((told.0.len(), told.1.len()), (new, good), "{what}");
        }
        assert_eq!(files.refusals, 4);
        let due =
            |files: &mut Followed, after| files.due(watch::marks(paths()), start + after).len();
        assert_eq!(due(&mut files, RETRY_EVERY), 1, "what is refused is tried");
        assert_eq!(due(&mut files, RETRY_EVERY + LOOK_EVERY), 0, "not all the time");
        assert_eq!(due(&mut files, RETRY_EVERY * 2), 1);
        files.note(&read, vec![]);
        assert_eq!(due(&mut files, RETRY_EVERY * 3), 0, "what is good is not");
    }
}
