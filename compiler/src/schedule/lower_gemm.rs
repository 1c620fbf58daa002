//! Contractions: operands and epilogue of a cluster.
//!
//! *Takes* a contraction cluster; *gives* its [`Gemm`]; *promises* that the epilogue is an element-wise program over m, n and the batch
//! indices, and that a bare accumulation continues the chain of its buffer.

use super::cluster::Kind;
use super::contract::{Frame, Place};
use super::layout::{View, size};
use super::lower::{Lower, Lowered, Slot, split_offset};
use super::lower_epilogue::{Epilogue, text};
use crate::graph::ir::{AxisId, DType, EffectMode};
use crate::kernel::Kernel;
use crate::kernel::gemm::{Gemm, Operand};

impl Lower<'_, '_> {
    /// The contraction of a cluster.
    pub(super) fn gemm(&mut self, i: usize) -> Result<Lowered, String> {
        let Kind::Gemm { dot, frame, .. } = &self.c.list[i].kind else { return Err("is no contraction".to_string()) };
        let g = self.c.g();
        let body = &self.bodies[i];
        let mut slots = Vec::new();
        let a = self.factor(frame, &frame.a, Place::M, frame.k_strides.0, &mut slots)?;
        let b = self.factor(frame, &frame.b, Place::N, frame.k_strides.1, &mut slots)?;
        let mut out = Epilogue::new(g, frame).map_err(text)?;
        self.values(&mut out, body)?;
        let acc = out.value(*dot);
        let single = body.stored.is_empty() && body.effects.len() == 1;
        let mut accumulate = false;
        for n in &body.stored {
            self.stored(&mut out, *n, body)?;
        }
        for e in &body.effects {
            let effect = &self.c.p.effects[*e];
            let target = self.target(*e);
            let bare = single && target.dtype == DType::F32 && acc.is_some() && out.value(effect.value) == acc;
            accumulate = target.mode == EffectMode::Accumulate && bare;
            let mode = match target.mode {
                EffectMode::Assign => None,
                EffectMode::Accumulate => Some(bare),
            };
            out.write(effect.value, (target.memory, target.dtype), &target.view, &body.digits[&effect.value], mode)?;
        }
        let results = body.stored.iter().copied().chain(body.effects.iter().map(|e| self.c.p.effects[*e].value));
        let pair = self.symmetric[dot.0 as usize].filter(|(r, s)| {
            frame.m.axes == [*r] && frame.n.axes == [*s] || frame.m.axes == [*s] && frame.n.axes == [*r]
        });
        // Nothing is known about the old content of a buffer that is added to.
        let adds = body.effects.iter().any(|e| self.c.p.effects[*e].mode == EffectMode::Accumulate);
        let symmetric =
            pair.is_some() && !adds && results.into_iter().all(|n| same_pair(self.symmetric[n.0 as usize], pair));
        let (epilogue, args, more) = out.finish();
        slots.extend(more);
        let kernel = Gemm {
            batch: frame.batch.iter().map(|x| x.size).collect(),
            m: frame.m.size,
            n: frame.n.size,
            k: frame.k,
            a,
            b,
            compute: g.compute,
            symmetric,
            accumulate,
            epilogue,
            args,
            cut: None,
            library: false,
        };
        let mut lowered = self.finish(i, Kernel::Gemm(kernel), slots);
        if !lowered.nodes.contains(dot) {
            lowered.nodes.push(*dot);
        }
        Ok(lowered)
    }

    /// A matrix operand: strides along its free index, k and the batch indices.
    fn factor(
        &mut self,
        frame: &Frame,
        view: &View,
        free: Place,
        k: i64,
        slots: &mut Vec<Slot>,
    ) -> Result<Operand, String> {
        let g = self.c.g();
        let dtype = self.c.p.storage[view.base.0 as usize];
        if !matches!(dtype, DType::F32 | DType::Bf16) {
            return Err(format!("an operand is stored as {dtype:?}"));
        }
        let along = |place: Place| {
            let list = &frame.group(place).axes;
            let has = list.iter().any(|a| view.axes.iter().any(|(x, _)| x == a));
            let parts: Vec<_> = list.iter().map(|a| (size(g, *a), view.stride(*a))).collect();
            if has { super::layout::merged(&parts).ok_or("operand axes do not merge") } else { Ok(0) }
        };
        let (pointer, offset) = split_offset(view.offset, dtype);
        let memory = self.memory(view.base);
        slots.push(Slot { memory, offset: pointer });
        let batch = (0..frame.batch.len()).map(|i| along(Place::Batch(i))).collect::<Result<_, _>>()?;
        Ok(Operand { dtype, offset, row: along(free)?, k, batch })
    }
}

fn same_pair(a: Option<(AxisId, AxisId)>, b: Option<(AxisId, AxisId)>) -> bool {
    match (a, b) {
        (Some((r, s)), Some((x, y))) => (r, s) == (x, y) || (r, s) == (y, x),
        _ => false,
    }
}
