//! The interpreter against closed forms and plain loops over indices.

use crate::graph::build::Builder;
use crate::graph::interpret::random::uniform;
use crate::graph::interpret::{Contents, InterpretError, Options, Tensor, interpret, interpret_with, values};
use crate::graph::ir::*;

/// A builder whose inputs get contents as they are made.
struct World {
    b: Builder,
    contents: Contents,
}

impl World {
    fn new() -> Self {
        World { b: Builder::new("test", DType::F32), contents: Contents::new() }
    }

    /// `a_2` is an axis of size 2.
    fn axis(&mut self, name: &str) -> AxisId {
        let size = name.rsplit('_').next().unwrap().parse().unwrap();
        self.b.axis(name, size, AxisRole::Plain).unwrap()
    }

    fn axes(&mut self, names: &str) -> Vec<AxisId> {
        names.split_whitespace().map(|n| self.axis(n)).collect()
    }

    fn given(&mut self, name: &str, dtype: DType, axes: &str, data: Vec<f64>) -> NodeId {
        let axes = self.axes(axes);
        let dims: Vec<_> = axes.iter().map(|a| self.b.size(*a)).collect();
        let buffer = self.b.buffer(name, dtype, &axes, BufferKind::Input).unwrap();
        self.contents.insert(name.to_string(), Tensor::new(&dims, data).unwrap());
        self.b.read(buffer).unwrap()
    }

    fn random(&mut self, name: &str, axes: &str) -> NodeId {
        let numel: usize = self.axes(axes).iter().map(|a| self.b.size(*a)).product();
        let data =
            (0..numel).map(|i| 2.0 * uniform(name.len() as u64, i32::from(name.as_bytes()[0]), i) - 1.0).collect();
        self.given(name, DType::F32, axes, data)
    }

    fn data(&self, x: NodeId) -> Vec<f64> {
        values(self.b.graph(), &self.contents, &[x], &Options::default()).unwrap().remove(0).data
    }
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(libm::fabs(x - y) < 1e-12, "{i}: {x} and {y}");
    }
}

#[test]
fn dot_equals_the_triple_loop() {
    // Sizes around the 4 x 4 blocks; batch axis h, operands and result in unusual orders.
    for (m, n, k) in [(1, 1, 1), (4, 4, 4), (5, 7, 3), (9, 2, 6), (3, 8, 1)] {
        let mut w = World::new();
        let x = w.random("x", &format!("k_{k} h_2 m_{m}"));
        let y = w.random("yy", &format!("n_{n} k_{k} h_2"));
        let over = w.axes(&format!("k_{k}"));
        let order = w.axes(&format!("n_{n} m_{m} h_2"));
        let z = w.b.dot_as(x, y, &over, &order).unwrap();
        let (xs, ys) = (w.data(x), w.data(y));
        let mut expected = Vec::new();
        for j in 0..n {
            for i in 0..m {
                for h in 0..2 {
                    expected.push((0..k).map(|t| xs[(t * 2 + h) * m + i] * ys[(j * k + t) * 2 + h]).sum());
                }
            }
        }
        close(&w.data(z), &expected);
    }
}

#[test]
fn reductions_and_broadcasts() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "a_2 b_3", vec![1.0, -2.0, 3.0, 4.0, 0.0, -6.0]);
    let (a, b) = (w.axis("a_2"), w.axis("b_3"));
    let sum = w.b.sum(x, &[a]).unwrap();
    assert_eq!(w.data(sum), [5.0, -2.0, -3.0]);
    let all = w.b.sum(x, &[b, a]).unwrap();
    assert_eq!(w.data(all), [0.0]);
    let max = w.b.reduce_max(x, &[b]).unwrap();
    assert_eq!(w.data(max), [3.0, 4.0]);
    let min = w.b.reduce_min(x, &[a]).unwrap();
    assert_eq!(w.data(min), [1.0, -2.0, -6.0]);
    let turned = w.b.broadcast(x, &[b, a]).unwrap();
    assert_eq!(w.data(turned), [1.0, 4.0, -2.0, 0.0, 3.0, -6.0]);
    let wide = w.b.broadcast(max, &[b, a]).unwrap();
    assert_eq!(w.data(wide), [3.0, 4.0, 3.0, 4.0, 3.0, 4.0]);
    let part = w.b.sub(x, min).unwrap();
    assert_eq!(w.data(part), [0.0, 0.0, 9.0, 3.0, 2.0, 0.0]);
}

#[test]
fn moves() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "a_2 q_6", (0..12).map(f64::from).collect());
    let (a, q, h, e, u) = (w.axis("a_2"), w.axis("q_6"), w.axis("h_2"), w.axis("e_3"), w.axis("u_6"));
    let s = w.b.split(x, q, &[h, e]).unwrap();
    assert_eq!(w.data(s), w.data(x));
    // [a (e h)]: position 2 e + h holds element 3 h + e.
    let m = w.b.merge(s, &[e, h], u).unwrap();
    assert_eq!(w.data(m), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
    let part = w.b.slice(x, q, e, 2).unwrap();
    assert_eq!(w.data(part), [2.0, 3.0, 4.0, 8.0, 9.0, 10.0]);
    let back = w.b.pad(part, e, q, 1).unwrap();
    assert_eq!(w.data(back), [0.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 8.0, 9.0, 10.0, 0.0, 0.0]);
    let one = w.b.index(x, a, 1).unwrap();
    assert_eq!(w.data(one), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
    let placed = w.b.place(one, h, 1, &[q, h]).unwrap();
    assert_eq!(w.data(placed), [0.0, 6.0, 0.0, 7.0, 0.0, 8.0, 0.0, 9.0, 0.0, 10.0, 0.0, 11.0]);
    let wide = w.axis("w_9");
    let joined = w.b.concat(&[part, x], &[e, q], wide).unwrap();
    assert_eq!(w.data(joined)[..9], [2.0, 3.0, 4.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    for (n, expected) in [(2, [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]), (-1, [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]), (6, [0.0; 6])] {
        let shifted = w.b.shift(x, q, n).unwrap();
        assert_eq!(w.data(shifted)[..6], expected);
    }
}

#[test]
fn running_sums() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "t_4 a_2", vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0]);
    let t = w.axis("t_4");
    let sum = w.b.cumsum(x, t, false).unwrap();
    assert_eq!(w.data(sum), [1.0, 10.0, 3.0, 30.0, 6.0, 60.0, 10.0, 100.0]);
    let sum = w.b.cumsum(x, t, true).unwrap();
    assert_eq!(w.data(sum), [10.0, 100.0, 9.0, 90.0, 7.0, 70.0, 4.0, 40.0]);
    // A constant decay: h[t] = sum of x[s] / 2^(t - s).
    let half = w.b.constant(0.5);
    let h = w.b.scan(half, x, t, false).unwrap();
    assert_eq!(w.data(h), [1.0, 10.0, 2.5, 25.0, 4.25, 42.5, 6.125, 61.25]);
    let h = w.b.scan(half, x, t, true).unwrap();
    assert_eq!(w.data(h)[..2], [1.0 + 1.0 + 0.75 + 0.5, 10.0 + 10.0 + 7.5 + 5.0]);
    // A decay by position: h[1] = a[1] h[0] + x[1], and so on.
    let a = w.given("a", DType::F32, "t_4", vec![9.0, 2.0, 0.0, 3.0]);
    let h = w.b.scan(a, x, t, false).unwrap();
    assert_eq!(w.data(h), [1.0, 10.0, 4.0, 40.0, 3.0, 30.0, 13.0, 130.0]);
}

#[test]
fn tables() {
    let mut w = World::new();
    let table = w.given("table", DType::F32, "d_2 v_3", vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    let index = w.given("index", DType::I32, "t_4", vec![2.0, 0.0, 2.0, 99.0]);
    let v = w.axis("v_3");
    let rows = w.b.gather(table, index, v).unwrap();
    assert_eq!(w.data(rows), [3.0, 30.0, 1.0, 10.0, 3.0, 30.0, 3.0, 30.0]);
    let sums = w.b.scatter_add(index, rows, v).unwrap();
    assert_eq!(w.data(sums), [1.0, 10.0, 0.0, 0.0, 9.0, 90.0]);
}

#[test]
fn quantiles_are_numpys() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "a_7", vec![3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]);
    let a = w.axis("a_7");
    // Worked by hand from numpy.quantile's definition: position q (n - 1) among the sorted values -5 -1 1 2 3 4 9.
    for (q, expected) in [(0.0, -5.0), (0.1, -2.6), (0.25, 0.0), (0.5, 2.0), (0.9, 6.0), (0.999, 8.97), (1.0, 9.0)] {
        let y = w.b.quantile(x, a, q).unwrap();
        close(&w.data(y), &[expected]);
    }
}

#[test]
fn rounding_feeds_errors_to_later_columns() {
    // Two rows of three columns, stored columns first; visits 2, 0, 1; upper stored [k, j]. Row 0, by hand: column 2 is 0.7: code 1, error
    // -0.3 / 2; column 0 becomes 1.0 + 0.15 * 4 = 1.6: code 2, error -0.4 / 1; column 1 becomes -2.0 + 0.15 * 1 + 0.4 * 3 = -0.65: code -1.
    // Row 1 in units of 10: -2.5 to even -2, error -5 / 2; 10 + 2.5 * 4 = 20: code 2 without error; 30 + 2.5 * 1 = 32.5: 3 is cut to 2.
    let mut w = World::new();
    let x = w.given("w", DType::F32, "c_3 r_2", vec![1.0, 10.0, -2.0, 30.0, 0.7, -25.0]);
    let scale = w.given("scale", DType::F32, "r_2", vec![1.0, 10.0]);
    let order = w.given("order", DType::I32, "c_3", vec![2.0, 0.0, 1.0]);
    let upper = w.given("upper", DType::F32, "k_3 c_3", vec![2.0, 9.0, 9.0, 4.0, 1.0, 9.0, 1.0, 3.0, 5.0]);
    let c = w.axis("c_3");
    let y = w.b.feedback_round(x, scale, order, upper, c, -2.0, 2.0).unwrap();
    assert_eq!(w.data(y), [2.0, 2.0, -1.0, 2.0, 1.0, -2.0]);
    let twice = w.given("twice", DType::I32, "c_3", vec![2.0, 0.0, 2.0]);
    let y = w.b.feedback_round(x, scale, twice, upper, c, -2.0, 2.0).unwrap();
    let error = values(w.b.graph(), &w.contents, &[y], &Options::default()).unwrap_err();
    assert!(error.to_string().ends_with("the order of columns is no permutation of 0..3"), "{error}");
}

#[test]
fn without_correlations_rounding_feeds_nothing() {
    let mut w = World::new();
    let x = w.random("x", "r_4 c_5");
    let scale = w.given("scale", DType::F32, "r_4", vec![0.3, 0.07, 0.011, 1.0]);
    let order = w.given("order", DType::I32, "c_5", vec![3.0, 1.0, 4.0, 0.0, 2.0]);
    let (c, both) = (w.axis("c_5"), w.axes("c_5 k_5"));
    let (i, j) = (w.b.iota(both[0]).unwrap(), w.b.iota(both[1]).unwrap());
    let (i, j) = (w.b.broadcast(i, &both).unwrap(), w.b.broadcast(j, &both).unwrap());
    let diagonal = w.b.eq(i, j).unwrap();
    let upper = w.b.cast(diagonal, DType::F32).unwrap();
    let y = w.b.feedback_round(x, scale, order, upper, c, -31.0, 31.0).unwrap();
    let plain = w.b.div(x, scale).unwrap();
    let plain = w.b.round(plain).unwrap();
    let (low, high) = (w.b.constant(-31.0), w.b.constant(31.0));
    let plain = w.b.max(plain, low).unwrap();
    let plain = w.b.min(plain, high).unwrap();
    assert_eq!(w.data(y), w.data(plain));
}

#[test]
fn top_k_orders_and_breaks_ties() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "a_5 b_2", vec![1.0, 0.0, 7.0, -0.0, 7.0, 0.0, 3.0, -1.0, 9.0, -2.0]);
    let (a, k) = (w.axis("a_5"), w.axis("k_3"));
    let (values, positions) = (w.b.top_k_values(x, a, k).unwrap(), w.b.top_k_indices(x, a, k).unwrap());
    assert_eq!(w.data(values), [9.0, 0.0, 7.0, 0.0, 7.0, 0.0]);
    assert_eq!(w.data(positions), [4.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
}

/// Attention by the book, scores as a full matrix: q [n t g d], k and v [n t d], document [t].
fn naive_attention(
    w: &World,
    q: NodeId,
    k: NodeId,
    v: NodeId,
    see: impl Fn(usize, usize) -> bool,
) -> (Vec<f64>, Vec<f64>) {
    let (n, t, g, d) = (2, 5, 3, 4);
    let (q, k, v) = (w.data(q), w.data(k), w.data(v));
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for b in 0..n {
        for i in 0..t {
            for h in 0..g {
                let weight = |j: usize| {
                    let score: f64 =
                        (0..d).map(|c| q[((b * t + i) * g + h) * d + c] * k[(b * t + j) * d + c]).sum::<f64>() * 0.7;
                    if see(i, j) { libm::exp(score) } else { 0.0 }
                };
                let total: f64 = (0..t).map(weight).sum();
                lse.push(libm::log(total));
                for c in 0..d {
                    out.push((0..t).map(|j| weight(j) * v[(b * t + j) * d + c]).sum::<f64>() / total);
                }
            }
        }
    }
    (out, lse)
}

#[test]
fn attention_equals_masked_softmax() {
    let documents = [0, 0, 1, 1, 0];
    for causal in [false, true] {
        for window in [None, Some(1), Some(2), Some(9)] {
            for document in [false, true] {
                let mut w = World::new();
                let (q, k, v) =
                    (w.random("q", "n_2 t_5 g_3 d_4"), w.random("kk", "n_2 t_5 d_4"), w.random("vvv", "n_2 t_5 d_4"));
                let (time, dim) = (w.axis("t_5"), w.axis("d_4"));
                let how = Attend { time, dim, scale: Bits::new(0.7), causal, window, document };
                let ids = documents.map(f64::from).to_vec();
                let ids = document.then(|| w.given("documents", DType::I32, "t_5", ids));
                let y = w.b.attend(how, q, k, v, ids).unwrap();
                let lse = w.b.attend_lse(how, q, k, ids).unwrap();
                let see = |i: usize, j: usize| {
                    (!causal || j <= i)
                        && window.is_none_or(|n| j + n as usize > i)
                        && (!document || documents[i] == documents[j])
                };
                let (expected, sums) = naive_attention(&w, q, k, v, see);
                close(&w.data(y), &expected);
                close(&w.data(lse), &sums);
            }
        }
    }
}

#[test]
fn attention_does_not_depend_on_storage_order() {
    let mut w = World::new();
    let (q, k, v) = (w.random("q", "n_2 t_5 g_3 d_4"), w.random("kk", "n_2 t_5 d_4"), w.random("vvv", "n_2 t_5 d_4"));
    let (time, dim) = (w.axis("t_5"), w.axis("d_4"));
    let how = Attend { time, dim, scale: Bits::new(0.7), causal: true, window: None, document: false };
    let y = w.b.attend(how, q, k, v, None).unwrap();
    let (order, turned) = (w.axes("n_2 t_5 g_3 d_4"), w.axes("g_3 d_4 n_2 t_5"));
    let turned_keys = w.axes("t_5 d_4 n_2");
    let (q2, k2, v2) = (
        w.b.broadcast(q, &turned).unwrap(),
        w.b.broadcast(k, &turned_keys).unwrap(),
        w.b.broadcast(v, &turned_keys).unwrap(),
    );
    let z = w.b.attend(how, q2, k2, v2, None).unwrap();
    let z = w.b.broadcast(z, &order).unwrap();
    assert_eq!(w.data(y), w.data(z));
}

#[test]
fn cross_entropy_is_the_log_probability() {
    let mut w = World::new();
    let x = w.given("x", DType::F32, "t_2 v_3", vec![1000.0, 1001.0, 1002.0, 0.0, 0.0, 0.0]);
    let target = w.given("target", DType::I32, "t_2", vec![2.0, 0.0]);
    let v = w.axis("v_3");
    let nll = w.b.cross_entropy(x, target, v).unwrap();
    close(&w.data(nll), &[libm::log(1.0 + libm::exp(-1.0) + libm::exp(-2.0)), libm::log(3.0)]);
    let wrong = w.given("wrong", DType::I32, "t_2", vec![2.0, 3.0]);
    let nll = w.b.cross_entropy(x, wrong, v).unwrap();
    let error = values(w.b.graph(), &w.contents, &[nll], &Options::default()).unwrap_err();
    assert!(matches!(&error, InterpretError::Value { node, .. } if *node == nll), "{error}");
}

#[test]
fn effects_see_the_contents_before_the_graph() {
    let mut w = World::new();
    let x = w.random("x", "a_2 b_3");
    let (a, b) = (w.axis("a_2"), w.axis("b_3"));
    let grad = w.b.buffer("grad.x", DType::F32, &[b, a], BufferKind::Grad).unwrap();
    let state = w.b.buffer("m", DType::Bf16, &[b], BufferKind::State).unwrap();
    w.contents.insert("m".to_string(), Tensor::new(&[3], vec![1.0, 2.0, 3.0]).unwrap());
    let m = w.b.read(state).unwrap();
    let mx = w.b.mul(x, m).unwrap();
    w.b.accumulate(grad, mx).unwrap();
    let m2 = w.b.mul_const(m, 1.0 + 1.0 / 512.0).unwrap();
    w.b.assign(state, m2).unwrap();
    let xs = w.data(x);
    let expected: Vec<_> = (0..6).map(|i| xs[(i % 2) * 3 + i / 2] * (i / 2 + 1) as f64).collect();
    let once = interpret(w.b.graph(), &w.contents).unwrap();
    close(&once["grad.x"].data, &expected);
    assert_eq!(once["grad.x"].dims, [3, 2]);
    assert_eq!(once["m"].data, [1.0, 2.0, 3.0].map(|v| v * (1.0 + 1.0 / 512.0)));
    // Accumulation starts from what is there; rounding happens when asked for.
    let mut again = once.clone();
    again.insert("m".to_string(), w.contents["m"].clone());
    let twice = interpret_with(w.b.graph(), &again, &Options { round_storage: true }).unwrap();
    assert_eq!(twice["m"].data, [1.0, 2.0, 3.0]);
    for (x, y) in twice["grad.x"].data.iter().zip(&expected) {
        assert!(libm::fabs(x - 2.0 * y) < 1e-6);
    }
}

#[test]
fn storage_rounding_applies_to_operands_of_contractions() {
    let mut b = Builder::new("test", DType::Bf16);
    let a = b.axis("a", 1, AxisRole::Plain).unwrap();
    let xb = b.buffer("x", DType::F32, &[a], BufferKind::Input).unwrap();
    let x = b.read(xb).unwrap();
    let (dot, mul) = (b.dot(x, x, &[a]).unwrap(), b.mul(x, x).unwrap());
    let v = 1.0 + 1.0 / 512.0;
    let contents = Contents::from([("x".to_string(), Tensor::new(&[1], vec![v]).unwrap())]);
    let found = values(b.graph(), &contents, &[dot, mul], &Options { round_storage: true }).unwrap();
    assert_eq!((found[0].data[0], found[1].data[0]), (1.0, v * v));
}

#[test]
fn missing_and_misshapen_inputs_are_errors() {
    let mut w = World::new();
    let x = w.random("x", "a_2");
    let error = values(w.b.graph(), &Contents::new(), &[x], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "the buffer `x` is read but was not given");
    let wrong = Contents::from([("x".to_string(), Tensor::scalar(1.0))]);
    let error = values(w.b.graph(), &wrong, &[x], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "the buffer `x` has extents [2], but [] was given");
}

#[test]
fn integer_division_by_zero_is_an_error() {
    let mut w = World::new();
    let x = w.given("x", DType::I32, "a_2", vec![1.0, 0.0]);
    let y = w.b.rem(x, x).unwrap();
    let error = values(w.b.graph(), &w.contents, &[y], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "%1: integer division by zero");
}

#[test]
fn random_depends_on_key_and_counter_only() {
    let mut w = World::new();
    let axes = w.axes("a_2 b_3");
    let (one, two) = (w.b.int(1), w.b.int(2));
    let x = w.b.random(5, false, one, &axes).unwrap();
    let y = w.b.random(5, false, two, &axes).unwrap();
    let z = w.b.random(6, false, one, &axes).unwrap();
    assert_ne!(x, y);
    assert_ne!(w.data(x), w.data(y));
    assert_ne!(w.data(x), w.data(z));
    assert_eq!(w.data(x), (0..6).map(|e| uniform(5, 1, e)).collect::<Vec<_>>());
}
