//! Index spaces: which positions a loop nest visits and how the axes of a value are computed from its counters.
//!
//! *Takes* axes; *gives* [`Space`] (the box of positions of one nest), [`Env`] (axes to address expressions) and mixed-radix division of
//! such expressions; *promises* that refining or cutting a space visits the same positions.

use super::loops::{Affine, Var};
use crate::graph::ir::AxisId;
use std::collections::BTreeMap;

/// A loop of a space: position `stride * counter` along an axis, added to the axis's start and its other loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Side {
    pub axis: AxisId,
    pub stride: i64,
    pub size: usize,
}

/// A box of positions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Space {
    pub sides: Vec<Side>,
    pub start: BTreeMap<AxisId, i64>,
}

/// Address expressions of axes.
pub type Env = BTreeMap<AxisId, Affine>;

impl Space {
    /// All positions of some axes, outermost first.
    pub fn all(axes: &[(AxisId, usize)]) -> Self {
        Space {
            sides: axes.iter().filter(|(_, n)| *n > 1).map(|&(axis, size)| Side { axis, stride: 1, size }).collect(),
            start: axes.iter().map(|&(a, _)| (a, 0)).collect(),
        }
    }

    /// The same positions along `axis`, counted from the end.
    pub fn reverse(mut self, axis: AxisId) -> Self {
        for side in self.sides.iter_mut().filter(|s| s.axis == axis) {
            side.stride = -side.stride;
            *self.start.entry(axis).or_insert(0) += side.size as i64 - 1;
        }
        self
    }

    /// Loop `k` as two loops, the inner one of `inner` iterations.
    pub fn refine(mut self, k: usize, inner: usize) -> Self {
        let side = self.sides[k];
        self.sides[k] = Side { stride: side.stride * inner as i64, size: side.size / inner, ..side };
        self.sides.insert(k + 1, Side { size: inner, ..side });
        self.sides.retain(|s| s.size > 1);
        self
    }

    /// The positions of loop `k` before and from `at`.
    pub fn cut(&self, k: usize, at: usize) -> [Space; 2] {
        let (mut low, mut high) = (self.clone(), self.clone());
        let side = self.sides[k];
        low.sides[k].size = at;
        high.sides[k].size = side.size - at;
        *high.start.entry(side.axis).or_insert(0) += side.stride * at as i64;
        for space in [&mut low, &mut high] {
            space.sides.retain(|s| s.size > 1);
        }
        [low, high]
    }

    /// The address expressions, loop k being `Dim(k)`.
    pub fn env(&self) -> Env {
        let mut env: Env = self.start.iter().map(|(&a, &n)| (a, Affine::constant(n))).collect();
        for (k, side) in self.sides.iter().enumerate() {
            let e = env.entry(side.axis).or_default();
            *e = std::mem::take(e).plus(&Affine::var(Var::Dim(k), 1), side.stride);
        }
        env
    }

    /// Sizes of the loops.
    pub fn sizes(&self) -> Vec<usize> {
        self.sides.iter().map(|s| s.size).collect()
    }
}

/// How far the variables of an expression run: trip counts of outer axes and loops.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Bounds {
    pub outer: Vec<usize>,
    pub dims: Vec<usize>,
}

/// Result of dividing an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Division {
    /// Quotient and remainder.
    Done(Affine, Affine),
    /// Possible once loop `dim` is refined with `inner` iterations inside.
    Refine {
        #[allow(missing_docs)]
        dim: usize,
        #[allow(missing_docs)]
        inner: usize,
    },
    /// Not expressible.
    Stuck,
}

impl Bounds {
    fn size(&self, var: Var) -> Option<i64> {
        match var {
            Var::Outer(k) => Some(self.outer[k] as i64),
            Var::Dim(k) => Some(self.dims[k] as i64),
            Var::Task | Var::Value(_) => None,
        }
    }

    /// Least and largest value, if known.
    pub fn range(&self, e: &Affine) -> Option<(i64, i64)> {
        let (mut low, mut high) = (e.constant, e.constant);
        for (&var, &c) in &e.terms {
            let far = c * (self.size(var)? - 1);
            low += far.min(0);
            high += far.max(0);
        }
        Some((low, high))
    }

    /// Division by `m` with a remainder in `0..m`.
    pub fn divide(&self, e: &Affine, m: i64) -> Division {
        let mut q = Affine::constant(e.constant.div_euclid(m));
        let mut r = Affine::constant(e.constant.rem_euclid(m));
        for (&var, &c) in &e.terms {
            if c % m == 0 {
                q = q.plus(&Affine::var(var, 1), c / m);
                continue;
            }
            match (self.size(var), var) {
                (Some(n), _) if c > 0 && c * (n - 1) < m => r = r.plus(&Affine::var(var, 1), c),
                (Some(n), Var::Dim(dim)) if c > 0 && m % c == 0 && n % (m / c) == 0 => {
                    return Division::Refine { dim, inner: (m / c) as usize };
                }
                _ => return Division::Stuck,
            }
        }
        match self.range(&r) {
            Some((low, high)) if low >= 0 && high < m => Division::Done(q, r),
            _ => Division::Stuck,
        }
    }

    /// The loop and iteration at which `e` crosses from below `at` to `at`, if one loop decides.
    pub fn crossing(&self, e: &Affine, at: i64) -> Option<(usize, usize)> {
        let (&var, &c) = e.terms.iter().max_by_key(|(_, c)| c.abs())?;
        let (Var::Dim(dim), true) = (var, c > 0) else { return None };
        let rest = e.clone().plus(&Affine::var(var, 1), -c);
        let (low, high) = self.range(&rest)?;
        // First iteration whose least value reaches `at`.
        let p = (at - low + c - 1).div_euclid(c);
        let inside = p > 0 && p < self.dims[dim] as i64;
        (inside && c * (p - 1) + high < at).then_some((dim, p as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds { outer: vec![2], dims: vec![8, 64] }
    }

    #[test]
    fn division_splits_by_radix() {
        let (i, j) = (Affine::var(Var::Dim(0), 1), Affine::var(Var::Dim(1), 1));
        let e = j.clone().plus(&i, 64).plus(&Affine::constant(1), 64);
        assert_eq!(bounds().divide(&e, 64), Division::Done(i.plus(&Affine::constant(1), 1), j.clone()));
        assert_eq!(bounds().divide(&j, 16), Division::Refine { dim: 1, inner: 16 });
        assert_eq!(bounds().divide(&j.plus(&Affine::constant(1), 1), 64), Division::Stuck);
    }

    #[test]
    fn crossing_finds_the_iteration() {
        let j = Affine::var(Var::Dim(1), 1);
        assert_eq!(bounds().crossing(&j, 16), Some((1, 16)));
        assert_eq!(bounds().crossing(&j.clone().plus(&Affine::constant(1), 4), 16), Some((1, 12)));
        let e = j.plus(&Affine::var(Var::Dim(0), 1), 64);
        assert_eq!(bounds().crossing(&e, 128), Some((0, 2)));
        assert_eq!(bounds().crossing(&e, 100), None);
    }

    #[test]
    fn refining_and_cutting_visit_the_same_positions() {
        let axis = AxisId(0);
        let visit = |s: &Space| {
            let e = s.env()[&axis].clone();
            let mut seen = Vec::new();
            let n: usize = s.sizes().iter().product();
            for at in 0..n {
                let (mut rest, mut x) = (at, e.constant);
                for (k, size) in s.sizes().into_iter().enumerate().rev() {
                    x += e.dim(k) * (rest % size) as i64;
                    rest /= size;
                }
                seen.push(x);
            }
            seen
        };
        let all = Space::all(&[(axis, 24)]);
        assert_eq!(visit(&all.clone().refine(0, 6)), (0..24).collect::<Vec<_>>());
        let [low, high] = all.cut(0, 7);
        assert_eq!([visit(&low), visit(&high)].concat(), (0..24).collect::<Vec<_>>());
        assert_eq!(visit(&all.reverse(axis)), (0..24).rev().collect::<Vec<_>>());
    }
}
