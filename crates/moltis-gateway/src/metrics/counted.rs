//! The counters themselves. A clone counts for the same series.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::{Scale, Word};

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// The labels of a request: method, route, class of its status.
type OfRequest = [(&'static str, Cow<'static, str>); 3];

/// How often something happened, or how many bytes of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(pub(super) Counter);

impl Count {
    /// Counts one.
    pub(crate) fn one(&self) {
        self.0.inc();
    }

    /// Counts so many.
    pub(crate) fn add(&self, more: u64) {
        self.0.inc_by(more);
    }
}

/// How often something happened, by a word.
#[derive(Debug, Clone)]
pub(crate) struct CountBy<W> {
    label: &'static str,
    pub(super) family: Family<Label, Counter>,
    words: PhantomData<fn(W)>,
}

impl<W: Word> CountBy<W> {
    /// Counts nothing yet of each word; `label` is the name of the label that holds it.
    pub(crate) fn new(label: &'static str) -> Self {
        let family = Family::<Label, Counter>::default();
        for word in W::ALL {
            drop(family.get_or_create(&[(label, word.as_str())]));
        }
        Self {
            label,
            family,
            words: PhantomData,
        }
    }

    /// Counts one.
    pub(crate) fn one(&self, word: W) {
        self.family
            .get_or_create(&[(self.label, word.as_str())])
            .inc();
    }
}

/// How long something took.
#[derive(Debug, Clone)]
pub(crate) struct Seconds(pub(super) Histogram);

impl Seconds {
    /// Sorts times of this scale.
    pub(crate) fn new(scale: Scale) -> Self {
        Self(histogram(scale))
    }

    /// Counts one that took so long.
    pub(crate) fn note(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// How long answers took, by route.
#[derive(Debug, Clone)]
pub(crate) struct RouteSeconds(pub(super) Family<OfRequest, Histogram, fn() -> Histogram>);

impl Default for RouteSeconds {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| histogram(Scale::Answer)))
    }
}

impl RouteSeconds {
    /// Counts one answer. `route` is a template of our own, or `None` where no route answered.
    pub(crate) fn note(
        &self,
        method: &Method,
        route: Option<&str>,
        status: StatusCode,
        took: Duration,
    ) {
        let class = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        let labels = [
            ("method", word_of(method).into()),
            (
                "route",
                route.map_or("none".into(), |route| route.to_owned().into()),
            ),
            ("status", class.into()),
        ];
        self.0.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// A method is whatever a client writes: what we serve has its word, all the rest has one.
fn word_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn histogram(scale: Scale) -> Histogram {
    Histogram::new(scale.bounds().iter().copied())
}
