//! Who may import whom, and why nobody else may.
//!
//! The floors are told twice: here, and as `wrappers` in `deny.toml`, which also holds crates of
//! other people to their floor. Both read what cargo knows, not what a file looks like.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::{process, workspace};

/// A crate, what of ours it may import, and why no more.
const FLOORS: &[(&str, &[&str], &str)] = &[
    ("moltis-proto", &[], "the bottom floor knows nobody"),
    (
        "moltis-identity",
        &["moltis-proto"],
        "keys know the wire, not the ends",
    ),
    (
        "moltis-telemetry",
        &["moltis-proto"],
        "measurements know the wire, not the ends",
    ),
    (
        "moltis-service",
        &[],
        "a service manager knows programs, and nobody of ours",
    ),
    (
        "moltis-agent",
        &[],
        "a conversation knows tools by name, and neither nodes nor the wire",
    ),
    (
        "moltis-gateway",
        &["moltis-proto", "moltis-identity"],
        "the two ends never import each other, and a gateway measures no machine",
    ),
    (
        "moltis-node",
        &["moltis-proto", "moltis-identity", "moltis-telemetry"],
        "the two ends never import each other",
    ),
    (
        "moltis-cli",
        &[
            "moltis-proto",
            "moltis-identity",
            "moltis-telemetry",
            "moltis-gateway",
            "moltis-node",
            "moltis-service",
        ],
        "the top floor wires everything, and nobody imports it",
    ),
    (
        "moltis-sim",
        &[
            "moltis-proto",
            "moltis-identity",
            "moltis-gateway",
            "moltis-node",
        ],
        "it drives both ends from outside: a node of its own against a gateway in a process of its own, or both in one world",
    ),
    (
        "xtask",
        &[],
        "it builds and starts programs, and knows them as a stranger does",
    ),
];

/// What may not be in proto's tree: a machine that is a value needs no runtime, no clock of the
/// system's, no cipher.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "async-io",
    "smol",
    "socket2",
    "rustix",
    "ring",
    "ed25519-dalek",
    "snow",
    "getrandom",
    "tracing-subscriber",
];

/// How long cargo may think about it.
const LIMIT: Duration = Duration::from_mins(2);

/// Returns a complaint for every import that goes up or sideways, and for every crate without a floor.
pub(crate) fn complaints() -> anyhow::Result<Vec<String>> {
    Ok(judge(&metadata()?))
}

fn metadata() -> anyhow::Result<Value> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let text = process::stdout_of(&mut cargo, LIMIT)?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}

fn judge(metadata: &Value) -> Vec<String> {
    let none = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&none);
    let mut complaints = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed, why)) = FLOORS.iter().find(|(floor, ..)| *floor == name) else {
            complaints.push(format!(
                "`{name}` has no row in FLOORS: say what it may import, and why"
            ));
            continue;
        };
        let imports = package["dependencies"].as_array().unwrap_or(&none).iter();
        for import in imports.filter(|import| import["kind"] != "dev") {
            let import = import["name"].as_str().unwrap_or_default();
            if import.starts_with("moltis-") && !allowed.contains(&import) {
                complaints.push(format!("`{name}` imports `{import}`: {why}"));
            }
        }
    }
    let is_there = |name: &str| packages.iter().any(|package| package["name"] == *name);
    for (name, ..) in FLOORS.iter().filter(|(name, ..)| !is_there(name)) {
        complaints.push(format!("`{name}` is in FLOORS but not in the workspace"));
    }
    complaints
}

/// Returns a complaint for everything in proto's tree that is not pure.
pub(crate) fn impurities() -> anyhow::Result<Vec<String>> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "tree",
        "--locked",
        "--package",
        "moltis-proto",
        "--all-features",
    ]);
    cargo.args(["--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let tree = process::stdout_of(&mut cargo, LIMIT)?;
    let names: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let impure = IMPURE.iter().filter(|name| names.contains(**name));
    Ok(impure
        .map(|name| format!("moltis-proto's tree holds `{name}`: this floor is pure"))
        .collect())
}

/// Returns a complaint for every row of the workspace's table of versions that no crate uses.
pub(crate) fn unused_dependencies() -> anyhow::Result<Vec<String>> {
    let root = workspace::ROOT.join("Cargo.toml");
    let table =
        std::fs::read_to_string(&root).with_context(|| format!("reading {}", root.display()))?;
    let metadata = metadata()?;
    let none = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&none);
    let used: BTreeSet<_> = packages
        .iter()
        .flat_map(|package| package["dependencies"].as_array().unwrap_or(&none))
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    let unused = rows(&table).filter(|name| !used.contains(name));
    Ok(unused
        .map(|name| format!("Cargo.toml: nobody uses `{name}` of [workspace.dependencies]"))
        .collect())
}

/// Returns the names in `[workspace.dependencies]`.
fn rows(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .filter(|name| !name.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A workspace of exactly our crates, in which `importer` imports `import` as `kind`.
    fn workspace(importer: &str, import: &str, kind: Option<&str>) -> Value {
        let packages = FLOORS.iter().map(|(name, ..)| {
            let imports = if *name == importer {
                json!([{ "name": import, "kind": kind }])
            } else {
                json!([])
            };
            json!({ "name": name, "dependencies": imports })
        });
        json!({ "packages": packages.collect::<Vec<_>>() })
    }

    #[test]
    fn every_import_goes_down() {
        assert_eq!(complaints().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_bottom_floor_is_pure() {
        assert_eq!(impurities().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_end_that_imports_the_other_is_told_why_not() {
        let told = judge(&workspace("moltis-gateway", "moltis-node", None));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("`moltis-gateway` imports `moltis-node`: the two ends"));
        assert_eq!(judge(&workspace("xtask", "moltis-proto", None)).len(), 1);
    }

    #[test]
    fn a_build_script_counts_and_a_test_does_not() {
        assert_eq!(
            judge(&workspace("moltis-gateway", "moltis-node", Some("build"))).len(),
            1
        );
        assert!(judge(&workspace("moltis-gateway", "moltis-node", Some("dev"))).is_empty());
    }

    #[test]
    fn a_crate_without_a_floor_is_told() {
        let told = judge(&json!({ "packages": [{ "name": "moltis-new", "dependencies": [] }] }));
        assert!(told[0].starts_with("`moltis-new` has no row"), "{told:?}");
    }

    #[test]
    fn the_rows_of_the_table_are_read() {
        let manifest = "[workspace]\nx = 1\n[workspace.dependencies]\n# why\nserde = \"1\"\na-b = { version = \"1\" }\n\n[profile.dev]\ny = 1\n";
        assert_eq!(rows(manifest).collect::<Vec<_>>(), ["serde", "a-b"]);
    }
}
