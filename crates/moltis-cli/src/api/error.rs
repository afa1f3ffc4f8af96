//! What can go wrong between a command and the gateway, and how it is told.

use std::os::unix::fs::FileTypeExt as _;

use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::{Response, StatusCode};
use moltis_gateway::api::problem::{Code, Problem};
use moltis_node::tls::TlsError;

use super::address::Address;
use super::cut::Cut;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::units::short;

/// Why there is no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No connection could be made: nothing was sent.
    #[error("{message}")]
    NotReached {
        /// Where, and what may help.
        message: String,
        /// What to type next.
        hint: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke: what was sent may have been done.
    #[error("{0}")]
    Cut(Cut),
    /// No request can be made of it.
    #[error("this cannot be asked for")]
    Unaskable(#[source] hyper::http::Error),
    /// What answers is no server of this kind.
    #[error("what answers there does not speak HTTP")]
    NoHttp,
    /// The answer has more bytes than anybody reads.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    /// The gateway says no.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// A status without an explanation: somebody else answered.
    #[error("the answer is not a gateway's: {status}{found}")]
    NotAGateway {
        /// Its status.
        status: StatusCode,
        /// What else gave it away.
        found: Found,
    },
    /// A proxy before the gateway answers, as the gateway does not: what was sent may have been done.
    #[error("the gateway cannot be reached through the proxy before it: {status}")]
    ProxyWithoutGateway {
        /// Its status.
        status: StatusCode,
    },
    /// There is no TLS connection.
    #[error("no TLS connection to {url}")]
    Tls {
        /// The gateway's address.
        url: String,
        /// Why.
        source: TlsError,
    },
    /// An answer that cannot be read.
    #[error("the gateway's answer cannot be read: {0}")]
    Strange(serde_json::Error),
    /// The token would be readable by everybody on the way.
    #[error(
        "MOLTIS_API_TOKEN was not sent: on http:// to another machine everybody on the way could read it"
    )]
    TokenInTheClear,
    /// The token is no token.
    #[error(
        "MOLTIS_API_TOKEN holds no token: expected `moltis_…`, in letters, digits, `-` and `_`"
    )]
    BadToken,
}

/// What an answer is that no gateway gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing of the kind.
    Nothing,
    /// A page for people.
    Page,
    /// It leads elsewhere, where a token is not for.
    Elsewhere(String),
}

impl Found {
    /// Looks at the head of an answer.
    pub(super) fn of<T>(answer: &Response<T>) -> Self {
        let headers = answer.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if answer.status().is_redirection()
            && let Some(to) = text(LOCATION)
        {
            return Self::Elsewhere(to.chars().take(200).collect());
        }
        match text(CONTENT_TYPE) {
            Some(kind) if kind.starts_with("text/html") => Self::Page,
            _ => Self::Nothing,
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Page => f.write_str(", a web page"),
            Self::Elsewhere(to) => write!(
                f,
                ", a redirect to {}, which is not followed: a token is for the gateway alone",
                crate::visible::inline(to)
            ),
        }
    }
}

impl ApiError {
    /// Says that nobody takes the connection, and where to go instead.
    pub(super) fn not_reached(address: &Address, source: std::io::Error) -> Self {
        let (message, hint) = match address {
            Address::Remote { url, .. } => (
                format!("the gateway at {url} cannot be reached"),
                "check host and port, and whether `moltis gateway` runs there".to_owned(),
            ),
            Address::Local { home } => {
                let path = home.gateway_socket();
                let socket = home.show(&path);
                let found = std::fs::symlink_metadata(&path).map(|found| found.file_type());
                if let Ok(found) = found
                    && !found.is_socket()
                {
                    let what = moltis_identity::files::kind(found);
                    return Self::NotReached {
                        message: format!("`{socket}` is {what}, expected the gateway's socket"),
                        hint: "move it away, then start the gateway again: moltis gateway"
                            .to_owned(),
                        source,
                    };
                }
                match crate::commands::joined_gateway(home) {
                    Some(url) => (
                        format!(
                            "no gateway runs here (`{socket}`); this machine is a node of {url}"
                        ),
                        "type this on the gateway, or pass --gateway".to_owned(),
                    ),
                    None => (
                        format!("no gateway runs here (`{socket}`)"),
                        "start one: moltis gateway; or pass --gateway for one elsewhere".to_owned(),
                    ),
                }
            }
        };
        Self::NotReached {
            message,
            hint,
            source,
        }
    }

    /// Reads an answer that is no success.
    pub(super) fn from_answer(status: StatusCode, found: Found, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(problem) => Self::Problem(Box::new(problem)),
            Err(_) if is_of_a_proxy(status) => Self::ProxyWithoutGateway { status },
            Err(_) => Self::NotAGateway { status, found },
        }
    }

    /// Returns the code of a refusal.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Returns the offset of the byte of stdin that the gateway expects next, where it told one.
    pub(crate) fn next_offset(&self) -> Option<u64> {
        match self {
            Self::Problem(problem) => problem.next_offset,
            _ => None,
        }
    }

    /// Returns whether the same request may succeed in a while: the gateway is away, or about to
    /// be.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::NotReached { .. } | Self::Cut(_) | Self::ProxyWithoutGateway { .. } => true,
            Self::Problem(problem) => matches!(problem.code, Code::ShuttingDown | Code::TooMany),
            _ => false,
        }
    }

    /// Returns the runs that the request has made all the same, where it told of any.
    pub(crate) fn runs(&self) -> &[String] {
        match self {
            Self::Problem(problem) => &problem.runs,
            _ => &[],
        }
    }

    /// Returns whether what was sent may have been done all the same.
    pub(crate) fn leaves_it_open(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::ProxyWithoutGateway { .. }) || !self.runs().is_empty()
    }

    /// Returns whether a gateway was there, or may have been.
    pub(crate) fn is_of_a_gateway(&self) -> bool {
        !matches!(
            self,
            Self::NotReached { .. } | Self::ProxyWithoutGateway { .. }
        )
    }

    /// Returns the error as a person meets it.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::NotReached {
                message,
                hint,
                source,
            } => {
                let failure = failure(message).hint(hint);
                match source.kind() {
                    // That nobody listens is said already.
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => failure,
                    _ => failure.because(source),
                }
            }
            Self::Problem(problem) => of_problem(*problem),
            Self::NotAGateway { ref found, .. } => {
                let hint = match found {
                    Found::Elsewhere(_) => "name the address that it leads to, if you trust it: --gateway <url>",
                    Found::Page | Found::Nothing => "does something else listen on this address?",
                };
                failure(self.to_string()).hint(hint)
            }
            Self::Tls { ref url, ref source } => {
                let hint = source.hint(&url.replacen("https", "http", 1));
                let failure = failure(self.to_string());
                let failure = hint.into_iter().fold(failure, Failure::hint);
                failure.because(self)
            }
            Self::Strange(_) => failure(self.to_string())
                .hint("bring the older of the two to the other's version: moltis --version"),
            Self::TokenInTheClear => failure(self.to_string()).hint(
                "ask by https://, for which the gateway needs a certificate (moltis gateway --tls-generate); or an \
                 SSH tunnel keeps it secret: ssh -N -L 9090:127.0.0.1:9090 <gateway>, \
                 then --gateway http://127.0.0.1:9090",
            ),
            Self::BadToken => failure(self.to_string()).hint(MAKE_A_TOKEN),
            Self::ProxyWithoutGateway { .. } => failure(self.to_string())
                .hint("check whether `moltis gateway` runs behind it, and its log"),
            Self::Cut(cut) => cut.into_failure(),
            Self::Unaskable(source) => failure("this cannot be asked for").because(source),
            Self::NoHttp => failure(self.to_string()).hint(
                "does something else listen on this address? a gateway that has a certificate is asked by https://",
            ),
            Self::TooLong(_) => failure(self.to_string()).hint("ask for less at once"),
        }
    }

    /// Returns the error of a run that was asked about and not heard of. Where nobody could be asked
    /// it may go on, and what becomes of it is not known.
    pub(crate) fn not_heard_of(self) -> Failure {
        let exit = if self.passes() {
            Exit::UNKNOWN
        } else {
            Exit::NOT_RUN
        };
        self.into_failure().exit(exit)
    }

    /// Returns the error of a command that was to be run and was not.
    pub(crate) fn not_run(self) -> Failure {
        self.into_failure().exit(Exit::NOT_RUN)
    }
}

/// Returns whether a proxy says so that does not reach the server behind it, or has no answer of it
/// (RFC 9110, 15.6.3 to 15.6.5). A gateway that says 503 says why.
fn is_of_a_proxy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

const MAKE_A_TOKEN: &str = "set MOLTIS_API_TOKEN to a token made there by `moltis token create`";

fn of_problem(problem: Problem) -> Failure {
    // Most details name the candidates.
    let is_said = |id: &String| problem.detail.contains(id.as_str());
    let all_are_said = problem.candidates.iter().all(|one| is_said(&one.id));
    let mut said = failure(problem.detail);
    if !all_are_said {
        let candidates: Vec<_> = problem
            .candidates
            .iter()
            .map(|candidate| format!("{} ({})", candidate.id, candidate.name))
            .collect();
        said = said.hint(format!("it could be {}", candidates.join(", ")));
    }
    // The gateway speaks of headers to those who write programs.
    if problem.code == Code::Unauthenticated {
        said = said.hint(MAKE_A_TOKEN);
    } else if let Some(hint) = problem.hint {
        said = said.hint(hint);
    }
    if problem.code == Code::Internal && !problem.request_id.is_empty() {
        said = said.hint(format!(
            "the gateway's log knows more under request {}",
            short(&problem.request_id)
        ));
    }
    said
}
