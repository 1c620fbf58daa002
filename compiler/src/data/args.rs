//! The command line of `golfc data`.
//!
//! *Takes* words; *gives* [`DataArgs`]; *promises* that shares, sizes and separators are well-formed.

use std::path::PathBuf;

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

#[cfg(test)]
mod tests {
    use super::*;

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
