//! Data as a program reads it: shards of token ids, the training loader, the validation stream, the byte counts behind bits per byte.
//!
//! *Takes* a data directory (`fineweb_train_*.bin`, `fineweb_val_*.bin`, one `*.model` or `tokenizer.bytes`, perhaps `manifest.json`);
//! *gives* tokens by position and bytes by token; *promises* bounded memory (nothing is read whole but the tokenizer) and,
//! for a malformed file, an error with its name and byte offset, never a panic.
//!
//! Every position is a pure function of its arguments, so a resumed run needs to remember nothing but its step number.

pub mod bytes;
pub mod loader;
pub mod manifest;
mod prefetch;
pub mod shard;
pub mod stream;
pub mod tokenizer;
pub mod val;
mod wire;

pub use bytes::ByteTable;
pub use loader::Loader;
pub use prefetch::Prefetch;
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;
pub use val::ValStream;
