//! The runtime linked into every executable that golfc makes.
