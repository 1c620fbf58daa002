//! Rounding with feedback: brought into the kernel's form from any layout, and the codes of a published system.

use super::{Scheduled, contents, families, same};
use crate::graph::build::Builder;
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::{AxisRole, BufferKind, DType, Graph, NodeId};
use golf_runtime::device::Pool;
use golf_runtime::plan::InverseFactor;
use golf_runtime::quant::inverse::Factor;
use golf_runtime::safetensors::Reader;
use std::path::Path;

/// A graph that rounds `w` to codes of at most `most` and gives them and their values. `turned`: `w` and `upper` are stored the other way round; `narrow`: scales are
/// rounded to f16 and `w` is multiplied by `live`.
fn graph(rows: usize, n: usize, turned: bool, narrow: bool, most: f64) -> Graph {
    let mut b = Builder::new("pack", DType::F32);
    let [r, c] = [("r", rows), ("c", n)].map(|(name, size)| b.axis(name, size, AxisRole::Plain).unwrap());
    let k = b.twin(c);
    let read = |b: &mut Builder, name: &str, dtype, axes: &[_]| -> NodeId {
        let buffer = b.buffer(name, dtype, axes, BufferKind::Input).unwrap();
        b.read(buffer).unwrap()
    };
    let w = read(&mut b, "w", DType::F32, &if turned { [c, r] } else { [r, c] });
    let upper = read(&mut b, "upper", DType::F32, &if turned { [k, c] } else { [c, k] });
    let order = read(&mut b, "order", DType::I32, &[c]);
    let scale = read(&mut b, "scale", DType::F32, &[r]);
    let (w, scale) = if narrow {
        let live = read(&mut b, "live", DType::F32, &[c]);
        (b.mul(w, live).unwrap(), b.cast(scale, DType::F16).unwrap())
    } else {
        (w, scale)
    };
    let q = b.feedback_round(w, scale, order, upper, c, -most, most).unwrap();
    let codes = b.cast(q, DType::I8).unwrap();
    let back = b.mul(q, scale).unwrap();
    for (name, dtype, x) in [("codes", DType::I8, codes), ("back", DType::F32, back)] {
        let buffer = b.buffer(name, dtype, &[r, c], BufferKind::Output).unwrap();
        b.assign(buffer, x).unwrap();
    }
    b.finish()
}

/// [`same`], and the kernels of both kinds of GPU on the emulator.
fn same_everywhere(g: &Graph, given: &Contents) -> Scheduled {
    #[cfg(feature = "mlir")]
    {
        use super::{Options, close, schedule_with};
        use crate::emulate;
        use crate::kernel::{Target, gpu::Arch};
        let expected = interpret(g, given).unwrap();
        for arch in Arch::ALL {
            let options = Options { target: Target::Gpu(arch), ..Options::default() };
            let s = schedule_with(g, &options).unwrap();
            let got = emulate::graph(&s, arch, given, &emulate::Options::default()).unwrap_or_else(|e| panic!("{e}"));
            close(g, &s, &got, &expected, 1e-6);
        }
    }
    same(g, given, 1e-6)
}

#[test]
fn operands_of_any_layout_come_into_the_kernels_form() {
    let (rows, n) = (40, 33);
    for (turned, narrow) in [(false, false), (true, false), (false, true), (true, true)] {
        let g = graph(rows, n, turned, narrow, 31.0);
        let mut given = contents(&g, &[]);
        let scale = given["scale"].data.iter().map(|x| 0.01 + x.abs() / 16.0).collect();
        given.insert("scale".to_string(), Tensor { dims: vec![rows], data: scale });
        given.insert("order".to_string(), Tensor::from_fn(&[n], |j| ((7 * j + 3) % n) as f64));
        let upper = given.get_mut("upper").unwrap();
        for (i, u) in upper.data.iter_mut().enumerate() {
            let (j, k) = if turned { (i % n, i / n) } else { (i / n, i % n) };
            // What lies below the diagonal is not looked at.
            *u = if j == k { 1.0 + *u / 4.0 } else { *u / 8.0 };
        }
        let done = same_everywhere(&g, &given);
        let kernels = families(&done);
        assert_eq!(kernels.iter().filter(|f| **f == "feedback").count(), 1, "{kernels:?}");
        if !turned && !narrow {
            assert_eq!(kernels, ["feedback", "row"], "nothing has to be copied");
        }
    }
}

/// Weights, input correlations, scales and codes of the published program (its own order of operations, in blocks of 128 columns) with the runtime's factor:
/// the interpreter and, for a matrix with columns without input and for the extra heavy-tailed one, the kernels of CPU and GPU.
#[test]
fn codes_are_those_of_the_published_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/S1541");
    let [golden, weights] =
        ["quant", "weights"].map(|f| Reader::open(&folder.join(f).with_extension("safetensors")).unwrap());
    let floats =
        |file: &Reader, name: &str| -> Vec<f64> { file.f32(name).unwrap().into_iter().map(f64::from).collect() };
    let (how, mut pool) = (InverseFactor { tap: String::new(), damp: 0.01, descending: true }, Pool::new(1).unwrap());
    let (mut matrices, mut dead) = (0, 0);
    for name in golden.entries().keys().filter_map(|n| n.strip_prefix("q.")) {
        let scale = floats(&golden, &format!("scale.{name}"));
        let w = if name == "extra.heavy" { floats(&golden, "weight.extra.heavy") } else { floats(&weights, name) };
        let (rows, n) = (scale.len(), w.len() / scale.len());
        let h = golden.f32(&format!("hessian.{name}")).unwrap();
        let factor = Factor::new(&h, n, &how, &mut pool).unwrap();
        let columns = factor.live.iter().filter(|l| **l == 0.0).count();
        let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect();
        let table = name == "tok_emb.weight";
        let g = graph(rows, n, false, true, if table { 127.0 } else { 31.0 });
        let tensor = |dims: &[usize], data: Vec<f64>| Tensor::new(dims, data).unwrap();
        let given: Contents = [
            ("w", tensor(&[rows, n], w)),
            ("scale", tensor(&[rows], scale)),
            ("order", tensor(&[n], factor.order.iter().map(|c| f64::from(*c)).collect())),
            ("live", tensor(&[n], wide(&factor.live))),
            ("upper", tensor(&[n, n], wide(&factor.upper))),
        ]
        .map(|(name, t)| (name.to_string(), t))
        .into();
        let found = interpret(&g, &given).unwrap();
        let codes: Vec<_> = golden.i8(&format!("q.{name}")).unwrap().into_iter().map(f64::from).collect();
        let other = found["codes"].data.iter().zip(&codes).filter(|(a, b)| a != b).count();
        assert!(other * 1000 <= codes.len(), "{name}: {other} of {} codes", codes.len());
        if columns > 0 || name == "extra.heavy" {
            same_everywhere(&g, &given);
        }
        (matrices, dead) = (matrices + 1, dead + columns);
    }
    assert_eq!((matrices, dead), (14, 2));
}
