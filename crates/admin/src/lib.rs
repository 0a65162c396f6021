//! Sluicegate: admin.
