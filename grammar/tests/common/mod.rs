//! Random programs that the grammar accepts, laid out at random.
//!
//! Written from docs of the language, not from the grammar file: a second opinion on what a program is.

/// A small generator of numbers (SplitMix64), so that a program is a function of its seed alone.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// A place where a line may end freely: in parentheses, or after an operator.
const FREE: char = '\u{1}';
/// A place between two statements.
const BREAK: char = '\u{2}';
/// A place between two settings.
const ENTRY: char = '\u{4}';

/// A random program.
pub fn program(seed: u64) -> String {
    let mut maker = Maker { random: Random::new(seed), fuel: 10 };
    maker.fuel += maker.random.below(200);
    let count = 1 + maker.random.below(5);
    let items: Vec<String> = (0..count).map(|_| maker.item()).collect();
    let mut text = String::new();
    let mut comments = 0;
    let mut comment = |random: &mut Random| {
        comments += 1;
        format!(
            "{}# note {comments} {}\n",
            random.pick(&["", " ", "    "]),
            random.pick(&["{", "\"", "", "let x", "é)"])
        )
    };
    let marked: Vec<char> = items.join("\u{3}").chars().collect();
    for (index, &c) in marked.iter().enumerate() {
        let random = &mut maker.random;
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let glued = word(text.chars().last()) && word(marked.get(index + 1).copied());
        match c {
            FREE => match random.below(12) {
                0 => text.push('\n'),
                1 => text += &comment(random),
                2 => {
                    text += &comment(random);
                    text += &comment(random);
                }
                3 | 4 if !glued => {}
                _ => text.push(' '),
            },
            BREAK | ENTRY | '\u{3}' => match random.below(9) {
                0 | 1 => text += &comment(random),
                2 => text += "\n\n",
                3 => {
                    text += "\n";
                    text += &comment(random);
                }
                4 => {
                    text += "\n\n";
                    text += &comment(random);
                    text += "\n";
                }
                5 if c == BREAK => text += " ; ",
                _ => text.push('\n'),
            },
            c => text.push(c),
        }
    }
    text
}

struct Maker {
    random: Random,
    /// How much more may be made; keeps programs small.
    fuel: usize,
}

impl Maker {
    fn spend(&mut self) -> bool {
        self.fuel = self.fuel.saturating_sub(1);
        self.fuel > 0
    }

    fn many(&mut self, least: usize, most: usize, by: &str, mut one: impl FnMut(&mut Self) -> String) -> String {
        let count = least + self.random.below(most - least + 1);
        (0..count).map(|_| one(self)).collect::<Vec<_>>().join(by)
    }

    fn maybe(&mut self, percent: usize, one: impl FnOnce(&mut Self) -> String) -> String {
        if self.random.chance(percent) { one(self) } else { String::new() }
    }

    fn name(&mut self) -> String {
        let names = [
            "x",
            "y0",
            "gain",
            "mix",
            "blocks",
            "state",
            "apply",
            "init",
            "on",
            "floor",
            "per",
            "a_rather_long_name",
            "_t",
        ];
        self.random.pick(&names).to_string()
    }

    fn axis(&mut self) -> String {
        self.random.pick(&["b", "t", "d", "kv", "hd", "A"]).to_string()
    }

    fn item(&mut self) -> String {
        match self.random.below(10) {
            0 => "use std.{norm, attention\u{1},\u{1}embed}".to_string(),
            1 => "use std.norm".to_string(),
            2 => format!("const {}", self.many(1, 4, ",\u{1}", |m| m.const_decl())),
            3 => format!("axis {}", self.many(1, 4, ",\u{1}", |m| m.axis_decl())),
            4 | 5 => {
                let kind = self.random.pick(&["train", "quantize", "evaluate"]);
                format!("{kind} {}", self.settings(2))
            }
            6 => format!("model{} {}", self.signature(), self.body(true)),
            _ => {
                let kinds =
                    ["fn", "layer", "optimizer", "average", "quantizer", "adapter", "schedule", "init", "filter"];
                let kind = self.random.pick(&kinds);
                format!("{kind} {}{} {}", self.name(), self.signature(), self.body(true))
            }
        }
    }

    fn const_decl(&mut self) -> String {
        format!("{}{} = {}", self.name(), self.maybe(20, |m| format!(": {}", m.ty(1))), self.expr(2))
    }

    fn axis_decl(&mut self) -> String {
        match self.random.below(4) {
            0 => format!("{} like {}", self.axis(), self.axis()),
            1 => format!("{} = {} floor", self.axis(), self.expr(1)),
            _ => format!("{} = {}", self.axis(), self.expr(1)),
        }
    }

    fn signature(&mut self) -> String {
        let axes = self.maybe(30, |m| format!("<{}>", m.many(1, 2, ", ", |m| m.axis())));
        let params = self.many(0, 3, "\u{1},\u{1}", |m| m.param());
        let hypers = self.maybe(30, |m| format!("\u{1};\u{1}{}", m.many(1, 3, ",\u{1}", |m| m.param())));
        let result = self.maybe(50, |m| format!(" -> {}{}", m.maybe(30, |_| "logits ".into()), m.tensor()));
        format!("{axes}(\u{1}{params}{hypers}\u{1}){result}")
    }

    fn param(&mut self) -> String {
        let optional = self.maybe(20, |_| "?".into());
        let ty = self.maybe(60, |m| format!(": {}", m.ty(2)));
        let default = self.maybe(30, |m| format!(" =\u{1}{}", m.expr(1)));
        format!("{}{optional}{ty}{default}", self.name())
    }

    fn tensor(&mut self) -> String {
        let rest = self.maybe(30, |_| ".. ".into());
        format!("[{rest}{}]", self.many(0, 4, " ", |m| m.axis()))
    }

    fn ty(&mut self, depth: usize) -> String {
        let optional = self.maybe(20, |_| "?".into());
        let base = match self.random.below(if depth > 0 { 5 } else { 4 }) {
            0 => "int".to_string(),
            1 => "axis".to_string(),
            2 => format!("bf16 {}", self.tensor()),
            3 => self.tensor(),
            _ => format!(
                "({})",
                self.many(1, 3, ", ", |m| format!("{}{}", m.maybe(30, |_| "codes: ".into()), m.ty(depth - 1)))
            ),
        };
        base + &optional
    }

    fn body(&mut self, top: bool) -> String {
        let count = self.random.below(5);
        let mut lines: Vec<String> = (0..count).map(|_| self.stmt(2)).collect();
        if top && self.random.chance(30) {
            let at = self.random.below(lines.len() + 1);
            let head = if self.random.chance(50) { "apply".to_string() } else { format!("fn {}", self.name()) };
            lines.insert(at, format!("{head}{} {}", self.signature(), self.body(false)));
        }
        if lines.len() == 1 && self.random.chance(50) {
            return format!("{{ {} }}", lines[0]);
        }
        format!("{{\u{2}{}\u{2}}}", lines.join("\u{2}"))
    }

    fn stmt(&mut self, depth: usize) -> String {
        if !self.spend() {
            return "let x = 1".to_string();
        }
        match self.random.below(11) {
            0 => {
                let ty = self.maybe(30, |m| format!(": {}", m.ty(1)));
                format!("let {}{ty} =\u{1}{}", self.pattern(2), self.expr(3))
            }
            1 => format!("{} =\u{1}{}", self.pattern(2), self.expr(3)),
            2 => format!("const {}", self.many(1, 2, ",\u{1}", |m| m.const_decl())),
            3 => format!("axis {}", self.axis_decl()),
            4 | 5 => {
                let unused = self.maybe(10, |_| "unused ".into());
                let slots = self.many(1, 3, ",\u{1}", |m| m.slot());
                let init = self.maybe(60, |m| format!(" ~\u{1}{}", m.expr_plain(1)));
                let group = self.maybe(60, |m| {
                    format!(" in\u{1}g1{}", m.maybe(30, |m| format!(" if\u{1}{} else\u{1}unused", m.expr_plain(1))))
                });
                format!("{unused}param {slots}{init}{group}")
            }
            6 => format!("state {} ~ zeros", self.slot()),
            7 if depth > 0 => {
                let lines = self.many(0, 3, "\u{2}", |m| m.stmt(depth - 1));
                format!("for {} in {} {{\u{2}{lines}\u{2}}}", self.pattern(1), self.expr_plain(1))
            }
            8 if depth > 0 => self.if_expr(depth - 1),
            9 => format!("skips.push(\u{1}{}\u{1})", self.expr(2)),
            _ => format!("f({})", self.args(2)),
        }
    }

    fn slot(&mut self) -> String {
        let axis = |m: &mut Self| format!("{}{}", m.axis(), m.maybe(20, |m| format!(": {}", m.expr_plain(1))));
        let axes = self.maybe(80, |m| format!("[{}]", m.many(0, 3, ", ", axis)));
        let dtype = self.maybe(20, |_| " : bf16".into());
        let label = self.maybe(30, |m| format!(" as {}", m.string()));
        format!("{}{axes}{dtype}{label}", self.name())
    }

    fn pattern(&mut self, depth: usize) -> String {
        match self.random.below(6) {
            0 if depth > 0 => format!("({})", self.many(1, 3, ", ", |m| m.pattern(depth - 1))),
            1 => "_".to_string(),
            _ => self.name(),
        }
    }

    fn string(&mut self) -> String {
        let inner = self.maybe(40, |m| format!("{{{}}}", m.name()));
        format!(
            "\"{}{inner}{}\"",
            self.random.pick(&["", "blocks.", "a # b", "\\\"q\\{", "}"]),
            self.random.pick(&["", "é\\n"])
        )
    }

    fn expr(&mut self, depth: usize) -> String {
        let value = self.expr_plain(depth);
        value + &self.maybe(5, |m| format!(" as {}", m.string()))
    }

    fn expr_plain(&mut self, depth: usize) -> String {
        let operators = ["+", "-", "*", "/", "//", "%", "^", "??", "and", "or", "|", "&", "<<", ">>"];
        let count = if depth == 0 { 1 } else { 1 + self.random.below(4) };
        let mut text = String::new();
        for index in 0..count {
            if index > 0 {
                text += &format!(" {}\u{1}{FREE}", self.random.pick(&operators));
            }
            text += &self.maybe(10, |m| m.random.pick(&["-", "not ", "- -"]).to_string());
            text += &self.operand(depth.saturating_sub(1));
        }
        // Comparisons and ranges do not chain, so there is at most one, at the end.
        text += &self.maybe(10, |m| format!(" {}\u{1}{}", m.random.pick(&["==", "<=", ">", ".."]), m.atom()));
        text
    }

    fn atom(&mut self) -> String {
        match self.random.below(9) {
            0 => self.random.pick(&["1", "786_432", "0x9E37"]).to_string(),
            1 => self.random.pick(&["1e-12", "0.5", "600s", "10min"]).to_string(),
            2 => self.random.pick(&["true", "false", "none"]).to_string(),
            3 => self.string(),
            _ => self.name(),
        }
    }

    fn operand(&mut self, depth: usize) -> String {
        if depth == 0 || !self.spend() {
            return self.atom();
        }
        match self.random.below(14) {
            0 => format!("(\u{1}{}\u{1})", self.expr(depth)),
            1 => {
                let named = |m: &mut Self| format!("{}{}", m.maybe(30, |_| "codes: ".into()), m.expr(depth - 1));
                let trailing = self.random.pick(&["", ",\u{1}"]);
                format!("(\u{1}{}{trailing})", self.many(2, 4, "\u{1},\u{1}", named))
            }
            2 => format!("({},)", self.expr(depth - 1)),
            3 => format!("[\u{1}{}]", self.many(0, 4, ",\u{1}", |m| m.expr(depth - 1))),
            4 => format!("[1, 2.5,\u{1}3, {}]", self.many(2, 40, ", ", |_| "1234".into())),
            5 => {
                let cond = self.maybe(30, |m| format!("\u{1}if {}", m.expr_plain(1)));
                let iter = self.expr_plain(1);
                format!("[\u{1}{}\u{1}for {} in\u{1}{iter}{cond}]", self.expr(depth - 1), self.pattern(1))
            }
            6 => format!("{}.len", self.name()),
            7 => format!("{}.at({})", self.name(), self.args(depth - 1)),
            8 => format!("{}[\u{1}m = {},\u{1}{}]", self.name(), self.expr(depth - 1), self.expr(0)),
            9 => self.if_expr(depth - 1),
            _ => format!("{}({})", self.name(), self.args(depth - 1)),
        }
    }

    fn args(&mut self, depth: usize) -> String {
        let mut list: Vec<String> = Vec::new();
        for _ in 0..self.random.below(4) {
            list.push(if self.random.chance(15) { "kv g hd\u{1}->\u{1}q".into() } else { self.expr(depth) });
        }
        for _ in 0..self.random.below(3) {
            list.push(format!("{}:\u{1}{}", self.random.pick(&["on", "state", "in", "eps"]), self.expr(depth)));
        }
        let over = self.maybe(30, |m| format!("\u{1} over {}", m.many(1, 3, ",\u{1}", |m| m.axis())));
        let trailing =
            if list.is_empty() || !over.is_empty() { "" } else { self.random.pick(&["", ",", "\u{1},\u{1}"]) };
        format!("\u{1}{}{over}{trailing}\u{1}", list.join("\u{1},\u{1}"))
    }

    fn block(&mut self, depth: usize) -> String {
        if self.random.chance(50) {
            return format!("{{ {} }}", self.expr(depth));
        }
        format!("{{\u{2}{}\u{2}}}", self.many(0, 2, "\u{2}", |m| m.stmt(depth)))
    }

    fn if_expr(&mut self, depth: usize) -> String {
        let mut text = format!("if {} {}", self.expr_plain(1), self.block(depth));
        while self.random.chance(25) {
            text += &format!(" else if {} {}", self.expr_plain(1), self.block(depth));
        }
        text + &self.maybe(50, |m| format!(" else {}", m.block(depth)))
    }

    fn settings(&mut self, depth: usize) -> String {
        let (by, ends) = if self.random.chance(50) { (",\u{1}", " ") } else { ("\u{4}", "\u{4}") };
        format!("{{{ends}{}{ends}}}", self.many(0, 4, by, |m| m.entry(depth)))
    }

    fn entry(&mut self, depth: usize) -> String {
        match self.random.below(8) {
            0 if depth > 0 => {
                let cond = self.maybe(30, |m| format!(" where {}", m.expr_plain(1)));
                let settings = self.maybe(80, |m| format!(" {}", m.settings(depth - 1)));
                format!("muon on {}{cond}{settings}", self.random.pick(&["matrices", "all", "rest", "a or b"]))
            }
            1 if depth > 0 => format!("phase looped when {} {}", self.expr_plain(1), self.settings(depth - 1)),
            2 => format!("clip = {} per shard", self.expr(1)),
            3 => format!("average = {} else\u{1}{}", self.expr(1), self.expr(1)),
            4 if depth > 0 => format!("adapt = chunked(32) {}", self.settings(depth - 1)),
            _ => format!("{} =\u{1}{}", self.random.pick(&["lr", "in", "state", "schedule"]), self.expr(2)),
        }
    }
}
