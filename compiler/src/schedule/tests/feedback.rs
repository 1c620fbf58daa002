//! Rounding with feedback: brought into the kernel's form from any layout, and the codes of a published system.

use super::{Scheduled, contents, families, same};
use crate::graph::build::Builder;
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::{AxisRole, BufferKind, DType, Graph, NodeId};
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

/// Order of visits and factor of `h` \[n, n\] as the published program has them, in f64: columns by descending diagonal, the upper triangular U with `U' U` the
/// inverse. Columns without any input get a 1 on the diagonal; they are also given.
fn factor(mut h: Vec<f64>, n: usize) -> (Vec<usize>, Vec<bool>, Vec<f64>) {
    let live: Vec<bool> = (0..n).map(|c| h[c * n + c] != 0.0).collect();
    (0..n).filter(|c| !live[*c]).for_each(|c| h[c * n + c] = 1.0);
    let damp = 0.01 * (0..n).map(|c| h[c * n + c]).sum::<f64>() / n as f64;
    (0..n).for_each(|c| h[c * n + c] += damp);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| h[b * n + b].total_cmp(&h[a * n + a]));
    let mut a: Vec<f64> = order.iter().flat_map(|r| order.iter().map(|c| h[r * n + c]).collect::<Vec<_>>()).collect();
    // Gauss and Jordan, pivots on the diagonal of a positive definite matrix.
    for p in 0..n {
        let pivot = a[p * n + p];
        a[p * n + p] = 1.0;
        (0..n).for_each(|c| a[p * n + c] /= pivot);
        for r in (0..n).filter(|r| *r != p) {
            let times = std::mem::replace(&mut a[r * n + p], 0.0);
            (0..n).for_each(|c| a[r * n + c] -= times * a[p * n + c]);
        }
    }
    let mut u = vec![0.0; n * n];
    for j in 0..n {
        for k in j..n {
            let rest = a[j * n + k] - (0..j).map(|i| u[i * n + j] * u[i * n + k]).sum::<f64>();
            u[j * n + k] = if k == j { libm::sqrt(rest) } else { rest / u[j * n + j] };
        }
    }
    (order, live, u)
}

/// Weights, input correlations, scales and codes of the published program (its own order of operations, in blocks of 128 columns): the interpreter and, for a
/// matrix with columns without input and for the extra heavy-tailed one, the kernels of CPU and GPU.
#[test]
fn codes_are_those_of_the_published_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/S1541");
    let [golden, weights] =
        ["quant", "weights"].map(|f| Reader::open(&folder.join(f).with_extension("safetensors")).unwrap());
    let floats =
        |file: &Reader, name: &str| -> Vec<f64> { file.f32(name).unwrap().into_iter().map(f64::from).collect() };
    let (mut matrices, mut dead) = (0, 0);
    for name in golden.entries().keys().filter_map(|n| n.strip_prefix("q.")) {
        let (scale, h) = (floats(&golden, &format!("scale.{name}")), floats(&golden, &format!("hessian.{name}")));
        let w = if name == "extra.heavy" { floats(&golden, "weight.extra.heavy") } else { floats(&weights, name) };
        let (rows, n) = (scale.len(), w.len() / scale.len());
        let (order, live, u) = factor(h, n);
        let table = name == "tok_emb.weight";
        let g = graph(rows, n, false, true, if table { 127.0 } else { 31.0 });
        let tensor = |dims: &[usize], data: Vec<f64>| Tensor::new(dims, data).unwrap();
        let given: Contents = [
            ("w", tensor(&[rows, n], w)),
            ("scale", tensor(&[rows], scale)),
            ("order", tensor(&[n], order.iter().map(|c| *c as f64).collect())),
            ("live", tensor(&[n], live.iter().map(|l| f64::from(*l)).collect())),
            ("upper", tensor(&[n, n], u.iter().map(|x| f64::from(*x as f32)).collect())),
        ]
        .map(|(name, t)| (name.to_string(), t))
        .into();
        let found = interpret(&g, &given).unwrap();
        let codes: Vec<_> = golden.i8(&format!("q.{name}")).unwrap().into_iter().map(f64::from).collect();
        let other = found["codes"].data.iter().zip(&codes).filter(|(a, b)| a != b).count();
        assert!(other * 1000 <= codes.len(), "{name}: {other} of {} codes", codes.len());
        let columns = live.iter().filter(|l| !**l).count();
        if columns > 0 || name == "extra.heavy" {
            same_everywhere(&g, &given);
        }
        (matrices, dead) = (matrices + 1, dead + columns);
    }
    assert_eq!((matrices, dead), (14, 2));
}
