//! AWS Signature Version 4, as a header signer.
//!
//! The rules: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>,
//! read through the published test vectors, which the tests of this crate run stage by stage.
//!
//! A caller does three things:
//!
//! 1. compile a [`Signer`] when configuration changes,
//! 2. bring path and query into the form that every verifier reads the same way
//!    ([`wire_path`], [`wire_query`]) and send exactly that,
//! 3. call [`Signer::sign`] with the headers that [`is_signed`] picks, and put
//!    [`Signed::headers`] into the request in the place of any header of the same name.
//!
//! Left out: presigned URLs, chunk signing, SigV4a.

mod canonical;
mod difference;
mod key;
mod signer;

pub use canonical::{PathRule, wire_path, wire_query};
pub use difference::{
    Difference, first_difference, first_difference_before_body, printed_canonical_request,
    signed_time,
};
pub use signer::{
    BodyHasher, Credentials, Explanation, PayloadHash, RequestToSign, Signed, Signer, SignerError,
    is_signed,
};
