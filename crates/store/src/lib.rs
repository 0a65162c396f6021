//! Sluicegate: store.
