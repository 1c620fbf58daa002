//! golfc as a library: one module per stage, in data-flow order.

pub mod autodiff;
pub mod driver;
pub mod graph;
pub mod kernel;
pub mod optim;
pub mod target;
