//! Declared document isolation.

use super::{Model, broken, inputs};
use crate::graph::ir::*;
use crate::valid::{Inputs, Rule, check_logits};

fn isolated() -> Inputs {
    Inputs { isolated: true, ..inputs() }
}

fn verdict(build: impl Fn(&mut Model, NodeId) -> NodeId) -> Vec<Rule> {
    let mut m = Model::new();
    let document = m.input("document", &[m.n, m.t]);
    let y = build(&mut m, document);
    let logits = m.head(y);
    let g = m.b.finish();
    assert_eq!(broken(&g, logits, &inputs()), [], "legal without isolation");
    broken(&g, logits, &isolated())
}

#[test]
fn attention_needs_the_document_ids() {
    assert_eq!(verdict(|m, _| m.b.attend(m.how(), m.x, m.x, m.x, None).unwrap()), [Rule::Documents]);
    let masked = |m: &mut Model, d| m.b.attend(Attend { document: true, ..m.how() }, m.x, m.x, m.x, Some(d)).unwrap();
    assert_eq!(verdict(masked), []);
    // Ids of one's own making prove nothing.
    let made = |m: &mut Model, d| {
        let zero = m.b.sub(d, d).unwrap();
        m.b.attend(Attend { document: true, ..m.how() }, m.x, m.x, m.x, Some(zero)).unwrap()
    };
    assert_eq!(verdict(made), [Rule::Documents]);
}

#[test]
fn looking_back_needs_a_mask() {
    assert_eq!(verdict(|m, _| m.b.shift(m.x, m.t, 1).unwrap()), [Rule::Documents]);
    assert_eq!(verdict(|m, _| m.b.cumsum(m.x, m.t, false).unwrap()), [Rule::Documents]);
    let masked = |by: i64| {
        move |m: &mut Model, d: NodeId| {
            let before = m.b.shift(d, m.t, by).unwrap();
            let same = m.b.eq(d, before).unwrap();
            let x = m.b.shift(m.x, m.t, 1).unwrap();
            let zero = m.b.constant(0.0);
            m.b.select(same, x, zero).unwrap()
        }
    };
    assert_eq!(verdict(masked(1)), []);
    assert_eq!(verdict(masked(2)), [Rule::Documents], "the mask looks elsewhere");
}

#[test]
fn the_error_names_the_op() {
    let mut m = Model::new();
    let y = m.b.shift(m.x, m.t, 1).unwrap();
    let logits = m.head(y);
    let errors = check_logits(&m.b.finish(), logits, &isolated()).unwrap_err();
    assert_eq!((errors[0].node, errors[0].why.as_str()), (y, "`shift` reaches across documents"));
}
