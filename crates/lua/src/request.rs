//! The request that a script runs for, lent to it for one step.
//!
//! Functions that Rust gives to Lua live as long as the Lua state and cannot borrow a request. So the
//! request is put where they find it ([`with`]) while Lua runs, and taken back before anything waits.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use scoped_tls_hkt::scoped_thread_local;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::Headers;

use crate::kept::Kept;

/// When a function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `rewrite`
    Rewrite,
    /// `access`
    Access,
    /// `before_proxy`
    BeforeProxy,
    /// `header_filter`
    HeaderFilter,
    /// `body_filter`
    BodyFilter,
    /// `log`
    Log,
    /// Routes are being matched.
    Filter,
}

impl Phase {
    /// The phase that a configuration names.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "rewrite" => Self::Rewrite,
            "access" => Self::Access,
            "before_proxy" => Self::BeforeProxy,
            "header_filter" => Self::HeaderFilter,
            "body_filter" => Self::BodyFilter,
            "log" => Self::Log,
            _ => return None,
        })
    }

    /// What `ngx.get_phase` says: the phase of nginx that APISIX runs it in.
    pub(crate) fn nginx(self) -> &'static str {
        match self {
            Self::Rewrite | Self::Access | Self::BeforeProxy | Self::Filter => "access",
            Self::HeaderFilter => "header_filter",
            Self::BodyFilter => "body_filter",
            Self::Log => "log",
        }
    }

    /// Can a function wait in this phase?
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Rewrite | Self::Access | Self::BeforeProxy)
    }
}

/// What Lua remembers about a request from one function to the next.
#[derive(Default)]
pub(crate) struct Remembered {
    /// `ctx` and `ngx.ctx` as a pair, with the number of the Lua state they belong to.
    pub(crate) context: RefCell<Option<(u64, Rc<Kept>)>>,
    /// What was printed.
    pub(crate) said: RefCell<Vec<u8>>,
    /// `ngx.status`, once set.
    pub(crate) status: Cell<Option<u16>>,
    /// `ngx.exit` was called with this.
    pub(crate) exit: Cell<Option<i32>>,
    /// The request body, once read.
    pub(crate) body: RefCell<Option<Bytes>>,
    /// A body filter failed: nothing more of the body goes out.
    pub(crate) failed: Cell<bool>,
    /// How many pieces of the answer's body each configuration has filtered.
    pub(crate) filtered: RefCell<Vec<(u64, u64)>>,
    /// The number of the piece being filtered.
    pub(crate) piece: Cell<u64>,
    /// `ngx.arg[2] = true` was said at this piece: nothing goes out behind it.
    pub(crate) cut: Cell<Option<u64>>,
}

impl Remembered {
    /// Counts the pieces of the body that a configuration filters; every one gets every piece.
    pub(crate) fn next_piece(&self, id: u64) -> u64 {
        let mut all = self.filtered.borrow_mut();
        let number = match all.iter_mut().find(|(known, _)| *known == id) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                all.push((id, 1));
                1
            }
        };
        self.piece.set(number);
        number
    }
}

/// The parts of an exchange that a phase has.
pub(crate) enum Parts<'a> {
    Request(&'a mut Exchange),
    Head(&'a mut Exchange, &'a mut Response),
    Piece(&'a mut Exchange, &'a mut Bytes, bool),
    Seen(&'a Exchange),
}

/// One step of a script.
pub(crate) struct Step<'a> {
    pub(crate) parts: Parts<'a>,
    pub(crate) phase: Phase,
    pub(crate) remembered: Rc<Remembered>,
}

impl<'a> Step<'a> {
    /// A step that may change the request.
    pub(crate) fn of(parts: Parts<'a>, phase: Phase) -> Self {
        let remembered = match &parts {
            Parts::Seen(exchange) => exchange.notes.get::<Rc<Remembered>>().cloned(),
            _ => None,
        };
        let mut step = Self { parts, phase, remembered: remembered.unwrap_or_default() };
        if let Some(exchange) = step.exchange_mut() {
            step.remembered = exchange.notes.get_or_default::<Rc<Remembered>>().clone();
        }
        step
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        match &self.parts {
            Parts::Request(exchange) | Parts::Head(exchange, _) | Parts::Piece(exchange, ..) => {
                exchange
            }
            Parts::Seen(exchange) => exchange,
        }
    }

    pub(crate) fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        match &mut self.parts {
            Parts::Request(exchange) | Parts::Head(exchange, _) | Parts::Piece(exchange, ..) => {
                Some(exchange)
            }
            Parts::Seen(_) => None,
        }
    }

    /// The fields of the answer that a script sees and changes.
    pub(crate) fn answer(&mut self) -> Option<&mut Headers> {
        match &mut self.parts {
            Parts::Head(_, response) => Some(&mut response.headers),
            Parts::Request(exchange) => Some(&mut exchange.response_headers),
            Parts::Piece(exchange, ..) => exchange.sent.as_mut(),
            Parts::Seen(_) => None,
        }
    }

    /// The same, only to be read.
    pub(crate) fn answer_seen(&self) -> Option<&Headers> {
        match &self.parts {
            Parts::Head(_, response) => Some(&response.headers),
            Parts::Request(exchange) => Some(&exchange.response_headers),
            Parts::Piece(exchange, ..) => exchange.sent.as_ref(),
            Parts::Seen(exchange) => exchange.sent.as_ref(),
        }
    }
}

/// What [`STEP`] holds.
pub(crate) trait Lent {
    fn with(&mut self, then: &mut dyn FnMut(&mut Step<'_>));
}

impl Lent for Step<'_> {
    fn with(&mut self, then: &mut dyn FnMut(&mut Step<'_>)) {
        then(self);
    }
}

scoped_thread_local!(static mut STEP: for<'a> &'a mut dyn Lent);

/// Lends a step to everything that runs in `run`.
pub(crate) fn lend<R>(step: &mut Step<'_>, run: impl FnOnce() -> R) -> R {
    STEP.set(step, run)
}

/// The step that was lent. `None`: Lua runs for no request, as it does when a configuration is
/// checked.
///
/// Invariant: `then` runs no Lua, which could ask for the step again.
pub(crate) fn with<R>(then: impl FnOnce(&mut Step<'_>) -> R) -> Option<R> {
    if !STEP.is_set() {
        return None;
    }
    let (mut then, mut result) = (Some(then), None);
    STEP.with(|lent| {
        lent.with(&mut |step| result = then.take().map(|then| then(step)));
    });
    result
}
