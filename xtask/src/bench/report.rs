//! What a run says: a header, tables as they are done, and all samples as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::peers::Programs;
use crate::command::{output, program};

/// Printed as it grows.
pub(crate) struct Report {
    header: Vec<String>,
    samples: Vec<String>,
    /// What could not be measured of ours.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// `is_given`: our executable is a file of somebody's, not what this commit builds.
    pub(crate) fn start(programs: &Programs, is_given: bool, words: &[String]) -> Self {
        let said = |name: &str, arguments: &[&str]| {
            output(program(name).args(arguments)).unwrap_or_default().trim().to_owned()
        };
        let subject = if is_given {
            given(&output(program(&programs.sluicegate).arg("version")).unwrap_or_default())
        } else {
            let changes = said("git", &["status", "--porcelain", "--untracked-files=no"]);
            let with_changes = if changes.is_empty() { "" } else { " with changes" };
            format!("- commit: {}{with_changes}", said("git", &["rev-parse", "--short=12", "HEAD"]))
        };
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| {
            line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim())
        });
        let h2load = said("h2load", &["--version"]);
        let mut versions = programs.versions();
        // wrk tells its version with its usage, and fails.
        let wrk = said("sh", &["-c", "wrk -v 2>&1 || true"]);
        let wrk = wrk.lines().next().unwrap_or_default();
        versions.extend([wrk.split(" Copyright").next().unwrap_or_default().to_owned(), h2load]);
        let header = vec![
            format!("- date: {}", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
            subject,
            format!(
                "- machine: {}, {} CPUs, kernel {}",
                model.unwrap_or("unknown CPU"),
                std::thread::available_parallelism().map_or(1, usize::from),
                said("uname", &["-r"]),
            ),
            format!("- versions: {}", versions.join("; ")),
            format!("- command: `cargo xtask bench {}`", command_line(words)),
        ];
        for line in &header {
            println!("{line}");
        }
        println!();
        Self { header, samples: Vec::new(), failures: Vec::new() }
    }

    /// Keeps a sample for the JSON file.
    pub(crate) fn sample(&mut self, group: &str, fields: &[(&str, Value)]) {
        let mut text = format!("{{\"group\": {}", quoted(group));
        for (name, value) in fields {
            let _ = write!(text, ", {}: {}", quoted(name), value.json());
        }
        self.samples.push(text + "}");
    }

    /// Ours could not be measured, which a run must not end well with.
    pub(crate) fn fail(&mut self, what: &str, error: &anyhow::Error) {
        let text = format!("failed: {what}: {error:#}");
        println!("{text}\n");
        self.failures.push(text);
    }

    pub(crate) fn write_json(&self, file: &Path) -> Result<()> {
        let header: Vec<String> = self.header.iter().map(|line| quoted(line)).collect();
        let text = format!(
            "{{\"header\": [{}],\n\"samples\": [\n{}\n]}}\n",
            header.join(", "),
            self.samples.join(",\n")
        );
        Ok(std::fs::write(file, text)?)
    }
}

/// What the header says of an executable that was not built here, from its own `version`.
fn given(version: &str) -> String {
    match version.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(version) => {
            format!("- binary: a given file, of an unknown commit; it says: {version}")
        }
        None => "- binary: a given file, of an unknown commit; it tells no version".to_owned(),
    }
}

/// Where files lie is nobody else's concern.
fn command_line(words: &[String]) -> String {
    let name = |word: &String| match Path::new(word).file_name() {
        Some(name) if word.contains('/') => name.to_string_lossy().into_owned(),
        _ => word.clone(),
    };
    words.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// A table of single figures.
pub(crate) struct Facts {
    group: &'static str,
    rows: Vec<String>,
}

impl Facts {
    pub(crate) fn new(group: &'static str) -> Self {
        Self { group, rows: Vec::new() }
    }

    /// Notes a figure and what it is held to, if anything.
    pub(crate) fn add(
        &mut self,
        report: &mut Report,
        what: &str,
        value: f64,
        unit: &str,
        bar: Option<f64>,
    ) {
        self.add_beside(report, 0, what, (value, unit), bar);
    }

    /// Does so for a figure that so many errors stand beside.
    pub(crate) fn add_beside(
        &mut self,
        report: &mut Report,
        errors: u64,
        what: &str,
        (value, unit): (f64, &str),
        bar: Option<f64>,
    ) {
        let held = bar.map_or_else(String::new, |bar| held(value, unit, bar, errors));
        let row = format!("| {what} | {} {unit} | {held} |", short(value));
        eprintln!("{}: {what}: {} {unit}", self.group, short(value));
        self.rows.push(row);
        let fields = [
            ("what", Value::Text(what.to_owned())),
            ("value", Value::Number(value)),
            ("unit", Value::Text(unit.to_owned())),
        ];
        report.sample(self.group, &fields);
    }
}

/// `≤ 20 MiB`, with a word when it is missed, or nothing can be said of it.
fn held(value: f64, unit: &str, bar: f64, errors: u64) -> String {
    let word = match () {
        () if errors > 0 => ", errors: no result",
        () if !value.is_finite() || !bar.is_finite() => ", not measured",
        () if value > bar => ", missed",
        () => "",
    };
    format!("≤ {} {unit}{word}", short(bar))
}

impl Drop for Facts {
    /// Printed also when an error ends the group: what is there is there.
    fn drop(&mut self) {
        println!("### {}\n\n| what | figure | bar |\n|---|--:|---|", self.group);
        println!("{}\n", self.rows.join("\n"));
    }
}

pub(crate) enum Value {
    Text(String),
    Number(f64),
}

impl Value {
    fn json(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Number(number) if number.is_finite() => number.to_string(),
            Self::Number(_) => "null".to_owned(),
        }
    }
}

/// With as many digits as say something.
fn short(number: f64) -> String {
    match number.abs() {
        large if large >= 100.0 || large == large.trunc() => format!("{number:.0}"),
        middle if middle >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => (numbers[middle - 1] + numbers[middle]) / 2.0,
        _ => numbers[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        for (numbers, expected) in
            [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0], 2.5), (vec![7.0], 7.0)]
        {
            assert_eq!(median(numbers.clone()), expected, "{numbers:?}");
        }
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_bar_is_met_only_by_a_figure_without_errors() {
        for (value, bar, errors, expected) in [
            (20.0, 20.0, 0, "≤ 20 MiB"),
            (20.5, 20.0, 0, "≤ 20 MiB, missed"),
            (f64::NAN, 20.0, 0, "≤ 20 MiB, not measured"),
            (1.0, f64::NAN, 0, "≤ NaN MiB, not measured"),
            (1.0, 20.0, 1, "≤ 20 MiB, errors: no result"),
        ] {
            assert_eq!(held(value, "MiB", bar, errors), expected);
        }
    }

    #[test]
    fn a_given_binary_speaks_for_itself() {
        let start = "- binary: a given file, of an unknown commit; it ";
        for (version, expected) in [
            ("sluicegate 0.1.0\n", "says: sluicegate 0.1.0"),
            ("\n", "tells no version"),
            ("", "tells no version"),
        ] {
            assert_eq!(given(version), format!("{start}{expected}"));
        }
    }

    #[test]
    fn json_is_escaped_and_has_no_infinities() {
        assert_eq!(Value::Text("a \"b\"\\\n".to_owned()).json(), r#""a \"b\"\\\u000a""#);
        assert_eq!(Value::Number(1.5).json(), "1.5");
        assert_eq!(Value::Number(f64::INFINITY).json(), "null");
    }

    #[test]
    fn figures_are_rounded_to_what_says_something() {
        for (number, expected) in
            [(0.1234, "0.12"), (12.345, "12.3"), (1234.5, "1234"), (20.0, "20"), (5.0, "5")]
        {
            assert_eq!(short(number), expected);
        }
    }
}
