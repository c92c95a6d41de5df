//! A text to compare names with, in which one `*` stands for one or more characters of any kind.

use std::fmt;

/// A pattern of names. Without `*` it is the one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    after: Option<String>,
}

/// More than one `*`: what each of them stands for would be a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeveralStars;

impl fmt::Display for SeveralStars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more than one *")
    }
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// More than one `*`.
    pub fn parse(text: &str) -> Result<Pattern, SeveralStars> {
        let (before, after) = match text.split_once('*') {
            Some((before, after)) => (before, Some(after.to_owned())),
            None => (text, None),
        };
        if after.as_ref().is_some_and(|after| after.contains('*')) {
            return Err(SeveralStars);
        }
        Ok(Pattern { before: before.to_owned(), after })
    }

    /// Whether a name is one of those meant. Letters are compared as they are.
    pub fn matches(&self, name: &str) -> bool {
        let Some(after) = &self.after else { return name == self.before };
        name.strip_prefix(self.before.as_str())
            .and_then(|rest| rest.strip_suffix(after.as_str()))
            .is_some_and(|star| !star.is_empty())
    }

    /// Whether it stands for more than one name.
    pub fn has_star(&self) -> bool {
        self.after.is_some()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        match &self.after {
            Some(after) => write!(f, "*{after}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_star_stands_for_one_or_more_characters() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "Orders", false),
            ("orders", "orders2", false),
            ("spiffe://example.org/*", "spiffe://example.org/a", true),
            ("spiffe://example.org/*", "spiffe://example.org/a/b", true),
            ("spiffe://example.org/*", "spiffe://example.org/", false),
            ("spiffe://example.org/*", "spiffe://example.org.evil/a", false),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", ".example.org", false),
            ("*.example.org", "example.org", false),
            ("a*a", "aa", false),
            ("a*a", "aba", true),
            ("a*a", "a", false),
            ("*", "anything", true),
            ("*", "", false),
            ("", "", true),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(name),
                expected,
                "{pattern} {name}"
            );
        }
        assert_eq!(Pattern::parse("a*b*"), Err(SeveralStars));
    }

    proptest! {
        /// The same answer as trying every way to divide the name.
        #[test]
        fn agrees_with_trying_everything(pattern in "[ab]{0,3}\\*?[ab]{0,3}", name in "[ab]{0,8}") {
            let naive = match pattern.split_once('*') {
                None => pattern == name,
                Some((before, after)) => (0..=name.len()).any(|start| {
                    (start + 1..=name.len())
                        .any(|end| &name[..start] == before && &name[end..] == after)
                }),
            };
            let parsed = Pattern::parse(&pattern).unwrap();
            prop_assert_eq!(parsed.matches(&name), naive);
            prop_assert_eq!(parsed.to_string(), pattern);
        }
    }
}
