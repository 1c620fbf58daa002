//! Text of an HTML page.
//!
//! *Takes* HTML; *gives* its text, a line per block; *promises* one pass, no failure: what is not understood stays as it is.
//!
//! Dropped with their content: head, script, style, template, noscript, nav, svg, button. Entities are decoded. White space is
//! collapsed, except inside `pre`.

/// Elements that are dropped with their content; raw ones hold no markup.
const DROPPED: [&str; 8] = ["head", "script", "style", "template", "noscript", "nav", "svg", "button"];
const RAW: [&str; 2] = ["script", "style"];
/// Elements that begin and end a line.
#[rustfmt::skip]
const BLOCKS: [&str; 40] = [
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html",
    "legend", "li", "main", "ol", "option", "p", "pre", "section", "summary", "table", "tbody", "thead", "tr", "ul",
];

/// A tag: `</name ...>`.
struct Tag<'h> {
    name: &'h str,
    closing: bool,
    /// `<name/>`
    empty: bool,
}

/// The text of `html`.
pub(super) fn text(html: &str) -> String {
    let mut out = Out { text: String::with_capacity(html.len() / 4), space: false, pre: 0 };
    let mut rest = html;
    // The dropped element we are in, and how many of its name are open.
    let mut dropped: Option<(String, usize)> = None;
    while !rest.is_empty() {
        let Some(at) = rest.find('<') else {
            if dropped.is_none() {
                out.content(rest);
            }
            break;
        };
        if dropped.is_none() {
            out.content(&rest[..at]);
        }
        rest = &rest[at..];
        let Some((tag, after)) = markup(rest) else {
            if dropped.is_none() {
                out.content("<");
            }
            rest = &rest[1..];
            continue;
        };
        rest = after;
        let Some(tag) = tag else { continue };
        let name = tag.name.to_ascii_lowercase();
        match &mut dropped {
            Some((open, depth)) => {
                if *open == name && !tag.empty {
                    *depth = if tag.closing { *depth - 1 } else { *depth + 1 };
                }
                if *depth == 0 {
                    dropped = None;
                }
            }
            None if !tag.closing && RAW.contains(&name.as_str()) => rest = after_raw(rest, &name),
            None if !tag.closing && !tag.empty && DROPPED.contains(&name.as_str()) => dropped = Some((name, 1)),
            None => out.tag(&name, tag.closing),
        }
    }
    out.text.truncate(out.text.trim_end().len());
    if !out.text.is_empty() {
        out.text.push('\n');
    }
    out.text
}

/// The markup that `html` (which starts with `<`) starts with, and what follows; the tag is `None` for comments and declarations;
/// nothing if this is a bare `<`.
fn markup(html: &str) -> Option<(Option<Tag<'_>>, &str)> {
    if let Some(comment) = html.strip_prefix("<!--") {
        return Some((None, comment.find("-->").map_or("", |at| &comment[at + 3..])));
    }
    let body = &html[1..];
    if body.starts_with(['!', '?']) {
        return Some((None, body.find('>').map_or("", |at| &body[at + 1..])));
    }
    let closing = body.starts_with('/');
    let body = body.strip_prefix('/').unwrap_or(body);
    if !body.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let end = body.find(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/').unwrap_or(body.len());
    // The end of the tag is the first `>` outside quoted attribute values.
    let mut quote = None;
    for (at, b) in body.bytes().enumerate().skip(end) {
        match (quote, b) {
            (None, b'>') => {
                return Some((
                    Some(Tag { name: &body[..end], closing, empty: body[..at].ends_with('/') }),
                    &body[at + 1..],
                ));
            }
            (None, b'"' | b'\'') => quote = Some(b),
            (Some(q), _) if q == b => quote = None,
            _ => {}
        }
    }
    // A tag without end: the rest of the file.
    Some((None, ""))
}

/// What follows `</name>`.
fn after_raw<'h>(html: &'h str, name: &str) -> &'h str {
    let mut rest = html;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        if rest.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name)) {
            return rest.find('>').map_or("", |at| &rest[at + 1..]);
        }
    }
    ""
}

struct Out {
    text: String,
    /// White space was seen after the last character.
    space: bool,
    /// Open `pre` elements.
    pre: usize,
}

impl Out {
    fn at_line_start(&self) -> bool {
        self.text.is_empty() || self.text.ends_with('\n')
    }

    fn content(&mut self, raw: &str) {
        let mut rest = raw;
        while let Some(c) = rest.chars().next() {
            let (decoded, length) = match c {
                '&' => entity(rest).unwrap_or((c, 1)),
                _ => (c, c.len_utf8()),
            };
            rest = &rest[length..];
            if self.pre > 0 {
                self.text.push(decoded);
            } else if c.is_ascii_whitespace() {
                self.space = true;
            } else {
                if std::mem::take(&mut self.space) && !self.at_line_start() {
                    self.text.push(' ');
                }
                self.text.push(decoded);
            }
        }
    }

    fn tag(&mut self, name: &str, closing: bool) {
        if BLOCKS.binary_search(&name).is_ok() {
            if !self.at_line_start() {
                self.text.push('\n');
            }
            self.space = false;
        } else if name == "td" || name == "th" {
            self.space = true;
        }
        if name == "pre" {
            self.pre = if closing { self.pre.saturating_sub(1) } else { self.pre + 1 };
        }
    }
}

/// Decodes the entity that `text` (which starts with `&`) starts with; gives its length too.
fn entity(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(34).position(|b| b == b';')?;
    let name = &text[1..end];
    let c = match name.strip_prefix('#') {
        Some(number) => {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
        None => ENTITIES.iter().find(|(n, _)| *n == name)?.1,
    };
    Some((c, end + 1))
}

/// Named entities in use on real pages: markup, punctuation, arrows, mathematics, Latin-1 letters.
#[rustfmt::skip]
const ENTITIES: &[(&str, char)] = &[
    ("lt", '<'), ("gt", '>'), ("amp", '&'), ("quot", '"'), ("apos", '\''), ("nbsp", '\u{a0}'), ("mdash", '—'),
    ("ndash", '–'), ("hellip", '…'), ("lsquo", '‘'), ("rsquo", '’'), ("ldquo", '“'), ("rdquo", '”'), ("laquo", '«'),
    ("raquo", '»'), ("bull", '•'), ("middot", '·'), ("copy", '©'), ("reg", '®'), ("trade", '™'), ("sect", '§'),
    ("para", '¶'), ("deg", '°'), ("plusmn", '±'), ("times", '×'), ("divide", '÷'), ("micro", 'µ'), ("frac12", '½'),
    ("frac14", '¼'), ("frac34", '¾'), ("sup1", '¹'), ("sup2", '²'), ("sup3", '³'), ("euro", '€'), ("pound", '£'),
    ("yen", '¥'), ("cent", '¢'), ("larr", '←'), ("uarr", '↑'), ("rarr", '→'), ("darr", '↓'), ("harr", '↔'),
    ("lArr", '⇐'), ("rArr", '⇒'), ("hArr", '⇔'), ("le", '≤'), ("ge", '≥'), ("ne", '≠'), ("minus", '−'),
    ("infin", '∞'), ("ensp", '\u{2002}'), ("emsp", '\u{2003}'), ("thinsp", '\u{2009}'), ("zwj", '\u{200d}'),
    ("zwnj", '\u{200c}'), ("shy", '\u{ad}'), ("iexcl", '¡'), ("iquest", '¿'), ("lsaquo", '‹'), ("rsaquo", '›'),
    ("sbquo", '‚'), ("bdquo", '„'), ("Agrave", 'À'), ("Aacute", 'Á'), ("Acirc", 'Â'), ("Atilde", 'Ã'), ("Auml", 'Ä'),
    ("Aring", 'Å'), ("AElig", 'Æ'), ("Ccedil", 'Ç'), ("Egrave", 'È'), ("Eacute", 'É'), ("Ecirc", 'Ê'), ("Euml", 'Ë'),
    ("Igrave", 'Ì'), ("Iacute", 'Í'), ("Icirc", 'Î'), ("Iuml", 'Ï'), ("ETH", 'Ð'), ("Ntilde", 'Ñ'), ("Ograve", 'Ò'),
    ("Oacute", 'Ó'), ("Ocirc", 'Ô'), ("Otilde", 'Õ'), ("Ouml", 'Ö'), ("Oslash", 'Ø'), ("Ugrave", 'Ù'),
    ("Uacute", 'Ú'), ("Ucirc", 'Û'), ("Uuml", 'Ü'), ("Yacute", 'Ý'), ("THORN", 'Þ'), ("szlig", 'ß'), ("agrave", 'à'),
    ("aacute", 'á'), ("acirc", 'â'), ("atilde", 'ã'), ("auml", 'ä'), ("aring", 'å'), ("aelig", 'æ'), ("ccedil", 'ç'),
    ("egrave", 'è'), ("eacute", 'é'), ("ecirc", 'ê'), ("euml", 'ë'), ("igrave", 'ì'), ("iacute", 'í'), ("icirc", 'î'),
    ("iuml", 'ï'), ("eth", 'ð'), ("ntilde", 'ñ'), ("ograve", 'ò'), ("oacute", 'ó'), ("ocirc", 'ô'), ("otilde", 'õ'),
    ("ouml", 'ö'), ("oslash", 'ø'), ("ugrave", 'ù'), ("uacute", 'ú'), ("ucirc", 'û'), ("uuml", 'ü'), ("yacute", 'ý'),
    ("thorn", 'þ'), ("yuml", 'ÿ'),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strips_and_decodes() {
        for (html, expected) in [
            (
                "<!DOCTYPE html><html><head><title>t</title></head><body><h1>A &amp; B</h1><p>one\n  two</p></body></html>",
                "A & B\none two\n",
            ),
            ("a<b>b</b> <i>c</i>d", "ab cd\n"),
            ("<p>x<script>if (a < b) { '</p>' }</script>y</p>", "xy\n"),
            ("<STYLE>p{}</STYLE><P>z", "z\n"),
            ("<nav><ul><li>a<nav>b</nav>c</ul></nav>d", "d\n"),
            (
                "<pre><code>fn f() {\n    <span class=\"k\">let</span> x = 1 &lt; 2;\n}\n</code></pre>after",
                "fn f() {\n    let x = 1 < 2;\n}\nafter\n",
            ),
            (
                "1 < 2 && 3 > 2 &unknown; &#65;&#x42;&#xD800; &copy;&nbsp;x&",
                "1 < 2 && 3 > 2 &unknown; AB&#xD800; ©\u{a0}x&\n",
            ),
            ("<a title=\"x > y\" href='>'>q</a>", "q\n"),
            ("<tr><td>1</td><td>2</td></tr><tr><td>3</td></tr>", "1 2\n3\n"),
            ("a<!-- <p>hidden</p> -->b<br/>c<svg/>d<svg><path d=''/></svg>e", "ab\ncde\n"),
            ("x <p", "x\n"),
            ("x<!-- never closed", "x\n"),
            ("<script>never closed", ""),
            ("", ""),
        ] {
            assert_eq!(text(html), expected, "{html}");
        }
    }

    #[test]
    fn tables_are_sorted() {
        assert!(BLOCKS.is_sorted());
    }

    proptest! {
        /// Anything made of markup's building blocks passes.
        #[test]
        fn never_panics(parts in prop::collection::vec(prop::sample::select(vec![
            "<", ">", "</", "/", "p", "pre", "script", "nav", "svg", "!--", "-->", "&", ";", "#x", "1F600", "é", "😀", "\"", "'", " ", "\n", "head",
        ]), 0..30)) {
            text(&parts.concat());
        }
    }
}
