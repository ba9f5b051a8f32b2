//! The figures as a drawing: a bar for each contender, state and measure, with
//! the range of its rounds.

use std::fmt::Write as _;

use super::figures::{Contender, Figures, Measure, Spread, State};

const WIDTH: f64 = 860.0;
/// Where bars begin, and how long the longest may be.
const LEFT: f64 = 290.0;
const ROOM: f64 = 440.0;
const ROW: f64 = 26.0;
const TOP: f64 = 74.0;

/// The drawing.
pub(crate) fn svg(figures: &Figures) -> String {
    let longest =
        figures.rounds.iter().map(|round| round.seconds(Measure::Everything)).fold(1.0, f64::max);
    let mut rows = String::new();
    let mut y = TOP;
    for state in State::ALL {
        for measure in Measure::ALL {
            let label = format!("{}, {}", state.words(), measure.words());
            let middle = y + ROW - 4.0;
            line(
                &mut rows,
                format_args!(
                    r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{label}</text>"#,
                    LEFT - 14.0
                ),
            );
            for (who, class) in [(Contender::Agent, "a"), (Contender::Compose, "c")] {
                if let Some(spread) = figures.spread(state, who, measure) {
                    bar(&mut rows, y, class, spread, ROOM / longest);
                }
                y += ROW;
            }
            if let Some(ratio) = figures.ratio(state, measure) {
                let words = format!("× {ratio:.2} (target {:.1})", measure.target());
                line(
                    &mut rows,
                    format_args!(
                        r#"<text class="s" x="{:.0}" y="{:.0}" text-anchor="end">{words}</text>"#,
                        LEFT - 14.0,
                        middle + 17.0
                    ),
                );
            }
            y += 14.0;
        }
    }
    let height = y + 34.0;
    let note = format!(
        "Dify {} stand-ins at {} of real start-up times, {} cores, {}; median of the rounds, line: least to most",
        figures.release, figures.scale, figures.machine.cores, figures.machine.date
    );
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {height:.0}" font-family="system-ui, sans-serif" font-size="14" role="img" aria-labelledby="t d">
  <title id="t">Time from images present to answering</title>
  <desc id="d">Horizontal bars, shorter is better: dify-agent beside docker-compose, to the api's first 200 and until every service answers, on a migrated and on an empty database.</desc>
  <style>
    text {{ fill: #0f172a }} .s {{ font-size: 12px; fill: #475569 }} .h {{ font-size: 17px; font-weight: 600 }}
    .a {{ fill: #2563eb }} .c {{ fill: #cbd5e1 }} .r {{ stroke: #0f172a; stroke-width: 1.5 }}
  </style>
  <rect width="{WIDTH:.0}" height="{height:.0}" fill="#fff"/>
  <text class="h" x="20" y="30">Seconds from images present to answering (shorter is better)</text>
  <rect class="a" x="20" y="44" width="12" height="12"/><text class="s" x="38" y="54">dify-agent</text>
  <rect class="c" x="120" y="44" width="12" height="12"/><text class="s" x="138" y="54">docker-compose</text>
{rows}  <text class="s" x="20" y="{:.0}">{note}</text>
</svg>
"##,
        height - 14.0
    )
}

fn bar(rows: &mut String, y: f64, class: &str, spread: Spread, scale: f64) {
    let Spread { median, least, most } = spread;
    let (end, from, to) = (median * scale, LEFT + least * scale, LEFT + most * scale);
    let middle = y + ROW / 2.0;
    line(
        rows,
        format_args!(
            r#"<rect class="{class}" x="{LEFT:.0}" y="{:.0}" width="{end:.1}" height="{:.0}"/>"#,
            y + 2.0,
            ROW - 4.0
        ),
    );
    line(rows, format_args!(r#"<path class="r" d="M{from:.1} {middle:.0}H{to:.1}"/>"#));
    line(
        rows,
        format_args!(
            r#"<text x="{:.1}" y="{:.0}">{median:.1} s</text>"#,
            LEFT + end.max(most * scale) + 8.0,
            middle + 5.0
        ),
    );
}

fn line(rows: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(rows, "  {element}").expect("a String takes everything");
}
