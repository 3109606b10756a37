//! What people have in their files of items: formats, text, prices, duplicates, malformed rows.

use sluice_engine::harness::Harness;
use sluice_engine::text::render;

use super::*;
use crate::schema::strings;
use crate::testdata;

fn tables(config: &IngestItems, content: &[u8]) -> Result<Tables> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), content).unwrap();
    let harness = Harness {
        data_root: folder.path().into(),
        ..Default::default()
    };
    let path = Paths::One("x".into());
    harness.run(&IngestItems { path, ..config.clone() }, &[])
}

/// Items without their text, or with nothing else.
fn out(config: &IngestItems, content: &[u8], text: bool) -> String {
    let batch = tables(config, content).unwrap().batch(OUT).unwrap();
    let columns: &[usize] = if text { &[6] } else { &[0, 1, 2, 3, 4, 5, 7] };
    render(&batch.project(columns).unwrap()).unwrap()
}

#[test]
fn amazon_metadata_of_three_years() {
    let config = IngestItems::default();
    let year_2014 = br#"{'asin': '0001', 'title': "Men's &amp; more", 'price': 7.5, 'categories': [['A', "B's"], ['A', 'C']], 'brand': 'X', 'description': 'd'}
{'asin': '0002', 'salesRank': {'Toys': 1}, 'imUrl': 'u', 'brand': ''}
"#;
    assert_eq!(
        out(&config, year_2014, false),
        "item_id  title         brand  categories   price  description  position\n\
         0001     Men's & more  X      [A, B's, C]  7.5    d            1\n\
         0002     null          null   null         null   null         2\n"
    );
    assert_eq!(
        out(&config, year_2014, true),
        "text\n\
         Title: Men's & more; Brand: X; Categories: ['A', \"B's\", 'C']; Price: 7.5;\n\
         Title: nan; Brand: Unknown; Categories: []; Price: nan;\n"
    );
    let year_2018 = br#"{"asin": "1", "category": ["A", "A", "B"], "description": ["d", "e"], "price": "$1,299.99", "title": "t", "brand": "X", "also_buy": ["q"]}
{"asin": "2", "category": [], "description": [], "price": ".a-box-inner{}", "title": "", "brand": ""}
"#;
    assert_eq!(
        out(&config, year_2018, false),
        "item_id  title  brand  categories  price    description  position\n\
         1        t      X      [A, B]      1299.99  d e          1\n\
         2        null   null   null        null     null         2\n"
    );
    let year_2023 = "{\"parent_asin\": \"1\", \"asin\": \"v\", \"title\": \"t\", \"price\": 3.5, \"categories\": [\"A\"], \"details\": {\"Brand\": \"X\"}, \"store\": \"S\", \"description\": []}\n{\"parent_asin\": \"2\", \"price\": \"\u{2014}\", \"details\": \"{\\\"UPC\\\": 1}\", \"store\": \"S\"}\n{\"parent_asin\": \"3\", \"price\": \"None\", \"store\": null}\n";
    assert_eq!(
        out(&config, year_2023.as_bytes(), false),
        "item_id  title  brand  categories  price  description  position\n\
         1        t      X      [A]         3.5    null         1\n\
         2        null   S      null        null   null         2\n\
         3        null   null   null        null   null         3\n"
    );
}

#[test]
fn movielens_recbole_and_lcrec() {
    let config = IngestItems::default();
    let movies = "item_id  title                   brand  categories       price  description  position\n";
    let row = "1        Mis\u{e9}rables, Les (1995)  null   [Drama, Action]  null   null         ";
    for (content, line) in [
        ("movieId,title,genres\n1,\"Mis\u{e9}rables, Les (1995)\",Drama|Action\n".as_bytes().to_vec(), 2),
        (b"1::Mis\xE9rables, Les (1995)::Drama|Action\n".to_vec(), 1),
        ("item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tMis\u{e9}rables, Les (1995)\tDrama Action\n".as_bytes().to_vec(), 2),
        ("{\"1\": {\"title\": \"Mis\u{e9}rables, Les (1995)\", \"categories\": \"Drama,Action\", \"brand\": \"\", \"description\": \"[]\"}}".as_bytes().to_vec(), 1),
    ] {
        assert_eq!(out(&config, &content, false), format!("{movies}{row}{line}\n"));
    }
    let u_item = b"7|Caf\xE9 (1995)|01-Jan-1995||http://x|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0\n";
    assert!(out(&config, u_item, false).contains("7        Caf\u{e9} (1995)  null   [Action, Thriller]"));
}

#[test]
fn duplicates_by_rule() {
    let rows = b"{\"item_id\": 1, \"title\": \"a\"}\n{\"item_id\": 1, \"title\": \"b\"}\n{\"title\": \"c\"}\n";
    let config = IngestItems {
        on_error: OnError::Skip,
        max_errors: 1,
        text_template: "{item_id}: {title} {description}".into(),
        ..Default::default()
    };
    assert_eq!(out(&config, rows, true), "text\n1: a nan\n");
    let rejects = tables(&config, rows).unwrap().batch(REJECTS).unwrap();
    assert_eq!(
        render(&rejects).unwrap(),
        "file  line  reason                               text\n\
         x     3     no item_id                           {\"title\": \"c\"}\n\
         x     2     duplicate item_id \"1\", first at x:1  b\n"
    );
    let strict = IngestItems {
        duplicates: Duplicates::Error,
        ..config
    };
    let error = tables(&strict, rows).unwrap_err().to_string();
    assert!(
        error.starts_with("error[duplicate-item]: duplicate item_id \"1\", first at x:1\n  --> x:2"),
        "{error}"
    );
}

#[test]
fn names_in_any_case_and_quotes() {
    let rows = b"{\"Item_ID\": 1.0, \"Title\": \"a\", \"CATEGORIES\": [\"A\"]}\n";
    assert_eq!(
        out(&IngestItems::default(), rows, false),
        "item_id  title  brand  categories  price  description  position\n1        a      null   [A]         null   null         1\n"
    );
    let named = IngestItems {
        columns: ItemColumns {
            title: "titel".into(),
            ..Default::default()
        },
        ..Default::default()
    };
    assert_eq!(tables(&named, rows).unwrap_err().code, "missing-column");
    let open = b"item_id\ttitle\tcategories\n1\t\"a\tB C|D\n";
    assert_eq!(tables(&IngestItems::default(), open).unwrap_err().code, "open-quote");
    let plain = IngestItems {
        quotes: false,
        ..Default::default()
    };
    assert!(out(&plain, open, false).contains("1        \"a     null   [B C, D] "));
}

#[test]
fn parquet_lists_and_nested_types() {
    use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, StructArray};
    use arrow::datatypes::{DataType, Field};
    use std::sync::Arc;
    let file = |columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let texts = Arc::new(StringArray::from(vec!["A", "B", "C", "D"])) as ArrayRef;
    let item = Arc::new(Field::new_list_field(DataType::Utf8, false));
    let pairs = arrow::array::FixedSizeListArray::try_new(item, 2, texts.clone(), None).unwrap();
    let ids = Arc::new(Float64Array::from(vec![10.0, 11.0])) as ArrayRef;
    let items = file(vec![("item_id", ids), ("categories", Arc::new(pairs) as ArrayRef)]);
    assert_eq!(
        out(&IngestItems::default(), &items, false),
        "item_id  title  brand  categories  price  description  position\n\
         10       null   null   [A, B]      null   null         1\n\
         11       null   null   [C, D]      null   null         2\n"
    );
    let field = Arc::new(Field::new("a", DataType::Utf8, false));
    let nested = Arc::new(StructArray::from(vec![(field, texts.clone())])) as ArrayRef;
    let error = tables(
        &IngestItems::default(),
        &file(vec![("item_id", texts), ("title", nested)]),
    )
    .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("wrong-type", "\"x\": column \"title\" is Struct(..), which is no text")
    );
}

#[test]
fn templates_and_columns_are_checked() {
    let config = IngestItems {
        text_template: "{titel}".into(),
        ..Default::default()
    };
    let error = tables(&config, b"item_id,title\n1,a\n").unwrap_err().to_string();
    assert!(
        error.contains("no value for \"{titel}\"\n  it may use: {title}, {brand}"),
        "{error}"
    );
    let config = IngestItems {
        format: Format::Csv,
        ..Default::default()
    };
    let error = tables(&config, b"itm,title\n1,a\n").unwrap_err();
    assert_eq!(error.code, "missing-column");
    assert_eq!(tables(&IngestItems::default(), b"").unwrap_err().code, "empty-file");
    assert_eq!(
        tables(&IngestItems::default(), b"word\n").unwrap_err().code,
        "wrong-format"
    );
}

fn facts(path: &str) -> Option<arrow::array::RecordBatch> {
    let config = IngestItems {
        path: Paths::One(path.into()),
        ..Default::default()
    };
    Some(testdata::harness()?.run(&config, &[]).unwrap().batch(OUT).unwrap())
}

#[test]
fn real_files_have_the_published_counts() {
    use arrow::array::Array;
    for (path, rows) in [
        ("amazon2014-beauty/items.jsonl.gz", 12_101),
        ("amazon2018-raw-reviews/meta_Gift_Cards.jsonl.gz", 1_547),
        ("minionerec-office/Office_Products.item.json.gz", 3_459),
        ("ml-latest-small/movies.csv.gz", 9_742),
    ] {
        let Some(batch) = facts(path) else { return };
        assert_eq!(batch.num_rows(), rows, "{path}");
        assert_eq!(strings(&batch, "title").unwrap().null_count(), 0, "{path}");
    }
    let beauty = facts("amazon2014-beauty/items.jsonl.gz").unwrap();
    assert_eq!(
        strings(&beauty, "text").unwrap().value(0),
        "Title: OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce; Brand: OPI; Categories: ['Beauty', 'Makeup', 'Nails', 'Nail Polish']; Price: nan; "
    );
    let cards = facts("amazon2018-raw-reviews/meta_Gift_Cards.jsonl.gz").unwrap();
    assert!(cards.column(4).len() - cards.column(4).null_count() > 350);
}
