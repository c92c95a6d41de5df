//! What a guest's serial port told.

use std::time::Duration;

/// In front of how long a guest took to come up and which build of its kernel it runs.
pub const UP: &str = "vm-test: up after ";
/// In front of the exit status of the tests.
pub const ENDED: &str = "vm-test: tests ended with ";
/// In front of what a test found out about the verifier.
pub const VERIFIER: &str = "verifier: ";

/// What is known of one guest's run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Time from the kernel's start to the first process, as the guest's own clock says, and the
    /// kernel's build.
    pub up: Option<String>,
    /// Tests that held.
    pub passed: Vec<String>,
    /// Tests that did not.
    pub failed: Vec<String>,
    /// What the verifier made of the programs.
    pub verifier: Vec<String>,
    /// How the tests ended; `None` when the guest never got there.
    pub status: Option<String>,
}

impl Report {
    /// Reads what a guest wrote.
    pub fn read(output: &str) -> Self {
        let mut report = Self::default();
        for line in output.lines().map(str::trim_end) {
            if let Some(up) = line.strip_prefix(UP) {
                report.up = Some(up.to_owned());
            } else if let Some(status) = line.strip_prefix(ENDED) {
                report.status = Some(status.to_owned());
            } else if let Some(text) = line.strip_prefix(VERIFIER) {
                report.verifier.push(text.to_owned());
            } else if let Some((name, result)) = test(line) {
                match result {
                    "ok" => report.passed.push(name.to_owned()),
                    "FAILED" => report.failed.push(name.to_owned()),
                    // Ignored ones are started by others.
                    _ => {}
                }
            }
        }
        report
    }

    /// Whether the guest ran tests to their end, every one held, and each part of a name that was
    /// wanted is in one of theirs: a test of another name than expected is a test that did not run.
    pub fn holds(&self, wanted: &[&str]) -> bool {
        let ran = |part: &&str| self.passed.iter().any(|name| name.contains(part));
        self.status.as_deref() == Some("0") && self.failed.is_empty() && wanted.iter().all(ran)
    }

    /// The report for people, after the kernel's name.
    pub fn text(&self, holds: bool, elapsed: Duration) -> String {
        let mut text = format!(
            "{}: {} checks passed, {} failed, {:.1} s in all; up after {}\n",
            if holds { "held" } else { "FAILED" },
            self.passed.len(),
            self.failed.len(),
            elapsed.as_secs_f64(),
            self.up.as_deref().unwrap_or("an untold time")
        );
        for (word, lines) in
            [("ok", &self.passed), ("FAILED", &self.failed), ("verifier", &self.verifier)]
        {
            for line in lines {
                text += &format!("  {word:8} {line}\n");
            }
        }
        text
    }
}

/// Name and result in a line of libtest's, as in `test xdp_live::kill ... ok`.
fn test(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_when_tests_ran_and_all_of_them_passed() {
        let up = "vm-test: up after 2.05 s, #1\r\n";
        let one = "test xdp_a::b ... ok\r\n";
        let bad = "test xdp_a::c ... FAILED\r\n";
        let ended = "vm-test: tests ended with 0\r\n";
        for (output, holds) in [
            ([up, one, ended].concat(), true),
            ([up, one, "test xdp_a::d ... ignored, why\r\n", ended].concat(), true),
            ([up, ended].concat(), false),
            ([up, "test xdp_a::d ... ok\r\n", ended].concat(), false),
            ([up, one].concat(), false),
            ([up, one, bad, ended].concat(), false),
            ([up, one, "vm-test: tests ended with 101\r\n"].concat(), false),
            (String::new(), false),
        ] {
            assert_eq!(Report::read(&output).holds(&["xdp_", "a::b"]), holds, "{output}");
        }
    }

    #[test]
    fn keeps_what_was_told() {
        let output = "vm-test: up after 2.05 s, #1\r\ntest xdp_a::b ... ok\r\n\
                      test xdp_a::c ... FAILED\r\nverifier: p: 9 instructions\r\n\
                      vm-test: tests ended with 101\r\n";
        let text = |text: &str| text.to_owned();
        assert_eq!(
            Report::read(output),
            Report {
                up: Some(text("2.05 s, #1")),
                passed: vec![text("xdp_a::b")],
                failed: vec![text("xdp_a::c")],
                verifier: vec![text("p: 9 instructions")],
                status: Some(text("101")),
            }
        );
    }
}
