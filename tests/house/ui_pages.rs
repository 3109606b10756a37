//! `sluice ui` as a person meets it: pages in a real browser, clicked and typed into, while a training runs.

use std::time::Duration;

use crate::browser::{Tab, browser};
use crate::sluice::{Sluice, TINY, recipe};
use crate::ui::{Served, large};

const SOON: Duration = Duration::from_secs(20);
/// A training in miniature takes seconds; beside other tests, longer.
const LATER: Duration = Duration::from_secs(180);

/// Names that are hostile to a page.
const HOSTILE: &str = "\
pipeline: hostile
stages:
  shop: { op: synthesize, users: 50, items: 200 }
  bad:  { op: sql, inputs: { o: shop.interactions }, query: \"SELECT DISTINCT '<img src=x onerror=alert(1)>' AS \\\"<b>name</b>\\\", '</td><script>alert(2)</script>' AS b FROM o\" }
  list: { op: sql, inputs: { '<i>o': bad }, query: 'SELECT * FROM \"<i>o\" ORDER BY b' }
show: [bad]
";

/// Whether a place of the page shows a text.
fn shows(selector: &str, text: &str) -> String {
    format!("[...document.querySelectorAll('{selector}')].some(e => e.textContent.includes('{text}'))")
}

/// Nothing is wider than the page, whatever lies in boxes of its own.
fn fits(tab: &mut Tab, page: &str) {
    let widths = tab.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]");
    assert!(widths[0].as_u64() <= widths[1].as_u64(), "{page}: {widths}");
}

#[test]
fn a_training_is_watched_from_start_to_end() {
    let Some(browser) = browser() else { return };
    let sluice = Sluice::with(&[
        ("quickstart.yaml", &recipe("quickstart.yaml")),
        ("hostile.yaml", HOSTILE),
    ]);
    sluice.succeed(&["run", "hostile.yaml", "--quiet"]);
    let served = Served::over(&sluice);
    let mut tab = Tab::open(&browser);
    tab.look(1200, 900, false);
    tab.go(&served.url);
    tab.wait(&shows("h1", "Overview"), SOON);
    // The token is not left where it can be seen, and scripts cannot read the cookie.
    assert_eq!(tab.value("location.search + document.cookie"), "");

    let arguments = [
        &[
            "run",
            "quickstart.yaml",
            "--quiet",
            "--set=tiger.max_steps=600",
            "--set=tiger.patience=1000",
        ],
        &TINY[..5],
        &TINY[6..],
    ]
    .concat();
    let mut run = sluice.command(&arguments).spawn().unwrap();
    // Without a reload the overview tells of the run.
    tab.wait(&shows("h2", "Running now"), LATER);
    tab.click("main a[data-key='pipeline quickstart']");
    tab.wait("document.querySelectorAll('.node').length === 19", SOON);
    tab.wait("document.querySelector('.node.running')", LATER);
    tab.wait("document.querySelector('.node.running[data-stage=tiger]')", LATER);
    tab.wait(&shows(".node[data-stage=tiger] .small", "steps"), LATER);
    assert_eq!(
        tab.value("document.querySelector('.node[data-stage=core]').getAttribute('class')"),
        "node ran"
    );
    tab.click("section h2 a");
    tab.wait(&shows("h1 .badge", "running"), SOON);
    tab.click(".tabs a[href$='/curves']");
    // The line of the loss grows.
    let line = "document.querySelector('[data-chart=loss] path.line').getAttribute('d').length";
    tab.wait(line, LATER);
    let before = tab.value(line).as_u64().unwrap();
    tab.wait(&format!("{line} > {before}"), LATER);
    tab.click(".tabs a[href$='/log']");
    tab.wait(&shows(".log li", "started: train_tiger"), SOON);
    assert!(run.wait().unwrap().success());
    tab.wait(&shows("h1 .badge", "done"), LATER);
    tab.wait(&shows(".log li", "run done"), SOON);

    // What it shows, and why a stage ran.
    tab.click(".tabs a[href$='/tables']");
    tab.wait(&shows(".grid td", "popularity"), SOON);
    tab.click(".tabs a");
    tab.click(".node[data-stage=tiger]");
    tab.wait(&shows("dd", "train_tiger, version"), SOON);
    assert_eq!(tab.value(&shows(".facts li", "never ran")), true);

    // Artifacts are found by what is typed; one is opened.
    tab.click("header a[href='#/artifacts']");
    tab.click("input[type=search]");
    tab.write("train_tiger curve");
    tab.wait("document.querySelectorAll('tbody tr').length === 1", SOON);
    tab.click("tbody a");
    tab.wait(&shows(".grid th", "train_loss"), SOON);

    // The report is shown in a frame that runs no script.
    tab.value("location.hash = '#/artifacts?search=render_report'");
    tab.wait("document.querySelectorAll('tbody tr').length === 1", SOON);
    tab.click("tbody a");
    tab.wait("document.querySelector('iframe.report')", SOON);
    assert_eq!(
        tab.value("document.querySelector('iframe.report').getAttribute('sandbox')"),
        ""
    );

    console(&mut tab);
    hostile(&mut tab);
    left_early(&mut tab);
    for page in ["", "runs", "curves", "artifacts", "sql", "pipelines/quickstart"] {
        tab.look(390, 800, true);
        tab.value(&format!("location.hash = '#/{page}'"));
        tab.wait("document.querySelector('.page h1')", SOON);
        fits(&mut tab, page);
    }
    assert_eq!(
        tab.value("getComputedStyle(document.body).backgroundColor"),
        "rgb(23, 23, 26)"
    );
    // An error of a statement is an answer with a status, which the browser's console tells as well.
    tab.complaints.retain(|complaint| !complaint.contains("/api/sql"));
    assert_eq!(tab.complaints, Vec::<String>::new());
}

/// Ctrl+Enter runs a statement; its error has a hint.
fn console(tab: &mut Tab) {
    tab.click("header a[href='#/sql']");
    tab.click("#statement");
    tab.write("SELECT count(*) AS n, 'a' || 'b' AS text FROM sys.runs");
    tab.control_enter();
    tab.wait(&shows(".grid td", "ab"), SOON);
    assert_eq!(tab.value("document.querySelector('.grid td').textContent"), "2");
    tab.click("#statement");
    tab.write("SELECT pipelin FROM sys.runs");
    tab.click("button.primary");
    tab.wait(&shows(".problem", "did you mean \"pipeline\""), SOON);
}

/// Pages that are left before the server has answered, after any number of milliseconds: nothing is complained about.
fn left_early(tab: &mut Tab) {
    let leave = r"(async () => {
        const run = document.querySelector('tbody a.mono').getAttribute('href');
        const wait = ms => new Promise(done => setTimeout(done, ms));
        for (const page of ['#/pipelines/quickstart', run, `${run}/curves`, `${run}/tables`, `${run}/log`, `${run}/source`, '#/curves', '#/artifacts'])
            for (let ms = 0; ms < 12; ms++) {
                location.hash = page;
                await wait(ms);
                location.hash = '#/sql';
                await wait(1);
            }
    })()";
    tab.value("location.hash = '#/runs'");
    tab.wait("document.querySelector('tbody a')", SOON);
    tab.value(leave);
}

/// Names and values stay text.
fn hostile(tab: &mut Tab) {
    tab.value("location.hash = '#/pipelines/hostile'");
    tab.click("section h2 a");
    tab.click(".tabs a[href$='/tables']");
    tab.wait(&shows(".grid td", "onerror=alert"), SOON);
    assert_eq!(
        tab.value("document.querySelectorAll('main img, main script, main b b, main i').length"),
        0
    );
    tab.value("location.hash = location.hash.replace(/tables$/, 'stage/list')");
    tab.wait(&shows("dd", "<i>o"), SOON);
    // Runs are compared by choosing two of them.
    tab.click("header a[href='#/runs']");
    tab.click("tbody tr:nth-child(1) input");
    tab.click("tbody tr:nth-child(2) input");
    tab.click("a.button[data-key=compare][href]");
    tab.wait(&shows("dd", "quickstart"), SOON);
    tab.wait(&shows("details b", "shop"), SOON);
}

/// First paint over 1,000 artifacts and 200 runs within a second. Other tests run beside this one: of three the fastest counts.
#[test]
#[expect(clippy::print_stderr, reason = "says how long it took")]
fn a_large_store_is_painted_within_a_second() {
    let Some(browser) = browser() else { return };
    let sluice = large();
    let served = Served::over(&sluice);
    let mut tab = Tab::open(&browser);
    tab.look(1200, 900, false);
    let mut paints = Vec::new();
    for _ in 0..3 {
        tab.go("about:blank");
        tab.go(&served.url);
        let paint = tab.first_paint();
        // What is painted first says that it loads; what matters is there soon after.
        tab.wait(&shows("main a", "pipeline_3"), SOON);
        let rows = tab
            .value("performance.getEntriesByType('resource').find(e => e.name.endsWith('/api/overview')).responseEnd");
        paints.push((paint, rows.as_f64().unwrap()));
    }
    let best = |of: fn(&(f64, f64)) -> f64| paints.iter().map(of).fold(f64::MAX, f64::min);
    let (paint, rows) = (best(|one| one.0), best(|one| one.1));
    eprintln!("first paint after {paint:.0} ms, the overview's data after {rows:.0} ms: {paints:?}");
    assert!(paint < 1000.0 && rows < 1000.0, "{paints:?}");
    for (page, sign) in [("runs", "Runs"), ("artifacts", "Artifacts"), ("curves", "Curves")] {
        tab.value(&format!("location.hash = '#/{page}'"));
        tab.wait(&shows(".page h1", sign), SOON);
        fits(&mut tab, page);
    }
    assert_eq!(tab.complaints, Vec::<String>::new());
}
