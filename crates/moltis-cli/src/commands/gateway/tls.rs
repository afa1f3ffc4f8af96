//! The certificate of `moltis gateway`: where it comes from, and what a person is told of it.

use std::net::SocketAddr;

use jiff::Timestamp;
use moltis_gateway::config::TlsConfig;
use moltis_gateway::http::listen::lan_address;
use moltis_gateway::http::tls::TlsStatus;
use moltis_gateway::{BuildError, GatewayConfig};

use crate::args::tls::Https;
use crate::config_file::ConfigFile;
use crate::failure::{Failure, failure};
use crate::output::Output;
use crate::paths::Home;

/// What other machines are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// `/ws` and `/healthz`.
    Nodes,
    /// Everything, by TLS.
    Https,
    /// Everything, in the clear.
    Everything,
}

impl Served {
    /// Returns what a gateway serves that has a certificate, or lets everything be said in the clear.
    pub(super) fn of(has_certificate: bool, insecure_http: bool) -> Self {
        match (insecure_http, has_certificate) {
            (true, _) => Self::Everything,
            (false, true) => Self::Https,
            (false, false) => Self::Nodes,
        }
    }
}

/// The scheme of the addresses that are listened on.
pub(super) fn scheme(has_certificate: bool) -> &'static str {
    if has_certificate { "https" } else { "http" }
}

/// Puts the certificate's source into `config`: that of the flags, else that of the file. `bound` is
/// what is listened on.
///
/// # Errors
/// The file names a certificate without its key, or both a certificate and that one be made.
pub(super) fn configure(
    config: &mut GatewayConfig,
    flags: &Https,
    file: &ConfigFile,
    home: &Home,
    bound: &[SocketAddr],
) -> Result<(), Failure> {
    config.insecure_http = flags.insecure_http || file.insecure_http.unwrap_or(false);
    let generated = || TlsConfig::Generated {
        names: names(bound),
    };
    config.tls = match (&flags.tls_cert, &flags.tls_key) {
        (Some(certificate), Some(key)) => Some(TlsConfig::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ if flags.tls_generate => Some(generated()),
        _ => {
            let is_generated = file.tls_generate.unwrap_or(false);
            let wrong = |problem: &str| {
                let shown = home.show(&home.config());
                failure(format!("{shown}: {problem}"))
            };
            match (&file.tls_cert, &file.tls_key) {
                (Some(_), Some(_)) if is_generated => {
                    return Err(wrong(
                        "`gateway.tls_cert` and `gateway.tls_generate` are both set: one certificate is used",
                    ));
                }
                (Some(certificate), Some(key)) => Some(TlsConfig::Files {
                    certificate: home.dir().join(certificate),
                    key: home.dir().join(key),
                }),
                (None, None) => is_generated.then(generated),
                (Some(_), None) => {
                    return Err(wrong("`gateway.tls_cert` is set without `gateway.tls_key`"));
                }
                (None, Some(_)) => {
                    return Err(wrong("`gateway.tls_key` is set without `gateway.tls_cert`"));
                }
            }
        }
    };
    Ok(())
}

/// What a certificate is made for: by these others reach this machine.
fn names(bound: &[SocketAddr]) -> Vec<String> {
    let addresses = bound.iter().filter_map(|address| {
        let ip = address.ip().to_canonical();
        if ip.is_unspecified() {
            lan_address()
        } else {
            Some(ip)
        }
    });
    let mut names: Vec<_> = addresses.map(|ip| ip.to_string()).collect();
    let uname = rustix::system::uname();
    names.push(uname.nodename().to_string_lossy().into_owned());
    names
}

/// Adds to a failed start what may be done about the certificate.
pub(super) fn explained(error: BuildError) -> anyhow::Error {
    let hint = match &error {
        BuildError::Tls(error) => error.hint(),
        _ => None,
    };
    match hint {
        Some(hint) => failure("the gateway cannot start")
            .because(error)
            .hint(hint)
            .into(),
        None => error.into(),
    }
}

/// Says what a person has to know of the certificate.
pub(super) fn tell(output: Output, home: &Home, tls: &TlsStatus) {
    let about = &tls.certificate;
    if let Some(problem) = about.problem(Timestamp::now()) {
        output.warn(&format!(
            "{problem}: nodes and commands refuse it, and browsers warn of it"
        ));
        output.hint("put a new one in its place, which is taken up within seconds, or: moltis gateway --tls-generate");
    }
    if tls.is_own {
        let path = home.show(&about.path);
        let until = about.not_after.strftime("%Y-%m-%d");
        output.note(&format!(
            "the certificate is the gateway's own: who shall trust it needs a copy of {path} and \
             --tls-ca <file>; a browser shows SHA-256 {} (until {until}, renewed before)",
            about.fingerprint
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_served_follows_from_certificate_and_choice() {
        assert_eq!(Served::of(false, false), Served::Nodes);
        assert_eq!(Served::of(true, false), Served::Https);
        assert_eq!(Served::of(true, true), Served::Everything);
        assert_eq!(Served::of(false, true), Served::Everything);
    }
}
