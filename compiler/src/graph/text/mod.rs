//! The text form of a graph: one line per axis, buffer, node, effect.
//!
//! *Takes* a graph; *gives* its text, and the graph back from the text ([`parse`]); *promises* that `parse(print(g)) == g` and that the
//! text depends on nothing but the graph. [`canonical`] is a shorter form without names, for recognising equal kernels.
//!
//! ```text
//! graph train.micro bf16
//! axis b 2 batch
//! axis d 64
//! param blocks.0.attn.c_q.weight : bf16 [q d]
//! const const.0 : f32 [t r] = 1 0.5
//! %0 = read(blocks.0.attn.c_q.weight) : f32 [q d]
//! %12 = dot(%3, %7; over d) : f32 [b t q]  @ 0:120..131 blocks.4@2
//! accumulate grad.blocks.0.attn.c_q.weight %12
//! ```
//!
//! Names are bare words, or quoted with `\"` and `\\` where they contain anything but letters, digits and `_.@'-`.

mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use parse::{ParseError, parse};
pub use print::{canonical, print, print_node, print_with};
#[cfg(test)]
pub(crate) use tests::everything;
