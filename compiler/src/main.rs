//! The golfc command line.
fn main() {}
