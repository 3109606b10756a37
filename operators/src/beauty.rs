//! The real data that tests measure against; they skip, and say so, where the folder is absent.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;

use arrow::array::RecordBatch;
use sluice_engine::{harness, text};

use crate::split_leave_one_out::{SplitLeaveOneOut, Ties};

/// The text of a compressed file of the data folder.
fn read(path: &str) -> Option<String> {
    let path = crate::testdata::folder()?.join(path);
    let mut text = String::new();
    flate2::read::GzDecoder::new(File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    Some(text)
}

/// Beauty's interactions; `item` is the column to take item ids from: `item_id` or `asin`.
pub fn interactions(item: &str) -> Option<RecordBatch> {
    let source = read("amazon2014-beauty/interactions.tsv.gz")?;
    let mut lines = source.lines();
    let names: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let column = |name: &str| names.iter().position(|found| *found == name).unwrap();
    let (user, item, time) = (column("user_id"), column(item), column("timestamp"));
    let mut table = "user_id item_id timestamp:ts rating:f32 position:u64\n".to_string();
    for (row, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split('\t').collect();
        writeln!(
            table,
            "{} {} {}000 null {}",
            cells[user],
            cells[item],
            cells[time],
            row + 2
        )
        .unwrap();
    }
    Some(text::parse(&table).unwrap())
}

/// Beauty's train, valid and test tables.
pub fn split(ties: Ties) -> Option<(RecordBatch, RecordBatch, RecordBatch)> {
    let config = SplitLeaveOneOut {
        ties,
        ..SplitLeaveOneOut::default()
    };
    let out = harness::run(&config, &[("interactions", interactions("item_id")?)]).unwrap();
    let port = |name| out.batch(name).unwrap();
    Some((port("train"), port("valid"), port("test")))
}

/// LETTER's semantic ids of Beauty.
pub fn letter_semantic_ids() -> Option<RecordBatch> {
    let mut table = "item_id semantic_id:[u16;4]\n".to_string();
    for line in read("amazon2014-beauty/letter_sids.jsonl.gz")?.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let codes: Vec<String> = row["sid"]
            .as_array()
            .unwrap()
            .iter()
            .map(|code| code.to_string())
            .collect();
        writeln!(table, "{} {}", row["item_id"], codes.join(",")).unwrap();
    }
    Some(text::parse(&table).unwrap())
}

/// MiniOneRec's semantic ids of Office.
pub fn office_semantic_ids() -> Option<RecordBatch> {
    let source = read("minionerec-office/Office_Products.index.json.gz")?;
    let ids: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&source).unwrap();
    let mut table = "item_id semantic_id:[u16;3]\n".to_string();
    for (item, tokens) in ids {
        let codes: Vec<&str> = tokens
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_str().unwrap().split(['_', '>']).nth(1).unwrap())
            .collect();
        writeln!(table, "{item} {}", codes.join(",")).unwrap();
    }
    Some(text::parse(&table).unwrap())
}

/// MovieLens latest-small's ratings: user and item.
pub fn movielens() -> Option<RecordBatch> {
    let mut table = "user_id item_id\n".to_string();
    for line in read("ml-latest-small/ratings.csv.gz")?.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        writeln!(table, "{} {}", cells[0], cells[1]).unwrap();
    }
    Some(text::parse(&table).unwrap())
}

/// Amazon's raw reviews of All Beauty: user, item and time.
pub fn raw_reviews() -> Option<RecordBatch> {
    let mut table = "user_id item_id timestamp:ts\n".to_string();
    for line in read("amazon2018-raw-reviews/All_Beauty_5.jsonl.gz")?.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| row[name].as_str().unwrap().to_string();
        writeln!(
            table,
            "{} {} {}000",
            text("reviewerID"),
            text("asin"),
            row["unixReviewTime"]
        )
        .unwrap();
    }
    Some(text::parse(&table).unwrap())
}
