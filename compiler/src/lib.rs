//! golfc as a library: one module per stage, in data-flow order.
