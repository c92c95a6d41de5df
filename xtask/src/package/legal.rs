//! What the licences of the product, and of everything that is linked into it, ask to be passed on.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{Source, sbom::Package};

/// How files with such a text are called.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];

/// A text of this size is no licence.
const TEXT_MAX_BYTES: u64 = 256 * 1024;

/// Each text once, after the names of all packages that bring it.
///
/// # Errors
/// What cannot be read.
pub(super) fn licences_of(packages: &[Package]) -> Result<Vec<u8>> {
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    for package in packages.iter().filter(|package| !package.is_own) {
        let name = format!("{} {}", package.name, package.version);
        for text in texts_in(&package.directory)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    // By the packages, not by the texts: a reader looks for a name.
    let mut parts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    parts.sort();
    let mut all = String::from(
        "The licences of what is linked into Portcullis, as each package brings them.\n\
         sbom.cdx.json beside this file lists all of them with their versions.\n",
    );
    for (names, text) in parts {
        all.push_str(&format!("\n==== {}\n\n{}\n", names.join(", "), text.trim_end()));
    }
    Ok(all.into_bytes())
}

fn texts_in(directory: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut texts = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().to_uppercase();
            let kind = entry.metadata()?;
            let is_text = kind.is_file() && kind.len() <= TEXT_MAX_BYTES;
            if is_text && NAMES.iter().any(|start| name.starts_with(start)) {
                texts.push(String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
            }
        }
        texts.sort();
        Ok(texts)
    };
    read().with_context(|| format!("licences in {}", directory.display()))
}

/// Debian's machine-readable form, which is good for everybody.
///
/// # Errors
/// When the licence is not there.
pub(super) fn copyright(source: &Source) -> Result<Vec<u8>> {
    let file = source.root.join("LICENSE-MIT");
    let mit = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    // From the grant on; a line without a word is a dot there.
    let grant = mit.find("Permission is hereby").map_or("", |start| &mit[start..]);
    let grant: Vec<String> = grant
        .lines()
        .map(|line| if line.is_empty() { " .".to_owned() } else { format!(" {line}") })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: portcullis\n\
         Comment: The binary has other packages linked into it; they are listed in sbom.cdx.json,\n \
         and their licences are in third-party-licences.txt.gz, both beside this file.\n\
         \n\
         Files: *\n\
         Copyright: {} the Portcullis authors\n\
         License: Apache-2.0 or Expat\n\
         \n\
         License: Apache-2.0\n \
         The text is in /usr/share/common-licenses/Apache-2.0 on Debian, and at\n \
         http://www.apache.org/licenses/LICENSE-2.0 for everybody.\n\
         \n\
         License: Expat\n{}\n",
        source.date("+%Y")?,
        grant.join("\n")
    )
    .into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_stands_once_for_all_that_bring_it() {
        let place = tempfile::tempdir().unwrap();
        let package = |name: &str| {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("LICENSE-MIT"), "Do as you like.\n").unwrap();
            fs::write(directory.join("README.md"), "Nothing of law.\n").unwrap();
            Package {
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                licence: None,
                sha256: None,
                directory,
                is_own: false,
            }
        };
        let text = licences_of(&[package("a"), package("b")]).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("==== a 1.0.0, b 1.0.0\n\nDo as you like.\n"), "{text}");
        assert!(!text.contains("Nothing of law"), "{text}");
    }
}
