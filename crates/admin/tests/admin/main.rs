//! The Admin and Control APIs over a store in memory, request by request.

mod behaviour;
mod control;
mod harness;
mod kinds;
mod secrets;
mod transcript;
