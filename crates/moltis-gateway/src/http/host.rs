//! Which hosts this gateway is asked for by: pure rules over a `Host` header and an `Origin`.
//!
//! A page of another site can make a browser call us, and a name of its own can be made to point at
//! us (DNS rebinding). Both show in these two headers, which no page can set. Addresses are parsed,
//! never compared as text, and what does not parse is not ours.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::peer::{Peer, Proxied};

/// A host and maybe a port, as they stand in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) host: Host,
    pub(crate) port: Option<u16>,
}

/// A name in lower case without its final dot, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Name(String),
    Ip(IpAddr),
}

/// The hosts that the configuration adds: `[gateway] hosts`.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Vec<Authority>);

/// An entry of `[gateway] hosts` is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is not a host: write a name or an address, and a port where it has one of its own (`gateway.lan`, `gateway.lan:8443`)"
)]
pub struct HostError {
    found: String,
}

impl Authority {
    /// Reads `host` or `host:port`; `None` for everything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > 300 {
            return None;
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']')?;
            let ip: Ipv6Addr = ip.parse().ok()?;
            let host = Host::Ip(IpAddr::V6(ip).to_canonical());
            let port = match rest {
                "" => None,
                rest => Some(port(rest.strip_prefix(':')?)?),
            };
            return Some(Self { host, port });
        }
        let (host, port) = match text.split_once(':') {
            None => (text, None),
            Some((host, rest)) => (host, Some(port(rest)?)),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name(name(host)?),
        };
        Some(Self { host, port })
    }

    /// Reads an `Origin`: a scheme of the web, an authority, and nothing more.
    pub(crate) fn parse_origin(text: &str) -> Option<Self> {
        let (rest, usual_port) = match text.strip_prefix("http://") {
            Some(rest) => (rest, 80),
            None => (text.strip_prefix("https://")?, 443),
        };
        let mut authority = Self::parse(rest)?;
        authority.port.get_or_insert(usual_port);
        Some(authority)
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|port| *port != 0)
}

/// Returns a name in lower case. A name that ends in a number is one that a browser would read as
/// an address (`127.1`, `0x7f.1`), and none of ours.
fn name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let last = text.rsplit('.').next()?;
    let numeric = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some();
    (text.len() <= 253 && text.split('.').all(label) && !numeric).then(|| text.to_ascii_lowercase())
}

impl Hosts {
    /// Parses the configured list.
    ///
    /// # Errors
    /// The first entry that is no host.
    pub fn new(list: &[String]) -> Result<Self, HostError> {
        let parse = |text: &String| {
            Authority::parse(text).ok_or_else(|| HostError {
                found: text.chars().take(80).collect(),
            })
        };
        list.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the configured hosts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Authority> {
        self.0.iter()
    }

    /// Returns whether a peer may ask for `asked`: loopback and the address it dialled, at the port
    /// it dialled, and what the configuration adds, at its own port or any.
    pub(crate) fn allow(&self, asked: &Authority, peer: &Peer) -> bool {
        let configured = self.0.iter().any(|ours| {
            ours.host == asked.host && (ours.port.is_none() || ours.port == asked.port)
        });
        let own = match peer {
            Peer::Tcp { local, .. }
            | Peer::Tls { local, .. }
            | Peer::Proxied(Proxied { local, .. }) => {
                (is_loopback(&asked.host) || is_address(&asked.host, *local))
                    && asked.port.is_none_or(|port| port == local.port())
            }
            // No browser reaches a Unix socket, and an embedder knows its own ports.
            Peer::Unix { .. } | Peer::Remote(_) | Peer::Unknown => is_loopback(&asked.host),
        };
        configured || own
    }
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Name(name) => name == "localhost",
        Host::Ip(ip) => ip.is_loopback(),
    }
}

fn is_address(host: &Host, local: SocketAddr) -> bool {
    matches!(host, Host::Ip(ip) if *ip == local.ip().to_canonical())
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name)?,
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialled(local: &str) -> Peer {
        Peer::Tcp {
            remote: "192.0.2.9:50000".parse().unwrap(),
            local: local.parse().unwrap(),
        }
    }

    fn allowed(text: &str, hosts: &[&str], peer: &Peer) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let hosts = Hosts::new(&hosts).unwrap();
        Authority::parse(text).is_some_and(|asked| hosts.allow(&asked, peer))
    }

    /// Names that mean this machine and nothing else, whatever DNS says.
    const OURS: [&str; 12] = [
        "localhost",
        "LOCALHOST",
        "LocalHost",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1.",
        "127.0.0.2",
        "127.255.255.254",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[0000:0000:0000:0000:0000:0000:0000:0001]",
        "[::ffff:127.0.0.1]",
    ];

    /// Names that look as if they did.
    const NOT_OURS: [&str; 62] = [
        "",
        " ",
        ".",
        "..",
        "localhost..",
        ".localhost",
        "local host",
        " localhost",
        "localhost ",
        "localhost\t",
        "localhost,evil.example",
        "localhost/",
        "localhost#",
        "localhost?",
        "localhost\\",
        "localhost%00",
        "localhost%2eevil.example",
        "localhost.evil.example",
        "evil.example.localhost",
        "evil-localhost",
        "localhost-evil",
        "localhost6",
        "xn--localhost-",
        "ｌｏｃａｌｈｏｓｔ",
        "locаlhost",
        "user@localhost",
        "user:pass@localhost",
        "localhost@evil.example",
        "@localhost",
        "localhost@",
        "127.0.0.1@evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "evil.example",
        "127.1",
        "127.0.1",
        "127",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0X7F.1",
        "0177.0.0.1",
        "0127.0.0.1",
        "127.0.0.01",
        "127.0.0.256",
        "128.0.0.1",
        "0.0.0.0",
        "0",
        "[::]",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1].",
        "[[::1]]",
        "[::1%lo]",
        "[::1%251]",
        "[127.0.0.1]",
        "[localhost]",
        "[::ffff:128.0.0.1]",
        "[fe80::1]",
        "[]",
    ];

    /// What may follow a host, and whether the gateway on port 9090 is then still meant.
    const PORTS: [(&str, bool); 11] = [
        ("", true),
        (":9090", true),
        (":09090", true),
        (":9091", false),
        (":80", false),
        (":0", false),
        (":", false),
        (":99999", false),
        (":-9090", false),
        (":+9090", false),
        (":9090:9090", false),
    ];

    #[test]
    fn loopback_is_ours_at_the_port_that_was_dialled_and_nothing_else_is() {
        let peer = dialled("127.0.0.1:9090");
        let mut cases = 0;
        for (port, is_ours) in PORTS {
            for host in OURS {
                let text = format!("{host}{port}");
                assert_eq!(allowed(&text, &[], &peer), is_ours, "{text:?}");
                cases += 1;
            }
            for host in NOT_OURS {
                let text = format!("{host}{port}");
                assert!(!allowed(&text, &[], &peer), "{text:?}");
                cases += 1;
            }
        }
        assert!(cases >= 200, "{cases}");
    }

    #[test]
    fn the_same_hosts_decide_as_origins() {
        let peer = dialled("127.0.0.1:9090");
        let ours = |text: &str| {
            Authority::parse_origin(text)
                .is_some_and(|origin| Hosts::default().allow(&origin, &peer))
        };
        for host in OURS {
            for scheme in ["http", "https"] {
                assert!(ours(&format!("{scheme}://{host}:9090")), "{scheme} {host}");
                assert!(
                    !ours(&format!("{scheme}://{host}")),
                    "{scheme} {host}: its usual port"
                );
                assert!(!ours(&format!("{scheme}://{host}:3000")), "{scheme} {host}");
                assert!(
                    !ours(&format!("{scheme}://{host}:9090/")),
                    "{scheme} {host}: a path"
                );
            }
            for scheme in [
                "ws://",
                "file://",
                "HTTP//",
                "//",
                "",
                "null",
                "chrome-extension://",
            ] {
                assert!(!ours(&format!("{scheme}{host}:9090")), "{scheme} {host}");
            }
        }
        for host in NOT_OURS {
            assert!(!ours(&format!("http://{host}:9090")), "{host:?}");
        }
        for text in [
            "null",
            "",
            "http://",
            "https://",
            "http:///",
            "http://localhost:9090 http://x",
        ] {
            assert!(!ours(text), "{text:?}");
        }
    }

    #[test]
    fn an_address_is_ours_where_it_was_dialled() {
        let lan = dialled("192.168.1.5:9090");
        for text in ["192.168.1.5", "192.168.1.5:9090"] {
            assert!(allowed(text, &[], &lan), "{text}");
        }
        for text in [
            "192.168.1.6:9090",
            "192.168.1.5:80",
            "192.168.1.50:9090",
            "192.168.1.5.x:9090",
        ] {
            assert!(!allowed(text, &[], &lan), "{text}");
        }
        let mapped = dialled("[::ffff:192.168.1.5]:9090");
        assert!(allowed("192.168.1.5:9090", &[], &mapped));
        let v6 = dialled("[2001:db8::5]:9090");
        assert!(allowed("[2001:DB8:0::5]:9090", &[], &v6));
        assert!(!allowed("[2001:db8::6]:9090", &[], &v6));
    }

    #[test]
    fn configured_names_hold_at_any_port_and_with_a_port_at_that_one() {
        let peer = dialled("192.168.1.5:9090");
        let hosts = ["gateway.lan", "proxy.example:8443", "10.0.0.7"];
        for text in [
            "gateway.lan",
            "Gateway.LAN.",
            "gateway.lan:9090",
            "gateway.lan:443",
            "proxy.example:8443",
            "10.0.0.7",
            "10.0.0.7:9090",
        ] {
            assert!(allowed(text, &hosts, &peer), "{text}");
        }
        for text in [
            "gateway.lan.evil.example",
            "agateway.lan",
            "proxy.example",
            "proxy.example:9090",
            "10.0.0.70",
        ] {
            assert!(!allowed(text, &hosts, &peer), "{text}");
        }
    }

    #[test]
    fn an_entry_that_is_no_host_is_named() {
        for bad in [
            "",
            "http://gateway.lan",
            "a b",
            "gateway.lan/x",
            "*",
            "user@gateway.lan",
            "x:0",
        ] {
            let error = Hosts::new(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{bad}` is not a host")),
                "{error}"
            );
        }
    }
}
