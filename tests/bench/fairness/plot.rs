//! Rates over time, as an SVG.

use std::fmt::Write;

use super::Sample;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 50.0;
const WINDOW: f64 = 10.0;
const NAMES: [(&str, &str); 2] = [("ResNet-50", "#1f77b4"), ("LeNet", "#d62728")];

/// Queries a second of each job over the last ten seconds, or since the second one came.
fn lines(samples: &[Sample]) -> [Vec<(f64, f64)>; 2] {
    let mut lines = [Vec::new(), Vec::new()];
    let mut start = 0;
    for sample in samples.iter().filter(|sample| sample.at >= 1.0) {
        while samples[start].at < sample.at - WINDOW {
            start += 1;
        }
        let first = &samples[start];
        for (job, line) in lines.iter_mut().enumerate() {
            let done = sample.counts[job] - first.counts[job];
            line.push((sample.at, done as f64 / (sample.at - first.at)));
        }
    }
    lines
}

/// The drawing.
pub fn rates(title: &str, samples: &[Sample]) -> String {
    let lines = lines(samples);
    let last = samples.last().map_or(1.0, |sample| sample.at);
    let rates = lines.iter().flatten().map(|(_, rate)| *rate);
    let most = rates.fold(1.0, f64::max) * 1.1;
    let x = |at: f64| MARGIN + at / last * (WIDTH - 2.0 * MARGIN);
    let y = |rate: f64| HEIGHT - MARGIN - rate / most * (HEIGHT - 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"25\" font-size=\"15\">{title}</text>\n\
         <path d=\"M{MARGIN} {MARGIN} V{0} H{1}\" fill=\"none\" stroke=\"black\"/>\n",
        HEIGHT - MARGIN,
        WIDTH - MARGIN
    );
    for part in 0..=4 {
        let (at, rate) = (last * f64::from(part) / 4.0, most * f64::from(part) / 4.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0} s</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{rate:.1}</text>",
            x(at),
            HEIGHT - MARGIN + 18.0,
            MARGIN - 6.0,
            y(rate) + 4.0
        );
    }
    for (number, (line, (name, colour))) in lines.iter().zip(NAMES).enumerate() {
        let points: Vec<String> = line
            .iter()
            .map(|(at, rate)| format!("{:.1},{:.1}", x(*at), y(*rate)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            WIDTH - MARGIN - 70.0,
            MARGIN + 16.0 * number as f64
        );
    }
    svg + "</svg>\n"
}
