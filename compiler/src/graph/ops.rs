//! The op table: one row per operation with its text name, arity, element-wise flag, derivative class and cost.
//!
//! *Takes* an [`Op`]; *gives* its [`Row`]; *promises* that every op has exactly one row (the table is an exhaustive match) and
//! that names are unique, so that the text form parses back.
//!
//! Semantics the table adds to [`super::ir`]:
//! - I32 `Div` is floor division and `Mod` its remainder; dividing an integer by zero is an error.
//! - `Shr` is arithmetic; shift counts are taken modulo 32.
//! - `Cast` from float to `I32` or `I8` truncates towards zero, saturates, and gives 0 for NaN; to `Bool` it is `x != 0`.
//! - `Min`, `Max` and the reductions of the same name ignore the sign of zero; NaN is not specified.

use super::ir::{Binary, Graph, Node, Op, Reduce, Unary};

/// What reverse mode does with an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivative {
    /// Has a rule.
    Rule,
    /// Zero by convention: integers, booleans, comparisons, rounding, stop_gradient, constants.
    Zero,
    /// Asking for it is an error that names the op.
    Undefined,
}

/// Floating-point operations of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Moves or names data only.
    Free,
    /// This many per element of the result.
    Result(u64),
    /// This many per element of the largest operand.
    Operand(u64),
    /// Two per multiply-add of a contraction, or of rounding with feedback.
    Contract,
    /// This many per visible (query, key, dim) triple: 4 forward, 2 for the scores alone, 6 for one operand's gradient alone.
    Attend(u64),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name in the text form, unique.
    pub name: &'static str,
    /// Least number of operands.
    pub least: usize,
    /// Largest number of operands (`usize::MAX`: any).
    pub most: usize,
    /// Computes each element of the result from the elements of the operands at the same named position.
    pub elementwise: bool,
    /// Reverse mode.
    pub derivative: Derivative,
    /// Cost.
    pub cost: Cost,
}

const MANY: usize = usize::MAX;

macro_rules! table {
    ($( $pattern:pat => $name:literal, $least:expr, $most:expr, $elementwise:expr, $derivative:ident, $cost:expr; )*) => {
        /// All rows, in table order.
        pub const ROWS: &[Row] = &[
            $( Row { name: $name, least: $least, most: $most, elementwise: $elementwise, derivative: Derivative::$derivative, cost: $cost } ),*
        ];
        /// The row of an op.
        pub fn row(op: &Op) -> Row {
            match op {
                $( $pattern => Row { name: $name, least: $least, most: $most, elementwise: $elementwise, derivative: Derivative::$derivative, cost: $cost } ),*
            }
        }
    };
}

// Costs of transcendental functions are those of the polynomials the code generator uses, roughly.
table! {
    // op                              name              least most  elementwise derivative cost
    Op::Read(_)                     => "read",           0, 0,    false, Rule,      Cost::Free;
    Op::Const(_)                    => "const",          0, 0,    false, Zero,      Cost::Free;
    Op::Iota(_)                     => "iota",           0, 0,    false, Zero,      Cost::Free;
    Op::Unary(Unary::Neg)           => "neg",            1, 1,    true,  Rule,      Cost::Result(1);
    Op::Unary(Unary::Exp)           => "exp",            1, 1,    true,  Rule,      Cost::Result(10);
    Op::Unary(Unary::Log)           => "log",            1, 1,    true,  Rule,      Cost::Result(10);
    Op::Unary(Unary::Tanh)          => "tanh",           1, 1,    true,  Rule,      Cost::Result(15);
    Op::Unary(Unary::Sigmoid)       => "sigmoid",        1, 1,    true,  Rule,      Cost::Result(15);
    Op::Unary(Unary::Sin)           => "sin",            1, 1,    true,  Rule,      Cost::Result(15);
    Op::Unary(Unary::Cos)           => "cos",            1, 1,    true,  Rule,      Cost::Result(15);
    Op::Unary(Unary::Sqrt)          => "sqrt",           1, 1,    true,  Rule,      Cost::Result(1);
    Op::Unary(Unary::Rsqrt)         => "rsqrt",          1, 1,    true,  Rule,      Cost::Result(2);
    Op::Unary(Unary::Abs)           => "abs",            1, 1,    true,  Rule,      Cost::Result(1);
    Op::Unary(Unary::Recip)         => "recip",          1, 1,    true,  Rule,      Cost::Result(1);
    Op::Unary(Unary::Round)         => "round",          1, 1,    true,  Zero,      Cost::Result(1);
    Op::Unary(Unary::Floor)         => "floor",          1, 1,    true,  Zero,      Cost::Result(1);
    Op::Unary(Unary::Sign)          => "sign",           1, 1,    true,  Zero,      Cost::Result(1);
    Op::Unary(Unary::Not)           => "not",            1, 1,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Add)         => "add",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Sub)         => "sub",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Mul)         => "mul",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Div)         => "div",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Min)         => "min",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Max)         => "max",            2, 2,    true,  Rule,      Cost::Result(1);
    Op::Binary(Binary::Pow)         => "pow",            2, 2,    true,  Rule,      Cost::Result(20);
    Op::Binary(Binary::Mod)         => "mod",            2, 2,    true,  Rule,      Cost::Result(3);
    Op::Binary(Binary::And)         => "and",            2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Or)          => "or",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Xor)         => "xor",            2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Shl)         => "shl",            2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Shr)         => "shr",            2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Eq)          => "eq",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Ne)          => "ne",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Lt)          => "lt",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Le)          => "le",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Gt)          => "gt",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Binary(Binary::Ge)          => "ge",             2, 2,    true,  Zero,      Cost::Result(1);
    Op::Select                      => "select",         3, 3,    true,  Rule,      Cost::Result(1);
    Op::Cast(_)                     => "cast",           1, 1,    true,  Rule,      Cost::Result(1);
    Op::StopGradient                => "stop_gradient",  1, 1,    true,  Zero,      Cost::Free;
    Op::StraightThrough             => "straight_through", 2, 2,  true,  Rule,      Cost::Free;
    Op::Broadcast                   => "broadcast",      1, 1,    false, Rule,      Cost::Free;
    Op::Reduce(Reduce::Sum, _)      => "sum",            1, 1,    false, Rule,      Cost::Operand(1);
    Op::Reduce(Reduce::Max, _)      => "reduce_max",     1, 1,    false, Rule,      Cost::Operand(1);
    Op::Reduce(Reduce::Min, _)      => "reduce_min",     1, 1,    false, Rule,      Cost::Operand(1);
    Op::Dot(_)                      => "dot",            2, 2,    false, Rule,      Cost::Contract;
    Op::Gather(_)                   => "gather",         2, 2,    false, Rule,      Cost::Free;
    Op::ScatterAdd(_)               => "scatter_add",    2, 2,    false, Rule,      Cost::Operand(1);
    Op::Split(..)                   => "split",          1, 1,    false, Rule,      Cost::Free;
    Op::Merge(..)                   => "merge",          1, 1,    false, Rule,      Cost::Free;
    Op::Rename(..)                  => "rename",         1, 1,    false, Rule,      Cost::Free;
    Op::Slice { .. }                => "slice",          1, 1,    false, Rule,      Cost::Free;
    Op::Pad { .. }                  => "pad",            1, 1,    false, Rule,      Cost::Free;
    Op::Index(..)                   => "index",          1, 1,    false, Rule,      Cost::Free;
    Op::Place(..)                   => "place",          1, 1,    false, Rule,      Cost::Free;
    Op::Concat(..)                  => "concat",         1, MANY, false, Rule,      Cost::Free;
    Op::Shift(..)                   => "shift",          1, 1,    false, Rule,      Cost::Free;
    Op::Cumsum(..)                  => "cumsum",         1, 1,    false, Rule,      Cost::Result(1);
    Op::Scan(..)                    => "scan",           2, 2,    false, Rule,      Cost::Result(2);
    Op::Attend(_)                   => "attend",         3, 4,    false, Rule,      Cost::Attend(4);
    Op::AttendLse(_)                => "attend_lse",     2, 3,    false, Undefined, Cost::Attend(2);
    Op::AttendGrad(..)              => "attend_grad",    6, 7,    false, Undefined, Cost::Attend(6);
    Op::CrossEntropy(_)             => "cross_entropy",  2, 2,    false, Rule,      Cost::Operand(13);
    Op::CrossEntropyGrad(_)         => "cross_entropy_grad", 3, 3, false, Undefined, Cost::Operand(13);
    Op::Quantile(..)                => "quantile",       1, 1,    false, Undefined, Cost::Operand(20);
    Op::FeedbackRound { .. }        => "feedback_round", 4, 4,    false, Undefined, Cost::Contract;
    Op::TopKValues(..)              => "top_k_values",   1, 1,    false, Rule,      Cost::Operand(4);
    Op::TopKIndices(..)             => "top_k_indices",  1, 1,    false, Zero,      Cost::Operand(4);
    Op::Random { .. }               => "random",         1, 1,    false, Zero,      Cost::Result(40);
}

/// Floating-point operations of a node, counting a multiply-add as two. Attention counts visible (query, key) pairs only.
pub fn flops(g: &Graph, node: &Node) -> u64 {
    let numel = |axes: &[super::ir::AxisId]| axes.iter().map(|a| g.axes[a.0 as usize].size as u64).product::<u64>();
    let result = numel(&node.ty.axes);
    match row(&node.op).cost {
        Cost::Free => 0,
        Cost::Result(n) => n * result,
        Cost::Operand(n) => n * node.args.iter().map(|a| numel(&g.nodes[a.0 as usize].ty.axes)).max().unwrap_or(0),
        Cost::Contract => match &node.op {
            Op::Dot(over) => 2 * result * numel(over),
            // A multiply-add for half of all pairs of columns.
            Op::FeedbackRound { axis, .. } => result * numel(&[*axis]),
            _ => 0,
        },
        Cost::Attend(n) => match (&node.op, node.args.first()) {
            (Op::Attend(a) | Op::AttendLse(a) | Op::AttendGrad(a, _), Some(q)) => {
                let time = numel(&[a.time]);
                let rest = numel(&g.nodes[q.0 as usize].ty.axes) / time;
                n * rest * visible_pairs(time, a.causal, a.window.map(u64::from))
            }
            _ => 0,
        },
    }
}

/// Number of (query, key) pairs that a mask leaves, documents not considered.
pub fn visible_pairs(time: u64, causal: bool, window: Option<u64>) -> u64 {
    let window = window.unwrap_or(time).min(time);
    // Keys at or before a query: sum over queries of min(query + 1, window).
    let back = window * (window + 1) / 2 + (time - window) * window;
    // Keys after it.
    let ahead = if causal { 0 } else { time * (time - 1) / 2 };
    back + ahead
}

/// All one-operand operations, in declaration order.
pub const UNARY: [Unary; 15] = [
    Unary::Neg,
    Unary::Exp,
    Unary::Log,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Sin,
    Unary::Cos,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Abs,
    Unary::Recip,
    Unary::Round,
    Unary::Floor,
    Unary::Sign,
    Unary::Not,
];

/// All two-operand operations, in declaration order.
pub const BINARY: [Binary; 19] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Min,
    Binary::Max,
    Binary::Pow,
    Binary::Mod,
    Binary::And,
    Binary::Or,
    Binary::Xor,
    Binary::Shl,
    Binary::Shr,
    Binary::Eq,
    Binary::Ne,
    Binary::Lt,
    Binary::Le,
    Binary::Gt,
    Binary::Ge,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ROWS.iter().map(|r| r.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn unary_and_binary_lists_are_complete() {
        let named = |ops: Vec<Op>| ops.iter().map(|op| row(op).name).collect::<Vec<_>>();
        let listed = [named(UNARY.map(Op::Unary).to_vec()), named(BINARY.map(Op::Binary).to_vec())].concat();
        let table: Vec<_> =
            ROWS.iter().map(|r| r.name).skip_while(|n| *n != "neg").take_while(|n| *n != "select").collect();
        assert_eq!(listed, table);
    }

    #[test]
    fn visible_pairs_equals_counting() {
        for time in 1..9u64 {
            for causal in [false, true] {
                for window in [None, Some(1), Some(3), Some(8), Some(20)] {
                    let mut n = 0;
                    for q in 0..time {
                        for k in 0..time {
                            let seen = k <= q || !causal;
                            let near = k > q || window.is_none_or(|w| q - k < w);
                            n += u64::from(seen && near);
                        }
                    }
                    assert_eq!(visible_pairs(time, causal, window), n, "{time} {causal} {window:?}");
                }
            }
        }
    }
}
