//! Documents as they are typeset: nothing that a name or a text holds is taken for a sign of the format.

use super::document::{Block, Cell, Column, Finding, Made, Mark, Row, Section, Source, Table};
use super::figure::{Figure, Point, Series, Shape};
use super::graph::{Graph, Node};
use super::*;

/// Signs that mean something to one of the formats.
const HOSTILE: &str = "</title><script>alert(1)</script>\"' onmouseover=\"x\" | **a** [b](http://c) `d`\n\\input{e} $x_1$ 50% #&~^ ]]> -->";

/// A document in which every text is hostile.
fn hostile() -> Document {
    let text = || HOSTILE.to_string();
    let cell = |mark| Cell {
        text: text(),
        mark,
        after: text(),
        below: text(),
    };
    let table = Table {
        caption: text(),
        columns: vec![
            Column::words(text()).about(text()),
            Column::numbers(text()).about(text()),
        ],
        rows: vec![
            Row::new(vec![cell(None), cell(Some(Mark::Best))]).from(HOSTILE),
            Row::new(vec![cell(Some(Mark::Second)), Cell::new("-1.5")]),
        ],
        sources: vec![text(), "unknown".into()],
    };
    let points = vec![
        Point {
            interval: Some((0.5, 1.5)),
            ..Point::at(1.0, 1.0)
        },
        Point::at(2.0, 3.0),
    ];
    let series = |shape| Series {
        name: text(),
        color: 0,
        shape,
        points: points.clone(),
    };
    let figure = Figure {
        caption: text(),
        alt: text(),
        series: [Shape::Band, Shape::Line, Shape::Dots].map(series).to_vec(),
        sources: vec![text()],
        ..Figure::default()
    };
    let rows = Figure {
        rows: vec![text(), text(), text(), text()],
        ..figure.clone()
    };
    let node = Node {
        name: text(),
        lines: vec![text()],
        title: text(),
        class: "run".into(),
        reads: Vec::new(),
    };
    let graph = Graph {
        caption: text(),
        nodes: vec![node],
    };
    let blocks = vec![
        Block::Text(text()),
        Block::Findings(vec![Finding::bad(text())]),
        Block::Table(table),
        Block::Figure(figure),
        Block::Figure(rows),
        Block::Graph(graph),
    ];
    let made = Made {
        stage: text(),
        operator: text(),
        key: text(),
        run: text(),
    };
    Document {
        title: text(),
        about: vec![text()],
        findings: vec![Finding::plain(text()), Finding::warning(text())],
        sections: vec![Section::new(HOSTILE, HOSTILE, blocks)],
        sources: vec![Source {
            input: text(),
            digest: text(),
            made: Some(made),
        }],
    }
}

/// Tags of a page with the names of their attributes, by the rules of HTML for quotes.
fn tags(page: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let (mut inside, mut quoted, mut end) = (String::new(), false, rest.len());
        for (place, sign) in rest.char_indices() {
            match sign {
                '"' => quoted = !quoted,
                '>' if !quoted => {
                    end = place;
                    break;
                }
                _ if quoted => {}
                sign => inside.push(sign),
            }
        }
        rest = &rest[(end + 1).min(rest.len())..];
        let mut words = inside.split_whitespace();
        let name = words.next().unwrap_or_default().to_lowercase();
        found.push((
            name,
            words
                .map(|word| word.trim_end_matches(['=', '/']).to_string())
                .collect(),
        ));
    }
    found
}

#[test]
fn a_page_takes_no_text_for_its_own() {
    let page = html::page(&hostile()).unwrap();
    let known = [
        "!doctype",
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "p",
        "nav",
        "a",
        "main",
        "section",
        "ul",
        "li",
        "b",
        "u",
        "small",
        "span",
        "figure",
        "figcaption",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "desc",
        "text",
        "rect",
        "path",
        "polyline",
        "polygon",
        "circle",
        "line",
        "g",
        "code",
    ];
    let tags = tags(&page);
    assert!(tags.len() > 100);
    for (name, attributes) in &tags {
        assert!(known.contains(&name.trim_start_matches('/')), "<{name}> in the page");
        assert!(
            attributes.iter().all(|name| !name.starts_with("on")),
            "{name} {attributes:?}"
        );
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    // The test sees what it should.
    assert_eq!(
        self::tags("<a href=\"x>y\" onclick=\"z\">")[0],
        ("a".into(), vec!["href".into(), "onclick".into()])
    );
    // Nothing is fetched: whatever looks like an address is text.
    assert!(
        !page.contains("src=") && !page.contains("url(") && !page.contains("@import") && !page.contains("href=\"http")
    );
}

#[test]
fn every_number_says_where_it_is_from() {
    let mut document = hostile();
    document.sources[0] = Source {
        input: HOSTILE.into(),
        digest: "d1".into(),
        made: Some(Made {
            stage: "scores".into(),
            operator: "score".into(),
            key: "k1".into(),
            run: "r1".into(),
        }),
    };
    let page = html::page(&document).unwrap();
    let title = page.split("<tr title=\"").nth(1).unwrap().split('"').next().unwrap();
    for words in ["stage scores (score)", "key k1", "run r1", "artifact d1"] {
        assert!(title.contains(words), "no \"{words}\" in {title}");
    }
    assert!(page.contains("href=\"#source-1\"") && page.contains("id=\"source-1\""));
}

#[test]
fn markdown_takes_no_text_for_its_own() {
    let text = markdown::page(&hostile());
    let bare = |sign: &str| text.replace(&format!("\\{sign}"), "").contains(sign);
    assert!(!bare("<script") && !bare("](http") && !bare("`d"), "{text}");
    // A row of a table is a line with as many cells as the head.
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert_eq!(line.replace("\\|", "").matches(" | ").count(), 1, "{line}");
    }
    assert!(text.contains("![") && text.contains("](figure-2.svg)"), "{text}");
}

#[test]
fn latex_takes_no_text_for_its_own() {
    let text = latex::page(&hostile());
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('%'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(!text.contains("\\input"), "{text}");
    assert!(
        text.contains("\\textbackslash{}input\\{e\\} \\$x\\_1\\$ 50\\% \\#\\&\\textasciitilde{}\\textasciicircum{}"),
        "{text}"
    );
    assert!(text.contains("$-$1.5"), "{text}");
    for (begin, end) in [("\\begin{", "\\end{"), ("{", "}")] {
        let bare = text.replace("\\{", "").replace("\\}", "");
        assert_eq!(bare.matches(begin).count(), bare.matches(end).count(), "{begin}");
    }
}

fn columns() -> Vec<Column> {
    vec![Column::words("name"), Column::numbers("n")]
}

#[test]
fn markdown_has_no_emphasis_and_no_lists_of_its_own() {
    for (text, escaped) in [
        ("__init__", "\\_\\_init\\_\\_"),
        ("_a_ and recall_10", "\\_a\\_ and recall_10"),
        ("~~x~~ C#", "\\~\\~x\\~\\~ C\\#"),
        ("a - b > c", "a - b > c"),
    ] {
        assert_eq!(markdown::escape(text), escaped);
    }
    let lines = ["# x", "+ x", "- x", "> x", "12. x", "1) x", "    x", "1 x"].map(String::from);
    let document = Document {
        about: lines.to_vec(),
        findings: lines.map(Finding::plain).to_vec(),
        ..Document::default()
    };
    let escaped = ["\\# x", "\\+ x", "\\- x", "\\> x", "12\\. x", "1\\) x", "x", "1 x"];
    let about: String = escaped.map(|line| format!("{line}\n\n")).concat();
    let findings: String = escaped.map(|line| format!("- {line}\n")).concat();
    assert_eq!(markdown::page(&document), format!("# \n\n{about}{findings}\n"));
}

#[test]
fn latex_sets_signs_and_rows_as_they_are() {
    for (text, escaped) in [
        ("−1 ≥ x → y — z", "$-$1 $\\geq$ x $\\rightarrow$ y --- z"),
        ("Zoë Łódź “q” Ωλ ΔAIC", "Zoë Łódź “q” $\\Omega$$\\lambda$ $\\Delta$AIC"),
        ("日 ħ", "\\uni{65E5}{日} \\uni{0127}{ħ}"),
        ("--x\t-", "-{}-x -"),
    ] {
        assert_eq!(latex::escape(text), escaped);
    }
    let best = Cell {
        mark: Some(Mark::Best),
        ..Cell::new("+0.1000")
    };
    let mut table = Table::new("", columns());
    table.rows = vec![
        Row::new(vec!["[b] item".into(), best]),
        Row::new(vec!["*star".into(), Cell::new("-1.000e-12").below("-27 %")]),
    ];
    let wanted = "\
\\begin{tabular}{lr}
  \\toprule
  {}name & n \\\\
  \\midrule
  {}[b] item & \\textbf{$+$0.1000} \\\\
  {}*star & $-$1.000e$-$12 {\\scriptsize $-$27 \\%} \\\\
  \\bottomrule
\\end{tabular}
";
    assert_eq!(latex::tabular(&table), wanted);
    // By itself a table brings what it needs.
    table.rows[0].cells[0] = "日".into();
    let text = latex::tabular(&table);
    assert!(text.starts_with("\\providecommand\\uni"), "{text}");
    let document = Document {
        findings: vec![Finding::plain("[a] b")],
        ..Document::default()
    };
    let text = latex::page(&document);
    assert!(text.contains("\\item {}[a] b\n"), "{text}");
}

#[test]
fn a_long_table_runs_over_pages_in_latex() {
    let set = |rows: usize| {
        let mut table = Table::new("All of them.", columns());
        table.rows = vec![Row::new(vec!["a".into(), "1".into()]); rows];
        let sections = vec![Section::new("all", "All", vec![Block::Table(table)])];
        latex::page(&Document {
            sections,
            ..Document::default()
        })
    };
    let text = set(40);
    assert!(
        text.contains("\\begin{table}") && !text.contains("\\begin{longtable}"),
        "{text}"
    );
    let text = set(41);
    assert!(!text.contains("\\begin{table}"), "{text}");
    let head = "\
\\begin{longtable}{lr}
\\caption{All of them.}\\\\
  \\toprule
  {}name & n \\\\
  \\midrule
\\endfirsthead
  \\toprule
  {}name & n \\\\
  \\midrule
\\endhead
  \\bottomrule
\\endfoot
";
    assert!(text.contains(head), "{text}");
    assert_eq!(text.matches("  {}a & 1 \\\\\n").count(), 41);
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    write(&hostile(), folder.path()).unwrap();
    assert_eq!(read(folder.path()).unwrap(), hostile());
    for name in ["report.html", "report.md", "report.tex", "figure-1.svg", "figure-2.svg"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    std::fs::write(folder.path().join(DOCUMENT), "{").unwrap();
    assert_eq!(read(folder.path()).unwrap_err().code, "damaged-artifact");
}
