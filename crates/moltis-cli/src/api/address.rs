//! Where a gateway is administered: its socket on this machine, or an `https://` or `http://` address.

use std::fmt::Write as _;

use moltis_gateway::api::PREFIX;

use crate::failure::{Failure, usage};
use crate::paths::Home;

/// Where to connect to.
#[derive(Debug)]
pub(crate) enum Address {
    /// `gateway.sock` below this home.
    Local {
        /// The home.
        home: Home,
    },
    /// TCP, and maybe TLS.
    Remote {
        /// As it was typed.
        url: String,
        /// How.
        scheme: Scheme,
        /// A name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
        /// What stands before `/api/v1`, without a slash at its end.
        prefix: String,
    },
}

/// How a gateway elsewhere is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// In the clear.
    Http,
    /// With TLS.
    Https,
}

impl Address {
    /// Returns the socket of this machine.
    pub(crate) fn local(home: Home) -> Self {
        Self::Local { home }
    }

    /// Parses `https://host[:port][/prefix]` or `http://host:port[/prefix]`.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub(crate) fn parse(url: &str) -> Result<Self, Failure> {
        let shown = crate::visible::inline(url).into_owned();
        let wrong = |problem: &str| {
            usage(format!("`{shown}` {problem}"))
                .hint("expected --gateway https://<host>:9090, or http://127.0.0.1:9090")
        };
        if url.starts_with("ws://") || url.starts_with("wss://") {
            return Err(wrong(
                "is where nodes dial, not where a gateway is administered",
            ));
        }
        let (scheme, rest) = after_scheme(url, "http://")
            .map(|rest| (Scheme::Http, rest))
            .or_else(|| Some((Scheme::Https, after_scheme(url, "https://")?)))
            .ok_or_else(|| wrong("begins with neither `https://` nor `http://`"))?;
        if rest.contains(['?', '#']) {
            return Err(wrong("has a query or a fragment"));
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(usage("the gateway's address holds a user name or password")
                .hint("leave out everything up to the `@`; the token goes into MOLTIS_API_TOKEN"));
        }
        let has_port = authority
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty() && (!host.contains(':') || host.ends_with(']')));
        let (host, port) = match has_port {
            Some((host, port)) => (host, port),
            None if scheme == Scheme::Https && is_bare(authority) => (authority, "443"),
            None => return Err(wrong("names no host and port")),
        };
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("names no port from 1 to 65535"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let sound = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !sound(host) || !sound(path) {
            return Err(wrong("holds a character that no address has"));
        }
        if path.trim_end_matches('/').ends_with(PREFIX) {
            return Err(wrong(&format!(
                "ends with `{PREFIX}`, which every command adds by itself"
            )));
        }
        Ok(Self::Remote {
            url: url.to_owned(),
            scheme,
            host: host.to_owned(),
            port,
            prefix: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Returns where it is, for a sentence.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Local { home } => format!("`{}`", home.show(&home.gateway_socket())),
            Self::Remote { url, .. } => url.clone(),
        }
    }

    /// Returns what the `Host` header says.
    pub(crate) fn host_header(&self) -> String {
        match self {
            Self::Local { .. } => "localhost".to_owned(),
            Self::Remote { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Remote { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// Returns what stands before `/api/v1`.
    pub(crate) fn prefix(&self) -> &str {
        match self {
            Self::Local { .. } => "",
            Self::Remote { prefix, .. } => prefix,
        }
    }
}

/// Returns what follows a scheme, whose letters may be of any case (RFC 3986, 3.1).
fn after_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = url.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Returns whether this is a host without a port: an IPv6 address stands in brackets.
fn is_bare(authority: &str) -> bool {
    !authority.is_empty() && (!authority.contains(':') || authority.ends_with(']'))
}

/// Returns a text as one segment of a path, or one value of a query (RFC 3986, 2.1).
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a string takes everything");
        }
    }
    match escaped.as_str() {
        // A path of dots would be another path.
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_http_with_a_host() {
        for (url, host_header, prefix) in [
            ("http://127.0.0.1:9090", "127.0.0.1:9090", ""),
            ("http://127.0.0.1:9090/", "127.0.0.1:9090", ""),
            ("http://[::1]:80/moltis/", "[::1]:80", "/moltis"),
            ("http://gateway.lan:1", "gateway.lan:1", ""),
            ("https://gateway.lan", "gateway.lan:443", ""),
            ("https://[::1]/moltis", "[::1]:443", "/moltis"),
            ("https://gateway.lan:9090/", "gateway.lan:9090", ""),
            ("HTTPS://gateway.lan", "gateway.lan:443", ""),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.host_header(), host_header);
            assert_eq!(address.prefix(), prefix);
        }
    }

    #[test]
    fn anything_else_is_told_apart() {
        let said = |url| Address::parse(url).unwrap_err().to_string();
        assert!(said("https://").contains("no host and port"));
        assert!(said("https://::1").contains("no host and port"));
        assert!(said("https://gw:").contains("no port"));
        assert!(said("ws://gw:1/ws").contains("where nodes dial"));
        assert!(said("gw:9090").contains("http://"));
        assert!(said("http://gw:1/moltis/api/v1/").contains("adds by itself"));
        assert!(said("http://gw").contains("no host and port"));
        assert!(said("http://::1:80").contains("no host and port"));
        assert!(said("http://gw:0").contains("no port"));
        assert!(said("http://gw:99999").contains("no port"));
        assert!(said("http://gw:1?a=b").contains("query"));
        assert!(!said("http://u:hunter2@gw:1").contains("hunter2"));
        assert!(said("http://g w:1").contains("character"));
    }

    #[test]
    fn a_name_in_a_path_stays_one_segment() {
        assert_eq!(escape("Build Server/ä"), "Build%20Server%2F%C3%A4");
        assert_eq!(escape(".."), "%2E%2E");
    }
}
