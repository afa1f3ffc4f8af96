//! A program as a service of the operating system, for one user: systemd's user manager on Linux,
//! launchd on macOS.
//!
//! The file that is installed is a pure function of a [`Service`]; a [`Manager`] is a thin shell
//! around `systemctl --user` and `launchctl`. Nothing here knows what the program does, reads the
//! environment, prints, or stays in the background: values in, values out.
//!
//! # Example
//!
//! ```
//! use moltis_service::{Name, Service, systemd};
//!
//! let service = Service::new(Name::new("hello", "org.example.hello"), "Says hello", "/usr/bin/hello")
//!     .argument("--again")
//!     .variable("GREETING", "100 % \"you\"");
//! let unit = systemd::unit(&service)?;
//! assert!(unit.contains("ExecStart=\"/usr/bin/hello\" \"--again\"\n"));
//! assert!(unit.contains("Environment=\"GREETING=100 %% \\\"you\\\"\"\n"));
//! # Ok::<(), moltis_service::ServiceError>(())
//! ```

mod error;
mod files;
pub mod launchd;
mod manager;
mod service;
mod status;
pub mod systemd;
mod tool;
mod user;

pub use self::error::ServiceError;
pub use self::files::Installed;
pub use self::manager::{Begin, ByHand, Installation, Manager};
pub use self::service::{Name, Service};
pub use self::status::{State, Status};
pub use self::user::User;
