//! Tests of the graph stage.

mod build;
