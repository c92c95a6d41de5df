//! JSON read strictly: a member that is there twice, at any depth, is an error.
//!
//! RFC 8259 leaves open which of two equal names counts, so two readers may see two different
//! tokens (RFC 7515 section 10.12). Depth is bounded by serde_json (128), size by the caller.

use std::{borrow::Cow, cell::RefCell, collections::BTreeMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value, borrowed from its text where it has no escapes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// A number without fraction and exponent, not negative.
    Whole(u64),
    /// Any other number.
    Number(f64),
    Text(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Object<'a>),
}

/// Members by name.
pub(super) type Object<'a> = BTreeMap<Cow<'a, str>, Json<'a>>;

/// Why a text is not the JSON object that was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JsonError {
    /// Not JSON; serde_json's words, which hold a position and nothing of the text but a name.
    Syntax(String),
    /// JSON, but not an object.
    NotAnObject,
    /// This member is there twice.
    Duplicate(String),
}

impl<'a> Json<'a> {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn array(&self) -> Option<&[Json<'a>]> {
        match self {
            Json::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// Reads one object and nothing after it.
pub(super) fn object(text: &[u8]) -> Result<Object<'_>, JsonError> {
    let duplicate = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let outcome = Strict { duplicate: &duplicate }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    match (outcome, duplicate.take()) {
        (_, Some(name)) => Err(JsonError::Duplicate(name)),
        (Ok(Json::Object(object)), None) => Ok(object),
        (Ok(_), None) => Err(JsonError::NotAnObject),
        (Err(error), None) => Err(JsonError::Syntax(error.to_string())),
    }
}

/// Reads one value; the name of a doubled member goes beside serde's error, which is only text.
#[derive(Clone, Copy)]
struct Strict<'c> {
    duplicate: &'c RefCell<Option<String>>,
}

impl<'a> DeserializeSeed<'a> for Strict<'_> {
    type Value = Json<'a>;

    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<Json<'a>, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Strict<'_> {
    type Value = Json<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'a>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'a>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'a>, E> {
        Ok(Json::Whole(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'a>, E> {
        // serde_json comes here with negative numbers only.
        Ok(u64::try_from(value).map_or(Json::Number(value as f64), Json::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'a>, E> {
        Ok(Json::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<Json<'a>, E> {
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json<'a>, E> {
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut values: A) -> Result<Json<'a>, A::Error> {
        let mut array = Vec::new();
        while let Some(value) = values.next_element_seed(self)? {
            array.push(value);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<Json<'a>, A::Error> {
        let mut object = Object::new();
        while let Some(Name(name)) = members.next_key()? {
            if object.contains_key(&name) {
                self.duplicate.replace(Some(name.into_owned()));
                return Err(A::Error::custom("duplicate member"));
            }
            let value = members.next_value_seed(self)?;
            object.insert(name, value);
        }
        Ok(Json::Object(object))
    }
}

/// A member's name; serde reads a plain `Cow` as an owned one always.
struct Name<'a>(Cow<'a, str>);

impl<'a> serde::Deserialize<'a> for Name<'a> {
    fn deserialize<D: Deserializer<'a>>(reader: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'a> Visitor<'a> for NameVisitor {
            type Value = Name<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_borrowed_str<E>(self, name: &'a str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        reader.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        for (text, expected) in [
            (r#"{"a":1,"a":1}"#, JsonError::Duplicate("a".into())),
            (r#"{"a":1,"\u0061":2}"#, JsonError::Duplicate("a".into())),
            (r#"{"x":{"b":1,"b":2}}"#, JsonError::Duplicate("b".into())),
            (r#"{"x":[[{"c":1,"c":2}]]}"#, JsonError::Duplicate("c".into())),
            ("[]", JsonError::NotAnObject),
            ("\"a\"", JsonError::NotAnObject),
        ] {
            assert_eq!(object(text.as_bytes()), Err(expected), "{text}");
        }
        for text in ["", "{", "{}x", "{}{}", "{\"a\":}", "{a:1}", "{\"a\":1,}", "\u{feff}{}"] {
            assert!(matches!(object(text.as_bytes()), Err(JsonError::Syntax(_))), "{text}");
        }
        assert!(matches!(object(b"{\"a\":\"\xff\"}"), Err(JsonError::Syntax(_))));
    }

    #[test]
    fn reads_every_kind_of_value() {
        let text = br#"{"n":null,"t":true,"w":7,"m":-7,"f":1.5,"s":"x\n","a":[1],"o":{}}"#;
        let read = object(text).unwrap();
        assert_eq!(read["n"], Json::Null);
        assert_eq!(read["t"], Json::Bool(true));
        assert_eq!(read["w"], Json::Whole(7));
        assert_eq!(read["m"], Json::Number(-7.0));
        assert_eq!(read["f"], Json::Number(1.5));
        assert_eq!(read["s"].text(), Some("x\n"));
        assert_eq!(read["a"].array().map(<[_]>::len), Some(1));
        assert_eq!(read["o"], Json::Object(Object::new()));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(4000), "]".repeat(4000));
        assert!(matches!(object(deep.as_bytes()), Err(JsonError::Syntax(_))));
    }
}
