//! One block: its threads as fibers of this OS thread, what they wait for, and who runs next.
//!
//! *Takes* a compiled kernel and its arguments; *gives* the block's effect on memory or a failure; *promises* to run every thread until it waits
//! for something that has not happened, in an order that the seed decides, to run asynchronous work either at once or as late as possible, and to
//! say who waits for what if nothing can go on.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::barrier::{Barrier, Mbarrier};
use super::copy::Copies;
use super::groups::Groups;
use super::lower::REGISTERS;
use super::memory::Memory;
use super::multiply::Loops;
use super::order::Order;
use super::piece::Piece;
use super::product::{Parts, Products};

/// Bytes of a fiber's stack. Kernels keep at most a few kilobytes of spilled registers there.
const STACK: usize = 128 << 10;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    #[default]
    No,
    /// The named barrier to leave this generation.
    Barrier { id: usize, generation: u64 },
    /// Its warp to leave this generation.
    Warp { generation: u64 },
    /// A phase of the mbarrier at this offset.
    Mbarrier { at: u32, parity: u32 },
    /// Its warpgroup's products before this number.
    Products { before: u64 },
    /// Registers given back by other warpgroups.
    Registers { count: u32 },
    /// Forever: something failed.
    Ever,
}

/// A thread of the block.
pub(super) struct Thread {
    pub(super) wait: Wait,
    /// Number of the operation it is at.
    pub(super) site: usize,
    pub(super) done: bool,
    yielder: *const Yielder<(), ()>,
}

/// What the lanes of a warp exchange; two generations, since a lane may be ahead by one.
pub(super) struct Warp {
    pub(super) generation: u64,
    pub(super) arrived: u32,
    pub(super) site: usize,
    pub(super) values: [[[u64; 10]; 32]; 2],
}

/// Pseudo-random numbers (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// What went wrong, where.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) thread: Option<usize>,
    pub(super) site: Option<usize>,
    pub(super) what: String,
}

/// How a block is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) seed: u64,
    pub(super) lazy: bool,
}

/// State of a block.
pub(super) struct Block {
    /// Fences that a product needed and waits for products that were under way, by number of the operation.
    pub(super) needed: BTreeSet<usize>,
    pub(super) index: u32,
    pub(super) mode: Mode,
    pub(super) random: Random,
    pub(super) current: usize,
    pub(super) threads: Vec<Thread>,
    pub(super) warps: Vec<Warp>,
    pub(super) memory: Memory,
    pub(super) barriers: Vec<Barrier>,
    pub(super) mbarriers: BTreeMap<u32, Mbarrier>,
    pub(super) copies: Copies,
    pub(super) pieces: Groups<Piece>,
    pub(super) order: Order,
    pub(super) products: Vec<Products>,
    pub(super) loops: Loops,
    /// Operands met so far, by descriptor, whether k is the outer index, and rows.
    pub(super) operands: BTreeMap<(i64, bool, usize), Rc<Parts>>,
    /// Registers per thread of each warpgroup.
    pub(super) allotted: Vec<u32>,
    /// Where calls take and give values that do not fit their parameters.
    pub(super) registers: Vec<[u32; REGISTERS]>,
    failure: Option<Failure>,
}

thread_local! {
    static CURRENT: Cell<*mut Block> = const { Cell::new(std::ptr::null_mut()) };
}

/// Works on the block that runs on this OS thread. `f` must not wait.
pub(super) fn with<R>(f: impl FnOnce(&mut Block) -> R) -> R {
    let block = CURRENT.get();
    assert!(!block.is_null(), "a GPU operation outside of a block");
    // SAFETY: `run` sets the pointer to a block that outlives every fiber; fibers run one at a time, and `f` does not switch fibers, so
    // this is the only reference.
    f(unsafe { &mut *block })
}

/// Lets other threads run until what the thread waits for has happened.
pub(super) fn wait_for(wait: Wait) {
    let yielder = with(|b| {
        let current = b.current;
        b.threads[current].wait = wait;
        b.threads[current].yielder
    });
    while with(|b| !b.ready(b.current)) {
        // SAFETY: set at the start of this fiber, on whose stack the yielder lives; nothing is borrowed here.
        unsafe { (*yielder).suspend(()) };
    }
    with(|b| b.threads[b.current].wait = Wait::No);
}

/// Does one operation of the current thread; a failure ends the block.
pub(super) fn attempt<R: Default>(site: i32, f: impl FnOnce(&mut Block) -> Result<R, String>) -> R {
    let result = with(|b| {
        let current = b.current;
        b.threads[current].site = site as usize;
        f(b).map_err(|what| b.fail(what))
    });
    match result {
        Ok(value) => value,
        Err(()) => {
            wait_for(Wait::Ever);
            R::default()
        }
    }
}

impl Block {
    pub(super) fn new(index: u32, threads: usize, mode: Mode, memory: Memory, loops: Loops) -> Block {
        let thread = |_| Thread { wait: Wait::No, site: 0, done: false, yielder: std::ptr::null() };
        let warp = |_| Warp { generation: 0, arrived: 0, site: 0, values: [[[0; 10]; 32]; 2] };
        let groups = threads.div_ceil(128);
        let order = Order::new(threads, memory.shared_bytes());
        Block {
            needed: BTreeSet::new(),
            index,
            mode,
            random: Random(mode.seed.wrapping_mul(0x1000_0001).wrapping_add(index.into())),
            current: 0,
            threads: (0..threads).map(thread).collect(),
            warps: (0..threads.div_ceil(32)).map(warp).collect(),
            memory,
            barriers: (0..16).map(|_| Barrier::default()).collect(),
            mbarriers: BTreeMap::new(),
            copies: Copies::new(threads),
            pieces: Groups::new(threads),
            order,
            products: (0..groups).map(|_| Products::default()).collect(),
            loops,
            operands: BTreeMap::new(),
            allotted: vec![(65536 / threads as u32 / 8 * 8).min(256); groups],
            registers: vec![[0; REGISTERS]; threads],
            failure: None,
        }
    }

    /// Records the first failure, as the current thread's.
    pub(super) fn fail(&mut self, what: String) {
        let thread = self.current;
        let site = Some(self.threads[thread].site);
        self.failure.get_or_insert(Failure { thread: Some(thread), site, what });
    }

    fn fail_as_block(&mut self, what: String) {
        self.failure.get_or_insert(Failure { thread: None, site: None, what });
    }

    /// Whether the thread can go on.
    fn ready(&self, thread: usize) -> bool {
        match self.threads[thread].wait {
            Wait::No => true,
            Wait::Barrier { id, generation } => self.barriers[id].generation != generation,
            Wait::Warp { generation } => self.warps[thread / 32].generation != generation,
            Wait::Mbarrier { at, parity } => self.mbarriers.get(&at).is_some_and(|m| m.passed(parity)),
            Wait::Products { before } => self.products[thread / 128].issued_by_all(before),
            Wait::Registers { count } => self.registers_fit(thread / 128, count),
            Wait::Ever => false,
        }
    }

    /// Runs one asynchronous operation that could have run earlier; false if there is none.
    fn run_late(&mut self) -> Result<bool, String> {
        let Some(n) = self.copies.waiting().checked_sub(1) else { return Ok(false) };
        let pick = if self.mode.seed == 0 { 0 } else { self.random.below(n + 1) };
        self.finish_load(pick)?;
        Ok(true)
    }

    fn stuck(&self) -> String {
        let mut places: BTreeMap<(String, usize), Vec<usize>> = BTreeMap::new();
        for (i, t) in self.threads.iter().enumerate().filter(|(_, t)| !t.done) {
            places.entry((self.describe(i), t.site)).or_default().push(i);
        }
        let mut text = String::from("no thread can go on");
        for ((what, site), threads) in places {
            text += &format!("; {} ({what}) at operation {site}", ranges(&threads));
        }
        text
    }

    fn describe(&self, thread: usize) -> String {
        match self.threads[thread].wait {
            Wait::No => "runs".into(),
            Wait::Barrier { id, .. } => format!(
                "waits at barrier {id}, where {} of {} threads are",
                self.barriers[id].arrived.len(),
                self.barriers[id].expected
            ),
            Wait::Warp { generation } => {
                let warp = &self.warps[thread / 32];
                let n = if warp.generation == generation { warp.arrived.count_ones() } else { 32 };
                format!("waits for its warp, {n} lanes of which have come")
            }
            Wait::Mbarrier { at, parity } => match self.mbarriers.get(&at) {
                Some(m) => format!("waits for parity {parity} of the mbarrier at {}: {m}", Memory::offset(at)),
                None => format!("waits for parity {parity} of no mbarrier at {}", Memory::offset(at)),
            },
            Wait::Products { .. } => "waits for products that not all threads of the warpgroup have issued".into(),
            Wait::Registers { count } => format!("waits for {count} registers"),
            Wait::Ever => "failed".into(),
        }
    }

    /// What must not be left over when all threads have returned.
    fn check_end(&self) -> Result<(), String> {
        self.copies.check_end()?;
        if let Some(t) = self.pieces.left() {
            return Err(format!("the block ends before thread {t} has waited for its copies"));
        }
        for (g, products) in self.products.iter().enumerate() {
            products.check_end().map_err(|what| format!("warpgroup {g} {what}"))?;
        }
        if let Some((&at, m)) = self.mbarriers.iter().find(|(_, m)| m.expects_bytes()) {
            return Err(format!("the block ends while the mbarrier at {} expects copies: {m}", Memory::offset(at)));
        }
        match self.barriers.iter().position(|b| !b.arrived.is_empty()) {
            Some(id) => Err(format!("the block ends while threads are at barrier {id}")),
            None => Ok(()),
        }
    }
}

/// `threads 0-31, 64`
fn ranges(threads: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = vec![];
    for &t in threads {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == t => *end = t,
            _ => parts.push((t, t)),
        }
    }
    let one = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let mut text = parts.iter().take(6).map(one).collect::<Vec<_>>().join(", ");
    if parts.len() > 6 {
        text += ", ..";
    }
    format!("threads {text}")
}

/// A kernel compiled for this CPU: takes the addresses of its arguments.
pub(super) type Entry = unsafe extern "C" fn(*mut *mut u8);

/// Stacks to be used again: mapping them anew for each block would take longer than running it.
#[derive(Default)]
pub(super) struct Stacks(Vec<DefaultStack>);

/// Runs a block to its end. `packed` holds the addresses of the arguments.
///
/// # Safety
/// `entry` must be a kernel lowered by [`super::lower`], and `packed` have an element for each of its parameters.
pub(super) unsafe fn run(
    mut block: Block,
    stacks: &mut Stacks,
    entry: Entry,
    packed: *mut *mut u8,
) -> (Block, Option<Failure>) {
    let n = block.threads.len();
    let mut fibers: Vec<Coroutine<(), (), ()>> = Vec::with_capacity(n);
    for _ in 0..n {
        let stack = match stacks.0.pop().map_or_else(|| DefaultStack::new(STACK), Ok) {
            Ok(stack) => stack,
            Err(why) => {
                let what = format!("no memory for a thread's stack: {why}");
                return (block, Some(Failure { thread: None, site: None, what }));
            }
        };
        fibers.push(Coroutine::with_stack(stack, move |yielder, ()| {
            with(|b| b.threads[b.current].yielder = yielder);
            // SAFETY: the caller's promise.
            unsafe { entry(packed) };
        }));
    }
    let mut order: Vec<usize> = (0..n).collect();
    let pointer: *mut Block = &mut block;
    CURRENT.set(pointer);
    let mut left = n;
    while left > 0 && with(|b| b.failure.is_none()) {
        if with(|b| b.mode.seed != 0) {
            with(|b| (1..n).rev().for_each(|i| order.swap(i, b.random.below(i + 1))));
        }
        let mut progress = false;
        for &i in &order {
            let go = with(|b| {
                b.current = i;
                !b.threads[i].done && b.ready(i)
            });
            if !go {
                continue;
            }
            progress = true;
            if let CoroutineResult::Return(()) = fibers[i].resume(()) {
                left -= 1;
                with(|b| b.threads[i].done = true);
            }
            if with(|b| b.failure.is_some()) {
                break;
            }
        }
        if !progress {
            with(|b| match b.run_late() {
                Ok(true) => {}
                Ok(false) => b.fail_as_block(b.stuck()),
                Err(what) => b.fail_as_block(what),
            });
        }
    }
    with(|b| {
        if b.failure.is_none()
            && let Err(what) = b.check_end()
        {
            b.fail_as_block(what);
        }
    });
    CURRENT.set(std::ptr::null_mut());
    for mut fiber in fibers {
        if !fiber.done() {
            // SAFETY: the fiber is abandoned with its stack; its frames are generated code and calls that own nothing that must be dropped.
            unsafe { fiber.force_reset() };
        }
        stacks.0.push(fiber.into_stack());
    }
    let failure = block.failure.take();
    (block, failure)
}
