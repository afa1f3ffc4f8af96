//! `Host` and `Origin` against a URL parser of other people, which reads them as a browser does: what
//! we take for a host is the same host there, and what we allow is ours there too.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use moltis_gateway::http::fuzzing::{allows, host, origin};
use url::{Host, Url};

/// Returns the host as we write it, and the port where it is not the usual one.
fn by_a_browser(url: &str) -> Option<(String, Option<u16>)> {
    let url = Url::parse(url).ok()?;
    let host = match url.host()? {
        Host::Domain(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => IpAddr::V6(ip).to_canonical().to_string(),
    };
    Some((host, url.port()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fuzz_target!(|text: &str| {
    let ours = host(text);
    if let Some((name, port)) = &ours {
        assert!(
            !text.contains(['/', '@', '?', '#', '\\', '%', ' ']),
            "{text:?}"
        );
        match by_a_browser(&format!("http://{text}/")) {
            Some((theirs, their_port)) => {
                assert_eq!(name, &theirs, "{text:?}");
                assert_eq!(port.filter(|port| *port != 80), their_port, "{text:?}");
            }
            // A browser cannot ask by a name whose Punycode is none.
            None => assert!(name.contains("xn--"), "{text:?} is a host to us alone"),
        }
    }

    let local = SocketAddr::from(([127, 0, 0, 1], 9090));
    if allows(&[], text, local) {
        let (theirs, port) = by_a_browser(&format!("http://{text}/")).expect("it is a host");
        assert!(is_loopback(&theirs), "{text:?} is taken for this machine");
        let port = port.unwrap_or(80);
        assert!(
            port == 9090 || ours.is_some_and(|(_, port)| port.is_none()),
            "{text:?}"
        );
    }
    let configured = ["gateway.lan".to_owned(), "proxy.example:8443".to_owned()];
    if allows(&configured, text, local) && !allows(&[], text, local) {
        let (theirs, port) = by_a_browser(&format!("http://{text}/")).expect("it is a host");
        let is_configured =
            theirs == "gateway.lan" || (theirs == "proxy.example" && port == Some(8443));
        assert!(is_configured, "{text:?} is taken for a configured name");
    }

    if let Some((name, port)) = origin(text) {
        match by_a_browser(text) {
            Some((theirs, their_port)) => {
                assert_eq!(name, theirs, "{text:?}");
                let usual = if text.starts_with("https") { 443 } else { 80 };
                assert_eq!(port, Some(their_port.unwrap_or(usual)), "{text:?}");
            }
            None => assert!(name.contains("xn--"), "{text:?} is an origin to us alone"),
        }
    }
});
