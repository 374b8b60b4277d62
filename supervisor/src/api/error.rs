//! Errors as answers: an [`ApiError`] with the status that fits its code.

use super::types::{ApiError, ErrorCode};
use crate::vmjson::check::FieldError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// An answer that is no success.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    /// With the status of its code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        ApiError { code, message: message.into(), field: None }.into()
    }

    /// With a status of its own.
    pub fn with_status(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { status, ..Refusal::new(code, message) }
    }

    /// No VM of this name or id.
    pub fn no_vm(key: &str) -> Refusal {
        let shown: String = key.chars().flat_map(char::escape_debug).take(80).collect();
        Refusal::new(ErrorCode::NotFound, format!("there is no VM {shown}; vmsup ls shows those that there are"))
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        let status = match error.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal { status, error }
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> ApiError {
        ApiError { code: ErrorCode::Invalid, message: error.message, field: Some(error.field) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.error)).into_response()
    }
}
