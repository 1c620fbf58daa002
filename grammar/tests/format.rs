//! The formatter keeps the tree and the comments, and has nothing to do the second time.

mod common;

use golf_grammar::dump::dump;
use golf_grammar::{FileId, SourceMap, parse_file, print, render_all};
use proptest::prelude::*;

const FILE: FileId = FileId(0);

fn parse(text: &str) -> golf_grammar::ast::File {
    parse_file(FILE, text.as_bytes()).into_result().unwrap_or_else(|diagnostics| {
        let mut map = SourceMap::new();
        map.add("test.golf", text);
        panic!("{}\n{text}", render_all(&map, &diagnostics, false))
    })
}

/// Formats, and checks everything the formatter promises.
fn check(text: &str) -> String {
    let tree = parse(text);
    let once = print::format(text, &tree);
    let again = parse(&once);
    assert_eq!(dump(&tree), dump(&again), "another tree:\n{text}\n----\n{once}");
    let comments = |file: &golf_grammar::ast::File| {
        let mut list: Vec<String> = file.comments.iter().map(|comment| comment.text.clone()).collect();
        list.sort();
        list
    };
    assert_eq!(comments(&tree), comments(&again), "comments differ:\n{text}\n----\n{once}");
    let twice = print::format(&once, &again);
    assert_eq!(once, twice, "not stable:\n{text}\n----");
    assert!(once.is_empty() || once.ends_with('\n') && !once.ends_with("\n\n"), "ends of the text:\n{once}");
    assert!(!once.lines().any(|line| line.ends_with(' ')), "blanks at a line's end:\n{once}");
    assert!(!once.contains("\n\n\n"), "several empty lines:\n{once}");
    once
}

/// The same programs every time; of those that fail, the shortest is shown.
#[test]
fn generated_programs_keep_their_meaning() {
    let mut programs: Vec<String> = (0..1500).map(common::program).collect();
    programs.sort_by_key(String::len);
    for text in &programs {
        check(text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program_keeps_its_meaning(seed in any::<u64>()) {
        check(&common::program(seed));
    }
}

#[test]
fn the_sketch_of_vrl11() {
    insta::assert_snapshot!(check(include_str!("data/vrl11.golf")));
}

#[test]
fn the_tree_of_vrl11() {
    insta::assert_snapshot!(dump(&parse(include_str!("data/vrl11.golf"))));
}

#[test]
fn comments_stay_where_they_belong() {
    let text = "\
# header

# about the list
const a=1,   # first
   # second
   b = 2
fn f(x, # what goes in
  y) {   # why
    # before

    # alone
    g(x, # one
      # two
      y
      # three
    ) # behind
    let z = x + # in the middle
        y
    if x { # yes
        y } # between
    else { z }
    # last
}
train { batch = 8 # tokens
  # rules
  muon on all { lr = 1, # rate
    wd = 2 }
}   # end
# footer";
    insta::assert_snapshot!(check(text));
}

#[test]
fn long_lines_are_broken() {
    let text = "\
fn f(x: [b t d], another_parameter: [b t kv hd]?, yet_another_one: int = 22_082, fourth: float = 2^-23; lr, wd) -> [b t d] {
    let a = some_function(first_argument + second_argument * third_argument, other(nested, many: 3, args: 4), last over t, hd)
    let b = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa + bbbbbbbbbbbbbbbbbbbbbbbbbb * ccccccccccccccccccccccccccccccccccc - ddddddddddd
    let c = if aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa > bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb { ccccccccccccccccccccccccc } else { d }
    let d = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 0.125, 0.25]
    let e = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046)]
    let g = [attention_with_a_long_name(i, other: 3) as \"blocks.{i}\" for i in 0..number_of_layers if not skipped(i, other: 3)]
    x
}";
    let once = check(text);
    assert!(once.lines().all(|line| line.chars().count() <= 120));
    insta::assert_snapshot!(once);
}

#[test]
fn short_blocks_stay_on_their_line() {
    let text = "fn f(x) { x }\nfn g(x) {\n    x\n}\n\nfn h(x) {\n    if x { 1 } else { 2 }\n}\n";
    let spaced = "fn f(x) { x }\n\nfn g(x) {\n    x\n}\n\nfn h(x) {\n    if x { 1 } else { 2 }\n}\n";
    assert_eq!(check(text), spaced);
    assert_eq!(check(spaced), spaced);
}

#[test]
fn line_ends_of_other_systems_and_byte_order_marks_go() {
    assert_eq!(check("\u{feff}const a = 1\r\n\r\n\r\nconst b = 2 # two\r\n"), "const a = 1\n\nconst b = 2  # two\n");
    assert_eq!(check(""), "");
    assert_eq!(check("\n\n# only a comment"), "# only a comment\n");
}
