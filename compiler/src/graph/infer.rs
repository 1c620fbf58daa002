//! Shape and dtype rules: the type of a node from its op and the types of its operands.
//!
//! *Takes* a graph, an op, its operands and (for the ops marked N in [`super::ir`]) the stated result type; *gives* the result type
//! or a [`TypeError`]; *promises* to be the only place that knows these rules: the builder computes with it, the verifier
//! compares against it.
//!
//! Dtype rules: `F32`, `Bf16`, `F16` are one kind (float). Arithmetic on floats gives `F32`; ops that only move or choose values keep the
//! operand's dtype, and give `F32` where operands of different float dtypes meet. `I8` values can only be moved, compared and cast.

use super::error::TypeError;
use super::ir::{Attend, AttendArg, AxisId, Binary, DType, Graph, NodeId, Op, Reduce, Type, Unary};

/// The result type of `op` applied to `args`. `stated` is the node's own type, needed by N ops (for `Dot` only the order, optional).
pub fn result(g: &Graph, op: &Op, args: &[NodeId], stated: Option<&Type>) -> Result<Type, TypeError> {
    let row = super::ops::row(op);
    if args.len() < row.least || args.len() > row.most {
        return Err(TypeError::Arity { op: row.name, expected: row.least, found: args.len() });
    }
    if let Some(bad) = args.iter().find(|a| a.0 as usize >= g.nodes.len()) {
        return Err(TypeError::Invalid { op: row.name, why: format!("operand %{} does not exist", bad.0) });
    }
    let rule = Rule { g, name: row.name, args };
    let ty = rule.result(op, stated)?;
    rule.distinct(&ty.axes)?;
    Ok(ty)
}

struct Rule<'a> {
    g: &'a Graph,
    name: &'static str,
    args: &'a [NodeId],
}

type Typed = Result<Type, TypeError>;

impl Rule<'_> {
    fn result(&self, op: &Op, stated: Option<&Type>) -> Typed {
        match op {
            Op::Read(b) => {
                let ty = &self.g.buffers.get(b.0 as usize).ok_or_else(|| self.invalid("no such buffer"))?.ty;
                Ok(Type { dtype: value_dtype(ty.dtype), axes: ty.axes.clone() })
            }
            Op::Const(x) => self.constant(x.get(), self.need(stated)?),
            Op::Iota(axis) => {
                self.known(&[*axis])?;
                Ok(Type { dtype: DType::I32, axes: vec![*axis] })
            }
            Op::Unary(u) => self.unary(*u),
            Op::Binary(b) => self.binary(*b),
            Op::Select => self.select(),
            Op::Cast(to) => Ok(Type { dtype: *to, axes: self.ty(0).axes.clone() }),
            Op::StopGradient => Ok(self.ty(0).clone()),
            Op::StraightThrough => self.straight_through(),
            Op::Broadcast => self.broadcast(self.need(stated)?),
            Op::Reduce(r, over) => self.reduce(*r, over),
            Op::Dot(over) => self.dot(over, stated),
            Op::Gather(axis) => self.gather(*axis),
            Op::ScatterAdd(axis) => self.scatter_add(*axis),
            Op::Split(from, to) => self.split(*from, to),
            Op::Merge(from, to) => self.merge(from, *to),
            Op::Rename(from, to) => {
                self.same_size(*from, *to)?;
                self.replace(self.ty(0), *from, &[*to])
            }
            Op::Slice { from, to, start } => {
                self.known(&[*from, *to])?;
                self.fits(*start, self.size(*to), *from)?;
                self.replace(self.ty(0), *from, &[*to])
            }
            Op::Pad { from, to, start } => {
                self.known(&[*from, *to])?;
                self.fits(*start, self.size(*from), *to)?;
                self.replace(self.ty(0), *from, &[*to])
            }
            Op::Index(axis, at) => {
                self.known(&[*axis])?;
                self.fits(*at, 1, *axis)?;
                self.replace(self.ty(0), *axis, &[])
            }
            Op::Place(axis, at) => self.place(*axis, *at, self.need(stated)?),
            Op::Concat(from, to) => self.concat(from, *to),
            Op::Shift(axis, _) => {
                self.has(self.ty(0), *axis)?;
                Ok(self.ty(0).clone())
            }
            Op::Cumsum(axis, _) => {
                self.has(self.ty(0), *axis)?;
                Ok(Type { dtype: self.number(0)?, axes: self.ty(0).axes.clone() })
            }
            Op::Scan(axis, _) => {
                self.float(0)?;
                self.float(1)?;
                let axes = self.larger(0, 1)?;
                self.has(&Type { dtype: DType::F32, axes: axes.clone() }, *axis)?;
                Ok(Type { dtype: DType::F32, axes })
            }
            Op::Attend(a) => {
                self.attention(a, Some(2), 3)?;
                Ok(self.like(0))
            }
            Op::AttendLse(a) => {
                self.attention(a, None, 2)?;
                Ok(Type { dtype: DType::F32, axes: without(&self.ty(0).axes, a.dim) })
            }
            Op::AttendGrad(a, which) => self.attend_grad(a, *which),
            Op::CrossEntropy(axis) => {
                let axes = self.loss(*axis)?;
                Ok(Type { dtype: DType::F32, axes })
            }
            Op::CrossEntropyGrad(axis) => {
                let axes = self.loss(*axis)?;
                self.float(2)?;
                self.same_set(&axes, &self.ty(2).axes)?;
                Ok(self.like(0))
            }
            Op::Quantile(axis, q) => {
                self.float(0)?;
                if !(0.0..=1.0).contains(&q.get()) {
                    return Err(self.invalid(&format!("the quantile must lie in 0..=1, not {}", q.get())));
                }
                Ok(Type { dtype: DType::F32, axes: self.replace(self.ty(0), *axis, &[])?.axes })
            }
            Op::FeedbackRound { axis, low, high } => self.feedback_round(*axis, low.get(), high.get()),
            Op::TopKValues(from, to) | Op::TopKIndices(from, to) => {
                self.known(&[*from, *to])?;
                self.fits(0, self.size(*to), *from)?;
                self.number(0)?;
                let mut ty = self.replace(self.ty(0), *from, &[*to])?;
                if matches!(op, Op::TopKIndices(..)) {
                    ty.dtype = DType::I32;
                }
                Ok(ty)
            }
            Op::Random { .. } => {
                self.integer(0)?;
                if !self.ty(0).axes.is_empty() {
                    return Err(self.invalid("the counter must be a scalar"));
                }
                let stated = self.need(stated)?;
                self.known(&stated.axes)?;
                Ok(Type { dtype: DType::F32, axes: stated.axes.clone() })
            }
        }
    }

    fn constant(&self, x: f64, stated: &Type) -> Typed {
        if !stated.axes.is_empty() {
            return Err(self.invalid("a constant has no axes"));
        }
        let whole = |lo: f64, hi: f64| x >= lo && x <= hi && x == libm::trunc(x);
        let fits = match stated.dtype {
            DType::F32 | DType::Bf16 | DType::F16 => true,
            DType::I32 => whole(f64::from(i32::MIN), f64::from(i32::MAX)),
            DType::I8 => whole(-128.0, 127.0),
            DType::Bool => x == 0.0 || x == 1.0,
        };
        if !fits {
            return Err(self.invalid(&format!("{x} is not a value of {}", dtype_name(stated.dtype))));
        }
        Ok(stated.clone())
    }

    fn unary(&self, u: Unary) -> Typed {
        let ty = self.ty(0);
        let dtype = match u {
            Unary::Neg | Unary::Abs | Unary::Sign => self.number(0)?,
            Unary::Not => self.expect(0, DType::Bool)?,
            Unary::Exp
            | Unary::Log
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Sin
            | Unary::Cos
            | Unary::Sqrt
            | Unary::Rsqrt
            | Unary::Recip
            | Unary::Round
            | Unary::Floor => self.float(0)?,
        };
        Ok(Type { dtype, axes: ty.axes.clone() })
    }

    fn binary(&self, op: Binary) -> Typed {
        let (a, b) = (self.ty(0).dtype, self.ty(1).dtype);
        let dtype = match op {
            Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Min | Binary::Max | Binary::Mod => {
                self.number(0)?;
                self.number(1)?;
                self.joined(0, 1)?
            }
            Binary::Pow => {
                self.float(0)?;
                self.float(1)?
            }
            Binary::And | Binary::Or | Binary::Xor => {
                if a != b || !matches!(a, DType::I32 | DType::Bool) {
                    return Err(self.dtypes("two i32 or two bool operands"));
                }
                a
            }
            Binary::Shl | Binary::Shr => {
                self.integer(0)?;
                self.integer(1)?
            }
            Binary::Eq | Binary::Ne => {
                self.joined(0, 1)?;
                DType::Bool
            }
            Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge => {
                if a == DType::Bool || b == DType::Bool {
                    return Err(self.dtypes("two numbers"));
                }
                self.joined(0, 1)?;
                DType::Bool
            }
        };
        // Arithmetic on narrow floats is f32.
        let dtype = if dtype.is_float() { DType::F32 } else { dtype };
        Ok(Type { dtype, axes: self.larger(0, 1)? })
    }

    fn select(&self) -> Typed {
        self.expect(0, DType::Bool)?;
        let dtype = self.joined(1, 2)?;
        let mut axes = &self.ty(0).axes;
        for i in 1..3 {
            if self.ty(i).axes.len() > axes.len() {
                axes = &self.ty(i).axes;
            }
        }
        for i in 0..3 {
            self.contains(axes, &self.ty(i).axes)?;
        }
        Ok(Type { dtype, axes: axes.clone() })
    }

    fn straight_through(&self) -> Typed {
        self.float(0)?;
        self.float(1)?;
        self.same_set(&self.ty(0).axes, &self.ty(1).axes)?;
        Ok(self.ty(0).clone())
    }

    fn broadcast(&self, stated: &Type) -> Typed {
        self.known(&stated.axes)?;
        self.contains(&stated.axes, &self.ty(0).axes)?;
        Ok(Type { dtype: self.ty(0).dtype, axes: stated.axes.clone() })
    }

    fn reduce(&self, r: Reduce, over: &[AxisId]) -> Typed {
        let ty = self.ty(0);
        self.distinct(over)?;
        for axis in over {
            self.has(ty, *axis)?;
        }
        let dtype = match (r, ty.dtype) {
            (Reduce::Sum, _) => self.number(0)?,
            (Reduce::Max | Reduce::Min, dtype) => dtype,
        };
        Ok(Type { dtype, axes: ty.axes.iter().copied().filter(|a| !over.contains(a)).collect() })
    }

    fn dot(&self, over: &[AxisId], stated: Option<&Type>) -> Typed {
        self.float(0)?;
        self.float(1)?;
        self.distinct(over)?;
        let (a, b) = (self.ty(0), self.ty(1));
        for axis in over {
            self.has(a, *axis)?;
            self.has(b, *axis)?;
        }
        let free = a.axes.iter().chain(b.axes.iter().filter(|x| !a.axes.contains(x)));
        let axes: Vec<_> = free.copied().filter(|x| !over.contains(x)).collect();
        match stated {
            None => Ok(Type { dtype: DType::F32, axes }),
            Some(stated) => {
                self.same_set(&axes, &stated.axes)?;
                Ok(Type { dtype: DType::F32, axes: stated.axes.clone() })
            }
        }
    }

    fn gather(&self, axis: AxisId) -> Typed {
        let (table, index) = (self.ty(0), self.ty(1));
        self.integer(1)?;
        self.has(table, axis)?;
        let rest = without(&table.axes, axis);
        Ok(Type { dtype: table.dtype, axes: [&index.axes[..], &rest[..]].concat() })
    }

    fn scatter_add(&self, axis: AxisId) -> Typed {
        self.known(&[axis])?;
        self.integer(0)?;
        let (index, src) = (self.ty(0), self.ty(1));
        let dtype = self.number(1)?;
        self.contains(&src.axes, &index.axes)?;
        let rest = src.axes.iter().copied().filter(|a| !index.axes.contains(a));
        Ok(Type { dtype, axes: std::iter::once(axis).chain(rest).collect() })
    }

    fn split(&self, from: AxisId, to: &[AxisId]) -> Typed {
        self.known(to)?;
        let ty = self.replace(self.ty(0), from, to)?;
        self.product(to, from)?;
        Ok(ty)
    }

    fn merge(&self, from: &[AxisId], to: AxisId) -> Typed {
        let ty = self.ty(0);
        self.known(&[to])?;
        self.distinct(from)?;
        for axis in from {
            self.has(ty, *axis)?;
        }
        self.product(from, to)?;
        let mut axes = Vec::new();
        for axis in &ty.axes {
            if !from.contains(axis) {
                axes.push(*axis);
            } else if !axes.contains(&to) {
                axes.push(to);
            }
        }
        if axes.len() + from.len() != ty.axes.len() + 1 {
            return Err(self.invalid(&format!("the operand already has the axis `{}`", self.axis_name(to))));
        }
        Ok(Type { dtype: ty.dtype, axes })
    }

    fn place(&self, axis: AxisId, at: usize, stated: &Type) -> Typed {
        self.known(&[axis])?;
        self.fits(at, 1, axis)?;
        self.known(&stated.axes)?;
        let mut all = self.ty(0).axes.clone();
        all.push(axis);
        self.same_set(&all, &stated.axes)?;
        Ok(Type { dtype: self.ty(0).dtype, axes: stated.axes.clone() })
    }

    fn concat(&self, from: &[AxisId], to: AxisId) -> Typed {
        self.known(&[to])?;
        self.known(from)?;
        if from.len() != self.args.len() {
            return Err(TypeError::Arity { op: self.name, expected: from.len(), found: self.args.len() });
        }
        let total: usize = from.iter().map(|a| self.size(*a)).sum();
        if total != self.size(to) {
            return Err(TypeError::Size {
                op: self.name,
                axis: self.axis_name(to),
                expected: total,
                found: self.size(to),
            });
        }
        let first = self.replace(self.ty(0), from[0], &[to])?;
        let mut dtype = first.dtype;
        for (i, axis) in from.iter().enumerate().skip(1) {
            let ty = self.replace(self.ty(i), *axis, &[to])?;
            self.same_set(&first.axes, &ty.axes)?;
            self.joined(0, i)?;
            if ty.dtype != dtype {
                dtype = DType::F32;
            }
        }
        Ok(Type { dtype, axes: first.axes })
    }

    /// Checks q, k, (v) and the document ids of the attention ops; `fixed` operands come before the document.
    fn attention(&self, a: &Attend, v: Option<usize>, fixed: usize) -> Result<(), TypeError> {
        if self.args.len() != fixed + usize::from(a.document) {
            let expected = fixed + usize::from(a.document);
            return Err(TypeError::Arity { op: self.name, expected, found: self.args.len() });
        }
        if a.window == Some(0) {
            return Err(self.invalid("the window must be at least 1"));
        }
        for i in 0..fixed {
            self.float(i)?;
        }
        let (q, k) = (self.ty(0), self.ty(1));
        for axis in [a.time, a.dim] {
            self.has(q, axis)?;
            self.has(k, axis)?;
        }
        self.contains(&q.axes, &k.axes)?;
        if let Some(v) = v {
            self.same_set(&k.axes, &self.ty(v).axes)?;
        }
        if a.document {
            self.integer(fixed)?;
            let document = self.ty(fixed);
            self.has(document, a.time)?;
            self.contains(&without(&k.axes, a.dim), &document.axes)?;
        }
        Ok(())
    }

    fn attend_grad(&self, a: &Attend, which: AttendArg) -> Typed {
        self.attention(a, Some(2), 6)?;
        let q = &self.ty(0).axes;
        self.same_set(q, &self.ty(3).axes)?;
        self.same_set(&without(q, a.dim), &self.ty(4).axes)?;
        self.same_set(q, &self.ty(5).axes)?;
        Ok(match which {
            AttendArg::Q => self.like(0),
            AttendArg::K => self.like(1),
            AttendArg::V => self.like(2),
        })
    }

    fn feedback_round(&self, axis: AxisId, low: f64, high: f64) -> Typed {
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return Err(
                self.invalid(&format!("codes must lie between two numbers, the lower one first, not {low} and {high}"))
            );
        }
        for i in [0, 1, 3] {
            self.float(i)?;
        }
        self.integer(2)?;
        self.has(self.ty(0), axis)?;
        self.same_set(&without(&self.ty(0).axes, axis), &self.ty(1).axes)?;
        self.same_set(&[axis], &self.ty(2).axes)?;
        let upper = self.ty(3);
        self.has(upper, axis)?;
        match without(&upper.axes, axis)[..] {
            [visits] => self.same_size(axis, visits)?,
            _ => {
                let why = format!(
                    "the factor must have `{}` and one other axis, not [{}]",
                    self.axis_name(axis),
                    self.names(&upper.axes).join(" ")
                );
                return Err(self.invalid(&why));
            }
        }
        Ok(self.like(0))
    }

    fn loss(&self, axis: AxisId) -> Result<Vec<AxisId>, TypeError> {
        self.float(0)?;
        self.integer(1)?;
        self.has(self.ty(0), axis)?;
        let axes = without(&self.ty(0).axes, axis);
        self.same_set(&axes, &self.ty(1).axes)?;
        Ok(axes)
    }

    // ---- vocabulary of the rules ----

    fn ty(&self, i: usize) -> &Type {
        &self.g.nodes[self.args[i].0 as usize].ty
    }

    fn like(&self, i: usize) -> Type {
        Type { dtype: DType::F32, axes: self.ty(i).axes.clone() }
    }

    fn need<'s>(&self, stated: Option<&'s Type>) -> Result<&'s Type, TypeError> {
        stated.ok_or_else(|| self.invalid("the result type must be stated"))
    }

    fn invalid(&self, why: &str) -> TypeError {
        TypeError::Invalid { op: self.name, why: why.to_string() }
    }

    fn dtypes(&self, expected: &str) -> TypeError {
        let found = (0..self.args.len()).map(|i| self.ty(i).dtype).collect();
        TypeError::DType { op: self.name, expected: expected.to_string(), found }
    }

    fn float(&self, i: usize) -> Result<DType, TypeError> {
        if self.ty(i).dtype.is_float() { Ok(DType::F32) } else { Err(self.dtypes("floats")) }
    }

    fn integer(&self, i: usize) -> Result<DType, TypeError> {
        self.expect(i, DType::I32)
    }

    /// F32 for floats, I32 for I32.
    fn number(&self, i: usize) -> Result<DType, TypeError> {
        match self.ty(i).dtype {
            DType::F32 | DType::Bf16 | DType::F16 => Ok(DType::F32),
            DType::I32 => Ok(DType::I32),
            DType::I8 | DType::Bool => Err(self.dtypes("floats or i32 (cast first)")),
        }
    }

    fn expect(&self, i: usize, dtype: DType) -> Result<DType, TypeError> {
        if self.ty(i).dtype == dtype { Ok(dtype) } else { Err(self.dtypes(dtype_name(dtype))) }
    }

    /// The dtype of a value that is one of two operands.
    fn joined(&self, i: usize, j: usize) -> Result<DType, TypeError> {
        let (a, b) = (self.ty(i).dtype, self.ty(j).dtype);
        if a == b {
            Ok(a)
        } else if a.is_float() && b.is_float() {
            Ok(DType::F32)
        } else {
            Err(self.dtypes("operands of one kind (cast one of them)"))
        }
    }

    /// The axes of the operand that contains the other's (the first when both do).
    fn larger(&self, i: usize, j: usize) -> Result<Vec<AxisId>, TypeError> {
        let (a, b) = (&self.ty(i).axes, &self.ty(j).axes);
        if contains(a, b) {
            Ok(a.clone())
        } else if contains(b, a) {
            Ok(b.clone())
        } else {
            Err(self.axes_error(a, b))
        }
    }

    fn contains(&self, big: &[AxisId], small: &[AxisId]) -> Result<(), TypeError> {
        if contains(big, small) { Ok(()) } else { Err(self.axes_error(big, small)) }
    }

    fn same_set(&self, a: &[AxisId], b: &[AxisId]) -> Result<(), TypeError> {
        if a.len() == b.len() && contains(a, b) { Ok(()) } else { Err(self.axes_error(a, b)) }
    }

    fn axes_error(&self, a: &[AxisId], b: &[AxisId]) -> TypeError {
        TypeError::Axes { op: self.name, left: self.names(a), right: self.names(b) }
    }

    fn names(&self, axes: &[AxisId]) -> Vec<String> {
        axes.iter().map(|a| self.axis_name(*a)).collect()
    }

    fn axis_name(&self, axis: AxisId) -> String {
        self.g.axes.get(axis.0 as usize).map_or_else(|| format!("#{}", axis.0), |a| a.name.clone())
    }

    fn size(&self, axis: AxisId) -> usize {
        self.g.axes.get(axis.0 as usize).map_or(0, |a| a.size)
    }

    fn known(&self, axes: &[AxisId]) -> Result<(), TypeError> {
        match axes.iter().find(|a| a.0 as usize >= self.g.axes.len()) {
            None => Ok(()),
            Some(a) => Err(self.invalid(&format!("axis {} does not exist", a.0))),
        }
    }

    fn has(&self, ty: &Type, axis: AxisId) -> Result<(), TypeError> {
        self.known(&[axis])?;
        if ty.axes.contains(&axis) {
            Ok(())
        } else {
            Err(TypeError::MissingAxis { op: self.name, axis: self.axis_name(axis), axes: self.names(&ty.axes) })
        }
    }

    fn distinct(&self, axes: &[AxisId]) -> Result<(), TypeError> {
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].contains(axis) {
                return Err(TypeError::DuplicateAxis {
                    op: self.name,
                    axis: self.axis_name(*axis),
                    axes: self.names(axes),
                });
            }
        }
        Ok(())
    }

    /// The type with one axis replaced in place by others.
    fn replace(&self, ty: &Type, from: AxisId, to: &[AxisId]) -> Typed {
        self.has(ty, from)?;
        let axes = ty.axes.iter().flat_map(|a| if *a == from { to.to_vec() } else { vec![*a] }).collect();
        Ok(Type { dtype: ty.dtype, axes })
    }

    fn same_size(&self, from: AxisId, to: AxisId) -> Result<(), TypeError> {
        self.known(&[from, to])?;
        self.product(&[from], to)
    }

    fn product(&self, parts: &[AxisId], whole: AxisId) -> Result<(), TypeError> {
        let product: usize = parts.iter().map(|a| self.size(*a)).product();
        if product == self.size(whole) {
            Ok(())
        } else {
            let axis = self.axis_name(whole);
            Err(TypeError::Size { op: self.name, axis, expected: product, found: self.size(whole) })
        }
    }

    fn fits(&self, start: usize, len: usize, axis: AxisId) -> Result<(), TypeError> {
        if start.checked_add(len).is_some_and(|end| end <= self.size(axis)) {
            Ok(())
        } else {
            let why = format!(
                "positions {start}..{} do not lie in the axis `{}` of size {}",
                start.saturating_add(len),
                self.axis_name(axis),
                self.size(axis)
            );
            Err(self.invalid(&why))
        }
    }
}

/// The dtype a buffer's content has as a value: floats are `F32`.
pub fn value_dtype(buffer: DType) -> DType {
    if buffer.is_float() { DType::F32 } else { buffer }
}

/// Lower-case name of a dtype, as in the text form.
pub fn dtype_name(d: DType) -> &'static str {
    match d {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::I32 => "i32",
        DType::I8 => "i8",
        DType::Bool => "bool",
    }
}

fn contains(big: &[AxisId], small: &[AxisId]) -> bool {
    small.iter().all(|a| big.contains(a))
}

fn without(axes: &[AxisId], axis: AxisId) -> Vec<AxisId> {
    axes.iter().copied().filter(|a| *a != axis).collect()
}
