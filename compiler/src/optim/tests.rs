//! The assembled graphs of a model small enough for closed forms: logits = table[token], plain SGD.

use super::*;
use crate::graph::interpret::{Tensor, interpret};
use crate::graph::ir::AxisRole;
use std::collections::BTreeMap;

struct Bigram {
    parameters: Vec<Parameter>,
    clip: Option<(f64, bool)>,
}

impl Bigram {
    fn new(clip: Option<(f64, bool)>) -> Bigram {
        let axes = vec![("prev".to_string(), 3), ("v".to_string(), 3)];
        let p = Parameter {
            name: "table".into(),
            axes,
            dtype: DType::F32,
            init: Init::Fill(0.0),
            group: "all".into(),
            unused: false,
        };
        Bigram { parameters: vec![p], clip }
    }
}

impl Source for Bigram {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
    fn forward(&self, b: &mut Builder, rows: usize, len: usize) -> Result<Forward, Error> {
        let batch = b.axis("b", rows, AxisRole::Batch)?;
        let time = b.axis("t", len, AxisRole::Time)?;
        let tokens = b.buffer("tokens", DType::I32, &[batch, time], BufferKind::Input)?;
        let tokens = b.read(tokens)?;
        let table = read_buffer(b, "table", &self.parameters[0].axes, DType::F32, BufferKind::Param)?;
        let (prev, vocab) = (b.axis("prev", 3, AxisRole::Plain)?, b.axis("v", 3, AxisRole::Plain)?);
        let logits = b.gather(table, tokens, prev)?;
        Ok(Forward { logits, vocab, batch, time })
    }
    fn clip(&self, _: Phase) -> Option<(f64, bool)> {
        self.clip
    }
    fn update(&self, b: &mut Builder, phase: Phase, _: usize, w: NodeId, g: NodeId) -> Result<Option<Updated>, Error> {
        let lr = b.constant(if phase == Phase::Train { 1.0 } else { 0.5 });
        let step = b.mul(g, lr)?;
        Ok(Some(Updated { weights: b.sub(w, step)?, states: vec![] }))
    }
    fn averages(&self) -> Vec<String> {
        vec!["ema".into()]
    }
    fn average_update(&self, b: &mut Builder, _: usize, index: usize, w: NodeId) -> Result<Vec<State>, Error> {
        let p = &self.parameters[index];
        let old = read_buffer(b, "ema.table", &p.axes, DType::F32, BufferKind::State)?;
        let half = b.constant(0.5);
        let sum = b.add(old, w)?;
        let value = b.mul(sum, half)?;
        Ok(vec![State {
            name: "ema.table".into(),
            axes: p.axes.clone(),
            dtype: DType::F32,
            init: Init::CopyOf("table".into()),
            value,
        }])
    }
    fn average_finish(&self, b: &mut Builder, _: usize, index: usize, _: NodeId) -> Result<NodeId, Error> {
        read_buffer(b, "ema.table", &self.parameters[index].axes, DType::F32, BufferKind::State)
    }
    fn tap(&self, _: usize) -> Option<&str> {
        None
    }
    fn quantise(&self, b: &mut Builder, _: usize, w: NodeId) -> Result<Option<Quantised>, Error> {
        let axes = b.axes(w).to_vec();
        let one = b.constant(1.0);
        let scale = b.broadcast(one, &axes[..1])?;
        let rounded = b.round(w)?;
        let codes = b.cast(rounded, DType::I8)?;
        let wide = b.cast(codes, DType::F32)?;
        Ok(Some(Quantised { codes, scale, dequant: wide, inverse: None }))
    }
}

fn sizes(ranks: u32) -> Sizes {
    Sizes { ranks, seq: 4, micro_rows: 2, window: 4, score_rows: 1, adapt_rows: 1, calibrate_rows: 0, adapt: true }
}

fn graph<'a>(a: &'a Assembly, name: &str) -> &'a Graph {
    a.graphs.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no graph {name}"))
}

fn tensor(dims: &[usize], data: &[f64]) -> Tensor {
    Tensor { dims: dims.to_vec(), data: data.to_vec() }
}

fn run(g: &Graph, inputs: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    interpret(g, &inputs.iter().map(|(n, t)| (n.to_string(), t.clone())).collect()).unwrap()
}

#[test]
fn every_graph_of_the_plan_is_there_and_verifies() {
    for ranks in [1, 2] {
        let a = assemble(&Bigram::new(Some((0.3, true))), &sizes(ranks), DType::F32).unwrap();
        let mut expected = vec![
            "train.micro",
            "train.update",
            "average.ema.update",
            "average.ema.finish",
            "score",
            "adapt.micro",
            "adapt.update",
            "pack.table",
        ];
        if ranks > 1 {
            expected.insert(1, "train.shard");
        }
        assert_eq!(a.graphs.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), expected);
        for g in &a.graphs {
            crate::graph::verify::verify(g).unwrap();
        }
        assert_eq!(a.states.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["ema.table"]);
        assert_eq!((a.adapt_from, a.packed.as_slice()), (1, [true].as_slice()));
    }
}

#[test]
fn gradients_add_up_and_clip_as_pytorch_does() {
    let a = assemble(&Bigram::new(Some((0.3, true))), &sizes(1), DType::F32).unwrap();
    let tokens = tensor(&[2, 4], &[0., 1., 2., 0., 1., 1., 0., 2.]);
    let targets = tensor(&[2, 4], &[1., 2., 0., 1., 1., 0., 2., 2.]);
    let before = tensor(&[3, 3], &[0.25; 9]);
    let out = run(
        graph(&a, "train.micro"),
        &[
            ("tokens", tokens.clone()),
            ("targets", targets.clone()),
            ("scale", tensor(&[], &[1.0 / 8.0])),
            ("table", tensor(&[3, 3], &[0.0; 9])),
            ("grad.table", before),
        ],
    );
    // A zero table predicts 1/3 everywhere: the gradient is (1/3 - onehot) / 8 per token, on top of what was there.
    let mut expected = [0.25; 9];
    for (&p, &t) in tokens.data.iter().zip(&targets.data) {
        for v in 0..3 {
            expected[p as usize * 3 + v] += (1.0 / 3.0 - if v == t as usize { 1.0 } else { 0.0 }) / 8.0;
        }
    }
    let g = &out["grad.table"];
    assert!(g.data.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{g:?}");
    assert!(out["nll"].data.iter().all(|x| (x - libm::log(3.0)).abs() < 1e-12));

    let stepped = run(graph(&a, "train.update"), &[("table", tensor(&[3, 3], &[0.0; 9])), ("grad.table", g.clone())]);
    let norm = libm::sqrt(g.data.iter().map(|x| x * x).sum());
    assert!(norm > 0.3, "the case must clip");
    let scale = 0.3 / (norm + 1e-6);
    assert!((stepped["grad_norm"].data[0] - norm).abs() < 1e-12);
    assert!(stepped["table"].data.iter().zip(&g.data).all(|(w, g)| (w + g * scale).abs() < 1e-12));
}

#[test]
fn shards_are_clipped_on_their_own_and_averaged() {
    let a = assemble(&Bigram::new(Some((0.3, true))), &sizes(2), DType::F32).unwrap();
    let g = tensor(&[3, 3], &[1.0, 0., 0., 0., 0., 0., 0., 0., 0.]);
    let out = run(graph(&a, "train.shard"), &[("grad.table", g), ("total.table", tensor(&[3, 3], &[0.0; 9]))]);
    let clipped = 0.3 / (1.0 + 1e-6) / 2.0;
    assert!((out["total.table"].data[0] - clipped).abs() < 1e-12);
    // The update must not clip again.
    let stepped = run(
        graph(&a, "train.update"),
        &[("table", tensor(&[3, 3], &[0.0; 9])), ("total.table", tensor(&[3, 3], &[5.0; 9]))],
    );
    assert!(stepped["table"].data.iter().all(|w| *w == -5.0));
}

#[test]
fn a_parameter_the_loss_does_not_reach_is_an_error() {
    let mut m = Bigram::new(None);
    m.parameters.push(Parameter { name: "idle".into(), ..m.parameters[0].clone() });
    assert!(assemble(&m, &sizes(1), DType::F32).unwrap_err().message.contains("`idle`"));
    m.parameters[1].unused = true;
    assert!(assemble(&m, &sizes(1), DType::F32).is_ok());
}
