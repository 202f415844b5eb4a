//! Tests of the scheduling core.
