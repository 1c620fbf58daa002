//! Declared types.
//!
//! *Takes* a value and a type as written; *gives* the value (an integer declared `float` becomes one); *promises* that axis
//! parameters without a value are bound by position, and that a mismatch shows both the value and the declaration.

use super::codes;
use super::elaborate::{Eval, Evaluator};
use super::value::Value;
use crate::graph::ir::{AxisId, DType};
use golf_grammar::ast::{Ident, Type, TypeKind};
use golf_grammar::{Diagnostic, Span};
use std::rc::Rc;

/// Words that name types.
const WORDS: [&str; 9] = ["int", "float", "bool", "string", "list", "axis", "dtype", "layer", "fn"];

/// The dtype of a name.
pub fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "f32" => DType::F32,
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        "i32" => DType::I32,
        "i8" => DType::I8,
        "bool" => DType::Bool,
        _ => return None,
    })
}

impl<'p> Evaluator<'p, '_> {
    /// Checks a value against a declared type. `open` holds axis parameters that have no axis yet; those the type names are bound
    /// and removed.
    pub fn check(&mut self, value: Value<'p>, ty: &'p Type, at: Span, open: &mut Vec<&'p str>) -> Eval<Value<'p>> {
        match &ty.kind {
            TypeKind::Optional(inner) => match value {
                Value::None => Ok(Value::None),
                value => self.check(value, inner, at, open),
            },
            TypeKind::Tensor { dtype, rest, axes } => {
                let found = match &value {
                    Value::Tensor(node) => *node,
                    // A number is a tensor without axes.
                    Value::Int(_) | Value::Float(_) if axes.is_empty() && rest.is_none() => {
                        let x = value.number().unwrap_or(f64::NAN);
                        self.b.constant(x)
                    }
                    _ => return Err(self.mismatch(&value, ty, at, None)),
                };
                if let Some(name) = dtype {
                    let wanted = self.dtype_of(name)?;
                    let have = self.b.dtype(found);
                    if wanted != have && !(wanted.is_float() && have.is_float()) {
                        return Err(self.mismatch(&value, ty, at, None));
                    }
                }
                self.check_axes(&value, (found, axes, rest.is_some()), ty, at, open)?;
                Ok(Value::Tensor(found))
            }
            TypeKind::Name(name) => self.check_word(value, name, ty, at),
            TypeKind::Tuple(fields) => match &value {
                Value::Tuple(items) if items.len() == fields.len() => {
                    let mut out = Vec::with_capacity(items.len());
                    for (field, (name, item)) in fields.iter().zip(items.iter()) {
                        let item = self.check(item.clone(), &field.ty, at, open)?;
                        out.push((name.or(field.name.as_ref().map(Ident::as_str)), item));
                    }
                    Ok(Value::Tuple(Rc::new(out)))
                }
                _ => Err(self.mismatch(&value, ty, at, None)),
            },
        }
    }

    /// The dtype of a written name.
    pub fn dtype_of(&mut self, name: &Ident) -> Eval<DType> {
        match dtype(name.as_str()) {
            Some(dtype) => Ok(dtype),
            None => {
                let names = ["f32", "bf16", "f16", "i32", "i8", "bool"];
                Err(self.error(
                    Diagnostic::error(codes::UNKNOWN_TYPE, format!("`{}` is not a dtype", name.name))
                        .at(name.span, "")
                        .note(format!("dtypes: {}", names.join(", ")))
                        .did_you_mean(name.as_str(), name.span, names),
                ))
            }
        }
    }

    fn check_axes(
        &mut self,
        value: &Value<'p>,
        (node, axes, rest): (crate::graph::ir::NodeId, &'p [Ident], bool),
        ty: &'p Type,
        at: Span,
        open: &mut Vec<&'p str>,
    ) -> Eval<()> {
        let have: Vec<AxisId> = self.b.axes(node).to_vec();
        let mut named = Vec::new();
        let mut to_bind = Vec::new();
        for axis in axes {
            if open.contains(&axis.as_str()) {
                to_bind.push(axis);
            } else {
                named.push(self.axis(axis)?);
            }
        }
        let left: Vec<AxisId> = have.iter().copied().filter(|axis| !named.contains(axis)).collect();
        let all_there = named.iter().all(|axis| have.contains(axis));
        let fits = if rest { left.len() >= to_bind.len() } else { left.len() == to_bind.len() };
        if !all_there || !fits {
            let note = (!to_bind.is_empty())
                .then(|| "axis parameters stand for the axes that are left over, in order".to_string());
            return Err(self.mismatch(value, ty, at, note));
        }
        let from = left.len() - to_bind.len();
        for (axis, id) in to_bind.into_iter().zip(&left[from..]) {
            open.retain(|name| *name != axis.as_str());
            self.frame().inner().bind_axis(axis.as_str(), *id);
            self.frame().incoming.push(*id);
        }
        Ok(())
    }

    fn check_word(&mut self, value: Value<'p>, name: &'p Ident, ty: &'p Type, at: Span) -> Eval<Value<'p>> {
        let fits = match (name.as_str(), &value) {
            ("float", Value::Int(x)) => return Ok(Value::Float(*x as f64)),
            ("int", Value::Int(_))
            | ("float", Value::Float(_) | Value::Host(_))
            | ("bool", Value::Bool(_))
            | ("string", Value::Str(_))
            | ("list", Value::List(_) | Value::Range(..))
            | ("axis", Value::Axis(_))
            | ("dtype", Value::DType(_))
            | ("layer", Value::Instance(_))
            | ("fn", Value::Def(..) | Value::Builtin(_)) => true,
            (word, _) if WORDS.contains(&word) => false,
            (word, Value::Tensor(node)) if dtype(word).is_some() => {
                let (wanted, have) = (dtype(word), self.b.dtype(*node));
                self.b.axes(*node).is_empty()
                    && (wanted == Some(have) || have.is_float() && wanted.is_some_and(DType::is_float))
            }
            (word, _) if dtype(word).is_some() => false,
            (word, _) => {
                return Err(self.error(
                    Diagnostic::error(codes::UNKNOWN_TYPE, format!("`{word}` is not a type"))
                        .at(name.span, "")
                        .note(format!("types: tensors such as `[b t d]`, {}, tuples, and `T?`", WORDS.join(", ")))
                        .did_you_mean(word, name.span, WORDS),
                ));
            }
        };
        if fits { Ok(value) } else { Err(self.mismatch(&value, ty, at, None)) }
    }

    fn mismatch(&mut self, value: &Value<'p>, ty: &Type, at: Span, note: Option<String>) -> super::elaborate::Reported {
        if matches!(value, Value::Broken) {
            return super::elaborate::Reported;
        }
        let (wanted, found) = (type_text(ty), value.describe(self.b));
        let mut d = Diagnostic::error(codes::ARGUMENT_TYPE, format!("expected `{wanted}`, found {found}"))
            .at(at, format!("this is {found}"))
            .also(ty.span, format!("declared `{wanted}`"))
            .expected_found(wanted, found);
        if let Some(note) = note {
            d = d.note(note);
        }
        if matches!(value, Value::None) {
            d = d.hint("only an optional, `T?`, may be `none`");
        }
        self.error(d)
    }
}

/// A type as the formatter writes it.
pub fn type_text(ty: &Type) -> String {
    match &ty.kind {
        TypeKind::Tensor { dtype, rest, axes } => {
            let mut words: Vec<&str> = Vec::new();
            if rest.is_some() {
                words.push("..");
            }
            words.extend(axes.iter().map(Ident::as_str));
            let dtype = dtype.as_ref().map_or(String::new(), |name| format!("{} ", name.name));
            format!("{dtype}[{}]", words.join(" "))
        }
        TypeKind::Name(name) => name.name.clone(),
        TypeKind::Optional(inner) => format!("{}?", type_text(inner)),
        TypeKind::Tuple(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| match &field.name {
                    Some(name) => format!("{}: {}", name.name, type_text(&field.ty)),
                    None => type_text(&field.ty),
                })
                .collect();
            format!("({})", fields.join(", "))
        }
    }
}
