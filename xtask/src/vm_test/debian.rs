//! Debian's kernels: which there are, and one of each series on this machine.
//!
//! Everything happens in a directory of its own below `target/`: package lists, downloads and
//! sources are not the system's, and nothing is installed. Only the mirror is taken from the
//! system's sources, so that a machine behind a mirror of its own stays behind it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::harness::process::{succeed, words};

/// The releases whose kernels are booted: bullseye has 5.10, bookworm has 6.1 and, for newer
/// hardware, 6.12. Where a release is no longer on the mirror the others still are.
const RELEASES: [&str; 2] = ["bullseye", "bookworm"];
/// Names the mirrors where the system's sources do not: two addresses with a blank between them,
/// Debian's archive and its security archive.
const MIRRORS_VARIABLE: &str = "PORTCULLIS_VM_MIRRORS";
/// What the archive's releases are signed with, in Debian's package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says, for example `5.10.0-46-cloud-amd64`.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// Its driver for virtual Ethernet cables, which these kernels have as a module.
    pub veth: PathBuf,
}

/// The kernels that are kept below one directory.
#[derive(Debug)]
pub struct Kernels {
    directory: PathBuf,
    /// Asking the mirror takes ten seconds, and is done once at most.
    asked: bool,
}

/// The addresses of Debian's archive and its security archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirrors {
    archive: String,
    security: String,
}

impl Kernels {
    /// Those in this directory.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), asked: false }
    }

    /// The newest one of a series that is here.
    pub fn present(&self, series: &str) -> Option<Kernel> {
        let entries = fs::read_dir(self.directory.join("kernels")).ok()?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let kernels = names.filter(|name| is_of(series, name)).map(|release| self.kernel(release));
        kernels
            .filter(|kernel| kernel.image.exists() && kernel.veth.exists())
            .max_by_key(|kernel| numbers(&kernel.release))
    }

    /// Fetches the newest one of a series, unless it is here.
    ///
    /// # Errors
    /// When the mirror cannot be asked, has none, or what it has is not as expected.
    pub fn fetch(&mut self, series: &str) -> Result<Kernel> {
        if !self.asked {
            self.ask()?;
            self.asked = true;
        }
        let known = succeed(self.apt("apt-cache").args(["pkgnames", &package(series)]))?;
        let release = newest(series, &known).with_context(|| {
            format!(
                "the mirror has no package {}*-cloud-amd64; {MIRRORS_VARIABLE} names another \
                 (\"ARCHIVE SECURITY\")",
                package(series)
            )
        })?;
        let kernel = self.kernel(release);
        if !(kernel.image.exists() && kernel.veth.exists()) {
            self.download(&kernel)?;
        }
        Ok(kernel)
    }

    fn kernel(&self, release: String) -> Kernel {
        let directory = self.directory.join("kernels").join(&release);
        Kernel { release, image: directory.join("vmlinuz"), veth: directory.join("veth.ko") }
    }

    /// Fetches the lists of packages.
    fn ask(&self) -> Result<()> {
        let mirrors = mirrors()?;
        for directory in ["apt/lists/partial", "apt/cache/archives/partial"] {
            let directory = self.directory.join(directory);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        let file = self.sources();
        fs::write(&file, sources(&mirrors)).with_context(|| file.display().to_string())?;
        // A release that has left the mirror is an error of apt's, and no reason to do without
        // the others; whoever looks for a kernel in vain says so.
        if let Err(error) = succeed(self.apt("apt-get").args(["--quiet=2", "update"])) {
            eprintln!("vm-test: some of Debian's releases cannot be asked: {error:#}");
        }
        Ok(())
    }

    fn download(&self, kernel: &Kernel) -> Result<()> {
        let unpacked = self.directory.join("unpacked");
        remove(&unpacked)?;
        fs::create_dir_all(&unpacked).with_context(|| unpacked.display().to_string())?;
        let name = package(&kernel.release);
        eprintln!("vm-test: fetching {name}");
        succeed(self.apt("apt-get").args(["--quiet=2", "download", &name]).current_dir(&unpacked))?;
        let packages = files(&unpacked, &|name| name.ends_with(".deb"))?;
        let [file] = &packages[..] else { bail!("apt-get download {name} left {packages:?}") };
        succeed(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;

        let image = unpacked.join("boot").join(format!("vmlinuz-{}", kernel.release));
        let modules = files(&unpacked, &|name| name.starts_with("veth.ko"))?;
        let [module] = &modules[..] else { bail!("{name} holds no single veth.ko: {modules:?}") };
        let (image, veth) = (fs::read(&image).context("the kernel's image")?, plain(module)?);
        let directory = kernel.image.parent().context("the cache has a directory")?;
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        // The image last: a kernel is there when both are.
        fs::write(&kernel.veth, veth).with_context(|| kernel.veth.display().to_string())?;
        fs::write(&kernel.image, image).with_context(|| kernel.image.display().to_string())?;
        remove(&unpacked)
    }

    fn sources(&self) -> PathBuf {
        self.directory.join("apt/sources.list")
    }

    /// One of apt's programs, with nothing of the system's but the keyring.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.sources()),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", self.directory.join("apt/lists")),
            ("Dir::Cache", self.directory.join("apt/cache")),
            // This directory need not be open to apt's own user.
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command
    }
}

/// From the variable, or from the system's sources.
fn mirrors() -> Result<Mirrors> {
    if let Ok(named) = env::var(MIRRORS_VARIABLE) {
        let words: Vec<&str> = named.split_whitespace().collect();
        let [archive, security] = words[..] else {
            bail!("{MIRRORS_VARIABLE} is to be two addresses, \"ARCHIVE SECURITY\": {named:?}")
        };
        return Ok(Mirrors { archive: archive.to_owned(), security: security.to_owned() });
    }
    let targets = succeed(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))
    .context("the mirror is taken from apt's sources")?;
    mirrors_among(&targets).with_context(|| {
        format!(
            "apt's sources name no release with its security archive; {MIRRORS_VARIABLE} may name \
             them (\"ARCHIVE SECURITY\")"
        )
    })
}

/// The first release that has a security archive, where both come from; lines of address, release.
fn mirrors_among(targets: &str) -> Option<Mirrors> {
    let targets: Vec<(&str, &str)> =
        targets.lines().filter_map(|line| line.split_once(' ')).collect();
    targets.iter().find_map(|(security, release)| {
        let release = release.strip_suffix("-security")?;
        let (archive, _) = targets.iter().find(|(_, other)| *other == release)?;
        Some(Mirrors { archive: (*archive).to_owned(), security: (*security).to_owned() })
    })
}

/// The line of apt's sources for another of Debian's releases.
///
/// # Errors
/// When this system's sources name no mirror.
pub fn source(release: &str) -> Result<String> {
    let Mirrors { archive, .. } = mirrors()?;
    Ok(format!("deb [signed-by={KEYRING}] {archive} {release} main\n"))
}

fn sources(Mirrors { archive, security }: &Mirrors) -> String {
    let of = |release| {
        format!(
            "deb [signed-by={KEYRING}] {archive} {release} main\n\
             deb [signed-by={KEYRING}] {security} {release}-security main\n"
        )
    };
    RELEASES.map(of).concat()
}

/// The beginning of the names of a series' packages, or the name of one release's.
fn package(series_or_release: &str) -> String {
    format!("linux-image-{series_or_release}")
}

/// Whether a release belongs to a series, in the flavour for virtual machines: `6.1` has
/// `6.1.0-56-cloud-amd64`, not `6.12.117+deb12-cloud-amd64` and no packages of symbols.
fn is_of(series: &str, release: &str) -> bool {
    let rest = release.strip_prefix(series).and_then(|rest| rest.strip_prefix('.'));
    rest.and_then(|rest| rest.strip_suffix("-cloud-amd64"))
        .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// The newest release of a series among names of packages.
fn newest(series: &str, packages: &str) -> Option<String> {
    let releases = packages.lines().filter_map(|name| name.strip_prefix("linux-image-"));
    let newest = releases.filter(|release| is_of(series, release)).max_by_key(|name| numbers(name));
    newest.map(str::to_owned)
}

/// All numbers in a release's name, by which releases of one series are ordered.
fn numbers(release: &str) -> Vec<u32> {
    let parts = release.split(|letter: char| !letter.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// A module as the kernel takes it; newer packages hold it compressed.
fn plain(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(module).with_context(|| module.display().to_string());
    }
    let mut command = Command::new("xz");
    command.args(["--decompress", "--stdout"]).arg(module).stdin(Stdio::null());
    let output = command.output().with_context(|| words(&command))?;
    ensure!(output.status.success(), "{} failed: {}", words(&command), output.status);
    Ok(output.stdout)
}

/// The files below a directory whose name is wanted.
fn files(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path(), wanted)?);
        } else if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_told_by_its_numbers() {
        let packages = "\
            linux-image-5.10.0-9-cloud-amd64\n\
            linux-image-5.10.0-46-cloud-amd64\n\
            linux-image-5.10.0-46-cloud-amd64-dbg\n\
            linux-image-5.10.0-47-cloud-amd64-unsigned\n\
            linux-image-5.10.0-48-amd64\n\
            linux-image-6.1.0-56-cloud-amd64\n\
            linux-image-6.12-cloud-amd64\n\
            linux-image-6.12.99+deb12-cloud-amd64\n\
            linux-image-6.12.117+deb12-cloud-amd64\n\
            linux-image-cloud-amd64\n";
        for (series, release) in [
            ("5.10", Some("5.10.0-46-cloud-amd64")),
            ("6.1", Some("6.1.0-56-cloud-amd64")),
            ("6.12", Some("6.12.117+deb12-cloud-amd64")),
            ("5.1", None),
            ("6.6", None),
        ] {
            assert_eq!(newest(series, packages).as_deref(), release, "{series}");
        }
    }

    #[test]
    fn a_mirror_serves_a_release_and_its_security_archive() {
        let mirrors = |archive: &str, security: &str| {
            Some(Mirrors { archive: archive.to_owned(), security: security.to_owned() })
        };
        for (targets, found) in [
            (
                "m:/d/ trixie\nm:/d/ trixie-updates\nm:/s/ trixie-security\n",
                mirrors("m:/d/", "m:/s/"),
            ),
            ("o:/ stable\nm:/s/ trixie-security\nm:/d/ trixie\n", mirrors("m:/d/", "m:/s/")),
            ("m:/d/ trixie\n", None),
            ("m:/s/ trixie-security\n", None),
            ("", None),
        ] {
            assert_eq!(mirrors_among(targets), found, "{targets}");
        }
        let sources = sources(&Mirrors { archive: "m:/d/".into(), security: "m:/s/".into() });
        assert!(sources.contains("] m:/d/ bullseye main\n"), "{sources}");
        assert!(sources.contains("] m:/s/ bookworm-security main\n"), "{sources}");
    }
}
