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
    for title in
        ["Exclusive self attention (XSA)", "Muon", "Soft cap of the logits", "One number that scales something"]
    {
        assert!(vrl11.techniques.iter().any(|t| t == title), "{title}: {:#?}", vrl11.techniques);
    }
    assert_eq!(tiny.prelude, vrl11.prelude);
}

/// Value of a host expression for some clock.
fn at(expr: &golf_runtime::plan::HostExpr, clock: &[(&str, f64)]) -> f64 {
    golf_compiler::lang::host::evaluate(expr, |field| {
        clock.iter().find(|(name, _)| *name == field).unwrap_or_else(|| panic!("no clock field {field}")).1
    })
}

#[test]
fn guaranteed_paths_can_be_set() {
    let m = model(
        "vrl11",
        &[
            "layers=9",
            "train.batch=4096",
            "train.ranks=1",
            "train.stop=240s",
            "train.schedule=warmdown(fraction: 0.5)",
            "train.average=none",
            "train.clip=0.5",
            "train.muon.momentum=0.95",
            "train.muon.lr=0.01",
            "train.adamw.lr=0.02",
            "train.adamw.wd=0.03",
            "evaluate.window=1024",
            "evaluate.stride=128",
            "evaluate.limit=8192",
            "evaluate.adapt.lr=0.01",
            "evaluate.adapt.epochs=2",
            "evaluate.adapt.chunk=2048",
            "evaluate.adapt.batch=4",
        ],
    );
    assert_eq!(m.parameters.iter().filter(|p| p.name.ends_with("attn.c_q.weight")).count(), 9);
    assert_eq!((m.train.batch, m.train.ranks, m.train.stop, m.train.seq), (4096, 1, 240.0, 2048));
    assert_eq!(m.train.clip, Some((0.5, true)), "a number replaces the number, not `per shard`");
    assert!(m.train.averages.is_empty());
    for (progress, scale) in [(0.0, 1.0), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)] {
        assert_eq!(at(&m.train.schedule, &[("progress", progress)]), scale);
    }
    let hyper = |name: &str| {
        let list = m.train.hypers.iter().chain(&m.evaluate.adapt.as_ref().unwrap().hypers);
        list.into_iter().find(|h| h.name == name).map(|h| h.value.clone())
    };
    assert_eq!(at(&hyper("hyper.muon.matrices.lr").unwrap(), &[("scale", 0.5)]), 0.005);
    assert_eq!(at(&hyper("hyper.adamw.scalars.lr").unwrap(), &[("scale", 0.5)]), 0.01);
    assert_eq!(hyper("hyper.muon.matrices.momentum"), None, "a constant is no host scalar");
    let adapt = m.evaluate.adapt.as_ref().unwrap();
    assert_eq!((adapt.chunk, adapt.epochs, adapt.batch, adapt.clip), (2048, 2, 4, Some(1.0)));
    assert_eq!((m.evaluate.window, m.evaluate.stride, m.evaluate.limit), (1024, 128, Some(8192)));
    let lr = hyper("hyper.adapt.sgd.all.lr").unwrap();
    assert_eq!(at(&lr, &[("chunk", 0.0), ("chunks", 5.0)]), 0.01);
    assert!((at(&lr, &[("chunk", 2.0), ("chunks", 5.0)]) - 0.005).abs() < 1e-12);
    assert!(at(&lr, &[("chunk", 4.0), ("chunks", 5.0)]).abs() < 1e-12);
    let source = m.source.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in ["layers = 9", "batch = 4096", "limit = 8192"] {
        assert!(source.contains(said), "{said}");
    }
}

#[test]
fn a_learning_rate_that_is_a_function_is_taken_as_it_is() {
    let m = model("vrl11", &["evaluate.adapt.lr=cosine(0.01)"]);
    let hypers = &m.evaluate.adapt.as_ref().unwrap().hypers;
    assert_eq!(at(&hypers[0].value, &[("chunk", 0.0), ("chunks", 5.0)]), 0.01);
    assert!((at(&hypers[0].value, &[("chunk", 2.0), ("chunks", 5.0)]) - 0.005).abs() < 1e-12, "one cosine, not two");
}

#[test]
fn the_published_schedules_come_out() {
    let m = model("vrl11", &[]);
    let scale = |step: f64, elapsed: f64| {
        let step_time = if step > 0.0 { elapsed / step } else { 0.0 };
        at(
            &m.train.schedule,
            &[("progress", elapsed / 600.0), ("step_time", step_time), ("budget", 600.0), ("step", step)],
        )
    };
    // Spec 3.5: 1 until remaining <= 3500 * elapsed / step, then remaining / (3500 * step time).
    assert_eq!(scale(0.0, 0.0), 1.0);
    assert_eq!(scale(1000.0, 97.0), 1.0);
    assert!((scale(5000.0, 485.0) - (600.0 - 485.0) / (3500.0 * 0.097)).abs() < 1e-12);
    let momentum = m.train.hypers.iter().find(|h| h.name == "hyper.muon.matrices.momentum").unwrap();
    for (step, value) in [(0.0, 0.92), (750.0, 0.955), (1500.0, 0.99), (9000.0, 0.99)] {
        assert!((at(&momentum.value, &[("step", step)]) - value).abs() < 1e-12);
    }
    let [swa, ema] = m.train.averages.as_slice() else { panic!() };
    assert_eq!((swa.name.as_str(), ema.name.as_str()), ("swa", "ema"));
    for (step, scale, runs) in [(100.0, 0.5, 0.0), (100.0, 0.19, 1.0), (110.0, 0.19, 0.0)] {
        assert_eq!(at(&swa.when, &[("step", step), ("scale", scale)]), runs);
    }
    assert_eq!(at(&ema.when, &[]), 1.0);
}

#[test]
fn models_scale_down() {
    for layers in 2..=11 {
        let sets = [format!("layers={layers}"), "seq=64".to_string(), "train.batch=1024".to_string()];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let m = model("vrl11", &sets);
        assert_eq!(m.train.ranks, 8);
        model("baseline", &sets);
        assert!(m.parameters.iter().any(|p| p.name == "ve_layer_scales.1"));
    }
    let m = model("vrl11", &["seq=64", "train.batch=128"]);
    assert_eq!(m.train.ranks, 2, "two rows are two shards at most");
    assert_eq!(m.warnings.len(), 1);
}

#[test]
fn equal_programs_make_equal_graphs() {
    use golf_compiler::graph::{build::Builder, ir::DType, text};
    let m = model("tiny", &[]);
    let graph = |rows, len| {
        let mut b = Builder::new("forward", DType::Bf16);
        m.forward(&mut b, rows, len).unwrap_or_else(|list| panic!("{}", list[0].message));
        b.finish()
    };
    assert_eq!(text::print(&graph(2, 256)), text::print(&graph(2, 256)));
    assert_ne!(text::print(&graph(2, 256)), text::print(&graph(2, 128)));
}

#[test]
fn models_and_prelude_are_formatted() {
    use golf_grammar::{FileId, print::format_bytes};
    for folder in ["models", "compiler/src/prelude"] {
        for entry in std::fs::read_dir(common::repository(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "golf") {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let formatted = format_bytes(FileId(0), &bytes)
                .unwrap_or_else(|list| panic!("{}: {}", path.display(), list[0].message));
            if std::env::var_os("GOLF_FORMAT").is_some() {
                std::fs::write(&path, &formatted).unwrap();
            }
            assert!(formatted.as_bytes() == bytes, "{}: run golfc --fmt", path.display());
        }
    }
}

#[test]
fn the_readme_shows_the_prelude_as_it_is() {
    let folder = std::fs::read_dir(common::repository("compiler/src/prelude")).unwrap();
    let prelude: String = folder.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let readme = std::fs::read_to_string(common::repository("README.md")).unwrap();
    let shown: Vec<&str> = readme.split("```golf\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!shown.is_empty());
    for code in shown {
        assert!(prelude.contains(code), "the prelude does not contain\n{code}");
    }
}
