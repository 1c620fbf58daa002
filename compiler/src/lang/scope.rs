//! Names visible at a point of the evaluation.
//!
//! *Takes* bindings; *gives* [`Scope`] (one block) and [`Frame`] (one running definition); *promises* that inner blocks hide outer
//! ones and that value names and axis names do not meet.

use super::program::ModuleId;
use super::value::Value;
use crate::graph::ir::AxisId;
use golf_grammar::Span;
use golf_grammar::ast::{Type, TypeKind};
use std::cell::RefCell;
use std::rc::Rc;

/// A bound name.
#[derive(Clone, Debug)]
pub struct Var<'p> {
    /// What it is now.
    pub value: Value<'p>,
    /// Its declared type.
    pub ty: Option<&'p Type>,
    /// Where it was bound.
    pub span: Span,
}

impl Var<'_> {
    /// Declared `T?`.
    pub fn optional(&self) -> bool {
        self.ty.is_some_and(|ty| matches!(ty.kind, TypeKind::Optional(_)))
    }
}

/// The names of one block.
#[derive(Clone, Debug, Default)]
pub struct Scope<'p> {
    values: Vec<(&'p str, Var<'p>)>,
    axes: Vec<(&'p str, AxisId)>,
}

impl<'p> Scope<'p> {
    /// Binds a value; a name bound before in this block is hidden.
    pub fn bind(&mut self, name: &'p str, var: Var<'p>) {
        self.values.push((name, var));
    }

    /// Binds an axis.
    pub fn bind_axis(&mut self, name: &'p str, axis: AxisId) {
        self.axes.push((name, axis));
    }

    /// The value bound last to this name.
    pub fn get(&self, name: &str) -> Option<&Var<'p>> {
        self.values.iter().rev().find(|(n, _)| *n == name).map(|(_, var)| var)
    }

    /// The same, to change.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Var<'p>> {
        self.values.iter_mut().rev().find(|(n, _)| *n == name).map(|(_, var)| var)
    }

    /// The axis of this name.
    pub fn axis(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().rev().find(|(n, _)| *n == name).map(|(_, axis)| *axis)
    }

    /// All values, in the order of binding.
    pub fn values(&self) -> &[(&'p str, Var<'p>)] {
        &self.values
    }

    /// All axes.
    pub fn axes(&self) -> &[(&'p str, AxisId)] {
        &self.axes
    }

    /// Adds the names of an inner block that stays visible.
    pub fn absorb(&mut self, inner: Scope<'p>) {
        self.values.extend(inner.values);
        self.axes.extend(inner.axes);
    }
}

/// What is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Top level: constants, axes, settings.
    Top,
    /// A function.
    Function,
    /// A layer's body: makes parameters.
    Layer,
    /// The model's body: makes parameters and applies layers.
    Model,
    /// A method of a layer instance.
    Method,
    /// The body of an optimizer or average, which declares states.
    Stateful,
    /// The body of a quantizer, schedule or filter.
    Slot,
}

/// One running definition.
#[derive(Clone, Debug)]
pub struct Frame<'p> {
    /// Where its text stands.
    pub module: ModuleId,
    /// What it is.
    pub kind: FrameKind,
    /// Names of the instance whose method runs.
    pub outer: Option<Rc<RefCell<Scope<'p>>>>,
    /// Blocks, innermost last; the first holds the arguments.
    pub scopes: Vec<Scope<'p>>,
    /// Axes that came in with the arguments: a local axis must be none of them.
    pub incoming: Vec<AxisId>,
}

impl<'p> Frame<'p> {
    /// A frame with an empty argument scope.
    pub fn new(module: ModuleId, kind: FrameKind) -> Frame<'p> {
        Frame { module, kind, outer: None, scopes: vec![Scope::default()], incoming: Vec::new() }
    }

    /// The innermost block.
    pub fn inner(&mut self) -> &mut Scope<'p> {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    /// The local value of this name.
    pub fn get(&self, name: &str) -> Option<Value<'p>> {
        self.var(name).map(|var| var.value)
    }

    /// The local name.
    pub fn var(&self, name: &str) -> Option<Var<'p>> {
        if let Some(var) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(var.clone());
        }
        self.outer.as_ref().and_then(|outer| outer.borrow().get(name).cloned())
    }

    /// The local axis of this name.
    pub fn axis(&self, name: &str) -> Option<AxisId> {
        if let Some(axis) = self.scopes.iter().rev().find_map(|scope| scope.axis(name)) {
            return Some(axis);
        }
        self.outer.as_ref().and_then(|outer| outer.borrow().axis(name))
    }
}
