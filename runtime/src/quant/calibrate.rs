//! Gathering what contractions read, before packing.
//!
//! *Takes* a session with the final weights and the first sequences of the training stream; *gives* the `tap.*` buffers filled, which [`super::pack::quantise`]
//! reads; *promises* sums over exactly the sequences that the program names, however many of them one run of the graph takes, and that
//! nothing but training data is looked at.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::data::{Loader, Prefetch, TokenStream};
use crate::error::{Error, Result};
use crate::exec::Session;
use crate::plan::{CALIBRATE, Program};
use crate::report::progress::Progress;
use crate::signals::Signals;

/// The sequences to calibrate on, all rows of one step; `None` if the program does not calibrate. Errors: no directory given (usage); no shards in it, too few
/// tokens, a token outside the vocabulary.
pub fn open(p: &Program, data: Option<&Path>) -> Result<Option<Loader>> {
    let Some(c) = &p.quantize.calibrate else { return Ok(None) };
    let Some(data) = data else {
        return Err(Error::usage(format!(
            "this program calibrates its quantisers on training tokens before it packs: --data DIR names the directory that holds {}",
            c.data
        )));
    };
    let stream = TokenStream::open(data, &c.data, p.vocab)?;
    let tokens = c.sequences * u64::from(p.train.seq);
    if stream.len() < tokens {
        let (have, sequences, seq) = (stream.len(), c.sequences, p.train.seq);
        return Err(Error::file(
            data,
            format!(
                "calibration takes {sequences} sequences of {seq} tokens; the shards named {} hold {have} tokens",
                c.data
            ),
        ));
    }
    stream.check(tokens)?;
    Loader::new(stream, tokens, 1, p.train.seq).map(Some)
}

/// Runs the graph over all sequences. Gives the seconds it took.
pub fn calibrate(session: &mut Session, sequences: Loader, signals: &Signals) -> Result<f64> {
    let begin = Instant::now();
    let graph = session.graph(CALIBRATE)?;
    let tokens = session.input(graph, "tokens")?;
    let rows = session.variant().rows.calibrate as usize;
    let (all, seq) = (sequences.rows(), sequences.seq());
    let mut data = Prefetch::start(Arc::new(sequences), 0, rows)?;
    let (mut x, mut y) = (vec![0; rows * seq], vec![0; rows * seq]);
    let mut progress = Progress::new(CALIBRATE);
    session.zero_taps()?;
    for first in (0..all).step_by(rows) {
        signals.check()?;
        data.fill((0, 0, first), &mut x, &mut y)?;
        // A GPU is one run ahead of what is shown, not hundreds.
        session.finish()?;
        session.write_i32(&tokens, &x)?;
        session.run(graph)?;
        let done = first + rows;
        let line = format!("calibrate:{done}/{all} sequences");
        progress.update(done as u64, all as u64, done as f64 / all as f64, &line, false)?;
    }
    session.finish()?;
    Ok(begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::toy::{self, DEAD, Toy, V};
    use crate::exec::Options;

    fn session(sequences: u64) -> Session {
        let options = Options { threads: Some(2), precision: Some("f32".into()), ..Options::default() };
        let mut session =
            Session::new(toy::code(&Toy { sequences: Some(sequences), ..Toy::default() }), &options).unwrap();
        crate::init::initialise(&mut session, 7).unwrap();
        session
    }

    /// The sum over the first tokens of the stream, each once, and nothing of what lay there before.
    #[test]
    fn gathers_the_first_sequences_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        crate::train::tests::write_data(dir.path());
        for sequences in [2, 32] {
            let mut session = session(sequences);
            let (code, none) = (session.code().clone(), Signals::none());
            let tap = session.buffer("tap.table").unwrap();
            session.write_f32(&tap, &vec![9.0; V * V]).unwrap();
            let mut gather = || {
                let loader = open(&code.program, Some(dir.path())).unwrap().unwrap();
                calibrate(&mut session, loader, &none).unwrap();
                session.read_f32(&tap).unwrap()
            };
            let found = gather();
            assert!(found == gather(), "a second time");
            let table = session.read_f32(&session.buffer("table.weight").unwrap()).unwrap();
            let stream = TokenStream::open(dir.path(), "fineweb_train_*.bin", V as u32).unwrap();
            let mut tokens = vec![0; sequences as usize * toy::T];
            stream.read(0, &mut tokens).unwrap();
            for (r, c) in (0..V * V).map(|e| (e / V, e % V)) {
                let x = |&t: &u16, c: usize| if c < DEAD { 0.0 } else { f64::from(table[usize::from(t) * V + c]) };
                let expected: f64 = tokens.iter().map(|t| x(t, r) * x(t, c)).sum();
                let found = f64::from(found[r * V + c]);
                assert!((found - expected).abs() < 1e-5 * expected.abs().max(1e-2), "{r} {c}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_signal_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        crate::train::tests::write_data(dir.path());
        let mut session = session(32);
        let loader = open(&session.code().program, Some(dir.path())).unwrap().unwrap();
        let signals = Signals::none();
        signals.raise(15);
        assert_eq!(calibrate(&mut session, loader, &signals).unwrap_err().exit_code(), 143);
    }
}
