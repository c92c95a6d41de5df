//! What is linked into the binary: a bill of materials (CycloneDX 1.5) from what cargo resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Source;
use crate::{cargo::cargo, harness::process::succeed};

/// One package that is linked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// As its authors wrote it; an SPDX expression nearly always.
    pub(super) licence: Option<String>,
    /// Of the archive in the registry.
    pub(super) sha256: Option<String>,
    /// Where its sources are.
    pub(super) directory: PathBuf,
    /// One of this repository's own.
    pub(super) is_own: bool,
}

/// All packages that the binary is made of, by name and version; not what only builds or tests it.
///
/// # Errors
/// When cargo cannot say.
pub(super) fn packages(source: &Source) -> Result<Vec<Package>> {
    let text = succeed(cargo().current_dir(&source.root).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let lock = fs::read_to_string(source.root.join("Cargo.lock")).context("Cargo.lock")?;
    linked(&metadata, &checksums(&lock)).context("cargo metadata has changed its form")
}

fn linked(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
) -> Option<Vec<Package>> {
    let packages = metadata["packages"].as_array()?;
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let first = packages.iter().find(|package| package["name"] == "gateway")?["id"].as_str()?;
    let mut wanted = vec![first];
    let mut seen = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes.get(id)?["deps"].as_array()? {
            // A kind that is null is an ordinary one; "build" and "dev" are not linked.
            let kinds = dependency["dep_kinds"].as_array()?;
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                wanted.push(dependency["pkg"].as_str()?);
            }
        }
    }
    let mut found = Vec::new();
    for package in
        packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| seen.contains(id)))
    {
        let text = |key: &str| package[key].as_str().map(str::to_owned);
        let (name, version) = (text("name")?, text("version")?);
        let manifest = PathBuf::from(text("manifest_path")?);
        found.push(Package {
            licence: text("license"),
            sha256: checksums.get(&(name.clone(), version.clone())).cloned(),
            directory: manifest.parent()?.to_owned(),
            is_own: package["source"].is_null(),
            name,
            version,
        });
    }
    found.sort();
    Some(found)
}

/// The checksums in `Cargo.lock`, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?))
        })
        .collect()
}

/// The bill itself, the same for the same sources.
///
/// # Errors
/// When the date is not to be had.
pub(super) fn bill(source: &Source, packages: &[Package]) -> Result<Vec<u8>> {
    let components: Vec<Value> =
        packages.iter().filter(|package| !package.is_own).map(component).collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": source.date("+%Y-%m-%dT%H:%M:%SZ")?,
            "component": {
                "type": "application",
                "name": "portcullis",
                "version": source.version,
                "licenses": [{ "expression": "Apache-2.0 OR MIT" }],
            },
        },
        "components": components,
    });
    let mut text = serde_json::to_vec_pretty(&bill)?;
    text.push(b'\n');
    Ok(text)
}

fn component(package: &Package) -> Value {
    let mut component = json!({
        "type": "library",
        "name": package.name,
        "version": package.version,
        "purl": format!("pkg:cargo/{}@{}", package.name, package.version),
    });
    if let Some(licence) = &package.licence {
        // Before SPDX expressions a slash stood for "or".
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(sha256) = &package.sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_linked_is_listed() {
        let package = |name: &str, registry: bool| {
            json!({
                "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "manifest_path": format!("/sources/{name}/Cargo.toml"),
                "source": if registry { json!("registry") } else { Value::Null },
            })
        };
        let needs = |pkg: &str, kind: Value| json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("gateway", false), package("a", true), package("b", true), package("c", true)],
            "resolve": { "nodes": [
                { "id": "gateway", "deps": [needs("a", Value::Null), needs("b", json!("dev"))] },
                { "id": "a", "deps": [needs("c", json!("build"))] },
                { "id": "b", "deps": [] },
                { "id": "c", "deps": [] },
            ]},
        });
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"00ff\"\n";
        let found = linked(&metadata, &checksums(lock)).unwrap();
        let names: Vec<&str> = found.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["a", "gateway"]);
        assert_eq!(
            component(&found[0]),
            json!({
                "type": "library", "name": "a", "version": "1.0.0", "purl": "pkg:cargo/a@1.0.0",
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                "hashes": [{ "alg": "SHA-256", "content": "00ff" }],
            })
        );
    }
}
