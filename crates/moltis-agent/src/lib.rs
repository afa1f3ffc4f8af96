//! The conversation of an agent: what it says, which tools it calls, and when it is over.
//!
//! [`Turn`] is one turn as a value that is poked: whoever drives it asks the model, calls the tools,
//! and tells what came. It knows rounds, parallel calls, retries, deadlines and the word "stop", and
//! it leaves a history that every provider takes: no call without its result. [`drive`] is who drives
//! it, with a [`Model`], its [`Tools`] and an [`Audience`].
//!
//! What a model is shown goes through three small rooms: [`excerpt`] keeps the head and the tail of
//! what is long, [`redact`] takes out the secrets that are known, and [`untrusted`] marks what
//! machines and their users have written as data. [`window`] keeps a conversation within what a model
//! reads at once.
//!
//! [`provider`] asks real models, over HTTP. Nothing else here opens a connection, and nothing knows
//! nodes or draws a random number.
//!
//! # Example
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use moltis_agent::{Arguments, Step, StopReason, ToolCall, ToolResult, Turn, TurnLimits};
//! # #[allow(clippy::disallowed_methods, reason = "a page of documentation has no other clock")]
//! # let now = Instant::now();
//! let mut turn = Turn::new(TurnLimits::default(), now);
//! assert_eq!(turn.poll_step(), Some(Step::Ask));
//! // The model wants to know what there is.
//! let call = ToolCall {
//!     id: "1".to_owned(),
//!     tool: "nodes_list".to_owned(),
//!     arguments: Arguments::parse("{}"),
//! };
//! turn.handle_call(call.clone());
//! turn.handle_answered(now);
//! assert_eq!(turn.poll_step(), Some(Step::Call(call)));
//! turn.handle_result("1", ToolResult::done("box: online"), now);
//! // It is asked again, with the result, and has an answer.
//! assert_eq!(turn.poll_step(), Some(Step::Ask));
//! turn.handle_text("There is one machine, box.");
//! turn.handle_answered(now + Duration::from_secs(1));
//! assert_eq!(turn.poll_step(), Some(Step::Over(StopReason::End)));
//! ```

mod driver;
mod message;
mod model;
mod turn;

pub mod excerpt;
pub mod provider;
pub mod redact;
pub mod untrusted;
pub mod window;

pub use driver::{Audience, Outcome, Tools, drive};
pub use message::{Arguments, Message, ToolCall, ToolResult};
pub use model::{Model, Request, Said, ToolSpec};
pub use turn::{ModelFailure, Step, StopReason, Turn, TurnLimits};
