//! One rule per op: contributions to the operands from the derivative of the result.
//!
//! *Takes* a node, its result y and the derivative g of the objective by y; *gives* `(operand number, contribution)` for the operands
//! that are wanted; *promises* nothing about the others. The algebra is the comment above each rule; `dx` is the contribution to x.

use crate::graph::build::{Builder, Made};
use crate::graph::error::TypeError;
use crate::graph::ir::{Attend, AttendArg, AxisId, Binary, Node, NodeId, Op, Reduce, Unary};

/// Contributions by operand number.
type Parts = Result<Vec<(usize, NodeId)>, TypeError>;

/// Whether operand `n` of an op can receive a derivative: values can, conditions, indices, targets, counters and the first operand of
/// `straight_through` cannot.
pub(super) fn passes(op: &Op, n: usize) -> bool {
    match op {
        Op::StraightThrough => n == 1,
        Op::Select => n > 0,
        Op::Gather(_) => n == 0,
        Op::ScatterAdd(_) => n == 1,
        Op::Attend(_) => n < 3,
        Op::AttendLse(_) => n < 2,
        Op::AttendGrad(..) => n < 6,
        Op::CrossEntropy(_) => n == 0,
        Op::CrossEntropyGrad(_) => n != 1,
        Op::FeedbackRound { .. } => n != 2,
        Op::Random { .. } => false,
        Op::Read(_)
        | Op::Const(_)
        | Op::Iota(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Broadcast
        | Op::Reduce(..)
        | Op::Dot(_)
        | Op::Split(..)
        | Op::Merge(..)
        | Op::Rename(..)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Index(..)
        | Op::Place(..)
        | Op::Concat(..)
        | Op::Shift(..)
        | Op::Cumsum(..)
        | Op::Scan(..)
        | Op::Quantile(..)
        | Op::TopKValues(..)
        | Op::TopKIndices(..) => true,
    }
}

/// What a rule works on.
pub(super) struct Local<'a> {
    pub(super) b: &'a mut Builder,
    pub(super) node: &'a Node,
    /// The node's result.
    pub(super) y: NodeId,
    /// Derivative by the result.
    pub(super) g: NodeId,
    /// Operands that need a contribution.
    pub(super) wanted: &'a [bool],
}

impl Local<'_> {
    pub(super) fn rule(mut self) -> Parts {
        let node = self.node;
        match &node.op {
            Op::Unary(op) => self.unary(*op),
            Op::Binary(op) => self.binary(*op),
            Op::Select => self.select(),
            // Floats only: d cast(x) = g, unrounded.
            Op::Cast(_) | Op::StraightThrough => Ok(vec![(node.args.len() - 1, self.g)]),
            // Every copy contributes: dx = sum g over the new axes.
            Op::Broadcast => {
                let dx = self.fit(self.g, 0)?;
                Ok(vec![(0, dx)])
            }
            Op::Reduce(op, over) => self.reduce(*op, over),
            Op::Dot(over) => self.dot(over),
            // y[i] = table[index[i]]: dtable[r] = sum of g[i] with index[i] = r.
            Op::Gather(axis) => {
                let dx = self.b.scatter_add(node.args[1], self.g, *axis)?;
                Ok(vec![(0, dx)])
            }
            // y[r] = sum of src[i] with index[i] = r: dsrc[i] = g[index[i]].
            Op::ScatterAdd(axis) => {
                let dx = self.b.gather(self.g, node.args[0], *axis)?;
                Ok(vec![(1, dx)])
            }
            // Moves: the inverse move of g.
            Op::Split(from, to) => self.one(|l| l.b.merge(l.g, to, *from)),
            Op::Merge(from, to) => self.one(|l| l.b.split(l.g, *to, from)),
            Op::Rename(from, to) => self.one(|l| l.b.rename(l.g, *to, *from)),
            Op::Slice { from, to, start } => self.one(|l| l.b.pad(l.g, *to, *from, *start)),
            Op::Pad { from, to, start } => self.one(|l| l.b.slice(l.g, *to, *from, *start)),
            Op::Index(axis, at) => self.one(|l| {
                let order = l.b.axes(l.node.args[0]).to_vec();
                l.b.place(l.g, *axis, *at, &order)
            }),
            Op::Place(axis, at) => self.one(|l| l.b.index(l.g, *axis, *at)),
            Op::Concat(from, to) => self.concat(from, *to),
            // y[t] = x[t - n]: dx[t] = g[t + n].
            Op::Shift(axis, n) => self.one(|l| l.b.shift(l.g, *axis, -n)),
            // y[t] = sum of x[s], s <= t: dx[s] = sum of g[t], t >= s.
            Op::Cumsum(axis, reverse) => self.one(|l| l.b.cumsum(l.g, *axis, !reverse)),
            Op::Scan(axis, reverse) => self.scan(*axis, *reverse),
            Op::Attend(how) => self.attend(*how),
            // y = lse(x) - x[target]: dx = (softmax(x) - onehot) g.
            Op::CrossEntropy(axis) => self.one(|l| l.b.cross_entropy_grad(l.node.args[0], l.node.args[1], l.g, *axis)),
            Op::TopKValues(from, to) => self.top_k(*from, *to),
            // Zero by convention, cut before a rule is asked; the last five are undefined and reported by the caller.
            Op::Read(_)
            | Op::Const(_)
            | Op::Iota(_)
            | Op::StopGradient
            | Op::TopKIndices(..)
            | Op::Random { .. }
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::CrossEntropyGrad(_)
            | Op::Quantile(..)
            | Op::FeedbackRound { .. } => Ok(Vec::new()),
        }
    }

    fn one(&mut self, f: impl FnOnce(&mut Self) -> Made) -> Parts {
        Ok(vec![(0, f(self)?)])
    }

    /// Operand n repeated over the result's axes contributes once per copy: sum over the axes it lacks.
    fn fit(&mut self, part: NodeId, n: usize) -> Made {
        let own = self.b.axes(self.node.args[n]).to_vec();
        let lacking: Vec<_> = self.b.axes(part).iter().filter(|a| !own.contains(a)).copied().collect();
        self.b.sum(part, &lacking)
    }

    /// Contributions to two element-wise operands, each made only when wanted.
    fn pair(&mut self, f: impl FnOnce(&mut Self) -> Made, h: impl FnOnce(&mut Self) -> Made) -> Parts {
        // Of a select the condition comes first.
        let first = self.node.args.len() - 2;
        let mut parts = Vec::new();
        if self.wanted[first] {
            let part = f(self)?;
            parts.push((first, self.fit(part, first)?));
        }
        if self.wanted[first + 1] {
            let part = h(self)?;
            parts.push((first + 1, self.fit(part, first + 1)?));
        }
        Ok(parts)
    }

    fn unary(&mut self, op: Unary) -> Parts {
        let (x, y, g) = (self.node.args[0], self.y, self.g);
        let b = &mut *self.b;
        let dx = match op {
            // dx = -g
            Unary::Neg => b.neg(g)?,
            // dx = g y
            Unary::Exp => b.mul(g, y)?,
            // dx = g / x
            Unary::Log => b.div(g, x)?,
            // dx = g (1 - y^2)
            Unary::Tanh => {
                let square = b.mul(y, y)?;
                let one = b.constant(1.0);
                let slope = b.sub(one, square)?;
                b.mul(g, slope)?
            }
            // dx = g y (1 - y)
            Unary::Sigmoid => {
                let one = b.constant(1.0);
                let rest = b.sub(one, y)?;
                let slope = b.mul(y, rest)?;
                b.mul(g, slope)?
            }
            // dx = g cos x
            Unary::Sin => {
                let slope = b.cos(x)?;
                b.mul(g, slope)?
            }
            // dx = -g sin x
            Unary::Cos => {
                let sin = b.sin(x)?;
                let slope = b.neg(sin)?;
                b.mul(g, slope)?
            }
            // dx = g / (2 y)
            Unary::Sqrt => {
                let half = b.mul_const(g, 0.5)?;
                b.div(half, y)?
            }
            // dx = -g y^3 / 2
            Unary::Rsqrt => {
                let square = b.mul(y, y)?;
                let cube = b.mul(square, y)?;
                let slope = b.mul_const(cube, -0.5)?;
                b.mul(g, slope)?
            }
            // dx = g sign x
            Unary::Abs => {
                let slope = b.sign(x)?;
                b.mul(g, slope)?
            }
            // dx = -g y^2
            Unary::Recip => {
                let square = b.mul(y, y)?;
                let slope = b.neg(square)?;
                b.mul(g, slope)?
            }
            // Zero by convention.
            Unary::Round | Unary::Floor | Unary::Sign | Unary::Not => return Ok(Vec::new()),
        };
        Ok(vec![(0, dx)])
    }

    fn binary(&mut self, op: Binary) -> Parts {
        let (x, y, z, g) = (self.node.args[0], self.node.args[1], self.y, self.g);
        match op {
            // z = x + y: dx = g, dy = g
            Binary::Add => self.pair(|_| Ok(g), |_| Ok(g)),
            // z = x - y: dx = g, dy = -g
            Binary::Sub => self.pair(|_| Ok(g), |l| l.b.neg(g)),
            // z = x x: dx = 2 g x
            Binary::Mul if x == y => self.one(|l| {
                let twice = l.b.mul_const(g, 2.0)?;
                l.b.mul(twice, x)
            }),
            // z = x y: dx = g y, dy = g x
            Binary::Mul => self.pair(|l| l.b.mul(g, y), |l| l.b.mul(g, x)),
            // z = x / y: dx = g / y, dy = -g z / y
            Binary::Div => self.pair(
                |l| l.b.div(g, y),
                |l| {
                    let ratio = l.b.div(z, y)?;
                    let slope = l.b.neg(ratio)?;
                    l.b.mul(g, slope)
                },
            ),
            // z = min(x, y): dx = g where x <= y, dy = g elsewhere
            Binary::Min => self.choice(|b| b.le(x, y)),
            // z = max(x, y): dx = g where x >= y, dy = g elsewhere
            Binary::Max => self.choice(|b| b.ge(x, y)),
            // z = x^y: dx = g y x^(y-1), dy = g z log x (0 where x <= 0)
            Binary::Pow => self.pair(
                |l| {
                    let less = l.b.add_const(y, -1.0)?;
                    let power = l.b.pow(x, less)?;
                    let slope = l.b.mul(power, y)?;
                    l.b.mul(g, slope)
                },
                |l| {
                    let zero = l.b.constant(0.0);
                    let positive = l.b.gt(x, zero)?;
                    let log = l.b.log(x)?;
                    let slope = l.b.mul(z, log)?;
                    let slope = l.b.select(positive, slope, zero)?;
                    l.b.mul(g, slope)
                },
            ),
            // z = x - y floor(x / y): dx = g, dy = -g floor(x / y)
            Binary::Mod => self.pair(
                |_| Ok(g),
                |l| {
                    let ratio = l.b.div(x, y)?;
                    let whole = l.b.floor(ratio)?;
                    let slope = l.b.neg(whole)?;
                    l.b.mul(g, slope)
                },
            ),
            // Integers and booleans.
            Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::Shl
            | Binary::Shr
            | Binary::Eq
            | Binary::Ne
            | Binary::Lt
            | Binary::Le
            | Binary::Gt
            | Binary::Ge => Ok(Vec::new()),
        }
    }

    /// z = c ? x : y for the last two operands: dx = c ? g : 0, dy = c ? 0 : g.
    fn choice(&mut self, cond: impl Fn(&mut Builder) -> Made) -> Parts {
        let g = self.g;
        self.pair(
            |l| {
                let (c, zero) = (cond(l.b)?, l.b.constant(0.0));
                l.b.select(c, g, zero)
            },
            |l| {
                let (c, zero) = (cond(l.b)?, l.b.constant(0.0));
                l.b.select(c, zero, g)
            },
        )
    }

    fn select(&mut self) -> Parts {
        let cond = self.node.args[0];
        self.choice(|_| Ok(cond))
    }

    /// Sum: dx = g, repeated. Max and min: dx = g at the first position (in the order of `over`) that has the extreme value, else 0.
    fn reduce(&mut self, op: Reduce, over: &[AxisId]) -> Parts {
        let x = self.node.args[0];
        let axes = self.b.axes(x).to_vec();
        let g = self.g;
        if op == Reduce::Sum {
            let dx = self.b.broadcast(g, &axes)?;
            return Ok(vec![(0, dx)]);
        }
        // Row-major number of a position over `over`: I32 [over..].
        let mut number = self.b.int(0);
        let mut size = 1;
        for axis in over.iter().rev() {
            let at = self.b.iota(*axis)?;
            let scaled = self.b.binary_const(Binary::Mul, at, f64::from(size))?;
            number = self.b.outer(Binary::Add, scaled, number)?;
            size *= self.b.size(*axis) as i32;
        }
        let b = &mut *self.b;
        let stored: Vec<_> = axes.iter().filter(|a| over.contains(a)).copied().collect();
        let number = b.broadcast(number, &stored)?;
        let extreme = b.eq(x, self.y)?;
        let none = b.int(size);
        let candidates = b.select(extreme, number, none)?;
        let first = b.reduce_min(candidates, over)?;
        let first = b.broadcast(first, &axes)?;
        let here = b.eq(first, number)?;
        let zero = b.constant(0.0);
        let dx = b.select(here, g, zero)?;
        Ok(vec![(0, dx)])
    }

    /// y = sum over K of x z, x [B M K], z [B N K], y [B M N]: dx = sum over N of g z, dz = sum over M of g x.
    fn dot(&mut self, over: &[AxisId]) -> Parts {
        let g = self.g;
        let mut parts = Vec::new();
        for (n, other) in [(0, self.node.args[1]), (1, self.node.args[0])] {
            if !self.wanted[n] {
                continue;
            }
            let own = self.b.axes(self.node.args[n]).to_vec();
            let free: Vec<_> =
                self.b.axes(other).iter().filter(|a| !over.contains(a) && !own.contains(a)).copied().collect();
            parts.push((n, self.b.dot_as(g, other, &free, &own)?));
        }
        Ok(parts)
    }

    /// Each operand gets its own stretch of g.
    fn concat(&mut self, from: &[AxisId], to: AxisId) -> Parts {
        let mut parts = Vec::new();
        let mut start = 0;
        for (n, axis) in from.iter().enumerate() {
            if self.wanted[n] {
                parts.push((n, self.b.slice(self.g, to, *axis, start)?));
            }
            start += self.b.size(*axis);
        }
        Ok(parts)
    }

    /// h[t] = a[t] h[t-1] + b[t]: with l[t] = g[t] + a[t+1] l[t+1] (the reverse scan): db = l, da[t] = l[t] h[t-1].
    fn scan(&mut self, axis: AxisId, reverse: bool) -> Parts {
        let (a, h, g) = (self.node.args[0], self.y, self.g);
        let next = if reverse { 1 } else { -1 };
        let all = self.b.axes(h).to_vec();
        let wide = self.b.broadcast(a, &all)?;
        let ahead = self.b.shift(wide, axis, next)?;
        let l = self.b.scan(ahead, g, axis, !reverse)?;
        self.pair(
            |r| {
                let before = r.b.shift(h, axis, -next)?;
                r.b.mul(l, before)
            },
            |_| Ok(l),
        )
    }

    /// The three gradients share the log-sum-exp of the scores.
    fn attend(&mut self, how: Attend) -> Parts {
        let [q, k, v] = [self.node.args[0], self.node.args[1], self.node.args[2]];
        let document = self.node.args.get(3).copied();
        let lse = self.b.attend_lse(how, q, k, document)?;
        let args: Vec<_> = [q, k, v, self.y, lse, self.g].into_iter().chain(document).collect();
        let mut parts = Vec::new();
        for (n, which) in [AttendArg::Q, AttendArg::K, AttendArg::V].into_iter().enumerate() {
            if self.wanted[n] {
                parts.push((n, self.b.attend_grad(how, which, &args)?));
            }
        }
        Ok(parts)
    }

    /// y[j] = x[i_j] for distinct positions i_j: dx[i] = sum over j of (i == i_j ? g[j] : 0).
    fn top_k(&mut self, from: AxisId, to: AxisId) -> Parts {
        let x = self.node.args[0];
        let (g, b) = (self.g, &mut *self.b);
        let at = b.top_k_indices(x, from, to)?;
        let mut all = b.axes(x).to_vec();
        all.push(to);
        let at = b.broadcast(at, &all)?;
        let here = b.iota(from)?;
        let chosen = b.eq(at, here)?;
        let zero = b.constant(0.0);
        let spread = b.select(chosen, g, zero)?;
        let dx = b.sum(spread, &[to])?;
        Ok(vec![(0, dx)])
    }
}
