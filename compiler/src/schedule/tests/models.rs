//! Transformer blocks, losses and optimisers.
