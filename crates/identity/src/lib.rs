//! Identities: credentials that are there when a request needs them.
//!
//! - [`Identities`] hands out one [`Identity`] per distinct [`IdentitySpec`], however many routes
//!   share it, and forgets it with its last user.
//! - [`Identity`] fetches and refreshes in a task of its own, ahead of expiry. A request takes what
//!   is there ([`Identity::current`], two atomic operations) and waits only for the very first
//!   credentials, for at most [`FIRST_WAIT_MAX`]. Without credentials there is [`Unavailable`], and
//!   the caller answers 503: nothing is ever sent unsigned.
//! - [`IdentitySigner`] is an identity with a region and a service: it compiles a signer once per
//!   version of the credentials, so that derived keys stay cached.
//! - [`Tokens`] and [`TokenIdentity`] are the same for bearer tokens: ID tokens of Google, access
//!   tokens of Microsoft Entra.
//! - [`System`] is the outside world of `sluicegate_aws::credentials` for a running gateway.
//!
//! What a plugin does:
//!
//! ```ignore
//! // When configuration is compiled:
//! settings.allowed.check(kind)?;                       // else 400 with the error's text
//! let identity = identities.identity(spec)?;
//! let signing = IdentitySigner::new(identity, region, "lambda")?;
//! signing.identity().warm();                           // when the route goes live
//! let skew = signing.identity().skew(authority);       // of this identity at that host
//! // For a request:
//! let signer = signing.signer(now).await?;             // else 503; the error's text to the log
//! let offset = skew.offset_secs();
//! signer.sign(now.saturating_add_signed(offset), request, &mut signed);
//! // When AWS answers ExpiredToken or UnrecognizedClient:
//! if let Some(newer) = signing.after_rejection(signer.version()).await { /* once more */ }
//! // When AWS says that the time of the signature is wrong:
//! if skew.learn(date_of_the_answer, now, offset) { /* once more */ }
//! ```

mod clock;
mod hash;
mod identities;
mod identity;
mod kept;
mod schedule;
mod signer;
mod system;
mod token;

pub use clock::{Clock, SystemClock};
pub use identities::{Identities, IdentitySpec, IdentityStatus};
pub use identity::{Current, Identity, Unavailable};
pub use kept::{
    ASK_TIME_MAX, ASKED_AT_ONCE_MAX, EXPIRY_MARGIN_SECS, FIRST_WAIT_MAX, REJECTED_INTERVAL_SECS,
};
pub use schedule::{BACKOFF_MAX, BACKOFF_MIN, LEAD_MAX};
pub use signer::{IdentitySigner, VersionedSigner};
pub use system::System;
pub use token::{
    EntraAccount, EntraSource, GoogleAccount, GoogleSource, ManagedEndpoint, NoToken,
    ServiceAccountKey, TOKEN_BYTES_MAX, Token, TokenIdentity, TokenSource, Tokens,
};
