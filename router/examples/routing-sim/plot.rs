//! Draws what came of runs as an SVG: for each scenario how long groups waited, what was loaded, and the widest adapter.

use std::fmt::Write;

use crate::sim::scenario::Turn;
use crate::sim::{Report, Scenario};
use crate::{Outcome, POLICIES};

/// Of the policies, in their order: readable on white and on black, and apart for the colour-blind.
const COLOURS: [&str; 3] = ["#0072b2", "#e69f00", "#cc79a7"];

/// Pixels of a panel, of the room around it, and of the key above all.
const PANEL: (f64, f64) = (260.0, 150.0);
const LEFT: f64 = 52.0;
const GAP: f64 = 62.0;
const KEY: f64 = 34.0;
const ROW: f64 = PANEL.1 + 74.0;

/// Waits from a hundredth of a second to this many decades above it.
const DECADES: f64 = 5.0;

/// The plot of `outcomes`, one row each.
pub(crate) fn draw(outcomes: &[Outcome]) -> String {
    let (width, height) = (LEFT + 3.0 * (PANEL.0 + GAP), KEY + ROW * outcomes.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, (name, _)) in POLICIES.iter().enumerate() {
        let x = LEFT + 140.0 * index as f64;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{}\"/>", COLOURS[index]);
        text(&mut svg, (x + 18.0, 22.0), "start", name);
    }
    for (row, (scenario, reports)) in outcomes.iter().enumerate() {
        let y = KEY + ROW * row as f64 + 36.0;
        let title = format!("{} ({:.0} % load)", scenario.name, 100.0 * scenario.load);
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>", y - 22.0);
        let x = |column: f64| LEFT + column * (PANEL.0 + GAP);
        waits(&mut svg, (x(0.0), y), reports);
        loads(&mut svg, (x(1.0), y), reports);
        over_time(&mut svg, (x(2.0), y), scenario, &reports[0]);
    }
    svg.push_str("</svg>\n");
    svg
}

/// The wait for the first token over the share of groups, logarithmic in time.
fn waits(svg: &mut String, (x, y): (f64, f64), reports: &[Report; 3]) {
    frame(svg, (x, y), "first token within, by share of groups");
    let height = |seconds: f64| y + PANEL.1 - (seconds / 0.01).log10().clamp(0.0, DECADES) / DECADES * PANEL.1;
    for (label, seconds) in [("10 ms", 0.01), ("100 ms", 0.1), ("1 s", 1.0), ("10 s", 10.0), ("100 s", 100.0)] {
        mark(svg, (x, height(seconds)), label);
    }
    for (report, colour) in reports.iter().zip(COLOURS) {
        let point = |step: u32| {
            let percent = f64::from(step) / 2.0;
            (x + percent / 100.0 * PANEL.0, height(report.wait(percent).as_secs_f64()))
        };
        line(svg, (0..=200).map(point), colour);
    }
    for percent in [0.0, 50.0, 100.0] {
        text(svg, (x + percent / 100.0 * PANEL.0, y + PANEL.1 + 14.0), "middle", &format!("{percent} %"));
    }
}

/// Loads as bars: fetches, and reads above them in a lighter shade.
fn loads(svg: &mut String, (x, y): (f64, f64), reports: &[Report; 3]) {
    frame(svg, (x, y), "loads into memory: fetches, above them reads");
    let most = reports.iter().map(Report::loads).max().unwrap_or(0).max(1) as f64;
    let bar = PANEL.0 / 3.0;
    for (index, report) in reports.iter().enumerate() {
        let left = x + bar * (index as f64 + 0.2);
        let scale = (PANEL.1 - 16.0) / most;
        let (fetches, reads) = (report.fetches as f64 * scale, report.reads as f64 * scale);
        let bottom = y + PANEL.1;
        for (top, height, opacity) in [(bottom - fetches, fetches, 1.0), (bottom - fetches - reads, reads, 0.45)] {
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\" \
                 opacity=\"{opacity}\"/>",
                bar * 0.6,
                COLOURS[index]
            );
        }
        let label = format!("{} + {}", report.fetches, report.reads);
        text(svg, (left + bar * 0.3, bottom - fetches - reads - 4.0), "middle", &label);
        let hits = format!("{:.1} % hits", 100.0 * report.hit_rate());
        text(svg, (left + bar * 0.3, bottom + 14.0), "middle", &hits);
    }
}

/// Workers of the widest adapter over time, or the share of groups at the worker that leaves.
fn over_time(svg: &mut String, (x, y): (f64, f64), scenario: &Scenario, ours: &Report) {
    let across = |at: std::time::Duration| x + at.as_secs_f64() / scenario.time.as_secs_f64() * PANEL.0;
    if scenario.turn == Turn::Leave {
        frame(svg, (x, y), "share of groups at the worker that leaves");
        let slices = 48;
        let share = |slice: u32| {
            let (from, to) = (scenario.time * slice / slices, scenario.time * (slice + 1) / slices);
            let within = || ours.routed.iter().filter(|routed| (from..to).contains(&routed.at));
            let there = within().filter(|routed| routed.worker == 0).count() as f64;
            (across(from), y + PANEL.1 * (1.0 - 3.0 * there / within().count().max(1) as f64).max(0.0))
        };
        line(svg, (0..slices).map(share), COLOURS[0]);
        [("0 %", 1.0), ("33 %", 0.0)].iter().for_each(|(label, at)| mark(svg, (x, y + PANEL.1 * at), label));
    } else {
        frame(svg, (x, y), "workers that the most wanted adapter is worth");
        let widest = ours.routed.iter().max_by_key(|routed| routed.width).map_or(0, |routed| routed.adapter);
        let height = |width: usize| y + PANEL.1 * (1.0 - width as f64 / scenario.workers as f64).max(0.0);
        let of_widest: Vec<_> = ours.routed.iter().filter(|routed| routed.adapter == widest).collect();
        // A step for each change, or the curve would be as long as the run.
        let steps = of_widest.chunk_by(|a, b| a.width == b.width);
        let ends = steps.flat_map(|step| step.first().into_iter().chain(step.last()));
        line(svg, ends.map(|routed| (across(routed.at), height(routed.width))), COLOURS[0]);
        for width in [1, scenario.workers / 2, scenario.workers] {
            mark(svg, (x, height(width)), &width.to_string());
        }
    }
    for third in 0..=3 {
        let at = scenario.time * third / 3;
        text(svg, (across(at), y + PANEL.1 + 14.0), "middle", &format!("{} s", at.as_secs()));
    }
}

fn frame(svg: &mut String, (x, y): (f64, f64), title: &str) {
    let (width, height) = PANEL;
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\"/>"
    );
    text(svg, (x, y - 6.0), "start", title);
}

/// A grid line across the panel that begins at `x`, and what it stands for.
fn mark(svg: &mut String, (x, y): (f64, f64), label: &str) {
    let _ = writeln!(svg, "<path d=\"M{x} {y:.1}h{}\" stroke=\"#ddd\"/>", PANEL.0);
    text(svg, (x - 4.0, y + 4.0), "end", label);
}

fn line(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let points = points.join(" ");
    let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}
