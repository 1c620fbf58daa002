//! From weights to a file under the cap, and back.

pub mod artifact;
pub mod calibrate;
pub mod command;
pub mod feedback;
pub mod inverse;
pub mod pack;
