//! Sluicegate: plugins.
