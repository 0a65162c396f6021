//! `cargo xtask bench --check`: instructions per call of what requests and configuration changes are
//! made of, against the committed baseline.
//!
//! Callgrind counts, so that a busy machine changes nothing: two runs of one build differ by some
//! tenths of a per cent at most (hash maps are seeded anew in every process). The cases are in
//! crates/plugins/benches/instructions.rs. Counts depend on the compiler, and on what the C library and
//! the cryptography find the processor to be able to do; the baseline says what it was made with, and
//! is compared with nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{cargo, on_path, output, program, root, run as run_command, target};

/// What to do with the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Compare them with the baseline.
    Check,
    /// Make them the baseline.
    Accept,
}

/// Takes the words after `bench`; `None`: they ask for another benchmark.
pub(crate) fn parse(words: &[String]) -> Result<Option<Work>> {
    let work = match words.first().map(String::as_str) {
        Some("--check") => Work::Check,
        Some("--accept") => Work::Accept,
        _ => return Ok(None),
    };
    match words.get(1) {
        None => Ok(Some(work)),
        Some(word) => bail!("`bench {}` takes nothing more, got {word:?}", words[0]),
    }
}

/// Counts, then compares or accepts.
pub(crate) fn run(work: Work) -> Result<()> {
    let setting = Setting::of_this_machine()?;
    let baseline = match (work, fs::read_to_string(root().join(BASELINE))) {
        (Work::Accept, _) => None,
        (Work::Check, Ok(text)) => {
            let baseline: Figures = Figures::parse(&text).context(BASELINE)?;
            baseline.setting.expect(&setting)?;
            Some(baseline)
        }
        (Work::Check, Err(error)) => bail!("{BASELINE}: {error}; {ACCEPT} writes it"),
    };
    if on_path("valgrind").is_none() {
        bail!("valgrind is missing: Debian's package is valgrind");
    }
    let now = Figures { setting, cases: count()? };
    let Some(baseline) = baseline else {
        fs::write(root().join(BASELINE), now.text())?;
        println!("{} cases are now the baseline in {BASELINE}.", now.cases.len());
        return Ok(());
    };
    let verdict = compare(&baseline.cases, &now.cases);
    print!("{}", verdict.table);
    if verdict.problems.is_empty() {
        return Ok(());
    }
    bail!("{}\n{ADVICE}", verdict.problems.join("\n"))
}

/// Why the check cannot be made on this machine, if it cannot.
pub(crate) fn obstacle() -> Option<String> {
    let suits = || {
        let text = fs::read_to_string(root().join(BASELINE)).context(BASELINE)?;
        Figures::parse(&text)?.setting.expect(&Setting::of_this_machine()?)
    };
    match on_path("valgrind") {
        None => Some("valgrind is missing".to_owned()),
        Some(_) => suits().err().map(|error: anyhow::Error| format!("{error:#}")),
    }
}

/// Builds the cases and runs them under callgrind.
fn count() -> Result<BTreeMap<String, u64>> {
    let folder = target().join("instructions/callgrind");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let bench = ["bench", "--profile", "instructions", "-p", PACKAGE, "--bench", "instructions"];
    run_command(cargo(&bench).arg("--no-run"))?;
    let runner = format!(
        "target.'cfg(all())'.runner=['valgrind','--tool=callgrind','--vgdb=no','--collect-atstart=no',\
         '--toggle-collect={MEASURED}','--dump-after={MEASURED}','--callgrind-out-file={}']",
        folder.join(PART).display()
    );
    let said = output(cargo(&bench).args(["--config", &runner]))?;
    let mut cases = BTreeMap::new();
    for (part, (name, calls)) in (1..).zip(told_cases(&said)) {
        let total = part_total(&folder, part).with_context(|| format!("the count of {name}"))?;
        cases.insert(name.to_owned(), total / calls);
    }
    if cases.is_empty() {
        bail!("the benchmark told no cases");
    }
    Ok(cases)
}

/// Names and numbers of calls, in the order in which they were measured.
fn told_cases(said: &str) -> impl Iterator<Item = (&str, u64)> {
    said.lines().filter_map(|line| {
        let (name, calls) = line.strip_prefix("case ")?.split_once(' ')?;
        Some((name, calls.parse().ok().filter(|calls| *calls > 0)?))
    })
}

fn part_total(folder: &Path, part: u32) -> Result<u64> {
    let text = fs::read_to_string(folder.join(format!("{PART}.{part}")))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind wrote no total")?.trim().parse()?)
}

/// Instructions per call by case, and what they were counted with.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    setting: Setting,
    cases: BTreeMap<String, u64>,
}

impl Figures {
    fn parse(text: &str) -> Result<Self> {
        let mut setting = Setting::default();
        let mut cases = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let Some((name, value)) = line.split_once(": ") else { bail!("cannot read {line:?}") };
            match name {
                "compiler" => setting.compiler = value.to_owned(),
                "processor" => setting.processor = value.to_owned(),
                _ => {
                    let value = value.trim().parse().with_context(|| format!("in {line:?}"))?;
                    cases.insert(name.to_owned(), value);
                }
            }
        }
        Ok(Self { setting, cases })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Instructions per call. {ACCEPT} rewrites this file.\ncompiler: {}\nprocessor: {}\n",
            self.setting.compiler, self.setting.processor
        );
        for (name, value) in &self.cases {
            let _ = writeln!(text, "{name}: {value}");
        }
        text
    }
}

/// What counts depend on besides the code.
#[derive(Debug, Default, PartialEq, Eq)]
struct Setting {
    /// As `rustc --version` tells it.
    compiler: String,
    /// What valgrind lets programs see of the processor.
    processor: String,
}

impl Setting {
    fn of_this_machine() -> Result<Self> {
        let compiler = output(program("rustc").arg("--version"))?.trim().to_owned();
        Ok(Self { compiler, processor: processor() })
    }

    fn expect(&self, this: &Self) -> Result<()> {
        let mut differs = Vec::new();
        for (of, baseline, this) in [
            ("compiler", &self.compiler, &this.compiler),
            ("processor", &self.processor, &this.processor),
        ] {
            if baseline != this {
                differs.push(format!("{of}: {baseline} in the baseline, {this} here"));
            }
        }
        if differs.is_empty() {
            return Ok(());
        }
        bail!(
            "counts cannot be compared with the baseline.\n{}\nUse the baseline's, or, on the \
             commit before your change, count anew with {ACCEPT}.",
            differs.join("\n")
        )
    }
}

/// Valgrind shows one of a few made-up processors; on x86-64, which one depends on AVX2.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "x86_64 with AVX2".to_owned();
    }
    std::env::consts::ARCH.to_owned()
}

struct Verdict {
    table: String,
    /// What makes the check fail, a line each.
    problems: Vec<String>,
}

fn compare(baseline: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Verdict {
    let mut table = format!("{:<32}{:>10}{:>10}\n", "instructions per call", "baseline", "now");
    let mut problems = Vec::new();
    for (name, &now) in now {
        let Some(&was) = baseline.get(name) else {
            let _ = writeln!(table, "{name:<32}{:>10}{now:>10}", "-");
            problems.push(format!("{name} takes {now} instructions and has no baseline."));
            continue;
        };
        let change = change_per_mille(was, now);
        let mut note = "";
        if change > LIMIT_PER_MILLE {
            note = "  MORE";
            problems.push(format!(
                "{name} takes {now} instructions, {} more than the {was} of the baseline.",
                percent(change)
            ));
        } else if change < -LIMIT_PER_MILLE {
            note = "  better: accept it, so that it is kept";
        }
        let _ = writeln!(table, "{name:<32}{was:>10}{now:>10}{:>9}{note}", percent(change));
    }
    for name in baseline.keys().filter(|name| !now.contains_key(*name)) {
        problems.push(format!("{name} has a baseline and was not measured."));
    }
    Verdict { table, problems }
}

fn change_per_mille(was: u64, now: u64) -> i128 {
    let (was, now) = (i128::from(was), i128::from(now));
    // Away from zero: one instruction past the limit is past the limit.
    let (change, whole) = ((now - was) * 1000, was.max(1));
    change / whole + (change % whole).signum()
}

fn percent(per_mille: i128) -> String {
    format!("{:.1} %", per_mille as f64 / 10.0)
}

const BASELINE: &str = "bench/instructions.txt";
const ACCEPT: &str = "`cargo xtask bench --accept`";
const ADVICE: &str = "Mend it; or, where the change is worth its price, run `cargo xtask bench --accept`, \
                      commit bench/instructions.txt and say why in the commit.";
const LIMIT_PER_MILLE: i128 = 50;
const PACKAGE: &str = "sluicegate-plugins";

/// The function between whose start and end is counted.
const MEASURED: &str = "instructions::measured_case";

/// Callgrind's files: this, a dot, and the number of the case.
const PART: &str = "part";

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
        list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn more_than_five_per_cent_more_instructions_are_a_problem() {
        for (was, now, problem) in [
            (1000, 1000, None),
            (1000, 1050, None),
            (1000, 1051, Some("5.1 % more than the 1000 of the baseline.")),
            (100_000, 105_001, Some("5.1 % more than the 100000 of the baseline.")),
            (1000, 10, None),
            (0, 1, Some("100.0 % more than the 0 of the baseline.")),
        ] {
            let verdict = compare(&cases(&[("a", was)]), &cases(&[("a", now)]));
            let problem = problem.map(|text| format!("a takes {now} instructions, {text}"));
            assert_eq!(verdict.problems, Vec::from_iter(problem), "{was} to {now}");
        }
    }

    #[test]
    fn an_improvement_past_the_limit_is_told() {
        for (now, told) in [(950, false), (949, true)] {
            let verdict = compare(&cases(&[("a", 1000)]), &cases(&[("a", now)]));
            assert_eq!(verdict.table.contains("better"), told, "{}", verdict.table);
        }
    }

    #[test]
    fn a_case_on_one_side_only_is_a_problem() {
        let verdict = compare(&cases(&[("old", 1)]), &cases(&[("new", 2)]));
        let expected = [
            "new takes 2 instructions and has no baseline.",
            "old has a baseline and was not measured.",
        ];
        assert_eq!(verdict.problems, expected);
    }

    #[test]
    fn figures_read_back_as_they_were_written() {
        let setting =
            Setting { compiler: "rustc 1.95.0 (a: b)".into(), processor: "x86_64".into() };
        let figures = Figures { setting, cases: cases(&[("router/1-route", 489), ("b", 0)]) };
        assert_eq!(Figures::parse(&figures.text()).expect("it was just written"), figures);
        let error = Figures::parse("a: many\n").expect_err("that is no number").to_string();
        assert_eq!(error, "in \"a: many\"");
    }

    #[test]
    fn the_committed_baseline_can_be_read() {
        let text = fs::read_to_string(root().join(BASELINE)).expect("the baseline is there");
        let figures = Figures::parse(&text).expect("the baseline can be read");
        assert!(!figures.cases.is_empty() && !figures.setting.compiler.is_empty(), "{figures:?}");
    }

    #[test]
    fn another_compiler_or_processor_makes_no_comparison() {
        let setting = |compiler: &str, processor: &str| Setting {
            compiler: compiler.to_owned(),
            processor: processor.to_owned(),
        };
        let baseline = setting("rustc 1.95.0", "x86_64 with AVX2");
        assert!(baseline.expect(&setting("rustc 1.95.0", "x86_64 with AVX2")).is_ok());
        for (this, told) in [
            (setting("rustc 1.96.0", "x86_64 with AVX2"), "compiler: rustc 1.95.0 in the baseline"),
            (setting("rustc 1.95.0", "aarch64"), "AVX2 in the baseline, aarch64 here"),
        ] {
            let error = baseline.expect(&this).expect_err("they differ").to_string();
            assert!(error.contains("cannot be compared") && error.contains(told), "{error}");
        }
    }

    #[test]
    fn the_words_choose_the_work() {
        let parsed = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&words).map_err(|error| error.to_string())
        };
        for (line, expected) in [
            ("--check", Ok(Some(Work::Check))),
            ("--accept", Ok(Some(Work::Accept))),
            ("", Ok(None)),
            ("proxy --rounds 3", Ok(None)),
            ("--check proxy", Err("`bench --check` takes nothing more, got \"proxy\"".to_owned())),
        ] {
            assert_eq!(parsed(line), expected, "bench {line}");
        }
    }

    #[test]
    fn cases_are_read_from_what_the_benchmark_says() {
        let said = "noise\ncase a/b 100\ncase broken\ncase none 0\ncase c 2\n";
        assert_eq!(told_cases(said).collect::<Vec<_>>(), [("a/b", 100), ("c", 2)]);
    }
}
