//! JSON: the wanted fields of an object without building the rest, and the entries of one large object.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{python, values};

/// A value that stands alone; strings are borrowed where JSON allows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Float(f64),
    /// `null`.
    Null,
    /// A list, an object or a boolean.
    Other,
}

impl<'a> Scalar<'a> {
    /// An id: a string or a whole number (`2.0` is `2`), never empty.
    pub fn id(&self) -> Option<Cow<'_, str>> {
        match self {
            Scalar::Text(text) => Some(Cow::Borrowed(text.trim())).filter(|text| !text.is_empty()),
            Scalar::Integer(number) => Some(Cow::Owned(number.to_string())),
            Scalar::Float(number) => values::whole(*number).map(|number| Cow::Owned(number.to_string())),
            _ => None,
        }
    }
}

/// The id in a field called `name`, or why there is none.
pub fn id<'v>(field: Option<&'v Scalar>, name: &str) -> Result<Cow<'v, str>, String> {
    field.and_then(Scalar::id).ok_or_else(|| {
        let rule = "an id is a text or a whole number";
        match field {
            Some(Scalar::Float(number)) => format!("{name} is {number}: {rule}"),
            Some(Scalar::Other) => format!("{name} is a list, an object or a boolean: {rule}"),
            _ => format!("no {name}"),
        }
    })
}

impl From<Value> for Scalar<'_> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Scalar::Null,
            Value::String(text) => Scalar::Text(Cow::Owned(text)),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Scalar::Integer(integer),
                _ if number.is_u64() => Scalar::Text(Cow::Owned(number.to_string())),
                (None, Some(float)) => Scalar::Float(float),
                _ => Scalar::Other,
            },
            _ => Scalar::Other,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_string())))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Integer(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
                Ok(i64::try_from(number).map_or(Scalar::Text(Cow::Owned(number.to_string())), Scalar::Integer))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Float(number))
            }
            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The fields of a JSON object (or a Python dict literal) named by `names`: of each list the first name that is
/// there with a value, as it is, else in any case. What is wrong otherwise.
pub fn fields<'de, V: Deserialize<'de> + From<Value>>(
    text: &'de str,
    names: &[Vec<String>],
) -> Result<Vec<Option<V>>, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let picked = Pick(names, PhantomData)
        .deserialize(&mut reader)
        .and_then(|fields| reader.end().map(|()| fields));
    let error = match picked {
        Ok(fields) => return Ok(fields),
        Err(error) => error,
    };
    match python::parse(text) {
        Ok(Value::Object(map)) => Ok(names
            .iter()
            .map(|names| {
                let exact = names.iter().filter_map(|name| map.get(name));
                let loose = names.iter().flat_map(|name| {
                    let same = map.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
                    same.map(|(_, value)| value)
                });
                exact.chain(loose).find(|value| !value.is_null()).cloned().map(V::from)
            })
            .collect()),
        Ok(_) => Err("not an object".to_string()),
        // a line that begins like JSON was meant to be JSON
        Err(_) if text.starts_with("{\"") => Err(format!("bad JSON: {}", at_column(&error))),
        Err(reason) if text.starts_with('{') => Err(format!("neither JSON nor a Python literal: {reason}")),
        Err(_) => Err("not a JSON object".to_string()),
    }
}

/// Calls `each` with place (from 1), key and value of every entry of one JSON object.
pub fn entries(
    text: &str,
    each: &mut dyn FnMut(u64, &str, Value) -> sluice_engine::Result<()>,
) -> sluice_engine::Result<()> {
    struct Entries<'e>(
        &'e mut dyn FnMut(u64, &str, Value) -> sluice_engine::Result<()>,
        &'e mut Option<sluice_engine::Error>,
    );
    impl<'de> Visitor<'de> for Entries<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object from ids to values")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut place = 0;
            while let Some(key) = map.next_key::<Key<'de>>()? {
                place += 1;
                let value = map.next_value()?;
                if let Err(error) = self.0(place, &key.0, value) {
                    *self.1 = Some(error);
                    return Err(A::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
    let mut stopped = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let result = reader
        .deserialize_map(Entries(each, &mut stopped))
        .and_then(|()| reader.end());
    match (stopped, result) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(sluice_engine::Error::data(
            "wrong-format",
            format!(
                "bad JSON at line {}, column {}: {}",
                error.line(),
                error.column(),
                bare(&error)
            ),
        )
        .hint("one JSON object from ids to values is expected; is the file complete?")),
    }
}

/// A serde error without its place.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_string()
}

fn at_column(error: &serde_json::Error) -> String {
    format!("{} at character {}", bare(error), error.column())
}

struct Pick<'n, V>(&'n [Vec<String>], PhantomData<V>);

impl<'de, V: Deserialize<'de>> DeserializeSeed<'de> for Pick<'_, V> {
    type Value = Vec<Option<V>>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for Pick<'_, V> {
    type Value = Vec<Option<V>>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Vec<(usize, Option<V>)> = self.0.iter().map(|_| (usize::MAX, None)).collect();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match place(self.0, &found, &key.0, false).or_else(|| place(self.0, &found, &key.0, true)) {
                Some((field, rank)) => {
                    // a null leaves the field to its other names
                    if let Some(value) = map.next_value::<Option<V>>()? {
                        found[field] = (rank, Some(value));
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found.into_iter().map(|(_, value)| value).collect())
    }
}

/// The field that a key names and the rank of the name, unless the field has a value of a better rank.
/// In any case names rank behind those as they are.
fn place<V>(names: &[Vec<String>], found: &[(usize, Option<V>)], key: &str, any_case: bool) -> Option<(usize, usize)> {
    names
        .iter()
        .zip(found)
        .enumerate()
        .find_map(|(field, (names, (best, _)))| {
            let first = if any_case { names.len() } else { 0 };
            if *best <= first {
                return None;
            }
            let same = |name: &String| match any_case {
                true => name.eq_ignore_ascii_case(key),
                false => name == key,
            };
            let rank = first + names.iter().position(same)?;
            (rank < *best).then_some((field, rank))
        })
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => Ok(Key(text)),
            _ => Err(D::Error::custom("a key that is no string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Option<Scalar<'_>>>, String> {
        let names = [vec!["user".to_string()], vec!["asin".to_string(), "item".to_string()]];
        fields(text, &names)
    }

    #[test]
    fn wanted_fields_by_rank_of_name() {
        let text = |text: &'static str| Some(Scalar::Text(Cow::Borrowed(text)));
        assert_eq!(
            read(r#"{"item": 3, "x": [1, {"user": 2}], "user": "u"}"#).unwrap(),
            [text("u"), Some(Scalar::Integer(3))]
        );
        assert_eq!(read(r#"{"asin": "a", "item": "b"}"#).unwrap(), [None, text("a")]);
        assert_eq!(read(r#"{"item": "b", "asin": null}"#).unwrap(), [None, text("b")]);
        assert_eq!(read("{'item': 'b', 'user': 'u'}").unwrap(), [text("u"), text("b")]);
        assert_eq!(read(r#"{"user": NaN}"#).unwrap(), [text("NaN"), None]);
    }

    #[test]
    fn names_in_any_case_come_behind_those_as_they_are() {
        let text = |text: &'static str| Some(Scalar::Text(Cow::Borrowed(text)));
        for line in [
            r#"{"User": "u", "ITEM": "b", "Asin": "a"}"#,
            r#"{"User": "u", "ASIN": "a"}"#,
            "{'User': 'u', 'ASIN': 'a'}",
        ] {
            assert_eq!(read(line).unwrap(), [text("u"), text("a")]);
        }
        for line in [r#"{"item": "b", "ASIN": "a"}"#, "{'ASIN': 'a', 'item': 'b'}"] {
            assert_eq!(read(line).unwrap(), [None, text("b")]);
        }
        let names = [vec!["id".to_string()], vec!["ID".to_string()]];
        assert_eq!(
            fields::<Scalar>(r#"{"ID": "i", "id": "u"}"#, &names).unwrap(),
            [text("u"), text("i")]
        );
    }

    #[test]
    fn ids_are_texts_and_whole_numbers() {
        let read = |json: &'static str| {
            let value: Scalar = serde_json::from_str(json).unwrap();
            id(Some(&value), "item").map(Cow::into_owned)
        };
        assert_eq!(read("2.0").unwrap(), "2");
        assert_eq!(read("\" a \"").unwrap(), "a");
        assert_eq!(read("12345678901234567890").unwrap(), "12345678901234567890");
        assert_eq!(
            read("2.5").unwrap_err(),
            "item is 2.5: an id is a text or a whole number"
        );
        assert_eq!(
            read("true").unwrap_err(),
            "item is a list, an object or a boolean: an id is a text or a whole number"
        );
        assert_eq!(read("null").unwrap_err(), "no item");
        assert_eq!(id(None, "item").unwrap_err(), "no item");
    }

    #[test]
    fn what_is_wrong_with_a_line() {
        assert_eq!(
            read(r#"{"user": "u""#).unwrap_err(),
            "bad JSON: EOF while parsing an object at character 12"
        );
        assert_eq!(
            read("{'user': 'u'").unwrap_err(),
            "neither JSON nor a Python literal: expected ',' or '}' at character 13"
        );
        assert_eq!(read("u,i,1").unwrap_err(), "not a JSON object");
    }

    #[test]
    fn entries_in_order() {
        let mut seen = Vec::new();
        entries(r#"{"b": [1], "a": 2}"#, &mut |place, key, value| {
            seen.push(format!("{place} {key} {value}"));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, ["1 b [1]", "2 a 2"]);
        let error = entries("{\"a\": 1,\n\"b\": [", &mut |_, _, _| Ok(())).unwrap_err();
        assert_eq!(error.message, "bad JSON at line 2, column 6: EOF while parsing a list");
    }
}
