//! Initial values.
//!
//! *Takes* the plan's [`Init`] of a buffer, the seed and the buffer's name; *gives* its elements as f32; *promises* that they depend
//! on nothing else (not on threads, order, precision of the variant or device).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::error::{Error, Result};
use crate::exec::Session;
use crate::orthogonal::orthogonal;
use crate::plan::{Buffer, Init, Variant};
use crate::rng::Stream;

/// The values of one buffer, row-major.
fn values(v: &Variant, seed: u64, buffer: &Buffer, how: &Init) -> Vec<f32> {
    let n = buffer.numel();
    let stream = Stream::new(seed, &buffer.name);
    let pairs = |f: &dyn Fn(u64) -> [f64; 2]| (0..n.div_ceil(2) as u64).flat_map(f).map(|x| x as f32).take(n).collect();
    match how {
        Init::Fill(x) => vec![*x as f32; n],
        Init::Normal(std) => pairs(&|p| stream.normal_pair(p).map(|x| std * x)),
        Init::Uniform(a) => pairs(&|p| stream.uniform_pair(p).map(|u| a * (2.0 * u - 1.0))),
        Init::Orthogonal(gain) => {
            let q = orthogonal(&stream, buffer.shape[0], buffer.shape[1]);
            q.into_iter().map(|x| (gain * x) as f32).collect()
        }
        Init::Rows(rows) => {
            let row = n.checked_div(rows.len()).unwrap_or(0);
            rows.iter().flat_map(|&x| std::iter::repeat_n(x as f32, row)).collect()
        }
        Init::CopyOf(name) => match v.params.iter().find(|p| &v.state[p.buffer as usize].name == name) {
            // Through the source's storage type, so that the copy equals what was stored.
            Some(p) => {
                let source = &v.state[p.buffer as usize];
                let mut exact = values(v, seed, source, &p.init);
                exact.iter_mut().for_each(|x| *x = crate::exec::through(source.dtype, *x));
                exact
            }
            None => Vec::new(),
        },
    }
}

/// Rough cost of a buffer, to start the longest first.
fn cost(buffer: &Buffer, how: &Init) -> usize {
    match how {
        Init::Orthogonal(_) => buffer.numel() * buffer.shape.iter().copied().min().unwrap_or(1) / 8,
        Init::CopyOf(_) | Init::Normal(_) | Init::Uniform(_) => buffer.numel() * 16,
        Init::Fill(_) | Init::Rows(_) => buffer.numel(),
    }
}

/// Gives every state buffer of the session its initial value, on as many threads as the session has.
pub fn initialise(session: &mut Session, seed: u64) -> Result<()> {
    let code = session.code().clone();
    let v = &code.program.variants[session.variant_index()];
    let params = v.params.iter().map(|p| (p.buffer as usize, &p.init));
    let mut work: Vec<(usize, &Init)> = params.chain(v.state_init.iter().map(|(i, how)| (*i as usize, how))).collect();
    work.sort_by_key(|(i, how)| std::cmp::Reverse(cost(&v.state[*i], how)));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(2);
        for _ in 0..session.threads() {
            let (send, next, work) = (send.clone(), &next, &work);
            std::thread::Builder::new()
                .spawn_scoped(scope, move || {
                    while let Some((i, how)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if send.send((*i, values(v, seed, &v.state[*i], how))).is_err() {
                            return;
                        }
                    }
                })
                .map_err(|e| Error::machine(format!("cannot start a thread: {e}")))?;
        }
        drop(send);
        receive.into_iter().try_for_each(|(i, x)| session.write_f32(&v.state[i], &x))
    })
}
