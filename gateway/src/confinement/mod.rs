//! What the process that reads bytes from the network gives up before it reads any.
//!
//! Its capabilities but for binding low ports, the way to get others back, core dumps, all files but
//! those that its configuration leads to (landlock(7), since Linux 5.13), and system calls that it never
//! makes (seccomp(2)). What takes more than is left is done by the [`crate::kernel::agent`].
//!
//! To be called while the process has one thread: capabilities belong to threads. A kernel without one
//! of these is no reason not to serve; it is said.

mod calls;
mod capabilities;
mod files;

use std::path::Path;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

pub use self::files::Reach;

/// What was given up, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Capabilities that are left, by name.
    pub capabilities: Vec<&'static str>,
    /// Whether files are out of reach but for those that were named.
    pub is_confined_to_files: bool,
    /// Whether system calls that are never made are refused.
    pub is_confined_to_calls: bool,
    /// What could not be given up, and why: one sentence each.
    pub lacking: Vec<String>,
}

/// Gives everything up, for this thread and all that it will start.
pub fn confine(reach: &Reach) -> Confinement {
    let mut confinement = Confinement::default();
    if cfg!(portcullis_unconfined) {
        // A leak sanitizer needs ptrace(2) and its own way through the process' files.
        confinement.lacking.push("nothing is given up: this was built for a sanitizer".to_owned());
        return confinement;
    }
    let mut note = |what: &str, error: String| confinement.lacking.push(format!("{what}: {error}"));
    // Neither a core file nor a debugger shows keys; and no program that is executed gains anything.
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        note("core dumps are not off", error.to_string());
    }
    if let Err(error) = prctl::set_dumpable(false) {
        note("memory is open to a debugger of the same user", error.to_string());
    }
    if let Err(error) = prctl::set_no_new_privs() {
        note("programs may gain privileges", error.to_string());
    }
    match capabilities::keep_few() {
        Ok(left) => confinement.capabilities = left,
        Err(error) => note("capabilities are not given up", error.to_string()),
    }
    let is_root = nix::unistd::geteuid().is_root();
    match files::confine(reach, is_root) {
        Ok(None) => confinement.is_confined_to_files = true,
        Ok(Some(lack)) => note("files are not confined", lack),
        Err(error) => note("files are not confined", error),
    }
    match calls::confine() {
        Ok(()) => confinement.is_confined_to_calls = true,
        Err(error) => note("system calls are not confined", error.to_string()),
    }
    confinement
}

impl Confinement {
    /// Why something failed while it ran; with the remedy, when it may be for want of a file that was
    /// not named when it started.
    pub fn explained(&self, why: String) -> String {
        let is_refused =
            ["may not be read", "Permission denied"].iter().any(|text| why.contains(text));
        if !self.is_confined_to_files || !is_refused {
            return why;
        }
        format!(
            "{why}; the daemon reaches only the directories that its configuration named when it \
             started: if the file is in another, `portcullis upgrade` applies this"
        )
    }

    /// One line for the log.
    pub fn in_words(&self) -> String {
        let of = |is: bool| if is { "confined" } else { "not confined" };
        let capabilities = match self.capabilities.as_slice() {
            [] => "none".to_owned(),
            left => left.join(" "),
        };
        format!(
            "capabilities: {capabilities}; files: {}; system calls: {}",
            of(self.is_confined_to_files),
            of(self.is_confined_to_calls)
        )
    }
}

/// What a directory of a configuration is for a relative path without one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_left() {
        let confinement = Confinement {
            capabilities: vec!["CAP_NET_BIND_SERVICE"],
            is_confined_to_files: true,
            ..Confinement::default()
        };
        assert_eq!(
            confinement.in_words(),
            "capabilities: CAP_NET_BIND_SERVICE; files: confined; system calls: not confined"
        );
        assert!(Confinement::default().in_words().starts_with("capabilities: none;"));
    }

    #[test]
    fn what_may_be_its_own_doing_is_explained() {
        let confined = Confinement { is_confined_to_files: true, ..Confinement::default() };
        for (confinement, why, is_explained) in [
            (&confined, "/a/key may not be read; give it", true),
            (&confined, "cannot bind /b/admin.sock: Permission denied (os error 13)", true),
            (&confined, "/a/key does not exist", false),
            (&Confinement::default(), "/a/key may not be read; give it", false),
        ] {
            let said = confinement.explained(why.to_owned());
            assert!(said.starts_with(why));
            assert_eq!(said.contains("portcullis upgrade"), is_explained, "{why}");
        }
    }

    #[test]
    fn a_file_without_a_directory_is_in_the_present_one() {
        for (path, expected) in [("x.toml", "."), ("etc/x.toml", "etc"), ("/x.toml", "/")] {
            assert_eq!(parent(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
