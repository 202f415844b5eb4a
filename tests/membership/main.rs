//! What membership promises, seen from outside on clusters in virtual time.

mod accuracy;
mod churn;
mod convergence;
mod detection;
mod harness;
mod joining;
mod names;
