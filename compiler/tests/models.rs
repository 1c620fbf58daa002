//! The programs in models/ load, have the published sizes, and follow `--set`.

use golf_compiler::lang::{Input, Model, load};
use golf_grammar::{Diagnostic, SourceMap, render_all};

fn file(name: &str) -> Vec<u8> {
    let path = format!("{}/../models/{name}.golf", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn try_load(name: &str, sets: &[&str]) -> Result<Model, String> {
    let mut map = SourceMap::new();
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let bytes = file(name);
    let input = Input { path: &format!("models/{name}.golf"), bytes: &bytes, sets: &sets };
    load(&mut map, &input).map_err(|list: Vec<Diagnostic>| render_all(&map, &list, false))
}

fn model(name: &str, sets: &[&str]) -> Model {
    try_load(name, sets).unwrap_or_else(|text| panic!("{text}"))
}

#[test]
fn vrl11_has_the_published_number_of_parameters() {
    let m = model("vrl11", &[]);
    assert_eq!(m.numel(), 27_124_850);
    assert_eq!(m.vocab, 1024);
    assert!(m.warnings.is_empty(), "{:?}", m.warnings);
}
