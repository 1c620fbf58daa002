//! `golfc data`: text to shards.
//!
//! *Takes* text files, a tokenizer (a SentencePiece BPE `.model`, or bytes) and a directory; *gives* the data directory that programs train
//! on; *promises* that the same text gives the same bytes, whatever the order of the arguments, the file names and the number of
//! threads, and that an error leaves nothing half-written.
//!
//! Order of work: find documents ([`documents`]), divide and order them by hash ([`divide`]), encode them ([`normalize`], [`encode`]), write
//! shards ([`output`]).

mod args;
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
use golf_runtime::data::tokenizer::{BYTES_FILE, Tokenizer};
use golf_runtime::error::{Error, Result};

pub use args::DataArgs;
use divide::{Division, Part};
use documents::{Document, Source};
use encode::Encoder;
use output::{Output, Shards};
use progress::Progress;

/// Text encoded between two writes, bytes over all threads.
const ROUND: u64 = 16 << 20;

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
    /// Starts every document.
    bos: u16,
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
        let Some(bos) = tokenizer.bos() else {
            return Err(Error::file(name, "the model has no control piece that starts a document (bos)"));
        };
        let output = Output::create(dir, model.as_deref(), args.overwrite)?;
        Ok(Target::Shards(Box::new(Job { tokenizer, model, encoder, bos, output, dir: dir.clone() })))
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
        let texts = Texts { sources, bos: self.bos, progress: Progress::new("encoding", train_bytes + val_bytes) };
        let mut encoders = vec![self.encoder; threads];
        let mut side = |name, parts: &[Part], bytes| -> Result<Side> {
            let mut shards = self.output.shards(name);
            encode(&texts, parts, &mut encoders, &mut shards)?;
            shards.finish(parts.len() as u64, bytes)
        };
        let val = side("val", &division.val, val_bytes)?;
        let train = side("train", &division.train, train_bytes)?;
        drop(texts);
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

/// What the encoding threads share.
struct Texts<'a> {
    sources: &'a [Source],
    bos: u16,
    progress: Progress,
}

/// Encodes parts in order: rounds of bounded size, each divided among the threads.
fn encode(texts: &Texts<'_>, parts: &[Part], encoders: &mut [Encoder], shards: &mut Shards<'_>) -> Result<()> {
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
                        ids.push(texts.bos);
                        encoder.encode(&read(texts.sources, part)?, &mut ids);
                        texts.progress.add(part.range.len() as u64);
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
    let write = || -> Result<(u64, usize)> {
        let io = |e| Error::io(&partial, e);
        let mut out = std::io::BufWriter::new(std::fs::File::create(&partial).map_err(io)?);
        let (mut written, mut used) = (0, 0);
        for part in parts {
            let mut text = read(sources, part)?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let whole = text.len() as u64 <= limit - written;
            if !whole {
                let room = divide::char_boundary(&text, (limit - written) as usize);
                text.truncate(text[..room].rfind('\n').map_or(0, |n| n + 1));
            }
            out.write_all(text.as_bytes()).map_err(io)?;
            written += text.len() as u64;
            used += usize::from(!text.is_empty());
            if !whole {
                break;
            }
        }
        out.flush().map_err(io)?;
        std::fs::rename(&partial, file).map_err(|e| Error::io(file, e))?;
        Ok((written, used))
    };
    match write() {
        Ok((bytes, used)) => {
            Ok(format!("{}: {bytes} bytes of text, {used} of {} training documents\n", file.display(), parts.len()))
        }
        Err(error) => {
            // What is left of the partial file, if it was made at all.
            let _ = std::fs::remove_file(&partial);
            Err(error)
        }
    }
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
    use std::collections::BTreeMap;

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

    /// Runs `golfc data WORDS`.
    fn data(words: &[&str]) -> Result<()> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: DataArgs,
        }
        run(<Cli as clap::Parser>::try_parse_from([&["data"], words].concat()).unwrap().args)
    }

    /// Name and content of every file of a directory.
    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
    }

    /// Same text, same bytes: whatever the threads, the file names, the order and the way documents are written down.
    #[test]
    fn same_text_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        let texts: Vec<String> =
            (0..300).map(|i| format!("document {i}: the harbour\n{}", "wakes ".repeat(i))).collect();
        std::fs::write(at("a.txt"), texts.join("<|end|>")).unwrap();
        std::fs::create_dir(at("d")).unwrap();
        for (i, text) in texts.iter().enumerate() {
            std::fs::write(at(&format!("d/{}.md", 999 - i)), text).unwrap();
        }
        let lines: Vec<String> = texts.iter().rev().map(|t| serde_json::json!({ "text": t }).to_string()).collect();
        std::fs::write(at("b.jsonl"), lines.join("\n")).unwrap();
        let model = fixtures().join("nfkc.model").to_str().unwrap().to_string();
        for tokenizer in ["bytes", &model] {
            let (one, two, three) = (at("one"), at("two"), at("three"));
            data(&["--tokenizer", tokenizer, "--out", &one, "--separator", "<|end|>", "-j", "1", &at("a.txt")])
                .unwrap();
            data(&["--tokenizer", tokenizer, "--out", &two, "-j", "3", &at("d")]).unwrap();
            data(&["--tokenizer", tokenizer, "--out", &three, "-j", "2", &at("b.jsonl")]).unwrap();
            assert_eq!(files(Path::new(&one)), files(Path::new(&two)));
            assert_eq!(files(Path::new(&one)), files(Path::new(&three)));
            for out in [one, two, three] {
                std::fs::remove_dir_all(out).unwrap();
            }
        }
    }

    /// What the runtime reads is the text: bytes decoded, bytes counted, documents in order.
    #[test]
    fn the_runtime_reads_the_text() {
        use golf_runtime::data::{ByteTable, TokenStream, ValStream};
        let dir = tempfile::tempdir().unwrap();
        let (text, out) = (dir.path().join("t.txt"), dir.path().join("out"));
        let lines: String = (0..100).map(|i| format!("line {i} é😀\n")).collect();
        std::fs::write(&text, &lines).unwrap();
        let (text, name) = (text.to_str().unwrap(), out.to_str().unwrap());
        data(&["--tokenizer", "bytes", "--out", name, "--val", "20%", text]).unwrap();
        let (table, _) = ByteTable::open(&out, 260).unwrap();
        let mut read = Vec::new();
        for side in ["fineweb_train_*.bin", "fineweb_val_*.bin"] {
            let stream = TokenStream::open(&out, side, 260).unwrap();
            let mut tokens = vec![0; stream.len() as usize];
            stream.read(0, &mut tokens).unwrap();
            assert_eq!(tokens[0], 1);
            read.extend(tokens[1..].iter().map(|t| (t - 4) as u8));
        }
        assert_eq!(String::from_utf8(read).unwrap(), lines);
        let val = ValStream::open(&out, "fineweb_val_*.bin", 1, table).unwrap();
        let summary = val.summary(None).unwrap();
        assert_eq!(summary.bytes, Manifest::read(&out).unwrap().unwrap().val.text_bytes);
        assert_eq!(data(&["--tokenizer", "bytes", "--out", name, text]).unwrap_err().exit_code(), 2);
        data(&["--tokenizer", "bytes", "--out", name, "--overwrite", text]).unwrap();
    }

    #[test]
    fn an_error_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        std::fs::write(at("good.txt"), "some text\nof two lines\n").unwrap();
        std::fs::write(at("bad.txt"), b"abc\xff").unwrap();
        std::fs::write(at("bad.model"), "no model").unwrap();
        let before = files(dir.path());
        for (tokenizer, text, code) in [
            ("bytes", "bad.txt", 1),
            ("bytes", "gone.txt", 1),
            (&at("bad.model"), "good.txt", 1),
            (&at("gone.model"), "good.txt", 1),
        ] {
            let error = data(&["--tokenizer", tokenizer, "--out", &at("out"), &at("good.txt"), &at(text)]).unwrap_err();
            assert_eq!((error.exit_code(), error.to_string().contains(&at(""))), (code, true), "{error}");
            assert_eq!(files(dir.path()), before);
        }
        assert!(data(&["--text-only", &at("no/such/file"), &at("good.txt")]).is_err());
        data(&["--text-only", &at("sample"), "--limit", "11B", &at("good.txt"), &at("good.txt")]).unwrap();
        assert_eq!(std::fs::read_to_string(at("sample")).unwrap(), "some text\n");
    }
}
