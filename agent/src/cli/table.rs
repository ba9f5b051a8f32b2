//! Tables for people. The only place that writes to stdout and stderr.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// A table with these column heads, as wide as the terminal.
pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) {
        table.set_width(size.ws_col);
    }
    table.set_header(heads.iter().map(|head| head.to_uppercase()).collect::<Vec<_>>());
    table
}

/// Prints `text` and a line end. A reader that went away (`| head`) is no error.
pub fn say(text: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_ref().as_bytes()).and_then(|()| out.write_all(b"\n"));
}

/// Says on stderr what went wrong.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "dify-agent: {text}");
}

/// Prints one JSON document.
pub fn json(document: &impl Serialize) {
    say(serde_json::to_string_pretty(document).expect("documents here are plain data"));
}
