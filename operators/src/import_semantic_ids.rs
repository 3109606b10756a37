//! `import_semantic_ids`: semantic ids that someone else published.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{FixedSizeListArray, RecordBatch, StringArray, UInt16Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_engine::operator::{Binding, Bound, Context, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::formats::json::{self, Scalar};
use crate::formats::sniff::{Sniffed, sniff};
use crate::formats::{files, numpy, rows};
use crate::schema;

/// Reads semantic ids from a file.
///
/// # In
/// A file, plain or gzip, by format:
/// - `index_json`: one JSON object `{"0": ["<a_183>", "<b_70>", ...]}` (LETTER, LC-Rec, MiniOneRec); codes may also be plain numbers;
/// - `jsonl`: JSON lines with an item (`item_id`, else `asin`) and its codes (`sid`, `semantic_id` or `codes`);
/// - `npy`: a NumPy array of integers, a row for each item; the first row is item `first_item_id`.
///
/// `auto` tells by the content. All of the file is read when the pipeline is checked, because its levels and sizes are part of the schema.
///
/// # Out
/// `item_id, semantic_id`, a row for each item in order of the file.
///
/// # Source
/// LETTER and LC-Rec (index files), GRID and its kin (arrays with a last level that tells colliding items apart).
///
/// # Deviates
/// Files do not say how large their codebooks are. Without `codebook_size` all levels (but a collision code) get the smallest power of
/// two that holds every code, at least 2.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImportSemanticIds {
    /// The file.
    #[schemars(extend("x-required" = true))]
    pub path: String,
    /// Format of the file; `auto` tells it by its content.
    pub format: SemanticIdsFormat,
    /// Whether the last level is a collision code and not one of a codebook.
    pub collision_code: bool,
    /// Number of codes of every codebook; null finds it.
    pub codebook_size: Option<u32>,
    /// Item of the first row of an array.
    pub first_item_id: u64,
}

/// What a file of semantic ids is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SemanticIdsFormat {
    #[default]
    Auto,
    IndexJson,
    Jsonl,
    Npy,
}

use SemanticIdsFormat as Format;

impl Default for ImportSemanticIds {
    fn default() -> Self {
        ImportSemanticIds {
            path: String::new(),
            format: Format::Auto,
            collision_code: false,
            codebook_size: None,
            first_item_id: 1,
        }
    }
}

impl Operator for ImportSemanticIds {
    const NAME: &'static str = "import_semantic_ids";
    const VERSION: u32 = 1;

    fn bind(&self, binding: &Binding) -> Bound {
        let path = binding.existing("path", &self.path);
        if self.codebook_size.is_some_and(|size| size == 0 || size > 1 << 16) {
            binding.bad_value("codebook_size", "\"codebook_size\" is not in 1..=65536");
        }
        let bound = Bound::whole();
        if !path.is_file() {
            if path.is_dir() && !self.path.is_empty() {
                binding.bad_value("path", format!("\"{}\" is a folder", self.path));
            }
            return bound.out(Shape::Unknown);
        }
        let shape = match self.read(&path) {
            Ok(ids) => Shape::table(self.fields(&ids)),
            Err(error) => {
                binding.problem("path", error);
                Shape::Unknown
            }
        };
        bound.out(shape).files([path])
    }

    fn run(&self, context: &Context, _inputs: Tables) -> Result<Tables> {
        let ids = self.read(&context.path(&self.path))?;
        let codes = UInt16Array::from_iter_values(ids.codes.iter().copied());
        let field = Arc::new(Field::new_list_field(DataType::UInt16, false));
        let lists = FixedSizeListArray::try_new(field, ids.levels as i32, Arc::new(codes), None)?;
        Ok(Tables::out(RecordBatch::try_new(
            Arc::new(Schema::new(self.fields(&ids))),
            vec![Arc::new(StringArray::from(ids.items)), Arc::new(lists)],
        )?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let batch = outputs.batch(OUT)?;
        let (codes, levels) = schema::semantic_id_codes(&batch)?;
        let distinct: HashSet<&[u16]> = codes.chunks_exact(levels).collect();
        let mut notes = Notes::new();
        notes.insert("items".into(), batch.num_rows().into());
        notes.insert("distinct".into(), distinct.len().into());
        Ok(notes)
    }
}

/// Items and their codes, row-major.
struct Ids {
    items: Vec<String>,
    codes: Vec<u16>,
    levels: usize,
}

impl ImportSemanticIds {
    fn fields(&self, ids: &Ids) -> Vec<Field> {
        let levels = ids.levels - usize::from(self.collision_code);
        let largest = ids
            .codes
            .chunks_exact(ids.levels)
            .flat_map(|codes| &codes[..levels])
            .max();
        let needed = largest
            .map_or(1, |code| usize::from(*code) + 1)
            .next_power_of_two()
            .max(2);
        let size = self.codebook_size.map_or(needed, |size| size as usize);
        schema::semantic_ids(&vec![size; levels], self.collision_code)
    }

    fn read(&self, path: &Path) -> Result<Ids> {
        let name = self.path.as_str();
        let head = files::head(path, name)?;
        let npy = head.starts_with(b"\x93NUMPY");
        let format = match (self.format, sniff(&head)) {
            (Format::Auto, _) if npy => Format::Npy,
            (Format::Auto, Sniffed::Object) => Format::IndexJson,
            (Format::Auto, Sniffed::Lines(..)) => Format::Jsonl,
            (Format::Auto, _) => {
                return Err(Error::data(
                    "wrong-format",
                    format!("\"{name}\" is no index JSON, JSON lines or .npy array of semantic ids"),
                ));
            }
            (format, _) => format,
        };
        let bytes = files::whole(path, name)?;
        let mut reader = Reader::new(self, name);
        match format {
            Format::Npy => {
                let header = numpy::header(name, &bytes)?;
                let values = numpy::integers(name, &header, &bytes)?;
                for (row, codes) in (0..header.rows as u64).zip(values.chunks_exact(header.columns.max(1))) {
                    let codes = codes.iter().map(|code| Ok(*code)).collect();
                    reader.add(&(self.first_item_id + row).to_string(), codes, None)?;
                }
            }
            Format::IndexJson => {
                let text = utf8(name, &bytes)?;
                json::entries(text, &mut |_, item, value| reader.add(item, codes_of(&value), None))?;
            }
            _ => {
                let names = [["item_id", "asin", ""], ["sid", "semantic_id", "codes"]];
                let names = names.map(|names| names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
                rows::lines(utf8(name, &bytes)?.as_bytes(), 1, |line, text| {
                    let wrong = |reason: String| {
                        Error::data("malformed-row", format!("malformed row: {reason}")).at_line(name, line)
                    };
                    let mut fields = text
                        .and_then(|text| json::fields::<Value>(text, &names))
                        .map_err(wrong)?;
                    let codes = fields.pop().flatten();
                    let codes = codes.ok_or_else(|| wrong("no sid, semantic_id or codes".into()))?;
                    let item = fields.pop().flatten().map(Scalar::from);
                    let item = item
                        .as_ref()
                        .and_then(Scalar::id)
                        .ok_or_else(|| wrong("no item_id".into()))?;
                    reader.add(&item, codes_of(&codes), Some(line))
                })?;
            }
        }
        if reader.ids.items.is_empty() {
            return Err(Error::data("empty-file", format!("\"{name}\" holds no semantic ids")));
        }
        Ok(reader.ids)
    }
}

fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| Error::data("wrong-format", format!("\"{name}\" is not UTF-8")))
}

/// The codes of a JSON list: numbers, or tokens such as `<a_183>`; what is no code as it is written.
fn codes_of(value: &Value) -> Vec<Result<i64, String>> {
    let Value::Array(codes) = value else {
        return vec![Err(value.to_string())];
    };
    let code = |code: &Value| {
        let number = match code {
            Value::String(token) => {
                let inner = token.strip_prefix('<').and_then(|token| token.strip_suffix('>'));
                inner.and_then(|token| token.rsplit_once('_')?.1.parse().ok())
            }
            code => code.as_i64(),
        };
        number.ok_or_else(|| code.to_string())
    };
    codes.iter().map(code).collect()
}

/// Checks ids as they come.
struct Reader<'a> {
    config: &'a ImportSemanticIds,
    name: &'a str,
    seen: HashSet<String>,
    ids: Ids,
}

impl<'a> Reader<'a> {
    fn new(config: &'a ImportSemanticIds, name: &'a str) -> Self {
        Reader {
            config,
            name,
            seen: HashSet::new(),
            ids: Ids {
                items: Vec::new(),
                codes: Vec::new(),
                levels: 0,
            },
        }
    }

    fn add(&mut self, item: &str, codes: Vec<Result<i64, String>>, line: Option<u64>) -> Result<()> {
        let wrong = |what: String| {
            let error = Error::data(
                "bad-semantic-id",
                format!("item \"{item}\" of \"{}\" {what}", self.name),
            );
            match line {
                Some(line) => error.at_line(self.name, line),
                None => error,
            }
        };
        if self.ids.levels == 0 {
            let least = 1 + usize::from(self.config.collision_code);
            if codes.len() < least {
                return Err(wrong(format!(
                    "has {} levels where at least {least} are expected",
                    codes.len()
                )));
            }
            self.ids.levels = codes.len();
        }
        let levels = self.ids.levels;
        let codebooks = levels - usize::from(self.config.collision_code);
        if let [Err(text)] = codes.as_slice()
            && levels != 1
        {
            return Err(wrong(format!("has {text} where a list of codes is expected")));
        }
        if codes.len() != levels {
            return Err(wrong(format!(
                "has {} levels, those before it have {levels}",
                codes.len()
            )));
        }
        for (level, code) in codes.into_iter().enumerate() {
            let place = format!("at level {}", level + 1);
            let code = code.map_err(|text| wrong(format!("has {text} {place}, which is no code")))?;
            let limit = match self.config.codebook_size {
                Some(size) if level < codebooks => i64::from(size),
                _ => 1 << 16,
            };
            if !(0..limit).contains(&code) {
                return Err(wrong(format!(
                    "has the code {code} {place}, which is not in 0..{limit}"
                )));
            }
            self.ids.codes.push(code as u16);
        }
        if !self.seen.insert(item.to_string()) {
            return Err(wrong("comes twice".to_string()));
        }
        self.ids.items.push(item.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use sluice_engine::harness::Harness;
    use sluice_engine::text::render;

    fn import(content: &str, set: impl FnOnce(&mut ImportSemanticIds)) -> Result<RecordBatch> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), content).unwrap();
        let harness = Harness {
            data_root: folder.path().into(),
            ..Default::default()
        };
        let mut config = ImportSemanticIds {
            path: "x".into(),
            ..Default::default()
        };
        set(&mut config);
        harness.run(&config, &[])?.batch(OUT)
    }

    #[test]
    fn index_json_and_json_lines() {
        let expected = "item_id  semantic_id\n7        [183, 0]\n8        [1, 70]\n";
        for content in [
            "{\"7\": [\"<a_183>\", \"<b_0>\"], \"8\": [\"<a_1>\", \"<b_70>\"]}",
            "{\"item_id\": 7, \"asin\": \"x\", \"sid\": [183, 0]}\n{\"item_id\": 8, \"sid\": [1, 70]}\n",
        ] {
            let batch = import(content, |_| {}).unwrap();
            assert_eq!(render(&batch).unwrap(), expected);
            assert_eq!(batch.schema().field(1).metadata()[schema::CODEBOOK_SIZES], "256,256");
        }
        let batch = import("{\"7\": [3, 900]}", |config| {
            config.collision_code = true;
            config.codebook_size = Some(5);
        })
        .unwrap();
        let metadata = batch.schema().field(1).metadata().clone();
        assert_eq!(metadata[schema::CODEBOOK_SIZES], "5");
        assert_eq!(metadata[schema::COLLISION_CODE], "true");
    }

    #[test]
    fn bad_ids_are_named() {
        let message = |content: &str| {
            import(content, |config| config.codebook_size = Some(256))
                .unwrap_err()
                .message
        };
        for (content, expected) in [
            (
                "{\"7\": [1, -2]}",
                "item \"7\" of \"x\" has the code -2 at level 2, which is not in 0..256",
            ),
            (
                "{\"7\": [\"<a_256>\"]}",
                "item \"7\" of \"x\" has the code 256 at level 1, which is not in 0..256",
            ),
            (
                "{\"7\": [1, 2], \"8\": [1]}",
                "item \"8\" of \"x\" has 1 levels, those before it have 2",
            ),
            ("{\"7\": [1], \"7\": [2]}", "item \"7\" of \"x\" comes twice"),
            (
                "{\"7\": [\"b\"]}",
                "item \"7\" of \"x\" has \"b\" at level 1, which is no code",
            ),
            (
                "{\"7\": []}",
                "item \"7\" of \"x\" has 0 levels where at least 1 are expected",
            ),
            (
                "1,2\n",
                "\"x\" is no index JSON, JSON lines or .npy array of semantic ids",
            ),
        ] {
            assert_eq!(message(content), expected);
        }
        let error = import(
            "{\"item_id\": 1, \"sid\": [1]}\n{\"item_id\": 1, \"sid\": [2]}\n",
            |_| {},
        )
        .unwrap_err();
        assert_eq!(error.place.unwrap().line, 2);
        assert_eq!(import("{\"7\": [70000]}", |_| {}).unwrap_err().code, "bad-semantic-id");
        assert_eq!(import("", |_| {}).unwrap_err().code, "empty-file");
    }

    #[test]
    fn published_ids() {
        let Some(harness) = testdata::harness() else { return };
        let import = |path: &str, collision_code: bool| {
            let config = ImportSemanticIds {
                path: path.into(),
                collision_code,
                ..Default::default()
            };
            let batch = harness.run(&config, &[]).unwrap().batch(OUT).unwrap();
            let (codes, levels) = schema::semantic_id_codes(&batch).unwrap();
            let distinct = codes.chunks_exact(levels).collect::<HashSet<_>>().len();
            let sizes = batch.schema().field(1).metadata()[schema::CODEBOOK_SIZES].clone();
            ((batch.num_rows(), levels, distinct), sizes, codes.to_vec())
        };
        let (facts, sizes, letter) = import("amazon2014-beauty/letter_sids.jsonl.gz", false);
        assert_eq!((facts, sizes.as_str()), ((12_101, 4, 12_088), "256,256,256,256"));
        let (_, _, index) = import("amazon2014-beauty/original_format_letter/Beauty.index.json.gz", false);
        assert_eq!(letter, index);
        let (facts, sizes, _) = import("minionerec-office/Office_Products.index.json.gz", false);
        assert_eq!((facts, sizes.as_str()), ((3_459, 3, 3_444), "256,256,256"));
        let (facts, sizes, _) = import("amazon2014-beauty/unigenrec_text_rqkmeans_sid.i16.npy", true);
        assert_eq!((facts, sizes.as_str()), ((12_101, 5, 12_101), "256,256,256,256"));
    }
}
