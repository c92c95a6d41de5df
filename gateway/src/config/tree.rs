//! Several TOML files as one tree in which every value knows where it is written.
//!
//! The main file comes first, then `conf.d/*.toml` beside it in the order of their names. Tables of
//! the same name are merged, arrays of tables are joined; a key that two files set is a problem in
//! both places, so no order of reading decides what holds.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    disk::{FileError, Files},
    problem::{Kind, Place, Report},
    section::shown,
};

/// One file of the configuration: far more than people write, little enough to parse at once.
pub(super) const FILE_MAX_BYTES: usize = 1 << 20;

/// Files in `conf.d`: bounds what a directory named by mistake can cost.
const FILES_MAX: usize = 256;

/// A table: what stands under each key.
pub(super) type Table = BTreeMap<String, Entry>;

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the key is written.
    pub(super) key: Place,
    /// The value.
    pub(super) node: Node,
}

/// A value and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it begins; for a table with a header, where the header begins.
    pub(super) place: Place,
    /// The value.
    pub(super) value: Value,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Escapes resolved.
    String(String),
    /// `None`: outside of 64 bits.
    Integer(Option<i64>),
    /// No setting is one, so its value is not kept.
    Float,
    /// `true` or `false`.
    Boolean(bool),
    /// No setting is one, so its value is not kept.
    Datetime,
    /// Also an array of tables.
    Array(Vec<Node>),
    /// With a header or inline.
    Table(Table),
}

impl Value {
    /// With its article, for messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float => "a fraction",
            Value::Boolean(_) => "true or false",
            Value::Datetime => "a date",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Reads `main` and the files beside it. What cannot be read or understood is noted in `report`, and
/// the rest is returned all the same.
pub(super) fn gather(main: &Path, files: &dyn Files, report: &Report) -> Table {
    let mut root = Table::new();
    add(&mut root, main, files, report);
    let directory = main.parent().unwrap_or(Path::new("")).join("conf.d");
    for path in parts(&directory, files, report) {
        add(&mut root, &path, files, report);
    }
    root
}

/// The files of `conf.d`, sorted; none when there is no such directory.
fn parts(directory: &Path, files: &dyn Files, report: &Report) -> Vec<PathBuf> {
    let main = Place::start_of(0);
    let listed = match files.list(directory) {
        Ok(listed) => listed,
        Err(FileError::NotFound) => return Vec::new(),
        Err(error) => {
            report.problem(main, Kind::Unreadable, format!("{} {error}", directory.display()));
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = listed.into_iter().filter(|path| is_part(path)).collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        let text = format!(
            "{} holds {} files; the limit is {FILES_MAX}, join some",
            directory.display(),
            paths.len()
        );
        report.problem(main, Kind::Unreadable, text);
        paths.truncate(FILES_MAX);
    }
    paths
}

/// `*.toml`, without what editors hide there while a file is open.
fn is_part(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

/// Reads one file into the tree.
fn add(root: &mut Table, path: &Path, files: &dyn Files, report: &Report) {
    let file = report.begin_file(path.display().to_string());
    let start = Place::start_of(file);
    let content = match files.read(path, FILE_MAX_BYTES) {
        Ok(content) => content,
        Err(error) => return report.problem(start, Kind::Unreadable, format!("the file {error}")),
    };
    if content.mode & 0o002 != 0 {
        report.warning(
            start,
            "everybody on this machine can change this file; take the permission away (chmod o-w)",
        );
    }
    let text = match str::from_utf8(&content.bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = &content.bytes[..error.valid_up_to()];
            let valid = str::from_utf8(valid).unwrap_or_default();
            let place = Lines::new(file, valid).place(valid.len());
            let text = "this byte is not UTF-8; save the file as UTF-8";
            return report.problem(place, Kind::Syntax, text);
        }
    };
    merge(root, parse(file, text, report), report);
}

/// One file's table; its syntax errors are noted, the first of each line.
fn parse(file: usize, text: &str, report: &Report) -> Table {
    let lines = Lines::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut last_line = 0;
    for error in errors {
        let place = lines.place(error.span().map_or(text.len(), |span| span.start));
        // What follows on the same line follows from the first.
        if place.line == last_line {
            continue;
        }
        last_line = place.line;
        let (kind, text) = explain(error.message(), error.span(), text);
        report.problem(place, kind, text);
    }
    convert_table(&lines, table.into_inner())
}

/// What the parser found, in words that say what to do.
fn explain(message: &str, span: Option<Range<usize>>, text: &str) -> (Kind, String) {
    if message == "duplicate key" {
        let key = span.and_then(|span| text.get(span)).unwrap_or("this key");
        let key = shown(key);
        return (Kind::SetTwice, format!("{key} is set twice in this file; keep one of them"));
    }
    (Kind::Syntax, format!("not TOML: {message}; correct this line"))
}

/// The positions of a file's lines and characters.
struct Lines<'t> {
    file: usize,
    text: &'t str,
    /// Byte offset of each line's first character.
    starts: Vec<usize>,
    /// Characters before each block of [`Lines::BLOCK_BYTES`] bytes, so that a column deep in a
    /// very long line is found without counting from its start every time.
    characters: Vec<usize>,
}

impl<'t> Lines<'t> {
    const BLOCK_BYTES: usize = 1024;

    fn new(file: usize, text: &'t str) -> Lines<'t> {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = [0].into_iter().chain(newlines.map(|(offset, _)| offset + 1)).collect();
        let mut characters = Vec::with_capacity(text.len() / Self::BLOCK_BYTES + 1);
        let mut before = 0;
        for block in text.as_bytes().chunks(Self::BLOCK_BYTES) {
            characters.push(before);
            before += count_characters(block);
        }
        Lines { file, text, starts, characters }
    }

    /// Characters that begin before a byte offset.
    fn characters_before(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        let block = offset / Self::BLOCK_BYTES;
        let Some(before) = self.characters.get(block) else {
            // Only the end of a text that fills its last block is past all blocks.
            let last = self.characters.len().saturating_sub(1);
            let rest = &self.text.as_bytes()[last * Self::BLOCK_BYTES..offset];
            return self.characters.last().copied().unwrap_or(0) + count_characters(rest);
        };
        before + count_characters(&self.text.as_bytes()[block * Self::BLOCK_BYTES..offset])
    }

    /// The place of a byte offset.
    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts[line - 1];
        let column = self.characters_before(offset) - self.characters_before(start) + 1;
        Place {
            file: self.file,
            // Neither is over FILE_MAX_BYTES.
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

/// In UTF-8 every byte but those of the form 10xxxxxx begins a character.
fn count_characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

fn convert_table(lines: &Lines<'_>, table: DeTable<'_>) -> Table {
    let mut converted = Table::new();
    for (key, value) in table {
        let place = lines.place(key.span().start);
        let entry = Entry { key: place, node: convert(lines, value) };
        converted.insert(key.into_inner().into_owned(), entry);
    }
    converted
}

/// Depth is bounded by the parser, which goes no deeper than 80 levels.
fn convert(lines: &Lines<'_>, value: Spanned<DeValue<'_>>) -> Node {
    let place = lines.place(value.span().start);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(values) => {
            Value::Array(values.into_iter().map(|value| convert(lines, value)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(lines, table)),
    };
    Node { place, value }
}

/// Adds a file's table to what earlier files said.
fn merge(into: &mut Table, from: Table, report: &Report) {
    for (name, entry) in from {
        let Some(present) = into.get_mut(&name) else {
            into.insert(name, entry);
            continue;
        };
        match (&mut present.node.value, entry.node.value) {
            (Value::Table(present), Value::Table(more)) => merge(present, more, report),
            (Value::Array(present), Value::Array(more)) if joinable(present, &more) => {
                present.extend(more);
            }
            _ => {
                let name = shown(&name);
                for (here, there) in [(present.key, entry.key), (entry.key, present.key)] {
                    let there = report.line_of(there);
                    let text = format!("{name} is also set in {there}; keep one of the two");
                    report.problem(here, Kind::SetTwice, text);
                }
            }
        }
    }
}

/// Whether two lists are one array of tables; an empty list can be a part of one.
fn joinable(a: &[Node], b: &[Node]) -> bool {
    let mut nodes = a.iter().chain(b).peekable();
    nodes.peek().is_some() && nodes.all(|node| matches!(node.value, Value::Table(_)))
}
