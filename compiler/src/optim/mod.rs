//! Assembly: the graphs of a program, one precision at a time.
//!
//! *Takes* a [`Source`] (the flat model: forward pass, optimisers, averages, quantisers as graph-building functions); *gives* the
//! graphs named in the documentation of [`golf_runtime::plan::Variant`] and the state they share; *promises* that every graph passes
//! the verifier and that training, scoring and adaptation come from the one forward definition.

mod steps;
pub mod taps;
#[cfg(test)]
mod tests;

use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, BufferKind, DType, Graph, NodeId};
use golf_runtime::plan::{HostExpr, Init, InverseFactor};

/// A parameter of the model, in declaration order.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Label path, e.g. `blocks.0.attn.c_q.weight`.
    pub name: String,
    /// Axis names and sizes, outermost first.
    pub axes: Vec<(String, usize)>,
    /// Storage dtype in the bf16 variant.
    pub dtype: DType,
    /// Initial value.
    pub init: Init,
    /// Group tag.
    pub group: String,
    /// Declared `unused`: kept, counted, never stepped.
    pub unused: bool,
}

impl Parameter {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.axes.iter().map(|(_, n)| n).product()
    }
}

/// A state buffer an optimiser or average declares for one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Buffer name, unique in the program, e.g. `muon.m.blocks.0.attn.c_q.weight`.
    pub name: String,
    /// Axis names and sizes.
    pub axes: Vec<(String, usize)>,
    /// Storage dtype in the bf16 variant.
    pub dtype: DType,
    /// Initial value.
    pub init: Init,
    /// The value after the step.
    pub value: NodeId,
}

/// Result of applying an optimiser to one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// New weights.
    pub weights: NodeId,
    /// States with their new values; their old values were read from buffers of the same names.
    pub states: Vec<State>,
}

/// Result of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    /// `[b t v]`, before the loss.
    pub logits: NodeId,
    /// The vocabulary axis.
    pub vocab: AxisId,
    /// The batch axis.
    pub batch: AxisId,
    /// The time axis.
    pub time: AxisId,
}

/// Which optimiser bindings apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `train { ... }`.
    Train,
    /// `evaluate { adapt = ... }`.
    Adapt,
}

/// What a quantiser gives for one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// Integer codes (value of a cast to I8), axes of the parameter.
    pub codes: NodeId,
    /// One scale per position of the first axis.
    pub scale: NodeId,
    /// The weights evaluation will use.
    pub dequant: NodeId,
    /// What the host computes for it from the calibration.
    pub inverse: Option<InverseFactor>,
}

/// A host-computed scalar that graphs read from an input buffer of the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct HyperDecl {
    /// Buffer name, e.g. `hyper.train.muon.matrices.lr`.
    pub name: String,
    /// Its value from the clock.
    pub value: HostExpr,
}

/// The flat model, as functions that extend a graph. Errors are the source's own (diagnostics).
pub trait Source {
    /// Parameters in declaration order.
    fn parameters(&self) -> &[Parameter];
    /// Builds the forward pass on the input buffer `tokens` `[b t]`. Reads parameters from buffers of their names with the given storage dtype rule.
    fn forward(&self, b: &mut Builder, rows: usize, len: usize) -> Result<Forward, Error>;
    /// The clip of a phase: (largest norm, per logical shard).
    fn clip(&self, phase: Phase) -> Option<(f64, bool)>;
    /// Applies the phase's optimiser for parameter `index`. `None`: no binding selects it (it stays as it is).
    fn update(
        &self,
        b: &mut Builder,
        phase: Phase,
        index: usize,
        w: NodeId,
        g: NodeId,
    ) -> Result<Option<Updated>, Error>;
    /// Names of the averages in order of preference.
    fn averages(&self) -> Vec<String>;
    /// New states of one average for parameter `index` after a step.
    fn average_update(&self, b: &mut Builder, average: usize, index: usize, w: NodeId) -> Result<Vec<State>, Error>;
    /// The averaged weights from the average's states (read from their buffers).
    fn average_finish(&self, b: &mut Builder, average: usize, index: usize, w: NodeId) -> Result<NodeId, Error>;
    /// Buffer of the sums of squares of what parameter `index` is multiplied with, if its quantiser is given them.
    fn tap(&self, index: usize) -> Option<&str>;
    /// The quantiser's rule name and result for parameter `index`; `None`: stored as fp16.
    fn quantise(&self, b: &mut Builder, index: usize, w: NodeId) -> Result<Option<Quantised>, Error>;
}

/// An assembly error: a sentence and, where known, the place in the source.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What is wrong.
    pub message: String,
    /// File number and byte range.
    pub span: Option<(u32, u32, u32)>,
}

impl From<crate::autodiff::GradError> for Error {
    fn from(e: crate::autodiff::GradError) -> Error {
        Error { message: e.to_string(), span: None }
    }
}

impl From<crate::graph::error::TypeError> for Error {
    fn from(e: crate::graph::error::TypeError) -> Error {
        Error { message: e.to_string(), span: None }
    }
}

/// Sizes of the graphs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Logical shards.
    pub ranks: u32,
    /// Tokens per row in training.
    pub seq: usize,
    /// Rows per run of `train.micro`.
    pub micro_rows: usize,
    /// Window of evaluation.
    pub window: usize,
    /// Rows per run of `score`.
    pub score_rows: usize,
    /// Rows per run of `adapt.micro`.
    pub adapt_rows: usize,
    /// Rows of [`Sizes::seq`] tokens per run of `calibrate`; 0: no quantiser is calibrated.
    pub calibrate_rows: usize,
    /// Whether the program adapts at all.
    pub adapt: bool,
}

/// Everything the schedule needs.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// `bf16` or `f32`.
    pub precision: DType,
    /// All graphs, names as in the plan.
    pub graphs: Vec<Graph>,
    /// State buffers in layout order (training state first, then averages, then adaptation), with initial values. Without parameters.
    pub states: Vec<State>,
    /// Index into `states` of the first adaptation state: what lies before is what a training checkpoint holds.
    pub adapt_from: usize,
    /// Parameters whose pack graph exists, by index.
    pub packed: Vec<bool>,
    /// What the host computes for the pack graph of each parameter.
    pub inverses: Vec<Option<InverseFactor>>,
}

/// Builds every graph of a program at one precision (`F32` makes every parameter, state and operand f32).
pub fn assemble(source: &dyn Source, sizes: &Sizes, precision: DType) -> Result<Assembly, Error> {
    let mut a = steps::Assembler::new(source, *sizes, precision);
    a.micro("train.micro", sizes.micro_rows, sizes.seq)?;
    a.shard()?;
    a.update(Phase::Train)?;
    a.averages()?;
    a.score()?;
    a.adapt()?;
    a.calibrate()?;
    a.pack()?;
    Ok(a.finish())
}

/// The scoring graph alone (for the perturbation test at small sizes).
pub fn score(source: &dyn Source, sizes: &Sizes, precision: DType) -> Result<Graph, Error> {
    let mut a = steps::Assembler::new(source, *sizes, precision);
    a.score()?;
    a.finish().graphs.pop().ok_or_else(|| Error { message: "no scoring graph".into(), span: None })
}

/// The storage dtype of a buffer at a precision: bf16 storage becomes f32 when everything is f32.
pub fn storage(dtype: DType, precision: DType) -> DType {
    if precision == DType::F32 && dtype == DType::Bf16 { DType::F32 } else { dtype }
}

/// Reads a parameter or state buffer, making it if the graph does not have it yet.
pub fn read_buffer(
    b: &mut Builder,
    name: &str,
    axes: &[(String, usize)],
    dtype: DType,
    kind: BufferKind,
) -> Result<NodeId, Error> {
    let ids =
        axes.iter().map(|(n, s)| b.axis(n, *s, crate::graph::ir::AxisRole::Plain)).collect::<Result<Vec<_>, _>>()?;
    let buffer = b.buffer(name, dtype, &ids, kind)?;
    Ok(b.read(buffer)?)
}
