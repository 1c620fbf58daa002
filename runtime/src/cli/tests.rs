//! The command line in processes of its own: exit codes, signals, kills, closed pipes.

mod calibration;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::device::cuda::fake::Library;
use crate::device::toy::{self, Toy};
use crate::safetensors::{Reader, Tensor, save_all};

/// Stands in for an executable: the test binary, asked to run only this "test", which ends the process.
#[test]
fn child() {
    if let Ok(args) = std::env::var("GOLF_TEST_ARGS") {
        let args = std::iter::once("run").chain(args.split('\n').filter(|a| !a.is_empty())).map(Into::into).collect();
        if std::env::var_os("GOLF_TEST_TRIALS").is_some() {
            let args: Vec<std::ffi::OsString> = args;
            std::process::exit(super::trials::main(
                args,
                || crate::trial::Trials::unpack(&toy::trials()),
                &trial_child,
            ));
        }
        let ranks = std::env::var("GOLF_TEST_RANKS").map_or(2, |r| r.parse().unwrap());
        let gpu = std::env::var_os("GOLF_LIBCUDA").is_some();
        let gpu_packs = std::env::var_os("GOLF_TEST_PACKS_ON_CPU").is_none();
        let number = |name: &str| std::env::var(name).ok().map(|x| x.parse::<f64>().unwrap());
        let mut toy = Toy { ranks, limit: Some(64), gpu, gpu_packs, ..Toy::default() };
        toy.sequences = number("GOLF_TEST_SEQUENCES").map(|n| n as u64);
        toy.reserve = number("GOLF_TEST_RESERVE").unwrap_or(0.0);
        toy.stop = number("GOLF_TEST_STOP").unwrap_or(toy.stop);
        std::process::exit(super::main(args, || toy::load(&toy)));
    }
}

fn trial_child(flags: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["cli::tests::child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("GOLF_TEST_ARGS", flags.join("\n"));
    command
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        let dir = tempfile::tempdir().unwrap();
        crate::train::tests::write_data(dir.path());
        Dir(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &str, fault: Option<&str>) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["cli::tests::child", "--exact", "--nocapture", "--test-threads=1"]);
        command.current_dir(self.0.path()).env_clear().env("GOLF_TEST_ARGS", args.replace(' ', "\n"));
        command.envs(fault.map(|f| ("GOLF_FAILPOINT", f)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &str) -> (i32, String, String) {
        finish(self.command(args, None).output().unwrap())
    }

    /// With GPU code in the program and this driver.
    fn gpu(&self, driver: &str, args: &str) -> (i32, String, String) {
        finish(self.command(args, None).env("GOLF_LIBCUDA", driver).output().unwrap())
    }
}

/// Exit code (128 + signal), standard output without the harness's own lines, standard error.
fn finish(output: Output) -> (i32, String, String) {
    use std::os::unix::process::ExitStatusExt;
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
    let out = text(output.stdout);
    (code, out.replacen("\nrunning 1 test\ntest cli::tests::child ... ", "", 1), text(output.stderr))
}

const TRAIN: &str = "train --data . --seed 3 --threads 1 --checkpoint-every 0";

/// Weights, and state and manifest of the newest checkpoint.
fn bits(out: &Path) -> Vec<Vec<u8>> {
    let mut steps: Vec<_> = std::fs::read_dir(out.join("checkpoint")).unwrap().map(|e| e.unwrap().path()).collect();
    steps.sort();
    let last = steps.pop().unwrap();
    [out.join("weights.safetensors"), last.join("state.bin"), last.join("manifest.json")]
        .map(|f| std::fs::read(f).unwrap())
        .into()
}

#[test]
fn help_info_and_source() {
    let dir = Dir::new();
    for args in ["", "--help", "train --help"] {
        let (code, out, err) = dir.run(args);
        assert!(code == 0 && out.contains("Usage: run") && err.is_empty(), "{args}: {out}{err}");
    }
    let (code, out, _) = dir.run("info");
    let parameters = 260 * 260 + 260 + 6 + 24;
    assert!(code == 0 && out.contains(&format!("{parameters} in 4 tensors, 30 of them unused")), "{out}");
    assert!(out.contains("train.micro") && out.contains("bigram table") && out.contains("cpu-v3"), "{out}");
    let (code, out, _) = dir.run("info --source");
    assert!(code == 0 && out.starts_with("# a bigram table\n") && out.ends_with("fn none() {}\n"), "{out}");
}

#[test]
fn exit_codes_of_bad_requests() {
    let dir = Dir::new();
    for (args, code, why) in [
        ("frobnicate", 2, "frobnicate"),
        ("train --data . --out o --frob", 2, "--frob"),
        ("train --out o", 2, "--data"),
        ("train --data . --out o --steps x", 2, "invalid value"),
        ("train --data . --out o --steps 3 --clock t", 2, "cannot be used with"),
        ("train --data . --out o --steps 30000", 2, "stops at 20000"),
        ("train --data . --out o --threads 0", 2, "--threads 0"),
        ("train --data . --out o --isa sm_90a", 2, "holds code for cpu-v3"),
        ("train --data . --out o --precision f64", 2, "compiled for bf16, f32"),
        ("train --data . --out o --device tpu", 2, "expected auto, cpu or cuda"),
        ("train --data . --out o --device cuda:0", 3, "no code for a GPU"),
        ("train --data . --out o --device cuda:x", 2, "expected auto, cpu or cuda"),
        ("pack --out o --device cuda:0", 3, "no code for a GPU"),
        ("train --data . --out o --memory 1MB", 3, "0.01 GB"),
        ("train --data gone --out o", 1, "gone: no such file"),
        ("train --data . --out o --clock gone", 1, "gone: no such file"),
        ("train --data . --out tokenizer.bytes/x", 1, "tokenizer.bytes/x"),
        ("probe --weights gone --tokens t --out o", 1, "gone: no such file"),
        ("pack --out o", 1, "weights.safetensors: no such file"),
        ("verify --out o --replay", 2, "--data"),
    ] {
        let (got, out, err) = dir.run(args);
        assert!(got == code && err.contains(why) && err.starts_with("error: "), "{args}: {got} {out}{err}");
        assert!(!dir.path("o").join("ledger.jsonl").exists(), "{args} left something");
    }
}

#[test]
fn a_finished_run_is_not_overwritten() {
    let dir = Dir::new();
    let go = |flags: &str| dir.run(&format!("{TRAIN} --out o --steps 2 {flags}"));
    assert_eq!(go("").0, 0);
    let (code, _, err) = go("");
    assert!(code == 2 && err.contains("--resume goes on with it, --overwrite starts anew"), "{err}");
    assert_eq!((go("--resume").0, go("--overwrite").0), (0, 0));
}

/// Kills at byte offsets of checkpoint writes and at steps, drawn from a seed; the resumed run must end in the bits of one that
/// was left alone.
#[test]
fn killed_anywhere_the_run_ends_in_the_same_bits() {
    let seed = std::env::var("GOLF_TEST_SEED").map_or(20_260_101, |s| s.parse().unwrap());
    println!("kill seed {seed} (GOLF_TEST_SEED)");
    let dir = Dir::new();
    let args = |out: &str| format!("{TRAIN} --steps 12 --out {out}");
    assert_eq!(dir.run(&args("whole")).0, 0);
    let stream = crate::rng::Stream::new(seed, "kills");
    let one = std::fs::metadata(dir.path("whole/checkpoint/step-00000012/state.bin")).unwrap().len() as f64;
    let (mut kills, mut resume) = (0, "");
    for i in 0..60u64 {
        let [a, b] = stream.uniform_pair(i);
        let fault = match i % 4 {
            3 => format!("kill:step:{}", (a * 12.0) as u64),
            // Within a kilobyte of a file's end, where manifest and progress are written.
            2 => format!("kill:checkpoint:{}", ((one + 900.0) * (1.0 + libm::floor(a * 3.0)) - b * 1000.0) as u64),
            _ => format!("kill:checkpoint:{}", (a * one * 3.0) as u64),
        };
        let (code, _, err) = finish(dir.command(&format!("{}{resume}", args("cut")), Some(&fault)).output().unwrap());
        resume = " --resume";
        match code {
            137 => kills += 1,
            0 => break,
            _ => panic!("{fault}: {code} {err}"),
        }
    }
    assert!(kills >= 5, "{kills} kills");
    assert_eq!(dir.run(&format!("{} --resume", args("cut"))).0, 0);
    assert!(bits(&dir.path("whole")) == bits(&dir.path("cut")), "after {kills} kills");
}

fn wait_for(child: &mut Child, start: &str) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(start) {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "ended before {start}");
    }
    out
}

#[test]
fn signals_save_and_exit_by_number() {
    let dir = Dir::new();
    let args = |out: &str| format!("train --data . --seed 3 --threads 2 --steps 200 --out {out}");
    assert_eq!(dir.run(&args("whole")).0, 0);
    for (name, code, resume, start) in [("INT", 130, "", "step:3/"), ("TERM", 143, " --resume", "resumed:step")] {
        let mut child = dir.command(&format!("{}{resume}", args("cut")), None).spawn().unwrap();
        let mut out = wait_for(&mut child, start);
        let kill = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        // Read to the end: a closed pipe would be another reason to stop.
        std::io::Read::read_to_end(&mut out, &mut Vec::new()).unwrap();
        let (got, _, err) = finish(child.wait_with_output().unwrap());
        assert!(got == code && err.contains("--resume goes on"), "{name}: {got} {err}");
    }
    assert_eq!(dir.run(&format!("{} --resume", args("cut"))).0, 0);
    assert!(bits(&dir.path("whole")) == bits(&dir.path("cut")));
}

#[test]
fn a_closed_pipe_ends_quietly_and_the_run_can_go_on() {
    let dir = Dir::new();
    let args = "train --data . --seed 3 --threads 1 --steps 60 --out o";
    let mut child = dir.command(args, None).spawn().unwrap();
    drop(wait_for(&mut child, "step:3/"));
    let (code, _, err) = finish(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(!dir.path("o/weights.safetensors").exists());
    assert_eq!(dir.run(&format!("{args} --resume")).0, 0);
}

#[test]
fn a_full_disk_is_the_machines_fault_and_leaves_nothing_half_written() {
    let dir = Dir::new();
    let args = format!("{TRAIN} --steps 4 --out o");
    let mut resume = "";
    for fault in ["full:checkpoint:1000000", "full:ledger:1500", "full:weights:5000", "full:curve:100"] {
        let (code, _, err) = finish(dir.command(&format!("{args}{resume}"), Some(fault)).output().unwrap());
        assert!(code == 3 && err.contains("storage"), "{fault}: {code} {err}");
        resume = " --resume";
        let left: Vec<_> = std::fs::read_dir(dir.path("o")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|n| n.to_str().unwrap().ends_with(".tmp")), "{left:?}");
        assert!(fault.contains("curve") || !dir.path("o/weights.safetensors").exists(), "{fault}");
    }
    assert_eq!(dir.run(&format!("{args} --resume")).0, 0);
}

#[test]
fn probe_gives_loss_gradients_and_steps() {
    let dir = Dir::new();
    let (v, rows, seq) = (toy::V, 8, toy::T);
    let table: Vec<f32> = (0..v * v).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
    let tokens: Vec<i32> = (0..rows * (seq + 1)).map(|i| (i * i * 31 % v) as i32).collect();
    let none = crate::files::Faults::none();
    let weights = |path: &str, drop: usize| {
        let all = [
            ("table.weight".to_string(), vec![v, v], Tensor::F32(table.clone())),
            ("bias".into(), vec![v], Tensor::F32(vec![0.0; v])),
            ("unused.mix".into(), vec![2, 3], Tensor::F32(vec![1.0; 6])),
            ("unused.turn".into(), vec![6, 4], Tensor::F32(vec![1.0; 24])),
        ];
        save_all(&dir.path(path), "x", &none, &all[drop..]).unwrap();
    };
    weights("w", 0);
    weights("w3", 1);
    save_all(&dir.path("t"), "x", &none, &[("tokens".into(), vec![rows, seq + 1], Tensor::I32(tokens.clone()))])
        .unwrap();
    let (code, out, err) = dir.run("probe --weights w --tokens t --out o --steps 2 --precision f32");
    assert_eq!(code, 0, "{out}{err}");
    let o = Reader::open(&dir.path("o")).unwrap();

    // Closed form in f64.
    let (mut loss, mut grad) = (0f64, vec![0f64; v * v]);
    for row in tokens.chunks(seq + 1) {
        for pair in row.windows(2) {
            let (x, y) = (pair[0] as usize, pair[1] as usize);
            let sum: f64 = table[x * v..][..v].iter().map(|&l| f64::from(l).exp()).sum();
            loss += sum.ln() - f64::from(table[x * v + y]);
            for c in 0..v {
                let p = f64::from(table[x * v + c]).exp() / sum;
                grad[x * v + c] += (p - f64::from(u8::from(c == y))) / (rows * seq) as f64;
            }
        }
    }
    loss /= (rows * seq) as f64;
    assert!((f64::from(o.f32("loss").unwrap()[0]) - loss).abs() < 1e-5);
    assert_eq!(o.entry("nll").unwrap().shape, [rows, seq]);
    let g = o.f32("grad.table.weight").unwrap();
    assert!(g.iter().zip(&grad).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7));
    assert_eq!(o.f32("grad.unused.mix").unwrap(), [0.0; 6]);
    // The schedule stands at its start (rate 3); momentum is 0 in the first step and 0.1 in the second.
    let (p, n) = (o.f32("param.table.weight").unwrap(), o.f32("grad_norms").unwrap());
    assert!(o.f32("losses").unwrap()[1] < loss as f32 && n[0] > 0.0 && p != table);
    assert_eq!(o.f32("param.unused.mix").unwrap(), [1.0; 6]);

    for (args, why) in [
        ("probe --weights w3 --tokens t --out x", "1 parameters are missing, the first `table.weight`"),
        ("probe --weights t --tokens t --out x", "tensors are no parameter of this program, the first `tokens`"),
        ("probe --weights w --tokens w --out x", "holds no tensor `tokens`"),
    ] {
        let (code, _, err) = dir.run(args);
        assert!(code == 1 && err.contains(why) && !dir.path("x").exists(), "{args}: {err}");
    }
    for (shape, bad) in
        [(vec![rows - 1, seq + 1], None), (vec![rows, seq + 1], Some(260)), (vec![rows, seq + 1], Some(-1))]
    {
        let mut t = tokens[..shape[0] * shape[1]].to_vec();
        t[5] = bad.unwrap_or(t[5]);
        save_all(&dir.path("t2"), "x", &none, &[("tokens".into(), shape, Tensor::I32(t))]).unwrap();
        let (code, _, err) = dir.run("probe --weights w --tokens t2 --out x");
        assert!(code == 1 && err.contains("t2: tokens"), "{err}");
    }
}

#[test]
fn bench_reports_times_work_and_memory() {
    let dir = Dir::new();
    let (code, out, err) = dir.run("bench --steps 2 --json --threads 2 --precision f32");
    assert_eq!(code, 0, "{err}");
    let v: serde_json::Value = serde_json::from_str(out.lines().rev().find(|l| l.starts_with('{')).unwrap()).unwrap();
    assert_eq!(v["step_s"].as_array().unwrap().len(), 2);
    assert!(v["families"]["row"]["gflops"].as_f64().unwrap() > 0.0 && v["peak_rss_bytes"].as_u64().unwrap() > 0);
    assert_eq!((v["precision"].as_str(), v["threads"].as_u64()), (Some("f32"), Some(2)));
    assert!(v["evaluation"].is_null());
    let (code, out, _) = dir.run("bench --steps 1");
    assert!(
        code == 0 && out.contains("tokens/s") && out.contains("phase  micro") && out.contains("MB predicted"),
        "{out}"
    );
    assert!(!out.contains("score "), "{out}");
    let (code, out, _) = dir.run("bench --steps 1 --evaluate");
    assert!(code == 0 && out.contains("\nscore  ") && out.contains("\nadapt  "), "{out}");
    let (code, out, _) = dir.run("bench --steps 1 --evaluate --json");
    let v: serde_json::Value = serde_json::from_str(out.lines().rev().find(|l| l.starts_with('{')).unwrap()).unwrap();
    let e = &v["evaluation"];
    // The toy's stride is 2.
    let rate = e["score_windows"].as_f64().unwrap() * 2.0 / e["score_s"].as_f64().unwrap();
    assert!(code == 0 && (e["targets_per_second"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9, "{out}");
}

/// Train, pack, score, adapt, verify; the same bits for any number of threads; what was tampered with is refused.
#[test]
fn the_whole_job_has_the_same_bits_on_any_number_of_threads() {
    let dir = Dir::new();
    let files = ["weights.safetensors", "artifact.golfa", "nll.f32", "receipt.jsonl"];
    let read = |out: &str| files.map(|f| std::fs::read(dir.path(out).join(f)).unwrap());
    for threads in ["1", "2", "3"] {
        let (code, out, err) =
            dir.run(&format!("all --data . --seed 3 --steps 10 --threads {threads} --out {threads}"));
        assert!(code == 0 && out.contains("adapted val_loss:"), "{out}{err}");
        assert!(read("1") == read(threads), "{threads} threads");
    }
    for args in ["verify --out 1", "verify --out 1 --data .", "verify --out 1 --data . --replay"] {
        let (code, out, err) = dir.run(args);
        assert_eq!(code, 0, "{args}: {out}{err}");
    }
    for file in ["submission.json", "README.md", "curve.svg", "metrics.jsonl"] {
        assert!(std::fs::metadata(dir.path("1").join(file)).unwrap().len() > 0, "{file}");
    }
    let artifact = dir.path("1").join("artifact.golfa");
    let mut bytes = std::fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&artifact, bytes).unwrap();
    let (code, _, err) = dir.run("score --data . --out 1");
    assert!(code == 1 && err.contains("artifact.golfa"), "{err}");
}

/// Bad data is told before any work, with the file's name and the place in it.
#[test]
fn bad_data_is_refused_before_training() {
    type Harm = fn(&Path);
    let cases: [(&str, Harm, &str); 6] = [
        ("fineweb_train_000000.bin", |p| truncate(p, 1500), "fineweb_train_000000.bin"),
        ("fineweb_train_000001.bin", |p| overwrite(p, 1024 + 40, &[4, 1]), "byte 1064: token 260 is not below"),
        ("fineweb_val_000000.bin", |p| overwrite(p, 1024 + 40, &[4, 1]), "byte 1064: token 260 is not below"),
        ("fineweb_val_000000.bin", |p| overwrite(p, 0, &[9]), "fineweb_val_000000.bin"),
        ("fineweb_val_000000.bin", |p| std::fs::remove_file(p).unwrap(), "no shard named fineweb_val_*.bin"),
        ("tokenizer.bytes", |p| std::fs::remove_file(p).unwrap(), "tokenizer"),
    ];
    for (file, harm, why) in cases {
        let dir = Dir::new();
        harm(&dir.path(file));
        let (code, out, err) = dir.run(&format!("{TRAIN} --out o --steps 2"));
        assert!(code == 1 && err.contains(why) && out.is_empty(), "{file}: {code} {out}{err}");
        assert!(!dir.path("o").exists(), "{file}");
    }
}

fn truncate(path: &Path, to: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(to).unwrap();
}

fn overwrite(path: &Path, at: usize, with: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at..at + with.len()].copy_from_slice(with);
    std::fs::write(path, bytes).unwrap();
}

/// The whole job on the fake GPU, whose kernels are the CPU's: the same bits, and a checkpoint that goes from one to the other.
#[test]
fn a_gpu_does_the_whole_job() {
    let (dir, library) = (Dir::new(), Library::new(&[]));
    let (driver, all) = (library.name(), "all --data . --seed 3 --steps 6 --checkpoint-every 0");
    for (flags, kind) in [("--device cuda:0", "sm_90a"), ("--device auto", "sm_90a"), ("--device cpu", "cpu-")] {
        let out = kind.trim_end_matches('-');
        let (code, text, err) = dir.gpu(driver, &format!("{all} {flags} --out {out} --overwrite"));
        assert!(code == 0 && text.contains(&format!("seed 3 · {kind}")) && err.is_empty(), "{flags}: {text}{err}");
    }
    assert_eq!(dir.gpu(driver, "verify --out sm_90a --data . --replay").0, 0);
    for file in ["weights.safetensors", "artifact.golfa", "nll.f32", "checkpoint/step-00000006/state.bin"] {
        let read = |out: &str| std::fs::read(dir.path(out).join(file)).unwrap();
        assert!(read("sm_90a") == read("cpu"), "{file}");
    }
    let (code, text, err) = dir.gpu(driver, "bench --steps 2 --json --device cuda:0");
    assert!(code == 0 && text.contains("\"device_memory_bytes\":2"), "{text}{err}");
    let v: serde_json::Value = serde_json::from_str(text.lines().rev().find(|l| l.starts_with('{')).unwrap()).unwrap();
    // Half a millisecond a call by the fake's clock: 4 micro-batches, 2 shards of 3 calls, 1 update.
    assert_eq!((v["families"]["row"]["ms"].as_f64(), v["families"]["row"]["calls"].as_f64()), (Some(5.5), Some(11.0)));
    assert_eq!(v["machine"].as_str(), Some("Fake H100, driver for CUDA 12.8"));

    // Begun on the GPU, gone on with on the CPU: only when told.
    let train = |more: &str| dir.gpu(driver, &format!("{TRAIN} --steps 12 --out o {more}"));
    let (code, _, err) = finish(
        dir.command(&format!("{TRAIN} --steps 12 --out o --device cuda:0"), Some("kill:step:5"))
            .env("GOLF_LIBCUDA", driver)
            .output()
            .unwrap(),
    );
    assert_eq!(code, 137, "{err}");
    let (code, _, err) = train("--device cpu --resume");
    assert!(code == 1 && err.contains("was computed on sm_90a, this is cpu-"), "{err}");
    let (code, text, err) = train("--device cpu --resume --allow-device-change");
    assert!(code == 0 && text.contains("resumed:step 5 attempt:"), "{text}{err}");
}

/// Quantisers run where the weights are; without code for them there, on the CPU, which is said.
#[test]
fn a_gpu_packs_what_the_cpu_packs() {
    let (dir, library) = (Dir::new(), Library::new(&[]));
    assert_eq!(dir.gpu(library.name(), &format!("{TRAIN} --steps 3 --out o --device cpu")).0, 0);
    let pack = |library: &Library, device: &str, packs_on_cpu: bool| {
        let mut command = dir.command(&format!("pack --out o --device {device} --codes codes"), None);
        command.envs(packs_on_cpu.then_some(("GOLF_TEST_PACKS_ON_CPU", "1"))).env("GOLF_LIBCUDA", library.name());
        let (code, out, err) = finish(command.output().unwrap());
        let files = ["o/artifact.golfa", "codes"].map(|f| std::fs::read(dir.path(f)).unwrap());
        (code, out, err, files)
    };
    let (code, out, _, expected) = pack(&library, "cpu", false);
    assert!(code == 0 && !out.contains("on the CPU"), "{out}");
    for packs_on_cpu in [false, true] {
        for file in ["o/artifact.golfa", "codes"] {
            std::fs::write(dir.path(file), "").unwrap();
        }
        let (code, out, err, found) = pack(&library, "cuda:0", packs_on_cpu);
        assert!(code == 0 && found == expected, "{out}{err}");
        let said = out.contains("pack:on the CPU, for this program has no sm_90a code for its quantisers");
        assert_eq!(said, packs_on_cpu, "{out}");
    }
    let broken = Library::new(&["-DFAIL=\"most\""]);
    let (code, out, err, _) = pack(&broken, "cuda:0", false);
    assert!(code == 3 && err.contains("an illegal memory access"), "{out}{err}");
}

#[test]
fn a_gpu_that_cannot_do_it_is_an_error_when_asked_for_and_passed_over_otherwise() {
    let dir = Dir::new();
    let go = |options: &[&str], args: &str| {
        dir.gpu(Library::new(options).name(), &format!("train --data . --out o --overwrite --steps 2 {args}"))
    };
    for (options, words) in [
        (&["-DDEVICES=0"][..], "finds no GPU"),
        (&["-DMAJOR=7", "-DMINOR=5"], "code for sm_90a, sm_80; the device (Fake H100) is sm_75: golf needs sm_80"),
        (&["-DMEMORY=1000000"], "out of memory on Fake H100: 2.5 MB needed (parameters and optimiser state"),
        (&["-DVERSION=12060"], "(PTX 8.6) needs 12.7 or newer"),
        (&["-DFAIL=\"norm\""], "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)"),
    ] {
        let (code, _, err) = go(options, "--device cuda:0");
        assert!(code == 3 && err.contains(words), "{options:?}: {code} {err}");
    }
    // Hopper's code is Hopper's alone; everything else runs the portable one.
    for (options, kind) in [(&["-DMAJOR=8", "-DMINOR=6"], "sm_80"), (&["-DMAJOR=10", "-DMINOR=0"], "sm_80")] {
        let (code, out, err) = go(options, "--device cuda:0");
        assert!(code == 0 && out.contains(&format!("seed 1337 · {kind}")), "{options:?}: {out}{err}");
    }
    let (code, out, err) = go(&["-DDEVICES=0"], "");
    assert!(
        code == 0 && out.contains("seed 1337 · cpu-") && err.contains("on the CPU: the NVIDIA driver finds no GPU"),
        "{out}{err}"
    );
    let (code, _, err) = go(&[], "--device cuda:0 --isa cpu-v3");
    assert!(code == 2 && err.contains("one of them"), "{err}");
    // The name of the kernel that fails.
    let library = Library::new(&["-DFAIL=\"norm\""]);
    let mut command = dir.command("train --data . --out o --overwrite --steps 2 --device cuda:0", None);
    let (code, _, err) = finish(command.env("GOLF_LIBCUDA", library.name()).env("GOLF_SYNC", "1").output().unwrap());
    assert!(code == 3 && err.contains("train.shard, call 1, norm: Fake H100: an illegal memory access"), "{err}");
}

/// Each of four kernels has its trial, though one loses the device, one never ends and one is wrong.
#[test]
fn trials_survive_kernels_that_do_not() {
    let dir = Dir::new();
    let go = |options: &[&str], args: &str| {
        let library = Library::new(options);
        let mut command = dir.command(args, None);
        finish(command.env("GOLF_LIBCUDA", library.name()).env("GOLF_TEST_TRIALS", "1").output().unwrap())
    };
    let (code, out, err) = go(&[], "");
    assert!(
        code == 1 && out.contains("4 kernels of toy for sm_90a") && out.contains("3 of 4 kernels right"),
        "{out}{err}"
    );
    assert!(out.contains("FAILED  wrong") && out.contains("argument 1 element 3: found 1.25, wanted 2"), "{out}");
    let (code, out, err) = go(&["-DFAIL=\"double\"", "-DHANG=\"triple\""], "--limit 0.3");
    assert!(code == 1 && out.contains("FAILED  double") && out.contains("illegal memory access"), "{out}{err}");
    assert!(out.contains("FAILED  triple") && out.contains("does not end within"), "{out}{err}");
    assert!(out.contains("ok      quadruple") && out.contains("1 of 4 kernels right"), "{out}{err}");
    let (code, out, err) = go(&["-DMAJOR=8"], "");
    assert!(code == 3 && err.contains("the device (Fake H100) is sm_80"), "{out}{err}");
    let (code, out, _) = go(&[], "--only quad");
    assert!(code == 0 && out.contains("1 of 1 kernels right"), "{out}");
}
