//! `portcullis man`: the manual pages. Section 1 comes from the definitions of the command line, section
//! 5 from the sample configuration and its comments, section 8 is the daemon as the service manager and
//! an operator see it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// The configuration with every option, its default and the reason for it.
const SAMPLE: &str = include_str!("../../../systemd/portcullis.toml");

/// What an operator needs to know of the daemon, already as a manual page.
const DAEMON: &str = include_str!("manual/portcullis.8");

/// What `man` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to write: man1, man5 and man8 are made there.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(command: clap::Command, arguments: &Arguments) -> anyhow::Result<()> {
    for (section, name, text) in pages(command)? {
        let directory = arguments.directory.join(format!("man{section}"));
        write(&directory, &format!("{name}.{section}"), &text)?;
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = directory.join(name);
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Section, name and text of every page.
fn pages(command: clap::Command) -> anyhow::Result<Vec<(u8, String, String)>> {
    let mut pages = Vec::new();
    let mut command = command.disable_help_subcommand(true);
    command.build();
    commands(&command, "portcullis".to_owned(), &mut pages)?;
    pages.push((5, "portcullis.toml".to_owned(), configuration(SAMPLE)));
    pages.push((8, "portcullis".to_owned(), DAEMON.to_owned()));
    Ok(pages)
}

/// A page for a command and each of those below it: `portcullis-bans-add` and the like.
fn commands(
    command: &clap::Command,
    name: String,
    pages: &mut Vec<(u8, String, String)>,
) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        commands(below, format!("{name}-{}", below.get_name()), pages)?;
    }
    let mut text = Vec::new();
    let manual = clap_mangen::Man::new(command.clone().display_name(name.clone()))
        .title(name.to_uppercase())
        .date("")
        .manual("Portcullis");
    manual.render(&mut text).context("a manual page cannot be rendered")?;
    let mut text = String::from_utf8(text).context("a manual page is not UTF-8")?;
    text.push_str(".SH \"SEE ALSO\"\nportcullis(1), portcullis.toml(5), portcullis(8)\n");
    pages.push((1, name, text));
    Ok(())
}

/// The sample as a page: a section for each table, what a comment says below its option.
fn configuration(sample: &str) -> String {
    let mut page = String::from(
        ".TH PORTCULLIS.TOML 5 \"\" \"\" \"Portcullis\"\n\
         .SH NAME\n\
         portcullis.toml \\- configuration of the gateway Portcullis\n\
         .SH SYNOPSIS\n\
         /etc/portcullis/portcullis.toml\n\
         .br\n\
         /etc/portcullis/conf.d/*.toml\n\
         .SH DESCRIPTION\n",
    );
    let mut said = Vec::new();
    for line in sample.lines() {
        match Written::of(line) {
            Written::Nothing => paragraph(&mut page, &mut said),
            Written::Words(words) => said.push(words),
            Written::Table(table) => {
                let _ = writeln!(page, ".SH \"{}\"", escaped(table));
                paragraph(&mut page, &mut said);
            }
            Written::Setting { text, is_default } => {
                let default = if is_default { "" } else { " \\fR(no default)" };
                let _ = write!(page, ".TP\n\\fB{}{default}\\fR\n", escaped(text));
                let words = std::mem::take(&mut said);
                page.push_str(&if words.is_empty() {
                    "As above.\n".to_owned()
                } else {
                    body(&words)
                });
            }
        }
    }
    page.push_str(".SH \"SEE ALSO\"\nportcullis(1), portcullis-check(1), portcullis(8)\n");
    page
}

/// What one line of the sample is.
#[derive(Debug, PartialEq)]
enum Written<'a> {
    Nothing,
    Words(&'a str),
    Table(&'a str),
    /// `is_default`: written out, and not one to choose.
    Setting {
        text: &'a str,
        is_default: bool,
    },
}

impl<'a> Written<'a> {
    fn of(line: &'a str) -> Written<'a> {
        // `# words` is a comment, `#key = value` an option that is not set.
        let (text, is_default) = match line.strip_prefix('#') {
            Some("") => return Written::Nothing,
            Some(text) if text.starts_with(' ') => return Written::Words(text.trim()),
            Some(text) => (text, false),
            None => (line.trim_end(), true),
        };
        match text {
            "" => Written::Nothing,
            table if table.starts_with('[') => Written::Table(table),
            text => Written::Setting { text, is_default },
        }
    }
}

fn paragraph(page: &mut String, said: &mut Vec<&str>) {
    if !said.is_empty() {
        page.push_str(&body(said));
        page.push_str(".PP\n");
        said.clear();
    }
}

fn body(words: &[&str]) -> String {
    words.iter().map(|line| format!("{}\n", escaped(line))).collect()
}

/// Text that roff takes as it is: no request at the beginning of a line, no escape within it.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_option_of_the_sample_is_in_one() {
        let pages = pages(super::super::Arguments::command()).unwrap();
        let named = |name: &str| pages.iter().find(|page| page.1 == name).map(|page| &page.2);
        for name in ["portcullis", "portcullis-check", "portcullis-bans-add", "portcullis-pki-init"]
        {
            let text = named(name).unwrap_or_else(|| panic!("no page {name}"));
            assert!(text.contains(".SH NAME"), "{name}:\n{text}");
        }
        let configuration = named("portcullis.toml").unwrap();
        for option in ["drain_timeout", "[[listener]]", "client_crl", "idp_lost", "half_life"] {
            assert!(configuration.contains(option), "{option}");
        }
        assert!(pages.iter().all(|page| page.2.starts_with(".TH") || page.2.contains("\n.TH")));
    }

    #[test]
    fn lines_of_the_sample_are_told_apart() {
        for (line, expected) in [
            ("", Written::Nothing),
            ("#", Written::Nothing),
            ("# Why.", Written::Words("Why.")),
            ("#     portcullis check", Written::Words("portcullis check")),
            ("[server]", Written::Table("[server]")),
            ("#[[limit]]", Written::Table("[[limit]]")),
            ("workers = 0", Written::Setting { text: "workers = 0", is_default: true }),
            ("#bytes = 1", Written::Setting { text: "bytes = 1", is_default: false }),
        ] {
            assert_eq!(Written::of(line), expected, "{line}");
        }
    }

    #[test]
    fn nothing_of_the_text_is_a_command_to_roff() {
        for (text, expected) in
            [(".so /etc/passwd", "\\&.so /etc/passwd"), ("a\\n", "a\\en"), ("--x", "\\-\\-x")]
        {
            assert_eq!(escaped(text), expected);
        }
    }
}
