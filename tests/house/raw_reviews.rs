//! Amazon's raw reviews of 2018: rows in, duplicates by three readings, metadata joined.

use crate::sluice::{Sluice, real_data};

const PIPELINE: &str = r#"pipeline: raw
stages:
  beauty:  { op: ingest_interactions, path: All_Beauty_5.jsonl.gz, record_hash: true }
  exact:   { op: dedup, input: beauty }
  pairs:   { op: dedup, input: beauty, by: [user_id, item_id] }
  records: { op: dedup, input: beauty, by: [record] }
  gifts:   { op: ingest_interactions, path: Gift_Cards_5.jsonl.gz }
  meta:    { op: ingest_items, path: meta_Gift_Cards.jsonl.gz }
  items:   { op: join_items, inputs: { items: meta, interactions: gifts }, missing: error }
  order:   { op: audit_order, input: gifts }
expect:
  - { stage: order, where: { fact: users }, value: 458 }
  - { stage: order, where: { fact: items }, value: 148 }
  - { stage: order, where: { fact: interactions }, value: 2972 }
"#;

#[test]
fn counts_of_raw_reviews() {
    let Some(data) = real_data() else { return };
    let data = data.join("amazon2018-raw-reviews");
    let sluice = Sluice::with(&[("raw.yaml", PIPELINE)]);
    let done = sluice.succeed(&["run", "raw.yaml", "--data", data.to_str().unwrap()]);
    assert!(done.err.contains("all 3 expectations hold"), "{}", done.err);
    assert_eq!(sluice.rows("beauty", "out"), 5_269);
    assert_eq!(sluice.rows("beauty", "rejects"), 0);
    // Whole records that come again; repeats of (user, item, time); repeats of (user, item).
    assert_eq!(sluice.record("records")["notes"]["dropped"], 1_027);
    assert_eq!(sluice.rows("exact", "out"), 4_161);
    assert_eq!(sluice.rows("pairs", "out"), 4_092);
    assert_eq!(sluice.rows("meta", "out") + sluice.rows("meta", "rejects"), 1_547);
    assert_eq!(sluice.rows("items", "out"), 148);
    assert_eq!(sluice.rows("items", "missing"), 0);
    assert_eq!(sluice.record("items")["notes"]["matched"], "148 of 148");
}
