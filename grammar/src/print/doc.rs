//! Layout: where lines break, and what stands under what.
//!
//! *Takes* a [`Doc`], text with possible line breaks. *Gives* lines. *Promises*: a group is set on one line if it fits in
//! [`WIDTH`] columns; columns are aligned only where no line grows beyond that.

/// Columns a line may have. Only what cannot be broken (a string, a comment) goes beyond.
pub(super) const WIDTH: usize = 120;

/// Columns per level.
const INDENT: usize = 4;

/// Text with possible line breaks.
#[derive(Debug)]
pub(super) enum Doc {
    /// Text without line ends.
    Text(String),
    /// A blank, or a line end in a group that does not fit.
    Line,
    /// Nothing, or a line end in a group that does not fit.
    Soft,
    /// A line end; the groups around it do not fit.
    Hard,
    /// The first text in a group that fits, the second in one that does not.
    Choice(&'static str, &'static str),
    /// A comment at the end of a line: takes no room, and the groups around it do not fit.
    Comment(String),
    /// In a group that does not fit, what follows is aligned with the same kind of mark on the lines above and below.
    Mark(char),
    /// One after the other.
    Cat(Vec<Doc>),
    /// One level further in.
    Nest(Box<Doc>),
    /// Set on one line if it fits.
    Group(Box<Doc>),
}

impl Doc {
    /// Text.
    pub(super) fn text(text: impl Into<String>) -> Doc {
        Doc::Text(text.into())
    }

    /// One level further in.
    pub(super) fn nest(parts: Vec<Doc>) -> Doc {
        Doc::Nest(Box::new(Doc::Cat(parts)))
    }

    /// Set on one line if it fits.
    pub(super) fn group(parts: Vec<Doc>) -> Doc {
        Doc::Group(Box::new(Doc::Cat(parts)))
    }
}

/// A line in columns to be aligned: the mark before each and its text.
#[derive(Debug, Default)]
struct Row {
    indent: usize,
    cells: Vec<(char, String)>,
}

/// The mark of comments at line ends.
const COMMENT: char = '#';

/// Sets a document, with a line end after the last line.
pub(super) fn set(doc: &Doc) -> String {
    let mut rows = layout(doc);
    align(&mut rows);
    let mut out = String::new();
    for row in rows {
        let text: String = row.cells.iter().map(|(_, text)| text.as_str()).collect();
        if !text.trim_end().is_empty() {
            out.extend(std::iter::repeat_n(' ', row.indent));
            out.push_str(text.trim_end());
        }
        out.push('\n');
    }
    out
}

/// Sets a document on one line.
pub(super) fn flat(doc: &Doc) -> String {
    let mut out = String::new();
    let mut stack = vec![doc];
    while let Some(doc) = stack.pop() {
        match doc {
            Doc::Text(text) => out.push_str(text),
            Doc::Line | Doc::Hard => out.push(' '),
            Doc::Choice(text, _) => out.push_str(text),
            Doc::Soft | Doc::Comment(_) | Doc::Mark(_) => {}
            Doc::Cat(parts) => stack.extend(parts.iter().rev()),
            Doc::Nest(inner) | Doc::Group(inner) => stack.push(inner),
        }
    }
    out
}

fn layout(doc: &Doc) -> Vec<Row> {
    let mut rows = vec![Row::default()];
    let mut column = 0;
    let mut stack: Vec<(usize, bool, &Doc)> = vec![(0, false, doc)];
    while let Some((indent, flat, doc)) = stack.pop() {
        let mut write = |text: &str| {
            let row = rows.last_mut().expect("there is always a row");
            match row.cells.last_mut() {
                Some((_, cell)) => cell.push_str(text),
                None => row.cells.push((' ', text.to_string())),
            }
            column += text.chars().count();
        };
        match doc {
            Doc::Text(text) => write(text),
            Doc::Choice(one, several) => write(if flat { one } else { several }),
            Doc::Line if flat => write(" "),
            Doc::Soft if flat => {}
            Doc::Line | Doc::Soft | Doc::Hard => {
                rows.push(Row { indent, cells: Vec::new() });
                column = indent;
            }
            Doc::Comment(text) => {
                let row = rows.last_mut().expect("there is always a row");
                if let Some((_, cell)) = row.cells.last_mut() {
                    cell.push_str("  ");
                }
                row.cells.push((COMMENT, text.clone()));
            }
            Doc::Mark(_) if flat => {}
            Doc::Mark(kind) => {
                let row = rows.last_mut().expect("there is always a row");
                row.cells.push((*kind, String::new()));
            }
            Doc::Cat(parts) => stack.extend(parts.iter().rev().map(|part| (indent, flat, part))),
            Doc::Nest(inner) => stack.push((indent + INDENT, flat, inner)),
            Doc::Group(inner) => {
                let flat = flat || fits(inner, WIDTH.saturating_sub(column), &stack);
                stack.push((indent, flat, inner));
            }
        }
    }
    rows
}

/// Whether a document, on one line, and what follows it up to the next possible line end, fits in `room` columns.
fn fits(doc: &Doc, mut room: usize, after: &[(usize, bool, &Doc)]) -> bool {
    let mut stack = vec![doc];
    let mut after = after.iter().rev();
    let mut inside = true;
    loop {
        let Some(doc) = stack.pop() else {
            inside = false;
            match after.next() {
                // What follows inside a flat group cannot break either.
                Some((_, flat, doc)) => {
                    debug_assert!(!flat);
                    stack.push(doc);
                    continue;
                }
                None => return true,
            }
        };
        let width = match doc {
            Doc::Text(text) => text.chars().take(room + 1).count(),
            Doc::Choice(text, _) if inside => text.chars().count(),
            Doc::Line if inside => 1,
            Doc::Soft if inside => 0,
            Doc::Hard | Doc::Comment(_) => return !inside,
            Doc::Line | Doc::Soft => return true,
            Doc::Choice(_, text) => text.chars().count(),
            Doc::Mark(_) => 0,
            Doc::Cat(parts) => {
                stack.extend(parts.iter().rev());
                0
            }
            Doc::Nest(inner) | Doc::Group(inner) => {
                stack.push(inner);
                0
            }
        };
        if width > room {
            return false;
        }
        room -= width;
    }
}

/// Pads cells so that those after the same marks on neighbouring lines stand under one another.
fn align(rows: &mut [Row]) {
    let most = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    for column in 1..most {
        let mut start = 0;
        while start < rows.len() {
            let mut end = start + 1;
            while end < rows.len() && alike(&rows[start], &rows[end], column) {
                end += 1;
            }
            if rows[start].cells.len() > column && end - start > 1 {
                pad(&mut rows[start..end], column);
            }
            start = end;
        }
    }
}

/// Whether two lines have the same marks up to and with this column.
fn alike(a: &Row, b: &Row, column: usize) -> bool {
    let marks = |row: &Row| row.cells.iter().take(column + 1).map(|(mark, _)| *mark).collect::<Vec<_>>();
    a.indent == b.indent && a.cells.len() > column && b.cells.len() > column && marks(a) == marks(b)
}

/// Pads the cells before a column to one width, unless that makes a line too long.
fn pad(rows: &mut [Row], column: usize) {
    let width = |row: &Row, cells: std::ops::Range<usize>| -> usize {
        row.cells[cells].iter().filter(|(mark, _)| *mark != COMMENT).map(|(_, text)| text.chars().count()).sum()
    };
    let before = |row: &Row| row.indent + width(row, 0..column);
    let widest = rows.iter().map(before).max().unwrap_or(0);
    if rows.iter().any(|row| widest + width(row, column..row.cells.len()) > WIDTH) {
        return;
    }
    for row in rows {
        let missing = widest - before(row);
        row.cells[column - 1].1.extend(std::iter::repeat_n(' ', missing));
    }
}
