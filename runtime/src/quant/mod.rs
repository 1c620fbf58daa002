//! From weights to a file under the cap, and back.

pub mod artifact;
pub mod command;
pub mod pack;
