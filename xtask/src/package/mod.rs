//! `cargo xtask package`: what is installed on a user's machine, the same octets wherever it is built
//! from the same commit.

mod binary;
mod boot;
mod boot_machine;
mod deb;
mod legal;
mod rpm;
mod sbom;
mod tarball;
mod tree;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::tree::Tree;
use crate::{
    cargo,
    harness::{clock, process::succeed},
    process::{refuse_without_root, stop_on_signals},
    setup,
};

/// A kind of package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Deb,
    Rpm,
    Tar,
}

/// What was asked for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    kinds: Vec<Kind>,
    verify: bool,
    boot: bool,
    /// A binary that was built already, instead of one from these sources.
    binary: Option<PathBuf>,
}

/// The sources, and what of them goes into names and times.
#[derive(Clone, Debug)]
struct Source {
    root: PathBuf,
    version: String,
    /// The commit's time; nothing in a package is younger.
    epoch_s: u64,
    /// Its name, where there is one.
    commit: Option<String>,
}

/// Makes packages in `target/package`.
///
/// # Errors
/// What is missing or failed.
pub fn package(words: &[String]) -> Result<ExitCode> {
    let asked = Asked::of(words)?;
    let root_for = "for the namespaces and containers (CAP_SYS_ADMIN) that the packages boot in";
    if asked.boot
        && let Some(code) = refuse_without_root("package --boot", root_for)
    {
        return Ok(code);
    }
    let mut programs = vec![("gzip", "gzip"), ("xz", "xz-utils"), ("tar", "tar")];
    for kind in &asked.kinds {
        programs.extend(match kind {
            Kind::Deb => &[("dpkg-deb", "dpkg"), ("lintian", "lintian")][..],
            Kind::Rpm => &[("rpmbuild", "rpm"), ("rpmlint", "rpmlint")],
            Kind::Tar => &[],
        });
    }
    if asked.boot {
        programs.extend([("systemd-nspawn", "systemd-container"), ("debootstrap", "debootstrap")]);
    }
    setup::setup_with(&programs)?;
    stop_on_signals()?;
    let started = clock::now();
    let source = Source::here()?;
    if asked.verify {
        refuse_changed(&source)?;
    }
    let out = cargo::root().join("target/package");
    fs::create_dir_all(&out)?;
    let binary = match asked.binary {
        Some(binary) => binary,
        None => binary::build(&source, &out)?,
    };
    let tree = Tree::gather(&source, &binary)?;
    let made = pack(&source, &tree, &asked.kinds, &out)?;
    for (file, digest) in &made {
        println!("{digest}  {}", file.display());
    }
    let mut held = true;
    if asked.verify {
        verify(&source, &asked.kinds, &made, &out)?;
    }
    if asked.boot {
        held = boot::boot(&source, &tree, &out)?;
    }
    eprintln!("package: {} s", started.elapsed().as_secs());
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Asked {
    fn of(words: &[String]) -> Result<Asked> {
        let mut asked = Asked::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "deb" => asked.kinds.push(Kind::Deb),
                "rpm" => asked.kinds.push(Kind::Rpm),
                "tar" => asked.kinds.push(Kind::Tar),
                "--verify" => asked.verify = true,
                "--boot" => asked.boot = true,
                "--binary" => {
                    let file = words.next().context("--binary FILE")?;
                    asked.binary = Some(fs::canonicalize(file).with_context(|| file.clone())?);
                }
                other => {
                    bail!("deb, rpm, tar, --verify, --boot or --binary FILE; what is `{other}`?")
                }
            }
        }
        if asked.verify && asked.binary.is_some() {
            bail!("--verify builds from the sources; it has no use for --binary");
        }
        if asked.kinds.is_empty() {
            asked.kinds = vec![Kind::Deb, Kind::Rpm, Kind::Tar];
        }
        if asked.boot && !asked.kinds.contains(&Kind::Deb) {
            asked.kinds.push(Kind::Deb);
        }
        Ok(asked)
    }
}

impl Source {
    /// This checkout. `SOURCE_DATE_EPOCH` counts before the commit's time.
    fn here() -> Result<Source> {
        Source::at(cargo::root())
    }

    fn at(root: &Path) -> Result<Source> {
        let epoch_s = match env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => git(root, &["log", "-1", "--format=%ct"])
                .context("no commit to take the time from; set SOURCE_DATE_EPOCH")?,
        };
        let epoch_s = epoch_s.trim().parse().context("SOURCE_DATE_EPOCH is in whole seconds")?;
        // One version for the whole workspace.
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let commit = git(root, &["rev-parse", "HEAD"]).ok().map(|line| line.trim().to_owned());
        Ok(Source { root: root.to_owned(), version, epoch_s, commit })
    }

    /// Runs `date` on the commit's time.
    fn date(&self, format: &str) -> Result<String> {
        let at = format!("@{}", self.epoch_s);
        let text = succeed(
            Command::new("date").env("LC_ALL", "C").args(["--utc", "--date", &at, format]),
        )?;
        Ok(text.trim().to_owned())
    }
}

/// Packs; gives each file with its SHA-256.
fn pack(
    source: &Source,
    tree: &Tree,
    kinds: &[Kind],
    out: &Path,
) -> Result<Vec<(PathBuf, String)>> {
    let mut made = Vec::new();
    for kind in kinds {
        let file = match kind {
            Kind::Deb => {
                let file = deb::make(source, tree, out)?;
                deb::lint(&file)?;
                file
            }
            Kind::Rpm => {
                let file = rpm::make(source, tree, out)?;
                rpm::judge(&file, tree, out)?;
                file
            }
            Kind::Tar => tarball::make(source, tree, out)?,
        };
        refuse_missing(*kind, &file, tree)?;
        let digest = digest(&file)?;
        made.push((file, digest));
    }
    Ok(made)
}

/// Every kind of package has the very same files; for rpm its own list of digests says so.
fn refuse_missing(kind: Kind, file: &Path, tree: &Tree) -> Result<()> {
    let place = tempfile::tempdir()?;
    let missing = match kind {
        Kind::Deb => {
            succeed(Command::new("dpkg-deb").arg("--extract").arg(file).arg(place.path()))?;
            tree.for_debian().missing_in(place.path())?
        }
        Kind::Tar => {
            let mut tar = Command::new("tar");
            succeed(tar.arg("--extract").arg("--file").arg(file).arg("-C").arg(place.path()))?;
            tree.missing_in(place.path())?
        }
        Kind::Rpm => Vec::new(),
    };
    ensure!(missing.is_empty(), "{} lacks {}", file.display(), missing.join(", "));
    Ok(())
}

/// Makes the same packages from a second checkout of the same commit, in another place, and compares.
fn verify(source: &Source, kinds: &[Kind], made: &[(PathBuf, String)], out: &Path) -> Result<()> {
    let commit = source.commit.as_deref().context("no commit to make the packages from again")?;
    let elsewhere = out.join("second-checkout");
    if elsewhere.exists() {
        fs::remove_dir_all(&elsewhere).context("what an earlier run left")?;
    }
    eprintln!("package: the same from {}, everything built anew (minutes)", elsewhere.display());
    let clone = elsewhere.join("portcullis");
    let from = source.root.display().to_string();
    let to = clone.display().to_string();
    succeed(Command::new("git").args([
        "clone",
        "--quiet",
        "--no-checkout",
        "--local",
        &from,
        &to,
    ]))?;
    // What was made before is of this commit, whatever was written meanwhile.
    git(&clone, &["checkout", "--quiet", "--detach", commit])?;
    // The linker is a tool, not a source.
    let tools = source.root.join(".tools");
    if tools.exists() {
        std::os::unix::fs::symlink(tools, clone.join(".tools"))?;
    }
    let again = Source::at(&clone)?;
    let place = clone.join("target/package");
    let tree = Tree::gather(&again, &binary::build(&again, &place)?)?;
    let other = pack(&again, &tree, kinds, &place)?;
    let mut different = Vec::new();
    for ((file, digest), (_, again)) in made.iter().zip(&other) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        println!("{} {name}", if digest == again { "identical" } else { "DIFFERENT" });
        if digest != again {
            different.push(name.into_owned());
        }
    }
    ensure!(
        different.is_empty(),
        "{} depend on where they are built; compare with {}",
        different.join(", "),
        elsewhere.display()
    );
    fs::remove_dir_all(&elsewhere).context("the second checkout")
}

/// What is in no commit cannot be made again elsewhere.
fn refuse_changed(source: &Source) -> Result<()> {
    let changed = git(&source.root, &["status", "--porcelain"])?;
    ensure!(changed.is_empty(), "--verify compares commits; these changes are in none:\n{changed}");
    Ok(())
}

fn git(root: &Path, words: &[&str]) -> Result<String> {
    succeed(Command::new("git").arg("-C").arg(root).args(words))
}

fn digest(file: &Path) -> Result<String> {
    let line = succeed(Command::new("sha256sum").arg(file))?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// `gzip -9` without a name or a time.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    filter(Command::new("gzip").args(["-9", "-n"]), bytes)
}

/// What a program makes of `input`.
fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let mut stdin = child.stdin.take().context("piped above")?;
    let output = std::thread::scope(|scope| {
        // One that ends early has its own word to say.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "{} failed", command.get_program().to_string_lossy());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let asked = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Asked::of(&words)
        };
        let all = vec![Kind::Deb, Kind::Rpm, Kind::Tar];
        assert_eq!(asked("").unwrap(), Asked { kinds: all, ..Asked::default() });
        assert_eq!(
            asked("rpm --boot").unwrap(),
            Asked { kinds: vec![Kind::Rpm, Kind::Deb], boot: true, ..Asked::default() }
        );
        assert!(asked("zip").is_err());
    }
}
