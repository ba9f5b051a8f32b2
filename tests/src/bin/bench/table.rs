//! The figures as a table of text, for the terminal and for the page.

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table};

use super::figures::{Contender, Figures, MIB, Measure, Spread, State};
use super::memory::Resident;

/// Most bytes the agent may hold at rest.
const AGENT: f64 = 30.0 * MIB;
/// Most bytes the edge may hold at rest.
const EDGE: f64 = 8.0 * MIB;

/// For the terminal.
pub(crate) fn text(figures: &Figures) -> String {
    let [times, memory] = tables(figures).map(|mut table| table.load_style(NOTHING).to_string());
    format!("\n{}\n\n{times}\n\n{memory}\n", heading(figures))
}

/// For the page.
pub(crate) fn markdown(figures: &Figures) -> String {
    let [times, memory] =
        tables(figures).map(|mut table| table.load_style(ASCII_MARKDOWN).to_string());
    format!("{}\n\n{times}\n\n{memory}\n", heading(figures))
}

fn heading(figures: &Figures) -> String {
    let Figures { machine, release, scale, rounds, .. } = figures;
    let laps = rounds.iter().map(|round| round.number).max().unwrap_or_default();
    format!(
        "Dify {release}, stand-in images at {scale} of the real start-up times; {laps} alternating rounds; {} cores, {}, {}; {}.",
        machine.cores, machine.processor, machine.system, machine.date
    )
}

fn tables(figures: &Figures) -> [Table; 2] {
    let mut times = Table::new();
    times.set_header(["", "dify-agent", "docker-compose", "ratio", "target", ""]);
    for state in State::ALL {
        for measure in Measure::ALL {
            let [agent, compose] = [Contender::Agent, Contender::Compose]
                .map(|who| words(figures.spread(state, who, measure)));
            let ratio = figures.ratio(state, measure).unwrap_or(f64::NAN);
            times.add_row([
                format!("{}: {}", state.words(), measure.words()),
                agent,
                compose,
                format!("{ratio:.2}"),
                format!("<= {:.2}", measure.target()),
                verdict(ratio <= measure.target()),
            ]);
        }
        for (key, what) in
            [("front", "api through port 1080"), ("health", "/health 200 on port 1080")]
        {
            let seen = words(figures.extra(state, Contender::Agent, key));
            times.add_row([format!("{}: {what}", state.words()), seen]);
        }
    }
    let mut memory = Table::new();
    memory.set_header(["resident at rest", "MiB", "of it allocated", "target", ""]);
    let rows =
        [("dify-agent", figures.memory.agent, AGENT), ("dify-edge", figures.memory.edge, EDGE)];
    for (program, Resident { bytes, anonymous }, target) in rows {
        memory.add_row([
            program.to_owned(),
            format!("{:.1}", mebibytes(bytes)),
            format!("{:.1}", mebibytes(anonymous)),
            format!("< {:.0}", target / MIB),
            verdict(mebibytes(bytes) * MIB < target),
        ]);
    }
    for table in [&mut times, &mut memory] {
        table.column_iter_mut().skip(1).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
    }
    [times, memory]
}

fn words(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |Spread { median, least, most }| {
        format!("{median:.1} s ({least:.1} to {most:.1})")
    })
}

fn verdict(met: bool) -> String {
    if met { "met" } else { "missed" }.to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "a figure with one decimal")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
