//! The address that a new node is told to dial. Pure.

use std::net::{IpAddr, SocketAddr};

use super::host::{Authority, Host};

/// An address to dial, and why another machine cannot, where it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JoinAddress {
    pub(super) authority: Authority,
    pub(super) warning: Option<String>,
}

/// Chooses the address: the one that the asker used itself, where that is not loopback; else one
/// that is listened on; else loopback, with a warning. `lan` is this machine's address on its
/// network. `None` while nothing is listened on.
pub(super) fn choose(
    asked: Option<&Authority>,
    listening: &[SocketAddr],
    lan: Option<IpAddr>,
) -> Option<JoinAddress> {
    let sound = |authority: Authority| JoinAddress {
        authority,
        warning: None,
    };
    if let Some(asked) = asked.filter(|asked| !is_loopback(&asked.host)) {
        return Some(sound(asked.clone()));
    }
    let reachable = listening.iter().find_map(|address| {
        let ip = address.ip().to_canonical();
        let ip = if ip.is_unspecified() { lan? } else { ip };
        (!ip.is_loopback()).then(|| authority(ip, address.port()))
    });
    if let Some(authority) = reachable {
        return Some(sound(authority));
    }
    let local = listening.first()?;
    Some(JoinAddress {
        authority: authority(local.ip().to_canonical(), local.port()),
        warning: Some(format!(
            "the gateway listens on {local} only, which other machines cannot reach: start it with \
             --listen 0.0.0.0:{}",
            local.port()
        )),
    })
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

    fn chosen(asked: Option<&str>, listening: &[&str], lan: Option<&str>) -> (String, bool) {
        let asked = asked.map(|asked| Authority::parse(asked).unwrap());
        let listening: Vec<_> = listening.iter().map(|a| a.parse().unwrap()).collect();
        let lan = lan.map(|lan| lan.parse().unwrap());
        let join = choose(asked.as_ref(), &listening, lan).unwrap();
        (join.authority.to_string(), join.warning.is_some())
    }

    #[test]
    fn the_address_that_was_used_is_the_best_one() {
        let listening = ["127.0.0.1:9090", "0.0.0.0:9090"];
        let lan = Some("192.168.1.5");
        assert_eq!(
            chosen(Some("gateway.lan"), &listening, lan),
            ("gateway.lan".to_owned(), false)
        );
        for asked in [None, Some("localhost:9090"), Some("[::1]:9090")] {
            assert_eq!(
                chosen(asked, &listening, lan),
                ("192.168.1.5:9090".to_owned(), false)
            );
        }
    }

    #[test]
    fn what_nobody_else_can_reach_is_told_as_such() {
        assert_eq!(
            chosen(None, &["127.0.0.1:4000"], Some("192.168.1.5")),
            ("127.0.0.1:4000".to_owned(), true)
        );
        assert_eq!(
            chosen(None, &["[2001:db8::1]:9"], None),
            ("[2001:db8::1]:9".to_owned(), false)
        );
        assert_eq!(choose(None, &[], None), None);
    }
}
