//! Epilogues: what a kernel makes of its finished results before anything is stored.
//!
//! *Takes* a small [`Graph`] over the kernel's index space; *gives* what emitters ask of it; *promises* nothing about memory: arguments are addressed by
//! strides.
//!
//! Of the body's axes `m` is number 0, `n` number 1, batch indices follow. Buffer 0 is the pseudo-buffer of the results (f32), over the batch indices, m and n,
//! those of size 1 left out or not; every other buffer has the axes it varies over. Effects are the outputs.

use crate::graph::ir::{BufferId, DType, Graph, Op};

/// An epilogue argument: addressed by (batch.., m, n) strides; 0 where it does not vary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EpilogueArg {
    #[allow(missing_docs)]
    pub offset: i64,
    #[allow(missing_docs)]
    pub batch: Vec<i64>,
    #[allow(missing_docs)]
    pub m: i64,
    #[allow(missing_docs)]
    pub n: i64,
}

impl EpilogueArg {
    /// The stride along one of the body's axes.
    pub fn stride(&self, axis: u32) -> i64 {
        match axis {
            0 => self.m,
            1 => self.n,
            i => self.batch[i as usize - 2],
        }
    }

    /// Bytes of the memory it spans, in a space of these extents.
    pub fn bytes(&self, batch: &[usize], (m, n): (usize, usize), dtype: DType) -> u64 {
        let extent = |stride: i64, size: usize| if stride == 0 { 1 } else { size };
        let batch: usize = self.batch.iter().zip(batch).map(|(s, n)| extent(*s, *n)).product();
        (batch * extent(self.m, m) * extent(self.n, n) * dtype.bytes()) as u64
    }
}

/// A body with the addressing of its buffers 1.. , in order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Epilogue {
    pub body: Graph,
    pub args: Vec<EpilogueArg>,
}

impl Epilogue {
    /// Buffers with their addressing.
    pub fn buffers(&self) -> impl Iterator<Item = (DType, &EpilogueArg)> {
        self.body.buffers.iter().skip(1).map(|b| b.ty.dtype).zip(&self.args)
    }

    /// Most values that differ along n, but for the results, that are needed at the same time.
    pub fn peak(&self) -> usize {
        let body = &self.body;
        let needed = needs(body);
        let mut last: Vec<usize> = (0..body.nodes.len()).collect();
        let mut wide: Vec<bool> = Vec::with_capacity(body.nodes.len());
        for (i, node) in body.nodes.iter().enumerate() {
            let own = matches!(node.op, Op::Read(_) | Op::Iota(_)) || node.args.iter().any(|a| wide[a.0 as usize]);
            wide.push(own && node.op != RESULTS && node.ty.axes.iter().any(|a| a.0 == 1));
            if needed[i] {
                node.args.iter().for_each(|a| last[a.0 as usize] = i);
            }
        }
        body.effects.iter().for_each(|e| last[e.value.0 as usize] = body.nodes.len());
        let live = |at: usize| (0..=at).filter(|&i| needed[i] && wide[i] && last[i] >= at).count();
        (0..body.nodes.len()).map(live).max().unwrap_or(0)
    }
}

/// The pseudo-buffer of the results.
const RESULTS: Op = Op::Read(BufferId(0));

/// Which nodes of a body its effects use.
pub fn needs(body: &Graph) -> Vec<bool> {
    let mut needed = vec![false; body.nodes.len()];
    body.effects.iter().for_each(|effect| needed[effect.value.0 as usize] = true);
    for (i, node) in body.nodes.iter().enumerate().rev() {
        if needed[i] {
            node.args.iter().for_each(|a| needed[a.0 as usize] = true);
        }
    }
    needed
}

/// Says which op no epilogue may hold. Kernels that have `whole_rows` at hand reduce along n.
pub fn check_ops(body: &Graph, whole_rows: bool) -> Result<(), String> {
    for node in &body.nodes {
        match &node.op {
            Op::Read(_) | Op::Const(_) | Op::Iota(_) | Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => {}
            Op::Broadcast | Op::StraightThrough | Op::StopGradient => {}
            Op::Reduce(_, over) if whole_rows && over.len() == 1 && over[0].0 == 1 => {}
            op => return Err(format!("{op:?} is not element-wise and cannot be in an epilogue")),
        }
    }
    Ok(())
}
