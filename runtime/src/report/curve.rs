//! `curve.svg`: the run in one picture.
//!
//! *Takes* the entries of a ledger; *gives* an SVG of training loss over steps (with the time on the upper axis) and the
//! validation losses; *promises* a file that any browser shows, readable in light and dark surroundings.

use std::fmt::Write;

use super::record::{Entry, Record, Step, Validation};

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 520.0;
/// Plot area: left, top, right, bottom.
const AREA: (f64, f64, f64, f64) = (76.0, 92.0, 892.0, 462.0);
/// Most points drawn; longer curves are averaged in groups.
const POINTS: usize = 800;

/// The picture; `None` if no step was recorded.
pub fn svg(entries: &[Entry]) -> Option<String> {
    let steps: Vec<&Step> =
        entries.iter().filter_map(|e| if let Record::Step(s) = &e.record { Some(s) } else { None }).collect();
    let mut scores: Vec<&Validation> = Vec::new();
    for e in entries {
        if let Record::Validation(v) = &e.record {
            // A score taken again replaces the older one.
            scores.retain(|old| old.name != v.name);
            scores.push(v);
        }
    }
    let start = entries.iter().find_map(|e| if let Record::Run(s) = &e.record { Some(s) } else { None });
    let last = steps.last()?;
    let losses = || steps.iter().map(|s| s.loss).chain(scores.iter().map(|v| v.loss)).filter(|l| l.is_finite());
    let (low, high) = (losses().fold(f64::MAX, f64::min), losses().fold(f64::MIN, f64::max));
    if low > high {
        return None;
    }
    let ticks_y = ticks(low, high.max(low + 1e-3), 6);
    let step_y = ticks_y.get(1).map_or(1.0, |t| t - ticks_y[0]);
    let (y0, y1) = (floor_to(low, step_y), -floor_to(-high.max(low + 1e-3), step_y));
    let x1 = last.step.max(1) as f64;
    let x = |step: f64| AREA.0 + (AREA.2 - AREA.0) * step / x1;
    let y = |loss: f64| AREA.3 - (AREA.3 - AREA.1) * (loss - y0) / (y1 - y0);

    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let title = start.map_or(String::new(), |s| format!("{} · training loss", s.program));
    text(&mut out, (AREA.0, 30.0), "start", "font-size=\"19\" font-weight=\"600\" fill=\"#1b1f24\"", &title);
    let sub = start.map_or(String::new(), |s| {
        format!(
            "{} parameters · {} steps of {} tokens in {:.0} s · seed {} · {} {}",
            s.parameters,
            last.step,
            last.tokens,
            last.train_ms / 1e3,
            s.seed,
            s.device,
            s.precision
        )
    });
    text(&mut out, (AREA.0, 50.0), "start", "fill=\"#59636e\"", &sub);

    let legend = "light: each step · dark: running mean · dots: validation";
    text(&mut out, (AREA.2, 30.0), "end", "font-size=\"12\" fill=\"#59636e\"", legend);

    for t in ticks(y0, y1, 6) {
        let at = y(t);
        line(&mut out, (AREA.0, at), (AREA.2, at), "#e4e8ec");
        text(&mut out, (AREA.0 - 10.0, at + 4.5), "end", "fill=\"#59636e\"", &short(t));
    }
    for t in ticks(0.0, x1, 8).into_iter().filter(|t| *t <= x1) {
        line(&mut out, (x(t), AREA.3), (x(t), AREA.3 + 5.0), "#8b949e");
        text(&mut out, (x(t), AREA.3 + 21.0), "middle", "fill=\"#59636e\"", &short(t));
    }
    let seconds = last.train_ms / 1e3;
    for t in ticks(0.0, seconds, 6).into_iter().filter(|t| *t > 0.0 && *t <= seconds) {
        // The step at which that much time had passed.
        let after = steps.iter().find(|s| s.train_ms / 1e3 >= t).map_or(x1, |s| s.step as f64);
        line(&mut out, (x(after), AREA.1 - 5.0), (x(after), AREA.1), "#8b949e");
        text(
            &mut out,
            (x(after), AREA.1 - 11.0),
            "middle",
            "font-size=\"11\" fill=\"#8b949e\"",
            &format!("{} s", short(t)),
        );
    }
    line(&mut out, (AREA.0, AREA.3), (AREA.2, AREA.3), "#8b949e");
    line(&mut out, (AREA.0, AREA.1), (AREA.2, AREA.1), "#d0d7de");
    text(&mut out, ((AREA.0 + AREA.2) / 2.0, HEIGHT - 14.0), "middle", "fill=\"#1b1f24\"", "step");
    let _ = writeln!(
        out,
        "<text transform=\"translate(22 {}) rotate(-90)\" text-anchor=\"middle\" fill=\"#1b1f24\">loss, nats per token</text>",
        (AREA.1 + AREA.3) / 2.0
    );

    let points: Vec<(f64, f64)> =
        steps.iter().filter(|s| s.loss.is_finite()).map(|s| (s.step as f64, s.loss)).collect();
    polyline(&mut out, &grouped(&points, POINTS), (&x, &y), "stroke=\"#9ec1f0\" stroke-width=\"1.2\"");
    polyline(&mut out, &grouped(&smooth(&points), POINTS), (&x, &y), "stroke=\"#1f5fbf\" stroke-width=\"2.2\"");
    marks(&mut out, &scores, (&x, &y));
    out.push_str("</svg>\n");
    Some(out)
}

/// Validation losses as labelled dots, labels kept apart.
fn marks(out: &mut String, scores: &[&Validation], to: To<'_>) {
    const COLOURS: [&str; 4] = ["#b35900", "#1a7f37", "#8250df", "#cf222e"];
    let mut labels: Vec<f64> = Vec::new();
    for (i, v) in scores.iter().enumerate().filter(|(_, v)| v.loss.is_finite()) {
        let (cx, cy, colour) = ((to.0)(v.step as f64), (to.1)(v.loss), COLOURS[i % COLOURS.len()]);
        let _ = writeln!(
            out,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"1.5\"/>"
        );
        let mut at = cy - 14.0;
        while labels.iter().any(|l| (l - at).abs() < 16.0) {
            at -= 16.0;
        }
        labels.push(at);
        let partial = if v.partial { " (partial)" } else { "" };
        let label = format!("{} {:.4} nats, {:.4} bpb{partial}", v.name, v.loss, v.bpb);
        let style = format!(
            "font-weight=\"600\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"4\" paint-order=\"stroke\""
        );
        text(out, (cx - 10.0, at), "end", &style, &label);
    }
}

/// From data to picture, per axis.
type To<'a> = (&'a dyn Fn(f64) -> f64, &'a dyn Fn(f64) -> f64);

fn polyline(out: &mut String, points: &[(f64, f64)], to: To<'_>, style: &str) {
    let list: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", (to.0)(p.0), (to.1)(p.1))).collect();
    let _ = writeln!(out, "<polyline fill=\"none\" stroke-linejoin=\"round\" {style} points=\"{}\"/>", list.join(" "));
}

fn line(out: &mut String, a: (f64, f64), b: (f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        a.0, a.1, b.0, b.1
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, style: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" {style}>{content}</text>", at.0, at.1);
}

/// Means of at most `most` groups of neighbours.
fn grouped(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(most).max(1);
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}

/// Centred running mean over a fortieth of the run, narrower towards the ends so that it does not lag.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, p| {
            *sum += p.1;
            Some(*sum)
        }))
        .collect();
    let mean = |i: usize| {
        let half = (points.len() / 80).min(i).min(points.len() - 1 - i);
        (sums[i + half + 1] - sums[i - half]) / (2 * half + 1) as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// Round numbers from the largest at most `low` to `high`, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = libm::pow(10.0, libm::floor(libm::log10(rough)));
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let first = floor_to(low, step);
    (0..).map(|i| first + step * f64::from(i)).take_while(|t| *t <= high + step * 1e-6).collect()
}

fn floor_to(x: f64, step: f64) -> f64 {
    step * libm::floor(x / step + 1e-9)
}

/// Up to three decimals, none if they are zero; thousands as they are.
fn short(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> Entry {
        let s = Step {
            step,
            of: 50,
            loss,
            grad_norm: None,
            scale: 1.0,
            train_ms: step as f64 * 20.0,
            tokens: 64,
            step_ms: 20.0,
        };
        Entry { time: 0.0, record: Record::Step(s) }
    }

    #[test]
    fn round_ticks() {
        assert_eq!(ticks(0.0, 50.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks(2.3, 3.1, 5), [2.2, 2.4000000000000004, 2.6, 2.8000000000000003, 3.0]);
        assert_eq!((short(0.25), short(1000.0), short(2.0)), ("0.25".into(), "1000".into(), "2".into()));
    }

    #[test]
    fn draws_every_part() {
        let mut entries: Vec<_> = (1..=50).map(|i| step(i, 5.0 - 0.05 * i as f64)).collect();
        let v = Validation {
            name: "final".into(),
            step: 50,
            of: 50,
            loss: 2.4,
            bpb: 1.1,
            targets: 10,
            bytes: 20,
            partial: true,
            seconds: 1.0,
            unigram: None,
            train_ms: 1000.0,
        };
        entries.push(Entry { time: 0.0, record: Record::Validation(v) });
        let svg = svg(&entries).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("final 2.4000 nats, 1.1000 bpb (partial)") && svg.contains("loss, nats per token"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn the_running_mean_is_centred() {
        let line: Vec<_> = (0..400).map(|i| (f64::from(i), f64::from(i))).collect();
        assert!(smooth(&line).iter().zip(&line).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
    }

    #[test]
    fn survives_thin_and_broken_runs() {
        assert!(svg(&[]).is_none());
        assert!(svg(&[step(1, f64::NAN)]).is_none());
        let one = svg(&[step(1, 3.0)]).unwrap();
        assert!(!one.contains("NaN") && !one.contains("inf"));
    }
}
