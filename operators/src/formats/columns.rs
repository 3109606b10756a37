//! Which column of a file is which: by the user's mapping, else by well-known names.

use std::path::Path;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use serde::{Deserialize, Deserializer};
use sluice_engine::error::did_you_mean;
use sluice_engine::table::CHUNK_ROWS;
use sluice_engine::{Error, Result};

use super::files::{Block, damaged_parquet, parquet_reader};

/// A column that an operator wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name in the house.
    pub name: &'static str,
    /// What the user calls it; empty if unsaid.
    pub given: &'a str,
    /// Names it is known by, the likeliest first.
    pub aliases: &'static [&'static str],
    /// Whether rows cannot do without it.
    pub required: bool,
}

impl Wanted<'_> {
    /// The names to look for.
    pub fn names(&self) -> Vec<String> {
        match self.given {
            "" => self.aliases.iter().map(|alias| alias.to_string()).collect(),
            given => vec![given.to_string()],
        }
    }
}

/// Where each wanted column is among the columns `there` of `file`. Names match as they are, else without
/// RecBole's `:type`, else in any case. A column that was asked for by name and is missing is an error, and so
/// is a missing required one.
pub fn pick(file: &str, wanted: &[Wanted], there: &[String]) -> Result<Vec<Option<usize>>> {
    let mut picks = Vec::new();
    for column in wanted {
        let found = column.names().iter().find_map(|name| position(name, there));
        if found.is_none() && (column.required || !column.given.is_empty()) {
            let name = if column.given.is_empty() {
                column.name
            } else {
                column.given
            };
            let bare: Vec<&str> = there.iter().map(|name| plain(name)).collect();
            let hint = did_you_mean(name, bare).map_or_else(
                || format!("\"columns: {{ {}: NAME }}\" says which column it is", column.name),
                |guess| format!("{guess} say so: \"columns: {{ {}: NAME }}\"", column.name),
            );
            return Err(
                Error::user("missing-column", format!("\"{file}\" has no column \"{name}\""))
                    .detail(format!("it has: {}", there.join(", ")))
                    .hint(hint),
            );
        }
        picks.push(found);
    }
    Ok(picks)
}

/// Whether `there` holds the column.
pub fn has(column: &Wanted, there: &[String]) -> bool {
    column.names().iter().any(|name| position(name, there).is_some())
}

/// Whether `there` holds columns for all required ones of `wanted`.
pub fn fits(wanted: &[Wanted], there: &[String]) -> bool {
    pick("", wanted, there).is_ok()
}

/// Where each wanted column is in a Parquet file; an error if one has a type that it cannot be read from.
pub fn parquet(path: &Path, file: &str, wanted: &[Wanted]) -> Result<Vec<Option<usize>>> {
    let reader = parquet_reader(path, file)?;
    let fields = reader.schema().fields();
    let there: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let picks = pick(file, wanted, &there)?;
    for (column, at) in wanted.iter().zip(&picks) {
        let Some(field) = at.map(|at| &fields[at]) else {
            continue;
        };
        if let Some(what) = unfit(column.name, field.data_type()) {
            let message = format!(
                "\"{file}\": column \"{}\" is {}, which is no {what}",
                field.name(),
                short(field.data_type())
            );
            let hint = format!("\"columns: {{ {}: NAME }}\" takes another column", column.name);
            return Err(Error::user("wrong-type", message).hint(hint));
        }
    }
    Ok(picks)
}

/// What a Parquet column of this type is not, though the wanted column `name` must be it.
fn unfit(name: &str, kind: &DataType) -> Option<&'static str> {
    let kind = match kind {
        DataType::Dictionary(_, values) => values.as_ref(),
        kind => kind,
    };
    let bytes = matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    let plain = kind.is_numeric() || kind.is_string() || bytes;
    let date = matches!(kind, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64);
    let (fits, what) = match name {
        "user_id" | "item_id" => (plain, "id"),
        "timestamp" => (plain || date || kind.is_null(), "time"),
        "rating" | "price" => (plain || kind.is_null(), "number"),
        _ => match kind {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                (unfit(name, item.data_type()).is_none(), "text")
            }
            DataType::Boolean => (true, "text"),
            _ => (plain || date || kind.is_null(), "text"),
        },
    };
    (!fits).then_some(what)
}

/// A type without the fields that are nested in it.
fn short(kind: &DataType) -> String {
    let text = kind.to_string();
    match text.split_once('(') {
        Some((name, _)) if kind.is_nested() => format!("{name}(..)"),
        _ => text,
    }
}

/// Whether numbers of this type may have fractions.
pub fn fractional(kind: &DataType) -> bool {
    kind.is_floating() || matches!(kind, DataType::Decimal128(_, 1..) | DataType::Decimal256(_, 1..))
}

/// A name in a config, or the number of a column.
pub fn name_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a name or the number of a column")]
    enum Name {
        Number(u64),
        Text(String),
    }
    Ok(match Name::deserialize(deserializer)? {
        Name::Number(number) => number.to_string(),
        Name::Text(text) => text,
    })
}

/// The picked columns of the row group that `block` stands for, batch by batch.
pub fn row_group(
    path: &Path,
    name: &str,
    block: &Block,
    picks: &[Option<usize>],
) -> Result<Vec<Vec<Option<ArrayRef>>>> {
    let damaged = |error: &dyn std::fmt::Display| damaged_parquet(name, error);
    let group = block.bytes().try_into().map(u64::from_le_bytes);
    let group = group.map_err(|_| Error::internal("a block without a row group"))? as usize;
    let reader = parquet_reader(path, name)?;
    let mut roots: Vec<usize> = picks.iter().flatten().copied().collect();
    roots.sort_unstable();
    roots.dedup();
    let mask = ProjectionMask::roots(reader.parquet_schema(), roots.iter().copied());
    let reader = reader
        .with_row_groups(vec![group])
        .with_projection(mask)
        .with_batch_size(CHUNK_ROWS)
        .build()
        .map_err(|error| damaged(&error))?;
    reader
        .map(|batch| {
            let batch = batch.map_err(|error| damaged(&error))?;
            let place = |root: &usize| roots.iter().position(|there| there == root);
            Ok(picks
                .iter()
                .map(|pick| Some(batch.column(place(pick.as_ref()?)?).clone()))
                .collect())
        })
        .collect()
}

fn position(name: &str, there: &[String]) -> Option<usize> {
    let find = |same: &dyn Fn(&str) -> bool| there.iter().position(|column| same(column));
    find(&|column| column == name)
        .or_else(|| find(&|column| plain(column) == name))
        .or_else(|| find(&|column| plain(column).eq_ignore_ascii_case(name)))
}

/// The name without RecBole's type.
fn plain(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Wanted = Wanted {
        name: "user_id",
        given: "",
        aliases: &["user_id", "userId", "user"],
        required: true,
    };

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn names_aliases_and_mappings() {
        assert_eq!(pick("f", &[USER], &names(&["x", "user", "userId"])).unwrap(), [Some(2)]);
        assert_eq!(pick("f", &[USER], &names(&["User_ID:token"])).unwrap(), [Some(0)]);
        let given = Wanted { given: "who", ..USER };
        assert_eq!(pick("f", &[given], &names(&["user_id", "who"])).unwrap(), [Some(1)]);
        let optional = Wanted {
            required: false,
            ..USER
        };
        assert_eq!(pick("f", &[optional], &names(&["x"])).unwrap(), [None]);
    }

    #[test]
    fn types_that_hold_what_is_wanted() {
        use arrow::datatypes::Field;
        let list = |item: DataType| DataType::new_list(item, true);
        let object = DataType::Struct(vec![Field::new("a", DataType::Utf8, true)].into());
        for (name, kind, what) in [
            ("item_id", DataType::Int32, None),
            ("item_id", DataType::Utf8View, None),
            ("item_id", DataType::Float64, None),
            ("item_id", DataType::FixedSizeBinary(4), Some("id")),
            ("user_id", list(DataType::Utf8), Some("id")),
            ("timestamp", DataType::Date32, None),
            ("timestamp", DataType::Null, None),
            ("timestamp", object.clone(), Some("time")),
            ("rating", list(DataType::Float32), Some("number")),
            ("title", DataType::Boolean, None),
            ("title", object.clone(), Some("text")),
            ("categories", list(list(DataType::Utf8)), None),
            ("categories", list(object.clone()), Some("text")),
        ] {
            assert_eq!(unfit(name, &kind), what, "{name} {kind}");
        }
        assert_eq!(short(&object), "Struct(..)");
        assert_eq!(short(&DataType::FixedSizeBinary(4)), "FixedSizeBinary(4)");
    }

    #[test]
    fn a_missing_column_names_those_there() {
        let error = pick("f.csv", &[USER], &names(&["usr_id", "item"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error[missing-column]: \"f.csv\" has no column \"user_id\"\n  it has: usr_id, item\n  hint: did you mean \"usr_id\"? say so: \"columns: { user_id: NAME }\""
        );
    }
}
