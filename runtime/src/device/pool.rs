//! The thread pool behind every kernel call.
//!
//! *Takes* a task count and a function of (thread, task); *gives* nothing; *promises* that every task 0..n ran exactly once
//! and had ended when [`Pool::run`] returns, that results cannot depend on the number of threads (tasks write disjoint
//! memory; which thread runs one is left open), and that no thread outlives the pool.
//!
//! A round is one word: its number in the upper half, the tasks not yet taken in the lower. A task is taken by exchanging
//! that word for one less, so a worker that slept through a round can take nothing from it, and need not be waited for: on a
//! machine shared with others a round ends when its tasks have, not when every worker has been scheduled once.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Looks at the round word before a thread parks: about 0.1 ms, longer than the host takes between two calls of a graph.
const SPINS: u32 = 4_000;

/// What a task runs: (thread number, task number).
type Body<'a> = dyn Fn(usize, u64) + Sync + 'a;

struct Shared {
    /// Round number (upper 32 bits), tasks not yet taken (lower 32).
    round: AtomicU64,
    /// Tasks of the round that have ended.
    done: AtomicU32,
    /// The round's function and task count. Written only between rounds, read only by holders of a taken task.
    job: UnsafeCell<Job>,
    /// Workers asleep or about to be.
    sleepers: AtomicU32,
    /// The caller sleeps until `done` is complete.
    caller_sleeps: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake_workers: Condvar,
    wake_caller: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const Body<'static>,
    tasks: u32,
}

// SAFETY: `job` is the only part that is not Sync. It is written by `run` (which holds the pool exclusively) while no task is
// outstanding, and read only after taking a task by an acquire exchange of `round`, which `run` published by a release store
// after the write; `run` does not return, hence does not write again, before every taken task has been counted in `done`.
unsafe impl Sync for Shared {}
// SAFETY: see above; the raw pointer inside is only used under that protocol.
unsafe impl Send for Shared {}

/// A fixed set of threads, the caller being number 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    round: u32,
}

impl Pool {
    /// A pool of `threads` threads (at least one: the caller). Gives the operating system's error if one cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let nothing: &Body<'static> = &|_, _| {};
        let shared = Arc::new(Shared {
            round: AtomicU64::new(0),
            done: AtomicU32::new(0),
            job: UnsafeCell::new(Job { body: nothing, tasks: 0 }),
            sleepers: AtomicU32::new(0),
            caller_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake_workers: Condvar::new(),
            wake_caller: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), round: 0 };
        for thread in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let name = format!("golf-{thread}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || work(&shared, thread))?);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(thread, task)` for every task in `0..tasks`; `thread` is below [`Pool::threads`] and no two tasks run at the
    /// same time with the same thread number.
    pub fn run(&mut self, tasks: u32, body: &Body<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..u64::from(tasks)).for_each(|task| body(0, task));
            return;
        }
        let s = &*self.shared;
        let body: *const Body<'_> = body;
        // SAFETY: only the lifetime changes. The pointer is used by holders of a task of this round, and this function does
        // not return before all of them are done.
        let body: *const Body<'static> = unsafe { std::mem::transmute(body) };
        // SAFETY: no task is outstanding (the last `run` waited for all of its own), so nobody reads the cell now.
        unsafe { *s.job.get() = Job { body, tasks } };
        s.done.store(0, Relaxed);
        self.round = self.round.wrapping_add(1);
        // SeqCst against `sleepers`: either this thread sees a worker about to sleep, or that worker sees the round.
        s.round.store(u64::from(self.round) << 32 | u64::from(tasks), SeqCst);
        if s.sleepers.load(SeqCst) > 0 {
            drop(s.lock.lock());
            s.wake_workers.notify_all();
        }
        while take(s, 0) {}
        self.wait(tasks);
    }

    /// Runs `body(i, &mut items[i])` for every item, as [`Pool::run`] does for tasks.
    pub fn each<T: Send>(&mut self, items: &mut [T], body: &(dyn Fn(usize, &mut T) + Sync)) {
        // Never waited for: every item is one task's own.
        let items: Vec<Mutex<&mut T>> = items.iter_mut().map(Mutex::new).collect();
        self.run(items.len() as u32, &|_, task| {
            if let Ok(mut item) = items[task as usize].lock() {
                body(task as usize, &mut item);
            }
        });
    }

    fn wait(&self, tasks: u32) {
        let s = &*self.shared;
        for _ in 0..SPINS {
            if s.done.load(Acquire) == tasks {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = s.lock.lock().unwrap_or_else(|e| e.into_inner());
        s.caller_sleeps.store(true, SeqCst);
        while s.done.load(SeqCst) != tasks {
            guard = s.wake_caller.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
        s.caller_sleeps.store(false, SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.lock.lock());
        self.shared.wake_workers.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Ends the process if a task unwinds: the other threads would wait for it forever.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Takes and runs one task of the current round; false when none is left.
fn take(s: &Shared, thread: usize) -> bool {
    let mut seen = s.round.load(Acquire);
    loop {
        let left = seen as u32;
        if left == 0 {
            return false;
        }
        match s.round.compare_exchange_weak(seen, seen - 1, AcqRel, Acquire) {
            Err(now) => seen = now,
            Ok(_) => {
                // SAFETY: this thread holds a task of the round, so the cell is not written until it is counted below.
                let job = unsafe { *s.job.get() };
                let guard = AbortOnUnwind;
                // SAFETY: the function outlives the round, see `run`.
                unsafe { (*job.body)(thread, u64::from(job.tasks - left)) };
                drop(guard);
                if s.done.fetch_add(1, SeqCst) + 1 == job.tasks && thread != 0 && s.caller_sleeps.load(SeqCst) {
                    drop(s.lock.lock());
                    s.wake_caller.notify_one();
                }
                return true;
            }
        }
    }
}

/// A worker's life: run what there is, look for more for a while, sleep.
fn work(s: &Shared, thread: usize) {
    loop {
        while take(s, thread) {}
        let mut spins = 0;
        while s.round.load(Acquire) as u32 == 0 && spins < SPINS && !s.stop.load(Relaxed) {
            std::hint::spin_loop();
            spins += 1;
        }
        if s.stop.load(SeqCst) {
            return;
        }
        if s.round.load(Acquire) as u32 > 0 {
            continue;
        }
        let mut guard = s.lock.lock().unwrap_or_else(|e| e.into_inner());
        s.sleepers.fetch_add(1, SeqCst);
        while s.round.load(SeqCst) as u32 == 0 && !s.stop.load(SeqCst) {
            guard = s.wake_workers.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
        s.sleepers.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0u32, 1, 2, 3, 64, 1000] {
                let hits: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, &|_, t| {
                    hits[t as usize].fetch_add(1, Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn every_item_is_changed_once() {
        for threads in [1, 3] {
            let mut items: Vec<usize> = (0..100).collect();
            Pool::new(threads).unwrap().each(&mut items, &|i, item| *item += 1000 * (i + 1));
            assert!(items.iter().enumerate().all(|(i, &x)| x == i + 1000 * (i + 1)));
        }
    }

    #[test]
    fn rounds_in_quick_succession_do_not_mix() {
        let mut pool = Pool::new(3).unwrap();
        let mut sums = Vec::new();
        for round in 0..20_000u64 {
            let sum = AtomicU64::new(0);
            pool.run(5, &|_, t| {
                sum.fetch_add(round * 10 + t, Relaxed);
            });
            sums.push(sum.into_inner());
        }
        assert!(sums.iter().enumerate().all(|(r, &s)| s == r as u64 * 50 + 10));
    }

    #[test]
    fn wakes_after_a_pause_long_enough_to_park() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let ran = AtomicU32::new(0);
            // Two tasks that wait for each other: they end only if two threads run them.
            pool.run(2, &|_, _| {
                ran.fetch_add(1, SeqCst);
                while ran.load(SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
            assert_eq!(ran.into_inner(), 2);
        }
    }

    #[test]
    fn a_thread_number_is_never_used_twice_at_once() {
        let mut pool = Pool::new(4).unwrap();
        let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
        pool.run(2_000, &|thread, _| {
            assert!(!busy[thread].swap(true, SeqCst));
            std::hint::spin_loop();
            busy[thread].store(false, SeqCst);
        });
    }

    #[test]
    fn the_caller_sleeps_while_a_worker_is_slow() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            pool.run(2, &|_, _| std::thread::sleep(std::time::Duration::from_millis(15)));
        }
    }
}
