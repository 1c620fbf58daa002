//! One case per rule: the rule alone turns the left side into the right side, and the values stay.

use super::{RULES, Rule, clean, fixpoint, pass};
use crate::autodiff::grad;
use crate::graph::build::Builder;
use crate::graph::fold::dead_code;
use crate::graph::interpret::random::uniform;
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::*;
use crate::graph::ops::row;
use crate::graph::text::print;
use crate::graph::verify::verify;

/// Inputs `x`, `y`, ... with random contents, axes named with their sizes.
struct World {
    b: Builder,
    contents: Contents,
}

impl World {
    fn new() -> Self {
        World { b: Builder::new("test", DType::F32), contents: Contents::new() }
    }

    fn axes(&mut self, names: &str) -> Vec<AxisId> {
        let mut axis = |name: &str| {
            let size = name.rsplit('_').next().unwrap().parse().unwrap();
            self.b.axis(name, size, AxisRole::Plain).unwrap()
        };
        names.split_whitespace().map(&mut axis).collect()
    }

    fn axis(&mut self, name: &str) -> AxisId {
        self.axes(name)[0]
    }

    fn input(&mut self, name: &str, dtype: DType, axes: &str) -> NodeId {
        let axes = self.axes(axes);
        let dims: Vec<_> = axes.iter().map(|a| self.b.size(*a)).collect();
        let key = u64::from(name.as_bytes()[0]);
        let value = |i| match dtype {
            DType::I32 => libm::floor(3.0 * uniform(key, 0, i)),
            // Values that every float dtype has.
            _ => (1.0 + libm::floor(64.0 * uniform(key, 0, i))) / 32.0,
        };
        self.contents.insert(name.to_string(), Tensor::from_fn(&dims, value));
        let buffer = self.b.buffer(name, dtype, &axes, BufferKind::Input).unwrap();
        self.b.read(buffer).unwrap()
    }

    fn x(&mut self, axes: &str) -> NodeId {
        self.input("x", DType::F32, axes)
    }

    fn y(&mut self, axes: &str) -> NodeId {
        self.input("y", DType::F32, axes)
    }

    fn cond(&mut self, axes: &str) -> NodeId {
        let i = self.input("i", DType::I32, axes);
        let one = self.b.int(1);
        self.b.eq(i, one).unwrap()
    }

    /// The graph that writes a value to an output.
    fn output(mut self, value: NodeId) -> (Graph, Contents) {
        let ty = self.b.ty(value).clone();
        let out = self.b.buffer("out", ty.dtype, &ty.axes, BufferKind::Output).unwrap();
        self.b.assign(out, value).unwrap();
        (self.b.finish(), self.contents)
    }
}

/// Names of the ops, reads and constants left out.
fn ops(g: &Graph) -> String {
    let names: Vec<_> =
        g.nodes.iter().filter(|n| !matches!(n.op, Op::Read(_) | Op::Const(_))).map(|n| row(&n.op).name).collect();
    names.join(" ")
}

type Case = (&'static str, fn(&mut World) -> NodeId, &'static str);

const CASES: &[Case] = &[
    (
        "value_only",
        |w| {
            let x = w.x("a_2");
            let (f, s) = (w.b.round(x).unwrap(), w.b.stop_gradient(x).unwrap());
            w.b.straight_through(f, s).unwrap()
        },
        "round",
    ),
    (
        "add_of_negative",
        |w| {
            let (x, y) = (w.x("a_2"), w.y("a_2"));
            let n = w.b.neg(y).unwrap();
            let (s, d) = (w.b.add(x, n).unwrap(), w.b.add(n, x).unwrap());
            let t = w.b.sub(s, n).unwrap();
            w.b.mul(t, d).unwrap()
        },
        "sub add mul",
    ),
    (
        "negative_of_difference",
        |w| {
            let (x, y) = (w.x("a_2"), w.y("a_2"));
            let d = w.b.sub(x, y).unwrap();
            let n = w.b.neg(d).unwrap();
            let n = w.b.mul_const(n, 2.0).unwrap();
            w.b.neg(n).unwrap()
        },
        "sub mul",
    ),
    (
        "product_of_negative",
        |w| {
            let (x, y) = (w.x("a_2"), w.y("a_2"));
            let n = w.b.neg(x).unwrap();
            let n = w.b.mul(y, n).unwrap();
            w.b.div(n, y).unwrap()
        },
        "mul div neg",
    ),
    (
        "small_power",
        |w| {
            let x = w.x("a_2");
            let mut sum = x;
            for p in [2.0, 3.0, -1.0, 0.5, -0.5] {
                let p = w.b.constant(p);
                let y = w.b.pow(x, p).unwrap();
                sum = w.b.add(sum, y).unwrap();
            }
            sum
        },
        "mul add mul add recip add sqrt add rsqrt add",
    ),
    (
        "select_of_not",
        |w| {
            let (c, x, y) = (w.cond("a_2"), w.x("a_2"), w.y("a_2"));
            let n = w.b.not(c).unwrap();
            w.b.select(n, x, y).unwrap()
        },
        "eq select",
    ),
    (
        "scaled_select",
        |w| {
            let (c, x) = (w.cond("a_2"), w.x("a_2"));
            let zero = w.b.constant(0.0);
            let s = w.b.select(c, zero, x).unwrap();
            w.b.mul_const(s, 0.5).unwrap()
        },
        "eq mul select",
    ),
    (
        "sum_of_selects",
        |w| {
            let (c, x, y) = (w.cond("a_2"), w.x("a_2"), w.y("a_2"));
            let zero = w.b.constant(0.0);
            let (s, t) = (w.b.select(c, zero, x).unwrap(), w.b.select(c, y, zero).unwrap());
            w.b.add(s, t).unwrap()
        },
        "eq select",
    ),
    (
        "cast_of_rounded",
        |w| {
            let x = w.input("h", DType::Bf16, "a_2");
            let y = w.b.cast(x, DType::Bf16).unwrap();
            let z = w.b.exp(y).unwrap();
            let z = w.b.cast(z, DType::F32).unwrap();
            w.b.cast(z, DType::Bf16).unwrap()
        },
        "exp cast",
    ),
    (
        "elementwise_of_broadcast",
        |w| {
            let (x, y) = (w.x("a_2"), w.y("a_2 b_3"));
            let to = w.axes("a_2 b_3 c_2");
            let x = w.b.broadcast(x, &to).unwrap();
            let x = w.b.exp(x).unwrap();
            let y = w.b.broadcast(y, &to).unwrap();
            w.b.add(x, y).unwrap()
        },
        "exp add broadcast",
    ),
    (
        "move_of_broadcast",
        |w| {
            let x = w.x("a_2");
            let (to, q, parts, r) = (w.axes("a_2 q_6"), w.axis("q_6"), w.axes("h_2 e_3"), w.axis("r_3"));
            let x = w.b.broadcast(x, &to).unwrap();
            let x = w.b.split(x, q, &parts).unwrap();
            w.b.rename(x, parts[1], r).unwrap()
        },
        "broadcast",
    ),
    (
        "move_of_zeros",
        |w| {
            let axes = w.axes("a_2 t_3");
            let (t, s) = (w.axis("t_3"), w.axis("s_5"));
            let z = w.b.fill(0.0, &axes).unwrap();
            let z = w.b.shift(z, t, 1).unwrap();
            let z = w.b.pad(z, t, s, 1).unwrap();
            let x = w.x("a_2 s_5");
            w.b.add(z, x).unwrap()
        },
        "",
    ),
    (
        "slice_of_slice",
        |w| {
            let x = w.x("a_8");
            let (a, b, c) = (w.axis("a_8"), w.axis("b_5"), w.axis("c_2"));
            let y = w.b.slice(x, a, b, 2).unwrap();
            w.b.slice(y, b, c, 3).unwrap()
        },
        "slice",
    ),
    (
        "slice_of_concat",
        |w| {
            let (x, y) = (w.x("a_3 n_2"), w.y("n_2 b_4"));
            let (parts, whole, c) = (w.axes("a_3 b_4"), w.axis("q_7"), w.axis("c_2"));
            let z = w.b.concat(&[x, y], &parts, whole).unwrap();
            w.b.slice(z, whole, c, 4).unwrap()
        },
        "slice",
    ),
    (
        "slice_of_pad",
        |w| {
            let x = w.x("a_4");
            let (a, q, c, d) = (w.axis("a_4"), w.axis("q_9"), w.axis("c_2"), w.axis("d_2"));
            let y = w.b.pad(x, a, q, 3).unwrap();
            let (inside, outside) = (w.b.slice(y, q, c, 4).unwrap(), w.b.slice(y, q, d, 1).unwrap());
            let outside = w.b.rename(outside, d, c).unwrap();
            w.b.add(inside, outside).unwrap()
        },
        "slice broadcast rename add",
    ),
    (
        "index_of_place",
        |w| {
            let x = w.x("a_4");
            let (m, order) = (w.axis("m_3"), w.axes("m_3 a_4"));
            let y = w.b.place(x, m, 1, &order).unwrap();
            let (same, other) = (w.b.index(y, m, 1).unwrap(), w.b.index(y, m, 2).unwrap());
            w.b.add(same, other).unwrap()
        },
        "",
    ),
    (
        "index_of_slice",
        |w| {
            let x = w.x("a_8 n_2");
            let (a, b) = (w.axis("a_8"), w.axis("b_5"));
            let y = w.b.slice(x, a, b, 2).unwrap();
            w.b.index(y, b, 3).unwrap()
        },
        "index",
    ),
    (
        "index_of_split",
        |w| {
            let x = w.x("n_2 q_6");
            let (q, parts) = (w.axis("q_6"), w.axes("p_2 r_3"));
            let y = w.b.split(x, q, &parts).unwrap();
            w.b.index(y, parts[0], 1).unwrap()
        },
        "slice",
    ),
    (
        "index_of_concat",
        |w| {
            let (x, y) = (w.x("a_3 n_2"), w.y("n_2 b_4"));
            let (parts, whole) = (w.axes("a_3 b_4"), w.axis("q_7"));
            let z = w.b.concat(&[x, y], &parts, whole).unwrap();
            w.b.index(z, whole, 5).unwrap()
        },
        "index",
    ),
    (
        "merge_of_place",
        |w| {
            let x = w.x("n_2 r_3");
            let (q, parts, order) = (w.axis("q_6"), w.axes("p_2 r_3"), w.axes("r_3 p_2 n_2"));
            let y = w.b.place(x, parts[0], 1, &order).unwrap();
            w.b.merge(y, &parts, q).unwrap()
        },
        "pad",
    ),
    (
        "concat_of_concat",
        |w| {
            let (x, y, z) = (w.x("a_3 n_2"), w.y("n_2 b_4"), w.input("z", DType::F32, "n_2 c_1"));
            let (inner, outer, joined, whole) = (w.axes("a_3 b_4"), w.axes("c_1 j_7"), w.axis("j_7"), w.axis("q_8"));
            let xy = w.b.concat(&[x, y], &inner, joined).unwrap();
            w.b.concat(&[z, xy], &outer, whole).unwrap()
        },
        "concat",
    ),
    (
        "split_of_split",
        |w| {
            let x = w.x("n_2 q_12");
            let (q, parts, more) = (w.axis("q_12"), w.axes("p_4 r_3"), w.axes("d_2 e_2"));
            let y = w.b.split(x, q, &parts).unwrap();
            w.b.split(y, parts[0], &more).unwrap()
        },
        "split",
    ),
    (
        "merge_of_merge",
        |w| {
            let x = w.x("d_2 n_2 e_2 r_3");
            let (q, parts, more) = (w.axis("q_12"), w.axes("p_4 r_3"), w.axes("d_2 e_2"));
            let y = w.b.merge(x, &more, parts[0]).unwrap();
            w.b.merge(y, &parts, q).unwrap()
        },
        "merge",
    ),
    (
        "shift_of_shift",
        |w| {
            let x = w.x("t_6");
            let t = w.axis("t_6");
            let y = w.b.shift(x, t, 2).unwrap();
            let z = w.b.shift(y, t, 1).unwrap();
            let far = w.b.shift(x, t, -6).unwrap();
            w.b.add(z, far).unwrap()
        },
        "shift",
    ),
    (
        "sum_of_pads",
        |w| {
            let (x, y, z) = (w.x("n_2 a_3"), w.y("n_2 b_2"), w.input("z", DType::F32, "n_2 c_4"));
            let q = w.axis("q_9");
            let from = w.axes("a_3 b_2 c_4");
            let x = w.b.pad(x, from[0], q, 4).unwrap();
            let y = w.b.pad(y, from[1], q, 7).unwrap();
            let z = w.b.pad(z, from[2], q, 0).unwrap();
            let s = w.b.add(x, y).unwrap();
            w.b.add(z, s).unwrap()
        },
        "concat",
    ),
    (
        "merge_of_places",
        |w| {
            let (x, y) = (w.x("n_2 r_3"), w.y("n_2 r_3"));
            let (q, parts, order) = (w.axis("q_6"), w.axes("p_2 r_3"), w.axes("n_2 p_2 r_3"));
            let (x, y) = (w.b.place(x, parts[0], 1, &order).unwrap(), w.b.place(y, parts[0], 0, &order).unwrap());
            let sum = w.b.add(x, y).unwrap();
            w.b.merge(sum, &parts, q).unwrap()
        },
        "concat",
    ),
    (
        "reduce_of_broadcast",
        |w| {
            let x = w.x("a_2 b_3");
            let (to, over) = (w.axes("c_4 b_3 a_2"), w.axes("c_4 a_2"));
            let x = w.b.broadcast(x, &to).unwrap();
            let (sum, max) = (w.b.sum(x, &over).unwrap(), w.b.reduce_max(x, &over).unwrap());
            w.b.div(sum, max).unwrap()
        },
        "sum mul reduce_max div",
    ),
    (
        "reduce_of_reduce",
        |w| {
            let x = w.x("a_2 b_4 c_3");
            let (first, then) = (w.axes("c_3"), w.axes("a_2"));
            let y = w.b.reduce_min(x, &first).unwrap();
            w.b.reduce_min(y, &then).unwrap()
        },
        "reduce_min",
    ),
    (
        "sum_of_padded",
        |w| {
            let x = w.x("a_2 b_4");
            let (b, q, m) = (w.axis("b_4"), w.axis("q_6"), w.axis("m_2"));
            let order = w.axes("m_2 a_2 q_6");
            let y = w.b.pad(x, b, q, 1).unwrap();
            let y = w.b.place(y, m, 1, &order).unwrap();
            w.b.sum(y, &[m, q]).unwrap()
        },
        "sum",
    ),
    (
        "sum_of_scaled",
        |w| {
            let (x, y) = (w.x("a_2 b_4"), w.y("a_2"));
            let b = w.axis("b_4");
            let z = w.b.mul(y, x).unwrap();
            w.b.sum(z, &[b]).unwrap()
        },
        "sum mul",
    ),
    (
        "dot_of_transposed",
        |w| {
            let (x, y) = (w.x("a_2 k_4"), w.y("b_3 k_4"));
            let (k, order) = (w.axis("k_4"), w.axes("k_4 a_2"));
            let x = w.b.broadcast(x, &order).unwrap();
            w.b.dot(x, y, &[k]).unwrap()
        },
        "dot",
    ),
    (
        "dot_of_renamed",
        |w| {
            let (x, y) = (w.x("a_2 k_4"), w.y("b_3 k_4"));
            let (k, j) = (w.axis("k_4"), w.axis("j_4"));
            let (x, y) = (w.b.rename(x, k, j).unwrap(), w.b.rename(y, k, j).unwrap());
            w.b.dot(x, y, &[j]).unwrap()
        },
        "dot",
    ),
    (
        "dot_of_broadcast",
        |w| {
            let (x, y) = (w.x("a_2 k_4"), w.y("b_3 k_4 j_2"));
            let (over, to) = (w.axes("k_4 j_2"), w.axes("a_2 c_2 k_4 j_2"));
            let x = w.b.broadcast(x, &to).unwrap();
            w.b.dot(x, y, &over).unwrap()
        },
        "sum dot broadcast",
    ),
    (
        "dot_without_matrix",
        |w| {
            let (x, y, z) = (w.x("a_2 k_4"), w.y("k_4"), w.input("z", DType::F32, "b_3"));
            let k = w.axis("k_4");
            let y = w.b.dot(x, y, &[k]).unwrap();
            w.b.dot(y, z, &[]).unwrap()
        },
        "mul sum broadcast mul",
    ),
];

/// Some rules alone, without constant folding.
fn only(g: &Graph, rules: &[(&str, Rule)]) -> Graph {
    fixpoint(g, |g| dead_code(&pass(g, rules)))
}

#[test]
fn every_rule_does_what_its_algebra_says() {
    for (name, rule) in RULES {
        let (_, build, expected) = CASES.iter().find(|c| c.0 == *name).unwrap_or_else(|| panic!("no case for {name}"));
        let mut w = World::new();
        let y = build(&mut w);
        let (g, contents) = w.output(y);
        let before = only(&g, &[]);
        let after = only(&g, &[(name, *rule)]);
        verify(&after).unwrap();
        assert_ne!(ops(&before), *expected, "{name}: the case needs no rule");
        assert_eq!(ops(&after), *expected, "{name}:\n{}", print(&after));
        let (x, y) = (&interpret(&g, &contents).unwrap()["out"], &interpret(&after, &contents).unwrap()["out"]);
        for (x, y) in x.data.iter().zip(&y.data) {
            assert!(libm::fabs(x - y) < 1e-12, "{name}: {x} became {y}");
        }
        // All rules together reach a fixpoint and agree as well.
        let all = clean(&g);
        assert_eq!(print(&clean(&all)), print(&all), "{name}");
        let z = &interpret(&all, &contents).unwrap()["out"];
        x.data.iter().zip(&z.data).for_each(|(x, z)| assert!(libm::fabs(x - z) < 1e-12, "{name}: {x} became {z}"));
    }
}

#[test]
fn an_effect_takes_any_storage_order() {
    let mut w = World::new();
    let x = w.x("a_2 b_3");
    let order = w.axes("b_3 a_2");
    let y = w.b.broadcast(x, &order).unwrap();
    let (g, contents) = w.output(y);
    let after = clean(&g);
    assert_eq!(ops(&after), "");
    assert_eq!(interpret(&g, &contents).unwrap()["out"], interpret(&after, &contents).unwrap()["out"]);
}

#[test]
fn the_derivative_of_a_rotation_is_a_rotation() {
    // Both halves of x rotated by a table; the backward pass should be two products, a sum and a concatenation again.
    let mut w = World::new();
    let (x, cos, sin) = (w.x("t_3 d_6"), w.y("t_3 r_2"), w.input("z", DType::F32, "t_3 r_2"));
    let seed = w.input("seed", DType::F32, "t_3 d_6");
    let (d, r, rest, rot, pair) = (w.axis("d_6"), w.axis("r_2"), w.axis("e_2"), w.axis("o_4"), w.axis("p_2"));
    let b = &mut w.b;
    let (turned, kept) = (b.slice(x, d, rot, 0).unwrap(), b.slice(x, d, rest, 4).unwrap());
    let halves = b.split(turned, rot, &[pair, r]).unwrap();
    let (p, q) = (b.index(halves, pair, 0).unwrap(), b.index(halves, pair, 1).unwrap());
    let (pc, qs, ps, qc) =
        (b.mul(p, cos).unwrap(), b.mul(q, sin).unwrap(), b.mul(p, sin).unwrap(), b.mul(q, cos).unwrap());
    let (first, second) = (b.add(pc, qs).unwrap(), b.sub(qc, ps).unwrap());
    let y = b.concat(&[first, second, kept], &[r, r, rest], d).unwrap();
    let dx = grad(b, &[(y, seed)], &[x]).unwrap()[0].unwrap();
    let (g, contents) = w.output(dx);
    let after = clean(&g);
    assert_eq!(ops(&after), "slice slice slice mul mul mul add mul sub concat", "{}", print(&after));
    let (x, y) = (&interpret(&g, &contents).unwrap()["out"], &interpret(&after, &contents).unwrap()["out"]);
    x.data.iter().zip(&y.data).for_each(|(x, y)| assert!(libm::fabs(x - y) < 1e-12));
}

#[test]
fn the_derivative_of_a_leaky_square_selects_once() {
    let mut w = World::new();
    let (x, seed) = (w.x("a_2"), w.y("a_2"));
    let b = &mut w.b;
    let zero = b.constant(0.0);
    let positive = b.ge(x, zero).unwrap();
    let low = b.mul_const(x, 0.5).unwrap();
    let leaky = b.select(positive, x, low).unwrap();
    let y = b.mul(leaky, leaky).unwrap();
    let dx = grad(b, &[(y, seed)], &[x]).unwrap()[0].unwrap();
    let (g, _) = w.output(dx);
    let after = clean(&g);
    assert_eq!(ops(&after).matches("select").count(), 2, "one forward, one backward:\n{}", print(&after));
}
