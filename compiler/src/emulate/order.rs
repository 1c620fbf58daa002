//! What happens before what: vector clocks, and the last accesses of every word of shared memory.
//!
//! *Takes* synchronisation and accesses as they happen; *gives* an error when two accesses of the same word, one of them a write, are not ordered by
//! barriers, mbarriers or waits; *promises* to find it whatever order the threads happened to run in, for the last write and up to four reads of
//! each word.
//!
//! A clock counts per agent what of it has been seen. Agents are the threads, each thread's fences for the asynchronous proxy (what of the thread's
//! writes products and copies may read), the products of each warpgroup, the bulk stores and the copies of each thread, the phases of each mbarrier (what its
//! loads have written). A clock is a shared base, common to all threads that left the same barrier, and the thread's own count.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::memory::{Memory, RESERVED};

/// A clock: counts by agent, 0 where it is too short.
pub(super) type Clock = Rc<Vec<u32>>;

/// Who accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Agent {
    /// The products of a warpgroup; counts products. Each of its warps waits for its own quarter: only who has seen all four waits has seen a product.
    Products(usize),
    /// The bulk stores of a thread; counts groups.
    Stores(usize),
    /// The copies of 16 bytes that a thread has started; counts groups.
    Pieces(usize),
    /// The loads that complete on the mbarrier at an offset; counts phases.
    Loads(u32),
}

struct View {
    base: Clock,
    /// Counts the thread's releases.
    own: u32,
    /// The count at its last fence.
    fenced: u32,
}

const NOBODY: u16 = u16::MAX;

/// Warps of a warpgroup.
const QUARTERS: u16 = 4;

#[derive(Clone, Copy)]
struct Word {
    writer: u16,
    written: u32,
    site: u32,
    readers: [u16; 4],
    read: [u32; 4],
    read_site: u32,
}

const FRESH: Word = Word { writer: NOBODY, written: 0, site: 0, readers: [NOBODY; 4], read: [0; 4], read_site: 0 };

/// Bytes of a word.
const WORD: u32 = 4;

/// Clocks of a block and the state of its shared memory.
pub(super) struct Order {
    views: Vec<View>,
    agents: BTreeMap<Agent, u16>,
    /// First slot after those of the threads that nobody has.
    free: u16,
    /// First slots of agents that have one for each warp of a warpgroup.
    quartered: Vec<u16>,
    words: Vec<Word>,
    /// The last join: many threads do the same one after another.
    memo: Option<[Clock; 3]>,
}

/// What arrivals have brought to a barrier.
#[derive(Default)]
pub(super) struct Gathered {
    clock: Vec<u32>,
    last: Option<Clock>,
}

fn raise(clock: &mut Vec<u32>, slot: usize, value: u32) {
    if clock.len() <= slot {
        clock.resize(slot + 1, 0);
    }
    clock[slot] = clock[slot].max(value);
}

fn join(clock: &mut Vec<u32>, other: &[u32]) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

impl Gathered {
    /// The clock of who has waited for these arrivals and for what `agent` has done up to `count`.
    pub(super) fn finish(&self, order: &mut Order, agent: Agent, count: u32) -> Clock {
        let mut clock = self.clock.clone();
        raise(&mut clock, order.slot(agent) as usize, count);
        Rc::new(clock)
    }
}

impl Order {
    pub(super) fn new(threads: usize, shared: u32) -> Order {
        let base: Clock = Rc::new(vec![]);
        let view = |_| View { base: base.clone(), own: 1, fenced: 0 };
        Order {
            views: (0..threads).map(view).collect(),
            agents: BTreeMap::new(),
            free: 2 * threads as u16,
            quartered: vec![],
            words: vec![FRESH; shared.div_ceil(WORD) as usize],
            memo: None,
        }
    }

    fn slot(&mut self, agent: Agent) -> u16 {
        if let Some(&slot) = self.agents.get(&agent) {
            return slot;
        }
        let slot = self.free;
        let quartered = matches!(agent, Agent::Products(_));
        self.free += if quartered { QUARTERS } else { 1 };
        if quartered {
            self.quartered.push(slot);
        }
        self.agents.insert(agent, slot);
        slot
    }

    fn name(&self, slot: u16) -> String {
        let n = self.views.len();
        if (slot as usize) < n {
            return format!("thread {slot}");
        }
        match self.agents.iter().find(|(_, s)| **s == slot) {
            Some((Agent::Products(g), _)) => format!("a product of warpgroup {g}"),
            Some((Agent::Stores(t), _)) => format!("a bulk store of thread {t}"),
            Some((Agent::Pieces(t), _)) => format!("a copy of thread {t}"),
            Some((Agent::Loads(at), _)) => format!("a bulk load on the mbarrier at {}", Memory::offset(*at)),
            None => "nobody".into(),
        }
    }

    // ---- synchronisation ----

    /// The thread arrives: who waits for `into` sees what it did before.
    pub(super) fn release(&mut self, thread: usize, into: &mut Gathered) {
        let threads = self.views.len();
        let view = &mut self.views[thread];
        if !into.last.as_ref().is_some_and(|last| Rc::ptr_eq(last, &view.base)) {
            join(&mut into.clock, &view.base);
            into.last = Some(view.base.clone());
        }
        raise(&mut into.clock, threads + thread, view.fenced);
        raise(&mut into.clock, thread, view.own);
        view.own += 1;
    }

    /// The thread has waited for a clock.
    pub(super) fn acquire(&mut self, thread: usize, clock: &Clock) {
        let base = &self.views[thread].base;
        if Rc::ptr_eq(base, clock) {
            return;
        }
        let known = self.memo.as_ref().filter(|[a, b, _]| Rc::ptr_eq(a, base) && Rc::ptr_eq(b, clock));
        let joined = match known {
            Some([_, _, joined]) => joined.clone(),
            None => {
                let mut joined = base.to_vec();
                join(&mut joined, clock);
                let joined = Rc::new(joined);
                self.memo = Some([base.clone(), clock.clone(), joined.clone()]);
                joined
            }
        };
        self.views[thread].base = joined;
    }

    /// The thread has waited for what an agent did up to `count`; of products, for its warp's quarter.
    pub(super) fn acquire_agent(&mut self, thread: usize, agent: Agent, count: u32) {
        if count == 0 {
            return;
        }
        let quarter = if matches!(agent, Agent::Products(_)) { thread / 32 % QUARTERS as usize } else { 0 };
        let slot = self.slot(agent) as usize + quarter;
        let base = &self.views[thread].base;
        if base.get(slot).is_some_and(|&c| c >= count) {
            return;
        }
        // The second clock of the memo stands for the agent's count alone.
        let same = |b: &Clock| b.len() == slot + 1 && b[slot] == count && b[..slot].iter().all(|&c| c == 0);
        let known = self.memo.as_ref().filter(|[a, b, _]| Rc::ptr_eq(a, base) && same(b));
        let joined = match known {
            Some([_, _, joined]) => joined.clone(),
            None => {
                let mut joined = base.to_vec();
                raise(&mut joined, slot, count);
                let joined = Rc::new(joined);
                let mut alone = vec![0; slot + 1];
                alone[slot] = count;
                self.memo = Some([base.clone(), Rc::new(alone), joined.clone()]);
                joined
            }
        };
        self.views[thread].base = joined;
    }

    /// All of these threads have met.
    pub(super) fn meet(&mut self, threads: impl Iterator<Item = usize> + Clone) {
        let mut all = Gathered::default();
        threads.clone().for_each(|t| self.release(t, &mut all));
        let clock: Clock = Rc::new(all.clock);
        threads.for_each(|t| self.views[t].base = clock.clone());
    }

    /// What the thread has written so far may be read by products and copies of those who see this.
    pub(super) fn fence(&mut self, thread: usize) {
        let view = &mut self.views[thread];
        view.fenced = view.own;
        view.own += 1;
    }

    /// The thread's count: what it does now is seen by those who know it.
    pub(super) fn now(&self, thread: usize) -> u32 {
        self.views[thread].own
    }

    /// Whether a thread has seen what another did at a count.
    pub(super) fn knows(&self, thread: usize, other: usize, count: u32) -> bool {
        self.sees(thread, other as u16, count)
    }

    fn sees(&self, thread: usize, slot: u16, count: u32) -> bool {
        let view = &self.views[thread];
        if self.quartered.contains(&slot) {
            let seen = |q: u16| view.base.get((slot + q) as usize).is_some_and(|&c| c >= count);
            return (0..QUARTERS).all(seen);
        }
        let slot = slot as usize;
        if slot == thread {
            return true;
        }
        if slot == self.views.len() + thread {
            return view.fenced >= count;
        }
        view.base.get(slot).copied().unwrap_or(0) >= count
    }

    // ---- accesses ----

    fn words(at: u32, bytes: u32) -> std::ops::Range<usize> {
        let first = (at - RESERVED) / WORD;
        first as usize..(at - RESERVED + bytes).div_ceil(WORD) as usize
    }

    fn unordered(&self, word: usize, doing: &str, slot: u16, did: &str, site: u32) -> String {
        let at = word as u32 * WORD;
        format!(
            "{doing} shared memory + {at}, which {} {did} in operation {site}, with nothing to order the two",
            self.name(slot)
        )
    }

    /// An ordinary read by a thread.
    pub(super) fn read(&mut self, thread: usize, at: u32, bytes: u32, site: usize) -> Result<(), String> {
        let now = self.views[thread].own;
        for i in Order::words(at, bytes) {
            let w = self.words[i];
            if w.writer != NOBODY && !self.sees(thread, w.writer, w.written) {
                return Err(self.unordered(i, "reads", w.writer, "writes", w.site));
            }
            self.note_read(i, thread, thread as u16, now, site);
        }
        Ok(())
    }

    /// An ordinary write by a thread.
    pub(super) fn write(&mut self, thread: usize, at: u32, bytes: u32, site: usize) -> Result<(), String> {
        let now = self.views[thread].own;
        // Neighbours may write the other half of a word.
        let whole = at % WORD == 0 && bytes % WORD == 0;
        for i in Order::words(at, bytes) {
            let w = self.words[i];
            // Lanes of a warp that do the same at once agree on the last value.
            let together = w.site == site as u32 && w.writer as usize / 32 == thread / 32;
            if whole && w.writer != NOBODY && !together && !self.sees(thread, w.writer, w.written) {
                return Err(self.unordered(i, "writes", w.writer, "writes", w.site));
            }
            if whole {
                self.check_readers(i, thread, "writes")?;
            }
            self.words[i] = Word { writer: thread as u16, written: now, site: site as u32, ..FRESH };
        }
        Ok(())
    }

    fn check_readers(&self, word: usize, thread: usize, doing: &str) -> Result<(), String> {
        let w = &self.words[word];
        for (&reader, &count) in w.readers.iter().zip(&w.read) {
            if reader != NOBODY && !self.sees(thread, reader, count) {
                return Err(self.unordered(word, doing, reader, "reads", w.read_site));
            }
        }
        Ok(())
    }

    fn note_read(&mut self, word: usize, thread: usize, reader: u16, count: u32, site: usize) {
        let w = &mut self.words[word];
        if w.readers[0] == reader {
            w.read[0] = count;
            w.read_site = site as u32;
            return;
        }
        let place = w.readers.iter().position(|&r| r == reader || r == NOBODY);
        // Who sees this read also sees those that happened before it.
        let w = self.words[word];
        let place = place.or_else(|| (0..4).find(|&i| self.sees(thread, w.readers[i], w.read[i]))).unwrap_or(3);
        let w = &mut self.words[word];
        w.readers[place] = reader;
        w.read[place] = count;
        w.read_site = site as u32;
    }

    /// A read by an agent that `thread` starts.
    pub(super) fn read_async(
        &mut self,
        thread: usize,
        (agent, count): (Agent, u32),
        at: u32,
        bytes: u32,
        site: usize,
    ) -> Result<(), String> {
        self.check_async(thread, at, bytes)?;
        let reader = self.slot(agent);
        Order::words(at, bytes).for_each(|i| self.note_read(i, thread, reader, count, site));
        Ok(())
    }

    /// That a thread may start an asynchronous read: writes before it must be ordered, and ordinary ones fenced.
    pub(super) fn check_async(&self, thread: usize, at: u32, bytes: u32) -> Result<(), String> {
        let threads = self.views.len();
        // Neighbours mostly have the same writer.
        let mut known = (NOBODY, 0);
        for i in Order::words(at, bytes) {
            let w = self.words[i];
            if w.writer != NOBODY && known != (w.writer, w.written) {
                known = (w.writer, w.written);
                if !self.sees(thread, w.writer, w.written) {
                    return Err(self.unordered(i, "reads", w.writer, "writes", w.site));
                }
                let ordinary = (w.writer as usize) < threads;
                if ordinary && !self.sees(thread, w.writer + threads as u16, w.written) {
                    let at = i as u32 * WORD;
                    return Err(format!(
                        "reads shared memory + {at} through the asynchronous proxy, which {} has written in operation {} without a fence \
                         between its write and the barrier",
                        self.name(w.writer),
                        w.site
                    ));
                }
            }
        }
        Ok(())
    }

    /// A write by an agent that `thread` starts.
    pub(super) fn write_async(
        &mut self,
        thread: usize,
        (agent, count): (Agent, u32),
        at: u32,
        bytes: u32,
        site: usize,
    ) -> Result<(), String> {
        let writer = self.slot(agent);
        for i in Order::words(at, bytes) {
            let w = self.words[i];
            if w.writer != NOBODY && !self.sees(thread, w.writer, w.written) {
                return Err(self.unordered(i, "writes", w.writer, "writes", w.site));
            }
            self.check_readers(i, thread, "writes")?;
            self.words[i] = Word { writer, written: count, site: site as u32, ..FRESH };
        }
        Ok(())
    }

    /// Whether two threads know the same of all others.
    pub(super) fn same_view(&self, a: usize, b: usize) -> bool {
        Rc::ptr_eq(&self.views[a].base, &self.views[b].base)
    }
}
