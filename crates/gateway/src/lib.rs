//! Sluicegate: gateway.
