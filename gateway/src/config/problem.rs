//! What is wrong with a configuration, and where: collected all together, never one at a time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    error::Error,
    fmt,
};

use serde::Serialize;

/// Problems kept in full. Nobody reads more, and a megabyte of nonsense must not become a gigabyte
/// of complaints; what is over is counted.
const LISTED_MAX: usize = 1_000;

/// One problem or warning, ready to be shown: `file:line:column: what, and what to do`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    file: String,
    line: u32,
    column: u32,
    kind: Kind,
    text: String,
}

/// Something that is allowed and probably not meant.
pub type Warning = Finding;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file of the configuration cannot be read.
    Unreadable,
    /// It is not TOML.
    Syntax,
    /// A key is set more than once.
    SetTwice,
    /// No key of this name exists here.
    UnknownKey,
    /// The key exists, in another table.
    MisplacedKey,
    /// A key or table that must be written is not.
    Missing,
    /// A string where a number belongs, and the like.
    WrongType,
    /// Right type, impossible value.
    BadValue,
    /// In the contract, not in this release.
    NotSupported,
    /// A file that the configuration names is missing, damaged, or open to the wrong people.
    BadFile,
    /// Each setting is right alone; together they are not.
    Contradiction,
    /// Allowed, and probably not meant.
    Doubtful,
}

impl Kind {
    /// Whether a problem of this kind stands on its own where it is found, also when other parts of
    /// the configuration could not be understood. A key that seems missing may be on a broken line.
    fn stands_alone(self) -> bool {
        match self {
            Kind::Unreadable
            | Kind::Syntax
            | Kind::SetTwice
            | Kind::WrongType
            | Kind::BadValue
            | Kind::NotSupported
            | Kind::BadFile => true,
            Kind::UnknownKey
            | Kind::MisplacedKey
            | Kind::Missing
            | Kind::Contradiction
            | Kind::Doubtful => false,
        }
    }
}

/// A position in one of the files, in reading order: the main file is number 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// Its number, as [`Report::begin_file`] gave it.
    pub(super) file: usize,
    /// From 1.
    pub(super) line: u32,
    /// In characters, from 1.
    pub(super) column: u32,
}

impl Place {
    /// The first character of a file.
    pub(super) fn start_of(file: usize) -> Place {
        Place { file, line: 1, column: 1 }
    }
}

impl Finding {
    /// The file, as it was named when it was asked for.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// From 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// In characters, from 1.
    pub fn column(&self) -> u32 {
        self.column
    }

    /// The rule that was broken.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What, and what to do.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.text)
    }
}

/// Why a configuration is refused: every problem, sorted by file and position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    problems: Vec<Finding>,
    /// How many more there were than are listed.
    unlisted: usize,
    warnings: Vec<Warning>,
}

impl Problems {
    /// The problems listed; never empty.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.problems.iter()
    }

    /// How many were found, listed or not.
    pub fn count(&self) -> usize {
        self.problems.len() + self.unlisted
    }

    /// What was seen beside the problems.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\nand {} more; put these right first", self.unlisted)?;
        }
        Ok(())
    }
}

impl Error for Problems {}

/// Collects while a configuration is read; shared by reference among those who read it.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Of the files, by [`Place::file`].
    names: RefCell<Vec<String>>,
    problems: RefCell<Vec<Noted>>,
    /// File and line of what could not be understood.
    broken: RefCell<BTreeSet<(usize, u32)>>,
    unlisted: Cell<usize>,
    warnings: RefCell<Vec<Noted>>,
}

/// A finding before its file has a name.
#[derive(Debug)]
struct Noted {
    place: Place,
    kind: Kind,
    text: String,
}

impl Report {
    /// Begins a file; the places in it carry the number returned.
    pub(super) fn begin_file(&self, name: String) -> usize {
        let mut names = self.names.borrow_mut();
        names.push(name);
        names.len() - 1
    }

    /// `file:line` of a place, for messages that speak of a second one.
    pub(super) fn line_of(&self, place: Place) -> String {
        let names = self.names.borrow();
        format!("{}:{}", names.get(place.file).map_or("", String::as_str), place.line)
    }

    /// Notes a problem: the configuration will be refused.
    pub(super) fn problem(&self, place: Place, kind: Kind, text: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < LISTED_MAX {
            problems.push(Noted { place, kind, text: text.into() });
        } else {
            self.unlisted.set(self.unlisted.get() + 1);
        }
    }

    /// Marks a line that could not be understood: nothing else is said about it.
    pub(super) fn broken(&self, place: Place) {
        self.broken.borrow_mut().insert((place.file, place.line));
    }

    /// Notes a warning.
    pub(super) fn warning(&self, place: Place, text: impl Into<String>) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() < LISTED_MAX {
            warnings.push(Noted { place, kind: Kind::Doubtful, text: text.into() });
        }
    }

    /// Gives out what was built, with the warnings, when no problem was noted; else all problems,
    /// sorted. Whoever builds nothing has noted why.
    pub(super) fn conclude<T>(self, built: Option<T>) -> Result<(T, Vec<Warning>), Problems> {
        let names = self.names.into_inner();
        let mut problems = self.problems.into_inner();
        let broken = self.broken.into_inner();
        let mut warnings = self.warnings.into_inner();
        if !broken.is_empty() {
            // Only what is certain in spite of the parts that could not be understood: the rest
            // would send the reader after mistakes that are not there.
            problems.retain(|noted| {
                let line = (noted.place.file, noted.place.line);
                matches!(noted.kind, Kind::Unreadable | Kind::Syntax)
                    || (noted.kind.stands_alone() && !broken.contains(&line))
            });
            warnings.clear();
        }
        let warnings = named(warnings, &names);
        let problems = named(problems, &names);
        debug_assert!(built.is_some() || !problems.is_empty(), "refused without a reason");
        match built {
            Some(built) if problems.is_empty() => Ok((built, warnings)),
            _ => Err(Problems { problems, unlisted: self.unlisted.get(), warnings }),
        }
    }
}

/// Sorted by place, doubles removed, each with the name of its file.
fn named(mut noted: Vec<Noted>, names: &[String]) -> Vec<Finding> {
    noted.sort_by(|a, b| (a.place, &a.text).cmp(&(b.place, &b.text)));
    noted.dedup_by(|a, b| a.place == b.place && a.text == b.text);
    noted
        .into_iter()
        .map(|noted| Finding {
            file: names.get(noted.place.file).cloned().unwrap_or_default(),
            line: noted.place.line,
            column: noted.place.column,
            kind: noted.kind,
            text: noted.text,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: usize, line: u32, column: u32) -> Place {
        Place { file, line, column }
    }

    fn report() -> Report {
        let report = Report::default();
        assert_eq!(report.begin_file("main.toml".into()), 0);
        assert_eq!(report.begin_file("conf.d/a.toml".into()), 1);
        report
    }

    #[test]
    fn problems_are_sorted_by_file_and_position_and_listed_once() {
        let report = report();
        report.problem(at(1, 1, 1), Kind::Missing, "in the second file");
        report.problem(at(0, 10, 1), Kind::BadValue, "line ten");
        report.problem(at(0, 9, 20), Kind::BadValue, "line nine, further right");
        report.problem(at(0, 9, 3), Kind::BadValue, "line nine");
        report.problem(at(0, 9, 3), Kind::BadValue, "line nine");
        let problems = report.conclude(Some(())).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "main.toml:9:3: line nine\n\
             main.toml:9:20: line nine, further right\n\
             main.toml:10:1: line ten\n\
             conf.d/a.toml:1:1: in the second file"
        );
        assert_eq!(problems.count(), 4);
        assert_eq!(problems.into_iter().count(), 4);
    }

    #[test]
    fn warnings_alone_refuse_nothing() {
        let report = report();
        report.warning(at(0, 2, 1), "odd");
        let (built, warnings) = report.conclude(Some(7)).unwrap();
        assert_eq!(built, 7);
        assert_eq!(warnings[0].to_string(), "main.toml:2:1: odd");
        assert_eq!(warnings[0].kind(), Kind::Doubtful);
    }

    #[test]
    fn with_a_broken_line_only_what_is_certain_is_said() {
        let report = report();
        report.broken(at(0, 3, 1));
        report.problem(at(0, 3, 1), Kind::Syntax, "broken");
        for (line, kind) in [
            (3, Kind::BadValue), // the same line
            (4, Kind::BadValue),
            (5, Kind::Missing), // may stand on line 3
            (6, Kind::UnknownKey),
            (7, Kind::SetTwice),
            (8, Kind::Contradiction),
            (9, Kind::BadFile),
        ] {
            report.problem(at(0, line, 1), kind, "");
        }
        report.warning(at(0, 2, 1), "odd");
        let problems = report.conclude(None::<()>).unwrap_err();
        let lines: Vec<u32> = problems.iter().map(Finding::line).collect();
        assert_eq!(lines, [3, 4, 7, 9]);
        assert!(problems.warnings().is_empty());
    }

    #[test]
    fn what_is_over_the_limit_is_counted() {
        let report = report();
        for line in 1..=LISTED_MAX as u32 + 5 {
            report.problem(at(0, line, 1), Kind::BadValue, "bad");
            report.warning(at(0, line, 1), "odd");
        }
        let problems = report.conclude(None::<()>).unwrap_err();
        assert_eq!(problems.iter().count(), LISTED_MAX);
        assert_eq!(problems.warnings().len(), LISTED_MAX);
        assert_eq!(problems.count(), LISTED_MAX + 5);
        assert!(problems.to_string().ends_with("\nand 5 more; put these right first"));
    }

    #[test]
    fn a_finding_is_an_object_for_machines() {
        let report = report();
        report.problem(at(1, 2, 3), Kind::UnknownKey, "what, and what to do");
        let problems = report.conclude(None::<()>).unwrap_err();
        assert_eq!(
            serde_json::to_string(&problems).unwrap(),
            r#"{"problems":[{"file":"conf.d/a.toml","line":2,"column":3,"kind":"unknown_key","text":"what, and what to do"}],"unlisted":0,"warnings":[]}"#
        );
    }
}
