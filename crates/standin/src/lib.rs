//! Sluicegate: standin.
