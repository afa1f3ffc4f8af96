//! The address of a gateway, as a person types it after `--host`. Parsed once; whatever is wrong
//! with it is said by name.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of an address, at the most.
const URL_BYTES_MAX: usize = 1024;

/// `ws://host:port/ws` or `wss://host[:port]/ws`: where a gateway takes nodes. The path may have
/// something before `/ws`, for a gateway that lives below a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Why a text is not the address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// There is nothing.
    #[error("the gateway's address is empty: expected `ws://<host>:<port>/ws`")]
    Empty,
    /// Far more than an address.
    #[error("the gateway's address has {found} bytes: at most {URL_BYTES_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// `http://` or `https://`.
    #[error("`{found}` is a web address: a node dials `{instead}`")]
    WebScheme {
        /// What was typed.
        found: String,
        /// The same with the right scheme.
        instead: String,
    },
    /// Another scheme, or none.
    #[error("`{found}` does not begin with `ws://` or `wss://`: try `{instead}`")]
    Scheme {
        /// What was typed.
        found: String,
        /// The most likely form.
        instead: String,
    },
    /// Nothing between `//` and the port.
    #[error("`{found}` names no host: expected `ws://<host>:<port>/ws`")]
    NoHost {
        /// What was typed.
        found: String,
    },
    /// A host that is neither a name nor an address.
    #[error("`{host}` is no host name: expected letters, digits, `-` and `.`, or an IP address")]
    BadHost {
        /// The host as typed.
        host: String,
    },
    /// `ws://` without a port.
    #[error(
        "`{found}` names no port: a gateway listens on 9090 unless told otherwise, so try `{instead}`"
    )]
    NoPort {
        /// What was typed.
        found: String,
        /// The same with the usual port.
        instead: String,
    },
    /// A port that is none.
    #[error("`{port}` is no port: expected a number from 1 to 65535")]
    BadPort {
        /// The port as typed.
        port: String,
    },
    /// `user:password@`. The text is not repeated here.
    #[error(
        "the gateway's address holds a user name or password: nodes prove themselves by key, so leave out everything up to the `@`"
    )]
    Credentials,
    /// `?…` or `#…`.
    #[error("the gateway's address ends in `{found}`: it takes no query and no fragment")]
    Query {
        /// The part that is too much.
        found: String,
    },
    /// Another path than `…/ws`.
    #[error("`{path}` is not where a gateway takes nodes: the path is `/ws`")]
    Path {
        /// The path as typed.
        path: String,
    },
}

impl GatewayUrl {
    /// Returns whether TLS is around the WebSocket.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Returns the host: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path, which ends in `/ws`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the same address with TLS where it has none, and without where it has.
    #[must_use]
    pub fn other_scheme(&self) -> Self {
        Self {
            tls: !self.tls,
            ..self.clone()
        }
    }

    /// Returns whether this can be the same gateway as `other`, which is reached with TLS while this
    /// one is reached without, or the other way about.
    pub fn differs_in_tls(&self, other: &Self) -> bool {
        self.tls != other.tls && self.host == other.host && self.path == other.path
    }

    /// Returns `host:port`, an IPv6 address in brackets: what the `Host` header says.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl FromStr for GatewayUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong { found: text.len() });
        }
        let (tls, rest) = split_scheme(text)?;
        if let Some(at) = rest.find(['?', '#']) {
            return Err(UrlError::Query {
                found: shown(&rest[at..]),
            });
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(UrlError::Credentials);
        }
        let (host, port) = split_port(authority)?;
        let host = parse_host(host, text)?;
        let path = parse_path(path)?;
        let url = |port| Self {
            tls,
            host,
            port,
            path,
        };
        match port {
            Some(port) => Ok(url(parse_port(port)?)),
            None if tls => Ok(url(443)),
            None => Err(UrlError::NoPort {
                found: shown(text),
                instead: url(9090).to_string(),
            }),
        }
    }
}

impl TryFrom<String> for GatewayUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<GatewayUrl> for String {
    fn from(url: GatewayUrl) -> Self {
        url.to_string()
    }
}

fn split_scheme(text: &str) -> Result<(bool, &str), UrlError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(UrlError::Scheme {
            found: shown(text),
            instead: format!("ws://{}", shown(text.trim_start_matches('/'))),
        });
    };
    let suggestion = |scheme: &str| {
        let rest = rest.trim_end_matches('/');
        let path = if rest.contains('/') { "" } else { "/ws" };
        format!("{scheme}://{}{path}", shown(without_credentials(rest)))
    };
    match scheme.to_ascii_lowercase().as_str() {
        "ws" => Ok((false, rest)),
        "wss" => Ok((true, rest)),
        "http" => Err(UrlError::WebScheme {
            found: shown(&format!("http://{}", without_credentials(rest))),
            instead: suggestion("ws"),
        }),
        "https" => Err(UrlError::WebScheme {
            found: shown(&format!("https://{}", without_credentials(rest))),
            instead: suggestion("wss"),
        }),
        _ => Err(UrlError::Scheme {
            found: shown(&format!("{scheme}://{}", without_credentials(rest))),
            instead: suggestion("ws"),
        }),
    }
}

/// An address with a password in it is never repeated on a screen.
fn without_credentials(rest: &str) -> &str {
    let end = rest.find('/').unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => &rest[at + 1..],
        None => rest,
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), UrlError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let bad = || UrlError::BadHost {
            host: shown(authority),
        };
        let (host, after) = rest.split_once(']').ok_or_else(bad)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(bad()),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(UrlError::BadHost {
            host: format!("{} (write an IPv6 address in brackets)", shown(authority)),
        }),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn parse_host(host: &str, text: &str) -> Result<String, UrlError> {
    if host.is_empty() {
        return Err(UrlError::NoHost { found: shown(text) });
    }
    let bad = || UrlError::BadHost { host: shown(host) };
    if host.contains(':') {
        let address: Ipv6Addr = host.parse().map_err(|_| bad())?;
        return Ok(address.to_string());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() <= 253 && name.split('.').all(is_label) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err(bad())
    }
}

fn parse_port(port: &str) -> Result<u16, UrlError> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    port.parse()
        .ok()
        .filter(|port| digits && *port != 0)
        .ok_or_else(|| UrlError::BadPort { port: shown(port) })
}

fn parse_path(path: &str) -> Result<String, UrlError> {
    if matches!(path, "" | "/") {
        return Ok("/ws".to_owned());
    }
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment != ".."
            && segment != "."
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b))
    };
    let sound = path[1..].split('/').all(is_segment) && path.ends_with("/ws");
    if sound {
        Ok(path.to_owned())
    } else {
        Err(UrlError::Path { path: shown(path) })
    }
}

/// Cut and escaped, so that it is safe to print.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        match text.parse::<GatewayUrl>() {
            Ok(url) => assert_eq!(url.to_string(), expected, "{text}"),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    #[test]
    fn addresses_are_completed_and_normalised() {
        check("ws://192.168.1.5:9090/ws", "ws://192.168.1.5:9090/ws");
        check("ws://192.168.1.5:9090", "ws://192.168.1.5:9090/ws");
        check("ws://Gateway.LAN:9090/", "ws://gateway.lan:9090/ws");
        check("WSS://gw.example.org", "wss://gw.example.org:443/ws");
        check("ws://[::1]:9090/ws", "ws://[::1]:9090/ws");
        check("ws://[0:0:0:0:0:0:0:1]:80", "ws://[::1]:80/ws");
        check(
            "wss://example.org/moltis/ws",
            "wss://example.org:443/moltis/ws",
        );
        check(" ws://h:1/ws ", "ws://h:1/ws");
    }

    #[test]
    fn each_mistake_is_told_apart() {
        let error = |text: &str| text.parse::<GatewayUrl>().unwrap_err();
        let matches = [
            matches!(error(""), UrlError::Empty),
            matches!(
                error(&format!("ws://{}:1", "a".repeat(2000))),
                UrlError::TooLong { .. }
            ),
            matches!(error("http://h:9090"), UrlError::WebScheme { instead, .. } if instead == "ws://h:9090/ws"),
            matches!(error("https://h/ws"), UrlError::WebScheme { instead, .. } if instead == "wss://h/ws"),
            matches!(error("h:9090"), UrlError::Scheme { instead, .. } if instead == "ws://h:9090"),
            matches!(error("ftp://h:9090"), UrlError::Scheme { .. }),
            matches!(error("ws://"), UrlError::NoHost { .. }),
            matches!(error("ws://:9090"), UrlError::NoHost { .. }),
            matches!(error("ws://h/ws"), UrlError::NoPort { instead, .. } if instead == "ws://h:9090/ws"),
            matches!(error("ws://h:0"), UrlError::BadPort { .. }),
            matches!(error("ws://h:65536"), UrlError::BadPort { .. }),
            matches!(error("ws://h:+80"), UrlError::BadPort { .. }),
            matches!(error("ws://h:/ws"), UrlError::BadPort { .. }),
            matches!(error("ws://h:9090/ws?a=b"), UrlError::Query { found } if found == "?a=b"),
            matches!(error("ws://h:9090/ws#x"), UrlError::Query { .. }),
            matches!(error("ws://h:9090/api"), UrlError::Path { .. }),
            matches!(error("ws://h:9090/ws/"), UrlError::Path { .. }),
            matches!(error("ws://h:9090/../ws"), UrlError::Path { .. }),
            matches!(error("ws://h:9090//ws"), UrlError::Path { .. }),
            matches!(error("ws://a b:9090"), UrlError::BadHost { .. }),
            matches!(error("ws://a\nb:9090"), UrlError::BadHost { .. }),
            matches!(error("ws://::1:9090"), UrlError::BadHost { .. }),
            matches!(error("ws://[::g]:9090"), UrlError::BadHost { .. }),
            matches!(error("ws://bücher.de:9090"), UrlError::BadHost { .. }),
        ];
        assert_eq!(matches, [true; 24]);
    }

    #[test]
    fn a_password_is_refused_and_never_repeated() {
        for text in [
            "ws://u:hunter2@h:9090/ws",
            "http://u:hunter2@h:9090/ws",
            "x://u:hunter2@h",
        ] {
            let words = text.parse::<GatewayUrl>().unwrap_err().to_string();
            assert!(!words.contains("hunter2"), "{words}");
        }
    }
}
