//! Axes: names, sizes, and which graph axis a name stands for.
//!
//! *Takes* declarations; *gives* graph axes; *promises* one graph name per declaring place and size over all evaluations of a
//! program, and that a local axis is none of those that came in with the arguments, so that a function cannot mix up its own
//! names with its caller's.

use super::codes;
use super::elaborate::{Eval, Evaluator, Limits, Reported};
use super::value::Value;
use crate::graph::ir::{AxisId, AxisRole};
use golf_grammar::ast::{AxisDecl, AxisSize, Ident};
use golf_grammar::{Diagnostic, Span};
use std::collections::{BTreeMap, BTreeSet};

/// Unique graph names for axes by declaring place, size and copy, kept over all evaluations of a program.
#[derive(Clone, Debug, Default)]
pub struct AxisNames {
    table: BTreeMap<(Span, usize, usize), String>,
    taken: BTreeSet<String>,
}

impl AxisNames {
    /// Keeps a name for one axis.
    pub fn reserve(&mut self, name: &str) {
        self.taken.insert(name.to_string());
    }

    fn name(&mut self, site: Span, stem: &str, size: usize, copy: usize) -> String {
        if let Some(name) = self.table.get(&(site, size, copy)) {
            return name.clone();
        }
        let mut name = stem.to_string();
        let mut n = 0;
        while self.taken.contains(&name) {
            n += 1;
            name = format!("{stem}.{n}");
        }
        self.taken.insert(name.clone());
        self.table.insert((site, size, copy), name.clone());
        name
    }
}

impl<'p> Evaluator<'p, '_> {
    /// The axis of a name where an axis is meant.
    pub fn axis(&mut self, name: &'p Ident) -> Eval<AxisId> {
        match self.find_axis(name.as_str()) {
            Some(found) => found,
            None => {
                let names = self.visible_axes();
                let mut d = Diagnostic::error(codes::UNKNOWN_AXIS, format!("there is no axis `{}` here", name.name))
                    .at(name.span, "not an axis")
                    .did_you_mean(name.as_str(), name.span, names.iter().map(String::as_str));
                if self.frames.last().is_some_and(|frame| frame.get(name.as_str()).is_some()) {
                    d = d.note("a value has this name, but axes and values are two namespaces");
                }
                Err(self.error(d))
            }
        }
    }

    /// The axis of a name, or `None`.
    pub fn find_axis(&mut self, name: &str) -> Option<Eval<AxisId>> {
        if let Some(axis) = self.frames.last().and_then(|frame| frame.axis(name)) {
            return Some(Ok(axis));
        }
        let module = self.module();
        let key = (module, name.to_string());
        match self.axes.get(&key) {
            Some(Some(known)) => return Some(*known),
            Some(None) => {
                let span = self.program.modules[module].axis(name).map_or(Span::default(), |decl| decl.name.span);
                return Some(Err(self.fail(codes::CYCLE, span, format!("the axis `{name}` is defined by itself"), "")));
            }
            None => {}
        }
        let program = self.program;
        let decl = program.modules[module].axis(name)?;
        self.axes.insert(key.clone(), None);
        let axis = self.on_top(module, |e| {
            let (size, role) = e.axis_size(decl)?;
            let made = e.b.axis(name, size, role);
            made.map_err(|error| e.fail(codes::TENSOR, decl.span, error.to_string(), ""))
        });
        self.axes.insert(key, Some(axis));
        Some(axis)
    }

    /// Fixes a top-level axis of the user's file (batch and time of a graph).
    pub fn set_axis(&mut self, name: &str, axis: AxisId) {
        self.axes.insert((0, name.to_string()), Some(Ok(axis)));
    }

    fn visible_axes(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        if let Some(frame) = self.frames.last() {
            names.extend(frame.scopes.iter().flat_map(|scope| scope.axes().iter().map(|(name, _)| name.to_string())));
            if let Some(outer) = &frame.outer {
                names.extend(outer.borrow().axes().iter().map(|(name, _)| name.to_string()));
            }
        }
        let module = self.module();
        names.extend(self.program.modules[module].axis_names().map(str::to_string));
        names.extend(self.axes.keys().filter(|(m, _)| *m == module).map(|(_, name)| name.clone()));
        names
    }

    /// Size and role of a declared axis.
    pub fn axis_size(&mut self, decl: &'p AxisDecl) -> Eval<(usize, AxisRole)> {
        match &decl.size {
            AxisSize::Like(name) => {
                let axis = self.axis(name)?;
                let like = &self.b.graph().axes[axis.0 as usize];
                Ok((like.size, like.role))
            }
            AxisSize::Value { value, rounding } => {
                let before = std::mem::replace(&mut self.rounding, rounding.as_ref().map(|(r, _)| *r));
                let size = self.expr(value);
                self.rounding = before;
                Ok((self.positions(size?, value.span, &decl.name.name)?, AxisRole::Plain))
            }
        }
    }

    fn positions(&mut self, size: Value<'p>, span: Span, name: &str) -> Eval<usize> {
        match size {
            Value::Int(n) if (1..Limits::AXIS).contains(&n) => Ok(n as usize),
            Value::Int(n) => {
                let message = format!("the axis `{name}` would have {n} positions");
                Err(self.fail(codes::AXIS_SIZE, span, message, "an axis has at least 1 position, and fewer than 2^31"))
            }
            other => {
                let found = other.describe(self.b);
                Err(self.error(
                    Diagnostic::error(
                        codes::WRONG_KIND,
                        format!("the size of the axis `{name}` is not a whole number"),
                    )
                    .at(span, format!("this is {found}"))
                    .expected_found("an integer", found),
                ))
            }
        }
    }

    /// Declares a local axis: a name of its own, different from every axis that came in as an argument.
    pub fn local_axis(&mut self, name: &'p Ident, size: usize, role: AxisRole) -> Eval<AxisId> {
        for copy in 0.. {
            let unique = self.names.name(name.span, name.as_str(), size, copy);
            let axis = match self.b.axis(&unique, size, role) {
                Ok(axis) => axis,
                Err(error) => return Err(self.fail(codes::TENSOR, name.span, error.to_string(), "")),
            };
            if !self.frame().incoming.contains(&axis) {
                self.frame().inner().bind_axis(name.as_str(), axis);
                return Ok(axis);
            }
        }
        Err(Reported)
    }
}
