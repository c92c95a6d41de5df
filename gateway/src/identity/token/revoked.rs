//! Tokens that were taken back before their end, by issuer and `jti`.
//!
//! By name and not by the token's hash: of one ES256 token anybody can make a second with another
//! valid signature (`s` → `n − s`), which a list of hashes would let pass. What is not on the list is
//! not revoked; a list that cannot be read whole is not taken at all.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{Claims, TokenError};
use crate::identity::certificate::name::shown_bytes;

/// Most entries. Revoked tokens are only listed until they would have expired, and this many take
/// some 100 MB.
pub const REVOKED_MAX: usize = 1_000_000;

/// Longest line: an issuer's URL and the longest identifier, with room.
const LINE_MAX_BYTES: usize = 2048;

/// The identifiers of revoked tokens, by issuer.
#[derive(Clone, Debug, Default)]
pub struct RevokedTokens {
    by_issuer: HashMap<Box<str>, HashSet<Box<str>>>,
}

/// Why a list is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokedTokensError {
    /// Not UTF-8.
    NotText {
        /// Counted from 1.
        line: usize,
    },
    /// Not an issuer, a blank and a `jti`.
    Malformed {
        /// Counted from 1.
        line: usize,
    },
    /// The last line has no end.
    CutOff,
    /// More than [`REVOKED_MAX`].
    TooMany,
}

impl fmt::Display for RevokedTokensError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText { line } => write!(f, "line {line} is not UTF-8; write it again"),
            Self::Malformed { line } => write!(
                f,
                "line {line} is not an issuer, one blank and a jti (as in \
                 \"https://idp.example.com 7f3c\"); correct it, or begin it with #"
            ),
            Self::CutOff => f.write_str(
                "the last line has no end, so it may be half written; end each line with a newline",
            ),
            Self::TooMany => write!(
                f,
                "more than {REVOKED_MAX} tokens; take out those that have expired by themselves"
            ),
        }
    }
}

impl std::error::Error for RevokedTokensError {}

impl RevokedTokens {
    /// Reads lines of `iss`, one blank, `jti`; empty lines and those that begin with `#` are notes.
    /// The rest of the line is the `jti`, blanks included.
    ///
    /// # Errors
    /// The first line that is not so: half a list would let pass what the other half revokes.
    pub fn parse(text: &[u8]) -> Result<Self, RevokedTokensError> {
        if text.last().is_some_and(|last| *last != b'\n') {
            return Err(RevokedTokensError::CutOff);
        }
        let mut revoked = Self::default();
        let mut count = 0;
        for (index, line) in text.split(|octet| *octet == b'\n').enumerate() {
            let number = index + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            let line = std::str::from_utf8(line)
                .map_err(|_| RevokedTokensError::NotText { line: number })?;
            let (issuer, token_id) =
                entry(line).ok_or(RevokedTokensError::Malformed { line: number })?;
            count += 1;
            if count > REVOKED_MAX {
                return Err(RevokedTokensError::TooMany);
            }
            match revoked.by_issuer.get_mut(issuer) {
                Some(tokens) => {
                    tokens.insert(token_id.into());
                }
                None => {
                    let tokens = HashSet::from([token_id.into()]);
                    revoked.by_issuer.insert(issuer.into(), tokens);
                }
            }
        }
        Ok(revoked)
    }

    /// Whether the token is still its issuer's word. To be asked for each request: a token that was
    /// remembered as good may have been revoked since.
    ///
    /// # Errors
    /// [`TokenError::Revoked`].
    pub fn check(&self, claims: &Claims) -> Result<(), TokenError> {
        let Some(token_id) = claims.token_id() else { return Ok(()) };
        let of_issuer = self.by_issuer.get(claims.identifier());
        if of_issuer.is_some_and(|tokens| tokens.contains(token_id)) {
            return Err(TokenError::Revoked {
                issuer: claims.issuer().to_owned(),
                token_id: shown_bytes(token_id.as_bytes()),
            });
        }
        Ok(())
    }

    /// How many tokens are listed.
    pub fn len(&self) -> usize {
        self.by_issuer.values().map(HashSet::len).sum()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.by_issuer.is_empty()
    }

    /// The issuers that it names.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.by_issuer.keys().map(AsRef::as_ref)
    }
}

fn entry(line: &str) -> Option<(&str, &str)> {
    let (issuer, token_id) = line.split_once(' ')?;
    let whole = !issuer.is_empty()
        && !token_id.is_empty()
        && token_id.trim() == token_id
        && line.len() <= LINE_MAX_BYTES
        && !line.contains(char::is_control);
    whole.then_some((issuer, token_id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://idp.example.org";

    #[test]
    fn a_list_is_taken_whole_or_not_at_all() {
        use RevokedTokensError::{CutOff, Malformed, NotText};
        for (text, expected) in [
            ("", Ok(0)),
            ("# nothing\n\n", Ok(0)),
            ("https://a 1\nhttps://a 2\nhttps://b 1\n", Ok(3)),
            ("https://a 1\r\nhttps://a 1\r\n", Ok(1)),
            ("https://a one with blanks\n", Ok(1)),
            ("https://a 1", Err(CutOff)),
            ("https://a 1\nhttps://a", Err(CutOff)),
            ("https://a 1\nhttps://a\n", Err(Malformed { line: 2 })),
            ("https://a \n", Err(Malformed { line: 1 })),
            (" 1\n", Err(Malformed { line: 1 })),
            ("https://a  1\n", Err(Malformed { line: 1 })),
            ("https://a 1 \n", Err(Malformed { line: 1 })),
            ("https://a\t1\n", Err(Malformed { line: 1 })),
            ("https://a \u{1b}\n", Err(Malformed { line: 1 })),
        ] {
            let read = RevokedTokens::parse(text.as_bytes()).map(|revoked| revoked.len());
            assert_eq!(read, expected, "{text:?}");
        }
        let binary = RevokedTokens::parse(b"https://a \xff\n");
        assert_eq!(binary.map(|revoked| revoked.len()), Err(NotText { line: 1 }));
        let long = format!("https://a {}\n", "x".repeat(LINE_MAX_BYTES));
        assert!(RevokedTokens::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn a_token_is_revoked_for_its_own_issuer() {
        let claims = Claims::for_test(&json!({ "jti": "a b" }));
        let nameless = Claims::for_test(&json!({ "jti": null }));
        for (list, expected) in [
            (format!("{ISSUER} a b\n"), true),
            (format!("{ISSUER} other\n{ISSUER} a b\n"), true),
            (format!("{ISSUER}/ a b\n"), false),
            ("https://other a b\n".to_owned(), false),
            (format!("{ISSUER} a\n{ISSUER} A B\n"), false),
            (String::new(), false),
        ] {
            let revoked = RevokedTokens::parse(list.as_bytes()).unwrap();
            assert_eq!(revoked.check(&claims).is_err(), expected, "{list}");
            assert!(revoked.check(&nameless).is_ok());
        }
        let revoked = RevokedTokens::parse(format!("{ISSUER} a b\n").as_bytes()).unwrap();
        let error = revoked.check(&claims).unwrap_err();
        assert_eq!((error.reason(), error.is_genuine()), ("token_revoked", true));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = RevokedTokens::parse(&bytes);
        }

        /// What was cut off anywhere but at the end of a line is not taken.
        #[test]
        fn half_a_list_is_none(cut in 1_usize..60) {
            let whole = "https://a 12345\nhttps://a 23456\nhttps://bb 34567\nhttps://c 4\n";
            let half = &whole[..cut];
            prop_assert_eq!(RevokedTokens::parse(half.as_bytes()).is_ok(), half.ends_with('\n'));
        }
    }
}
