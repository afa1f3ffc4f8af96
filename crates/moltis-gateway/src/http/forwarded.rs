//! What a proxy tells of the client behind it: `X-Forwarded-For`, `-Proto` and `-Host`, believed where
//! `[gateway] trusted_proxies` names the peer that sends them and nowhere else.
//!
//! What is believed names a source, and can take rights away; it grants none. No header makes a client
//! one of this machine.

use std::net::IpAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;

use super::gate::peer_of;
use super::host::Authority;
use super::peer::{Peer, Proxied, Security};

/// Hops that are looked at. More are some trick, and nobody is believed.
const HOPS_MAX: usize = 32;

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The proxies that are believed. Empty, nobody is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies(Vec<Network>);

/// An address, or all that begin as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: u128,
    /// Bits that count, of 128: an IPv4 address is looked at in IPv6 clothes.
    bits: u32,
}

/// An entry of `[gateway] trusted_proxies` is no address and no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no trusted proxy: write its address or its network (`127.0.0.1`, `10.0.0.0/8`)"
)]
pub struct ProxyError {
    found: String,
}

impl Proxies {
    /// Parses the configured list.
    ///
    /// # Errors
    /// The first entry that is neither an address nor a network.
    pub(crate) fn new(list: &[String]) -> Result<Self, ProxyError> {
        let parse = |text: &String| {
            Network::parse(text).ok_or_else(|| ProxyError {
                found: text.chars().take(80).collect(),
            })
        };
        list.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether what this peer tells of others is believed.
    pub(crate) fn trust(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.holds(ip))
    }

    /// Returns who asks, by what a proxy that is trusted tells of it; everybody else as they are.
    fn peer(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        let (proxy, local, hop) = match peer {
            Peer::Tcp { remote, local } => (remote, local, Security::Plain),
            Peer::Tls { remote, local } => (remote, local, Security::Tls),
            Peer::Proxied(_) | Peer::Unix { .. } | Peer::Remote(_) | Peer::Unknown => return peer,
        };
        // A program on the proxy's machine that asks for itself tells nothing of others.
        let tells = [&FOR, &PROTO, &HOST]
            .into_iter()
            .any(|name| headers.contains_key(name));
        if !tells || !self.trust(proxy.ip()) {
            return peer;
        }
        Peer::Proxied(Proxied {
            client: self.client(headers),
            proxy,
            local,
            hop,
            outside: outside(headers),
        })
    }

    /// Each proxy adds whom it heard from at the right. So the first one from there that is no proxy
    /// of ours is the client, and what stands left of it is its own invention.
    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let hops: Vec<&str> = values(headers, &FOR)?.collect();
        let mut hops = hops.into_iter().rev();
        let mut farthest = None;
        for hop in hops.by_ref().take(HOPS_MAX) {
            let ip = address(hop)?;
            farthest = Some(ip);
            if !self.trust(ip) {
                return farthest.filter(is_of_elsewhere);
            }
        }
        if hops.next().is_some() {
            return None;
        }
        farthest.filter(is_of_elsewhere)
    }
}

/// Returns whether an address can be one of another machine.
fn is_of_elsewhere(ip: &IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified()
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits)),
        };
        let address: IpAddr = address.parse().ok()?;
        let of_all = if address.is_ipv4() { 32 } else { 128 };
        let bits: u32 = match bits {
            None => of_all,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
        };
        (bits <= of_all).then(|| Self {
            address: clothed(address),
            bits: bits + 128 - of_all,
        })
    }

    fn holds(self, ip: IpAddr) -> bool {
        let others = u128::MAX.checked_shr(self.bits).unwrap_or(0);
        (clothed(ip) ^ self.address) & !others == 0
    }
}

/// Returns an address as a number, IPv4 in IPv6 clothes.
fn clothed(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// Returns the values of a list that may stand in several headers; `None` where one of them is no
/// text.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<impl Iterator<Item = &'a str>> {
    let lines = headers.get_all(name).iter().map(|line| line.to_str());
    let lines: Vec<&str> = lines.collect::<Result<_, _>>().ok()?;
    Some(
        lines
            .into_iter()
            .flat_map(|line| line.split(','))
            .map(str::trim),
    )
}

/// Reads an address as proxies write it: bare, with a port, IPv6 in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.parse::<IpAddr>().ok();
    let with_port = || {
        text.parse::<std::net::SocketAddr>()
            .ok()
            .map(|both| both.ip())
    };
    let bracketed = || {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6)
    };
    let found = bare.or_else(with_port).or_else(bracketed)?;
    Some(found.to_canonical())
}

/// What was between the client and the outermost proxy: TLS only where every word says so.
fn outside(headers: &HeaderMap) -> Option<Security> {
    if !headers.contains_key(&PROTO) {
        return None;
    }
    let is_tls = values(headers, &PROTO).is_some_and(|mut all| {
        all.all(|proto| proto.eq_ignore_ascii_case("https") || proto.eq_ignore_ascii_case("wss"))
    });
    Some(if is_tls {
        Security::Tls
    } else {
        Security::Plain
    })
}

/// Puts the client in the place of the proxy that speaks for it, for everything that follows.
pub(crate) async fn unwrap(
    State(proxies): State<Proxies>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = peer_of(&request);
    let behind = proxies.peer(peer, request.headers());
    if behind != peer {
        request.extensions_mut().insert(ConnectInfo(behind));
    }
    next.run(request).await
}

/// Returns the hosts by which a client asked the proxies before us, each parsed; none for a client
/// that came by itself, whatever it says. A value that is no host is `None`.
pub(super) fn hosts(peer: &Peer, headers: &HeaderMap) -> Vec<Option<Authority>> {
    if !matches!(peer, Peer::Proxied(_)) || !headers.contains_key(&HOST) {
        return Vec::new();
    }
    match values(headers, &HOST) {
        Some(all) => all.take(HOPS_MAX).map(Authority::parse).collect(),
        None => vec![None],
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn proxies(list: &[&str]) -> Proxies {
        let list: Vec<String> = list.iter().map(|&text| text.to_owned()).collect();
        Proxies::new(&list).unwrap()
    }

    fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            ((*name).clone(), value)
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    fn from(remote: &str) -> Peer {
        Peer::Tcp {
            remote: remote.parse().unwrap(),
            local: "127.0.0.1:9090".parse().unwrap(),
        }
    }

    /// Who it is that a proxy on this machine speaks for; `Err` where it is taken for itself.
    fn told(list: &[&str], remote: &str, lines: &[&str]) -> Result<Option<String>, Peer> {
        let lines: Vec<_> = lines.iter().map(|&line| (&FOR, line)).collect();
        match proxies(list).peer(from(remote), &headers(&lines)) {
            Peer::Proxied(proxied) => Ok(proxied.client.map(|ip| ip.to_string())),
            other => Err(other),
        }
    }

    #[test]
    fn nobody_is_believed_who_is_not_named() {
        for list in [&[][..], &["127.0.0.2"], &["10.0.0.0/8"], &["::1"]] {
            let told = told(list, "127.0.0.1:4000", &["203.0.113.9"]);
            assert_eq!(told, Err(from("127.0.0.1:4000")), "{list:?}");
        }
        let own = told(&["127.0.0.1"], "127.0.0.1:4000", &[]);
        assert!(own.is_err(), "a program of this machine asks for itself");
    }

    #[test]
    fn the_client_is_the_last_one_that_is_no_proxy_of_ours() {
        let all = ["127.0.0.1", "10.0.0.0/8"];
        for (lines, client) in [
            (&["203.0.113.9"][..], Some("203.0.113.9")),
            (&["203.0.113.9, 10.1.2.3"], Some("203.0.113.9")),
            (&["203.0.113.9", "10.1.2.3"], Some("203.0.113.9")),
            (&["127.0.0.1, 203.0.113.9"], Some("203.0.113.9")),
            (&["127.0.0.1, 203.0.113.9, 10.0.0.1"], Some("203.0.113.9")),
            (&["1.1.1.1, 8.8.8.8,203.0.113.9"], Some("203.0.113.9")),
            (&["203.0.113.9:5555"], Some("203.0.113.9")),
            (&["[2001:db8::1]:443"], Some("2001:db8::1")),
            (&["[2001:db8::1]"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["::ffff:203.0.113.9"], Some("203.0.113.9")),
            // A client on the proxy's own network.
            (&["10.9.9.9"], Some("10.9.9.9")),
            (&["garbage, 203.0.113.9"], Some("203.0.113.9")),
        ] {
            let found = told(&all, "127.0.0.1:4000", lines);
            assert_eq!(found, Ok(client.map(str::to_owned)), "{lines:?}");
        }
    }

    #[test]
    fn no_header_makes_a_client_one_of_this_machine() {
        for line in [
            "127.0.0.1",
            "127.0.0.1, 127.0.0.1",
            "::1",
            "[::1]:80",
            "::ffff:127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "::",
            "localhost",
            "unknown",
            "_hidden",
            "",
            ",",
            "203.0.113.9,",
            "203.0.113.9, garbage",
            "203.0.113.9 127.0.0.1",
            "\"203.0.113.9\"",
            "203.0.113.999",
            "0x7f000001",
            "2130706433",
            "127.1",
            "[127.0.0.1]",
            "fe80::1%eth0",
            "caf\u{e9}",
        ] {
            let found = told(&["127.0.0.1", "::1"], "127.0.0.1:4000", &[line]);
            assert_eq!(found, Ok(None), "{line:?}");
        }
    }

    #[test]
    fn of_more_hops_than_are_looked_at_nobody_is_believed() {
        let all = ["127.0.0.1", "10.0.0.0/8"];
        let through = |proxies: usize| {
            let proxies = vec!["10.0.0.1"; proxies].join(",");
            told(&all, "127.0.0.1:4000", &[&format!("203.0.113.9,{proxies}")])
        };
        let client = Some("203.0.113.9".to_owned());
        assert_eq!(through(HOPS_MAX - 1), Ok(client));
        assert_eq!(through(HOPS_MAX), Ok(None));
        // What a client has made up left of itself is not looked at, however long it is.
        let invented = vec!["10.0.0.1"; 10 * HOPS_MAX].join(",");
        let line = format!("{invented},203.0.113.9");
        let found = told(&all, "127.0.0.1:4000", &[&line]);
        assert_eq!(found, Ok(Some("203.0.113.9".to_owned())));
    }

    #[test]
    fn tls_outside_is_what_every_word_says() {
        for (words, expected) in [
            (&[][..], None),
            (&["https"][..], Some(Security::Tls)),
            (&["HTTPS"], Some(Security::Tls)),
            (&["wss"], Some(Security::Tls)),
            (&["http"], Some(Security::Plain)),
            (&["https, http"], Some(Security::Plain)),
            (&["https", "http"], Some(Security::Plain)),
            (&["", "https"], Some(Security::Plain)),
            (&["httpss"], Some(Security::Plain)),
        ] {
            let lines: Vec<_> = words.iter().map(|&word| (&PROTO, word)).collect();
            assert_eq!(outside(&headers(&lines)), expected, "{words:?}");
        }
    }

    #[test]
    fn networks_hold_what_begins_as_they_do() {
        let all = proxies(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"]);
        for ip in [
            "10.255.0.1",
            "192.0.2.7",
            "2001:db8:ffff::1",
            "::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(all.trust(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "11.0.0.1",
            "192.0.2.8",
            "2001:db9::1",
            "127.0.0.1",
            "::10.0.0.1",
        ] {
            assert!(!all.trust(ip.parse().unwrap()), "{ip}");
        }
        assert!(proxies(&["0.0.0.0/0"]).trust("203.0.113.9".parse().unwrap()));
        assert!(!proxies(&["0.0.0.0/0"]).trust("2001:db8::1".parse().unwrap()));
        assert!(proxies(&["::/0"]).trust("203.0.113.9".parse().unwrap()));
        for bad in [
            "",
            "localhost",
            "127.0.0.1/33",
            "::1/129",
            "10.0.0.0/",
            "10/8",
            "1.1.1.1/+8",
        ] {
            let error = Proxies::new(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{bad}` is no trusted proxy")),
                "{error}"
            );
        }
    }
}
