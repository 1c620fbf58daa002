//! Syntax of the golf language.
