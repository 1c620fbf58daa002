//! From a row body to a loop program.
//!
//! *Takes* a [`Row`]; *gives* a [`Program`]; *promises* the sums, rounding and order stated in [`super`], and an error naming what a body
//! asks for that row kernels cannot do.
//!
//! Reductions and scans are steps of their own; everything else is computed where it is used, unless that would be repeated work
//! dearer than a trip through scratch (in L1). Steps whose loops have the same shape are merged into one nest when their data
//! dependencies allow it. The loop is: try; when a value turns out to need scratch, or to be worth it, keep it and try again.

use super::Row;
use super::eval::{Evaluator, Kept, Request, Slot, with_outer};
use super::loops::{Affine, Dim, Inst, LANES, Level, Mem, Nest, Program, Scratch, Step, Store, Var};
use super::pieces::{Cutter, Item, Piece, Role, role};
use super::values::{Kind, Output, Val, Values};
use super::{cost, tidy};
use crate::graph::ir::AxisId;
use std::collections::BTreeSet;

/// Lowers a row body.
pub fn lower(row: &Row) -> Result<Program, String> {
    check(row)?;
    let values = Values::of(row)?;
    let used = reachable(&values);
    let stepwise = |v: &Val| matches!(values.get(*v).kind, Kind::Reduce(..) | Kind::Scan(..));
    let mut keep: BTreeSet<Val> = used.iter().copied().filter(stepwise).collect();
    // Every attempt that is not the last keeps one more value.
    loop {
        match attempt(&values, &keep) {
            Ok((program, None)) => return Ok(tidy::tidy(program)),
            Ok((_, Some(v))) | Err(Request::Keep(v)) if keep.insert(v) => {}
            Ok((program, Some(_))) => return Ok(tidy::tidy(program)),
            Err(Request::Refuse(why)) => return Err(why),
            Err(Request::Keep(v) | Request::Cut { value: v, .. }) => {
                return Err(format!(
                    "the views of value {} of a row body do not fit loops: {:?}",
                    v.0,
                    values.get(v).kind
                ));
            }
            Err(Request::Refine { .. }) => return Err("a loop of a row body cannot be refined".into()),
        }
    }
}

/// What the types cannot say about a descriptor.
fn check(row: &Row) -> Result<(), String> {
    let g = &row.graph;
    if row.block == 0 {
        return Err("a row kernel with 0 rows per task".into());
    }
    if row.args.len() != g.buffers.len() {
        return Err(format!("a row kernel with {} buffers and {} arguments", g.buffers.len(), row.args.len()));
    }
    for (buffer, arg) in g.buffers.iter().zip(&row.args) {
        if arg.strides.len() != buffer.ty.axes.len() {
            return Err(format!(
                "argument `{}` has {} strides for {} axes",
                buffer.name,
                arg.strides.len(),
                buffer.ty.axes.len()
            ));
        }
    }
    for effect in &g.effects {
        let i = effect.buffer.0 as usize;
        let axes = &g.buffers[i].ty.axes;
        let missing = row.outer.iter().find(|&&a| !axes.contains(&a) && g.axes[a.0 as usize].size > 1);
        if let (Some(a), false) = (missing, row.args[i].per_task) {
            let (buffer, axis) = (&g.buffers[i].name, &g.axes[a.0 as usize].name);
            return Err(format!("every row along `{axis}` would write the same elements of `{buffer}`"));
        }
        if row.args[i].per_task && axes.iter().any(|a| row.outer.contains(a)) {
            return Err(format!("the per-task output `{}` has an outer axis", g.buffers[i].name));
        }
    }
    Ok(())
}

/// Values the outputs need.
fn reachable(values: &Values) -> BTreeSet<Val> {
    let mut seen = BTreeSet::new();
    let mut work: Vec<Val> = values.outputs.iter().map(|o| o.value).collect();
    while let Some(v) = work.pop() {
        if seen.insert(v) {
            work.extend(&values.get(v).args);
        }
    }
    seen
}

/// Values that are the same for all rows and whose inputs no row writes.
pub fn invariant(values: &Values) -> BTreeSet<Val> {
    let mut set = BTreeSet::new();
    let rows: usize = values.row.outer.iter().map(|&a| values.size(a)).product();
    if rows == 1 {
        return set;
    }
    for (i, value) in values.list.iter().enumerate() {
        let fixed = !matches!(value.kind, Kind::Read(arg) if values.in_place(arg));
        if fixed && !value.axes.iter().any(|&a| values.is_outer(a)) && value.args.iter().all(|a| set.contains(a)) {
            set.insert(Val(i as u32));
        }
    }
    set
}

/// One attempt; a value that is worth keeping comes with the program.
fn attempt(values: &Values, keep: &BTreeSet<Val>) -> Result<(Program, Option<Val>), Request> {
    let row = values.row;
    let mut program = Program {
        outer: row.outer.iter().map(|&a| values.size(a)).collect(),
        block: row.block,
        args: row.graph.buffers.iter().map(|b| b.ty.dtype).collect(),
        scratch: Vec::new(),
        defs: Vec::new(),
        task: Vec::new(),
        row: Vec::new(),
        end: Vec::new(),
    };
    let mut kept = Kept { invariant: invariant(values), ..Kept::default() };
    let mut items = Vec::new();
    for &v in keep {
        let section = if kept.invariant.contains(&v) { Level::Task } else { Level::Row };
        let role = role(values, v);
        let axes = values.inner_axes(v);
        let target = if axes.is_empty() && matches!(role, Role::Reduce(_)) {
            kept.scalars.insert(v);
            None
        } else {
            let strides = dense(values, &axes);
            let scratch = add_scratch(&mut program, values, v);
            kept.slots.insert(v, Slot { scratch, strides: strides.clone() });
            Some((Mem::Scratch(scratch), Affine::constant(0), strides))
        };
        items.push(Item { value: v, role, target, section });
    }
    let in_place = |o: &Output| values.in_place(o.arg);
    let first = values.outputs.iter().filter(|o| !in_place(o));
    let last = values.outputs.iter().filter(|o| in_place(o));
    let mut sums = Vec::new();
    for output in first.chain(last) {
        let spec = &row.args[output.arg];
        let axes = &row.graph.buffers[output.arg].ty.axes;
        let target = if output.per_task {
            let scratch = add_scratch_of(&mut program, values, axes, values.get(output.value).lane);
            sums.push((scratch, *output));
            (Mem::Scratch(scratch), Affine::constant(0), dense(values, axes))
        } else {
            let mut offset = Affine::constant(spec.offset);
            let mut strides = Vec::new();
            for (&axis, &stride) in axes.iter().zip(&spec.strides) {
                match row.outer.iter().position(|&a| a == axis) {
                    Some(k) => offset = offset.plus(&Affine::var(Var::Outer(k), 1), stride),
                    None => strides.push((axis, stride)),
                }
            }
            (Mem::Arg(output.arg), offset, strides)
        };
        items.push(Item {
            value: output.value,
            role: Role::Output(*output),
            target: Some(target),
            section: Level::Row,
        });
    }
    let cutter = Cutter { values, kept: &kept, program: &program };
    let plan = Plan::of(&cutter, &items)?;
    let mut e = Evaluator::new(values, &kept, program.clone());
    let mut costs = cost::Costs::new(values, keep, &kept.invariant);
    for (scratch, _) in &sums {
        e.program.task.push(Step::Zero(*scratch));
    }
    for (section, nests) in [(Level::Task, &plan.task), (Level::Row, &plan.row)] {
        e.section = section;
        for nest in nests {
            write(&mut e, values, &items, nest)?;
            costs.add(&e, section);
        }
    }
    for (scratch, output) in sums {
        write_sums(&mut e, values, scratch, output);
    }
    let worth = costs.best();
    Ok((e.program, worth))
}

/// Row-major strides.
fn dense(values: &Values, axes: &[AxisId]) -> Vec<(AxisId, i64)> {
    let mut stride = 1;
    let mut strides = Vec::new();
    for &a in axes.iter().rev() {
        strides.push((a, stride));
        stride *= values.size(a) as i64;
    }
    strides.reverse();
    strides
}

fn add_scratch(program: &mut Program, values: &Values, v: Val) -> usize {
    add_scratch_of(program, values, &values.inner_axes(v), values.get(v).lane)
}

fn add_scratch_of(program: &mut Program, values: &Values, axes: &[AxisId], lane: super::loops::Lane) -> usize {
    let len = axes.iter().map(|&a| values.size(a)).product();
    program.scratch.push(Scratch { lane, len, offset: 0 });
    program.scratch.len() - 1
}

/// A nest under construction.
#[derive(Debug)]
struct Group {
    sizes: Vec<usize>,
    carried: Option<Vec<bool>>,
    vector: Option<usize>,
    /// Scans share their nest with nobody.
    alone: bool,
    pieces: Vec<Piece>,
}

/// The nests of both sections, in order.
#[derive(Debug, Default)]
struct Plan {
    task: Vec<Group>,
    row: Vec<Group>,
}

impl Plan {
    fn of(cutter: &Cutter, items: &[Item]) -> Result<Plan, Request> {
        let mut plan = Plan::default();
        for (i, item) in items.iter().enumerate() {
            let pieces = cutter.pieces(i, item)?;
            let groups = if item.section == Level::Task { &mut plan.task } else { &mut plan.row };
            for piece in pieces {
                for (mem, _, foreign) in &piece.loads {
                    if let (Mem::Arg(n), true) = (mem, foreign)
                        && cutter.values.in_place(*n)
                    {
                        let name = &cutter.values.row.graph.buffers[*n].name;
                        return Err(Request::Refuse(format!(
                            "a row kernel writes `{name}` and reads other rows of it"
                        )));
                    }
                }
                place(groups, cutter, items, piece)?;
            }
        }
        in_place_order(&plan.row, items)?;
        Ok(plan)
    }
}

/// Puts a piece into the first nest that fits, or into a new one at the end.
fn place(groups: &mut Vec<Group>, cutter: &Cutter, items: &[Item], piece: Piece) -> Result<(), Request> {
    let item = &items[piece.item];
    let simple = matches!(item.role, Role::Keep | Role::Output(_));
    for n in 0..groups.len() {
        let Some(piece) = fitted(&groups[n], cutter, item, &piece)? else { continue };
        if !allowed(groups, items, &piece, n)? {
            continue;
        }
        if !simple {
            groups[n].carried = Some(piece.carried.clone());
        }
        groups[n].pieces.push(piece);
        return Ok(());
    }
    if !allowed(groups, items, &piece, groups.len())? {
        return Err(Request::Keep(item.value));
    }
    groups.push(Group {
        sizes: piece.space.sizes(),
        carried: (!simple).then(|| piece.carried.clone()),
        vector: piece.vector,
        alone: matches!(item.role, Role::Scan(..)),
        pieces: vec![piece],
    });
    Ok(())
}

/// The piece with loops like those of the nest, if that is possible.
fn fitted(group: &Group, cutter: &Cutter, item: &Item, piece: &Piece) -> Result<Option<Piece>, Request> {
    let simple = matches!(item.role, Role::Keep | Role::Output(_));
    if group.alone || matches!(item.role, Role::Scan(..)) {
        return Ok(None);
    }
    if !simple && group.carried.as_ref().is_some_and(|c| *c != piece.carried) {
        return Ok(None);
    }
    if group.sizes == piece.space.sizes() {
        return Ok((group.vector == piece.vector).then(|| piece.clone()));
    }
    // Element-wise loops may be refined to the nest's if no lanes are wasted.
    let lanes = group.vector.map_or(1, |v| group.sizes[v]);
    if !simple || group.sizes.len() <= piece.space.sides.len() || lanes % LANES != 0 {
        return Ok(None);
    }
    let (mut space, mut k) = (piece.space.clone(), 0);
    while k < group.sizes.len() {
        let Some(side) = space.sides.get(k) else { return Ok(None) };
        let (have, want) = (side.size, group.sizes[k]);
        if have != want {
            if have % want != 0 {
                return Ok(None);
            }
            space = space.refine(k, have / want);
        }
        k += 1;
    }
    if space.sizes() != group.sizes || group.vector != Some(group.sizes.len() - 1) {
        return Ok(None);
    }
    match cutter.piece(piece.item, item, space, group.vector) {
        Ok(piece) => Ok(Some(piece)),
        Err(Request::Refuse(why)) => Err(Request::Refuse(why)),
        Err(_) => Ok(None),
    }
}

/// Whether a piece may run in nest `n`: everything it loads has been stored, and nothing it overwrites is still needed.
fn allowed(groups: &[Group], items: &[Item], piece: &Piece, n: usize) -> Result<bool, Request> {
    for (m, group) in groups.iter().enumerate() {
        for other in &group.pieces {
            let made = items[other.item].value;
            if piece.scalars.contains(&made) && other.store.is_none() && m >= n {
                return Ok(false);
            }
            let simple = matches!(items[other.item].role, Role::Keep);
            let Some((mem @ Mem::Scratch(_), stored)) = &other.store else { continue };
            for (_, at, _) in piece.loads.iter().filter(|(loaded, _, _)| loaded == mem) {
                if m > n || m == n && !(simple && at == stored && single(groups, other.item)) {
                    return Ok(false);
                }
            }
        }
    }
    let Some((mem @ Mem::Arg(_), stored)) = &piece.store else { return Ok(true) };
    if piece.loads.iter().any(|(loaded, at, _)| loaded == mem && at != stored) {
        return Err(Request::Keep(items[piece.item].value));
    }
    for (m, group) in groups.iter().enumerate() {
        for (_, at, _) in group.pieces.iter().flat_map(|p| &p.loads).filter(|(loaded, _, _)| loaded == mem) {
            if m > n || m == n && at != stored {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn single(groups: &[Group], item: usize) -> bool {
    groups.iter().flat_map(|g| &g.pieces).filter(|p| p.item == item).count() == 1
}

/// Outputs that overwrite inputs come after all reads of these inputs; what was placed later and still reads them is kept first.
fn in_place_order(groups: &[Group], items: &[Item]) -> Result<(), Request> {
    for (n, group) in groups.iter().enumerate() {
        for (mem, stored) in group.pieces.iter().filter_map(|p| p.store.as_ref()) {
            if matches!(mem, Mem::Scratch(_)) {
                continue;
            }
            for (m, other) in groups.iter().enumerate().skip(n) {
                for piece in &other.pieces {
                    if piece.loads.iter().any(|(loaded, at, _)| loaded == mem && (m > n || at != stored)) {
                        return Err(Request::Keep(items[piece.item].value));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Writes a nest.
fn write(e: &mut Evaluator, values: &Values, items: &[Item], group: &Group) -> Result<(), Request> {
    e.begin(&group.sizes, group.vector);
    let none = vec![false; group.sizes.len()];
    let carried = group.carried.as_ref().unwrap_or(&none);
    let mut stores = Vec::new();
    for piece in &group.pieces {
        let item = &items[piece.item];
        let env = with_outer(values, piece.space.env());
        let lane = values.get(item.value).lane;
        let free = carried.iter().filter(|c| !**c).count();
        let (id, depth, add) = match &item.role {
            Role::Keep => (e.root(item.value, &env)?, group.sizes.len(), false),
            Role::Output(output) => (e.value(item.value, &env)?, group.sizes.len(), output.add || output.per_task),
            Role::Reduce(_) => {
                let Kind::Reduce(kind, _) = values.get(item.value).kind else {
                    return Err(Request::Refuse("a reduction that is none".into()));
                };
                let x = e.value(values.get(item.value).args[0], &env)?;
                let level = if free == 0 { e.section } else { Level::Loop(free) };
                let varies = group.vector.is_some_and(|v| v < free);
                let id = e.define(Inst::Reduce(kind, x), lane, level, varies);
                e.body.push(id);
                if piece.store.is_none() {
                    e.results.insert(item.value, id);
                }
                (id, free, false)
            }
            Role::Scan(..) => {
                let args: Result<Vec<_>, _> = values.get(item.value).args.iter().map(|&x| e.value(x, &env)).collect();
                let inst = match args?[..] {
                    [b] => Inst::Scan(None, b),
                    [a, b] => Inst::Scan(Some(a), b),
                    _ => return Err(Request::Refuse("a scan with a wrong number of operands".into())),
                };
                let id = e.define(inst, lane, Level::Loop(group.sizes.len()), group.vector.is_some());
                e.body.push(id);
                (id, group.sizes.len(), false)
            }
        };
        if let Some((mem, at)) = piece.store.clone() {
            if matches!(item.role, Role::Keep) {
                e.stored(mem, at.clone(), id);
            }
            stores.push(Store { mem, at, value: id, add, depth });
        }
    }
    let dims = group.sizes.iter().zip(carried).map(|(&size, &carried)| Dim { size, carried }).collect();
    let nest = Nest { dims, vector: group.vector, body: std::mem::take(&mut e.body), stores };
    match e.section {
        Level::Task => e.program.task.push(Step::Nest(nest)),
        Level::Row | Level::Loop(_) => e.program.row.push(Step::Nest(nest)),
    }
    Ok(())
}

/// Copies a per-task sum to its argument.
fn write_sums(e: &mut Evaluator, values: &Values, scratch: usize, output: Output) {
    let spec = &values.row.args[output.arg];
    let axes = &values.row.graph.buffers[output.arg].ty.axes;
    let numel: usize = axes.iter().map(|&a| values.size(a)).product();
    let sized: Vec<(AxisId, usize)> = axes.iter().map(|&a| (a, values.size(a))).collect();
    let space = super::space::Space::all(&sized);
    let env = space.env();
    let address = |offset: i64, strides: &[(AxisId, i64)]| {
        strides.iter().fold(Affine::constant(offset), |sum, (a, stride)| sum.plus(&env[a], *stride))
    };
    let sizes = space.sizes();
    let vector = sizes.len().checked_sub(1);
    e.begin(&sizes, vector);
    let from = address(0, &dense(values, axes));
    let strides: Vec<(AxisId, i64)> = axes.iter().copied().zip(spec.strides.iter().copied()).collect();
    let to = address(spec.offset, &strides).plus(&Affine::var(Var::Task, 1), numel as i64);
    let lane = values.get(output.value).lane;
    let depth = sizes.len();
    let level = if depth == 0 { Level::Row } else { Level::Loop(depth) };
    let value = e.define(Inst::Load(Mem::Scratch(scratch), from), lane, level, vector.is_some());
    let store = Store { mem: Mem::Arg(output.arg), at: to, value, add: output.add, depth };
    let dims = sizes.iter().map(|&size| Dim { size, carried: false }).collect();
    e.program.end.push(Step::Nest(Nest { dims, vector, body: vec![value], stores: vec![store] }));
}
