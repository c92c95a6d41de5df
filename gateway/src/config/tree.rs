//! Several TOML files as one tree in which every value knows where it is written.
//!
//! The main file comes first, then `conf.d/*.toml` beside it in the order of their names. Tables of
//! the same name are merged, arrays of tables are joined; a key that two files set is a problem in
//! both places, so no order of reading decides what holds.

use std::{
    borrow::Cow,
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

/// Doubled keys for which the first one is looked for, each time from the start of the file.
const LOOKED_FOR_MAX: usize = 100;

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
            report.broken(main);
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
        report.broken(main);
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
        Err(error) => {
            report.broken(start);
            return report.problem(start, Kind::Unreadable, format!("the file {error}"));
        }
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
            report.broken(place);
            return report.problem(place, Kind::Syntax, text);
        }
    };
    merge(root, parse(file, text, report), report);
}

/// The value that this text is in TOML; `None` when it is none.
pub(super) fn value(text: &str) -> Option<Value> {
    let mut table = parse(0, &format!("value = {text}"), &Report::default());
    table.remove("value").map(|entry| entry.node.value)
}

/// The table that this text is in TOML, as far as it is one.
#[cfg(test)]
pub(super) fn table(text: &str) -> Table {
    parse(0, text, &Report::default())
}

/// One file's table; its syntax errors are noted.
fn parse(file: usize, text: &str, report: &Report) -> Table {
    let lines = Lines::new(file, text);
    let (table, errors) = recover(&lines, text);
    let (mut last_line, mut twice) = (0, 0);
    for error in errors {
        let place = lines.place(error.span.start);
        if error.message == "duplicate key" {
            let key = text.get(error.span).unwrap_or_default();
            let first = if twice < LOOKED_FOR_MAX { first_set(text, place, key) } else { None };
            twice += 1;
            report.problem(place, Kind::SetTwice, set_twice(key, first));
            continue;
        }
        report.broken(place);
        // What follows on the same line follows from the first, and a list that is not closed goes
        // on to be wrong on every line after it.
        let follows = error.message.starts_with("missing comma") && place.line == last_line + 1;
        if place.line != last_line && !(last_line > 0 && follows) {
            report.problem(place, Kind::Syntax, explain(&error.message, lines.line(place)));
        }
        last_line = place.line;
    }
    table
}

/// One thing that the parser found.
struct SyntaxError {
    /// In bytes.
    span: Range<usize>,
    message: String,
}

/// Parses as much as can be, with all errors in the order of their places.
///
/// At a key without a value the parser ends its table, and would leave unsaid what is wrong further
/// on. Such lines are blanked, which moves nothing, and the text is parsed again.
fn recover(lines: &Lines<'_>, text: &str) -> (Table, Vec<SyntaxError>) {
    /// All of them are found in the first round; another is needed only where a blanked line
    /// changes what the lines around it mean.
    const ROUNDS_MAX: usize = 4;
    let mut text = Cow::Borrowed(text);
    let mut found = Vec::new();
    let mut round = 1;
    loop {
        let (table, errors) = DeTable::parse_recoverable(&text);
        let errors = errors.into_iter().map(|error| SyntaxError {
            span: error.span().unwrap_or(text.len()..text.len()),
            message: error.message().to_owned(),
        });
        let (ends, others): (Vec<_>, Vec<_>) = errors.partition(|error| {
            ["key with no value", "missing value for key"]
                .iter()
                .any(|message| error.message.starts_with(message))
        });
        if ends.is_empty() || round == ROUNDS_MAX {
            let table = convert_table(lines, table.into_inner());
            found.extend(ends.into_iter().chain(others));
            found.sort_by_key(|error| error.span.start);
            return (table, found);
        }
        let mut bytes = text.into_owned().into_bytes();
        for error in &ends {
            bytes[lines.around(error.span.start)].fill(b' ');
        }
        // Whole lines became ASCII, so it is UTF-8 as before.
        text = Cow::Owned(String::from_utf8_lossy(&bytes).into_owned());
        found.extend(ends);
        round += 1;
    }
}

/// What the parser found, in words that say what to do. Its own words stand where it has found
/// something that is rare, or that it calls by another name one day.
fn explain(message: &str, line: &str) -> String {
    let cause = message.split(", expected").next().unwrap_or(message);
    let known = match cause {
        "missing comma between array elements" | "string values must be quoted"
            if line.starts_with('[') =>
        {
            "a list before this line is not closed; add ]"
        }
        "missing comma between array elements" => {
            "a comma is missing here, or a list before this line is not closed; add , or ]"
        }
        "unclosed array" => "this list is not closed; add ]",
        "unclosed inline table" => "this table is not closed; add }",
        "unclosed table" => "the header of this table is not closed; add ]",
        "unclosed array table" => "the header of this table is not closed; add ]]",
        "key with no value" | "missing value for key" | "missing value" => {
            "this key has no value; write it as key = value"
        }
        "string values must be quoted" if line.ends_with('=') => {
            "this key has no value; write it as key = value"
        }
        "string values must be quoted" => "this is no value; write strings in double quotes",
        "invalid basic string" => "this string is not closed; add \"",
        _ => return format!("not TOML: {message}; correct this line"),
    };
    format!("not TOML: {known}")
}

/// A key or header that is written a second time in the same file.
fn set_twice(key: &str, first: Option<usize>) -> String {
    let key = shown(key);
    match first {
        Some(line) => format!("{key} is already set in line {line}; keep one of the two"),
        None => format!("{key} is set twice; keep one of the two"),
    }
}

/// The line, from 1, where a key or header that is written again was written first, where that is
/// plain to see.
fn first_set(text: &str, again: Place, key: &str) -> Option<usize> {
    let before = again.line as usize - 1;
    let lines: Vec<&str> = text.lines().take(before + 1).map(str::trim).collect();
    let (here, earlier) = (*lines.get(before)?, &lines[..before]);
    let brackets = ['[', ']'];
    if here.starts_with('[') {
        let name = here.trim_matches(brackets);
        let same = |line: &&str| line.starts_with('[') && line.trim_matches(brackets) == name;
        return earlier.iter().position(same).map(|index| index + 1);
    }
    // Back to the header of this table.
    let start = earlier.iter().rposition(|line| line.starts_with('[')).unwrap_or(0);
    let sets =
        |line: &&str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    earlier[start..].iter().position(sets).map(|index| start + index + 1)
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

    /// The bytes of the line that a byte offset is in, without its end.
    fn around(&self, offset: usize) -> Range<usize> {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts[line - 1];
        let end = self.starts.get(line).map_or(self.text.len(), |next| next - 1);
        start..end
    }

    /// The line of a place, without the blanks around it.
    fn line(&self, place: Place) -> &'t str {
        let start = self.starts[place.line as usize - 1];
        self.text[start..].lines().next().unwrap_or_default().trim()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            disk::Content,
            fake::{Fake, MAIN, problem_lines},
        },
        *,
    };

    /// The problems of a main file, with nothing judged but its form.
    fn problems(text: &str) -> Vec<String> {
        let report = Report::default();
        report.begin_file("main.toml".into());
        parse(0, text, &report);
        report.conclude(Some(())).map_or_else(|problems| problem_lines(&problems), |_| Vec::new())
    }

    #[test]
    fn every_syntax_error_has_its_place() {
        let escaped = "not TOML: this string is not closed; add \"";
        let value = "not TOML: this key has no value; write it as key = value";
        let quoted = "not TOML: this is no value; write strings in double quotes";
        for (text, expected) in [
            ("a = 1\nb = [1, 2]\n[t]\n", vec![]),
            ("\u{feff}a = 1\r\nb = 2\r\n", vec![]),
            ("", vec![]),
            ("a = \"x", vec![format!("1:7: {escaped}")]),
            (
                "a = \"x\nb = 1\nc = \"y\n",
                vec![format!("1:7: {escaped}"), format!("3:7: {escaped}")],
            ),
            (
                "ä = 1",
                vec![
                    "1:1: not TOML: invalid unquoted key, expected letters, numbers, `-`, \
                            `_`; correct this line"
                        .to_owned(),
                ],
            ),
            (
                "a\n\nb = # c\nb =\n",
                vec![format!("1:2: {value}"), format!("3:5: {quoted}"), format!("4:4: {value}")],
            ),
            (
                "a\nb = \"x\nc = 1\nc = 2\nd",
                vec![
                    format!("1:2: {value}"),
                    format!("2:7: {escaped}"),
                    "4:1: \"c\" is already set in line 3; keep one of the two".to_owned(),
                    format!("5:2: {value}"),
                ],
            ),
            ("\"ä\" = x\nb = y", vec![format!("1:7: {quoted}"), format!("2:5: {quoted}")]),
            (
                "a = [1,\n2\nb = 1\nc = 2\n",
                vec![
                    "3:1: not TOML: a comma is missing here, or a list before this line is not \
                 closed; add , or ]"
                        .to_owned(),
                ],
            ),
            (
                "[xdp\nmode = \"auto\"",
                vec!["1:5: not TOML: the header of this table is not closed; add ]".to_owned()],
            ),
            (
                "a = [\n[xdp]\nb = 1",
                vec!["2:2: not TOML: a list before this line is not closed; add ]".to_owned()],
            ),
            (
                "a = 1\na = 2",
                vec!["2:1: \"a\" is already set in line 1; keep one of the two".into()],
            ),
            (
                "a = 1\n[t]\na = 1\n[u]\na = 1\nb = 1\na = 2",
                vec!["7:1: \"a\" is already set in line 5; keep one of the two".into()],
            ),
            (
                "[t]\n[u]\n[t]\n",
                vec!["3:2: \"t\" is already set in line 1; keep one of the two".into()],
            ),
            (
                "[t]\n[[t]]\n",
                vec!["2:3: \"t\" is already set in line 1; keep one of the two".into()],
            ),
            ("a = { b = 1, b = 2 }", vec!["1:14: \"b\" is set twice; keep one of the two".into()]),
        ] {
            assert_eq!(problems(text), expected, "{text:?}");
        }
    }

    #[test]
    fn keys_and_values_know_where_they_are() {
        let report = Report::default();
        let text = "a = 1\n\"ö\" = [\"é\", \"x\"]\n  [t.u]\n  b = 0x1F\n[[r]]\n[[r]]\nf = 99999999999999999999\n";
        let root = parse(0, text, &report);
        let place = |line, column| Place { file: 0, line, column };
        let list = &root["ö"];
        assert_eq!((list.key, list.node.place), (place(2, 1), place(2, 7)));
        let Value::Array(items) = &list.node.value else { panic!("{list:?}") };
        assert_eq!((items[0].place, items[1].place), (place(2, 8), place(2, 13)));
        let Value::Table(t) = &root["t"].node.value else { panic!("{root:?}") };
        assert_eq!((t["u"].key, t["u"].node.place), (place(3, 6), place(3, 3)));
        let Value::Table(u) = &t["u"].node.value else { panic!("{t:?}") };
        assert!(matches!(u["b"].node.value, Value::Integer(Some(31))));
        let Value::Array(r) = &root["r"].node.value else { panic!("{root:?}") };
        assert_eq!((r[0].place, r[1].place), (place(5, 1), place(6, 1)));
        let Value::Table(last) = &r[1].value else { panic!("{r:?}") };
        assert!(matches!(last["f"].node.value, Value::Integer(None)));
    }

    #[test]
    fn files_are_read_in_order_and_joined() {
        let mut fake = Fake::new();
        fake.put("portcullis.toml", "[[route]]\nname = \"a\"\n[xdp]\nmode = \"auto\"\n", 0o644);
        fake.put("conf.d/20.toml", "[[route]]\nname = \"c\"\n[xdp]\nenforce = true\n", 0o644);
        fake.put("conf.d/10.toml", "[[route]]\nname = \"b\"\n", 0o644);
        fake.put("conf.d/.#30.toml", "not read", 0o644);
        fake.put("conf.d/30.toml~", "not read", 0o644);
        fake.put("conf.d/README", "not read", 0o644);
        let report = Report::default();
        let root = gather(Path::new(MAIN), &fake, &report);
        assert!(report.conclude(Some(())).is_ok());
        let Value::Array(routes) = &root["route"].node.value else { panic!("{root:?}") };
        let places: Vec<usize> = routes.iter().map(|route| route.place.file).collect();
        assert_eq!(places, [0, 1, 2]);
        let Value::Table(xdp) = &root["xdp"].node.value else { panic!("{root:?}") };
        assert_eq!(xdp.keys().collect::<Vec<_>>(), ["enforce", "mode"]);
        assert_eq!(xdp["enforce"].key, Place { file: 2, line: 4, column: 1 });
    }

    /// What is wrong with `a = 1` and the files given, as a whole.
    fn gathered(change: impl Fn(&mut Fake)) -> String {
        let mut fake = Fake::new();
        fake.put("portcullis.toml", "[t]\na = 1\n", 0o644);
        change(&mut fake);
        let report = Report::default();
        gather(Path::new(MAIN), &fake, &report);
        match report.conclude(Some(())) {
            Ok((_, warnings)) => warnings.iter().map(ToString::to_string).collect(),
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn what_cannot_be_joined_or_read_is_named_with_its_file() {
        type Change = fn(&mut Fake);
        let table: [(Change, &str); 7] = [
            (|_| (), ""),
            (
                |fake| fake.put("conf.d/x.toml", "[t]\nb = 1\n\na = 2", 0o644),
                "/etc/portcullis/portcullis.toml:2:1: \"a\" is also set in \
                 /etc/portcullis/conf.d/x.toml:4; keep one of the two\n\
                 /etc/portcullis/conf.d/x.toml:4:1: \"a\" is also set in \
                 /etc/portcullis/portcullis.toml:2; keep one of the two",
            ),
            (
                |fake| fake.put("conf.d/x.toml", "[[t]]\n", 0o644),
                "/etc/portcullis/portcullis.toml:1:2: \"t\" is also set in \
                 /etc/portcullis/conf.d/x.toml:1; keep one of the two\n\
                 /etc/portcullis/conf.d/x.toml:1:3: \"t\" is also set in \
                 /etc/portcullis/portcullis.toml:1; keep one of the two",
            ),
            (
                |fake| fake.put("conf.d/x.toml", b"a = 1\nb = \"\xc3\xa4\xff\"", 0o644),
                "/etc/portcullis/conf.d/x.toml:2:7: this byte is not UTF-8; save the file as UTF-8",
            ),
            (
                |fake| fake.put("conf.d/x.toml", " ".repeat(FILE_MAX_BYTES + 1), 0o644),
                "/etc/portcullis/conf.d/x.toml:1:1: the file is longer than 1024 KiB, which is \
                 more than such a file can need; name the right file",
            ),
            (
                |fake| {
                    for number in 0..=FILES_MAX {
                        fake.put(&format!("conf.d/{number}.toml"), "", 0o644);
                    }
                },
                "/etc/portcullis/portcullis.toml:1:1: /etc/portcullis/conf.d holds 257 files; the \
                 limit is 256, join some",
            ),
            (
                |fake| fake.put("conf.d/x.toml", "", 0o646),
                "/etc/portcullis/conf.d/x.toml:1:1: everybody on this machine can change this \
                 file; take the permission away (chmod o-w)",
            ),
        ];
        for (change, expected) in table {
            assert_eq!(gathered(change), expected);
        }
    }

    #[test]
    fn a_main_file_that_is_not_there_is_the_only_problem() {
        let problems = super::super::load(Path::new("nowhere.toml"), &Fake::new()).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "nowhere.toml:1:1: the file does not exist; correct the path or create the file"
        );
    }

    #[test]
    fn a_directory_that_may_not_be_read_is_a_problem() {
        struct Locked(Fake);
        impl Files for Locked {
            fn read(&self, path: &Path, limit_bytes: usize) -> Result<Content, FileError> {
                self.0.read(path, limit_bytes)
            }
            fn list(&self, _: &Path) -> Result<Vec<PathBuf>, FileError> {
                Err(FileError::NotPermitted)
            }
            fn daemon(&self) -> &super::super::Daemon {
                self.0.daemon()
            }
        }
        let mut fake = Fake::new();
        fake.put("portcullis.toml", "", 0o644);
        let problems = super::super::load(Path::new(MAIN), &Locked(fake)).unwrap_err();
        assert_eq!(
            problem_lines(&problems),
            ["1:1: /etc/portcullis/conf.d may not be read; give the daemon's user or group \
              permission to read the file and to enter its directories"]
        );
    }

    proptest! {
        /// Blocks of counted characters give the same as counting from the start of the line.
        #[test]
        fn places_are_those_that_counting_gives(
            text in "[aä€😀\n]{0,40}",
            repeat in 1usize..200,
            at in 0.0..=1.0f64,
        ) {
            let text = text.repeat(repeat);
            let mut offset = (at * text.len() as f64) as usize;
            while !text.is_char_boundary(offset) {
                offset -= 1;
            }
            let before = &text[..offset];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let place = Lines::new(0, &text).place(offset);
            prop_assert_eq!((place.line as usize, place.column as usize), (line, column));
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            problems(&text);
        }

        #[test]
        fn no_pile_of_signs_makes_it_panic(text in "[\\[\\]{}=,.\"'#a1\n-]{0,60}") {
            problems(&text);
        }
    }
}
