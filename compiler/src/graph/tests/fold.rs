//! Constant folding and dead code.

use crate::graph::build::Builder;
use crate::graph::fold::{LARGEST_TABLE, dead_code, fold};
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::*;
use crate::graph::text::print;
use crate::graph::verify::verify;

/// x [t f] * cos(t * 10000^(-f / size(f)))
fn rotary(size: usize) -> Graph {
    let mut b = Builder::new("test", DType::F32);
    let t = b.axis("t", size, AxisRole::Time).unwrap();
    let f = b.axis("f", 4, AxisRole::Plain).unwrap();
    let x = b.buffer("x", DType::F32, &[t, f], BufferKind::Input).unwrap();
    let y = b.buffer("y", DType::F32, &[t, f], BufferKind::Output).unwrap();
    let x = b.read(x).unwrap();
    let i = b.iota(f).unwrap();
    let i = b.cast(i, DType::F32).unwrap();
    let i = b.mul_const(i, -0.25).unwrap();
    let base = b.constant(10_000.0);
    let rate = b.pow(base, i).unwrap();
    let at = b.iota(t).unwrap();
    let at = b.cast(at, DType::F32).unwrap();
    let angle = b.outer(Binary::Mul, at, rate).unwrap();
    let cos = b.cos(angle).unwrap();
    let out = b.mul(x, cos).unwrap();
    b.assign(y, out).unwrap();
    b.finish()
}

#[test]
fn tables_of_constants_become_buffers() {
    let g = rotary(3);
    let folded = fold(&g);
    verify(&folded).unwrap();
    let text = print(&folded);
    assert!(
        text.ends_with(
            "%0 = read(x) : f32 [t f]\n%1 = read(const.0) : f32 [t f]\n%2 = mul(%0, %1) : f32 [t f]\nassign y %2\n"
        ),
        "{text}"
    );
    let table = folded.constants.values().next().unwrap();
    let angle = |t: f64, f: f64| t * libm::pow(10_000.0, -0.25 * f);
    for t in 0..3 {
        for f in 0..4 {
            assert_eq!(table[t * 4 + f], libm::cos(angle(t as f64, f as f64)));
        }
    }
    let x = Contents::from([("x".to_string(), Tensor::from_fn(&[3, 4], |i| i as f64))]);
    assert_eq!(interpret(&g, &x).unwrap()["y"], interpret(&folded, &x).unwrap()["y"]);
    assert_eq!(fold(&folded), folded);
}

#[test]
fn large_tables_are_computed_from_small_ones() {
    let size = LARGEST_TABLE / 4 + 1;
    let folded = fold(&rotary(size));
    verify(&folded).unwrap();
    let sizes: Vec<_> = folded.constants.values().map(Vec::len).collect();
    assert_eq!(sizes, [4, size], "the rates and the positions, not the cosines");
}

#[test]
fn uniform_values_are_a_broadcast_and_scalars_a_constant() {
    let mut b = Builder::new("test", DType::F32);
    let t = b.axis("t", 5, AxisRole::Time).unwrap();
    let y = b.buffer("y", DType::F32, &[t], BufferKind::Output).unwrap();
    let z = b.buffer("z", DType::I32, &[], BufferKind::Output).unwrap();
    let i = b.iota(t).unwrap();
    let last = b.reduce_max(i, &[t]).unwrap();
    let diff = b.sub(i, i).unwrap();
    let zeros = b.cast(diff, DType::F32).unwrap();
    let ones = b.exp(zeros).unwrap();
    b.assign(y, ones).unwrap();
    b.assign(z, last).unwrap();
    let text = print(&fold(b.graph()));
    let expected =
        "%0 = const(4) : i32 []\n%1 = const(1) : f32 []\n%2 = broadcast(%1) : f32 [t]\nassign y %2\nassign z %0\n";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn random_numbers_and_undefined_values_are_left() {
    let mut b = Builder::new("test", DType::F32);
    let t = b.axis("t", 5, AxisRole::Time).unwrap();
    let y = b.buffer("y", DType::F32, &[t], BufferKind::Output).unwrap();
    let z = b.buffer("z", DType::I32, &[t], BufferKind::Output).unwrap();
    let one = b.int(1);
    let draw = b.random(1, true, one, &[t]).unwrap();
    let i = b.iota(t).unwrap();
    let undefined = b.rem(i, i).unwrap();
    b.assign(y, draw).unwrap();
    b.assign(z, undefined).unwrap();
    let text = print(&fold(b.graph()));
    assert!(text.contains("random") && text.contains("mod"), "{text}");
}

#[test]
fn dead_nodes_and_tables_go_and_origins_stay() {
    let mut b = Builder::new("test", DType::F32);
    let t = b.axis("t", 2, AxisRole::Time).unwrap();
    let dead = b.const_buffer(DType::F32, &[t], vec![1.0, 2.0]).unwrap();
    let live = b.const_buffer(DType::F32, &[t], vec![3.0, 4.0]).unwrap();
    let y = b.buffer("y", DType::F32, &[t], BufferKind::Output).unwrap();
    let dead = b.read(dead).unwrap();
    b.exp(dead).unwrap();
    b.set_origin(Origin { span: Some((0, 1, 2)), visit: "here".to_string() });
    let live = b.read(live).unwrap();
    b.assign(y, live).unwrap();
    let g = dead_code(b.graph());
    verify(&g).unwrap();
    assert_eq!(
        print(&g),
        "graph test f32\naxis t 2 time\nconst const.1 : f32 [t] = 3 4\noutput y : f32 [t]\n%0 = read(const.1) : f32 [t]  @ 0:1..2 here\nassign y %0\n"
    );
}
