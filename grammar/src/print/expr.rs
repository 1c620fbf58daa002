//! Expressions in canonical form.

use super::Printer;
use super::doc::{self, Doc};
use crate::ast::*;
use crate::dump::escape;

/// How tightly an infix operator binds; operands of the same level stand in one broken list.
fn level(kind: &ExprKind) -> Option<(&'static str, u8)> {
    let (op, level) = match kind {
        ExprKind::Coalesce { .. } => return Some(("??", 3)),
        ExprKind::Binary { op, .. } => (op, *op),
        _ => return None,
    };
    use BinaryOp::*;
    let level = match level {
        Or => 0,
        And => 1,
        Eq | Ne | Lt | Le | Gt | Ge => 2,
        BitOr => 4,
        BitAnd => 5,
        Shl | Shr => 6,
        Add | Sub => 7,
        Mul | Div | IntDiv | Rem => 8,
        Pow => 9,
    };
    Some((op.symbol(), level))
}

impl Printer<'_> {
    pub(super) fn expr(&mut self, expr: &Expr) -> Doc {
        let inner = self.bare(expr);
        if expr.parens { Doc::Cat(vec![Doc::text("("), inner, Doc::text(")")]) } else { inner }
    }

    /// Without its own parentheses.
    fn bare(&mut self, expr: &Expr) -> Doc {
        match &expr.kind {
            ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Duration(_) => Doc::Text(self.literal(expr)),
            ExprKind::Bool(value) => Doc::text(value.to_string()),
            ExprKind::None => Doc::text("none"),
            ExprKind::Str(string) => Doc::Text(self.string(string)),
            ExprKind::Name(name) => Doc::text(name.as_str()),
            ExprKind::Tuple(fields) => {
                let mut elements = Vec::new();
                for field in fields {
                    let start = field.name.as_ref().map_or(field.value.span, |name| name.span.to(field.value.span));
                    let build = |printer: &mut Self| printer.named(field.name.as_ref(), &field.value);
                    elements.push(self.element(start, build));
                }
                // A tuple of one needs its comma to be one.
                let lone = fields.len() == 1 && fields[0].name.is_none();
                self.brackets("(", elements, if lone { ",)" } else { ")" }, !lone, expr.span.end as usize)
            }
            ExprKind::List(items) => {
                let numbers = items.len() > 4
                    && items.iter().all(|item| matches!(item.kind, ExprKind::Int(_) | ExprKind::Float(_)));
                let elements: Vec<_> =
                    items.iter().map(|item| self.element(item.span, |printer| printer.expr(item))).collect();
                if numbers && elements.iter().all(|one| one.before.is_empty() && one.after.is_none()) {
                    return filled(elements.into_iter().map(|element| element.doc).collect());
                }
                self.brackets("[", elements, "]", true, expr.span.end as usize)
            }
            ExprKind::Comprehension(parts) => {
                let value = self.expr(&parts.value);
                let pattern = self.pattern(&parts.pattern);
                let iter = self.expr(&parts.iter);
                let mut inner = vec![Doc::Soft, value, Doc::Line, Doc::Text(format!("for {pattern} in ")), iter];
                if let Some(cond) = &parts.cond {
                    inner.extend([Doc::Line, Doc::text("if "), self.expr(cond)]);
                }
                Doc::group(vec![Doc::text("["), Doc::nest(inner), Doc::Soft, Doc::text("]")])
            }
            ExprKind::AxisMap { from, to } => {
                let names = |list: &[Ident]| list.iter().map(Ident::as_str).collect::<Vec<_>>().join(" ");
                Doc::Text(format!("{} -> {}", names(from), names(to)))
            }
            ExprKind::Call { callee, args } => {
                let callee = self.expr(callee);
                Doc::Cat(vec![callee, self.args(args)])
            }
            ExprKind::Method { receiver, name, args } => {
                let receiver = self.expr(receiver);
                Doc::Cat(vec![receiver, Doc::Text(format!(".{}", name.name)), self.args(args)])
            }
            ExprKind::Field { base, name } => {
                let base = self.expr(base);
                Doc::Cat(vec![base, Doc::Text(format!(".{}", name.name))])
            }
            ExprKind::Index { base, items } => {
                let base = self.expr(base);
                let mut elements = Vec::new();
                for item in items {
                    let span = item.axis.as_ref().map_or(item.at.span, |axis| axis.span.to(item.at.span));
                    elements.push(self.element(span, |printer| {
                        let axis = item.axis.as_ref().map_or(String::new(), |axis| format!("{} = ", axis.name));
                        Doc::Cat(vec![Doc::Text(axis), printer.expr(&item.at)])
                    }));
                }
                Doc::Cat(vec![base, self.brackets("[", elements, "]", true, expr.span.end as usize)])
            }
            ExprKind::Unary { op, operand, .. } => {
                let blank = if *op == UnaryOp::Not { " " } else { "" };
                Doc::Cat(vec![Doc::Text(format!("{}{blank}", op.symbol())), self.expr(operand)])
            }
            ExprKind::Binary { op: BinaryOp::Pow, lhs, rhs, .. } => {
                let lhs = self.expr(lhs);
                Doc::Cat(vec![lhs, Doc::text("^"), self.expr(rhs)])
            }
            ExprKind::Range { start, end } => {
                let start = self.expr(start);
                Doc::Cat(vec![start, Doc::text(".."), self.expr(end)])
            }
            ExprKind::Binary { .. } | ExprKind::Coalesce { .. } => self.chain(expr),
            ExprKind::Label { value, label } => {
                let value = self.expr(value);
                Doc::Cat(vec![value, Doc::Text(format!(" as {}", self.string(label)))])
            }
            ExprKind::If(parts) => self.if_expr(parts),
        }
    }

    /// A number as written. Its span may hold parentheses, and in them comments.
    fn literal(&self, expr: &Expr) -> String {
        let text = self.text.get(expr.span.range()).unwrap_or("0");
        let code = text.lines().map(|line| line.split('#').next().unwrap_or("")).collect::<String>();
        code.trim_matches(|c: char| matches!(c, '(' | ')') || c.is_whitespace()).to_string()
    }

    /// `name: value`
    fn named(&mut self, name: Option<&Ident>, value: &Expr) -> Doc {
        let name = name.map_or(String::new(), |name| format!("{}: ", name.name));
        Doc::Cat(vec![Doc::Text(name), self.expr(value)])
    }

    /// Operands of one level of precedence, with line ends after the operators where they do not fit.
    fn chain(&mut self, expr: &Expr) -> Doc {
        let top = level(&expr.kind).map(|(_, level)| level);
        // Down the left side; the rightmost operand comes first.
        let mut right = Vec::new();
        let mut left = expr;
        loop {
            let (next, operand) = match &left.kind {
                ExprKind::Binary { lhs, rhs, .. } => (lhs, rhs),
                ExprKind::Coalesce { value, otherwise } => (value, otherwise),
                _ => break,
            };
            let Some((symbol, level)) = level(&left.kind) else { break };
            if Some(level) != top || (left.parens && !std::ptr::eq(left, expr)) {
                break;
            }
            right.push((symbol, operand));
            left = next;
        }
        let first = self.expr(left);
        let mut rest = Vec::new();
        for (symbol, operand) in right.into_iter().rev() {
            rest.extend([Doc::Text(format!(" {symbol}")), Doc::Line, self.expr(operand)]);
        }
        Doc::group(vec![first, Doc::nest(rest)])
    }

    fn args(&mut self, args: &Args) -> Doc {
        let mut elements = Vec::new();
        for arg in &args.items {
            let span = arg.name.as_ref().map_or(arg.value.span, |name| name.span.to(arg.value.span));
            elements.push(self.element(span, |printer| printer.named(arg.name.as_ref(), &arg.value)));
        }
        let end = args.span.end as usize;
        if args.over.is_empty() {
            return self.brackets("(", elements, ")", true, end);
        }
        let names = args.over.iter().map(Ident::as_str).collect::<Vec<_>>().join(", ");
        let over = Doc::Text(format!("over {names}"));
        let mut inner = vec![Doc::Soft];
        let count = elements.len();
        for (index, element) in elements.into_iter().enumerate() {
            if index + 1 < count {
                Self::push_element(&mut inner, element, Some(","));
            } else {
                inner.extend(element.before.into_iter().flat_map(|text| [Doc::Text(text), Doc::Hard]));
                inner.push(element.doc);
                inner.extend(element.after.map(Doc::Comment));
                inner.push(Doc::Line);
            }
        }
        for text in self.comments_before(end) {
            inner.extend([Doc::Text(text), Doc::Hard]);
        }
        inner.push(over);
        Doc::group(vec![Doc::text("("), Doc::nest(inner), Doc::Soft, Doc::text(")")])
    }

    /// Elements in brackets: all on one line, or each on its own.
    fn brackets(
        &mut self,
        open: &'static str,
        elements: Vec<super::Element>,
        close: &'static str,
        trailing: bool,
        end: usize,
    ) -> Doc {
        let mut inner = vec![Doc::Soft];
        let count = elements.len();
        for (index, element) in elements.into_iter().enumerate() {
            if index + 1 < count {
                Self::push_element(&mut inner, element, Some(","));
            } else if trailing {
                Self::push_element(&mut inner, element, None);
            } else {
                inner.extend(element.before.into_iter().flat_map(|text| [Doc::Text(text), Doc::Hard]));
                inner.push(element.doc);
                inner.extend(element.after.map(Doc::Comment));
            }
        }
        self.push_comments(&mut inner, end);
        if count == 0 && inner.len() == 1 {
            return Doc::Text(format!("{open}{close}"));
        }
        Doc::group(vec![Doc::text(open), Doc::nest(inner), Doc::Soft, Doc::text(close)])
    }

    /// One arm a block; all blocks on one line, or all broken.
    fn if_expr(&mut self, parts: &If) -> Doc {
        let mut arms = vec![parts];
        let mut last = None;
        while let Some(otherwise) = arms.last().and_then(|arm| arm.otherwise.as_ref()) {
            match otherwise {
                Else::If(arm) => arms.push(arm),
                Else::Block(block) => {
                    last = Some(block);
                    break;
                }
            }
        }
        let blocks = arms.iter().map(|arm| &arm.then).chain(last);
        let broken = self.pending(parts.span.end as usize).is_some()
            || blocks.into_iter().any(|block| block.stmts.len() > 1 || self.multiline(block.span));
        let mut out = Vec::new();
        for (index, arm) in arms.iter().enumerate() {
            out.push(Doc::text(if index == 0 { "if " } else { " else if " }));
            out.push(self.expr(&arm.cond));
            out.push(Doc::text(" "));
            out.push(self.block(&arm.then, &[], broken));
        }
        if let Some(block) = last {
            out.push(Doc::text(" else "));
            out.push(self.block(block, &[], broken));
        }
        Doc::group(out)
    }

    /// A string with its escapes; what is interpolated is set on the same line.
    pub(super) fn string(&mut self, string: &Str) -> String {
        let mut text = "\"".to_string();
        for part in &string.parts {
            match part {
                StrPart::Text(part) => text += &escape(part),
                StrPart::Expr(expr) => {
                    let inner = self.expr(expr);
                    text += &format!("{{{}}}", doc::flat(&inner));
                }
            }
        }
        text + "\""
    }
}

/// Numbers in brackets, as many to a line as fit.
fn filled(items: Vec<Doc>) -> Doc {
    let mut inner = vec![Doc::Soft];
    let count = items.len();
    for (index, item) in items.into_iter().enumerate() {
        let comma = Doc::text(if index + 1 < count { "," } else { "" });
        inner.push(if index == 0 { Doc::Cat(vec![item, comma]) } else { Doc::group(vec![Doc::Line, item, comma]) });
    }
    inner.push(Doc::Choice("", ","));
    Doc::group(vec![Doc::text("["), Doc::nest(inner), Doc::Soft, Doc::text("]")])
}
