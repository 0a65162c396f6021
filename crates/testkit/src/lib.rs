//! Sluicegate: testkit.
