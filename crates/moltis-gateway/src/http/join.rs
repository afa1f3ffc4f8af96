//! The address that a new node is told to dial. Pure.

use std::net::{IpAddr, SocketAddr};

use super::extract::Prefix;
use super::host::{Authority, Host};

/// An address to dial, and why another machine cannot, where it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JoinAddress {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// Whose certificate a node meets there.
    pub(super) whose: Whose,
    pub(super) warning: Option<String>,
}

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The gateway's.
    Ours,
    /// That of a proxy before it.
    Proxy,
}

/// How it is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `ws`: the channel inside is encrypted by itself.
    Ws,
    /// `wss`: by TLS, with a certificate that the node checks.
    Wss,
}

/// The address by which somebody asks.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) authority: Authority,
    /// The proxy that was asked has TLS, by a certificate of its own.
    pub(super) of_proxy: Option<Scheme>,
}

/// What is known of the ways to this gateway.
pub(super) struct Ways<'a> {
    /// What is listened on.
    pub(super) listening: &'a [SocketAddr],
    /// This machine's address on its network.
    pub(super) lan: Option<IpAddr>,
    /// The hosts of the configuration.
    pub(super) hosts: Vec<Authority>,
    /// Where there is a certificate: whether it names a host.
    pub(super) covers: Option<&'a dyn Fn(&Host) -> bool>,
}

/// Chooses the address: the one that the asker used itself, where that is not loopback; else one
/// that is listened on, or a configured name that the certificate has; else loopback, with a warning.
/// `None` while nothing is listened on and nobody has asked by an address with a port.
pub(super) fn choose(asked: Option<&Asked>, ways: &Ways<'_>) -> Option<JoinAddress> {
    if let Some(asked) = asked.filter(|asked| !is_loopback(&asked.authority.host)) {
        let authority = asked.authority.clone();
        return Some(match asked.of_proxy {
            Some(scheme) => JoinAddress {
                scheme,
                authority,
                whose: Whose::Proxy,
                warning: None,
            },
            None => ways.to(authority),
        });
    }
    let reachable = ways.listening.iter().filter_map(|address| {
        let ip = address.ip().to_canonical();
        let ip = if ip.is_unspecified() { ways.lan? } else { ip };
        (!ip.is_loopback()).then(|| authority(ip, address.port()))
    });
    let mut candidates: Vec<Authority> = reachable.collect();
    if let Some(port) = candidates.first().and_then(|first| first.port) {
        let named = ways.hosts.iter().cloned().map(|mut host| {
            host.port.get_or_insert(port);
            host
        });
        candidates.extend(named);
    }
    let covered = candidates.iter().find(|one| ways.covers(&one.host));
    if let Some(best) = covered.or(candidates.first()) {
        return Some(ways.to(best.clone()));
    }
    let Some(local) = ways.listening.first() else {
        // An embedder listens by itself, and the asker came by an address of its own.
        let asked = asked.filter(|asked| asked.authority.port.is_some())?;
        let mut join = ways.to(asked.authority.clone());
        join.warning = Some(format!(
            "`{}` is this machine's own, which other machines cannot reach",
            asked.authority
        ));
        return Some(join);
    };
    let mut join = ways.to(authority(local.ip().to_canonical(), local.port()));
    join.warning = Some(format!(
        "the gateway listens on {local} only, which other machines cannot reach: start it with \
         --listen 0.0.0.0:{}",
        local.port()
    ));
    Some(join)
}

impl Ways<'_> {
    fn covers(&self, host: &Host) -> bool {
        self.covers.is_some_and(|covers| covers(host))
    }

    /// A name that the certificate lacks is dialled without TLS, which the same port takes: a node
    /// would refuse the certificate, and loses nothing.
    fn to(&self, authority: Authority) -> JoinAddress {
        let (scheme, warning) = match self.covers {
            None => (Scheme::Ws, None),
            Some(covers) if covers(&authority.host) => (Scheme::Wss, None),
            Some(_) => {
                let words = format!(
                    "the certificate does not name {}, so the node is told to dial it by ws://, which is \
                     encrypted by itself; for wss:// add a name that the certificate has to `hosts` under \
                     `[gateway]` in moltis.toml",
                    authority.host
                );
                (Scheme::Ws, Some(words))
            }
        };
        JoinAddress {
            scheme,
            authority,
            whose: Whose::Ours,
            warning,
        }
    }
}

impl JoinAddress {
    /// Returns the URL to dial, where the gateway is served below `prefix`.
    pub(super) fn url(&self, prefix: &Prefix) -> String {
        let scheme = match self.scheme {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        };
        format!("{scheme}://{}{prefix}/ws", self.authority)
    }
}

fn authority(ip: IpAddr, port: u16) -> Authority {
    Authority {
        host: Host::Ip(ip),
        port: Some(port),
    }
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Name(name) => name == "localhost",
        Host::Ip(ip) => ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str, of_proxy: Option<Scheme>) -> Asked {
        Asked {
            authority: Authority::parse(text).unwrap(),
            of_proxy,
        }
    }

    fn chosen(
        asked: Option<&Asked>,
        listening: &[&str],
        lan: Option<&str>,
        certificate: Option<&[&str]>,
    ) -> (String, bool) {
        let listening: Vec<_> = listening.iter().map(|a| a.parse().unwrap()).collect();
        let names = |host: &Host| {
            let names = certificate.unwrap_or_default();
            names.contains(&host.to_string().as_str())
        };
        let ways = Ways {
            listening: &listening,
            lan: lan.map(|lan| lan.parse().unwrap()),
            hosts: vec![Authority::parse("gateway.lan").unwrap()],
            covers: certificate.map(|_| &names as &dyn Fn(&Host) -> bool),
        };
        let join = choose(asked, &ways).unwrap();
        (join.url(&Prefix::default()), join.warning.is_some())
    }

    fn says(found: (String, bool), url: &str, warns: bool) {
        let (found_url, found_warning) = found;
        assert_eq!((found_url.as_str(), found_warning), (url, warns));
    }

    #[test]
    fn the_address_that_was_used_is_the_best_one() {
        let listening = ["127.0.0.1:9090", "0.0.0.0:9090"];
        let lan = Some("192.168.1.5");
        let by_name = asked("gw.example", None);
        let found = chosen(Some(&by_name), &listening, lan, None);
        says(found, "ws://gw.example/ws", false);
        for text in ["localhost:9090", "[::1]:9090"] {
            let found = chosen(Some(&asked(text, None)), &listening, lan, None);
            says(found, "ws://192.168.1.5:9090/ws", false);
        }
        let found = chosen(None, &listening, lan, None);
        says(found, "ws://192.168.1.5:9090/ws", false);
    }

    #[test]
    fn what_nobody_else_can_reach_is_told_as_such() {
        let lan = Some("192.168.1.5");
        let found = chosen(None, &["127.0.0.1:4000"], lan, None);
        says(found, "ws://127.0.0.1:4000/ws", true);
        let found = chosen(None, &["127.0.0.1:4000"], lan, Some(&["127.0.0.1"]));
        says(found, "wss://127.0.0.1:4000/ws", true);
        let found = chosen(None, &["[2001:db8::1]:9"], None, None);
        says(found, "ws://[2001:db8::1]:9/ws", false);
        let nothing = Ways {
            listening: &[],
            lan: None,
            hosts: Vec::new(),
            covers: None,
        };
        assert_eq!(choose(None, &nothing), None);
        let join = choose(Some(&asked("127.0.0.1:8080", None)), &nothing).unwrap();
        assert_eq!(join.url(&Prefix::default()), "ws://127.0.0.1:8080/ws");
        assert!(join.warning.is_some());
    }

    #[test]
    fn tls_is_used_where_the_certificate_names_the_address() {
        let listening = ["0.0.0.0:9090"];
        let lan = Some("192.168.1.5");
        let found = chosen(None, &listening, lan, Some(&["192.168.1.5"]));
        says(found, "wss://192.168.1.5:9090/ws", false);
        let found = chosen(None, &listening, lan, Some(&["gateway.lan"]));
        says(found, "wss://gateway.lan:9090/ws", false);
        let found = chosen(None, &listening, lan, Some(&["other.example"]));
        says(found, "ws://192.168.1.5:9090/ws", true);
        let by_name = asked("gw.example:9090", None);
        let found = chosen(Some(&by_name), &listening, lan, Some(&["gw.example"]));
        says(found, "wss://gw.example:9090/ws", false);
    }

    #[test]
    fn behind_a_proxy_its_own_tls_counts() {
        let listening = ["127.0.0.1:9090"];
        for (of_proxy, url) in [
            (Scheme::Wss, "wss://moltis.example/ws"),
            (Scheme::Ws, "ws://moltis.example/ws"),
        ] {
            let by_proxy = asked("moltis.example", Some(of_proxy));
            says(chosen(Some(&by_proxy), &listening, None, None), url, false);
        }
        // A proxy cannot make a name of this machine one that others reach.
        let by_proxy = asked("localhost", Some(Scheme::Wss));
        let found = chosen(Some(&by_proxy), &listening, None, None);
        says(found, "ws://127.0.0.1:9090/ws", true);
    }
}
