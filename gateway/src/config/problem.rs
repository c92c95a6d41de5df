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
    /// Index into the names of the files read.
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
        let not_understood: BTreeSet<(usize, u32)> = problems
            .iter()
            .filter(|noted| matches!(noted.kind, Kind::Unreadable | Kind::Syntax))
            .map(|noted| (noted.place.file, noted.place.line))
            .collect();
        let mut warnings = self.warnings.into_inner();
        if !not_understood.is_empty() {
            // Only what is certain in spite of the parts that could not be understood: the rest
            // would send the reader after mistakes that are not there.
            problems.retain(|noted| {
                let line = (noted.place.file, noted.place.line);
                matches!(noted.kind, Kind::Unreadable | Kind::Syntax)
                    || (noted.kind.stands_alone() && !not_understood.contains(&line))
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
