//! MLIR in its generic form, one operation a line.
//!
//! *Takes* a printed module; *gives* its lines taken apart ([`Line`]) and put together again; *promises* that a line not understood is
//! refused, never passed over.

/// An operation, or the part of one that stands on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// Result names with `%`, as printed (`%5`, `%5:2`); empty without results.
    pub result: &'a str,
    /// `llvm.load`.
    pub name: &'a str,
    /// Operands with `%`.
    pub operands: Vec<&'a str>,
    /// Inside `<{..}>`.
    pub properties: &'a str,
    /// Operand types; empty if the line opens a region.
    pub types: Vec<&'a str>,
    /// Result types as printed, in parentheses unless there is exactly one.
    pub results: &'a str,
    /// The line ends by opening a region.
    pub opens: bool,
}

/// Takes a line apart that holds an operation's name; `None` for labels, ends of regions and empty lines.
pub fn parse(text: &str) -> Result<Option<Line<'_>>, String> {
    let t = text.trim();
    if t.is_empty() || t.starts_with('}') || t.starts_with('^') {
        return Ok(None);
    }
    let refuse = || format!("the emulator does not understand the line {t}");
    let (result, rest) = match t.starts_with('%') {
        true => t.split_once(" = ").ok_or_else(refuse)?,
        false => ("", t),
    };
    let rest = rest.strip_prefix('"').ok_or_else(refuse)?;
    let (name, rest) = rest.split_once('"').ok_or_else(refuse)?;
    let (operands, mut rest) = bracketed(rest).ok_or_else(refuse)?;
    let mut properties = "";
    if let Some(inner) = rest.trim_start().strip_prefix('<') {
        let (braced, after) = bracketed(inner).ok_or_else(refuse)?;
        properties = braced;
        rest = after.strip_prefix('>').ok_or_else(refuse)?;
    }
    rest = rest.trim_start();
    let opens = rest == "({";
    if rest.starts_with('{') {
        rest = bracketed(rest).ok_or_else(refuse)?.1.trim_start();
    }
    let (mut types, mut results) = (vec![], "()");
    if !opens {
        let inner = rest.strip_prefix(": ").ok_or_else(refuse)?;
        let (list, after) = bracketed(inner).ok_or_else(refuse)?;
        types = split(list);
        results = after.trim_start().strip_prefix("-> ").ok_or_else(refuse)?;
    }
    Ok(Some(Line { result, name, operands: split(operands), properties, types, results, opens }))
}

/// What is inside the bracket that `text` starts with, and what follows it. Brackets in strings do not count.
pub fn bracketed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    let mut quoted = false;
    let mut before = ' ';
    for (i, c) in text.char_indices() {
        match c {
            '"' if before != '\\' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' | '<' => depth += 1,
            // `->` is no bracket.
            '>' if before == '-' => {}
            ')' | ']' | '}' | '>' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((&text[1..i], &text[i + 1..]));
                }
            }
            _ => {}
        }
        if depth == 0 {
            return None;
        }
        before = c;
    }
    None
}

/// The parts of a list at its commas outside of brackets.
pub fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start, mut quoted, mut before) = (vec![], 0i32, 0, false, ' ');
    for (i, c) in list.char_indices() {
        match c {
            '"' if before != '\\' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if before == '-' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
        before = c;
    }
    if !list[start..].trim().is_empty() {
        parts.push(list[start..].trim());
    }
    parts
}

impl<'a> Line<'a> {
    /// The value of a property.
    pub fn property(&self, name: &str) -> Option<&'a str> {
        split(self.properties).into_iter().find_map(|p| match p.split_once(" = ") {
            Some((key, value)) if key == name => Some(value),
            None if p == name => Some(""),
            _ => None,
        })
    }

    /// An integer property such as `alignment = 16 : i64`.
    pub fn integer(&self, name: &str) -> Result<i64, String> {
        let text = self.property(name).ok_or_else(|| format!("{} has no {name}", self.name))?;
        let digits = text.split(' ').next().unwrap_or(text);
        digits.parse().map_err(|_| format!("{name} of {} is {text}", self.name))
    }
}

/// Bytes in memory of a type as printed: a scalar, a pointer, a vector or a struct of scalars.
pub fn bytes(ty: &str) -> Result<usize, String> {
    let scalar = |t: &str| match t {
        "i1" | "i8" => Some(1),
        "i16" | "bf16" | "f16" => Some(2),
        "i32" | "f32" => Some(4),
        "i64" | "f64" => Some(8),
        _ if t.starts_with("!llvm.ptr") => Some(8),
        _ => None,
    };
    let vector = || {
        let (lanes, elem) = ty.strip_prefix("vector<")?.strip_suffix('>')?.split_once('x')?;
        Some(lanes.parse::<usize>().ok()? * scalar(elem)?)
    };
    scalar(ty).or_else(vector).ok_or_else(|| format!("the emulator does not know the size of {ty}"))
}

/// Number of elements of `!llvm.struct<(f32, f32, ..)>`.
pub fn accumulator(ty: &str) -> Result<usize, String> {
    let inner = ty.strip_prefix("!llvm.struct<(").and_then(|t| t.strip_suffix(")>"));
    let parts = split(inner.ok_or_else(|| format!("{ty} is no accumulator"))?);
    if parts.iter().any(|&p| p != "f32") {
        return Err(format!("{ty} is no accumulator"));
    }
    Ok(parts.len())
}
