//! Contractions that cuBLASLt does, where a tuning table says so.
//!
//! *Takes* a [`Gemm`]; *gives* the [`Product`] that the library is asked for, and its one launch, which has no code; *promises* that whatever the library could not do
//! exactly so (an epilogue, operands that would have to be copied) is refused with a reason.

use crate::graph::ir::{DType, EffectMode, Op};
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::{Launch, LaunchArg};
use golf_runtime::plan::{Factor, Product};

/// The word of tuning tables, and the entry's name.
pub const NAME: &str = "cublaslt";
/// Memory a product may use for sums of pieces of k: what NVIDIA advises for Hopper, bytes.
const WORKSPACE: u64 = 32 << 20;

/// The product. Error: why the library is not asked for it.
pub fn product(g: &Gemm) -> Result<Product, String> {
    super::gemm::check(g)?;
    let [effect] = &g.epilogue.effects[..] else { return Err("it has several results".into()) };
    if g.symmetric {
        return Err("its result is symmetric".into());
    }
    if !matches!(g.epilogue.nodes[effect.value.0 as usize].op, Op::Read(b) if b.0 == 0) {
        return Err("it computes more than the product".into());
    }
    let dtype = g.epilogue.buffers[effect.buffer.0 as usize].ty.dtype;
    if ![DType::F32, DType::Bf16].contains(&dtype) {
        return Err(format!("its result is {dtype:?}"));
    }
    let batch: Vec<usize> = (0..g.batch.len()).filter(|&i| g.batch[i] > 1).collect();
    let batch = match batch[..] {
        [] => None,
        [one] => Some(one),
        _ => return Err("its matrices have several batch axes".into()),
    };
    let factor =
        |dtype: DType, offset: i64, inner: bool, pitch: i64, (along, other): (usize, usize), strides: &[i64]| {
            // The distance of a single row means nothing, but must be valid.
            let pitch = if other == 1 { along as i64 } else { pitch };
            let stride = batch.map_or(0, |i| strides[i]);
            if pitch < along as i64 || offset < 0 || stride < 0 {
                return Err("its matrices lie in an order that the library does not know".to_string());
            }
            let (offset, pitch, batch) = (offset as u64, pitch as u64, stride as u64);
            Ok(Factor { dtype, offset, inner, pitch, batch })
        };
    let operand = |name: &str, o: &Operand, rows: usize| {
        if o.dtype != DType::Bf16 {
            return Err(format!("operand {name} is {:?}", o.dtype));
        }
        let inner = o.k == 1;
        let (extents, pitch) = if inner { ((g.k, rows), o.row) } else { ((rows, g.k), o.k) };
        factor(o.dtype, o.offset, inner, pitch, extents, &o.batch)
    };
    let out = &g.args[effect.buffer.0 as usize - 1];
    if out.n != 1 {
        return Err("its result is not stored by rows".into());
    }
    Ok(Product {
        m: g.m as u64,
        n: g.n as u64,
        k: g.k as u64,
        batch: batch.map_or(1, |i| g.batch[i] as u64),
        a: operand("A", &g.a, g.m)?,
        b: operand("B", &g.b, g.n)?,
        d: factor(dtype, out.offset, true, out.m, (g.n, g.m), &out.batch)?,
        accumulate: effect.mode == EffectMode::Accumulate,
        workspace: WORKSPACE,
    })
}

/// The launch.
pub fn launches(g: &Gemm) -> Vec<Launch> {
    let own = super::gemm::launches(g);
    vec![Launch {
        entry: NAME,
        tasks: 1,
        args: vec![LaunchArg::Arg(0), LaunchArg::Arg(1), LaunchArg::Arg(2), LaunchArg::Temp(0)],
        scratch: 0,
        flops: own.iter().map(|l| l.flops).max().unwrap_or(0),
        bytes: own.iter().map(|l| l.bytes).max().unwrap_or(0),
        gpu: None,
    }]
}

/// Bytes of each temporary.
pub fn temps() -> Vec<u64> {
    vec![WORKSPACE]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::build::Builder;
    use crate::graph::ir::{AxisRole, BufferKind, Graph, Unary};
    use crate::kernel::epilogue::EpilogueArg;
    use crate::kernel::gpu::{Arch, tuning::Tuning};
    use crate::kernel::{Kernel, Target};

    fn epilogue(dtype: DType, mode: EffectMode, op: Option<Unary>) -> Graph {
        let mut b = Builder::new("epilogue", DType::F32);
        let axes = [b.axis("m", 96, AxisRole::Plain).unwrap(), b.axis("n", 40, AxisRole::Plain).unwrap()];
        let acc = b.buffer("acc", DType::F32, &axes, BufferKind::Input).unwrap();
        let mut x = b.read(acc).unwrap();
        if let Some(op) = op {
            x = b.unary(op, x).unwrap();
        }
        let out = b.buffer("out", dtype, &axes, BufferKind::Output).unwrap();
        match mode {
            EffectMode::Assign => b.assign(out, x).unwrap(),
            EffectMode::Accumulate => b.accumulate(out, x).unwrap(),
        };
        b.finish()
    }

    /// 3 products of 96 x 40 x 64; A is read by columns.
    fn gemm() -> Gemm {
        Gemm {
            batch: vec![1, 3],
            m: 96,
            n: 40,
            k: 64,
            a: Operand { dtype: DType::Bf16, offset: 8, row: 1, k: 104, batch: vec![0, 64 * 104] },
            b: Operand { dtype: DType::Bf16, offset: 0, row: 64, k: 1, batch: vec![0, 0] },
            compute: DType::Bf16,
            symmetric: false,
            accumulate: false,
            epilogue: epilogue(DType::Bf16, EffectMode::Assign, None),
            args: vec![EpilogueArg { offset: 16, batch: vec![0, 96 * 48], m: 48, n: 1 }],
            cut: None,
            library: false,
        }
    }

    #[test]
    fn a_bare_product_is_asked_for_as_it_lies() {
        let p = product(&gemm()).unwrap();
        let bf16 = DType::Bf16;
        assert_eq!((p.m, p.n, p.k, p.batch, p.accumulate), (96, 40, 64, 3, false));
        assert_eq!(p.a, Factor { dtype: bf16, offset: 8, inner: false, pitch: 104, batch: 64 * 104 });
        assert_eq!(p.b, Factor { dtype: bf16, offset: 0, inner: true, pitch: 64, batch: 0 });
        assert_eq!(p.d, Factor { dtype: bf16, offset: 16, inner: true, pitch: 48, batch: 96 * 48 });
        let sum = epilogue(DType::F32, EffectMode::Accumulate, None);
        assert!(product(&Gemm { accumulate: true, epilogue: sum, ..gemm() }).unwrap().accumulate);
    }

    #[test]
    fn what_the_library_would_do_otherwise_is_refused() {
        let more = epilogue(DType::Bf16, EffectMode::Assign, Some(Unary::Exp));
        let wide = Operand { dtype: DType::F32, ..gemm().a };
        for (g, why) in [
            (Gemm { epilogue: more, ..gemm() }, "more than the product"),
            (Gemm { a: wide, ..gemm() }, "operand A is F32"),
            (Gemm { batch: vec![2, 3], ..gemm() }, "several batch axes"),
            (
                Gemm { args: vec![EpilogueArg { m: 1, n: 96, ..gemm().args[0].clone() }], ..gemm() },
                "not stored by rows",
            ),
        ] {
            let found = product(&g).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }

    #[test]
    fn a_table_gives_a_product_to_the_library() {
        let mut kernels = [Kernel::Gemm(gemm())];
        let symbol = kernels[0].symbol();
        let table = Tuning::parse(&format!("{symbol} {NAME}")).unwrap();
        table.apply(kernels.iter_mut()).unwrap();
        let (target, k) = (Target::Gpu(Arch::Sm90a), &kernels[0]);
        assert_eq!((k.plain_symbol(), k.symbol()), (symbol.clone(), symbol.clone()));
        table.check_used(kernels.iter()).unwrap();
        assert_eq!(target.product(k), Some(product(&gemm()).unwrap()));
        assert_eq!((target.launches(k)[0].entry, target.temps(k)), (NAME, vec![WORKSPACE]));
        assert_eq!(target.check(k), Ok(()));
        let more = epilogue(DType::Bf16, EffectMode::Assign, Some(Unary::Exp));
        let mut other = [Kernel::Gemm(Gemm { epilogue: more, ..gemm() })];
        let table = Tuning::parse(&format!("{} {NAME}", other[0].symbol())).unwrap();
        let why = table.apply(other.iter_mut()).unwrap_err();
        assert!(
            why.starts_with("line 1: ") && why.ends_with("cuBLASLt cannot: it computes more than the product"),
            "{why}"
        );
        assert!(Tuning::parse("* cublaslt").is_err());
    }
}
