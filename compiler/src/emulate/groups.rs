//! Groups of asynchronous work, one after another for each thread.
//!
//! *Takes* pieces of work and the thread's commits and waits; *gives* what a wait completes; *promises* that work is complete when its group has been waited for,
//! oldest group first.

use std::collections::VecDeque;

/// The groups of a block's threads.
pub(super) struct Groups<T> {
    /// Of each thread: work since its last commit.
    open: Vec<Vec<T>>,
    /// Groups that have not been waited for.
    closed: Vec<VecDeque<Vec<T>>>,
    /// Number of groups so far.
    committed: Vec<u32>,
}

impl<T: Clone> Groups<T> {
    pub(super) fn new(threads: usize) -> Groups<T> {
        Groups { open: vec![vec![]; threads], closed: vec![VecDeque::new(); threads], committed: vec![0; threads] }
    }

    /// Number of the group, from 1, that work started now belongs to.
    pub(super) fn current(&self, thread: usize) -> u32 {
        self.committed[thread] + 1
    }

    pub(super) fn push(&mut self, thread: usize, work: T) {
        self.open[thread].push(work);
    }

    /// Closes the thread's group.
    pub(super) fn commit(&mut self, thread: usize) {
        let group = std::mem::take(&mut self.open[thread]);
        self.closed[thread].push_back(group);
        self.committed[thread] += 1;
    }

    /// Ends all but the last `pending` groups of a thread: their work, oldest first, and how many groups have ended so far.
    pub(super) fn wait(&mut self, thread: usize, pending: usize) -> (Vec<T>, u32) {
        let closed = &mut self.closed[thread];
        let ended: Vec<T> = closed.drain(..closed.len().saturating_sub(pending)).flatten().collect();
        (ended, self.committed[thread] - self.closed[thread].len() as u32)
    }

    /// A thread that has not waited for all of its work.
    pub(super) fn left(&self) -> Option<usize> {
        (0..self.open.len()).find(|&t| !self.open[t].is_empty() || !self.closed[t].is_empty())
    }
}
