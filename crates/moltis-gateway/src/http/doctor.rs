//! `doctor`: what is wrong here, and what to type next.

use axum::extract::State;

use super::ApiState;
use crate::api::List;
use crate::api::doctor::Finding;

/// `GET doctor`
pub(super) async fn findings(State(state): State<ApiState>) -> axum::Json<List<Finding>> {
    axum::Json(state.findings().await.into())
}
