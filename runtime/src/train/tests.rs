//! Training the toy program for real: it learns, its bits depend on nothing they should not, and interruption leaves no trace.

use std::path::Path;

use super::*;
use crate::data::shard::header;
use crate::device::toy::{self, Toy};
use crate::exec::Options;
use crate::report::Record;
use crate::run::WEIGHTS;
use crate::safetensors::Reader;
use crate::state;

/// Shards of text-like tokens (each byte followed mostly by the next) and the bytes tokenizer.
pub fn write_data(dir: &Path) {
    let mut x = 12345u32;
    let mut token = 4u16;
    let mut stream = |n: usize| {
        let tokens = (0..n).map(|_| {
            x = x.wrapping_mul(1664525).wrapping_add(1013904223);
            token = if x >> 28 == 0 { 4 + (x >> 16 & 15) as u16 } else { 4 + (token - 3) % 16 };
            token
        });
        let tokens: Vec<u16> = tokens.collect();
        let mut bytes = header(n as u32).to_vec();
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        bytes
    };
    for (name, n) in
        [("fineweb_train_000000.bin", 1500), ("fineweb_train_000001.bin", 701), ("fineweb_val_000000.bin", 201)]
    {
        std::fs::write(dir.join(name), stream(n)).unwrap();
    }
    std::fs::write(dir.join("tokenizer.bytes"), "").unwrap();
}

struct Case {
    dir: tempfile::TempDir,
    toy: Toy,
    threads: usize,
    steps: u64,
    faults: Faults,
    signals: Signals,
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        write_data(dir.path());
        Case { dir, toy: Toy::default(), threads: 1, steps: 30, faults: Faults::none(), signals: Signals::none() }
    }

    fn request(&self, out: &str, mode: Mode) -> Request {
        Request {
            data: self.dir.path().into(),
            out: self.dir.path().join(out),
            seed: Some(5),
            clock: Some(ClockRequest::Steps(self.steps)),
            mode,
            allow_device_change: false,
            checkpoint_every: Duration::ZERO,
        }
    }

    fn session(&self) -> Session {
        let options = Options { threads: Some(self.threads), precision: Some("f32".into()), ..Options::default() };
        Session::new(toy::code(&self.toy), &options).unwrap()
    }

    fn train(&self, out: &str, mode: Mode) -> Result<Run> {
        train(self.session(), &self.request(out, mode), self.signals.clone(), self.faults.clone())
    }

    fn bytes(&self, out: &str, file: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(out).join(file)).unwrap()
    }

    /// What must be bit-stable: weights, state and manifest of the last checkpoint.
    fn bits(&self, out: &str) -> Vec<Vec<u8>> {
        let step = format!("{}/step-{:08}", state::DIR, self.steps);
        [WEIGHTS.to_string(), format!("{step}/state.bin"), format!("{step}/manifest.json")]
            .map(|f| self.bytes(out, &f))
            .into()
    }
}

fn losses(run: &Run) -> Vec<f64> {
    let entries = run.ledger.entries().unwrap();
    entries.iter().filter_map(|e| if let Record::Step(s) = &e.record { Some(s.loss) } else { None }).collect()
}

#[test]
fn learns_and_reports() {
    let case = Case::new();
    let run = case.train("a", Mode::New).unwrap();
    let losses = losses(&run);
    assert_eq!(losses.len(), 30);
    // A table near 0 says 1/260; sixteen tokens of which one is likely can be told at below 1 nat.
    assert!((losses[0] - libm::log(260.0)).abs() < 0.05, "{}", losses[0]);
    assert!(losses[29] < losses[0] - 1.0, "{losses:?}");
    let log = String::from_utf8(case.bytes("a", "train.log")).unwrap();
    assert!(
        log.contains("\nstep:30/30 train_loss:") && log.contains(" val_loss:") && log.contains("average:swa"),
        "{log}"
    );
    assert_eq!(case.bytes("a", "metrics.jsonl").split(|&b| b == b'\n').filter(|l| !l.is_empty()).count(), 31);
    assert!(String::from_utf8(case.bytes("a", "curve.svg")).unwrap().contains("polyline"));
    let e = case.train("a", Mode::New).err().unwrap();
    assert_eq!(e.exit_code(), 2);
    assert_eq!(case.train("a", Mode::Overwrite).unwrap().seed, 5);
}

/// The first step against its closed form: gradient of softmax cross-entropy, clipped per shard, averaged, one SGD step.
#[test]
fn the_first_step_in_closed_form() {
    let case = Case { steps: 1, ..Case::new() };
    case.train("none", Mode::New).unwrap();
    let (start, end) = {
        let mut fresh = case.session();
        crate::init::initialise(&mut fresh, 5).unwrap();
        let table = fresh.buffer("table.weight").unwrap();
        let r = Reader::open(&case.dir.path().join("none").join(WEIGHTS)).unwrap();
        (fresh.read_f32(&table).unwrap(), r.f32("table.weight").unwrap())
    };
    let stream = TokenStream::open(case.dir.path(), "fineweb_train_*.bin", 260).unwrap();
    let mut tokens = vec![0u16; 66];
    stream.read(0, &mut tokens).unwrap();
    let v = toy::V;
    let mut total = vec![0f64; v * v];
    for span in tokens.chunks(33) {
        let mut g = vec![0f64; v * v + v];
        for pair in span.windows(2) {
            let row = &start[usize::from(pair[0]) * v..][..v];
            let sum: f64 = row.iter().map(|&w| f64::from(w).exp()).sum();
            for c in 0..v {
                let d = (f64::from(row[c]).exp() / sum - f64::from(u8::from(c == usize::from(pair[1])))) / 32.0;
                g[usize::from(pair[0]) * v + c] += d;
                g[v * v + c] += d;
            }
        }
        let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
        total.iter_mut().zip(&g).for_each(|(t, g)| *t += g * (1.0 / (norm + 1e-6)).min(1.0) / 2.0);
    }
    // Average "ema" after one step (swa is not due): 0.9 start + 0.1 new.
    for i in 0..v * v {
        let expected = f64::from(start[i]) - 0.1 * 3.0 * total[i];
        assert!((f64::from(end[i]) - expected).abs() < 2e-7, "{i}: {} {expected}", end[i]);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let mut case = Case::new();
    case.train("1", Mode::New).unwrap();
    for threads in [2, 3] {
        case.threads = threads;
        case.train(&threads.to_string(), Mode::New).unwrap();
        assert!(case.bits("1") == case.bits(&threads.to_string()), "{threads} threads");
    }
}

#[test]
fn a_signal_saves_and_a_resumed_run_ends_in_the_same_bits() {
    let mut case = Case::new();
    case.train("whole", Mode::New).unwrap();
    // `full` on the ledger stands in for any error in the middle of a step; a signal arrives before the first.
    case.signals.raise(15);
    let e = case.train("cut", Mode::New).err().unwrap();
    assert_eq!(e.exit_code(), 143);
    case.signals = Signals::none();
    for at in [3_000, 6_000, 9_000] {
        case.faults = Faults::parse(&format!("full:ledger:{at}")).unwrap();
        let e = case.train("cut", Mode::Resume).err().unwrap();
        assert_eq!(e.exit_code(), 3, "{e}");
    }
    case.faults = Faults::none();
    case.train("cut", Mode::Resume).unwrap();
    assert!(case.bits("whole") == case.bits("cut"));
    // The derived files hold each step once.
    let steps = |out: &str| {
        let log = String::from_utf8(case.bytes(out, "train.log")).unwrap();
        log.lines()
            .filter_map(|l| Some(l.strip_prefix("step:")?.split_once(" train_time")?.0.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("whole"), steps("cut"));
    // Once more: nothing left to do, the weights are there.
    let run = case.train("cut", Mode::Resume).unwrap();
    let table = run.session.buffer("table.weight").unwrap();
    let r = Reader::open(&case.dir.path().join("cut").join(WEIGHTS)).unwrap();
    assert_eq!(run.session.read_f32(&table).unwrap(), r.f32("table.weight").unwrap());
}

#[test]
fn a_replayed_clock_gives_the_same_bits() {
    // A wall-clock run short enough to stop by itself, then its ledger as the clock of another.
    let mut case = Case::new();
    case.toy.stop = 0.3;
    let mut request = case.request("wall", Mode::New);
    request.clock = None;
    let run = train(case.session(), &request, Signals::none(), Faults::none()).unwrap();
    let steps = losses(&run).len() as u64;
    assert!(steps > 0);
    let mut request = case.request("replay", Mode::New);
    request.clock = Some(ClockRequest::Trace(case.dir.path().join("wall/ledger.jsonl")));
    train(case.session(), &request, Signals::none(), Faults::none()).unwrap();
    case.steps = steps;
    assert!(case.bits("wall") == case.bits("replay"), "{steps} steps");
}

#[test]
fn resuming_another_run_is_refused() {
    let mut case = Case::new();
    case.train("a", Mode::New).unwrap();
    for (change, code) in [
        (Box::new(|r: &mut Request| r.seed = Some(6)) as Box<dyn Fn(&mut Request)>, 2),
        (Box::new(|r: &mut Request| r.clock = Some(ClockRequest::Steps(31))), 2),
    ] {
        let mut request = case.request("a", Mode::Resume);
        change(&mut request);
        let e = train(case.session(), &request, Signals::none(), Faults::none()).err().unwrap();
        assert_eq!(e.exit_code(), code, "{e}");
    }
    case.toy.batch = 128;
    assert_eq!(case.train("a", Mode::Resume).err().unwrap().exit_code(), 1);
    case.toy.batch = 64;
    let path = case.dir.path().join("fineweb_train_000000.bin");
    let mut shard = std::fs::read(&path).unwrap();
    shard[1024] ^= 1;
    std::fs::write(&path, shard).unwrap();
    assert_eq!(case.train("a", Mode::Resume).err().unwrap().exit_code(), 1);
}

#[test]
fn one_rank_clips_in_place_and_learns() {
    let case = Case { toy: Toy { ranks: 1, limit: Some(100), ..Toy::default() }, ..Case::new() };
    let run = case.train("a", Mode::New).unwrap();
    assert!(losses(&run)[29] < 4.6);
    let partial = run
        .ledger
        .entries()
        .unwrap()
        .iter()
        .any(|e| matches!(&e.record, Record::Validation(v) if v.partial && v.targets == 100));
    assert!(partial);
}

#[test]
fn no_steps_at_all_leave_the_initial_weights() {
    let case = Case { steps: 0, ..Case::new() };
    case.train("a", Mode::New).unwrap();
    let mut fresh = case.session();
    crate::init::initialise(&mut fresh, 5).unwrap();
    let r = Reader::open(&case.dir.path().join("a").join(WEIGHTS)).unwrap();
    for b in fresh.params() {
        assert_eq!(fresh.read_f32(&b).unwrap(), r.f32(&b.name).unwrap(), "{}", b.name);
    }
    assert_eq!(r.f32("unused.mix").unwrap(), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}
