//! Tests of the graph stage.

mod build;
mod fold;
mod interpret;
