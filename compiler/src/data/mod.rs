//! `golfc data`: text to shards.
//!
//! *Takes* text files, a tokenizer (a SentencePiece BPE `.model`, or bytes) and a directory; *gives* the data directory that programs train
//! on; *promises* that the same text gives the same bytes, whatever the order of the arguments, the file names and the number of
//! threads, and that an error leaves nothing half-written.
//!
//! Order of work: find documents ([`documents`]), divide and order them by hash ([`divide`]), encode them ([`normalize`], [`encode`]), write
//! shards ([`output`]).

mod charsmap;
mod divide;
mod documents;
mod encode;
mod html;
mod normalize;
mod output;
mod progress;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use golf_runtime::data::manifest::{Manifest, Side, TokenizerEntry};
use golf_runtime::data::tokenizer::{BOS, BYTES_FILE, Tokenizer};
use golf_runtime::error::{Error, Result};

use divide::{Division, Part};
use documents::{Document, Source};
use encode::Encoder;
use output::{Output, Shards};
use progress::Progress;

/// Text encoded between two writes, bytes over all threads.
const ROUND: u64 = 16 << 20;

/// Arguments of `golfc data`.
#[derive(clap::Args, Clone, Debug)]
pub struct DataArgs {
    /// SentencePiece BPE model, or `bytes`.
    #[arg(long, value_name = "M.model|bytes", required_unless_present = "text_only")]
    pub tokenizer: Option<String>,
    /// Directory to write.
    #[arg(long, value_name = "DIR", required_unless_present = "text_only")]
    pub out: Option<PathBuf>,
    /// Share of the documents that are for validation, chosen by hash.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = parse_share)]
    pub val: f64,
    /// Text between two documents of one file (\n, \t and \\ are understood); without it a file is one document.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = parse_separator)]
    pub separator: Option<String>,
    /// Replace the data that --out holds.
    #[arg(long)]
    pub overwrite: bool,
    /// Only write the text of the training documents, in order, into this file (to train a tokenizer with).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokenizer", "out", "overwrite"])]
    pub text_only: Option<PathBuf>,
    /// With --text-only: stop after this much, e.g. 20MB.
    #[arg(long, value_name = "SIZE", requires = "text_only", value_parser = parse_size)]
    pub limit: Option<u64>,
    /// Leave out files and directories of this name, e.g. print.html, when searching directories. Repeatable.
    #[arg(long, value_name = "NAME")]
    pub except: Vec<String>,
    /// Threads; 0 is one per core.
    #[arg(short = 'j', long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Files or directories. A .jsonl holds a document a line in its field `text`; .html is stripped of its markup.
    #[arg(value_name = "TEXT", required = true)]
    pub texts: Vec<PathBuf>,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |n| (n, 100.0));
    match number.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n < scale => Ok(n / scale),
        _ => Err("a share above 0% and below 100% expected, e.g. 5%".into()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let size = number.parse::<u64>().ok().zip(scale).and_then(|(n, s)| n.checked_mul(s));
    size.ok_or_else(|| "a size expected, e.g. 20MB".into())
}

fn parse_separator(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('\\') => '\\',
                _ => return Err("\\n, \\t or \\\\ expected after a backslash".into()),
            },
            c => c,
        });
    }
    if out.is_empty() { Err("a separator of at least one character expected".into()) } else { Ok(out) }
}

/// Runs `golfc data`. What was made is said on stdout.
pub fn run(args: DataArgs) -> Result<()> {
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n.min(256),
    };
    // Cheap checks first: a wrong tokenizer or directory shows before any text is read.
    let target = match &args.text_only {
        Some(file) => Target::Text(file.clone()),
        None => Target::shards(&args)?,
    };
    let sources = documents::sources(&args.texts, &args.except)?;
    let documents = scan(&sources, args.separator.as_deref(), threads)?;
    if documents.is_empty() {
        return Err(Error::file(sources[0].path(), "no text in this file, nor in any other that was given"));
    }
    let division = divide::divide(documents, &sources, args.val)?;
    let said = match target {
        Target::Text(file) => write_text(&file, &sources, &division.train, args.limit)?,
        Target::Shards(job) => job.run(&sources, division, threads)?,
    };
    // A closed stdout is no error.
    let _ = std::io::stdout().write_all(said.as_bytes());
    Ok(())
}

enum Target {
    Text(PathBuf),
    Shards(Box<Job>),
}

/// Everything checked that shards need.
struct Job {
    tokenizer: Tokenizer,
    /// The model's file; `None` for bytes.
    model: Option<PathBuf>,
    encoder: Encoder,
    output: Output,
    dir: PathBuf,
}

impl Target {
    fn shards(args: &DataArgs) -> Result<Target> {
        let (Some(name), Some(dir)) = (&args.tokenizer, &args.out) else {
            return Err(Error::usage("--tokenizer and --out are needed"));
        };
        let model = (name != "bytes").then(|| PathBuf::from(name));
        let tokenizer = model.as_deref().map_or(Ok(Tokenizer::Bytes), Tokenizer::read)?;
        let encoder = Encoder::new(&tokenizer).map_err(|(offset, message)| match offset {
            Some(offset) => Error::at(name, offset, message),
            None => Error::file(name, message),
        })?;
        if let (Some(path), Tokenizer::Bytes) = (&model, &tokenizer) {
            return Err(Error::usage(format!("{}: say --tokenizer bytes", path.display())));
        }
        let output = Output::create(dir, model.as_deref(), args.overwrite)?;
        Ok(Target::Shards(Box::new(Job { tokenizer, model, encoder, output, dir: dir.clone() })))
    }
}

/// The documents of all files, in no particular order.
fn scan(sources: &[Source], separator: Option<&str>, threads: usize) -> Result<Vec<Document>> {
    let progress = Progress::new("reading", sources.iter().map(|s| s.size).sum());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(i) else { return Ok(found) };
            source.scan(i as u32, separator, &mut found).map_err(|e| (i, e))?;
            progress.add(source.size);
        }
    };
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(sources.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect::<Vec<_>>()
    });
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for result in results {
        match result {
            Ok(found) => documents.extend(found),
            Err(error) => errors.push(error),
        }
    }
    // Every file before a faulty one has been read by then: the first fault is the same for any number of threads.
    match errors.into_iter().min_by_key(|(i, _)| *i) {
        Some((_, error)) => Err(error),
        None => Ok(documents),
    }
}

fn read(sources: &[Source], part: &Part) -> Result<String> {
    let mut text = sources[part.document.source as usize].read(&part.document)?;
    text.truncate(part.range.end);
    text.drain(..part.range.start);
    Ok(text)
}

impl Job {
    fn run(mut self, sources: &[Source], division: Division, threads: usize) -> Result<String> {
        let bytes = |parts: &[Part]| parts.iter().map(|p| p.range.len() as u64).sum::<u64>();
        let (train_bytes, val_bytes) = (bytes(&division.train), bytes(&division.val));
        let progress = Progress::new("encoding", train_bytes + val_bytes);
        let mut encoders = vec![self.encoder; threads];
        let mut side = |name, parts: &[Part], bytes| -> Result<Side> {
            let mut shards = self.output.shards(name);
            encode(sources, parts, &mut encoders, &mut shards, &progress)?;
            shards.finish(parts.len() as u64, bytes)
        };
        let val = side("val", &division.val, val_bytes)?;
        let train = side("train", &division.train, train_bytes)?;
        drop(progress);
        let entry = tokenizer_entry(&mut self.output, &self.tokenizer, self.model.as_deref())?;
        let manifest = Manifest {
            golf_data: 1,
            tool: format!("golfc {}", env!("CARGO_PKG_VERSION")),
            tokenizer: entry,
            division: division.how,
            train,
            val,
        };
        self.output.commit(&manifest, self.model.as_deref())?;
        Ok(summary(&self.dir, &manifest))
    }
}

/// Copies the tokenizer into the directory.
fn tokenizer_entry(output: &mut Output, tokenizer: &Tokenizer, model: Option<&Path>) -> Result<TokenizerEntry> {
    let (file, content) = match model {
        None => (BYTES_FILE.to_string(), b"ids 0-3: pad bos eos unk; id 4+b: byte b\n".to_vec()),
        Some(path) => {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("tokenizer");
            (format!("{stem}.model"), std::fs::read(path).map_err(|e| Error::io(path, e))?)
        }
    };
    output.add(&file, &content)?;
    let blake3 = blake3::hash(&content).to_hex().to_string();
    Ok(TokenizerEntry { file, vocab: tokenizer.vocab() as u32, blake3 })
}

/// Encodes parts in order: rounds of bounded size, each divided among the threads.
fn encode(
    sources: &[Source],
    parts: &[Part],
    encoders: &mut [Encoder],
    shards: &mut Shards<'_>,
    progress: &Progress,
) -> Result<()> {
    let mut rest = parts;
    while !rest.is_empty() {
        let (round, after) = rest.split_at(prefix(rest, ROUND));
        let mut results = Vec::new();
        std::thread::scope(|scope| {
            let total: u64 = round.iter().map(|p| p.range.len() as u64).sum();
            let share = total.div_ceil(encoders.len() as u64);
            let mut left = round;
            let mut workers = Vec::new();
            for encoder in encoders.iter_mut() {
                let (mine, after) = left.split_at(prefix(left, share));
                left = after;
                workers.push(scope.spawn(move || {
                    let mut ids = Vec::new();
                    for part in mine {
                        ids.push(BOS);
                        encoder.encode(&read(sources, part)?, &mut ids);
                        progress.add(part.range.len() as u64);
                    }
                    Ok(ids)
                }));
            }
            for worker in workers {
                results.push(worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            }
        });
        for ids in results {
            shards.push(&ids?)?;
        }
        rest = after;
    }
    Ok(())
}

/// How many parts from the start make up at least `bytes`, or all.
fn prefix(parts: &[Part], bytes: u64) -> usize {
    let mut sum = 0;
    let enough = parts.iter().position(|p| {
        sum += p.range.len() as u64;
        sum >= bytes
    });
    enough.map_or(parts.len(), |i| i + 1)
}

/// Writes the text of parts, each ending in a line end, up to `limit` bytes.
fn write_text(file: &Path, sources: &[Source], parts: &[Part], limit: Option<u64>) -> Result<String> {
    let limit = limit.unwrap_or(u64::MAX);
    let name = file.file_name().ok_or_else(|| Error::usage(format!("{}: a file expected", file.display())))?;
    let partial = file.with_file_name(format!("{}.partial", name.to_string_lossy()));
    let mut written = 0;
    let mut write = || -> Result<()> {
        let io = |e| Error::io(&partial, e);
        let mut out = std::io::BufWriter::new(std::fs::File::create(&partial).map_err(io)?);
        for part in parts {
            if written >= limit {
                break;
            }
            let mut text = read(sources, part)?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            if written + text.len() as u64 > limit {
                let room = divide::char_boundary(&text, (limit - written) as usize);
                text.truncate(text[..room].rfind('\n').map_or(0, |n| n + 1));
                written = limit;
            } else {
                written += text.len() as u64;
            }
            out.write_all(text.as_bytes()).map_err(io)?;
        }
        out.flush().map_err(io)?;
        std::fs::rename(&partial, file).map_err(|e| Error::io(file, e))
    };
    if let Err(error) = write() {
        // What is left of the partial file, if it was made at all.
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    Ok(format!("{}: text of {} training documents, at most {written} bytes\n", file.display(), parts.len()))
}

fn summary(dir: &Path, m: &Manifest) -> String {
    let side = |name: &str, s: &Side| {
        let ratio = s.text_bytes as f64 / s.tokens.max(1) as f64;
        format!(
            "  {name:<5} {:>12} tokens {:>9} documents {:>13} bytes of text ({ratio:.3} bytes per token)\n",
            s.tokens, s.documents, s.text_bytes
        )
    };
    let head =
        format!("{}: {} ids of {}; validation is {}\n", dir.display(), m.tokenizer.vocab, m.tokenizer.file, m.division);
    head + &side("train", &m.train) + &side("val", &m.val)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use golf_runtime::data::tokenizer::Model;

    /// The folder of tokenizer fixtures.
    pub(crate) fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizer")
    }

    /// A text file of the tokenizer fixtures (see their refresh.sh).
    pub(crate) fn fixture(name: &str) -> String {
        std::fs::read_to_string(fixtures().join(name)).unwrap()
    }

    /// A model of the tokenizer fixtures.
    pub(crate) fn model(name: &str) -> Model {
        match Tokenizer::read(&fixtures().join(format!("{name}.model"))).unwrap() {
            Tokenizer::Model(m) => m,
            Tokenizer::Bytes => unreachable!(),
        }
    }

    #[test]
    fn arguments() {
        assert_eq!((parse_share("5%"), parse_share("0.25")), (Ok(0.05), Ok(0.25)));
        assert!(["0", "0%", "100%", "1", "x", "", "NaN", "-1%"].iter().all(|t| parse_share(t).is_err()));
        assert_eq!((parse_size("20MB"), parse_size("7"), parse_size("2KiB")), (Ok(20_000_000), Ok(7), Ok(2048)));
        assert!(["", "MB", "1.5MB", "3XB", "99999999999GB"].iter().all(|t| parse_size(t).is_err()));
        assert_eq!(parse_separator("a\\n\\\\b"), Ok("a\n\\b".into()));
        assert!(parse_separator("").is_err() && parse_separator("a\\x").is_err());
    }
}
