//! The Invoke API of Lambda: where a function is called ([`FunctionRef`]), and what its refusals
//! mean ([`classify`]).

mod error;
mod function;

pub use error::{
    Answer, ErrorKind, Failure, FunctionError, HTTP_API_BODY_MAX, Retry, Target, classify,
    function_error, hide_session_token, is_http_api_refusal,
};
pub use function::{
    AllowedFunctions, ApiCall, Endpoint, FunctionRef, FunctionRefError, FunctionSettings, Scheme,
};
