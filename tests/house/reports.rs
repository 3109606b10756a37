//! Reports: what a title reruns, what a run adds, and how the page does in a real browser.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::browser::browser;
use crate::sluice::Sluice;

/// A shop, a counting baseline, its twin with ties shuffled, and a report. Names are hostile to the page.
const PIPELINE: &str = "\
pipeline: reported
seed: 7
stages:
  shop:      { op: synthesize, users: 300, items: 200 }
  split:     { op: split_leave_one_out, input: shop.interactions, ties: file }
  shuffled:  { op: split_leave_one_out, input: shop.interactions, ties: hash }
  order:     { op: audit_order, input: shop.interactions }
  popular:   { op: rank_popularity, inputs: { train: split.train, histories: split.test, items: shop.items } }
  markov:    { op: rank_markov, inputs: { train: split.train, histories: split.test, items: shop.items } }
  by_chance: { op: rank_markov, inputs: { train: shuffled.train, histories: shuffled.test, items: shop.items } }
  popular_metrics: { op: score_ranking, inputs: { ranked: popular, targets: split.test, train: split.train }, resamples: 50 }
  markov_metrics:  { op: score_ranking, inputs: { ranked: markov, targets: split.test, train: split.train }, resamples: 50 }
  chance_metrics:  { op: score_ranking, inputs: { ranked: by_chance, targets: shuffled.test }, resamples: 50 }
  hostile:   { op: sql, inputs: { o: order }, query: \"SELECT '<script>alert(1)</script><img src=x onerror=alert(2)>' AS \\\"<b>name\\\", fact FROM o\" }
  report:
    op: render_report
    title: \"A <title> & its </title><script>alert(3)</script>\"
    dataset: beauty
    shuffled: { markov: by_chance }
    inputs: { markov: markov_metrics, popular: popular_metrics, by_chance: chance_metrics, order: order, '<i>other': hostile }
show: [report]
";

/// The page that a run under `show:` said it wrote.
fn page(out: &str) -> PathBuf {
    let line = out.lines().find(|line| line.ends_with("report.html"));
    PathBuf::from(line.unwrap_or_else(|| panic!("no page in {out}")))
}

#[test]
fn a_title_reruns_the_report_alone() {
    let sluice = Sluice::with(&[("reported.yaml", PIPELINE)]);
    let first = sluice.succeed(&["run", "reported.yaml", "--json"]);
    assert_eq!(first.ran().len(), 12);
    let again = sluice.succeed(&["run", "reported.yaml", "--json"]);
    assert!(again.ran().is_empty());
    let titled = sluice.succeed(&["run", "reported.yaml", "--json", "--set=report.title=Another"]);
    assert_eq!(titled.ran().into_iter().collect::<Vec<_>>(), ["report"]);
}

#[test]
fn a_run_adds_who_made_what_and_what_it_cost() {
    let sluice = Sluice::with(&[("reported.yaml", PIPELINE)]);
    let shown = page(&sluice.succeed(&["run", "reported.yaml", "--quiet"]).out);
    assert!(shown.is_file() && shown.starts_with(sluice.path(".sluice/runs").canonicalize().unwrap()));
    let done = sluice.succeed(&["report", "out"]);
    let text = std::fs::read_to_string(sluice.path("out").join("report.html")).unwrap();
    assert_eq!(page(&done.out), Path::new("out/report.html"));
    assert_eq!(text, std::fs::read_to_string(shown).unwrap());
    let key = sluice.record("markov_metrics")["key"].as_str().unwrap().to_string();
    for words in [
        "stage markov_metrics (score_ranking)",
        &format!("key {key}"),
        "12 ran, 0 reused",
        "<section id=\"costs\">",
        "<section id=\"stages\">",
        "this run",
        "when ties are shuffled",
        "Beside published figures",
    ] {
        assert!(text.contains(words), "no \"{words}\" in the page");
    }
    // The artifact itself knows of no run: equal inputs make equal bytes.
    let own = sluice
        .path(".sluice/objects")
        .join(sluice.record("report")["outputs"]["out"].as_str().unwrap());
    let own = std::fs::read_to_string(own.join("report.html")).unwrap();
    assert!(!own.contains("12 ran") && own.contains(sluice.record("order")["outputs"]["out"].as_str().unwrap()));
    for file in ["report.md", "report.tex", "figure-1.svg", "document.json"] {
        assert!(sluice.path("out").join(file).is_file(), "{file}");
    }

    let unknown = sluice.run(&["report", "out", "--stage", "reprot"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("did you mean \"report\""), "{}", unknown.err);
    let none = sluice.succeed(&[
        "run",
        "reported.yaml",
        "--quiet",
        "--set=shop.users=301",
        "--until=split",
    ]);
    assert!(none.out.is_empty(), "{}", none.out);
    let none = sluice.run(&["report", "out"]);
    assert!(none.code == 2 && none.err.contains("has no report"), "{}", none.err);
}

/// Opens a page with further flags; what it printed, and what the page's console said.
fn open(browser: &Path, page: &Path, flags: &[&str]) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let fixed = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ];
    let mut command = Command::new(browser);
    command
        .args(fixed)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--allow-file-access-from-files", "--virtual-time-budget=2000"])
        .args(flags)
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null());
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stderr);
    let console = said
        .lines()
        .filter(|line| line.contains(":CONSOLE"))
        .map(str::to_string);
    (String::from_utf8_lossy(&done.stdout).to_string(), console.collect())
}

/// A picture in PNG: its size, its first pixel, and the share of bytes that are not blank.
struct Picture {
    width: u32,
    height: u32,
    corner: [u8; 3],
    drawn: f64,
}

impl Picture {
    fn read(path: &Path) -> Picture {
        let bytes = std::fs::read(path).unwrap();
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut packed = Vec::new();
        let mut at = 8;
        while at + 12 <= bytes.len() {
            let length = number(at) as usize;
            if &bytes[at + 4..at + 8] == b"IDAT" {
                packed.extend(&bytes[at + 8..at + 8 + length]);
            }
            at += length + 12;
        }
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..])
            .read_to_end(&mut rows)
            .unwrap();
        // Whatever the filter of the first row, its first pixel stands there as it is; of blank rows a filter leaves zeros.
        let drawn = rows.iter().filter(|byte| **byte != 0).count() as f64 / rows.len() as f64;
        Picture {
            width: number(16),
            height: number(20),
            corner: [rows[1], rows[2], rows[3]],
            drawn,
        }
    }
}

#[test]
fn the_page_does_well_in_a_browser() {
    let Some(browser) = browser() else { return };
    let sluice = Sluice::with(&[("reported.yaml", PIPELINE)]);
    sluice.succeed(&["run", "reported.yaml", "--quiet"]);
    sluice.succeed(&["report", "out"]);
    let page = sluice.path("out/report.html").canonicalize().unwrap();

    let (dom, console) = open(&browser, &page, &["--dump-dom"]);
    assert_eq!(console, Vec::<String>::new());
    assert!(
        dom.contains("&lt;script&gt;alert(1)") && !dom.contains("<script"),
        "{dom}"
    );
    assert_eq!(dom.matches("<img").count(), 0);

    let shot = |name: &str, flags: &[&str]| {
        let file = sluice.path(name);
        let to = format!("--screenshot={}", file.display());
        open(&browser, &page, &[&[to.as_str()], flags].concat());
        Picture::read(&file)
    };
    let light = shot("light.png", &["--window-size=1100,1400"]);
    let dark = shot(
        "dark.png",
        &["--window-size=1100,1400", "--blink-settings=preferredColorScheme=0"],
    );
    let phone = shot("phone.png", &["--window-size=500,1400"]);
    assert_eq!((light.corner, dark.corner), ([255; 3], [0x17, 0x17, 0x1a]));
    for picture in [&light, &dark, &phone] {
        assert!(
            picture.height == 1400 && picture.drawn > 0.01,
            "{} wide: {}",
            picture.width,
            picture.drawn
        );
    }

    // As wide as a telephone, only what lies in a box of its own is wider than the page.
    sluice.write("out/phone.html", PHONE);
    let (dom, _) = open(&browser, &page.with_file_name("phone.html"), &["--dump-dom"]);
    let found = dom.split("<p id=\"found\">").nth(1).unwrap_or_else(|| panic!("{dom}"));
    let numbers: Vec<u32> = found
        .split('<')
        .next()
        .unwrap()
        .split(' ')
        .map(|word| word.parse().unwrap())
        .collect();
    let [wide, window, wider, figures] = numbers[..] else {
        panic!("{numbers:?}")
    };
    assert!(wide <= window && window <= 390, "{numbers:?}");
    assert!(wider > 0 && figures > 0, "{numbers:?}");

    // The test sees what it should: a script that fails, and something that is fetched.
    let bad = "<!doctype html><script>throw new Error('planted')</script>";
    sluice.write("out/bad.html", bad);
    let (_, console) = open(&browser, &page.with_file_name("bad.html"), &["--dump-dom"]);
    assert!(console.iter().any(|line| line.contains("planted")), "{console:?}");
}

/// The report in a frame as wide as a telephone: width of the page, of the frame, boxes that scroll, figures with words.
const PHONE: &str = "<!doctype html><body><script>
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth);
  const figures = [...page.querySelectorAll('svg[role=img]')].filter(svg => svg.querySelector('title'));
  const found = document.createElement('p');
  found.id = 'found';
  found.textContent = [root.scrollWidth, root.clientWidth, boxes.length, figures.length].join(' ');
  document.body.appendChild(found);
}
</script><iframe src='report.html' style='width:390px;height:800px;border:0' onload='look(this)'></iframe></body>";
