//! What a person looks at: aligned lines, a line that moves on a terminal,
//! colours only there and only where `NO_COLOR` (no-color.org) is not set.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::process::{Command, Stdio};
use std::time::Duration;

use dify_common::settings::{Environment, Source as _};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Width of the first column.
const LABEL: usize = 12;
/// Where there is no terminal to ask for its width.
const WIDTH: usize = 120;
/// No gap between columns is as wide but those of a table with a column that is too wide.
const WIDE_GAP: &str = "                    ";
/// How often the moving line turns.
const TURN: Duration = Duration::from_millis(120);

/// Colours of ECMA-48, by what they mean here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tone {
    /// A heading.
    Strong,
    /// Said aside.
    Quiet,
    /// As it should be.
    Good,
    /// Look at it.
    Bad,
}

/// Where the demo writes.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    colours: bool,
    width: usize,
    moving: MultiProgress,
}

/// A line that changes in place; nothing where there is no terminal.
#[derive(Debug)]
pub(crate) struct Moving(ProgressBar);

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = stdout().is_terminal();
        let asked = Environment.get("NO_COLOR").is_none_or(|value| value.is_empty());
        let plain = Environment.get("TERM").is_some_and(|term| term == "dumb");
        let moving = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let terminal = terminal && !plain;
        let width = if terminal { terminal_width() } else { None };
        let width = width.unwrap_or(WIDTH).max(60);
        Self { terminal, colours: terminal && asked, width, moving }
    }

    /// Lines change in place here.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// One line. A reader that went away (`| head`) is no error.
    pub(crate) fn line(&self, text: impl Display) {
        self.moving.suspend(|| {
            let _ = writeln!(stdout(), "{text}");
        });
    }

    /// A heading with what follows it in a word or two.
    pub(crate) fn heading(&self, text: &str, aside: &str) {
        let gap = if aside.is_empty() { "" } else { "  " };
        let (text, aside) = (self.paint(Tone::Strong, text), self.paint(Tone::Quiet, aside));
        self.line(format!("\n{text}{gap}{aside}"));
    }

    /// A line of two columns.
    pub(crate) fn row(&self, label: &str, text: impl Display) {
        self.line(format!("  {label:LABEL$}  {text}"));
    }

    /// As [`row`](Self::row), for text of any length.
    pub(crate) fn prose(&self, label: &str, text: &str) {
        self.printed(&format!("{label:LABEL$}  {}", text.replace('\n', " ")));
    }

    /// A command as a person would type it.
    pub(crate) fn command(&self, text: &str) {
        self.line(format!("  {} {text}", self.paint(Tone::Quiet, "$")));
    }

    /// What a program printed, no wider than the screen.
    pub(crate) fn printed(&self, text: &str) {
        for line in text.trim_end().lines() {
            for line in fold(line.trim_end(), self.width - 2) {
                self.line(if line.is_empty() { line } else { format!("  {line}") });
            }
        }
    }

    /// `text` in a colour, where there are colours.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Strong => "1",
            Tone::Quiet => "2",
            Tone::Good => "32",
            Tone::Bad => "31",
        };
        if self.colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Begins a moving line; it goes away with what is returned.
    pub(crate) fn moving(&self, text: impl Into<String>) -> Moving {
        let bar = if self.terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let bar = if self.terminal { self.moving.add(bar) } else { bar };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg}") {
            bar.set_style(style.tick_strings(&["-", "\\", "|", "/", " "]));
        }
        bar.set_message(text.into());
        bar.enable_steady_tick(TURN);
        Moving(bar)
    }
}

impl Moving {
    pub(crate) fn set(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Seconds with one digit behind the point: `12.3 s`, right-aligned.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:>5.1} s", time.as_secs_f64())
}

/// Columns of the terminal we were started from, if any.
fn terminal_width() -> Option<usize> {
    let mut asking = Command::new("stty");
    asking.args(["-F", "/dev/tty", "size"]).stdin(Stdio::null()).stderr(Stdio::null());
    let told = String::from_utf8(asking.output().ok()?.stdout).ok()?;
    told.split_whitespace().nth(1)?.parse().ok().filter(|width| *width > 0)
}

/// A line of a table cut to `width`: the gap before its last column goes first,
/// then a column goes on below itself.
fn fold(line: &str, width: usize) -> Vec<String> {
    let line = match line.rfind(WIDE_GAP).map(|at| line.split_at(at)) {
        Some((before, after)) if line.chars().count() > width && !before.trim().is_empty() => {
            format!("{}   {}", before.trim_end(), after.trim_start())
        }
        _ => line.to_owned(),
    };
    if line.chars().count() <= width {
        return vec![line];
    }
    let (columns, rest) = line.split_at(last_column(&line, width));
    let margin = " ".repeat(columns.chars().count());
    let mut lines = vec![columns.to_owned()];
    for (index, word) in rest.split_whitespace().enumerate() {
        let last = lines.last_mut().expect("begins with one");
        if index == 0 {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{margin}{word}"));
        } else {
            last.push(' ');
            last.push_str(word);
        }
    }
    lines
}

/// Where the last column begins that leaves a third of the width to its text.
fn last_column(line: &str, width: usize) -> usize {
    let mut last = line.len() - line.trim_start().len();
    let mut gap = 0;
    for (column, (at, letter)) in line.char_indices().enumerate() {
        if letter != ' ' && gap >= 2 && column <= width * 2 / 3 {
            last = at;
        }
        gap = if letter == ' ' { gap + 1 } else { 0 };
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_row_goes_on_under_its_column() {
        let row = " ok  database connections  one two three four five        WHAT TO DO";
        assert_eq!(
            fold(row, 45),
            [
                " ok  database connections  one two three four",
                "                           five WHAT TO DO",
            ]
        );
        let head = format!("  WHAT{:26}FOUND{:90}WHAT TO DO", "", "");
        assert_eq!(fold(&head, 60), [format!("  WHAT{:26}FOUND   WHAT TO DO", "")]);
        let status = "beat  exited  no  1  dify-api@e7  exit code 1 at noon";
        assert_eq!(
            fold(status, 52),
            [
                "beat  exited  no  1  dify-api@e7  exit code 1 at",
                "                                  noon"
            ]
        );
        assert_eq!(fold("short", 40), ["short"]);
        assert_eq!(fold("one two three four", 9), ["one two", "three", "four"]);
    }
}
