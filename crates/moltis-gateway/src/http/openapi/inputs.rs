//! What a handler takes, read off the types of its arguments.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, Method};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::http::caller::Caller;
use crate::http::extract::{Asked, Id, Json, Prefix, Raw};

/// Writes the schema of a type, with its parts among the generator's definitions.
pub(in crate::http) type Writer = fn(&mut SchemaGenerator) -> Schema;

/// What comes from a request into a handler.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::http) struct Inputs {
    /// The parameters of its query, as an object; `None` where a query is refused.
    pub(in crate::http) query: Option<Writer>,
    /// Its body.
    pub(in crate::http) body: Option<BodyKind>,
}

impl Inputs {
    fn with<A: Argument>(mut self) -> Self {
        A::note(&mut self);
        self
    }

    /// Returns whether a value that is read may be out of its bounds.
    pub(in crate::http) fn is_checked(self) -> bool {
        self.query.is_some() || matches!(self.body, Some(BodyKind::Json { .. }))
    }
}

/// A body that a handler reads.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) enum BodyKind {
    /// JSON of a type, as an object written out and as a reference to it.
    Json {
        /// The object.
        object: Writer,
        /// The reference.
        reference: Writer,
    },
    /// Bytes.
    Raw,
}

/// One argument of a handler.
pub(in crate::http) trait Argument {
    /// Notes what it takes from a request.
    fn note(_: &mut Inputs) {}
}

/// All arguments of a handler, as axum puts them into a tuple behind a marker.
pub(in crate::http) trait Arguments {
    /// Returns what they take from a request.
    fn inputs() -> Inputs;
}

impl<T: JsonSchema> Argument for Asked<T> {
    fn note(inputs: &mut Inputs) {
        inputs.query = Some(T::json_schema);
    }
}

impl<T: JsonSchema> Argument for Json<T> {
    fn note(inputs: &mut Inputs) {
        inputs.body = Some(BodyKind::Json {
            object: T::json_schema,
            reference: SchemaGenerator::subschema_for::<T>,
        });
    }
}

impl Argument for Raw {
    fn note(inputs: &mut Inputs) {
        inputs.body = Some(BodyKind::Raw);
    }
}

impl Argument for Id {}
impl Argument for Prefix {}
impl<S> Argument for State<S> {}
impl Argument for Caller {}
impl Argument for HeaderMap {}
impl Argument for Method {}
impl Argument for OriginalUri {}

macro_rules! arguments {
    ($($argument:ident)*) => {
        impl<Marker, $($argument: Argument),*> Arguments for (Marker, $($argument,)*) {
            fn inputs() -> Inputs {
                Inputs::default()$(.with::<$argument>())*
            }
        }
    };
}

arguments! {}
arguments! { A }
arguments! { A B }
arguments! { A B C }
arguments! { A B C D }
arguments! { A B C D E }
arguments! { A B C D E F }
