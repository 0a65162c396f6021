//! Sluicegate: model.
