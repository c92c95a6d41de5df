//! Which files stay within reach (landlock(7)): those that the configuration leads to, and what the
//! system's own libraries read.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, make_bitflags,
};

use super::parent;

/// The latest rights that are known here; of those that the kernel does not know yet it is not asked.
const RIGHTS: ABI = ABI::V5;

/// What the system's libraries read to look names up, to verify by the system's authorities and to know
/// the time zone, and where the host monitors look.
const SYSTEM: [&str; 14] = [
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/run/NetworkManager",
    "/run/nscd",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/run/systemd/userdb",
    "/var/lib/ca-certificates",
];

/// Of `/etc`, where the user is root: it could read the passwords. Files that are replaced by others
/// (`resolv.conf` by some DHCP clients) are out of reach then until the daemon starts again.
const SYSTEM_OF_ROOT: [&str; 18] = [
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/networks",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// Where other authorities than the system's are (rustls-native-certs).
const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What the process goes on to need, as the configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files that are read, again and again; others that come in their place too.
    pub files: BTreeSet<PathBuf>,
    /// Directories that are read with all below them.
    pub directories: BTreeSet<PathBuf>,
    /// Sockets that are made and removed.
    pub sockets: BTreeSet<PathBuf>,
}

impl Reach {
    /// All that is read.
    fn readable(&self, is_root: bool) -> BTreeSet<PathBuf> {
        let mut readable: BTreeSet<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        if is_root {
            readable.extend(SYSTEM_OF_ROOT.iter().map(PathBuf::from));
        } else {
            readable.insert(PathBuf::from("/etc"));
        }
        let authorities = AUTHORITIES.iter().filter_map(std::env::var_os).map(PathBuf::from);
        let files = self.files.iter().cloned().chain(authorities);
        for file in files {
            readable.extend(directories_of(&file));
            readable.insert(file);
        }
        readable.extend(self.directories.iter().cloned());
        readable
    }
}

/// The directories that a file is found by, however it is replaced: its own, those in which a symbolic
/// link stands on the way to it, and the one where they lead to. Never the root itself.
fn directories_of(file: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([parent(file).to_path_buf()]);
    let mut way = PathBuf::new();
    for component in file.components() {
        way.push(component);
        if matches!(component, Component::Normal(_)) && way.is_symlink() {
            found.insert(parent(&way).to_path_buf());
        }
    }
    if let Ok(real) = file.canonicalize() {
        found.insert(parent(&real).to_path_buf());
    }
    found.retain(|directory| directory != Path::new("/"));
    found
}

/// Puts everything else out of reach. `Some`: what the kernel cannot, in words.
///
/// # Errors
/// What went wrong, in words.
pub(super) fn confine(reach: &Reach, is_root: bool) -> Result<Option<String>, String> {
    for socket in &reach.sockets {
        // It may not be made any more afterwards; that it is there is as good, and binding tells.
        let _ = std::fs::create_dir_all(parent(socket));
    }
    let status = restrict(reach, is_root).map_err(|error| error.to_string())?;
    Ok(match status {
        RulesetStatus::FullyEnforced => None,
        // An earlier kernel's rights are fewer: what it does not know it does not keep anyone from.
        RulesetStatus::PartiallyEnforced => None,
        RulesetStatus::NotEnforced => {
            Some("this kernel has no landlock, or was told not to use it (lsm=)".to_owned())
        }
    })
}

fn restrict(reach: &Reach, is_root: bool) -> Result<RulesetStatus, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let sockets = read | make_bitflags!(AccessFs::{MakeSock | RemoveFile});
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?.create()?;
    for path in reach.readable(is_root) {
        rules = allow(rules, &path, read)?;
    }
    // Nothing but what is there already is written to (standard error), and this.
    rules = allow(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
    for socket in &reach.sockets {
        rules = allow(rules, parent(socket), sockets)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// What is not there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(place) => rules.add_rule(PathBeneath::new(place, access)),
        Err(_) => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_file_stays_within_reach_when_links_on_its_way_change() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        for directory in ["archive/x", "live/x", "2026-01", "plain"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("archive/x/chain1.pem"), "").unwrap();
        fs::write(at("2026-01/server.pem"), "").unwrap();
        fs::write(at("plain/server.pem"), "").unwrap();
        symlink("../../archive/x/chain1.pem", at("live/x/chain.pem")).unwrap();
        symlink("2026-01", at("current")).unwrap();
        for (file, expected) in [
            ("plain/server.pem", vec!["plain"]),
            ("plain/not-yet.pem", vec!["plain"]),
            ("live/x/chain.pem", vec!["archive/x", "live/x"]),
            // The next month's directory is beside this one.
            ("current/server.pem", vec!["", "2026-01", "current"]),
        ] {
            let expected: BTreeSet<PathBuf> = expected.into_iter().map(&at).collect();
            let found: BTreeSet<PathBuf> = directories_of(&at(file)).into_iter().collect();
            let clean: BTreeSet<PathBuf> =
                expected.iter().map(|path| path.components().collect()).collect();
            assert_eq!(found, clean, "{file}");
        }
    }

    #[test]
    fn the_root_is_never_within_reach() {
        for file in ["/server.pem", "/lib/x", "/"] {
            assert!(!directories_of(Path::new(file)).contains(Path::new("/")), "{file}");
        }
    }

    #[test]
    fn root_does_not_reach_passwords() {
        let reach = Reach::default();
        let covers = |is_root, path: &str| {
            reach.readable(is_root).iter().any(|place| Path::new(path).starts_with(place))
        };
        for path in ["/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/id", "/home/a"] {
            assert!(!covers(true, path), "{path}");
        }
        for is_root in [true, false] {
            assert!(covers(is_root, "/etc/resolv.conf") && covers(is_root, "/proc/stat"));
        }
    }
}
