//! The builder's own constructions: loops, branches, transposes, tails, bf16, diagnostics.

use super::super::emit::{Cmp, Elem, F32, F32X16, I32X16, I64, Ty, Unit};
use super::super::{memory, object, passes};
use super::{bytes, floats, load, tiers};
use crate::graph::ir::DType;
use crate::mlir::tier::Tier;

#[test]
fn transpose_of_16_by_16() {
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    for tier in tiers() {
        let code = load(tier, 2, |e, _, args, _| {
            let rows: Vec<_> = (0..16).map(|r| e.load(e.gep_const(args[0], Elem::F32, 16 * r), F32X16)).collect();
            for (r, v) in e.transpose16(&rows).into_iter().enumerate() {
                e.store(v, e.gep_const(args[1], Elem::F32, 16 * r as i64));
            }
        });
        let mut args = [bytes(&x), bytes(&x)];
        code.call("f", 1, &mut args, 0).expect("runs");
        let y = floats(&args[1]);
        assert!((0..16).all(|r| (0..16).all(|c| y[16 * r + c] == x[16 * c + r])));
    }
}

#[test]
fn tails_touch_only_their_elements() {
    for dtype in [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I8, DType::Bool] {
        for n in [1, 3, 7, 8, 13, 15, 16] {
            for tier in tiers() {
                let code = load(tier, 2, |e, _, args, _| {
                    let v = memory::load(e, args[0], dtype, 16, n);
                    memory::store(e, v, args[1], dtype, n);
                });
                let size = dtype.bytes();
                // 0 and 1 are values of every dtype, in every byte order of the pattern.
                let element = |i: usize| match dtype {
                    DType::F32 => ((i % 2) as f32).to_le_bytes().to_vec(),
                    DType::Bf16 => half::bf16::from_f32((i % 2) as f32).to_le_bytes().to_vec(),
                    DType::F16 => half::f16::from_f32((i % 2) as f32).to_le_bytes().to_vec(),
                    DType::I32 => ((i % 2) as i32).to_le_bytes().to_vec(),
                    DType::I8 | DType::Bool => vec![(i % 2) as u8],
                };
                let source: Vec<u8> = (1..=n as usize).flat_map(element).collect();
                // `call` checks the bytes after the end of both arguments.
                let mut args = [source.clone(), vec![0x55; n as usize * size]];
                code.call("f", 1, &mut args, 0).expect("runs");
                assert_eq!(args[1], source, "{dtype:?} x {n} on {tier:?}");
            }
        }
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let mut x: Vec<f32> = (0..4096u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x1357)).collect();
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0, -0.0, 1.0, 3.0]);
    x.extend([f32::NAN; 8]);
    let n = x.len();
    for tier in tiers() {
        let code = load(tier, 2, |e, _, args, _| {
            e.each(0, n as i64, 16, |e, i| {
                let v = e.load(e.gep(args[0], Elem::F32, i), F32X16);
                e.store(e.to_bf16(v), e.gep(args[1], Elem::Bf16, i));
            });
        });
        let mut args = [bytes(&x), vec![0; 2 * n]];
        code.call("f", 1, &mut args, 0).expect("runs");
        for (x, y) in x.iter().zip(args[1].chunks_exact(2)) {
            let (got, want) = (half::bf16::from_le_bytes([y[0], y[1]]), half::bf16::from_f32(*x));
            assert!(got == want || (got.is_nan() && want.is_nan()), "{x:e}: {got} but {want}");
        }
    }
}

#[test]
fn loops_branches_and_reductions() {
    for tier in tiers() {
        // out[task] = sum over 37 rows of (lane sums of row) for even rows only.
        let code = load(tier, 2, |e, task, args, _| {
            let sum = e.for_(e.i(0), e.i(37), e.i(1), &[e.fconst(F32, 0.0)], |e, i, acc| {
                let even = e.cmp(Cmp::Eq, e.and(i, e.i(1)), e.i(0));
                e.if_(
                    even,
                    &[F32],
                    |e| {
                        let v = e.load(e.gep(args[0], Elem::F32, e.mul_n(i, 16)), F32X16);
                        vec![e.add(acc[0], e.reduce(v, |a, b| e.add(a, b)))]
                    },
                    |_| vec![acc[0]],
                )
            });
            e.store(sum[0], e.gep(args[1], Elem::F32, task));
        });
        let x: Vec<f32> = (0..37 * 16).map(|i| (i % 13) as f32).collect();
        let mut args = [bytes(&x), bytes(&[0.0; 3])];
        code.call("f", 3, &mut args, 0).expect("runs");
        let want: f32 = x.chunks(16).step_by(2).flatten().sum();
        assert_eq!(floats(&args[1]), [want; 3]);
    }
}

#[test]
fn bf16_dot_has_even_lane_first() {
    if !super::super::jit::available(Tier::Avx512Bf16) {
        return;
    }
    let code = load(Tier::Avx512Bf16, 3, |e, _, args, _| {
        let pairs = Ty::vec(32, Elem::Bf16);
        let (a, b) = (e.load(args[0], I32X16), e.load(args[1], I32X16));
        let acc = e.dot_bf16(e.zero(F32X16), e.bitcast(a, pairs), e.bitcast(b, pairs));
        e.store(acc, args[2]);
    });
    let bf16 =
        |f: fn(usize) -> f32| -> Vec<u8> { (0..32).flat_map(|i| half::bf16::from_f32(f(i)).to_le_bytes()).collect() };
    let mut args = [bf16(|i| i as f32), bf16(|i| (i % 3) as f32), bytes(&[0.0; 16])];
    code.call("f", 1, &mut args, 0).expect("runs");
    let want: Vec<f32> = (0..16).map(|l| (2 * l * ((2 * l) % 3) + (2 * l + 1) * ((2 * l + 1) % 3)) as f32).collect();
    assert_eq!(floats(&args[2]), want);
}

#[test]
fn invalid_ir_is_an_error_with_mlir_words() {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::V3);
    unit.kernel("f", 1, |e, _, args, _| {
        e.op("arith.addi", &[args[0], args[0]], &[I64], &[]);
    });
    let error = object::compile_unit(&context, unit, "bad", Tier::V3).expect_err("does not verify");
    assert!(error.contains("arith.addi"), "{error}");
}

#[test]
fn text_parses_back() {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::V3);
    unit.kernel("f", 1, |e, _, args, _| e.store(e.f(1.5), args[0]));
    let text = unit.module().as_operation().to_string();
    let parsed = passes::parse(&context, &text).expect("parses");
    assert_eq!(parsed.as_operation().to_string(), text);
    insta::assert_snapshot!(text);
    let error = passes::parse(&context, "module { nonsense }").map(|_| ()).expect_err("no module");
    assert!(error.contains("nonsense") || error.contains("expected"), "{error}");
}
