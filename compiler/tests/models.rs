//! The programs in models/ load, have the published sizes, and follow `--set`.

mod common;

use common::model;

#[test]
fn vrl11_has_the_published_number_of_parameters() {
    let m = model("vrl11", &[]);
    assert_eq!(m.numel(), 27_124_850);
    assert_eq!(m.vocab, 1024);
    assert!(m.warnings.is_empty(), "{:?}", m.warnings);
}

#[test]
fn baseline_is_the_naive_baseline() {
    let m = model("baseline", &[]);
    assert_eq!(m.numel(), 17_059_912);
    assert!(m.warnings.is_empty(), "{:?}", m.warnings);
}

#[test]
fn tiny_has_every_technique_of_vrl11() {
    let (tiny, vrl11) = (model("tiny", &[]), model("vrl11", &[]));
    assert!(tiny.warnings.is_empty(), "{:?}", tiny.warnings);
    assert_eq!(tiny.techniques, vrl11.techniques);
    assert_eq!(tiny.prelude, vrl11.prelude);
}
