//! What each op does to what is known.

use super::{Model, VOCAB, broken, inputs, steady};
use crate::graph::interpret::random::uniform;
use crate::graph::ir::*;
use crate::valid::{Data, Inputs, Leak, PerturbError, Rule, Split, check_logits, check_score, check_training, perturb};

type Case = (&'static str, fn(&mut Model) -> NodeId);

/// A value [.. d] (some axes may be missing) that the head may use.
const LEGAL: &[Case] = &[
    ("position by position", |m| m.b.exp(m.x).unwrap()),
    ("a norm over features", |m| {
        let square = m.b.mul(m.x, m.x).unwrap();
        let mean = m.b.mean(square, &[m.d]).unwrap();
        let scale = m.b.rsqrt(mean).unwrap();
        m.b.mul(m.x, scale).unwrap()
    }),
    ("the token before", |m| m.b.shift(m.x, m.t, 1).unwrap()),
    ("a hash of two tokens", |m| {
        let tokens = m.input("tokens", &[m.n, m.t]);
        let before = m.b.shift(tokens, m.t, 1).unwrap();
        let hash = m.b.xor(tokens, before).unwrap();
        let size = m.b.int(VOCAB as i32);
        let hash = m.b.rem(hash, size).unwrap();
        let table = m.param("bigram", &[m.v, m.d]);
        m.b.gather(table, hash, m.v).unwrap()
    }),
    ("the token before, by a concatenation", |m| {
        let (short, one) = (m.axis("t5", 5, AxisRole::Time), m.axis("one", 1, AxisRole::Time));
        let early = m.b.slice(m.x, m.t, short, 0).unwrap();
        let start = m.b.fill(0.0, &[m.n, one, m.d]).unwrap();
        m.b.concat(&[start, early], &[one, short], m.t).unwrap()
    }),
    ("the token before, by a pad", |m| {
        let short = m.axis("t5", 5, AxisRole::Time);
        let early = m.b.slice(m.x, m.t, short, 0).unwrap();
        m.b.pad(early, short, m.t, 1).unwrap()
    }),
    ("causal attention", |m| m.b.attend(m.how(), m.x, m.x, m.x, None).unwrap()),
    ("causal attention in a window", |m| {
        m.b.attend(Attend { window: Some(2), ..m.how() }, m.x, m.x, m.x, None).unwrap()
    }),
    ("the normaliser of causal attention", |m| m.b.attend_lse(m.how(), m.x, m.x, None).unwrap()),
    ("a running sum", |m| m.b.cumsum(m.x, m.t, false).unwrap()),
    ("a running mean", |m| {
        let sum = m.b.cumsum(m.x, m.t, false).unwrap();
        let at = m.b.iota(m.t).unwrap();
        let at = m.b.cast(at, DType::F32).unwrap();
        let count = m.b.add_const(at, 1.0).unwrap();
        m.b.div(sum, count).unwrap()
    }),
    ("a gated recurrence", |m| {
        let gate = m.b.sigmoid(m.x).unwrap();
        m.b.scan(gate, m.x, m.t, false).unwrap()
    }),
    ("another name for time and back", |m| {
        let s = m.b.twin(m.t);
        let y = m.b.rename(m.x, m.t, s).unwrap();
        let y = m.b.exp(y).unwrap();
        m.b.rename(y, s, m.t).unwrap()
    }),
    ("split and merge of features", |m| {
        let (h, e) = (m.axis("h", 2, AxisRole::Plain), m.axis("e", 2, AxisRole::Plain));
        let y = m.b.split(m.x, m.d, &[h, e]).unwrap();
        let y = m.b.reduce_max(y, &[h]).unwrap();
        let y = m.b.broadcast(y, &[m.n, m.t, e, h]).unwrap();
        m.b.merge(y, &[e, h], m.d).unwrap()
    }),
    ("the best of the features", |m| {
        let k = m.axis("k", 4, AxisRole::Plain);
        let y = m.b.top_k_values(m.x, m.d, k).unwrap();
        m.b.rename(y, k, m.d).unwrap()
    }),
    ("statistics of weights", |m| {
        let w = m.param("w", &[m.t, m.d]);
        let w = m.b.sum(w, &[m.t]).unwrap();
        let q = m.b.quantile(w, m.d, 0.5).unwrap();
        m.b.mul(w, q).unwrap()
    }),
    ("weights per position", |m| {
        let w = m.param("w", &[m.t, m.d]);
        let w = m.b.shift(w, m.t, -1).unwrap();
        m.b.mul(m.x, w).unwrap()
    }),
    ("the value of a straight-through estimate", |m| {
        let y = m.b.shift(m.x, m.t, -1).unwrap();
        m.b.straight_through(m.x, y).unwrap()
    }),
];

const FUTURE: &[Case] = &[
    ("shift", |m| m.b.shift(m.x, m.t, -1).unwrap()),
    ("sum", |m| m.b.sum(m.x, &[m.t]).unwrap()),
    ("reduce_max", |m| m.b.reduce_max(m.x, &[m.t]).unwrap()),
    ("cumsum", |m| m.b.cumsum(m.x, m.t, true).unwrap()),
    ("scan", |m| {
        let half = m.b.constant(0.5);
        m.b.scan(half, m.x, m.t, true).unwrap()
    }),
    ("attend", |m| m.b.attend(Attend { causal: false, ..m.how() }, m.x, m.x, m.x, None).unwrap()),
    ("attend_lse", |m| m.b.attend_lse(Attend { causal: false, ..m.how() }, m.x, m.x, None).unwrap()),
    ("split", |m| {
        // Chunks of two positions, the second shown to the first.
        let (c, i) = (m.axis("c", 3, AxisRole::Plain), m.axis("i", 2, AxisRole::Plain));
        let y = m.b.split(m.x, m.t, &[c, i]).unwrap();
        let last = m.b.index(y, i, 1).unwrap();
        let y = m.b.broadcast(last, &[m.n, c, i, m.d]).unwrap();
        m.b.merge(y, &[c, i], m.t).unwrap()
    }),
    ("merge", |m| {
        let (f, g) = (m.axis("f", 24, AxisRole::Plain), m.axis("f2", 24, AxisRole::Plain));
        let y = m.b.merge(m.x, &[m.t, m.d], f).unwrap();
        let w = m.param("w", &[f, g]);
        let y = m.b.dot(y, w, &[f]).unwrap();
        m.b.split(y, g, &[m.t, m.d]).unwrap()
    }),
    ("index", |m| m.b.index(m.x, m.t, 5).unwrap()),
    ("slice", |m| {
        let short = m.axis("t5", 5, AxisRole::Time);
        let late = m.b.slice(m.x, m.t, short, 1).unwrap();
        m.b.pad(late, short, m.t, 0).unwrap()
    }),
    ("quantile", |m| m.b.quantile(m.x, m.t, 0.5).unwrap()),
    ("feedback_round", |m| {
        // From the last position to the first.
        let back = m.b.const_buffer(DType::I32, &[m.t], (0..6).rev().map(f64::from).collect()).unwrap();
        let (s, order) = (m.b.twin(m.t), m.b.read(back).unwrap());
        let (scale, upper) = (m.b.fill(0.01, &[m.n, m.d]).unwrap(), m.b.fill(1.0, &[m.t, s]).unwrap());
        m.b.feedback_round(m.x, scale, order, upper, m.t, -100.0, 100.0).unwrap()
    }),
    ("top_k_values", |m| {
        let k = m.axis("k", 6, AxisRole::Time);
        let y = m.b.top_k_values(m.x, m.t, k).unwrap();
        m.b.rename(y, k, m.t).unwrap()
    }),
    ("top_k_indices", |m| {
        let k = m.axis("k", 6, AxisRole::Time);
        let y = m.b.top_k_indices(m.x, m.t, k).unwrap();
        let y = m.b.rename(y, k, m.t).unwrap();
        m.b.cast(y, DType::F32).unwrap()
    }),
    ("gather", |m| {
        // Rows of the stream by their number from the end.
        let y = m.b.index(m.x, m.n, 0).unwrap();
        let at = m.b.iota(m.t).unwrap();
        let last = m.b.int(5);
        let at = m.b.sub(last, at).unwrap();
        let s = m.b.twin(m.t);
        let y = m.b.rename(y, m.t, s).unwrap();
        m.b.gather(y, at, s).unwrap()
    }),
    ("scatter_add", |m| {
        let tokens = m.input("tokens", &[m.n, m.t]);
        let counts = m.b.scatter_add(tokens, m.x, m.v).unwrap();
        m.b.sum(counts, &[m.v]).unwrap()
    }),
    ("dot", |m| {
        // Scores of a hand-written attention: positions against positions.
        let s = m.b.twin(m.t);
        let keys = m.b.rename(m.x, m.t, s).unwrap();
        let scores = m.b.dot(m.x, keys, &[m.d]).unwrap();
        m.b.dot(scores, keys, &[s]).unwrap()
    }),
    ("rename", |m| {
        // Time under a plain name is no longer time.
        let p = m.axis("p", 6, AxisRole::Plain);
        let y = m.b.rename(m.x, m.t, p).unwrap();
        m.b.sum(y, &[p]).unwrap()
    }),
    ("attend_grad", |m| {
        let lse = m.b.attend_lse(m.how(), m.x, m.x, None).unwrap();
        m.b.attend_grad(m.how(), AttendArg::K, &[m.x, m.x, m.x, m.x, lse, m.x]).unwrap()
    }),
];

const ROWS: &[Case] = &[
    ("sum", |m| m.b.mean(m.x, &[m.n]).unwrap()),
    ("shift", |m| m.b.shift(m.x, m.n, 1).unwrap()),
    ("cumsum", |m| m.b.cumsum(m.x, m.n, false).unwrap()),
    ("index", |m| m.b.index(m.x, m.n, 0).unwrap()),
    ("attend", |m| m.b.attend(Attend { time: m.n, ..m.how() }, m.x, m.x, m.x, None).unwrap()),
    ("slice", |m| {
        let (one, two) = (m.axis("one", 1, AxisRole::Batch), m.axis("two", 1, AxisRole::Batch));
        let (p, q) = (m.b.slice(m.x, m.n, one, 0).unwrap(), m.b.slice(m.x, m.n, two, 1).unwrap());
        m.b.concat(&[q, p], &[two, one], m.n).unwrap()
    }),
    ("concat", |m| {
        let one = m.axis("one", 1, AxisRole::Batch);
        let first = m.b.slice(m.x, m.n, one, 0).unwrap();
        m.b.concat(&[first, first], &[one, one], m.n).unwrap()
    }),
    ("pad", |m| {
        let one = m.axis("one", 1, AxisRole::Batch);
        let first = m.b.slice(m.x, m.n, one, 0).unwrap();
        m.b.pad(first, one, m.n, 1).unwrap()
    }),
    ("merge", |m| {
        let (f, g) = (m.axis("f", 8, AxisRole::Plain), m.axis("f2", 8, AxisRole::Plain));
        let y = m.b.merge(m.x, &[m.n, m.d], f).unwrap();
        let w = m.param("w", &[f, g]);
        let y = m.b.dot(y, w, &[f]).unwrap();
        m.b.split(y, g, &[m.n, m.d]).unwrap()
    }),
];

fn build(case: &Case) -> (Graph, NodeId) {
    let mut m = Model::new();
    let y = case.1(&mut m);
    let logits = m.head(y);
    (m.b.finish(), logits)
}

#[test]
fn legal_graphs_pass_both_checks() {
    for case in LEGAL {
        let (g, logits) = build(case);
        assert_eq!(broken(&g, logits, &inputs()), [], "{}", case.0);
        assert!(steady(&g, logits, &inputs()), "{}", case.0);
    }
}

#[test]
fn future_tokens_are_refused_and_named() {
    for case in FUTURE {
        let (g, logits) = build(case);
        let errors = check_logits(&g, logits, &inputs()).unwrap_err();
        let error = errors.iter().find(|e| e.rule == Rule::Future).unwrap_or_else(|| panic!("{}: {errors:?}", case.0));
        assert!(error.why.contains(&format!("`{}`", case.0)), "{}: {}", case.0, error.why);
        assert_eq!((error.path.first(), error.path.last()), (Some(&error.node), Some(&logits)));
        assert!(!steady(&g, logits, &inputs()), "{}", case.0);
    }
}

#[test]
fn other_rows_are_refused_and_named() {
    for case in ROWS {
        let (g, logits) = build(case);
        let errors = check_logits(&g, logits, &inputs()).unwrap_err();
        let error = errors.iter().find(|e| e.rule == Rule::Rows).unwrap_or_else(|| panic!("{}: {errors:?}", case.0));
        assert!(error.why.contains(&format!("`{}`", case.0)), "{}: {}", case.0, error.why);
        assert!(!steady(&g, logits, &inputs()), "{}", case.0);
    }
}

#[test]
fn targets_are_refused_at_their_first_use() {
    let mut m = Model::new();
    let targets = m.input("targets", &[m.n, m.t]);
    let answer = m.param("answer", &[m.v, m.d]);
    m.b.set_origin(Origin { span: Some((0, 10, 20)), visit: "head".to_string() });
    let y = m.b.gather(answer, targets, m.v).unwrap();
    m.b.set_origin(Origin::default());
    let logits = m.head(y);
    let g = m.b.finish();
    let errors = check_logits(&g, logits, &inputs()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].rule, errors[0].node), (Rule::Targets, y));
    assert_eq!(errors[0].path[0], targets);
    assert_eq!(errors[0].origin.span, Some((0, 10, 20)));
    assert_eq!(
        errors[0].to_string(),
        format!("`gather` uses the input `targets` (%{}): logits may not depend on targets", y.0)
    );
    assert!(!steady(&g, logits, &inputs()));
}

#[test]
fn an_unknown_input_with_positions_is_refused() {
    let mut m = Model::new();
    let extra = m.input("extra", &[m.n, m.t]);
    let table = m.param("w", &[m.v, m.d]);
    let y = m.b.gather(table, extra, m.v).unwrap();
    let logits = m.head(y);
    let g = m.b.finish();
    assert_eq!(broken(&g, logits, &inputs()), [Rule::Future, Rule::Rows, Rule::Targets]);
    let mut known = inputs();
    known.data.insert("extra".to_string(), Data::Host);
    assert_eq!(broken(&g, logits, &known), []);
}

#[test]
fn several_rules_are_reported_at_once() {
    let mut m = Model::new();
    let y = m.b.sum(m.x, &[m.n, m.t]).unwrap();
    let logits = m.head(y);
    let g = m.b.finish();
    assert_eq!(broken(&g, logits, &inputs()), [Rule::Future, Rule::Rows]);
}

#[test]
fn rows_against_rows_are_refused() {
    // Scores of each row against each row keep both batch axes: no op mixes, the logits do.
    let mut m = Model::new();
    let other = m.b.twin(m.n);
    let y = m.b.rename(m.x, m.n, other).unwrap();
    let z = m.b.outer(Binary::Mul, m.x, y).unwrap();
    let head = m.param("head", &[m.v, m.d]);
    let logits = m.b.dot(z, head, &[m.d]).unwrap();
    assert_eq!(broken(&m.b.finish(), logits, &inputs()), [Rule::Rows]);
}

#[test]
fn scores_are_the_cross_entropy_over_the_vocabulary() {
    let mut m = Model::new();
    let (t, v) = (m.t, m.v);
    let y = m.b.exp(m.x).unwrap();
    let logits = m.head(y);
    let targets = m.input("targets", &[m.n, m.t]);
    let nll = m.b.cross_entropy(logits, targets, v).unwrap();
    let half = m.b.mul_const(nll, 0.5).unwrap();
    let other = m.b.add(targets, targets).unwrap();
    let moved = m.b.cross_entropy(logits, other, v).unwrap();
    let g = m.b.finish();
    assert_eq!(check_score(&g, nll, v, &inputs()).unwrap().logits(), logits);
    for (node, axis) in [(half, v), (moved, v), (nll, t)] {
        let errors = check_score(&g, node, axis, &inputs()).unwrap_err();
        assert_eq!(errors[0].rule, Rule::Normalised);
    }
}

#[test]
fn validation_data_may_not_reach_what_training_writes() {
    let mut m = Model::new();
    let sum = m.b.sum(m.x, &[m.n, m.t]).unwrap();
    let state = m.b.buffer("hessian", DType::F32, &[m.d], BufferKind::State).unwrap();
    m.b.assign(state, sum).unwrap();
    let g = m.b.finish();
    assert_eq!(check_training(&g, &Inputs::standard(Split::Train)), Ok(()));
    let errors = check_training(&g, &Inputs::standard(Split::Val)).unwrap_err();
    assert_eq!((errors.len(), errors[0].rule), (1, Rule::Validation));
    assert!(errors[0].why.contains("`tokens`"), "{}", errors[0].why);
}

#[test]
fn the_perturbation_test_says_where() {
    let (g, logits) = build(&("shift", |m| m.b.shift(m.x, m.t, -2).unwrap()));
    let leak = perturb(&g, logits, &inputs(), VOCAB, 3).unwrap_err();
    // Position 0 sees token 2, which changes when only token 0 is kept.
    assert_eq!(leak, PerturbError::Leak(Leak { row: 0, position: 0, kept: 0 }));
    let mut m = Model::new();
    let y = m.b.sum(m.x, &[m.t]).unwrap();
    assert_eq!(perturb(&m.b.finish(), y, &inputs(), VOCAB, 3), Err(PerturbError::NoTime));
}

/// Random graphs: whatever the proof accepts, the perturbation test must find steady.
#[test]
fn no_accepted_graph_leaks() {
    let mut accepted = 0;
    for seed in 0..300u64 {
        let mut m = Model::new();
        let mut pick = {
            let mut n = 0;
            move |below: usize| {
                n += 1;
                (uniform(seed, 5, n) * below as f64) as usize
            }
        };
        let mut pool = vec![m.x];
        let s = m.b.twin(m.t);
        for _ in 0..6 {
            let (x, y) = (pool[pick(pool.len())], pool[pick(pool.len())]);
            let along = [m.t, m.n, m.d, s][pick(8).min(3)];
            let n = pick(5) as i64 - 2;
            let reverse = pick(3) == 0;
            let all = [m.n, m.t, m.d];
            let made = match pick(11) {
                0 => m.b.tanh(x),
                1 => m.b.add(x, y),
                2 => m.b.shift(x, along, n),
                3 => m.b.cumsum(x, along, reverse),
                4 => m.b.scan(x, y, along, reverse),
                5 => m.b.attend(Attend { causal: !reverse, ..m.how() }, x, y, x, None),
                6 => m.b.rename(x, m.t, s),
                7 => m.b.rename(x, s, m.t),
                8 => m.b.sum(x, &[along]).and_then(|z| m.b.broadcast(z, &all)),
                9 => m.b.dot(x, y, &[along]).and_then(|z| m.b.broadcast(z, &all)),
                _ => m.b.select_positive(x, y),
            };
            pool.extend(made);
        }
        let Some(y) = pool.iter().rev().copied().find(|y| m.b.axes(*y).iter().all(|a| *a != s)) else { continue };
        let logits = m.head(y);
        let g = m.b.finish();
        if broken(&g, logits, &inputs()).is_empty() {
            accepted += 1;
            assert!(steady(&g, logits, &inputs()), "seed {seed}:\n{}", crate::graph::text::print(&g));
        }
    }
    assert!(accepted > 50, "{accepted} of 300: too few to say anything");
}

impl crate::graph::build::Builder {
    /// x > 0 ? x : y
    fn select_positive(&mut self, x: NodeId, y: NodeId) -> crate::graph::build::Made {
        let zero = self.constant(0.0);
        let c = self.gt(x, zero)?;
        self.select(c, x, y)
    }
}
