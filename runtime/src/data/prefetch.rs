//! Training's next micro-batches, read while the device works on this one.
//!
//! *Takes* a [`Loader`] and the step to begin with; *gives* the micro-batches of training in their order; *promises* the tokens that
//! [`Loader::fill`] gives, an error of the data at the micro-batch that needs it and not before, a bounded queue, and no thread left behind
//! when it is dropped. What was read ahead is no part of a run's state: after an interruption it is read again.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::loader::Loader;
use crate::error::{Error, Result};

/// Micro-batches that wait at most; one more is being read.
const DEPTH: usize = 2;

/// One micro-batch: `inputs` and `targets` are \[B, seq\].
struct Batch {
    /// Step, logical shard, first row.
    place: (u64, usize, usize),
    inputs: Vec<i32>,
    targets: Vec<i32>,
}

/// The queue's two ends on this side: what was read, and where buffers go back to.
type Ends = (Receiver<Result<Batch>>, Sender<Batch>);

/// A thread that reads ahead.
pub struct Prefetch {
    /// `None` only while it is dropped.
    ends: Option<Ends>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Begins to read: from step `first` on, for each logical shard micro-batches of `rows` rows (which must divide [`Loader::rows`]).
    pub fn start(loader: Arc<Loader>, first: u64, rows: usize) -> Result<Prefetch> {
        let (send, batches) = sync_channel(DEPTH);
        let (back, free) = channel();
        let thread = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || read(&loader, first, rows, &send, &free))
            .map_err(|e| Error::machine(format!("cannot start the thread that reads training data: {e}")))?;
        Ok(Prefetch { ends: Some((batches, back)), thread: Some(thread) })
    }

    /// The next micro-batch, waited for if need be, as [`Loader::fill`]. Panics if it is not the one at (step, shard, first row):
    /// training asks in one order.
    pub fn fill(&mut self, place: (u64, usize, usize), inputs: &mut [i32], targets: &mut [i32]) -> Result<()> {
        let gone = || Error::machine("the thread that reads training data has ended");
        let (batches, back) = self.ends.as_ref().ok_or_else(gone)?;
        let batch = batches.recv().map_err(|_| gone())??;
        assert_eq!(batch.place, place, "training data is asked for in another order than it is read");
        inputs.copy_from_slice(&batch.inputs);
        targets.copy_from_slice(&batch.targets);
        // Refused only by a thread that has ended, whose reason comes with the next call.
        let _ = back.send(batch);
        Ok(())
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // Without them every send and receive of the thread fails, which ends it.
        self.ends = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread: reads until the other side is gone or the data fails.
fn read(loader: &Loader, first: u64, rows: usize, send: &SyncSender<Result<Batch>>, free: &Receiver<Batch>) {
    let mut spare = 0;
    let shards = |step| (0..loader.ranks()).map(move |shard| (step, shard));
    let micro = |(step, shard)| (0..loader.rows()).step_by(rows).map(move |row| (step, shard, row));
    for place in (first..).flat_map(shards).flat_map(micro) {
        // As many buffers as fit the queue, one being read and one being used; then those that come back.
        let mut batch = if spare < DEPTH + 2 {
            spare += 1;
            let tokens = rows * loader.seq();
            Batch { place, inputs: vec![0; tokens], targets: vec![0; tokens] }
        } else {
            let Ok(batch) = free.recv() else { return };
            Batch { place, ..batch }
        };
        let (step, shard, row) = place;
        let filled = loader.fill(step, shard, row, &mut batch.inputs, &mut batch.targets);
        let failed = filled.is_err();
        if send.send(filled.map(|()| batch)).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::loader::tests::loader;
    use super::*;
    use proptest::prelude::*;

    /// The micro-batches of `steps` steps from `first` on, read ahead.
    fn ahead(loader: &Arc<Loader>, first: u64, steps: u64, rows: usize) -> Vec<Result<(Vec<i32>, Vec<i32>)>> {
        let mut prefetch = Prefetch::start(loader.clone(), first, rows).unwrap();
        in_order(loader, first, steps, rows, |place, x, y| prefetch.fill(place, x, y))
    }

    fn in_order(
        loader: &Loader,
        first: u64,
        steps: u64,
        rows: usize,
        mut fill: impl FnMut((u64, usize, usize), &mut [i32], &mut [i32]) -> Result<()>,
    ) -> Vec<Result<(Vec<i32>, Vec<i32>)>> {
        let mut all = Vec::new();
        for step in first..first + steps {
            for shard in 0..loader.ranks() {
                for row in (0..loader.rows()).step_by(rows) {
                    let (mut x, mut y) = (vec![0; rows * loader.seq()], vec![0; rows * loader.seq()]);
                    all.push(fill((step, shard, row), &mut x, &mut y).map(|()| (x, y)));
                    if all.last().is_some_and(Result::is_err) {
                        return all;
                    }
                }
            }
        }
        all
    }

    proptest! {
        #[test]
        fn gives_what_the_loader_gives(tokens in 9usize..200, micro in 1usize..4, parts in 1usize..3, ranks in 1u32..4, first in 0u64..9) {
            let batch = (micro * parts * 3) as u64 * u64::from(ranks);
            let (_dir, loader) = loader(tokens, batch, ranks, 3);
            let loader = Arc::new(loader);
            let line = in_order(&loader, first, 4, micro, |(step, shard, row), x, y| loader.fill(step, shard, row, x, y));
            prop_assert_eq!(ahead(&loader, first, 4, micro), line);
            prop_assert_eq!(Arc::strong_count(&loader), 1, "the thread is gone");
        }
    }

    #[test]
    fn an_error_comes_with_the_batch_that_needs_the_data() {
        let (dir, loader) = loader(90, 12, 2, 3);
        let loader = Arc::new(loader);
        // 30 and 60 tokens; the second file loses its last 20 while it is open. Spans of 7: the eleventh is the first to read past token 70.
        let file = std::fs::File::options().write(true).open(dir.path().join("fineweb_train_000001.bin")).unwrap();
        file.set_len(1024 + 2 * 40).unwrap();
        let all = ahead(&loader, 0, 20, 1);
        let line = in_order(&loader, 0, 20, 1, |(step, shard, row), x, y| loader.fill(step, shard, row, x, y));
        assert_eq!(all, line);
        assert_eq!(all.len(), 21);
        let text = all[20].as_ref().unwrap_err().to_string();
        assert!(text.ends_with("fineweb_train_000001.bin: ends too early"), "{text}");
    }

    #[test]
    fn drops_at_once_and_without_a_trace() {
        let (_dir, loader) = loader(50, 12, 2, 3);
        let loader = Arc::new(loader);
        for used in 0..4 {
            let mut prefetch = Prefetch::start(loader.clone(), 0, 2).unwrap();
            for i in 0..used {
                prefetch.fill((i as u64 / 2, i % 2, 0), &mut [0; 6], &mut [0; 6]).unwrap();
            }
            drop(prefetch);
            assert_eq!(Arc::strong_count(&loader), 1);
        }
    }
}
