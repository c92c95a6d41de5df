//! `tests/mission.md`: what was asked for, row by row, and the test that shows it. A test that was renamed
//! or taken out would leave a row that promises what nothing shows, so such a row is refused.
//!
//! Whether the test asserts what its row says is for a reader to judge.

use std::{collections::BTreeMap, fmt};

/// Where the table is, below the workspace.
pub const FILE: &str = "tests/mission.md";

/// The words of the third column, in the order in which they are counted.
const STATES: [&str; 4] = ["shown", "half", "not yet", "not ours"];

/// What shows something besides a test: a command of the repository, or a text where a text was asked for.
const OTHER_EVIDENCE: [&str; 3] = ["`cargo ", "README.md", "SECURITY.md"];

/// How many rows are in each of the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([usize; STATES.len()]);

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (state, count)) in STATES.iter().zip(self.0).enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(formatter, "{between}{count} {state}")?;
        }
        Ok(())
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
struct Row<'t> {
    line: usize,
    id: &'t str,
    state: &'t str,
    /// Tests and commands, or why there is none.
    evidence: &'t str,
}

/// A source file that a row names, with the tests it names there.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'t> {
    file: &'t str,
    tests: Vec<&'t str>,
}

/// Judges the table. `read` gives the text of a file below the workspace, if there is such a file.
///
/// # Errors
/// Every problem, with its line.
pub fn judge(table: &str, read: impl Fn(&str) -> Option<String>) -> Result<Counts, Vec<String>> {
    let mut problems = Vec::new();
    let mut lines = BTreeMap::new();
    let mut counts = Counts::default();
    for row in rows(table) {
        let Row { line, id, state, evidence } = row;
        let mut problem = |text: String| problems.push(format!("{FILE}:{line}: {id}: {text}"));
        if let Some(first) = lines.insert(id, line) {
            problem(format!("it is in line {first} already"));
        }
        match STATES.iter().position(|known| *known == state) {
            Some(index) => counts.0[index] += 1,
            None => problem(format!("its state is \"{state}\"; write {}", STATES.join(" or "))),
        }
        let references = references(evidence);
        let is_shown = references.iter().any(|reference| !reference.tests.is_empty())
            || OTHER_EVIDENCE.iter().any(|word| evidence.contains(word));
        if evidence.is_empty() {
            problem("it says neither what shows it nor why nothing does".to_owned());
        } else if ["shown", "half"].contains(&state) && !is_shown {
            problem(format!("it is \"{state}\", and no test or command is named"));
        }
        for Reference { file, tests } in references {
            let path = place(file);
            let Some(source) = read(&path) else {
                problem(format!("there is no {path}"));
                continue;
            };
            for test in tests.into_iter().filter(|test| !has_test(&source, test)) {
                problem(format!("there is no test `{test}` in {path}"));
            }
        }
    }
    if lines.is_empty() {
        problems.push(format!("{FILE}: no row was found"));
    }
    if problems.is_empty() { Ok(counts) } else { Err(problems) }
}

/// The rows: lines of four cells, of which the first is an ID.
fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    table.lines().zip(1..).filter_map(|(text, line)| {
        let cells = text.trim().strip_prefix('|')?.strip_suffix('|')?;
        let cells: Vec<&str> = cells.splitn(4, '|').map(str::trim).collect();
        let [id, _what, state, evidence] = cells[..] else { return None };
        is_id(id).then_some(Row { line, id, state, evidence })
    })
}

/// A letter and two digits.
fn is_id(cell: &str) -> bool {
    let [letter, digits @ ..] = cell.as_bytes() else { return false };
    letter.is_ascii_uppercase() && digits.len() == 2 && digits.iter().all(u8::is_ascii_digit)
}

/// What a cell names: file, blank, function in backticks, and further functions after commas.
fn references(cell: &str) -> Vec<Reference<'_>> {
    const END: &str = ".rs";
    let mut found = Vec::new();
    let mut rest = cell;
    while let Some(at) = rest.find(END) {
        let (before, after) = (&rest[..at], &rest[at + END.len()..]);
        let start = before
            .rfind(|one: char| !is_of_a_path(one))
            .map_or(0, |place| place + before[place..].chars().next().map_or(0, char::len_utf8));
        let (tests, left) = leading_tests(after);
        found.push(Reference { file: &rest[start..at + END.len()], tests });
        rest = left;
    }
    found
}

fn is_of_a_path(character: char) -> bool {
    character.is_ascii_alphanumeric() || "/_-.".contains(character)
}

/// The functions that follow the name of a file, and what is left.
fn leading_tests(mut text: &str) -> (Vec<&str>, &str) {
    let mut tests = Vec::new();
    while let Some((name, left)) = (text.strip_prefix(" `"))
        .or_else(|| text.strip_prefix(", `"))
        .and_then(|quoted| quoted.split_once('`'))
        .filter(|(name, _)| is_function(name))
    {
        tests.push(name);
        text = left;
    }
    (tests, text)
}

fn is_function(name: &str) -> bool {
    let is_of_it = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
    !name.is_empty() && name.as_bytes().iter().all(is_of_it)
}

/// A file without a directory lies beside the table.
fn place(file: &str) -> String {
    if file.contains('/') { file.to_owned() } else { format!("tests/{file}") }
}

/// Whether a source has a test of this name: a function with `#[test]` among the lines above it.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        let arguments = declared.and_then(|rest| rest.strip_prefix(name));
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
        arguments.is_some_and(|rest| rest.starts_with('('))
            && above.copied().any(|line| line == "#[test]" || line.starts_with("#[tokio::test"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/// One.\n#[test]\n#[ignore = \"long\"]\nfn one() {}\n\n    #[test]\n    fn two(\n\
                          number in 0..3,\n) {}\n\nfn helper() {}\n#[tokio::test]\nasync fn three() {}\n";

    fn judged(rows: &str) -> Result<Counts, Vec<String>> {
        judge(rows, |file| {
            ["tests/a.rs", "gateway/src/b.rs"].contains(&file).then(|| SOURCE.to_owned())
        })
    }

    #[test]
    fn a_row_that_names_what_is_there_is_good() {
        let table = "# Words\n\n| row | what | state | by |\n|---|---|---|---|\n\
                     | A01 | x | shown | a.rs `one`, `two`; gateway/src/b.rs `three` |\n\
                     | A02 | x | half | `cargo xtask demo`; not a\\|b |\n\
                     | B01 | x | not yet | nobody asks, see helper in a.rs |\n";
        assert_eq!(judged(table), Ok(Counts([1, 1, 1, 0])));
        assert_eq!(Counts([1, 1, 1, 0]).to_string(), "1 shown, 1 half, 1 not yet, 0 not ours");
    }

    #[test]
    fn each_problem_is_said_with_its_row() {
        for (row, said) in [
            ("| A01 | x | shown | a.rs `gone` |", "no test `gone` in tests/a.rs"),
            ("| A01 | x | shown | a.rs `one`, `gone` |", "no test `gone`"),
            ("| A01 | x | shown | a.rs `helper` |", "no test `helper`"),
            ("| A01 | x | shown | a.rs `on` |", "no test `on`"),
            ("| A01 | x | half | c.rs `one` |", "no tests/c.rs"),
            ("| A01 | x | shown | src/b.rs `one` |", "no src/b.rs"),
            ("| A01 | x | shown | a.rs |", "no test or command is named"),
            ("| A01 | x | half | works |", "no test or command is named"),
            ("| A01 | x | not yet |  |", "neither what shows it"),
            ("| A01 | x | done | a.rs `one` |", "its state is \"done\""),
            ("| A01 | x | not yet | y |\n| A01 | x | not yet | y |", "2: A01: it is in line 1"),
            ("| row | what | state | by |", "no row was found"),
        ] {
            let problems = judged(row).expect_err(row);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(FILE) && problems[0].contains(said), "{problems:?}");
        }
    }

    #[test]
    fn what_a_cell_names_is_found_whatever_stands_around_it() {
        let of = |file, tests: &[&'static str]| Reference { file, tests: tests.to_vec() };
        for (cell, expected) in [
            ("", vec![]),
            ("a word, `a_word`", vec![]),
            ("a.rs", vec![of("a.rs", &[])]),
            ("(a.rs `x`)", vec![of("a.rs", &["x"])]),
            ("→a.rs `x`, `y` and `z`", vec![of("a.rs", &["x", "y"])]),
            ("a.rs `x` and a/b-c.rs `y`.", vec![of("a.rs", &["x"]), of("a/b-c.rs", &["y"])]),
            ("a.rs `portcullis doctor`", vec![of("a.rs", &[])]),
        ] {
            assert_eq!(references(cell), expected, "{cell}");
        }
    }
}
