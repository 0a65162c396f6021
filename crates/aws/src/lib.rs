//! Sluicegate: aws.
