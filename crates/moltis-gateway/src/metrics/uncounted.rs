//! The same words as with the feature `metrics`, for who does not want it: nothing is counted.

use std::marker::PhantomData;
use std::time::Duration;

use axum::http::{Method, StatusCode};

use super::{Scale, Word};

#[derive(Debug, Clone, Default)]
pub(crate) struct Count(());

impl Count {
    #[expect(clippy::unused_self, reason = "the same words as with the feature")]
    pub(crate) fn one(&self) {}

    #[expect(clippy::unused_self, reason = "the same words as with the feature")]
    pub(crate) fn add(&self, _more: u64) {}
}

#[derive(Debug, Clone)]
pub(crate) struct CountBy<W>(PhantomData<fn(W)>);

impl<W: Word> CountBy<W> {
    pub(crate) fn new(_label: &'static str) -> Self {
        Self(PhantomData)
    }

    #[expect(clippy::unused_self, reason = "the same words as with the feature")]
    pub(crate) fn one(&self, _word: W) {}
}

#[derive(Debug, Clone)]
pub(crate) struct Seconds;

impl Seconds {
    pub(crate) fn new(_scale: Scale) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "the same words as with the feature")]
    pub(crate) fn note(&self, _took: Duration) {}
}

#[derive(Debug, Clone, Default)]
pub(crate) struct RouteSeconds(());

impl RouteSeconds {
    #[expect(clippy::unused_self, reason = "the same words as with the feature")]
    pub(crate) fn note(
        &self,
        _method: &Method,
        _route: Option<&str>,
        _status: StatusCode,
        _took: Duration,
    ) {
    }
}
