//! Flags about TLS: the certificate of a gateway, and whom a client trusts.

use std::path::PathBuf;

use clap::Args;

use super::values;

/// What a gateway serves by TLS, and what in the clear.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Https {
    /// Serve https with this certificate and its chain, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", value_parser = values::path)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM, mode 0600 or 0640
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_parser = values::path)]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve https with a certificate that the gateway makes itself, and renews
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    pub(crate) tls_generate: bool,
    /// Serve everything without TLS also to other machines, who is on the way reading along
    #[arg(long)]
    pub(crate) insecure_http: bool,
}

impl Https {
    /// Returns these flags as they are typed.
    pub(crate) fn words(&self) -> Vec<String> {
        let file = |flag: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some([flag.to_owned(), path.to_string_lossy().into_owned()])
        };
        let files = [
            file("--tls-cert", &self.tls_cert),
            file("--tls-key", &self.tls_key),
        ];
        let switches = [
            (self.tls_generate, "--tls-generate"),
            (self.insecure_http, "--insecure-http"),
        ];
        let switches = switches.into_iter().filter(|(is_set, _)| *is_set);
        let switches = switches.map(|(_, flag)| flag.to_owned());
        files
            .into_iter()
            .flatten()
            .flatten()
            .chain(switches)
            .collect()
    }
}
