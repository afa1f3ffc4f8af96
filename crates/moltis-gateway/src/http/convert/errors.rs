//! Errors of the rooms behind, in the words and statuses of the API.

use crate::api::problem::Code;
use crate::http::error::ApiError;
use crate::store::StoreError;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::ReadOnly { .. } => Self::new(Code::StoreReadOnly, error.to_string()),
            StoreError::DiskFull { .. } => Self::new(
                Code::StoreReadOnly,
                "the disk that holds the gateway's store is full",
            )
            .hint("free some space on the gateway's machine, then try again")
            .because(error),
            StoreError::Closed => shutting_down(),
            _ => Self::internal("work with its store", error),
        }
    }
}

fn shutting_down() -> ApiError {
    ApiError::new(Code::ShuttingDown, "the gateway is stopping").retry_after(5)
}
