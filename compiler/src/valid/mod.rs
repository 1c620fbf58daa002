//! Legality of an evaluation: what the logits may depend on, proved on the graph and tried on numbers.
//!
//! *Takes* a graph and what its input buffers hold ([`Inputs`]); *gives* a [`Proof`] or every broken rule with the op that breaks it
//! ([`check_logits`], [`check_score`], [`check_training`]); *promises* to be conservative: a program that passes is legal, a legal
//! program may be refused if it hides its causality (a triangular mask over merged positions, say). [`perturb`] is the
//! independent second opinion: it changes what must not matter and looks at the bits.
//!
//! The rules are conditions 1 and 2 of parameter-golf issue #1017 and the declarations of the program: position t sees tokens up to t
//! of its own row; no targets; nothing of another document where isolation is declared; validation data only in `evaluate`; scores
//! normalised over the whole vocabulary by the compiler's own log-softmax.

pub mod label;
mod legality;
mod perturb;
#[cfg(test)]
mod tests;
mod transfer;

pub use label::{Data, Inputs, Label, Split};
pub use legality::{LegalityError, Proof, Rule, check_logits, check_score, check_training};
pub use perturb::{Leak, PerturbError, perturb};
