//! Programs that calibrate: the whole job, alone and by its parts, in time and late.

use std::process::Command;

use super::{Dir, TRAIN, finish};
use crate::data::TokenStream;
use crate::device::cuda::fake::Library;
use crate::device::toy::{DAMP, DEAD, T, V};
use crate::safetensors::{Reader, Tensor, save_all};

/// Sequences of the calibration.
const SEQUENCES: usize = 32;

fn command(dir: &Dir, args: &str, fault: Option<&str>) -> Command {
    let mut command = dir.command(args, fault);
    command.env("GOLF_TEST_SEQUENCES", SEQUENCES.to_string());
    command
}

fn run(dir: &Dir, args: &str, env: &[(&str, &str)]) -> (i32, String, String) {
    finish(command(dir, args, None).envs(env.iter().copied()).output().unwrap())
}

fn read(dir: &Dir, out: &str, files: &[&str]) -> Vec<Vec<u8>> {
    files.iter().map(|f| std::fs::read(dir.path(out).join(f)).unwrap()).collect()
}

/// Codes by the definition in f64: columns by descending diagonal of H, and after each the others move by what its error asks of them, through
/// the inverse of H over the columns that are left.
fn reference(table: &[f32], scale: &[f32], tokens: &[u16]) -> Vec<f64> {
    let mut h = vec![vec![0.0; V]; V];
    for t in tokens {
        let x = &table[usize::from(*t) * V..][..V];
        for r in DEAD..V {
            (DEAD..V).for_each(|c| h[r][c] += f64::from(x[r]) * f64::from(x[c]));
        }
    }
    (0..V).filter(|&c| h[c][c] == 0.0).collect::<Vec<_>>().into_iter().for_each(|c| h[c][c] = 1.0);
    let mean = (0..V).map(|c| h[c][c]).sum::<f64>() / V as f64;
    (0..V).for_each(|c| h[c][c] += DAMP * mean);
    let mut order: Vec<usize> = (0..V).collect();
    order.sort_by(|&a, &b| h[b][b].total_cmp(&h[a][a]));
    // Gauss and Jordan.
    let mut inverse: Vec<Vec<f64>> = (0..V).map(|r| (0..V).map(|c| f64::from(u8::from(r == c))).collect()).collect();
    for k in 0..V {
        let pivot = h[k][k];
        h[k].iter_mut().chain(&mut inverse[k]).for_each(|x| *x /= pivot);
        let (row, turned) = (h[k].clone(), inverse[k].clone());
        for r in (0..V).filter(|&r| r != k) {
            let f = h[r][k];
            h[r].iter_mut().zip(&row).for_each(|(x, y)| *x -= f * y);
            inverse[r].iter_mut().zip(&turned).for_each(|(x, y)| *x -= f * y);
        }
    }
    let mut w: Vec<f64> =
        table.iter().enumerate().map(|(i, &x)| if i % V < DEAD { 0.0 } else { f64::from(x) }).collect();
    let mut codes = vec![0.0; V * V];
    for &c in &order {
        let row = inverse[c].clone();
        for r in 0..V {
            let scale = f64::from(scale[r]);
            let q = libm::rint(w[r * V + c] / scale).clamp(-31.0, 31.0);
            codes[r * V + c] = q;
            let e = (w[r * V + c] - q * scale) / row[c];
            w[r * V..][..V].iter_mut().zip(&row).for_each(|(w, x)| *w -= e * x);
        }
        // Without column c.
        for r in 0..V {
            let f = inverse[r][c] / row[c];
            inverse[r].iter_mut().zip(&row).for_each(|(x, y)| *x -= f * y);
        }
    }
    codes
}

/// The same bits for any number of threads, by parts, and after a kill; the codes are those of the definition.
#[test]
fn the_whole_job_with_calibration() {
    let dir = Dir::new();
    let all = |out: &str, threads: usize| {
        format!("all --data . --seed 3 --steps 10 --threads {threads} --codes {out}.codes --out {out}")
    };
    for threads in [1, 2, 3] {
        let out = threads.to_string();
        let (code, text, err) = run(&dir, &all(&out, threads), &[]);
        assert!(code == 0 && text.contains("adapted val_loss:"), "{text}{err}");
        // By steps, not by the clock: no word about the deadline.
        assert!(text.contains("calibrate:256 tokens, 1 matrices, ") && !text.contains("deadline"), "{text}");
    }
    let files = ["weights.safetensors", "artifact.golfa", "nll.f32", "receipt.jsonl"];
    assert!(["2", "3"].iter().all(|out| read(&dir, out, &files) == read(&dir, "1", &files)));
    let (code, text, err) = run(&dir, "verify --out 1 --data . --replay", &[]);
    assert_eq!(code, 0, "{text}{err}");
    let json: serde_json::Value = serde_json::from_slice(&read(&dir, "1", &["submission.json"])[0]).unwrap();
    assert_eq!(
        (json["calibration"]["tokens"].as_u64(), json["calibration"]["past_deadline"].as_bool()),
        (Some(256), None)
    );

    let codes = Reader::open(&dir.path("1.codes")).unwrap();
    let weights = Reader::open(&dir.path("1/weights.safetensors")).unwrap();
    let (table, scale) = (weights.f32("table.weight").unwrap(), codes.f32("scale.table.weight").unwrap());
    let mut tokens = vec![0; SEQUENCES * T];
    TokenStream::open(dir.0.path(), "fineweb_train_*.bin", V as u32).unwrap().read(0, &mut tokens).unwrap();
    let expected = reference(&table, &scale, &tokens);
    let found: Vec<f64> = codes
        .f32("dequant.table.weight")
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, x)| f64::from(x / scale[i / V]))
        .collect();
    let plain = |i: usize| libm::rint(f64::from(table[i] / scale[i / V])).clamp(-31.0, 31.0);
    let same = (0..V * V).filter(|&i| libm::rint(found[i]) == expected[i]).count();
    let moved = (0..V * V).filter(|&i| expected[i] != plain(i)).count();
    println!("{same} of {} codes equal, {moved} not those of rounding alone", V * V);
    assert!(same * 1000 >= V * V * 999 && moved * 20 > V * V, "{same} {moved}");

    // By parts, with another number of threads.
    let (code, text, err) = run(&dir, &format!("{TRAIN} --steps 10 --out parts"), &[]);
    assert!(code == 0 && !text.contains("calibrate:"), "{text}{err}");
    let (code, text, err) = run(&dir, "pack --data . --out parts --threads 2", &[]);
    assert!(code == 0 && text.contains("calibrate:256 tokens"), "{text}{err}");
    assert!(read(&dir, "parts", &files[..2]) == read(&dir, "1", &files[..2]));
    // Killed in training; resumed; and once more when all is done.
    let (code, _, err) = finish(command(&dir, &all("cut", 1), Some("kill:step:5")).output().unwrap());
    assert_eq!(code, 137, "{err}");
    for _ in 0..2 {
        let (code, text, err) = run(&dir, &format!("{} --resume", all("cut", 2)), &[]);
        assert!(code == 0 && text.contains("calibrate:256 tokens"), "{text}{err}");
        assert!(read(&dir, "cut", &files) == read(&dir, "1", &files));
    }
}

#[test]
fn what_calibration_lacks_is_said() {
    let dir = Dir::new();
    // Before training as before packing; and nothing is left behind.
    let many = [("GOLF_TEST_SEQUENCES", "276")];
    for args in ["train --data . --steps 2 --out o", "pack --data . --out o"] {
        let (code, text, err) = run(&dir, args, &many);
        let why = "calibration takes 276 sequences of 8 tokens; the shards named fineweb_train_*.bin hold 2201 tokens";
        assert!(code == 1 && err.contains(why) && text.is_empty() && !dir.path("o").exists(), "{args}: {text}{err}");
    }
    assert_eq!(run(&dir, &format!("{TRAIN} --steps 2 --out o"), &[("GOLF_TEST_SEQUENCES", "274")]).0, 0);
    let (code, _, err) = run(&dir, "pack --out o", &[]);
    assert!(
        code == 2 && err.contains("calibrates its quantisers on training tokens") && err.contains("--data DIR"),
        "{err}"
    );
    assert!(!dir.path("o/artifact.golfa").exists());
    let (code, _, err) = run(&dir, "pack --out o --data gone", &[]);
    assert!(code == 1 && err.contains("gone: no such file"), "{err}");
    // Weights whose activations overflow.
    let tensors = [
        ("table.weight", vec![V, V], 1e25),
        ("bias", vec![V], 0.0),
        ("unused.mix", vec![2, 3], 0.0),
        ("unused.turn", vec![6, 4], 0.0),
    ];
    let tensors = tensors.map(|(name, shape, x)| {
        let n = shape.iter().product();
        (name.to_string(), shape, Tensor::F32(vec![x; n]))
    });
    save_all(&dir.path("big"), "x", &crate::files::Faults::none(), &tensors).unwrap();
    let (code, _, err) = run(&dir, "pack --out o --data . --weights big", &[]);
    assert!(code == 1 && err.contains("table.weight: the sums of squares") && err.contains("larger `damp`"), "{err}");
    // A program that does not calibrate reads no data to pack.
    assert_eq!(dir.run(&format!("{TRAIN} --steps 2 --out plain")).0, 0);
    assert_eq!(dir.run("pack --out plain --data gone").0, 0);
    let (code, text, _) = run(&dir, "info", &[("GOLF_TEST_RESERVE", "400")]);
    assert!(
        code == 0
            && text.contains("after 600 s or 20000 steps")
            && text.contains("256 tokens from the start of fineweb_train_*.bin, in the 400 s"),
        "{text}"
    );
}

/// One deadline: training ends earlier by the reserve, calibration is measured against it, and being late is said everywhere.
#[test]
fn one_deadline_covers_training_and_calibration() {
    let dir = Dir::new();
    let (code, _, err) = run(&dir, &format!("{TRAIN} --steps 10 --out steps"), &[("GOLF_TEST_RESERVE", "400")]);
    assert_eq!(code, 0, "{err}");
    let ledger = std::fs::read_to_string(dir.path("steps/ledger.jsonl")).unwrap();
    assert!(ledger.contains("\"step_time\":60.0"), "{ledger}");

    let all = |out: &str, stop: &str, reserve: &str| {
        let env = [("GOLF_TEST_STOP", stop), ("GOLF_TEST_RESERVE", reserve)];
        let (code, text, err) = run(&dir, &format!("all --data . --seed 3 --no-adapt --out {out}"), &env);
        assert_eq!(code, 0, "{text}{err}");
        let json: serde_json::Value = serde_json::from_slice(&read(&dir, out, &["submission.json"])[0]).unwrap();
        let readme = String::from_utf8(read(&dir, out, &["README.md"]).remove(0)).unwrap();
        (text, json["calibration"].clone(), readme)
    };
    let (text, json, readme) = all("early", "60.4", "60");
    let left = json["seconds_before_deadline"].as_f64().unwrap();
    assert!((1.0..60.0).contains(&left) && json["past_deadline"] == false, "{json}");
    assert!(text.contains(&format!("s ({left:.1}s before the deadline)")) && !text.contains("PAST"), "{text}");
    assert!(readme.contains(&format!("{left:.1} s before the deadline of 60.4 s")), "{readme}");
    // Other weights than those that were trained: nothing to say about the time.
    let (_, text, err) = run(&dir, "pack --data . --out early", &[]);
    assert!(text.contains("before the deadline"), "{text}{err}");
    std::fs::copy(dir.path("steps/weights.safetensors"), dir.path("other")).unwrap();
    let (_, text, err) = run(&dir, "pack --data . --out early --weights other", &[]);
    assert!(text.contains("calibrate:256 tokens") && !text.contains("deadline"), "{text}{err}");

    let (text, json, readme) = all("late", "0.3", "0.0001");
    assert!(json["seconds_before_deadline"].as_f64().unwrap() < 0.0 && json["past_deadline"] == true, "{json}");
    for said in [&text, &readme] {
        assert!(said.contains("PAST THE DEADLINE: training and calibration together took 0."), "{said}");
    }
}

/// On the fake GPU, whose kernels are the CPU's: the same bits, whether it has the graphs or lends its weights to the CPU.
#[test]
fn a_gpu_calibrates_or_lends_its_weights() {
    let (dir, library) = (Dir::new(), Library::new(&[]));
    let env = [("GOLF_LIBCUDA", library.name())];
    let (code, text, err) = run(&dir, &format!("{TRAIN} --steps 3 --device cpu --out o"), &env);
    assert_eq!(code, 0, "{text}{err}");
    let pack = |device: &str, more: &[(&str, &str)]| {
        let _ = std::fs::remove_file(dir.path("o/artifact.golfa"));
        let (code, text, err) =
            run(&dir, &format!("pack --data . --out o --device {device}"), &[&env[..], more].concat());
        assert!(code == 0 && text.contains("calibrate:256 tokens"), "{text}{err}");
        (read(&dir, "o", &["artifact.golfa"]), text)
    };
    let (expected, text) = pack("cpu", &[]);
    assert!(!text.contains("on the CPU"), "{text}");
    for more in [&[][..], &[("GOLF_TEST_PACKS_ON_CPU", "1")], &[("GOLF_SYNC", "1")]] {
        let (found, text) = pack("cuda:0", more);
        assert!(found == expected, "{more:?}");
        let lent = more.contains(&("GOLF_TEST_PACKS_ON_CPU", "1"));
        assert_eq!(text.contains("pack:on the CPU, for this program has no sm_90a code"), lent, "{text}");
    }
}
