//! `metrics`: one scrape, for Prometheus and whoever reads its format.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::ApiState;
use crate::metrics::scrape::MEDIA_TYPE;

/// `GET /metrics`
pub(super) async fn scrape(State(state): State<ApiState>) -> impl IntoResponse {
    let text = state.watched().text(state.started_at(), state.requests());
    ([(CONTENT_TYPE, MEDIA_TYPE)], text.await)
}
