//! One method per op, so that programs over the builder read like formulas.
//!
//! *Takes* operands; *gives* the node; *promises* nothing beyond [`Builder::push`]. Every method fails with a
//! [`super::error::TypeError`] when the operands do not fit.

use super::build::{Builder, Made};
use super::ir::{Attend, AttendArg, AxisId, Binary, Bits, BufferId, DType, NodeId, Op, Reduce, Type, Unary};

macro_rules! unary_methods {
    ($( $(#[$doc:meta])* $name:ident => $op:ident; )*) => {
        impl Builder {
            $( $(#[$doc])* pub fn $name(&mut self, x: NodeId) -> Made { self.unary(Unary::$op, x) } )*
        }
    };
}

macro_rules! binary_methods {
    ($( $(#[$doc:meta])* $name:ident => $op:ident; )*) => {
        impl Builder {
            $( $(#[$doc])* pub fn $name(&mut self, x: NodeId, y: NodeId) -> Made { self.binary(Binary::$op, x, y) } )*
        }
    };
}

unary_methods! {
    /// `-x`
    neg => Neg;
    /// `e^x`
    exp => Exp;
    /// Natural logarithm.
    log => Log;
    /// Hyperbolic tangent.
    tanh => Tanh;
    /// `1 / (1 + e^-x)`
    sigmoid => Sigmoid;
    /// Sine.
    sin => Sin;
    /// Cosine.
    cos => Cos;
    /// Square root.
    sqrt => Sqrt;
    /// `1 / sqrt(x)`
    rsqrt => Rsqrt;
    /// Absolute value.
    abs => Abs;
    /// `1 / x`
    recip => Recip;
    /// Nearest integer, half to even.
    round => Round;
    /// Largest integer not above.
    floor => Floor;
    /// -1, 0, 1.
    sign => Sign;
    /// Boolean negation.
    not => Not;
}

binary_methods! {
    /// `x + y`
    add => Add;
    /// `x - y`
    sub => Sub;
    /// `x * y`
    mul => Mul;
    /// `x / y` (floor division on integers)
    div => Div;
    /// The smaller.
    min => Min;
    /// The larger.
    max => Max;
    /// `x ^ y`
    pow => Pow;
    /// Remainder with the divisor's sign.
    rem => Mod;
    /// Bitwise or logical and.
    and => And;
    /// Bitwise or logical or.
    or => Or;
    /// Bitwise or logical exclusive or.
    xor => Xor;
    /// Shift left.
    shl => Shl;
    /// Arithmetic shift right.
    shr => Shr;
    /// `x == y`
    eq => Eq;
    /// `x != y`
    ne => Ne;
    /// `x < y`
    lt => Lt;
    /// `x <= y`
    le => Le;
    /// `x > y`
    gt => Gt;
    /// `x >= y`
    ge => Ge;
}

impl Builder {
    /// Content of a buffer before the graph's effects.
    pub fn read(&mut self, buffer: BufferId) -> Made {
        self.push(Op::Read(buffer), &[], None)
    }

    /// Position along an axis, I32.
    pub fn iota(&mut self, axis: AxisId) -> Made {
        self.push(Op::Iota(axis), &[], None)
    }

    /// Any one-operand op.
    pub fn unary(&mut self, op: Unary, x: NodeId) -> Made {
        self.push(Op::Unary(op), &[x], None)
    }

    /// Any two-operand op; the axes of one operand contain the other's.
    pub fn binary(&mut self, op: Binary, x: NodeId, y: NodeId) -> Made {
        self.push(Op::Binary(op), &[x, y], None)
    }

    /// `x op c` with a constant of x's kind.
    pub fn binary_const(&mut self, op: Binary, x: NodeId, c: f64) -> Made {
        let dtype = super::infer::value_dtype(self.dtype(x));
        let c = self.constant_of(dtype, c)?;
        self.binary(op, x, c)
    }

    /// `x + c`
    pub fn add_const(&mut self, x: NodeId, c: f64) -> Made {
        self.binary_const(Binary::Add, x, c)
    }

    /// `x * c`
    pub fn mul_const(&mut self, x: NodeId, c: f64) -> Made {
        self.binary_const(Binary::Mul, x, c)
    }

    /// Element-wise op over the union of both operands' axes (x's first): the outer product when `Mul`.
    pub fn outer(&mut self, op: Binary, x: NodeId, y: NodeId) -> Made {
        let mut axes = self.axes(x).to_vec();
        for axis in self.axes(y) {
            if !axes.contains(axis) {
                axes.push(*axis);
            }
        }
        let x = self.broadcast(x, &axes)?;
        self.binary(op, x, y)
    }

    /// `cond ? x : y`
    pub fn select(&mut self, cond: NodeId, x: NodeId, y: NodeId) -> Made {
        self.push(Op::Select, &[cond, x, y], None)
    }

    /// Round to a dtype.
    pub fn cast(&mut self, x: NodeId, to: DType) -> Made {
        self.push(Op::Cast(to), &[x], None)
    }

    /// Identity with zero derivative.
    pub fn stop_gradient(&mut self, x: NodeId) -> Made {
        self.push(Op::StopGradient, &[x], None)
    }

    /// Value of `f`, derivative goes to `x`.
    pub fn straight_through(&mut self, f: NodeId, x: NodeId) -> Made {
        self.push(Op::StraightThrough, &[f, x], None)
    }

    /// Repeats `x` so that the result has exactly `axes`, in that order. With the axes of `x` in another order: a transposition.
    pub fn broadcast(&mut self, x: NodeId, axes: &[AxisId]) -> Made {
        let stated = Type { dtype: self.dtype(x), axes: axes.to_vec() };
        self.push(Op::Broadcast, &[x], Some(&stated))
    }

    /// A float constant with axes.
    pub fn fill(&mut self, value: f64, axes: &[AxisId]) -> Made {
        let c = self.constant(value);
        self.broadcast(c, axes)
    }

    /// Any reduction.
    pub fn reduce(&mut self, op: Reduce, x: NodeId, over: &[AxisId]) -> Made {
        self.push(Op::Reduce(op, over.to_vec()), &[x], None)
    }

    /// Sum over axes.
    pub fn sum(&mut self, x: NodeId, over: &[AxisId]) -> Made {
        self.reduce(Reduce::Sum, x, over)
    }

    /// Largest value over axes.
    pub fn reduce_max(&mut self, x: NodeId, over: &[AxisId]) -> Made {
        self.reduce(Reduce::Max, x, over)
    }

    /// Smallest value over axes.
    pub fn reduce_min(&mut self, x: NodeId, over: &[AxisId]) -> Made {
        self.reduce(Reduce::Min, x, over)
    }

    /// Mean over axes.
    pub fn mean(&mut self, x: NodeId, over: &[AxisId]) -> Made {
        let n: usize = over.iter().map(|a| self.size(*a)).product();
        let sum = self.sum(x, over)?;
        self.mul_const(sum, 1.0 / n as f64)
    }

    /// Sum of products over exactly `over`; other shared axes are batch axes. Result: x's remaining axes, then y's.
    pub fn dot(&mut self, x: NodeId, y: NodeId, over: &[AxisId]) -> Made {
        self.push(Op::Dot(over.to_vec()), &[x, y], None)
    }

    /// [`Builder::dot`] with the storage order of the result.
    pub fn dot_as(&mut self, x: NodeId, y: NodeId, over: &[AxisId], order: &[AxisId]) -> Made {
        let stated = Type { dtype: DType::F32, axes: order.to_vec() };
        self.push(Op::Dot(over.to_vec()), &[x, y], Some(&stated))
    }

    /// Rows of a table: `table [axis, rest..]`, `index [I..]` gives `[I.., rest..]`.
    pub fn gather(&mut self, table: NodeId, index: NodeId, axis: AxisId) -> Made {
        self.push(Op::Gather(axis), &[table, index], None)
    }

    /// Sum of rows by index: `index [I..]`, `src [I.., rest..]` gives `[axis, rest..]`.
    pub fn scatter_add(&mut self, index: NodeId, src: NodeId, axis: AxisId) -> Made {
        self.push(Op::ScatterAdd(axis), &[index, src], None)
    }

    /// One axis into several, outermost first.
    pub fn split(&mut self, x: NodeId, from: AxisId, to: &[AxisId]) -> Made {
        self.push(Op::Split(from, to.to_vec()), &[x], None)
    }

    /// Several axes (outermost first) into one, stored where the first of them was.
    pub fn merge(&mut self, x: NodeId, from: &[AxisId], to: AxisId) -> Made {
        self.push(Op::Merge(from.to_vec(), to), &[x], None)
    }

    /// Another name of the same size.
    pub fn rename(&mut self, x: NodeId, from: AxisId, to: AxisId) -> Made {
        self.push(Op::Rename(from, to), &[x], None)
    }

    /// Positions `start..start + size(to)` of `from`, as the axis `to`.
    pub fn slice(&mut self, x: NodeId, from: AxisId, to: AxisId, start: usize) -> Made {
        self.push(Op::Slice { from, to, start }, &[x], None)
    }

    /// `from` placed at `start` of the larger `to`, zeros elsewhere.
    pub fn pad(&mut self, x: NodeId, from: AxisId, to: AxisId, start: usize) -> Made {
        self.push(Op::Pad { from, to, start }, &[x], None)
    }

    /// One position of an axis; the axis disappears.
    pub fn index(&mut self, x: NodeId, axis: AxisId, at: usize) -> Made {
        self.push(Op::Index(axis, at), &[x], None)
    }

    /// The operand at position `at` of the new axis `axis`, zeros elsewhere; `order` lists all axes of the result.
    pub fn place(&mut self, x: NodeId, axis: AxisId, at: usize, order: &[AxisId]) -> Made {
        let stated = Type { dtype: self.dtype(x), axes: order.to_vec() };
        self.push(Op::Place(axis, at), &[x], Some(&stated))
    }

    /// Operands side by side: operand i has `from[i]` where the result has `to`.
    pub fn concat(&mut self, parts: &[NodeId], from: &[AxisId], to: AxisId) -> Made {
        self.push(Op::Concat(from.to_vec(), to), parts, None)
    }

    /// `y[t] = x[t - n]`, zero outside.
    pub fn shift(&mut self, x: NodeId, axis: AxisId, n: i64) -> Made {
        self.push(Op::Shift(axis, n), &[x], None)
    }

    /// Running sum; from the end when `reverse`.
    pub fn cumsum(&mut self, x: NodeId, axis: AxisId, reverse: bool) -> Made {
        self.push(Op::Cumsum(axis, reverse), &[x], None)
    }

    /// `h[t] = a[t] h[t-1] + b[t]`; from the end when `reverse`.
    pub fn scan(&mut self, a: NodeId, b: NodeId, axis: AxisId, reverse: bool) -> Made {
        self.push(Op::Scan(axis, reverse), &[a, b], None)
    }

    /// Softmax attention; `document` must be given exactly when `how.document`.
    pub fn attend(&mut self, how: Attend, q: NodeId, k: NodeId, v: NodeId, document: Option<NodeId>) -> Made {
        let args: Vec<_> = [q, k, v].into_iter().chain(document).collect();
        self.push(Op::Attend(how), &args, None)
    }

    /// Log-sum-exp of the scaled scores.
    pub fn attend_lse(&mut self, how: Attend, q: NodeId, k: NodeId, document: Option<NodeId>) -> Made {
        let args: Vec<_> = [q, k].into_iter().chain(document).collect();
        self.push(Op::AttendLse(how), &args, None)
    }

    /// Gradient of attention: `args` are `q, k, v, y, lse, dy [, document]`.
    pub fn attend_grad(&mut self, how: Attend, which: AttendArg, args: &[NodeId]) -> Made {
        self.push(Op::AttendGrad(how, which), args, None)
    }

    /// `-log softmax(logits over axis)[target]`
    pub fn cross_entropy(&mut self, logits: NodeId, target: NodeId, axis: AxisId) -> Made {
        self.push(Op::CrossEntropy(axis), &[logits, target], None)
    }

    /// `(softmax(logits over axis) - onehot(target)) * g`
    pub fn cross_entropy_grad(&mut self, logits: NodeId, target: NodeId, g: NodeId, axis: AxisId) -> Made {
        self.push(Op::CrossEntropyGrad(axis), &[logits, target, g], None)
    }

    /// The q-quantile along an axis (0..=1), linear between order statistics.
    pub fn quantile(&mut self, x: NodeId, axis: AxisId, q: f64) -> Made {
        self.push(Op::Quantile(axis, Bits::new(q)), &[x], None)
    }

    /// Codes of `w` in units of `scale`, the columns of `axis` rounded in the given order and each one's error fed to the later ones; see
    /// [`Op::FeedbackRound`].
    pub fn feedback_round(
        &mut self,
        w: NodeId,
        scale: NodeId,
        order: NodeId,
        upper: NodeId,
        axis: AxisId,
        low: f64,
        high: f64,
    ) -> Made {
        let op = Op::FeedbackRound { axis, low: Bits::new(low), high: Bits::new(high) };
        self.push(op, &[w, scale, order, upper], None)
    }

    /// The size(to) largest values along `from`, descending.
    pub fn top_k_values(&mut self, x: NodeId, from: AxisId, to: AxisId) -> Made {
        self.push(Op::TopKValues(from, to), &[x], None)
    }

    /// Their positions.
    pub fn top_k_indices(&mut self, x: NodeId, from: AxisId, to: AxisId) -> Made {
        self.push(Op::TopKIndices(from, to), &[x], None)
    }

    /// Counter-based random numbers: uniform in [0,1), or standard normal. `counter` is an I32 scalar.
    pub fn random(&mut self, key: u64, normal: bool, counter: NodeId, axes: &[AxisId]) -> Made {
        let stated = Type { dtype: DType::F32, axes: axes.to_vec() };
        self.push(Op::Random { key, normal }, &[counter], Some(&stated))
    }
}
