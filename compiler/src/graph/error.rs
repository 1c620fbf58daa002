//! Type errors of graph construction, with enough data for a diagnostic that shows both operands.

use super::infer::dtype_name;
use super::ir::DType;

/// Why an op cannot be applied to its operands. Axis lists are names in storage order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeError {
    /// Axis sets that must be equal or contain one another do not. See [`TypeError::missing`].
    Axes {
        /// Op name.
        op: &'static str,
        /// Axes of the first operand (or of the result that was asked for).
        left: Vec<String>,
        /// Axes of the second.
        right: Vec<String>,
    },
    /// An operand lacks an axis that the op names.
    MissingAxis {
        /// Op name.
        op: &'static str,
        /// The axis asked for.
        axis: String,
        /// Axes of the operand.
        axes: Vec<String>,
    },
    /// The result would have one axis twice.
    DuplicateAxis {
        /// Op name.
        op: &'static str,
        /// The axis.
        axis: String,
        /// Axes of the result.
        axes: Vec<String>,
    },
    /// Sizes do not multiply or add out.
    Size {
        /// Op name.
        op: &'static str,
        /// The axis whose size is wrong.
        axis: String,
        /// Size that the other axes give.
        expected: usize,
        /// Size it has.
        found: usize,
    },
    /// Operands of the wrong dtype.
    DType {
        /// Op name.
        op: &'static str,
        /// What is allowed.
        expected: String,
        /// Dtypes of all operands.
        found: Vec<DType>,
    },
    /// Wrong number of operands.
    Arity {
        /// Op name.
        op: &'static str,
        /// Least number.
        expected: usize,
        /// Number given.
        found: usize,
    },
    /// An axis or buffer name declared twice with different properties.
    Redeclared {
        /// `axis` or `buffer`.
        what: &'static str,
        /// Its name.
        name: String,
        /// First declaration.
        first: String,
        /// This declaration.
        now: String,
    },
    /// Anything else: an attribute out of range, an effect on a constant.
    Invalid {
        /// Op name.
        op: &'static str,
        /// The reason.
        why: String,
    },
}

impl TypeError {
    /// For [`TypeError::Axes`]: names of the right operand that the left lacks, and of the left that the right lacks.
    pub fn missing(&self) -> (Vec<String>, Vec<String>) {
        match self {
            TypeError::Axes { left, right, .. } => {
                let lacks = |a: &[String], b: &[String]| b.iter().filter(|x| !a.contains(x)).cloned().collect();
                (lacks(left, right), lacks(right, left))
            }
            TypeError::MissingAxis { .. }
            | TypeError::DuplicateAxis { .. }
            | TypeError::Size { .. }
            | TypeError::DType { .. }
            | TypeError::Arity { .. }
            | TypeError::Redeclared { .. }
            | TypeError::Invalid { .. } => (Vec::new(), Vec::new()),
        }
    }
}

fn list(names: &[String]) -> String {
    format!("[{}]", names.join(" "))
}

impl std::fmt::Display for TypeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TypeError::Axes { op, left, right } => {
                let (from_left, from_right) = self.missing();
                write!(f, "{op}: axes {} and {} do not agree", list(left), list(right))?;
                if !from_left.is_empty() {
                    write!(f, "; the first lacks {}", list(&from_left))?;
                }
                if !from_right.is_empty() {
                    write!(f, "; the second lacks {}", list(&from_right))?;
                }
                Ok(())
            }
            TypeError::MissingAxis { op, axis, axes } => write!(f, "{op}: no axis `{axis}` in {}", list(axes)),
            TypeError::DuplicateAxis { op, axis, axes } => {
                write!(f, "{op}: the axis `{axis}` would occur twice in {}", list(axes))
            }
            TypeError::Size { op, axis, expected, found } => {
                write!(f, "{op}: the axis `{axis}` has size {found}, but {expected} is needed")
            }
            TypeError::DType { op, expected, found } => {
                let found: Vec<_> = found.iter().map(|d| dtype_name(*d)).collect();
                write!(f, "{op}: expected {expected}, found {}", found.join(", "))
            }
            TypeError::Arity { op, expected, found } => write!(f, "{op}: expected {expected} operands, found {found}"),
            TypeError::Redeclared { what, name, first, now } => {
                write!(f, "{what} `{name}` is declared as {first} and as {now}")
            }
            TypeError::Invalid { op, why } => write!(f, "{op}: {why}"),
        }
    }
}

impl std::error::Error for TypeError {}
