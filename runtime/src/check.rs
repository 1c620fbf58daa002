//! Is a plan fit to run?
//!
//! *Takes* a decoded [`Program`]; *gives* nothing or the first thing that does not fit; *promises* that a program which passes has
//! every index in range, every buffer inside its segment and aligned, the graphs and inputs that training, packing and scoring
//! name, and no arithmetic overflow waiting in its sizes. The plan comes out of our own executable, so a failure means that the file is
//! damaged or golfc has a bug; either way the run must not start.

use crate::error::{Error, Result};
use crate::plan::{
    Buffer, Builtin, CALIBRATE, Call, DType, FEEDBACK_ROWS, Factor, GraphPlan, Grid, HostExpr, HostOp, Init,
    PLAN_VERSION, Place, Product, Program, Segment, TAP, Variant,
};

/// Dynamic shared memory of a block at most, bytes: Hopper's.
const MOST_SHARED: u32 = 227 << 10;

fn bad<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::input(format!("the plan inside this executable is damaged: {what}")))
}

/// Checks everything. See the module's promise.
pub fn program(p: &Program) -> Result<()> {
    if p.version != PLAN_VERSION {
        return bad(format!("version {}, expected {PLAN_VERSION}", p.version));
    }
    if p.tiers.is_empty() || p.variants.is_empty() {
        return bad("no code for any device");
    }
    if p.predicted_rss.len() != p.variants.len() {
        return bad("memory predictions and variants differ in number");
    }
    train(p)?;
    for v in &p.variants {
        variant(p, v).map_err(|e| Error::input(format!("{e} (variant {})", v.precision)))?;
    }
    Ok(())
}

fn train(p: &Program) -> Result<()> {
    let t = &p.train;
    let rows = u64::from(t.ranks) * u64::from(t.seq);
    if t.seq == 0 || rows == 0 || t.batch == 0 || !t.batch.is_multiple_of(rows) {
        return bad(format!("batch {} is no multiple of ranks {} x seq {}", t.batch, t.ranks, t.seq));
    }
    if !(t.stop.is_finite() && t.stop > 0.0) || t.iterations == 0 {
        return bad("no time or steps to train");
    }
    let e = &p.evaluate;
    if e.window == 0 || e.stride == 0 || !e.window.is_multiple_of(e.stride) {
        return bad(format!("window {} and stride {} do not fit", e.window, e.stride));
    }
    if let Some(a) = &e.adapt {
        if a.chunk == 0 || a.batch == 0 {
            return bad("the adaptation's sizes do not fit");
        }
        a.hypers.iter().try_for_each(|h| expr(&h.value))?;
    }
    if let Some(c) = &p.quantize.calibrate {
        let tokens = c.sequences.checked_mul(u64::from(t.seq));
        if tokens.is_none_or(|n| n == 0) || !(0.0..t.stop).contains(&c.reserve) {
            return bad("no sequences to calibrate on, or no time left to train");
        }
    }
    expr(&t.schedule)?;
    t.hypers.iter().try_for_each(|h| expr(&h.value))?;
    t.averages.iter().try_for_each(|a| expr(&a.when))
}

fn expr(e: &HostExpr) -> Result<()> {
    let fits = |i: usize, used: &[u32]| used.iter().all(|&u| (u as usize) < i);
    let ok = e.ops.iter().enumerate().all(|(i, op)| match op {
        HostOp::Const(_) | HostOp::Clock(_) => true,
        HostOp::Unary(_, a) => fits(i, &[*a]),
        HostOp::Binary(_, a, b) => fits(i, &[*a, *b]),
        HostOp::Select(c, a, b) => fits(i, &[*c, *a, *b]),
    });
    if ok && !e.ops.is_empty() { Ok(()) } else { bad("a host expression refers to a later value") }
}

fn rows(p: &Program, v: &Variant) -> Result<()> {
    let (t, r) = (&p.train, &v.rows);
    let rows = t.batch / u64::from(t.ranks) / u64::from(t.seq);
    if r.train == 0 || !rows.is_multiple_of(u64::from(r.train)) {
        return bad(format!("{} rows a micro-batch do not divide {rows} rows", r.train));
    }
    let adapt = p.evaluate.adapt.as_ref().map_or(1, |a| a.batch);
    if r.score == 0 || r.adapt == 0 || !adapt.is_multiple_of(r.adapt) {
        return bad("the rows of an evaluation do not fit");
    }
    Ok(())
}

fn variant(p: &Program, v: &Variant) -> Result<()> {
    rows(p, v)?;
    let state = |b: &Buffer| b.place.segment == Segment::State;
    if !v.state.iter().all(state) || !v.grads.iter().all(|b| b.place.segment == Segment::Grad) {
        return bad("a state or gradient buffer lies in the wrong segment");
    }
    for b in v.state.iter().chain(&v.grads) {
        buffer(v, b, 0)?;
    }
    for param in &v.params {
        let Some(b) = v.state.get(param.buffer as usize) else { return bad("a parameter has no buffer") };
        init(v, b, &param.init)?;
    }
    for (index, how) in &v.state_init {
        let Some(b) = v.state.get(*index as usize) else { return bad("an initial value has no buffer") };
        init(v, b, how)?;
    }
    let covered = v.params.iter().map(|p| p.buffer).chain(v.state_init.iter().map(|s| s.0));
    let mut covered = covered.collect::<Vec<_>>();
    covered.sort_unstable();
    if covered != (0..v.state.len() as u32).collect::<Vec<_>>() {
        return bad("state buffers without or with two initial values");
    }
    v.graphs.iter().try_for_each(|g| graph(v, g))?;
    named_graphs(p, v)
}

fn init(v: &Variant, b: &Buffer, how: &Init) -> Result<()> {
    match how {
        Init::Fill(_) | Init::Normal(_) | Init::Uniform(_) => Ok(()),
        Init::Orthogonal(_) if b.shape.len() == 2 => Ok(()),
        Init::Orthogonal(_) => bad(format!("{} is to be orthogonal and has {} axes", b.name, b.shape.len())),
        Init::Rows(rows) if b.shape.first() == Some(&rows.len()) => Ok(()),
        Init::Rows(rows) => bad(format!("{} starts from {} rows and has shape {:?}", b.name, rows.len(), b.shape)),
        Init::CopyOf(name) => match v.params.iter().map(|p| &v.state[p.buffer as usize]).find(|s| &s.name == name) {
            Some(source) if source.shape == b.shape => Ok(()),
            Some(_) => bad(format!("{} copies {name} of another shape", b.name)),
            None => bad(format!("{} copies {name}, which is no parameter", b.name)),
        },
    }
}

/// Size of a segment as graph `g` sees it; `scratch` is the graph's own.
fn segment_bytes(v: &Variant, segment: Segment, scratch: u64) -> u64 {
    match segment {
        Segment::State => v.state_bytes,
        Segment::Grad => v.grad_bytes,
        Segment::Scratch => scratch,
        Segment::Const => v.constants.len() as u64,
    }
}

fn buffer(v: &Variant, b: &Buffer, scratch: u64) -> Result<()> {
    let numel = b.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let bytes = numel.and_then(|n| n.checked_mul(b.dtype.bytes() as u64));
    let end = bytes.and_then(|n| n.checked_add(b.place.offset));
    let size = segment_bytes(v, b.place.segment, scratch);
    match end {
        Some(end) if end <= size && b.place.offset.is_multiple_of(64) => Ok(()),
        _ => bad(format!(
            "buffer {} at {} does not fit in {size} bytes of {:?}",
            b.name, b.place.offset, b.place.segment
        )),
    }
}

fn graph(v: &Variant, g: &GraphPlan) -> Result<()> {
    for b in g.inputs.iter().chain(&g.outputs) {
        buffer(v, b, g.scratch)?;
    }
    for (i, call) in g.calls.iter().enumerate() {
        if call.after.iter().any(|&a| a as usize >= i) {
            return bad(format!("{}: a call waits for a later one", g.name));
        }
        let Some(kernel) = v.kernels.get(call.kernel as usize) else {
            return bad(format!("{} calls kernel {} of {}", g.name, call.kernel, v.kernels.len()));
        };
        if v.device != "cpu" {
            match &kernel.product {
                Some(p) => product_call(v, call, &kernel.symbol, p, g.scratch)?,
                None => {
                    let grid = kernel.gpu.as_ref().filter(|_| kernel.builtin.is_none());
                    gpu_call(v, call, &kernel.symbol, grid, g.scratch)?;
                }
            }
        }
        let inside = |p: &Place| p.offset <= segment_bytes(v, p.segment, g.scratch);
        if !call.args.iter().all(inside) {
            return bad(format!("{} passes {} memory outside its segment", g.name, kernel.symbol));
        }
        // All of a built-in's elements have four bytes.
        let have = |elements: &[u64]| {
            let room = |p: &Place| segment_bytes(v, p.segment, g.scratch) - p.offset;
            let fits = |(n, p): (&u64, &Place)| n.checked_mul(4).is_some_and(|need| need <= room(p));
            call.args.len() == elements.len() && elements.iter().zip(&call.args).all(fits)
        };
        match &kernel.builtin {
            Some(Builtin::Quantile { n, q }) => {
                let rows = u64::from(call.tasks);
                if *n == 0 || !(0.0..=1.0).contains(q) || !have(&[n.saturating_mul(rows), rows]) {
                    return bad(format!("{}: a quantile's sizes do not fit", g.name));
                }
            }
            Some(Builtin::FeedbackRound { rows, n, low, high }) => {
                let all = rows.saturating_mul(*n);
                if *n == 0
                    || u64::from(call.tasks) != rows.div_ceil(FEEDBACK_ROWS)
                    || !(low <= high)
                    || !have(&[all, *rows, *n, n.saturating_mul(*n), all])
                {
                    return bad(format!("{}: the sizes of rounding with feedback do not fit", g.name));
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// A product as cuBLASLt will take it: four arguments, every matrix inside its segment.
fn product_call(v: &Variant, call: &Call, symbol: &str, p: &Product, scratch: u64) -> Result<()> {
    let room = |place: &Place| segment_bytes(v, place.segment, scratch).saturating_sub(place.offset);
    let fits = |place: &Place, f: &Factor, inner: u64, other: u64| {
        let (along, across) = if f.inner { (inner, other) } else { (other, inner) };
        let steps = [(p.batch, f.batch), (across, f.pitch), (along, 1)];
        let last =
            steps.iter().try_fold(f.offset, |sum, &(n, step)| n.checked_sub(1)?.checked_mul(step)?.checked_add(sum));
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(f.dtype.bytes() as u64));
        f.pitch >= along && end.is_some_and(|end| end <= room(place))
    };
    let sizes = [p.m, p.n, p.k, p.batch].iter().all(|n| (1..1 << 31).contains(n));
    let bf16 = p.a.dtype == DType::Bf16 && p.b.dtype == DType::Bf16 && matches!(p.d.dtype, DType::Bf16 | DType::F32);
    let right = match &call.args[..] {
        [a, b, d, workspace] => {
            fits(a, &p.a, p.k, p.m)
                && fits(b, &p.b, p.k, p.n)
                && fits(d, &p.d, p.n, p.m)
                && p.d.inner
                && p.workspace <= room(workspace)
        }
        _ => false,
    };
    if sizes && bf16 && right { Ok(()) } else { bad(format!("{symbol}: the sizes of a product do not fit")) }
}

/// A launch as the driver will take it: a grid, code, and tensor maps that the bulk copy engine can use.
fn gpu_call(v: &Variant, call: &Call, symbol: &str, grid: Option<&Grid>, scratch: u64) -> Result<()> {
    let Some(grid) = grid else { return bad(format!("{symbol} cannot run on a GPU")) };
    if grid.module as usize >= v.modules.len() || call.tasks == 0 || call.tasks > i32::MAX as u32 {
        return bad(format!("{symbol} has no code or no blocks"));
    }
    if !(1..=1024).contains(&grid.threads) || grid.shared > MOST_SHARED {
        return bad(format!("{symbol} has {} threads and {} bytes of shared memory", grid.threads, grid.shared));
    }
    for m in &grid.maps {
        let Some(place) = call.args.get(m.arg as usize) else {
            return bad(format!("{symbol} maps argument {} of {}", m.arg, call.args.len()));
        };
        let (rank, bytes) = (m.dims.len(), m.dtype.bytes() as u64);
        let row = u64::from(m.tile.first().copied().unwrap_or(0)) * bytes;
        let last = m.dims.iter().skip(1).zip(&m.strides).try_fold(0u64, |sum, (&d, &s)| {
            d.checked_sub(1).and_then(|d| d.checked_mul(s)).and_then(|x| x.checked_add(sum))
        });
        let first = place.offset.checked_add(m.offset);
        let row_end = m.dims.first().and_then(|d| d.checked_mul(bytes));
        let end = first.zip(last).zip(row_end).and_then(|((a, b), c)| a.checked_add(b)?.checked_add(c));
        let fits = matches!(m.dtype, DType::F32 | DType::Bf16)
            && (1..=5).contains(&rank)
            && m.strides.len() + 1 == rank
            && m.tile.len() == rank
            && m.dims.iter().all(|&d| (1..=1 << 32).contains(&d))
            && m.strides.iter().all(|&s| s % 16 == 0 && s < 1 << 40)
            && m.tile.iter().all(|t| (1..=256).contains(t))
            && row % 16 == 0
            && [0, 32, 64, 128].contains(&m.swizzle)
            && (m.swizzle == 0 || row <= u64::from(m.swizzle))
            && first.is_some_and(|a| a % 16 == 0)
            && end.is_some_and(|end| end <= segment_bytes(v, place.segment, scratch));
        if !fits {
            return bad(format!("{symbol} at {place:?}: the bulk copy engine cannot use {m:?}"));
        }
    }
    Ok(())
}

/// The graphs that the documentation of [`Variant`] promises, with their inputs and outputs.
fn named_graphs(p: &Program, v: &Variant) -> Result<()> {
    let (t, e) = (&p.train, &p.evaluate);
    let (seq, window) = (t.seq as usize, e.window as usize);
    let f32s = |name: &str, shape: &[usize]| (name.to_string(), DType::F32, shape.to_vec());
    let tokens = |rows: u32, len: usize| {
        ["tokens", "targets"].map(|n| (n.to_string(), DType::I32, vec![rows as usize, len])).to_vec()
    };
    let has = |name: &str, inputs: Vec<(String, DType, Vec<usize>)>, outputs: Vec<(String, DType, Vec<usize>)>| {
        let Some(g) = v.graphs.iter().find(|g| g.name == name) else { return bad(format!("no graph {name}")) };
        for (list, want) in [(&g.inputs, inputs), (&g.outputs, outputs)] {
            for (n, dtype, shape) in want {
                let same = |b: &&Buffer| b.name == n && b.dtype == dtype && b.shape == shape;
                if !list.iter().any(|b| same(&b)) {
                    return bad(format!("graph {name} has no {n} {dtype:?} {shape:?}"));
                }
            }
        }
        Ok(())
    };
    let hypers = |list: &[crate::plan::Hyper], graphs: &[&str]| {
        for h in list {
            let found = v
                .graphs
                .iter()
                .filter(|g| graphs.contains(&g.name.as_str()))
                .any(|g| g.inputs.iter().any(|b| b.name == h.name && b.dtype == DType::F32 && b.numel() == 1));
            if !found {
                return bad(format!("no graph takes {}", h.name));
            }
        }
        Ok(())
    };
    let with_scale = |mut list: Vec<_>| {
        list.push(f32s("scale", &[]));
        list
    };
    let nll = |rows: u32, len| vec![f32s("nll", &[rows as usize, len])];
    has("train.micro", with_scale(tokens(v.rows.train, seq)), nll(v.rows.train, seq))?;
    has("train.update", vec![], vec![])?;
    has("score", tokens(v.rows.score, window), nll(v.rows.score, window))?;
    hypers(&t.hypers, &["train.update", "train.shard"])?;
    for a in &t.averages {
        has(&a.update, vec![], vec![])?;
        has(&a.finish, vec![], vec![])?;
    }
    if let Some(a) = &e.adapt {
        has("adapt.micro", with_scale(tokens(v.rows.adapt, window)), nll(v.rows.adapt, window))?;
        has("adapt.update", vec![], vec![])?;
        hypers(&a.hypers, &["adapt.update"])?;
    }
    // A GPU may leave packing to the CPU.
    let here = |name: &str| v.device == "cpu" || v.graphs.iter().any(|g| g.name == name);
    let calibrates = p.quantize.calibrate.as_ref().filter(|_| here(CALIBRATE));
    if let Some(c) = calibrates {
        let rows = v.rows.calibrate;
        if rows == 0 || !c.sequences.is_multiple_of(u64::from(rows)) {
            return bad(format!("{rows} rows do not divide {} sequences to calibrate on", c.sequences));
        }
        has(CALIBRATE, vec![("tokens".into(), DType::I32, vec![rows as usize, seq])], vec![])?;
    }
    for q in &p.quantize.params {
        let Some(b) = v.params.iter().map(|x| &v.state[x.buffer as usize]).find(|b| b.name == q.name) else {
            return bad(format!("{} is to be packed and is no parameter", q.name));
        };
        let n = b.shape.last().copied().unwrap_or(0);
        let mut inputs = Vec::new();
        if let Some(f) = &q.inverse {
            let tap = |t: &&Buffer| t.name == f.tap && t.name.starts_with(TAP) && t.dtype == DType::F32;
            let filled = v.grads.iter().find(tap).is_some_and(|t| t.shape == [n, n]);
            if n == 0 || q.graph.is_none() || p.quantize.calibrate.is_none() || (calibrates.is_some() && !filled) {
                return bad(format!("nothing gathers {} [{n}, {n}] for the quantiser of {}", f.tap, q.name));
            }
            if !(f.damp >= 0.0 && f.damp.is_finite()) {
                return bad(format!("the quantiser of {} has damp {}", q.name, f.damp));
            }
            inputs = vec![("order".into(), DType::I32, vec![n]), f32s("live", &[n]), f32s("upper", &[n, n])];
        }
        if let Some(name) = q.graph.as_ref().filter(|name| here(name)) {
            let codes = ("codes".to_string(), DType::I8, b.shape.clone());
            has(name, inputs, vec![codes, f32s("dequant", &b.shape)])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::toy::{Toy, program};
    use crate::plan::{HostUnary, InverseFactor};

    #[test]
    fn the_checks_see_what_is_wrong() {
        let good = program(&Toy::default());
        super::program(&good).unwrap();
        type Break = fn(&mut Program);
        let breaks: [(Break, &str); 13] = [
            (|p| p.variants[0].state[0].place.offset = 1 << 40, "does not fit"),
            (|p| p.variants[0].state[0].place.offset = 8, "does not fit"),
            (|p| p.variants[1].state[1].shape = vec![usize::MAX, 9], "does not fit"),
            (|p| p.variants[0].graphs[0].calls[0].kernel = 99, "calls kernel 99"),
            (|p| p.variants[0].graphs[0].calls[0].args[0].offset = 1 << 40, "outside its segment"),
            (|p| p.variants[0].graphs[0].name = "x".into(), "no graph train.micro"),
            (|p| p.variants[0].state_init.clear(), "without or with two initial values"),
            (|p| p.train.batch = 7, "no multiple"),
            (|p| p.train.hypers[0].name = "x".into(), "no graph takes x"),
            (|p| p.train.schedule.ops[2] = HostOp::Unary(HostUnary::Neg, 5), "later value"),
            (|p| p.quantize.params[0].name = "x".into(), "is no parameter"),
            (
                |p| p.variants[0].kernels.last_mut().unwrap().builtin = Some(Builtin::Quantile { n: 1 << 40, q: 1.0 }),
                "quantile",
            ),
            (
                |p| {
                    let round = Builtin::FeedbackRound { rows: 1, n: 2, low: -1.0, high: 1.0 };
                    p.variants[0].kernels.last_mut().unwrap().builtin = Some(round);
                },
                "rounding with feedback",
            ),
        ];
        for (change, why) in breaks {
            let mut p = good.clone();
            change(&mut p);
            let e = super::program(&p).unwrap_err();
            assert!(e.exit_code() == 1 && e.to_string().contains(why), "{why}: {e}");
        }
    }

    #[test]
    fn the_checks_see_what_calibration_lacks() {
        let good = program(&Toy { sequences: Some(32), reserve: 10.0, gpu: true, ..Toy::default() });
        super::program(&good).unwrap();
        super::program(&program(&Toy { sequences: Some(32), gpu: true, gpu_packs: false, ..Toy::default() })).unwrap();
        fn graph<'a>(v: &'a mut Variant, name: &str) -> &'a mut GraphPlan {
            v.graphs.iter_mut().find(|g| g.name == name).unwrap()
        }
        fn tap(v: &mut Variant) -> &mut Buffer {
            v.grads.last_mut().unwrap()
        }
        fn inverse(p: &mut Program) -> &mut InverseFactor {
            p.quantize.params[0].inverse.as_mut().unwrap()
        }
        type Break = fn(&mut Program);
        let breaks: [(Break, &str); 15] = [
            (|p| p.quantize.calibrate.as_mut().unwrap().sequences = 0, "no sequences"),
            (|p| p.quantize.calibrate.as_mut().unwrap().sequences = u64::MAX, "no sequences"),
            (|p| p.quantize.calibrate.as_mut().unwrap().reserve = p.train.stop, "no time left"),
            (|p| p.quantize.calibrate.as_mut().unwrap().reserve = f64::NAN, "no time left"),
            (|p| p.quantize.calibrate.as_mut().unwrap().sequences = 31, "do not divide 31 sequences"),
            (|p| p.variants[0].rows.calibrate = 0, "0 rows do not divide"),
            (|p| p.quantize.calibrate = None, "nothing gathers tap.table [260, 260]"),
            (|p| graph(&mut p.variants[1], CALIBRATE).name = "x".into(), "no graph calibrate"),
            (|p| graph(&mut p.variants[2], CALIBRATE).inputs.clear(), "graph calibrate has no tokens I32 [2, 8]"),
            (|p| tap(&mut p.variants[0]).shape = vec![260, 130], "nothing gathers tap.table"),
            (|p| tap(&mut p.variants[2]).dtype = DType::I32, "nothing gathers tap.table"),
            (|p| inverse(p).tap = "grad.table.weight".into(), "nothing gathers grad.table.weight"),
            (|p| inverse(p).damp = -1.0, "has damp -1"),
            (|p| graph(&mut p.variants[0], "pack.table.weight").inputs[0].dtype = DType::F32, "has no order I32 [260]"),
            (
                |p| graph(&mut p.variants[0], "pack.table.weight").inputs[2].shape = vec![260],
                "has no upper F32 [260, 260]",
            ),
        ];
        for (change, why) in breaks {
            let mut p = good.clone();
            change(&mut p);
            let e = super::program(&p).unwrap_err();
            assert!(e.exit_code() == 1 && e.to_string().contains(why), "{why}: {e}");
        }
    }
}
