//! The steps as they happen, and the table at the end.

use anyhow::Result;
use serde_json::{Value, json};

use crate::harness::clock;

/// One step of the demonstration.
#[derive(Clone, Debug)]
struct Step {
    name: String,
    expected: String,
    measured: String,
    held: bool,
}

/// What a step saw, and whether that is what was expected.
#[derive(Clone, Debug)]
pub struct Seen {
    /// For people.
    pub measured: String,
    /// For the exit status.
    pub held: bool,
}

impl Seen {
    /// Something seen.
    pub fn new(held: bool, measured: impl Into<String>) -> Seen {
        Seen { measured: measured.into(), held }
    }
}

/// Collects the steps. With `json`, people's lines go to standard error and the table to standard
/// output as JSON.
#[derive(Debug)]
pub struct Report {
    json: bool,
    steps: Vec<Step>,
}

impl Report {
    /// An empty one.
    pub fn new(json: bool) -> Report {
        Report { json, steps: Vec::new() }
    }

    /// Plays one step. That it fails is written down and the next is played, unless somebody
    /// interrupted.
    ///
    /// # Errors
    /// On interrupt.
    pub fn step(
        &mut self,
        name: &str,
        expected: &str,
        play: impl FnOnce() -> Result<Seen>,
    ) -> Result<()> {
        self.say(&format!("\n{:2}. {name}\n    expected  {expected}", self.steps.len() + 1));
        let seen = play().unwrap_or_else(|error| Seen::new(false, format!("{error:#}")));
        clock::go_on()?;
        let verdict = verdict(seen.held);
        let measured = seen.measured.replace('\n', "\n              ");
        self.say(&format!("    measured  {measured}\n    {verdict}"));
        self.steps.push(Step {
            name: name.to_owned(),
            expected: expected.to_owned(),
            measured: seen.measured,
            held: seen.held,
        });
        Ok(())
    }

    /// A line for people.
    pub fn say(&self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    /// Whether every step held, and there were any.
    pub fn all_held(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.held)
    }

    /// Prints the table.
    pub fn print(&self) {
        if self.json {
            println!("{}", self.as_json());
            return;
        }
        println!();
        for line in rows(&self.steps) {
            println!("{line}");
        }
        let held = self.steps.iter().filter(|step| step.held).count();
        println!("\n{held} of {} steps held", self.steps.len());
    }

    fn as_json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                json!({
                    "name": step.name,
                    "expected": step.expected,
                    "measured": step.measured,
                    "held": step.held,
                })
            })
            .collect();
        json!({ "steps": steps })
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "DID NOT HOLD" }
}

/// The widest a cell may be; longer text goes on in the next line.
const CELL_CHARACTERS: usize = 88;

/// A row a step, columns as wide as their widest cell.
fn rows(steps: &[Step]) -> Vec<String> {
    let mut cells = vec![["step", "measured", ""].map(str::to_owned)];
    for step in steps {
        let mut measured = wrapped(&step.measured).into_iter();
        let first = measured.next().unwrap_or_default();
        cells.push([step.name.clone(), first, verdict(step.held).to_owned()]);
        cells.extend(measured.map(|line| [String::new(), line, String::new()]));
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max();
    let (name, measured) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    cells
        .iter()
        .map(|row| {
            format!("{:name$}  {:measured$}  {}", row[0], row[1], row[2]).trim_end().to_owned()
        })
        .collect()
}

/// Lines of at most [`CELL_CHARACTERS`], broken between words.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let length = lines[last].chars().count();
        if length > 0 && length + 1 + word.chars().count() > CELL_CHARACTERS {
            lines.push(word.to_owned());
        } else {
            if length > 0 {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_held_only_when_every_step_did() -> Result<()> {
        let mut report = Report::new(true);
        assert!(!report.all_held(), "nothing shown is nothing held");
        report.step("one", "1", || Ok(Seen::new(true, "1")))?;
        assert!(report.all_held());
        report.step("two", "2", || anyhow::bail!("broken"))?;
        assert!(!report.all_held());
        assert_eq!(
            report.as_json()["steps"][1],
            json!({"name": "two", "expected": "2", "measured": "broken", "held": false})
        );
        Ok(())
    }

    #[test]
    fn columns_line_up() {
        let step = |name: &str, measured: &str| Step {
            name: name.to_owned(),
            expected: String::new(),
            measured: measured.to_owned(),
            held: true,
        };
        assert_eq!(
            rows(&[step("a", "1 µs"), step("longer", "2\nmore")]),
            ["step    measured", "a       1 µs      held", "longer  2 more    held"]
        );
        let long = rows(&[step("a", &["word"; 20].join(" "))]);
        assert_eq!(long.len(), 3, "{long:?}");
        assert_eq!(long[2].trim(), "word word word");
    }
}
