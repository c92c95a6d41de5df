//! One table, read key by key: typed values with their places out, every problem noted, no key
//! left over.

use std::{fmt::Display, ops::RangeInclusive};

use super::{
    problem::{Kind, Place, Report},
    schema::{self, Known},
    tree::{Entry, Node, Table, Value},
};

/// A value and where it is written; a default stands where its table begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At<T> {
    /// The value.
    pub(super) value: T,
    /// Where it is written.
    pub(super) place: Place,
}

/// Why a value is not one of those that its key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The rule that was broken.
    pub(super) kind: Kind,
    /// Continues a sentence that begins with the key, as in "is a string, not an integer".
    pub(super) text: String,
}

impl Refused {
    /// Right type, impossible value.
    pub(super) fn bad(text: impl Into<String>) -> Refused {
        Refused { kind: Kind::BadValue, text: text.into() }
    }

    /// In the contract, not in this release.
    pub(super) fn not_yet(what: impl Display, advice: impl Display) -> Refused {
        Refused { kind: Kind::NotSupported, text: format!("not supported yet: {what}; {advice}") }
    }

    /// Another type than the one wanted, which is named with its article.
    fn wrong_type(node: &Node, wanted: &str) -> Refused {
        let found = node.value.type_name();
        Refused { kind: Kind::WrongType, text: format!("is {found}, not {wanted}") }
    }
}

/// Text of the configuration as messages show it: quoted, control characters escaped, bounded.
pub(super) fn shown(text: &str) -> String {
    /// Enough to recognise any value by.
    const SHOWN_MAX: usize = 80;
    let mut short: String = text.chars().take(SHOWN_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// The value at which a setting that is not supported yet means what happens anyway; an empty list,
/// string or table and `false` always do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    /// Only the empty ones.
    Empty,
    /// This number.
    Number(i64),
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Section<'t> {
    known: &'static Known,
    table: &'t Table,
    place: Place,
    report: &'t Report,
}

impl<'t> Section<'t> {
    /// Begins to read a table, and notes the keys that do not belong in it.
    pub(super) fn new(
        path: &'static str,
        table: &'t Table,
        place: Place,
        report: &'t Report,
    ) -> Section<'t> {
        let section = Section { known: schema::table(path), table, place, report };
        for (key, entry) in table {
            if !section.known.has(key) {
                section.refuse_key(key, entry);
            }
        }
        section
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    fn refuse_key(&self, key: &str, entry: &Entry) {
        let header = match self.known.header {
            "" => "at the top level".to_owned(),
            header => format!("in {header}"),
        };
        let written = shown(key);
        let keys = || self.known.keys.iter().map(|(key, _)| *key);
        let (kind, text) = if let Some(home) = schema::home(key, self.known) {
            (Kind::MisplacedKey, format!("{written} does not belong {header}; {home}"))
        } else if let Some(near) = schema::nearest(key, keys()) {
            (Kind::UnknownKey, format!("unknown key {written} {header}; did you mean {near}?"))
        } else {
            let keys = keys().collect::<Vec<_>>().join(", ");
            (Kind::UnknownKey, format!("unknown key {written} {header}; there can be {keys}"))
        };
        self.report.problem(entry.key, kind, text);
    }

    /// What stands under a key of this table.
    fn entry(&self, key: &str) -> Option<&'t Entry> {
        debug_assert!(self.known.has(key), "{key} is not in the schema of {}", self.known.header);
        self.table.get(key)
    }

    /// `listener.address`, or `name` of the root.
    fn full(&self, key: &str) -> String {
        if self.known.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.known.path)
        }
    }

    /// Notes why a value of `key` is refused.
    fn refuse(&self, key: &str, place: Place, refused: Refused) {
        let full = self.full(key);
        let Refused { kind, text } = refused;
        let text = match (kind, self.known.example(key)) {
            (Kind::WrongType, Some(example)) if !example.is_empty() => {
                format!("{full} {text}; write it as in {key} = {example}")
            }
            (Kind::NotSupported, _) => format!("{text} ({full})"),
            _ => format!("{full} {text}"),
        };
        self.report.problem(place, kind, text);
    }

    /// The value of a key that may be left out.
    pub(super) fn maybe<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<At<T>> {
        let node = &self.entry(key)?.node;
        match read(node) {
            Ok(value) => Some(At { value, place: node.place }),
            Err(refused) => {
                self.refuse(key, node.place, refused);
                None
            }
        }
    }

    /// The value of a key, or its default. When the value is refused, reading goes on with the
    /// default.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
        default: T,
    ) -> At<T> {
        self.maybe(key, read).unwrap_or(At { value: default, place: self.place })
    }

    /// The value of a key that must be written; `None` when it is not, or is refused.
    pub(super) fn must<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<At<T>> {
        if !self.is_set(key) {
            self.missing(key);
            return None;
        }
        self.maybe(key, read)
    }

    /// A value that stands for one that is not written.
    pub(super) fn default<T>(&self, value: T) -> At<T> {
        At { value, place: self.place }
    }

    /// Notes it when the key is not written.
    pub(super) fn required(&self, key: &'static str) {
        if !self.is_set(key) {
            self.missing(key);
        }
    }

    /// Whether the key is written.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Notes that a table is missing, and why it must be there.
    pub(super) fn missing_table(&self, path: &'static str, why: &str) {
        let header = schema::table(path).header;
        let text = format!("there is no {header}; add it, {why}");
        self.report.problem(self.place, Kind::Missing, text);
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &'static str) {
        let header = self.known.header;
        let example = self.known.example(key).unwrap_or_default();
        let text = format!("{header} has no {key}; add it, as in {key} = {example}");
        self.report.problem(self.place, Kind::Missing, text);
    }

    /// The values of a list, each judged on its own; `None` when the key is not written, is not a
    /// list, or an entry is refused: nothing can be told from a list that is not all there. A value
    /// that stands twice is a problem, for it was meant to be another one.
    pub(super) fn list<T: PartialEq>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<At<Vec<At<T>>>> {
        let entry = self.entry(key)?;
        let Value::Array(nodes) = &entry.node.value else {
            self.refuse(key, entry.node.place, Refused::wrong_type(&entry.node, "a list"));
            return None;
        };
        if nodes.len() > LIST_MAX {
            let text = format!("has {} entries; the limit is {LIST_MAX}", nodes.len());
            self.refuse(key, entry.node.place, Refused::bad(text));
            return None;
        }
        let mut values: Vec<At<T>> = Vec::with_capacity(nodes.len());
        let mut complete = true;
        for node in nodes {
            match read(node) {
                Ok(value) if values.iter().any(|present| present.value == value) => {
                    let text = "has this entry twice; take one of them out";
                    self.refuse(key, node.place, Refused::bad(text));
                }
                Ok(value) => values.push(At { value, place: node.place }),
                Err(refused) => {
                    self.refuse(key, node.place, refused);
                    complete = false;
                }
            }
        }
        complete.then_some(At { value: values, place: entry.node.place })
    }

    /// As [`Section::list`], for a list that must not be empty.
    pub(super) fn filled<T: PartialEq>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<At<Vec<At<T>>>> {
        if let Some(Entry { node: Node { place, value: Value::Array(nodes) }, .. }) =
            self.entry(key)
            && nodes.is_empty()
        {
            let example = self.known.example(key).unwrap_or_default();
            let text = format!("is empty; write at least one, as in {key} = {example}");
            self.refuse(key, *place, Refused::bad(text));
            return None;
        }
        self.list(key, read)
    }

    /// As [`Section::list`], empty when it is not written.
    pub(super) fn list_or_empty<T: PartialEq>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<At<Vec<At<T>>>> {
        if !self.is_set(key) {
            return Some(At { value: Vec::new(), place: self.place });
        }
        self.list(key, read)
    }

    /// As [`Section::filled`], for a key that must be written.
    pub(super) fn must_fill<T: PartialEq>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<Vec<At<T>>> {
        if !self.is_set(key) {
            self.missing(key);
        }
        self.filled(key, read).map(|list| list.value)
    }

    /// As [`Section::must_fill`], for a key whose one value may also be written without the list.
    pub(super) fn must_one_or_more<T: PartialEq>(
        &self,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Refused>,
    ) -> Option<Vec<At<T>>> {
        match self.entry(key) {
            Some(entry) if !matches!(entry.node.value, Value::Array(_)) => {
                self.maybe(key, read).map(|value| vec![value])
            }
            _ => self.must_fill(key, read),
        }
    }

    /// A table within this one; `None` when it is not written or is not a table.
    pub(super) fn child(&self, key: &'static str, path: &'static str) -> Option<Section<'t>> {
        let entry = self.entry(key)?;
        match &entry.node.value {
            Value::Table(table) => Some(Section::new(path, table, entry.node.place, self.report)),
            Value::Array(nodes) if is_tables(nodes) => {
                let header = schema::table(path).header;
                let text = format!("{header} is one table; write it once, in single brackets");
                self.report.problem(entry.node.place, Kind::WrongType, text);
                None
            }
            _ => {
                self.refuse(key, entry.node.place, Refused::wrong_type(&entry.node, "a table"));
                None
            }
        }
    }

    /// The tables of an array of tables.
    pub(super) fn children(&self, key: &'static str, path: &'static str) -> Vec<Section<'t>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let header = schema::table(path).header;
        let nodes = match &entry.node.value {
            Value::Array(nodes) => nodes.as_slice(),
            Value::Table(_) => {
                let text = format!("there can be several of these; write the header as {header}");
                self.report.problem(entry.node.place, Kind::WrongType, text);
                // It is clear what was meant, so the rest of it is judged too.
                std::slice::from_ref(&entry.node)
            }
            _ => {
                self.refuse(key, entry.node.place, Refused::wrong_type(&entry.node, "a table"));
                return Vec::new();
            }
        };
        if nodes.len() > LIST_MAX {
            let text = format!("has {} entries; the limit is {LIST_MAX}", nodes.len());
            self.refuse(key, entry.node.place, Refused::bad(text));
            return Vec::new();
        }
        let section = |node: &'t Node| match &node.value {
            Value::Table(table) => Some(Section::new(path, table, node.place, self.report)),
            _ => {
                self.refuse(key, node.place, Refused::wrong_type(node, "a table"));
                None
            }
        };
        nodes.iter().filter_map(section).collect()
    }

    /// A key that this release does nothing with: its neutral value is accepted, any other refused.
    pub(super) fn not_yet(&self, key: &'static str, neutral: Neutral, advice: &str) {
        let Some(entry) = self.entry(key) else { return };
        let same = match (&entry.node.value, neutral) {
            (Value::Integer(written), Neutral::Number(neutral)) => *written == Some(neutral),
            _ => false,
        };
        let empty = match &entry.node.value {
            Value::String(text) => text.is_empty(),
            Value::Array(nodes) => nodes.is_empty(),
            Value::Table(table) => table.is_empty(),
            Value::Boolean(value) => !value,
            Value::Integer(_) | Value::Float | Value::Datetime => false,
        };
        if !same && !empty {
            self.refuse(key, entry.key, Refused::not_yet(key, advice));
        }
    }
}

/// Entries of any list: a configuration of 1 MiB a file has no use for more, and comparing each
/// with each stays quick.
const LIST_MAX: usize = 10_000;

fn is_tables(nodes: &[Node]) -> bool {
    !nodes.is_empty() && nodes.iter().all(|node| matches!(node.value, Value::Table(_)))
}

/// Reads a string and lets `parse` make a value of it.
pub(super) fn text<T>(
    parse: impl Fn(&str) -> Result<T, Refused>,
) -> impl Fn(&Node) -> Result<T, Refused> {
    move |node| match &node.value {
        Value::String(text) => parse(text),
        _ => Err(Refused::wrong_type(node, "a string")),
    }
}

/// Reads an integer within a range; `why` says where the range comes from.
pub(super) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
    why: &'static str,
) -> impl Fn(&Node) -> Result<T, Refused> {
    move |node| {
        let Value::Integer(number) = node.value else {
            return Err(Refused::wrong_type(node, "an integer"));
        };
        number
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let number = number.map_or("more than 64 bits".to_owned(), |n| n.to_string());
                let (low, high) = (range.start(), range.end());
                Refused::bad(format!("is {number}; write a number from {low} to {high}: {why}"))
            })
    }
}

/// Reads `true` or `false`.
pub(super) fn boolean(node: &Node) -> Result<bool, Refused> {
    match node.value {
        Value::Boolean(value) => Ok(value),
        _ => Err(Refused::wrong_type(node, "true or false")),
    }
}
