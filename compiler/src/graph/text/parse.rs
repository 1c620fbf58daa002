//! Parsing.
//!
//! *Takes* text; *gives* the graph or the first [`ParseError`]; *promises* that ids resolve, not that types are right: the verifier says.

use super::print::{kind_name, mode_name};
use crate::graph::ir::*;
use crate::graph::ops;
use std::collections::BTreeMap;

/// The first line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

/// The graph of a text. Empty lines, lines starting with `//` and notes (`^ ...`) are skipped.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut g = Graph {
        name: String::new(),
        compute: DType::F32,
        axes: Vec::new(),
        buffers: Vec::new(),
        nodes: Vec::new(),
        effects: Vec::new(),
        origins: Vec::new(),
        constants: BTreeMap::new(),
    };
    let mut headed = false;
    for (i, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with("//") || trimmed.starts_with('^') {
            continue;
        }
        let at = |what| ParseError { line: i + 1, what };
        let tokens = tokenize(trimmed).map_err(at)?;
        let mut p = Line { tokens: &tokens, at: 0 };
        if !headed {
            p.literal("graph").map_err(at)?;
            g.name = p.name().map_err(at)?;
            g.compute = p.dtype().map_err(at)?;
            headed = true;
        } else {
            p.item(&mut g).map_err(at)?;
        }
        p.end().map_err(at)?;
    }
    if headed { Ok(g) } else { Err(ParseError { line: 1, what: "expected `graph NAME DTYPE`".to_string() }) }
}

type Is<T> = Result<T, String>;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A bare word or number.
    Word(String),
    /// A quoted name.
    Quoted(String),
    /// One of `( ) [ ] , ; = :` or `->`.
    Mark(&'static str),
}

const MARKS: [&str; 10] = ["->", "(", ")", "[", "]", ",", ";", "=", ":", "%"];

fn tokenize(line: &str) -> Is<Vec<Token>> {
    let mut out = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
            out.push(Token::Mark(mark));
            rest = &rest[mark.len()..];
        } else if first == '"' {
            let (name, after) = quoted(&rest[1..])?;
            out.push(Token::Quoted(name));
            rest = after;
        } else {
            let end = rest
                .char_indices()
                .find(|(i, c)| c.is_whitespace() || *c == '"' || MARKS.iter().any(|m| rest[*i..].starts_with(m)))
                .map_or(rest.len(), |(i, _)| i);
            out.push(Token::Word(rest[..end].to_string()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Ok(out)
}

fn quoted(text: &str) -> Is<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((name, &text[i + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => name.push('\n'),
                Some((_, c)) => name.push(c),
                None => break,
            },
            c => name.push(c),
        }
    }
    Err("a quoted name does not end".to_string())
}

struct Line<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Line<'_> {
    fn item(&mut self, g: &mut Graph) -> Is<()> {
        if self.mark("%") {
            return self.node(g);
        }
        let word = self.word()?;
        if word == "axis" {
            let (name, size) = (self.name()?, self.number()?);
            let role = match self.tokens.get(self.at) {
                None => AxisRole::Plain,
                Some(Token::Word(w)) if w == "batch" => AxisRole::Batch,
                Some(Token::Word(w)) if w == "time" => AxisRole::Time,
                Some(other) => return Err(format!("expected batch or time, found {other:?}")),
            };
            self.at += usize::from(role != AxisRole::Plain);
            g.axes.push(Axis { name, size, role });
            return Ok(());
        }
        for mode in [EffectMode::Assign, EffectMode::Accumulate] {
            if word == mode_name(mode) {
                let buffer = self.buffer(g)?;
                let value = self.id(g.nodes.len())?;
                g.effects.push(Effect { buffer, value, mode });
                return Ok(());
            }
        }
        use BufferKind::*;
        let Some(kind) = [Param, Grad, State, Input, Output, Const].into_iter().find(|k| kind_name(*k) == word) else {
            return Err(format!("expected an axis, a buffer, a node or an effect, found `{word}`"));
        };
        let name = self.name()?;
        let ty = self.ty(g)?;
        if self.mark("=") {
            let mut values = Vec::new();
            while self.at < self.tokens.len() {
                values.push(self.number()?);
            }
            g.constants.insert(BufferId(g.buffers.len() as u32), values);
        }
        g.buffers.push(Buffer { name, ty, kind });
        Ok(())
    }

    fn node(&mut self, g: &mut Graph) -> Is<()> {
        let id: usize = self.number()?;
        if id != g.nodes.len() {
            return Err(format!("expected %{}, found %{id}", g.nodes.len()));
        }
        self.expect("=")?;
        let name = self.word()?;
        self.expect("(")?;
        let mut args = Vec::new();
        while self.peek("%") {
            args.push(self.id(id)?);
            if !self.mark(",") {
                break;
            }
        }
        self.mark(";");
        // The attributes may need the type (a cast's dtype), which comes after them.
        let start = self.at;
        while self.at < self.tokens.len() && !self.peek(")") {
            self.at += 1;
        }
        let end = self.at;
        self.expect(")")?;
        let ty = self.ty(g)?;
        let mut attributes = Line { tokens: &self.tokens[start..end], at: 0 };
        let op = attributes.op(g, &name, ty.dtype)?;
        attributes.end()?;
        let origin = self.origin()?;
        g.nodes.push(Node { op, args, ty });
        if let Some(origin) = origin {
            g.origins.resize(id, Origin::default());
            g.origins.push(origin);
        }
        Ok(())
    }

    fn op(&mut self, g: &Graph, name: &str, dtype: DType) -> Is<Op> {
        for op in ops::UNARY.map(Op::Unary).into_iter().chain(ops::BINARY.map(Op::Binary)) {
            if ops::row(&op).name == name {
                return Ok(op);
            }
        }
        Ok(match name {
            "read" => Op::Read(self.buffer(g)?),
            "const" => Op::Const(Bits::new(self.number()?)),
            "iota" => Op::Iota(self.axis(g)?),
            "select" => Op::Select,
            "cast" => Op::Cast(dtype),
            "stop_gradient" => Op::StopGradient,
            "straight_through" => Op::StraightThrough,
            "broadcast" => Op::Broadcast,
            "sum" => Op::Reduce(Reduce::Sum, self.over(g)?),
            "reduce_max" => Op::Reduce(Reduce::Max, self.over(g)?),
            "reduce_min" => Op::Reduce(Reduce::Min, self.over(g)?),
            "dot" => Op::Dot(self.over(g)?),
            "gather" => Op::Gather(self.after("over", g)?),
            "scatter_add" => Op::ScatterAdd(self.after("into", g)?),
            "split" => {
                let from = self.axis(g)?;
                self.expect("->")?;
                Op::Split(from, self.axes(g)?)
            }
            "merge" | "concat" => {
                let from = self.axes(g)?;
                self.expect("->")?;
                let to = self.axis(g)?;
                if name == "merge" { Op::Merge(from, to) } else { Op::Concat(from, to) }
            }
            "rename" => self.arrow(g).map(|(from, to)| Op::Rename(from, to))?,
            "top_k_values" => self.arrow(g).map(|(from, to)| Op::TopKValues(from, to))?,
            "top_k_indices" => self.arrow(g).map(|(from, to)| Op::TopKIndices(from, to))?,
            "slice" | "pad" => {
                let (from, to) = self.arrow(g)?;
                self.literal("at")?;
                let start = self.number()?;
                if name == "slice" { Op::Slice { from, to, start } } else { Op::Pad { from, to, start } }
            }
            "index" | "place" => {
                let axis = self.axis(g)?;
                self.literal("at")?;
                let at = self.number()?;
                if name == "index" { Op::Index(axis, at) } else { Op::Place(axis, at) }
            }
            "shift" => {
                let axis = self.axis(g)?;
                self.literal("by")?;
                Op::Shift(axis, self.number()?)
            }
            "cumsum" => Op::Cumsum(self.axis(g)?, self.flag("reverse")),
            "scan" => Op::Scan(self.axis(g)?, self.flag("reverse")),
            "attend" => Op::Attend(self.how(g)?),
            "attend_lse" => Op::AttendLse(self.how(g)?),
            "attend_grad" => {
                let which = match self.word()?.as_str() {
                    "q" => AttendArg::Q,
                    "k" => AttendArg::K,
                    "v" => AttendArg::V,
                    other => return Err(format!("expected q, k or v, found `{other}`")),
                };
                Op::AttendGrad(self.how(g)?, which)
            }
            "cross_entropy" => Op::CrossEntropy(self.after("over", g)?),
            "cross_entropy_grad" => Op::CrossEntropyGrad(self.after("over", g)?),
            "quantile" => {
                let axis = self.axis(g)?;
                self.literal("at")?;
                Op::Quantile(axis, Bits::new(self.number()?))
            }
            "feedback_round" => {
                let axis = self.axis(g)?;
                self.literal("from")?;
                let low = Bits::new(self.number()?);
                self.literal("to")?;
                Op::FeedbackRound { axis, low, high: Bits::new(self.number()?) }
            }
            "random" => {
                let normal = match self.word()?.as_str() {
                    "normal" => true,
                    "uniform" => false,
                    other => return Err(format!("expected normal or uniform, found `{other}`")),
                };
                Op::Random { key: self.number()?, normal }
            }
            other => return Err(format!("no op is called `{other}`")),
        })
    }

    fn how(&mut self, g: &Graph) -> Is<Attend> {
        let (time, dim) = (self.axis(g)?, self.axis(g)?);
        self.literal("scale")?;
        let scale = Bits::new(self.number()?);
        let causal = self.flag("causal");
        let window = if self.flag("window") { Some(self.number()?) } else { None };
        Ok(Attend { time, dim, scale, causal, window, document: self.flag("document") })
    }

    fn origin(&mut self) -> Is<Option<Origin>> {
        if !self.flag("@") {
            return Ok(None);
        }
        let mut origin = Origin::default();
        if self.tokens.get(self.at + 1) == Some(&Token::Mark(":")) {
            let file = self.number()?;
            self.expect(":")?;
            let range = self.word()?;
            let parts = range.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let (start, end) = parts.ok_or_else(|| format!("expected START..END, found `{range}`"))?;
            origin.span = Some((file, start, end));
        }
        if self.at < self.tokens.len() {
            origin.visit = self.name()?;
        }
        Ok(Some(origin))
    }

    // ---- words ----

    fn peek(&self, mark: &str) -> bool {
        matches!(self.tokens.get(self.at), Some(Token::Mark(m)) if *m == mark)
    }

    fn mark(&mut self, mark: &str) -> bool {
        let found = self.peek(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: &str) -> Is<()> {
        if self.mark(mark) { Ok(()) } else { Err(format!("expected `{mark}`, found {}", self.found())) }
    }

    fn found(&self) -> String {
        match self.tokens.get(self.at) {
            None => "the end of the line".to_string(),
            Some(Token::Word(w) | Token::Quoted(w)) => format!("`{w}`"),
            Some(Token::Mark(m)) => format!("`{m}`"),
        }
    }

    fn end(&self) -> Is<()> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(format!("unexpected {}", self.found())) }
    }

    fn word(&mut self) -> Is<String> {
        match self.tokens.get(self.at) {
            Some(Token::Word(w)) => {
                self.at += 1;
                Ok(w.clone())
            }
            _ => Err(format!("expected a word, found {}", self.found())),
        }
    }

    fn name(&mut self) -> Is<String> {
        match self.tokens.get(self.at) {
            Some(Token::Word(w) | Token::Quoted(w)) => {
                self.at += 1;
                Ok(w.clone())
            }
            _ => Err(format!("expected a name, found {}", self.found())),
        }
    }

    fn literal(&mut self, word: &str) -> Is<()> {
        if self.flag(word) { Ok(()) } else { Err(format!("expected `{word}`, found {}", self.found())) }
    }

    fn flag(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(w)) if w == word);
        self.at += usize::from(found);
        found
    }

    fn number<T: std::str::FromStr>(&mut self) -> Is<T> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("expected a number, found `{word}`"))
    }

    fn id(&mut self, below: usize) -> Is<NodeId> {
        self.expect("%")?;
        let id: usize = self.number()?;
        if id < below { Ok(NodeId(id as u32)) } else { Err(format!("%{id} is not defined above")) }
    }

    fn dtype(&mut self) -> Is<DType> {
        let word = self.word()?;
        Ok(match word.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::Bf16,
            "f16" => DType::F16,
            "i32" => DType::I32,
            "i8" => DType::I8,
            "bool" => DType::Bool,
            other => return Err(format!("expected a dtype, found `{other}`")),
        })
    }

    /// `: DTYPE [AXES]`
    fn ty(&mut self, g: &Graph) -> Is<Type> {
        self.expect(":")?;
        let dtype = self.dtype()?;
        self.expect("[")?;
        let axes = self.axes(g)?;
        self.expect("]")?;
        Ok(Type { dtype, axes })
    }

    fn axis(&mut self, g: &Graph) -> Is<AxisId> {
        let name = self.name()?;
        let found = g.axes.iter().position(|a| a.name == name);
        found.map(|i| AxisId(i as u32)).ok_or_else(|| format!("no axis is called `{name}`"))
    }

    fn axes(&mut self, g: &Graph) -> Is<Vec<AxisId>> {
        let mut axes = Vec::new();
        while matches!(self.tokens.get(self.at), Some(Token::Word(_) | Token::Quoted(_))) {
            axes.push(self.axis(g)?);
        }
        Ok(axes)
    }

    fn over(&mut self, g: &Graph) -> Is<Vec<AxisId>> {
        self.literal("over")?;
        self.axes(g)
    }

    fn after(&mut self, word: &str, g: &Graph) -> Is<AxisId> {
        self.literal(word)?;
        self.axis(g)
    }

    fn arrow(&mut self, g: &Graph) -> Is<(AxisId, AxisId)> {
        let from = self.axis(g)?;
        self.expect("->")?;
        Ok((from, self.axis(g)?))
    }

    fn buffer(&mut self, g: &Graph) -> Is<BufferId> {
        let name = self.name()?;
        let found = g.buffers.iter().position(|b| b.name == name);
        found.map(|i| BufferId(i as u32)).ok_or_else(|| format!("no buffer is called `{name}`"))
    }
}
