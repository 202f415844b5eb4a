//! What goes over the network, and how. (The lead's file; here it only names the part of consensus.)
pub mod consensus;
