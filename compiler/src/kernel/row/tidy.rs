//! Last touches on a loop program: dead stores and values go, adjacent loops that walk memory contiguously become one, scratch is laid out.
//!
//! *Takes* a program; *gives* one that computes the same outputs.

use super::loops::{Affine, Id, Inst, Level, Mem, Nest, Program, Step, Store, Var};
use crate::kernel::round_up;
use std::collections::{BTreeMap, BTreeSet};

/// Tidies a program.
pub fn tidy(mut p: Program) -> Program {
    while drop_dead(&mut p) {}
    for section in [Section::Task, Section::Row, Section::End] {
        let mut steps = std::mem::take(section.of(&mut p));
        for step in &mut steps {
            if let Step::Nest(nest) = step {
                while let Some(k) = mergeable(&p, nest) {
                    merge(&mut p, nest, k);
                }
            }
        }
        *section.of(&mut p) = steps;
    }
    lay_out(&mut p);
    renumber(&mut p);
    while let Some(k) = mergeable_outer(&p) {
        merge_outer(&mut p, k);
    }
    p
}

/// Every address expression of a program.
fn every_address(p: &mut Program) -> Vec<&mut Affine> {
    let mut all: Vec<&mut Affine> = Vec::new();
    for def in &mut p.defs {
        if let Inst::Index(at) | Inst::Load(_, at) = &mut def.inst {
            all.push(at);
        }
    }
    for step in p.task.iter_mut().chain(&mut p.row).chain(&mut p.end) {
        if let Step::Nest(nest) = step {
            all.extend(nest.stores.iter_mut().map(|s| &mut s.at));
        }
    }
    all
}

fn outer(at: &Affine, k: usize) -> i64 {
    at.terms.get(&Var::Outer(k)).copied().unwrap_or(0)
}

/// The first outer axis that can be one with the next: of size 1, or contiguous with it everywhere.
fn mergeable_outer(p: &Program) -> Option<usize> {
    let mut p = p.clone();
    let sizes = p.outer.clone();
    let all = every_address(&mut p);
    (0..sizes.len().saturating_sub(1)).find(|&k| {
        let contiguous = |at: &&mut Affine| outer(at, k) == outer(at, k + 1) * sizes[k + 1] as i64;
        sizes[k] == 1 || sizes[k + 1] == 1 || all.iter().all(contiguous)
    })
}

fn merge_outer(p: &mut Program, k: usize) {
    let (first, second) = (p.outer[k], p.outer[k + 1]);
    for at in every_address(p) {
        let c = if second == 1 { outer(at, k) } else { outer(at, k + 1) };
        let rest = std::mem::take(&mut at.terms);
        let moved = rest.into_iter().filter_map(|(var, n)| match var {
            Var::Outer(i) if i == k || i == k + 1 => None,
            Var::Outer(i) if i > k => Some((Var::Outer(i - 1), n)),
            _ => Some((var, n)),
        });
        at.terms = moved.collect();
        if c != 0 {
            at.terms.insert(Var::Outer(k), c);
        }
    }
    p.outer[k] = first * second;
    p.outer.remove(k + 1);
}

#[derive(Clone, Copy)]
enum Section {
    Task,
    Row,
    End,
}

impl Section {
    fn of(self, p: &mut Program) -> &mut Vec<Step> {
        match self {
            Section::Task => &mut p.task,
            Section::Row => &mut p.row,
            Section::End => &mut p.end,
        }
    }
}

/// Definitions an instruction uses.
pub fn operands(inst: &Inst) -> Vec<Id> {
    match inst {
        Inst::Const(_) => vec![],
        Inst::Index(at) | Inst::Load(_, at) => at.values().collect(),
        Inst::Unary(_, a) | Inst::Cast(_, a) | Inst::Reduce(_, a) => vec![*a],
        Inst::Binary(_, a, b) => vec![*a, *b],
        Inst::Select(a, b, c) => vec![*a, *b, *c],
        Inst::Scan(a, b) => a.iter().chain([b]).copied().collect(),
    }
}

/// Removes stores to scratch that nothing loads and definitions that nothing uses. True if a store went.
fn drop_dead(p: &mut Program) -> bool {
    let steps = || p.task.iter().chain(&p.row).chain(&p.end);
    let mut live: BTreeSet<Id> = BTreeSet::new();
    let mut work: Vec<Id> = Vec::new();
    for step in steps() {
        if let Step::Nest(nest) = step {
            work.extend(nest.stores.iter().flat_map(|s| s.at.values().chain([s.value])));
        }
    }
    while let Some(id) = work.pop() {
        if live.insert(id) {
            work.extend(operands(&p.def(id).inst));
        }
    }
    let mut loaded: BTreeSet<Mem> = BTreeSet::new();
    for &id in &live {
        if let Inst::Load(mem, _) = p.def(id).inst {
            loaded.insert(mem);
        }
    }
    let mut dropped = false;
    for steps in [&mut p.task, &mut p.row, &mut p.end] {
        for step in steps.iter_mut() {
            if let Step::Nest(nest) = step {
                let before = nest.stores.len();
                nest.stores.retain(|s| matches!(s.mem, Mem::Arg(_)) || loaded.contains(&s.mem));
                nest.body.retain(|id| live.contains(id));
                dropped |= before != nest.stores.len();
            }
        }
        steps.retain(|step| match step {
            Step::Def(id) => live.contains(id),
            Step::Zero(i) => loaded.contains(&Mem::Scratch(*i)),
            Step::Nest(nest) => !nest.stores.is_empty() || nest.body.iter().any(|id| live.contains(id)),
        });
    }
    dropped
}

fn addresses<'a>(p: &'a Program, nest: &'a Nest) -> impl Iterator<Item = &'a Affine> {
    let of = |id: &Id| match &p.def(*id).inst {
        Inst::Index(at) | Inst::Load(_, at) => Some(at),
        Inst::Const(_)
        | Inst::Unary(..)
        | Inst::Binary(..)
        | Inst::Select(..)
        | Inst::Cast(..)
        | Inst::Reduce(..)
        | Inst::Scan(..) => None,
    };
    nest.body.iter().filter_map(of).chain(nest.stores.iter().map(|s| &s.at))
}

/// The first loop that can be one with the next.
fn mergeable(p: &Program, nest: &Nest) -> Option<usize> {
    (0..nest.dims.len().saturating_sub(1)).find(|&k| {
        let (a, b) = (nest.dims[k], nest.dims[k + 1]);
        let contiguous = |at: &Affine| at.dim(k) == at.dim(k + 1) * b.size as i64;
        a.carried == b.carried && nest.vector != Some(k) && addresses(p, nest).all(contiguous)
    })
}

fn merge(p: &mut Program, nest: &mut Nest, k: usize) {
    let inner = nest.dims.remove(k + 1);
    nest.dims[k].size *= inner.size;
    nest.vector = nest.vector.map(|v| if v > k { v - 1 } else { v });
    let shift = |at: &Affine| {
        let mut terms = BTreeMap::new();
        for (&var, &c) in &at.terms {
            match var {
                Var::Dim(d) if d == k => {}
                Var::Dim(d) if d > k => {
                    terms.insert(Var::Dim(d - 1), c);
                }
                Var::Dim(_) | Var::Task | Var::Outer(_) | Var::Value(_) => {
                    terms.insert(var, c);
                }
            }
        }
        Affine { constant: at.constant, terms }
    };
    for id in &nest.body {
        let def = &mut p.defs[id.0 as usize];
        if let Level::Loop(n) = def.level {
            def.level = Level::Loop(if n > k { n - 1 } else { n });
        }
        if let Inst::Index(at) | Inst::Load(_, at) = &mut def.inst {
            *at = shift(at);
        }
    }
    for Store { at, depth, .. } in &mut nest.stores {
        *at = shift(at);
        *depth -= usize::from(*depth > k);
    }
}

/// Gives every used scratch its place and drops the others.
fn lay_out(p: &mut Program) {
    let mut used: BTreeSet<usize> = BTreeSet::new();
    for step in p.task.iter().chain(&p.row).chain(&p.end) {
        if let Step::Nest(nest) = step {
            for s in &nest.stores {
                if let Mem::Scratch(i) = s.mem {
                    used.insert(i);
                }
            }
        }
    }
    let number: BTreeMap<usize, usize> = used.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    let renamed = |mem: Mem| match mem {
        Mem::Scratch(i) => Mem::Scratch(number.get(&i).copied().unwrap_or(0)),
        Mem::Arg(_) => mem,
    };
    let mut offset = 0;
    p.scratch = used.iter().map(|&i| p.scratch[i].clone()).collect();
    for s in &mut p.scratch {
        s.offset = offset;
        offset += round_up(s.len * s.lane.dtype().bytes(), 64);
    }
    for def in &mut p.defs {
        if let Inst::Load(mem, _) = &mut def.inst {
            *mem = renamed(*mem);
        }
    }
    for steps in [&mut p.task, &mut p.row, &mut p.end] {
        for step in steps.iter_mut() {
            match step {
                Step::Nest(nest) => nest.stores.iter_mut().for_each(|s| s.mem = renamed(s.mem)),
                Step::Zero(i) => *i = number.get(i).copied().unwrap_or(0),
                Step::Def(_) => {}
            }
        }
    }
}

/// Numbers definitions in program order and forgets the unused ones.
fn renumber(p: &mut Program) {
    let mut order: Vec<Id> = Vec::new();
    for step in p.task.iter().chain(&p.row).chain(&p.end) {
        match step {
            Step::Def(id) => order.push(*id),
            Step::Nest(nest) => order.extend(&nest.body),
            Step::Zero(_) => {}
        }
    }
    let number: BTreeMap<Id, Id> = order.iter().enumerate().map(|(new, &old)| (old, Id(new as u32))).collect();
    let id = |x: &Id| number.get(x).copied().unwrap_or(*x);
    let address = |at: &Affine| {
        let of = |v: &Var| if let Var::Value(x) = v { Var::Value(id(x)) } else { *v };
        Affine { constant: at.constant, terms: at.terms.iter().map(|(v, &c)| (of(v), c)).collect() }
    };
    let defs = order.iter().map(|&old| {
        let mut def = p.def(old).clone();
        def.inst = match &def.inst {
            Inst::Const(x) => Inst::Const(*x),
            Inst::Index(at) => Inst::Index(address(at)),
            Inst::Load(mem, at) => Inst::Load(*mem, address(at)),
            Inst::Unary(op, a) => Inst::Unary(*op, id(a)),
            Inst::Binary(op, a, b) => Inst::Binary(*op, id(a), id(b)),
            Inst::Select(a, b, c) => Inst::Select(id(a), id(b), id(c)),
            Inst::Cast(to, a) => Inst::Cast(*to, id(a)),
            Inst::Reduce(kind, a) => Inst::Reduce(*kind, id(a)),
            Inst::Scan(a, b) => Inst::Scan(a.as_ref().map(id), id(b)),
        };
        def
    });
    let defs = defs.collect();
    p.defs = defs;
    for steps in [&mut p.task, &mut p.row, &mut p.end] {
        for step in steps.iter_mut() {
            match step {
                Step::Def(x) => *x = id(x),
                Step::Zero(_) => {}
                Step::Nest(nest) => {
                    nest.body.iter_mut().for_each(|x| *x = id(x));
                    for s in &mut nest.stores {
                        s.at = address(&s.at);
                        s.value = id(&s.value);
                    }
                }
            }
        }
    }
}
