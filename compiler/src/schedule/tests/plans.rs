//! The plan as a whole: graphs of a program share buffers and kernels, and run from raw segments.

use super::contents;
use super::models::{Model, Size, TINY, VRL11};
use crate::graph::interpret::{Contents, interpret};
use crate::graph::ir::{BufferKind, DType, Graph};
use crate::kernel::{Kernel, LaunchArg};
use crate::schedule::plan::{Planned, StateBuffer, plan};
use crate::schedule::reference::{self, Heap, Pointer};
use golf_runtime::plan::{DType as P, Init, Place, Segment};

fn states(graphs: &[Graph]) -> Vec<StateBuffer> {
    let mut out: Vec<StateBuffer> = Vec::new();
    for g in graphs {
        for b in g.buffers.iter().filter(|b| matches!(b.kind, BufferKind::Param | BufferKind::State)) {
            if !out.iter().any(|s| s.name == b.name) {
                let shape = b.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect();
                let param = (b.kind == BufferKind::Param).then(|| ("all".to_string(), false));
                out.push(StateBuffer { name: b.name.clone(), dtype: b.ty.dtype, shape, init: Init::Fill(0.0), param });
            }
        }
    }
    out
}

fn pointer(p: Place) -> Pointer {
    let segment = match p.segment {
        Segment::State => 0,
        Segment::Grad => 1,
        Segment::Scratch => 2,
        Segment::Const => 3,
    };
    Pointer { segment, offset: p.offset }
}

fn dtype(d: P) -> DType {
    match d {
        P::F32 => DType::F32,
        P::Bf16 => DType::Bf16,
        P::F16 => DType::F16,
        P::I32 => DType::I32,
        P::I8 => DType::I8,
        P::Bool => DType::Bool,
    }
}

/// Runs one graph of a plan, taking argument places from the launches of each kernel and spoiling its temporaries.
fn run(p: &Planned, graph: usize, heap: &mut Heap) {
    let mut calls = p.variant.graphs[graph].calls.iter();
    for (step, kernel) in p.graphs[graph].steps.iter().zip(&p.steps[graph]) {
        let k: &Kernel = &step.kernel;
        assert_eq!(k.code(), p.kernels[*kernel]);
        let mut args = vec![None; k.accesses().len()];
        let temps = k.temps();
        for launch in k.launches() {
            let call = calls.next().unwrap();
            assert_eq!(call.tasks, launch.tasks);
            let (owner, entry) = p.entries[call.kernel as usize];
            assert_eq!((owner, entry), (*kernel, launch.entry));
            for (a, place) in launch.args.iter().zip(&call.args) {
                match a {
                    LaunchArg::Arg(i) => args[*i] = Some(pointer(*place)),
                    LaunchArg::Temp(i) => {
                        let at = place.offset as usize;
                        assert_eq!(place.segment, Segment::Scratch);
                        heap.segments[2][at..at + temps[*i] as usize].fill(0xff);
                    }
                }
            }
        }
        let args: Vec<_> = args.into_iter().map(Option::unwrap).collect();
        reference::kernel(k, &args, heap).unwrap();
    }
    assert!(calls.next().is_none());
}

fn segments(p: &Planned) -> Heap {
    let scratch = p.variant.graphs.iter().map(|g| g.scratch).max().unwrap();
    let mut heap = Heap::default();
    heap.add(p.variant.state_bytes as usize);
    heap.add(p.variant.grad_bytes as usize);
    heap.add(scratch as usize);
    heap.add(0);
    heap.segments[1].fill(0);
    heap.segments[3] = p.variant.constants.clone();
    heap
}

fn write(heap: &mut Heap, b: &golf_runtime::plan::Buffer, data: &[f64]) {
    for (i, x) in data.iter().enumerate() {
        heap.store(pointer(b.place), dtype(b.dtype), i as i64, *x).unwrap();
    }
}

#[test]
fn graphs_run_from_segments() {
    let size = Size { layers: 2, time: 21, xsa: 2, ..TINY };
    let graphs = [Model::micro(size, DType::F32), Model::score(size, DType::F32)];
    let p =
        plan(("f32", crate::kernel::Target::Cpu, Default::default()), &graphs, &states(&graphs), &Default::default())
            .unwrap();
    let mut heap = segments(&p);
    for (i, g) in graphs.iter().enumerate() {
        let inputs = contents(g, &[("tokens", 50), ("targets", 50)]);
        let mut given: Contents = inputs.clone();
        given.retain(|name, _| !name.starts_with("grad."));
        for b in &p.variant.state {
            if let Some(t) = given.get(&b.name) {
                write(&mut heap, b, &t.data);
            }
        }
        // Whatever another graph left in scratch means nothing.
        heap.segments[2].fill(0xff);
        for b in &p.variant.graphs[i].inputs {
            write(&mut heap, b, &given[&b.name].data);
        }
        run(&p, i, &mut heap);
        let expected = interpret(g, &given).unwrap();
        for b in p.variant.grads.iter().filter(|_| i == 0).chain(&p.variant.graphs[i].outputs) {
            let want = &expected[&b.name].data;
            let scale = want.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            for (e, x) in want.iter().enumerate() {
                let got = heap.load(pointer(b.place), dtype(b.dtype), e as i64).unwrap();
                assert!((got - x).abs() <= 1e-3 * scale, "{}[{e}] is {got}, expected {x}", b.name);
            }
        }
    }
}

#[test]
fn layers_share_kernels() {
    let graphs = [Model::micro(VRL11, DType::Bf16), Model::score(VRL11, DType::Bf16)];
    let p =
        plan(("bf16", crate::kernel::Target::Cpu, Default::default()), &graphs, &states(&graphs), &Default::default())
            .unwrap();
    super::emittable(p.kernels.iter());
    let mut listing = String::new();
    for (g, steps) in p.steps.iter().enumerate() {
        for s in steps {
            let k = &p.kernels[*s];
            listing += &format!("{}{s}{}", &k.family()[..1], if k.family().starts_with("attend") { "\n" } else { " " });
        }
        let plan = &p.variant.graphs[g];
        listing += &format!("\n{} calls, scratch {:.1} MB\n\n", plan.calls.len(), plan.scratch as f64 / 1e6);
    }
    for (i, k) in p.kernels.iter().enumerate() {
        let uses = p.steps.iter().flatten().filter(|s| **s == i).count();
        listing += &format!("=== {i} used {uses}\n{}", k.text());
    }
    super::dump("plan.txt", &listing);
    assert!(p.kernels.len() <= 100, "{} kernels", p.kernels.len());
    // Activations of one row of 2048 tokens.
    assert!(p.variant.graphs[0].scratch < 500 << 20);
    assert!(p.variant.graphs[1].scratch < 40 << 20);
}
