//! What is known about a value: the abstract domain of the legality check.
//!
//! *Takes* nothing; *gives* labels, their joins and the labels of inputs; *promises* that a join never knows more than its parts.

use crate::graph::ir::AxisId;
use std::collections::BTreeMap;

/// Which positions of the token stream a value depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// None: parameters, constants, positions.
    None,
    /// Along this axis of the value, position i depends on tokens up to i.
    Past(AxisId),
    /// Possibly all.
    All,
}

/// Which rows of the batch a value depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Its own (or none).
    Own,
    /// Possibly others.
    All,
}

/// Which documents of its row a value depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documents {
    /// Its own (or none).
    Own,
    /// Possibly others.
    Any,
}

/// Which data set a value depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// No data.
    None,
    /// Training data.
    Train,
    /// Validation data, possibly training data too.
    Val,
}

/// Everything known about a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Positions.
    pub time: Time,
    /// Rows.
    pub rows: Rows,
    /// May depend on targets.
    pub targets: bool,
    /// Documents.
    pub documents: Documents,
    /// Data set.
    pub split: Split,
}

impl Label {
    /// A value that depends on no data.
    pub const FREE: Label =
        Label { time: Time::None, rows: Rows::Own, targets: false, documents: Documents::Own, split: Split::None };

    /// What is known of a value made element by element from two.
    pub fn join(self, other: Label) -> Label {
        let time = match (self.time, other.time) {
            (Time::None, x) | (x, Time::None) => x,
            (Time::Past(a), Time::Past(b)) if a == b => Time::Past(a),
            // Element [i, j] depends on tokens up to i and up to j.
            (Time::Past(_), Time::Past(_)) | (Time::All, _) | (_, Time::All) => Time::All,
        };
        Label {
            time,
            rows: if self.rows == Rows::All { Rows::All } else { other.rows },
            targets: self.targets || other.targets,
            documents: if self.documents == Documents::Any { Documents::Any } else { other.documents },
            split: self.split.max(other.split),
        }
    }

    /// True if the value depends on tokens at all.
    pub fn depends(self) -> bool {
        self.time != Time::None
    }

    /// The label with positions mixed: any position may depend on any token of the row.
    pub fn mixed(self) -> Label {
        if self.depends() { Label { time: Time::All, documents: Documents::Any, ..self } } else { self }
    }

    /// The label with rows mixed.
    pub fn across_rows(self) -> Label {
        if self.depends() { Label { rows: Rows::All, ..self } } else { self }
    }

    /// The label of a value that reaches back in its row, to other documents perhaps.
    pub fn reaching_back(self) -> Label {
        if self.depends() { Label { documents: Documents::Any, ..self } } else { self }
    }
}

/// What an input buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Token ids, position t being the last that the logits at t may see.
    Tokens(Split),
    /// The tokens to be predicted.
    Targets(Split),
    /// Document ids by position.
    Document,
    /// A scalar or table of the host that depends on no data.
    Host,
}

/// The inputs of a graph and the declarations of its program.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Inputs {
    /// By buffer name. An input buffer that is not named here and has a batch or time axis counts as everything.
    pub data: BTreeMap<String, Data>,
    /// The program declares that documents do not see each other.
    pub isolated: bool,
}

impl Inputs {
    /// `tokens`, `targets` and `document` of one data set.
    pub fn standard(split: Split) -> Inputs {
        let data = [("tokens", Data::Tokens(split)), ("targets", Data::Targets(split)), ("document", Data::Document)];
        Inputs { data: data.map(|(name, data)| (name.to_string(), data)).into(), isolated: false }
    }
}
