//! What people have in their files of interactions: formats, order, malformed rows, positions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::DataType;
use sluice_engine::harness::Harness;
use sluice_engine::operator::OUT;
use sluice_engine::text::render;

use super::*;
use crate::schema::{numbers, strings};
use crate::testdata;

/// Writes a file and ingests it.
struct Case {
    folder: tempfile::TempDir,
    config: IngestInteractions,
}

fn case(file: &str, content: &[u8]) -> Case {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), content).unwrap();
    let config = IngestInteractions {
        path: Paths::One(file.into()),
        ..Default::default()
    };
    Case { folder, config }
}

impl Case {
    fn with(mut self, set: impl FnOnce(&mut IngestInteractions)) -> Self {
        set(&mut self.config);
        self
    }

    fn tables(&self) -> Result<Tables> {
        let harness = Harness {
            data_root: self.folder.path().into(),
            ..Default::default()
        };
        harness.run(&self.config, &[])
    }

    fn out(&self) -> String {
        let batch = self.tables().unwrap().batch(OUT).unwrap();
        // times as milliseconds
        let mut columns = batch.columns().to_vec();
        columns[2] = arrow::compute::cast(&columns[2], &DataType::Int64).unwrap();
        let names = batch
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect::<Vec<_>>();
        render(
            &RecordBatch::try_from_iter_with_nullable(
                names
                    .into_iter()
                    .zip(columns)
                    .map(|(name, column)| (name, column, true)),
            )
            .unwrap(),
        )
        .unwrap()
    }

    fn rejects(&self) -> String {
        render(&self.tables().unwrap().batch(REJECTS).unwrap()).unwrap()
    }

    fn error(&self) -> String {
        self.tables().unwrap_err().to_string()
    }
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

const TWO_ROWS: &str = "\
user_id  item_id  timestamp      rating  position
u1       i1       1318896000000  4.5     2
u2       i2       1318896001000  null    3
";

#[test]
fn csv_in_all_its_clothes() {
    for content in [
        &b"user_id,item_id,timestamp,rating\nu1,i1,1318896000,4.5\nu2,i2,1318896001,\n"[..],
        b"\xEF\xBB\xBFuserId,movieId,rating,timestamp\r\nu1,i1,4.5,1318896000\r\nu2,i2,,1318896001\r\n",
        b"item,user,extra,overall,time\n i1 , u1,\"a, \"\"b\",4.5,1318896000000\n\"i2\",u2,,,2011-10-18T00:00:01Z",
    ] {
        assert_eq!(case("x.csv", content).out(), TWO_ROWS);
        assert_eq!(case("x.csv.gz", &gz(content)).out(), TWO_ROWS);
    }
    let members = [
        gz(b"user,item,time,score\nu1,i1,1318896000,4.5\n"),
        gz(b"u2,i2,1318896001,\n"),
    ]
    .concat();
    assert_eq!(case("x.csv.gz", &members).out(), TWO_ROWS);
}

#[test]
fn columns_delimiters_and_headers() {
    let mapped = case("x.txt", b"who;what;when;how\nu1;i1;1318896000;4.5\nu2;i2;1318896001;\n").with(|config| {
        config.format = Format::Csv;
        config.delimiter = ";".into();
        config.columns = InteractionColumns {
            user_id: "who".into(),
            item_id: "what".into(),
            timestamp: "when".into(),
            rating: "how".into(),
        };
    });
    assert_eq!(mapped.out(), TWO_ROWS);
    let bare = case("x.csv", b"i1,u1,4.5,1318896000\n\ni2,u2,,1318896001\n").with(|config| {
        config.header = false;
        config.columns.user_id = "2".into();
        config.columns.item_id = "1".into();
    });
    let positions_from_1 = TWO_ROWS.replace("4.5     2", "4.5     1");
    assert_eq!(bare.out(), positions_from_1);
}

#[test]
fn a_quote_that_is_never_closed_is_an_error() {
    let mut content = "user_id,item_id,timestamp,note\nu0,a,0,\"x\ny\"\nu,a,1,\"oops\n".to_string();
    for row in 1..200_000 {
        content.push_str(&format!("u{row},a,{row},x\n"));
    }
    let told = "error[open-quote]: a quote is opened and never closed\n  --> x.csv:4\n 4 | u,a,1,\"oops\n  hint: double it (\"\") or set \"quotes: false\"";
    for content in [content.as_str(), &content[..90]] {
        let skipping = case("x.csv", content.as_bytes()).with(|config| config.on_error = OnError::Skip);
        assert_eq!(skipping.error(), told);
    }
    let plain = b"user_id\titem_id\ttimestamp\nu1\t\"i1\t1\nu2\ti2\"\t2\n";
    let out = case("x.tsv", plain).with(|config| config.quotes = false).out();
    assert!(
        out.contains("u1       \"i1 ") && out.contains("u2       i2\" "),
        "{out}"
    );
}

#[test]
fn columns_by_number() {
    let expected = "user_id  item_id  timestamp      rating  position\nu1       a        1318896000000  null    1\n";
    let columns = |columns: serde_json::Value| {
        let config = serde_json::json!({"path": "x.csv", "header": false, "columns": columns});
        case("x.csv", b"u1,a,1318896000\n").with(|old| *old = serde_json::from_value(config).unwrap())
    };
    // the column of times is not the one of ratings as well
    assert_eq!(columns(serde_json::json!({"timestamp": "3"})).out(), expected);
    assert_eq!(columns(serde_json::json!({"timestamp": 3})).out(), expected);
    let error = columns(serde_json::json!({"item_id": 1})).error();
    assert!(error.contains("no column \"user_id\""), "{error}");
    let wrong = serde_json::json!({"columns": {"timestamp": 1.5}});
    let error = serde_json::from_value::<IngestInteractions>(wrong)
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected a name or the number of a column"), "{error}");
}

#[test]
fn a_delimiter_means_csv() {
    for (delimiter, content) in [
        ("|", "user|item|time|score\nu1|i1|1318896000|4.5\nu2|i2|1318896001|\n"),
        (" ", "user item time score\nu1 i1 1318896000 4.5\nu2 i2 1318896001 \n"),
        (";", "user;item;time;score\nu1;i1;1318896000;4.5\nu2;i2;1318896001;\n"),
    ] {
        let case = case("x.txt", content.as_bytes()).with(|config| config.delimiter = delimiter.into());
        assert_eq!(case.out(), TWO_ROWS, "{delimiter}");
    }
}

#[test]
fn json_lines_have_times_in_all_rows_or_in_none() {
    let rows = "{\"user\": \"u1\", \"Item\": \"i1\", \"Timestamp\": 1318896000, \"Rating\": 4.5}\n{\"user\": \"u2\", \"item\": \"i2\", \"time\": 1318896001}\n{\"user\": \"u3\", \"item\": \"i3\"}\n{\"user\": \"u3\", \"item\": \"i3\", \"time\": null}\n";
    let timed = case("x.jsonl", rows.as_bytes()).with(|config| config.on_error = OnError::Skip);
    let first_line = TWO_ROWS
        .replace("null    3", "null    2")
        .replace("4.5     2", "4.5     1");
    assert_eq!(timed.out(), first_line);
    assert_eq!(timed.rejects().matches("no timestamp").count(), 2);
    let untimed = "{\"user\": \"u1\", \"item\": \"i1\"}\n{\"user\": \"u1\", \"item\": \"i2\", \"time\": 1}\n";
    assert_eq!(
        case("x.jsonl", untimed.as_bytes())
            .tables()
            .unwrap()
            .batch(OUT)
            .unwrap()
            .num_rows(),
        2
    );
    // the first line may lack what a later one has; what no line has is missing
    let named = |time: &str| case("x.jsonl", untimed.as_bytes()).with(|config| config.columns.timestamp = time.into());
    assert!(named("time").error().contains("malformed row: no time"));
    let error = named("whne").error();
    assert!(
        error.starts_with("error[missing-column]: \"x.jsonl\" has no column \"whne\"\n  it has: item, time, user"),
        "{error}"
    );
}

#[test]
fn ids_are_texts_and_whole_numbers() {
    let rows = "{\"user\": 1, \"item\": 2.0}\n{\"user\": 1, \"item\": 2.5}\n{\"user\": true, \"item\": 2}\n";
    let case = case("x.jsonl", rows.as_bytes()).with(|config| config.on_error = OnError::Skip);
    assert_eq!(
        case.out(),
        "user_id  item_id  timestamp  rating  position\n1        2        null       null    1\n"
    );
    let rejects = case.rejects();
    for reason in [
        "item_id is 2.5: an id is a text or a whole number",
        "user_id is a list, an object or a boolean: an id",
    ] {
        assert!(rejects.contains(reason), "{rejects}");
    }
}

#[test]
fn formats_of_the_field_are_told_by_their_first_line() {
    let first_line = TWO_ROWS
        .replace("null    3", "null    2")
        .replace("4.5     2", "4.5     1");
    for content in [
        "{\"reviewerID\": \"u1\", \"asin\": \"i1\", \"overall\": 4.5, \"style\": {\"a\": [1]}, \"unixReviewTime\": 1318896000}\n{\"asin\": \"i2\", \"reviewerID\": \"u2\", \"unixReviewTime\": 1318896001}\n",
        "{'reviewerID': 'u1', 'asin': 'i1', 'reviewText': \"It's\", 'overall': 4.5, 'unixReviewTime': 1318896000}\n{'reviewerID': 'u2', 'asin': 'i2', 'overall': None, 'unixReviewTime': 1318896001}\n",
        "{\"user_id\": \"u1\", \"asin\": \"x\", \"parent_asin\": \"i1\", \"rating\": 4.5, \"timestamp\": 1318896000000}\n{\"user_id\": \"u2\", \"asin\": \"x\", \"parent_asin\": \"i2\", \"rating\": null, \"timestamp\": 1318896001000}\n",
        "{\"user\": \"u1\", \"item\": \"i1\", \"score\": 4.5, \"time\": \"2011-10-18\"}\n{\"user\": \"u2\", \"item\": \"i2\", \"time\": 1318896001.0}\n",
    ] {
        assert_eq!(case("x.json", content.as_bytes()).out(), first_line);
    }
    let recbole = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t4.5\t1318896000.0\nu2\ti2\t\t1.318896001e9\n";
    assert_eq!(case("x.inter", recbole.as_bytes()).out(), TWO_ROWS);
    for movielens in [
        "1\t2\t3\t881250949\n4\t5\t6\t881250950\n",
        "1::2::3::881250949\n4::5::6::881250950\n",
    ] {
        assert_eq!(
            case("u.data", movielens.as_bytes()).out(),
            "user_id  item_id  timestamp     rating  position\n1        2        881250949000  3.0     1\n4        5        881250950000  6.0     2\n"
        );
    }
    let sequences = case("x.txt", b"7\ti1\ti2\n8\ti1\n").with(|config| config.format = Format::Sequences);
    assert!(sequences.out().contains("7        i2 "));
    for sequences in [
        "7 i1 i2\n8 i1\n",
        "{\"7\": [\"i1\", \"i2\"], \"8\": [\"i1\"]}",
        "{\n\"7\": [\n\"i1\",\"i2\"],\n\"8\": [\"i1\"]\n}\n",
    ] {
        assert_eq!(
            case("x.txt", sequences.as_bytes()).out(),
            "user_id  item_id  timestamp  rating  position\n7        i1       null       null    65537\n7        i2       null       null    65538\n8        i1       null       null    131073\n"
        );
    }
}

#[test]
fn variants_of_amazon_2023_by_asin() {
    let rows = "{\"user_id\": \"u1\", \"asin\": \"x\", \"parent_asin\": \"i1\", \"rating\": 5, \"timestamp\": 1318896000000}\n";
    let case = case("x.jsonl", rows.as_bytes()).with(|config| config.columns.item_id = "asin".into());
    assert!(case.out().contains("u1       x "));
}

#[test]
fn parquet_by_columns() {
    use arrow::array::{Int64Array, StringArray};
    let folder = tempfile::tempdir().unwrap();
    let batch = RecordBatch::try_from_iter([
        (
            "userId",
            Arc::new(Int64Array::from(vec![Some(1), Some(2), None])) as arrow::array::ArrayRef,
        ),
        ("extra", Arc::new(Int64Array::from(vec![0, 0, 0]))),
        ("item_id", Arc::new(StringArray::from(vec!["i1", "i2", "i3"]))),
        (
            "timestamp",
            Arc::new(Int64Array::from(vec![1318896000, 1318896001000, 1])),
        ),
    ])
    .unwrap();
    let file = std::fs::File::create(folder.path().join("x.parquet")).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(2))
        .build();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let config = IngestInteractions {
        path: Paths::One("x.parquet".into()),
        on_error: OnError::Skip,
        ..Default::default()
    };
    let case = Case { folder, config };
    assert_eq!(
        case.out(),
        "user_id  item_id  timestamp      rating  position\n1        i1       1318896000000  null    1\n2        i2       1318896001000  null    2\n"
    );
    assert_eq!(
        case.rejects(),
        "file       line  reason      text\nx.parquet  3     no user_id  user_id , item_id i3\n"
    );
}

/// Writes a Parquet file of one batch.
fn parquet(columns: Vec<(&str, arrow::array::ArrayRef)>) -> Case {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let case = case("x.parquet", b"");
    let file = std::fs::File::create(case.folder.path().join("x.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    case.with(|config| config.on_error = OnError::Skip)
}

#[test]
fn parquet_ids_of_other_types() {
    use arrow::array::{ArrayRef, Float64Array, StringArray, StructArray};
    let users = Arc::new(StringArray::from(vec!["u"; 4])) as ArrayRef;
    let floats = Arc::new(Float64Array::from(vec![Some(10.0), Some(1.5), None, Some(f64::NAN)])) as ArrayRef;
    let case = parquet(vec![("user_id", users.clone()), ("item_id", floats)]);
    assert_eq!(
        case.out(),
        "user_id  item_id  timestamp  rating  position\nu        10       null       null    1\n"
    );
    assert_eq!(
        case.rejects(),
        "file       line  reason                     text\n\
         x.parquet  2     id 1.5 is no whole number  user_id u, item_id 1.5\n\
         x.parquet  3     no item_id                 user_id u, item_id\n\
         x.parquet  4     no item_id                 user_id u, item_id\n"
    );
    let field = arrow::datatypes::Field::new("a", DataType::Utf8, false);
    let nested = Arc::new(StructArray::from(vec![(Arc::new(field), users.clone())])) as ArrayRef;
    let error = parquet(vec![("user_id", users), ("item_id", nested)]).error();
    assert_eq!(
        error,
        "error[wrong-type]: \"x.parquet\": column \"item_id\" is Struct(..), which is no id\n  hint: \"columns: { item_id: NAME }\" takes another column"
    );
}

#[test]
fn several_files_keep_their_order() {
    let case = case("a.csv", b"user,item\nu1,i1\n");
    std::fs::write(case.folder.path().join("b.csv"), "item,user\ni2,u2\n").unwrap();
    let case = case.with(|config| config.path = Paths::Many(vec!["a.csv".into(), "b.csv".into()]));
    assert_eq!(
        case.out(),
        "user_id  item_id  timestamp  rating  position\nu1       i1       null       null    2\nu2       i2       null       null    1099511627778\n"
    );
}

const BAD_ROWS: &[u8] = b"user_id,item_id,timestamp,rating\nu1,i1,1318896000,4.5\nu2,i2,yesterday,1\n,i2,1,1\nu,,1,1\nu,i,1\nu,i,1,NaN\n\xFF,i,1,1\nu2,i2,1318896001,\n";

#[test]
fn malformed_rows_fail_at_once() {
    assert_eq!(
        case("x.csv", BAD_ROWS).error(),
        "error[malformed-row]: malformed row: bad timestamp \"yesterday\"\n  --> x.csv:3\n 3 | u2,i2,yesterday,1\n  hint: \"on_error: skip\" puts such rows aside at the port \"rejects\", up to \"max_errors\" of them"
    );
}

#[test]
fn malformed_rows_are_put_aside_and_counted() {
    let skipping = case("x.csv", BAD_ROWS).with(|config| config.on_error = OnError::Skip);
    assert_eq!(skipping.out(), TWO_ROWS.replace("null    3", "null    9"));
    assert_eq!(
        skipping.rejects(),
        "file   line  reason                        text
x.csv  3     bad timestamp \"yesterday\"     u2,i2,yesterday,1
x.csv  4     no user_id                    ,i2,1,1
x.csv  5     no item_id                    u,,1,1
x.csv  6     3 cells where 4 are expected  u,i,1
x.csv  7     bad rating \"NaN\"              u,i,1,NaN
x.csv  8     not UTF-8                     \u{FFFD},i,1,1
"
    );
    let error = skipping.with(|config| config.max_errors = 5).error();
    assert!(error.starts_with("error[too-many-rejects]: 6 rows are malformed, more than \"max_errors\" allows (5)\n  x.csv:3: bad timestamp"), "{error}");
}

#[test]
fn amazon_rows_without_what_they_need() {
    let rows = b"{\"reviewerID\": \"u\", \"asin\": \"i\", \"unixReviewTime\": 1}\n{\"asin\": \"i\", \"unixReviewTime\": 1}\n{\"reviewerID\": \"u\", \"asin\": \"i\"}\n{\"reviewerID\": \"u\", \"asin\"\n{\"reviewerID\": \"u\", \"asin\": \"i\", \"unixReviewTime\": 1, \"overall\": NaN}\n";
    let case = case("x.json", rows).with(|config| config.on_error = OnError::Skip);
    let rejects = case.rejects();
    for reason in [
        "2     no reviewerID",
        "3     no unixReviewTime",
        "4     bad JSON: EOF while parsing an object at character 26",
        "5     bad rating \"NaN\"",
    ] {
        assert!(rejects.contains(reason), "{rejects}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    assert!(
        case("x.csv", b"")
            .error()
            .starts_with("error[empty-file]: \"x.csv\" is empty")
    );
    assert!(case("x.csv.gz", &gz(b"")).error().starts_with("error[empty-file]"));
    assert!(case("x.csv", b"PK\x03\x04").error().contains("is a zip archive"));
    assert!(case("x.csv", b"usr_id,item_id\n1,2\n").with(|config| config.format = Format::Csv).error().starts_with(
        "error[missing-column]: \"x.csv\" has no column \"user_id\"\n  it has: usr_id, item_id\n  hint: did you mean"
    ));
    let bare = case("x.csv", b"u1,a,5\n")
        .with(|config| config.format = Format::Csv)
        .error();
    assert!(
        bare.ends_with(", or set \"header: false\" if the first line is a row"),
        "{bare}"
    );
    for (content, told) in [
        (
            "[{\"user_id\": \"u\", \"item_id\": \"a\"}]",
            "\"x.csv\" is a JSON array\n  hint: write one object a line",
        ),
        (
            "{\n \"user_id\": \"u\",\n \"item_id\": \"a\"\n}",
            "entry 1, \"user_id\": its value is no list of items; JSON over several lines is not read",
        ),
        (
            "{\"user\": {\"id\": \"u\"}, \"item\": {\"id\": \"a\"}}\n",
            "entry 1, \"user\": its value is no list of items",
        ),
    ] {
        let error = case("x.csv", content.as_bytes()).error();
        assert!(error.contains(told), "{error}");
    }
    let unknown = case("x.csv", b"usr_id,item_id\n1,2\n").error();
    assert!(
        unknown
            .starts_with("error[wrong-format]: cannot tell the format of \"x.csv\" by its first line: usr_id,item_id"),
        "{unknown}"
    );
    for format in [Format::Amazon2018, Format::Sequences, Format::Lcrec, Format::Parquet] {
        let error = case("x.csv", b"user_id,item_id\n1,2\n")
            .with(|config| config.format = format)
            .error();
        assert!(error.starts_with("error[wrong-format]: \"x.csv\" is not"), "{error}");
    }
    let missing = case("x.csv", b"")
        .with(|config| config.path = Paths::Many(vec!["y.csv".into(), "z.csv".into()]))
        .error();
    assert!(missing.contains("y.csv") && missing.contains("z.csv"), "{missing}");
    assert!(
        case("x.csv", b"user,item,time\nu,i,1\n")
            .with(|config| config.columns.rating = "stars".into())
            .error()
            .contains("no column \"stars\"")
    );
}

#[test]
fn a_truncated_gzip_says_how_far_it_was_good() {
    let mut content = b"user_id,item_id\n".to_vec();
    for row in 0..200_000u64 {
        content.extend(format!("{},{}\n", row.wrapping_mul(0x9E37_79B9_7F4A_7C15), row).as_bytes());
    }
    let whole = gz(&content);
    let error = case("x.csv.gz", &whole[..whole.len() / 2]).tables().unwrap_err();
    assert_eq!(error.code, "truncated-file");
    let lines: u64 = error.detail[0].rsplit(' ').next().unwrap().parse().unwrap();
    assert!((50_000..150_000).contains(&lines), "{error}");
    let damaged = case("x.csv.gz", &[&whole[..], b"trailing bytes that are no gzip"].concat())
        .tables()
        .unwrap_err();
    assert_eq!(damaged.code, "damaged-file", "{damaged}");
}

#[test]
fn quoted_cells_may_cross_blocks_and_lines() {
    let mut content = b"user,item,note\n".to_vec();
    let rows = 60_000;
    for row in 0..rows {
        content.extend(
            format!("u{row},i{row},\"a, \"\"long\"\" note\nof two lines that takes some room {row}\"\n").as_bytes(),
        );
    }
    assert!(content.len() > files::BLOCK_BYTES * 2);
    let batch = case("x.csv", &content).tables().unwrap().batch(OUT).unwrap();
    assert_eq!(batch.num_rows(), rows);
    let positions = numbers::<arrow::datatypes::UInt64Type>(&batch, schema::POSITION).unwrap();
    assert!(
        positions
            .values()
            .iter()
            .zip(0u64..)
            .all(|(position, row)| *position == 2 + 2 * row)
    );
}

#[test]
fn damaged_parquet_is_refused() {
    let error = case("x.parquet", b"PAR1 and then nothing").tables().unwrap_err();
    assert_eq!(error.code, "damaged-file", "{error}");
}

#[test]
fn the_registry_knows_what_must_be_given() {
    let registry = crate::registry();
    for operator in ["ingest_interactions", "ingest_items", "import_semantic_ids"] {
        let entry = registry.get(operator).unwrap();
        let path = entry.fields.iter().find(|field| field.name == "path").unwrap();
        assert_eq!((&path.default, path.resource), (&None, false), "{operator}");
        for field in &entry.fields {
            assert!(!field.about.is_empty(), "{operator}.{}", field.name);
        }
        for heading in ["# In", "# Out", "# Source", "# Deviates"] {
            assert!(entry.about.contains(heading), "{operator} {heading}");
        }
    }
    let config =
        serde_json::json!({"path": ["a", "b"], "format": "amazon_2014", "on_error": "skip", "timestamp_unit": "ms"});
    let config: IngestInteractions = serde_json::from_value(config).unwrap();
    assert_eq!(
        (config.path.names(), config.format),
        (vec!["a", "b"], Format::Amazon2014)
    );
}

/// The facts of a real file: rows, users, items.
fn facts(path: &str) -> Option<(usize, usize, usize, RecordBatch)> {
    let harness = testdata::harness()?;
    let config = IngestInteractions {
        path: Paths::One(path.into()),
        ..Default::default()
    };
    let batch = harness.run(&config, &[]).unwrap().batch(OUT).unwrap();
    let distinct = |name: &str| strings(&batch, name).unwrap().iter().collect::<BTreeSet<_>>().len();
    let positions = numbers::<arrow::datatypes::UInt64Type>(&batch, schema::POSITION).unwrap();
    assert!(positions.values().is_sorted());
    Some((batch.num_rows(), distinct("user_id"), distinct("item_id"), batch))
}

#[test]
fn real_files_have_the_published_counts() {
    for (path, rows, users, items) in [
        ("amazon2014-beauty/interactions.tsv.gz", 198_502, 22_363, 12_101),
        ("amazon2018-raw-reviews/Gift_Cards_5.jsonl.gz", 2_972, 458, 148),
        ("amazon2018-raw-reviews/All_Beauty_5.jsonl.gz", 5_269, 991, 85),
        ("ml-latest-small/ratings.csv.gz", 100_836, 610, 9_724),
    ] {
        let Some(found) = facts(path) else { return };
        assert_eq!((found.0, found.1, found.2), (rows, users, items), "{path}");
        assert_eq!(found.3.column(2).null_count(), 0, "{path}");
    }
    let quoted = facts("minionerec-office/valid.Office_Products.csv.gz").unwrap();
    assert_eq!(quoted.0, 4_866);
}

#[test]
fn one_data_set_in_three_formats_gives_the_same_sequences() {
    let sequences = |path: &str, shift: u64| {
        facts(path).map(|(_, _, _, batch)| {
            let mut sequences: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let users = strings(&batch, "user_id").unwrap();
            for (user, item) in users.iter().zip(strings(&batch, "item_id").unwrap()) {
                let id = |text: Option<&str>| text.unwrap().parse::<u64>().unwrap() + shift;
                sequences.entry(id(user)).or_default().push(id(item));
            }
            sequences
        })
    };
    let Some(table) = sequences("amazon2014-beauty/interactions.tsv.gz", 0) else {
        return;
    };
    assert_eq!(
        sequences("amazon2014-beauty/original_format_s3rec/Beauty.txt.gz", 0).unwrap(),
        table
    );
    assert_eq!(
        sequences("amazon2014-beauty/original_format_letter/Beauty.inter.json.gz", 1).unwrap(),
        table
    );
}
