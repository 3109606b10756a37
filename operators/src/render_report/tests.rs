//! What a report makes of tables, told by their columns.

use sluice_engine::harness::Harness;
use sluice_engine::text;

use super::*;
use crate::report::document::{Level, Mark};

const MARKOV: &str = "metric k:u32 slice ties value:f64 low:f64 high:f64 users:u64
    recall 5 all expected 0.05 0.047 0.053 1000
    recall 5 same_timestamp expected 0.08 null null 400
    recall 5 later expected 0.03 null null 600
    recall 5 all listed 0.9 null null 1000
    ndcg 5 all expected 0.04 null null 1000
    hits null all listed 3 null null 1000";
const POPULAR: &str = "metric k:u32 slice ties value:f64 low:f64 high:f64 users:u64
    recall 5 all expected 0.01 null null 1000
    recall 5 later expected 0.01 null null 600
    ndcg 5 all expected 0.041 null null 1000";
const SHUFFLED: &str = "metric k:u32 slice ties value:f64 low:f64 high:f64 users:u64
    recall 5 all expected 0.9 null null 1000";
const ORDER: &str = "fact value:i64
    pairs 200
    pairs_same_timestamp 100
    ties_item_ascending 100
    ties_item_descending 0
    targets 50
    targets_same_timestamp 20
    targets_not_in_train 3";

fn inputs(tables: &[(&str, &str)]) -> Tables {
    let table = |text: &str| Table::new(text::parse(text).unwrap());
    let add = |tables: Tables, (name, text): &(&str, &str)| tables.with(name, table(text));
    tables.iter().fold(Tables::new(), add)
}

fn document(report: &RenderReport, tables: &[(&str, &str)]) -> Result<Document> {
    report.document(
        &inputs(tables),
        &BTreeMap::from([("markov".to_string(), "d1".to_string())]),
    )
}

fn section<'a>(document: &'a Document, id: &str) -> &'a Section {
    let ids: Vec<&str> = document.sections.iter().map(|section| section.id.as_str()).collect();
    let found = document.sections.iter().find(|section| section.id == id);
    found.unwrap_or_else(|| panic!("no section {id} of {ids:?}"))
}

fn tables(section: &Section) -> Vec<Vec<Vec<&str>>> {
    let table = |block: &'_ Block| -> Option<usize> { matches!(block, Block::Table(_)).then_some(0) };
    let with = section.blocks.iter().filter(|block| table(block).is_some());
    with.map(|block| match block {
        Block::Table(table) => table
            .rows
            .iter()
            .map(|row| row.cells.iter().map(|cell| cell.text.as_str()).collect())
            .collect(),
        _ => Vec::new(),
    })
    .collect()
}

fn said(document: &Document) -> Vec<(Level, &str)> {
    document
        .findings
        .iter()
        .map(|finding| (finding.level, finding.text.as_str()))
        .collect()
}

fn with_twin() -> RenderReport {
    RenderReport {
        shuffled: [("markov".to_string(), "shuffled".to_string())].into(),
        k: vec![5],
        ..RenderReport::default()
    }
}

#[test]
fn results_have_intervals_and_marks() {
    let document = document(
        &with_twin(),
        &[("markov", MARKOV), ("popular", POPULAR), ("shuffled", SHUFFLED)],
    )
    .unwrap();
    let results = section(&document, "results");
    let found = tables(results);
    // The shuffled twin was scored on other targets: it is no row, and it is not the best.
    assert_eq!(
        found[0],
        [["markov", "0.0500", "0.0400"], ["popular", "0.0100", "0.0410"]]
    );
    let Block::Table(table) = &results.blocks[0] else {
        panic!("{results:?}")
    };
    assert_eq!(table.rows[0].cells[1].below, "0.0470–0.0530");
    let marks: Vec<_> = table
        .rows
        .iter()
        .map(|row| row.cells.iter().map(|cell| cell.mark).collect::<Vec<_>>())
        .collect();
    assert_eq!(
        marks,
        [
            [None, Some(Mark::Best), Some(Mark::Second)],
            [None, Some(Mark::Second), Some(Mark::Best)]
        ]
    );
    assert_eq!(table.rows[1].source.as_deref(), Some("popular"));
    assert!(
        table.caption.contains("(1,000)") && table.caption.contains("ties: expected"),
        "{}",
        table.caption
    );
    // By slice, with the number of users; there are more slices than systems.
    assert_eq!(
        found[1][1],
        [
            "same timestamp",
            "0.0800",
            "",
            "400",
            "the target has the time of the last history item"
        ]
    );
    assert_eq!(found[1][2][..4], ["later", "0.0300", "0.0100", "600"]);
    assert_eq!(document.sources[0].digest, "d1");
}

#[test]
fn the_effect_of_the_order_is_the_first_thing_said() {
    let shuffled = SHUFFLED.replace("0.9", "0.0375");
    let tables_in = [
        ("markov", MARKOV),
        ("order", ORDER),
        ("popular", POPULAR),
        ("shuffled", shuffled.as_str()),
    ];
    let document = document(&with_twin(), &tables_in).unwrap();
    let order = section(&document, "order");
    assert_eq!(
        tables(order)[0],
        [
            vec!["markov", "0.0500", "0.0800", "0.0300", "0.0375"],
            vec!["popular", "0.0100", "", "0.0100", ""]
        ]
    );
    let (level, text) = said(&document)[0];
    assert_eq!(level, Level::Warning);
    let wanted = "Recall@5 of markov is 0.0500 over all targets, 0.0300 (-40 %) where the target is later than the history, and \
        0.0375 (-25 %) when ties are shuffled: part of the number is the order of the file.";
    assert_eq!(text, wanted);
    let Block::Findings(audit) = &order.blocks[0] else {
        panic!("{order:?}")
    };
    assert!(audit[0].text.contains("100 (50.0 %) have equal times"), "{audit:?}");
    assert!(
        audit[0].text.contains("In 100.0 % of them the item ids ascend"),
        "{audit:?}"
    );
    assert!(audit[1].text.contains("20 of 50 test targets (40.0 %)"), "{audit:?}");
    let Block::Figure(figure) = &order.blocks[2] else {
        panic!("{order:?}")
    };
    assert_eq!(
        (figure.rows.as_slice(), figure.series.len()),
        (&["markov".to_string(), "popular".to_string()][..], 4)
    );
}

#[test]
fn an_order_without_ties_is_no_warning() {
    let order = "fact value:i64\npairs 200\npairs_same_timestamp 0\ntargets 50\ntargets_same_timestamp 0";
    let document = document(&RenderReport::default(), &[("order", order)]).unwrap();
    let Block::Findings(audit) = &section(&document, "order").blocks[0] else {
        panic!()
    };
    assert!(audit.iter().all(|finding| finding.level == Level::Plain), "{audit:?}");
}

#[test]
fn published_figures_stand_beside_the_best() {
    let report = RenderReport {
        dataset: Some("beauty".into()),
        ..with_twin()
    };
    let document = document(
        &report,
        &[("markov", MARKOV), ("popular", POPULAR), ("shuffled", SHUFFLED)],
    )
    .unwrap();
    let published = section(&document, "published");
    let Block::Table(table) = &published.blocks[0] else {
        panic!()
    };
    assert_eq!(table.rows.len(), 13);
    assert_eq!(table.rows[0].cells[0].text, "markov (here)");
    let tiger = table.rows.iter().find(|row| row.cells[0].text == "TIGER").unwrap();
    assert_eq!(
        (tiger.cells[1].text.as_str(), tiger.cells[1].below.as_str()),
        ("0.0454", "+10 %")
    );
    assert!(tiger.cells[3].text.contains("2305.05065"));
    let text = "Beside 12 published figures of Recall@5 on beauty, markov (0.0500) is above 7.";
    assert!(said(&document).contains(&(Level::Plain, text)), "{:?}", said(&document));
}

#[test]
fn a_leak_comes_first_and_is_red() {
    let leakage = "check count:u64 of:u64 share:f64 verdict sentence
        test_in_train 5 10 0.5 leak five_targets_in_train
        later_train 3 10 0.3 warning three_rows_later
        ids 0 10 0.0 ok none";
    let document = document(
        &with_twin(),
        &[("leakage", leakage), ("markov", MARKOV), ("shuffled", SHUFFLED)],
    )
    .unwrap();
    assert_eq!(said(&document)[0], (Level::Bad, "Leak: five_targets_in_train"));
    let Block::Table(table) = &section(&document, "leakage").blocks[0] else {
        panic!()
    };
    let levels: Vec<Level> = table.rows.iter().map(|row| row.level).collect();
    assert_eq!(levels, [Level::Bad, Level::Warning, Level::Plain]);
    let page = crate::report::html::page(&document).unwrap();
    assert!(page.contains("<tr class=\"bad\"") && page.contains("<li class=\"bad\""));
    let fine = "check verdict\nids ok";
    let document = self::document(&RenderReport::default(), &[("leakage", fine)]).unwrap();
    assert_eq!(
        said(&document),
        [(
            Level::Plain,
            "No leak of valid or test data into training was found in 1 check."
        )]
    );
}

#[test]
fn a_check_of_nothing_finds_nothing() {
    let said_of = |verdicts: &[&str]| {
        let rows = verdicts.iter().map(|verdict| format!("\nids {verdict}"));
        let table = format!("check verdict{}", rows.collect::<String>());
        let document = document(&RenderReport::default(), &[("leakage", table.as_str())]).unwrap();
        let [(level, text)] = said(&document)[..] else {
            panic!("{:?}", said(&document))
        };
        (level, text.to_string())
    };
    let (level, text) = said_of(&["ok", "not_checked", "ok", "not_checked"]);
    assert_eq!(level, Level::Plain);
    assert!(
        text.ends_with("was found in 2 checks; 2 checks had nothing to compare."),
        "{text}"
    );
    let (level, text) = said_of(&["not_checked"]);
    assert_eq!(level, Level::Warning);
    assert!(text.ends_with(": 1 check had nothing to compare."), "{text}");
}

#[test]
fn a_fit_is_a_figure_with_what_it_goes_to() {
    let fits = "law parameter value:f64 low:f64 high:f64 points:u64 loss:f64 r2:f64 aic:f64 bic:f64 delta_aic:f64 held_out_error:f64
        power R0 0.1 0.09 0.11 4 0.01 0.99 -50 -49 0 1e-4
        power a 0.5 0.4 0.6 4 0.01 0.99 -50 -49 0 1e-4
        constant R0 0.07 0.06 0.08 4 0.1 0.0 -20 -19 30 1e-2";
    let curve = "law size:f64 value:f64 low:f64 high:f64
        power 1e5 0.05 0.04 0.06
        power 1e6 0.08 0.07 0.09
        power 1e7 0.096 0.09 0.1
        constant 1e5 0.07 null null
        constant 1e7 0.07 null null";
    let points = "size:f64 value:f64 residual:f64\n1e5 0.051 0.001\n1e6 0.079 -0.001";
    let findings = "law kind sentence\npower degenerate B_and_b_vanish";
    let tables_in = [
        ("curve", curve),
        ("findings", findings),
        ("fits", fits),
        ("points", points),
    ];
    let document = document(&RenderReport::default(), &tables_in).unwrap();
    let scaling = section(&document, "scaling");
    let Some(Block::Figure(figure)) = scaling.blocks.iter().find(|block| matches!(block, Block::Figure(_))) else {
        panic!("{scaling:?}")
    };
    let names: Vec<&str> = figure.series.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(names, ["", "power", "constant", "measured"]);
    assert!(
        figure.x.log && figure.y.log && figure.caption.contains("From 10M on"),
        "{}",
        figure.caption
    );
    assert_eq!((figure.guides[0].at, figure.guides[1].at), (0.1, 1e7));
    assert_eq!(
        tables(scaling)[0][0],
        ["power", "4", "0.01000", "0.9900", "-50", "-49", "0", "0.0001000"]
    );
    assert_eq!(tables(scaling)[1].len(), 3);
    assert_eq!(said(&document), [(Level::Plain, "B_and_b_vanish")]);
}

#[test]
fn fits_of_several_studies_stand_beside_each_other() {
    let fits =
        "law parameter value:f64 low:f64 high:f64 aic:f64\npower R0 0.1 0.09 0.11 -50\nconstant c 0.07 0.06 0.08 -20";
    let curve = "law size:f64 value:f64 low:f64 high:f64
        power 1e5 0.05 0.04 0.06
        power 1e6 0.08 0.07 0.09
        constant 1e5 0.07 null null
        constant 1e6 0.07 null null";
    let points = "size:f64 value:f64 residual:f64\n1e5 0.051 0.001\n1e6 0.079 -0.001";
    let tables_in = [
        ("tiger_curve", curve),
        ("tiger_fits", fits),
        ("tiger_points", points),
        ("llm_curve", curve),
        ("llm_fits", fits),
        ("llm_findings", "law kind sentence\npower saturation flat"),
    ];
    let document = document(&RenderReport::default(), &tables_in).unwrap();
    let titles: Vec<&str> = document.sections.iter().map(|section| section.title.as_str()).collect();
    assert_eq!(titles, ["Scaling", "Scaling: llm", "Scaling: tiger"]);
    let [Block::Figure(figure)] = section(&document, "scaling").blocks.as_slice() else {
        panic!("{:?}", document.sections[0])
    };
    let names: Vec<(&str, usize)> = figure
        .series
        .iter()
        .map(|line| (line.name.as_str(), line.color))
        .collect();
    let wanted = [
        ("", 0),
        ("llm: power", 0),
        ("", 1),
        ("tiger: power", 1),
        ("tiger: measured", 1),
    ];
    assert_eq!(names, wanted);
    assert_eq!(said(&document), [(Level::Plain, "llm: flat")]);
}

#[test]
fn points_of_several_laws_are_drawn_once_over_the_part_that_curves_run_over() {
    let curve = "law size:f64 rs:f64 llm:f64 value:f64 low:f64 high:f64
        power 1e6 1e6 5e5 0.05 null null
        log 1e6 1e6 5e5 0.05 null null";
    let points = "law point rs:f64 llm:f64 quantizer:f64 value:f64 fitted:f64 residual:f64
        power a 1e6 5e5 null 0.05 0.05 0
        power b 2e6 5e5 null 0.06 0.06 0
        log a 1e6 5e5 null 0.05 0.04 0.01
        log b 2e6 5e5 null 0.06 0.04 0.02";
    let document = document(&RenderReport::default(), &[("curve", curve), ("points", points)]).unwrap();
    let scaling = section(&document, "scaling");
    let Block::Figure(figure) = &scaling.blocks[0] else {
        panic!("{scaling:?}")
    };
    let measured = figure.series.last().unwrap();
    let drawn: Vec<(f64, f64)> = measured.points.iter().map(|point| (point.x, point.y)).collect();
    assert_eq!(drawn, [(1e6, 0.05), (2e6, 0.06)]);
    // The quantizer has no size anywhere, so it has no column.
    assert_eq!(tables(scaling)[0][0].len(), 7);
}

#[test]
fn comparisons_are_a_table_and_means_are_systems() {
    let pairs = "a b metric slice users:u64 difference:f64 low:f64 high:f64 p:f64 p_holm:f64
        markov popular recall_5 all 1000 0.04 0.03 0.05 1e-5 3e-5
        markov other recall_5 all 1000 -0.001 -0.01 0.01 0.4 0.4";
    let means = "system metric slice users:u64 seeds:u64 mean:f64 deviation:f64
        markov recall_5 all 1000 3 0.05 0.001
        other recall_5 all 1000 3 0.051 0.002";
    let report = RenderReport {
        k: vec![5],
        ..RenderReport::default()
    };
    let document = document(&report, &[("markov", MARKOV), ("means", means), ("pairs", pairs)]).unwrap();
    let results = tables(section(&document, "results"));
    assert_eq!(results[0][0][..3], ["markov", "1", "0.0500"]);
    assert_eq!(results[0][1][..3], ["other", "3", "0.0510"]);
    let found = tables(section(&document, "comparisons"));
    assert_eq!(
        found[0][0][4..],
        ["+0.0400", "+0.0300", "+0.0500", "<0.0001", "<0.0001"]
    );
    let Block::Table(table) = &section(&document, "comparisons").blocks[0] else {
        panic!()
    };
    let marks: Vec<_> = table.rows.iter().map(|row| row.cells[4].mark).collect();
    assert_eq!(marks, [Some(Mark::Best), None]);
}

#[test]
fn ids_and_what_is_not_known_are_shown() {
    let ids = "fact level:u32 value:f64
        items null 400
        levels null 2
        distinct null 390
        uniquely_identified null 0.95
        max_bucket null 3
        entropy null 5.9
        distinct_prefixes 1 16
        distinct_prefixes 2 390
        perplexity 1 15.5
        perplexity 2 14.25
        codes_used 1 16
        codes_used 2 16";
    let other = "a b:f64\nx 0.123456\ny null";
    let document = document(&RenderReport::default(), &[("ids", ids), ("other", other)]).unwrap();
    let found = tables(section(&document, "semantic-ids"));
    assert_eq!(found[0][0], ["ids", "400", "2", "390", "95.0 %", "3", "5.900"]);
    assert_eq!(found[1][1], ["ids", "perplexity", "15.5", "14.2"]);
    assert_eq!(tables(section(&document, "tables"))[0], [["x", "0.1235"], ["y", ""]]);
}

#[test]
fn tables_of_others_are_shown_as_they_are() {
    let tables_in = [
        ("codes", "fact level:u32 value:f64\nusers 1 5"),
        ("facts", "fact value:i64\nusers 5"),
        ("said", "name score:f64 sentence\na 1.5 short"),
        ("steps", "step:u64 epoch:u64 correct:u64\n1 2 30"),
    ];
    let document = document(&RenderReport::default(), &tables_in).unwrap();
    assert_eq!(document.sections.len(), 1, "{:?}", document.sections);
    let wanted = [
        vec!["users", "1", "5"],
        vec!["users", "5"],
        vec!["a", "1.500", "short"],
        vec!["1", "2", "30"],
    ];
    let found = tables(section(&document, "tables"));
    assert_eq!(found.concat(), wanted);
    assert!(said(&document).is_empty());
}

#[test]
fn a_metric_that_no_input_has_is_told() {
    let told = |metrics: &[&str], table: &str| {
        let metrics = metrics.iter().map(|metric| metric.to_string()).collect();
        let report = RenderReport {
            metrics,
            ..RenderReport::default()
        };
        document(&report, &[("markov", table)])
    };
    let error = told(&["recall", "reccall"], MARKOV).unwrap_err();
    assert_eq!(error.code, "unknown-metric");
    assert_eq!(error.message, "\"metrics\" names \"reccall\", which no input has");
    assert_eq!(error.detail, ["there are: ndcg, recall"]);
    assert_eq!(error.hint.as_deref(), Some("did you mean \"recall\"?"));
    // By itself a report shows what there is.
    let systems = "system slice recall_5:f64\nmarkov all 0.2";
    assert!(told(&["recall", "ndcg"], systems).is_ok());
    assert!(told(&["ndcg"], systems).is_err());
    assert!(told(&["recall", "ndcg"], &systems.replace("recall", "mrr")).is_err());
    assert!(told(&["reccall"], "a\nx").is_ok());
}

#[test]
fn a_cut_off_that_no_input_has_is_told() {
    let systems = "system slice recall_5:f64\nmarkov all 0.2";
    let told = |k: &[u32], table: &str| {
        let report = RenderReport {
            k: k.to_vec(),
            ..RenderReport::default()
        };
        document(&report, &[("markov", table)])
    };
    let error = told(&[5, 7], systems).unwrap_err();
    assert_eq!(error.code, "unknown-metric");
    assert_eq!(error.message, "\"k\" names 7, which no input has");
    assert_eq!(error.detail, ["there are: 5"]);
    // By itself a report shows what there is, as long as there is some of it.
    assert!(told(&[5, 10], systems).is_ok());
    assert!(told(&[5, 10], &systems.replace("_5", "_20")).is_err());
    assert!(told(&[7], "a\nx").is_ok());
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let fails = |report: RenderReport, input: Table| Harness::default().run(&report, &[("a", input)]).unwrap_err();
    let table = || Table::new(text::parse("a\nx").unwrap());
    let folder = fails(RenderReport::default(), Table::Folder(".".into()));
    assert_eq!((folder.code.as_str(), folder.hint.is_some()), ("wrong-input", true));
    let dataset = fails(
        RenderReport {
            dataset: Some("books".into()),
            ..RenderReport::default()
        },
        table(),
    );
    assert!(dataset.message.contains("\"books\"") && dataset.hint.unwrap().contains("beauty"));
    let ties = fails(
        RenderReport {
            ties: "fair".into(),
            ..RenderReport::default()
        },
        table(),
    );
    assert_eq!(ties.code, "bad-value");
    let metrics = fails(
        RenderReport {
            metrics: Vec::new(),
            ..RenderReport::default()
        },
        table(),
    );
    assert!(metrics.message.contains("\"metrics\" is empty"));
}

#[test]
fn a_twin_that_is_not_there_is_told() {
    let mut report = with_twin();
    report.shuffled = [("markov".to_string(), "shufled".to_string())].into();
    let error = document(&report, &[("markov", MARKOV), ("shuffled", SHUFFLED)]).unwrap_err();
    assert_eq!(error.code, "unknown-system");
    assert!(error.message.contains("\"shufled\"") && error.hint.unwrap().contains("shuffled"));
}

#[test]
fn systems_of_one_name_are_told_apart() {
    let systems = "system slice recall_5:f64\nmarkov all 0.2";
    let report = RenderReport {
        k: vec![5],
        ..RenderReport::default()
    };
    let document = document(&report, &[("markov", MARKOV), ("table", systems)]).unwrap();
    let names: Vec<&str> = tables(section(&document, "results"))[0]
        .iter()
        .map(|row| row[0])
        .collect();
    assert_eq!(names, ["markov.markov", "table.markov"]);
}

#[test]
fn a_folder_is_written() {
    let attempt = tempfile::tempdir().unwrap();
    let harness = Harness {
        attempt: attempt.path().to_path_buf(),
        ..Harness::default()
    };
    let inputs = [("markov", Table::new(text::parse(MARKOV).unwrap()))];
    let out = harness.run(&RenderReport::default(), &inputs).unwrap();
    let read = crate::report::read(out.folder(OUT).unwrap()).unwrap();
    assert_eq!(read.title, "Report");
}
