//! Sluicegate: config.
