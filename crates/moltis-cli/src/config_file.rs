//! `moltis.toml`: the configuration of the gateway. A missing file means the defaults.
//!
//! An unknown key is refused with file, line, key and the nearest known key; a wrong value with
//! what is allowed. One table, [`KEYS`], names every key and reads its value.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use moltis_identity::files;
use moltis_proto::nearest::distance;
use toml::de::{DeTable, DeValue};

use crate::failure::{Failure, OrFail as _, failure};
use crate::logging::LogFormat;

/// What the file says; absent where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    /// `gateway.listen`
    pub(crate) listen: Option<Vec<SocketAddr>>,
    /// `gateway.hosts`
    pub(crate) hosts: Option<Vec<String>>,
    /// `gateway.trusted_proxies`
    pub(crate) trusted_proxies: Option<Vec<String>>,
    /// `gateway.tls_cert`
    pub(crate) tls_cert: Option<PathBuf>,
    /// `gateway.tls_key`
    pub(crate) tls_key: Option<PathBuf>,
    /// `gateway.tls_generate`
    pub(crate) tls_generate: Option<bool>,
    /// `gateway.insecure_http`
    pub(crate) insecure_http: Option<bool>,
    /// `runs.keep_days`
    pub(crate) keep_days: Option<u64>,
    /// `runs.keep_bytes`
    pub(crate) keep_bytes: Option<u64>,
    /// `runs.output_bytes_max`
    pub(crate) output_bytes_max: Option<u64>,
    /// `tools.exec.host`
    pub(crate) exec_host: Option<ExecHost>,
    /// `tools.exec.node`
    pub(crate) exec_node: Option<String>,
    /// `log.filter`
    pub(crate) log_filter: Option<String>,
    /// `log.format`
    pub(crate) log_format: Option<LogFormat>,
}

/// Where a command goes that names no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExecHost {
    /// The gateway's own machine.
    Local,
    /// The node that `tools.exec.node` names.
    Node,
}

impl ConfigFile {
    /// Returns the route of a command that names no place, as a request would name it.
    pub(crate) fn default_route(&self) -> String {
        match self.exec_host {
            None | Some(ExecHost::Local) => "local".to_owned(),
            Some(ExecHost::Node) => {
                let node = self.exec_node.as_deref().unwrap_or_default();
                format!("node:{node}")
            }
        }
    }
}

struct Key {
    table: &'static str,
    name: &'static str,
    /// Sets the value, or says what is allowed.
    read: fn(&DeValue<'_>, &mut ConfigFile) -> Result<(), &'static str>,
}

const KEYS: &[Key] = &[
    Key {
        table: "gateway",
        name: "listen",
        read: |value, file| {
            file.listen = Some(
                addresses(value)
                    .ok_or("a list of addresses with ports, as [\"127.0.0.1:9090\"]")?,
            );
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "hosts",
        read: |value, file| {
            file.hosts = Some(texts(value).ok_or("a list of host names, as [\"gateway.lan\"]")?);
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "trusted_proxies",
        read: |value, file| {
            let list = texts(value)
                .ok_or("a list of addresses and networks, as [\"127.0.0.1\", \"10.0.0.0/8\"]")?;
            file.trusted_proxies = Some(list);
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "tls_cert",
        read: |value, file| {
            file.tls_cert = Some(path(value).ok_or(FILE)?);
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "tls_key",
        read: |value, file| {
            file.tls_key = Some(path(value).ok_or(FILE)?);
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "tls_generate",
        read: |value, file| {
            file.tls_generate = Some(value.as_bool().ok_or("true or false")?);
            Ok(())
        },
    },
    Key {
        table: "gateway",
        name: "insecure_http",
        read: |value, file| {
            file.insecure_http = Some(value.as_bool().ok_or("true or false")?);
            Ok(())
        },
    },
    Key {
        table: "runs",
        name: "keep_days",
        read: |value, file| {
            file.keep_days = Some(number(value, 1..=36_500).ok_or("a number from 1 to 36500")?);
            Ok(())
        },
    },
    Key {
        table: "runs",
        name: "keep_bytes",
        read: |value, file| {
            file.keep_bytes = Some(number(value, 1 << 20..=1 << 50).ok_or(BYTES)?);
            Ok(())
        },
    },
    Key {
        table: "runs",
        name: "output_bytes_max",
        read: |value, file| {
            file.output_bytes_max = Some(number(value, 1 << 20..=1 << 50).ok_or(BYTES)?);
            Ok(())
        },
    },
    Key {
        table: "tools.exec",
        name: "host",
        read: |value, file| {
            file.exec_host = Some(match value.as_str() {
                Some("local") => ExecHost::Local,
                Some("node") => ExecHost::Node,
                _ => return Err("\"local\" or \"node\""),
            });
            Ok(())
        },
    },
    Key {
        table: "tools.exec",
        name: "node",
        read: |value, file| {
            let name = value.as_str().filter(|name| !name.trim().is_empty());
            let name = name.ok_or("the name or id of a node, as \"Build Server\"")?;
            file.exec_node = Some(name.to_owned());
            Ok(())
        },
    },
    Key {
        table: "log",
        name: "filter",
        read: |value, file| {
            let filter = value
                .as_str()
                .filter(|text| crate::logging::is_filter(text));
            file.log_filter = Some(
                filter
                    .ok_or("a filter, as \"info\" or \"moltis_gateway=debug\"")?
                    .to_owned(),
            );
            Ok(())
        },
    },
    Key {
        table: "log",
        name: "format",
        read: |value, file| {
            file.log_format = Some(match value.as_str() {
                Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                _ => return Err("\"text\" or \"json\""),
            });
            Ok(())
        },
    },
];

const BYTES: &str = "a number of bytes from 1048576 (1 MiB) to 1125899906842624 (1 PiB)";

const FILE: &str = "the path of a file in PEM, as \"/etc/ssl/gateway.pem\"";

/// Reads the file; `shown` is its path as a person writes it.
///
/// # Errors
/// It cannot be read, is not TOML, or holds a key or value that is not known.
pub(crate) fn load(path: &Path, shown: &str) -> Result<ConfigFile, Failure> {
    let mut text = String::new();
    let read = files::open(path, File::options().read(true))
        .and_then(|mut file| file.read_to_string(&mut text));
    match read {
        Ok(_) => parse(&text, shown),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(ConfigFile::default()),
        Err(error) => Err(error).or_fail(|| format!("cannot read `{shown}`")),
    }
}

fn parse(text: &str, shown: &str) -> Result<ConfigFile, Failure> {
    let at = |start: usize| format!("{shown}:{}", line_of(text, start));
    let root = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        failure(format!("{}: {}", at(start), error.message().trim()))
    })?;
    let mut file = ConfigFile::default();
    // Each table with what stands before the names of its keys.
    let mut tables = VecDeque::from([(String::new(), root.get_ref())]);
    while let Some((before, table)) = tables.pop_front() {
        for (name, value) in table {
            let full = format!("{before}{}", name.get_ref());
            if is_table(&full) {
                let DeValue::Table(below) = value.get_ref() else {
                    return Err(failure(format!(
                        "{}: `{full}` is of type {}: expected a table, as [{full}]",
                        at(value.span().start),
                        value.get_ref().type_str()
                    )));
                };
                tables.push_back((full + ".", below));
                continue;
            }
            let key = KEYS
                .iter()
                .find(|key| key.is(&full))
                .ok_or_else(|| unknown(&at(name.span().start), &full))?;
            (key.read)(value.get_ref(), &mut file).map_err(|allowed| {
                let found = &text[value.span()];
                failure(format!(
                    "{}: `{full}` is {}: expected {allowed}",
                    at(value.span().start),
                    cut(found)
                ))
            })?;
        }
    }
    Ok(file)
}

impl Key {
    fn is(&self, full: &str) -> bool {
        full.strip_prefix(self.table)
            .and_then(|rest| rest.strip_prefix('.'))
            == Some(self.name)
    }
}

/// Returns whether keys, or other tables, stand below this name.
fn is_table(name: &str) -> bool {
    let below = |table: &str| {
        table
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    KEYS.iter().any(|key| below(key.table))
}

fn unknown(at: &str, found: &str) -> Failure {
    let known = KEYS.iter().map(|key| format!("{}.{}", key.table, key.name));
    let nearest = if found.contains('.') {
        known.min_by_key(|key| distance(key, found))
    } else {
        KEYS.iter()
            .map(|key| key.table.to_owned())
            .chain(known)
            .min_by_key(|key| {
                // A key without its table is nearest to the full name of the same key.
                let short = key.rsplit('.').next().unwrap_or(key);
                distance(short, found)
            })
    };
    let failure = failure(format!(
        "{at}: unknown key `{}`",
        crate::visible::inline(found)
    ));
    match nearest {
        Some(key) => failure.hint(format!("the nearest known key is `{key}`")),
        None => failure,
    }
}

fn line_of(text: &str, start: usize) -> usize {
    let before = text.get(..start).unwrap_or_default();
    1 + before.matches('\n').count()
}

fn cut(value: &str) -> String {
    let line = value.lines().next().unwrap_or_default();
    let short: String = line.chars().take(60).collect();
    if short.len() == value.len() {
        short
    } else {
        format!("{short}…")
    }
}

fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items
        .map(|item| item.get_ref().as_str().map(str::to_owned))
        .collect()
}

fn path(value: &DeValue<'_>) -> Option<PathBuf> {
    let text = value.as_str().filter(|text| !text.is_empty())?;
    Some(PathBuf::from(text))
}

fn addresses(value: &DeValue<'_>) -> Option<Vec<SocketAddr>> {
    let texts = texts(value)?;
    let addresses: Option<Vec<_>> = texts.iter().map(|text| text.parse().ok()).collect();
    addresses.filter(|addresses| !addresses.is_empty())
}

fn number(value: &DeValue<'_>, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let integer = value.as_integer()?;
    let number = u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()?;
    range.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::report;

    fn error(text: &str) -> String {
        let failure = parse(text, "~/.moltis/moltis.toml").unwrap_err();
        let report = report(&failure.into());
        [report.messages, report.hints].concat().join(" | ")
    }

    #[test]
    fn every_key_is_read() {
        let file = parse(
            r#"
            [gateway]
            listen = ["127.0.0.1:0", "[::1]:9090"]
            hosts = ["gateway.lan"]
            trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]
            tls_cert = "/etc/ssl/gw.pem"
            tls_key = "keys/gw.pem"
            tls_generate = false
            insecure_http = true
            [runs]
            keep_days = 7
            keep_bytes = 10_000_000
            output_bytes_max = 0x100000
            [tools.exec]
            host = "node"
            node = "Build Server"
            [log]
            filter = "moltis_gateway=debug"
            format = "json"
            "#,
            "moltis.toml",
        )
        .unwrap();
        assert_eq!(file.default_route(), "node:Build Server");
        assert_eq!(file.listen.unwrap().len(), 2);
        assert_eq!(file.hosts.unwrap(), ["gateway.lan"]);
        assert_eq!(file.trusted_proxies.unwrap().len(), 2);
        assert_eq!(file.tls_cert.unwrap(), Path::new("/etc/ssl/gw.pem"));
        assert_eq!(file.tls_key.unwrap(), Path::new("keys/gw.pem"));
        assert_eq!(file.tls_generate, Some(false));
        assert_eq!(file.insecure_http, Some(true));
        assert_eq!(file.keep_days, Some(7));
        assert_eq!(file.keep_bytes, Some(10_000_000));
        assert_eq!(file.output_bytes_max, Some(1 << 20));
        assert_eq!(file.log_filter.unwrap(), "moltis_gateway=debug");
        assert_eq!(file.log_format, Some(LogFormat::Json));
    }

    #[test]
    fn what_is_no_file_in_its_place_is_named_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moltis.toml");
        let check = |what: &str| {
            let failure = load(&path, "moltis.toml").unwrap_err();
            let said = format!("{:?}", anyhow::Error::from(failure));
            let expected = format!("it is {what}, expected a regular file: move it away");
            assert!(said.contains(&expected), "{said}");
        };
        std::fs::create_dir(&path).unwrap();
        check("a directory");
        std::fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        check("a FIFO");
    }

    #[test]
    fn a_missing_file_is_the_default() {
        let missing = Path::new("/nonexistent/moltis.toml");
        assert_eq!(load(missing, "moltis.toml").unwrap(), ConfigFile::default());
    }

    #[test]
    fn the_default_route_is_local_unless_a_node_is_meant() {
        for (text, expected) in [
            ("", "local"),
            ("[tools]\n", "local"),
            ("[tools.exec]\nnode = \"box\"\n", "local"),
            ("tools.exec.host = \"local\"\n", "local"),
            (
                "[tools]\nexec = { host = \"node\", node = \"box\" }\n",
                "node:box",
            ),
            ("[tools.exec]\nhost = \"node\"\n", "node:"),
        ] {
            let file = parse(text, "moltis.toml").unwrap();
            assert_eq!(file.default_route(), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_name_file_line_key_and_what_is_known() {
        let all = [
            "[gateway]\nlisten = [\"127.0.0.1:0\"]\nlisen = []\n",
            "[gatway]\n",
            "listen = [\"127.0.0.1:0\"]\n",
            "gateway = 3\n",
            "[gateway]\nlisten = \"127.0.0.1:9090\"\n",
            "[gateway]\nlisten = [\"localhost\"]\n",
            "[gateway]\nlisten = []\n",
            "[gateway]\ntls_cert = true\n",
            "[gateway]\ninsecure_http = \"yes\"\n",
            "[gateway]\ntrusted_proxies = \"127.0.0.1\"\n",
            "\n\n[runs]\nkeep_days = 0\n",
            "[runs]\nkeep_days = -1\n",
            "[runs]\nkeep_bytes = \"1 GiB\"\n",
            "[log]\nfilter = \"moltis=verbose=\"\n",
            "[log]\nformat = \"xml\"\n",
            "[tools.exec]\nhost = \"box\"\n",
            "[tools.exec]\nnode = \" \"\n",
            "[tools.exec]\nhots = \"node\"\n",
            "[tools]\nexec = 7\n",
            "[tools.exek]\nhost = \"node\"\n",
            "[gateway\n",
            "[gateway]\nhosts = [\"a\"\n",
            "\u{0}\u{1}",
        ]
        .map(error);
        insta::assert_snapshot!("config_errors", all.join("\n"));
    }
}
