//! Figures for LaTeX, drawn by `pgfplots`.

use super::figure::{Axis, Figure, Point, Scale, Series, Shape};
use super::latex::escape;

const COLORS: [&str; 8] = [
    "blue",
    "orange!80!black",
    "green!55!black",
    "violet",
    "yellow!60!black",
    "magenta",
    "teal",
    "gray",
];

/// A floating figure, with the range and the ticks of the drawing.
pub fn figure(figure: &Figure) -> String {
    let drawn = figure.drawable();
    let (x, y) = drawn.scales(&drawn.rows);
    let in_rows = !drawn.rows.is_empty();
    let mut options = vec![
        "width=0.9\\linewidth".to_string(),
        "legend style={font=\\scriptsize, at={(0.5,1.03)}, anchor=south, legend columns=3}".to_string(),
        "scaled ticks=false, xmajorgrids, grid style={gray!20}".to_string(),
        format!("xlabel={{{}}}", escape(&drawn.x.label)),
        ends("x", &drawn.x, &x),
    ];
    match in_rows {
        true => {
            let places: Vec<String> = (0..drawn.rows.len()).map(|row| row.to_string()).collect();
            let names: Vec<String> = drawn.rows.iter().map(|name| format!("{{{}}}", escape(name))).collect();
            options.push(format!(
                "y dir=reverse, ytick={{{}}}, yticklabels={{{}}}",
                places.join(","),
                names.join(",")
            ));
            options.push(format!("height={}cm", 3 + drawn.rows.len()));
        }
        false => {
            options.push(format!("ylabel={{{}}}, height=0.55\\linewidth", escape(&drawn.y.label)));
            options.push(ends("y", &drawn.y, &y));
        }
    }
    let mut body = String::new();
    for (index, series) in drawn.series.iter().enumerate() {
        body.push_str(&plot(series, index, in_rows));
    }
    for guide in &drawn.guides {
        let (from, to) = match guide.upright {
            true => ((guide.at, y.value(y.low)), (guide.at, y.value(y.high))),
            false => ((x.value(x.low), guide.at), (x.value(x.high), guide.at)),
        };
        body.push_str(&format!(
            "\\addplot[dashed, gray, no marks, forget plot] coordinates {{ ({},{}) ({},{}) }} node[pos=0.98, anchor=south east, \
            font=\\scriptsize] {{{}}};\n",
            from.0,
            from.1,
            to.0,
            to.1,
            escape(&guide.label)
        ));
    }
    format!(
        "\\begin{{figure}}[ht]\n\\centering\n\\begin{{tikzpicture}}\n\\begin{{axis}}[{}]\n{body}\\end{{axis}}\n\\end{{tikzpicture}}\n\
        \\caption{{{}}}\n\\end{{figure}}\n",
        options.join(",\n  "),
        escape(&figure.caption)
    )
}

/// Range, ticks and their names of an axis.
fn ends(name: &str, axis: &Axis, scale: &Scale) -> String {
    let places: Vec<String> = scale
        .ticks
        .iter()
        .map(|(place, _)| scale.value(*place).to_string())
        .collect();
    let names: Vec<String> = scale
        .ticks
        .iter()
        .map(|(_, name)| format!("{{{}}}", escape(name)))
        .collect();
    format!(
        "{}{name}min={}, {name}max={}, {name}tick={{{}}}, {name}ticklabels={{{}}}",
        if axis.log {
            format!("{name}mode=log, ")
        } else {
            String::new()
        },
        scale.value(scale.low),
        scale.value(scale.high),
        places.join(","),
        names.join(",")
    )
}

fn plot(series: &Series, index: usize, in_rows: bool) -> String {
    let color = COLORS[series.color % COLORS.len()];
    let legend = match series.name.is_empty() {
        true => String::new(),
        false => format!("\\addlegendentry{{{}}}\n", escape(&series.name)),
    };
    let forget = if legend.is_empty() { ", forget plot" } else { "" };
    let plain = |options: &str| {
        let points: String = series
            .points
            .iter()
            .map(|point| format!(" ({},{})", point.x, point.y))
            .collect();
        format!("\\addplot[{color}, {options}{forget}] coordinates {{{points} }};\n{legend}")
    };
    match series.shape {
        Shape::Line => plain("thick, no marks"),
        Shape::Dashed => plain("thick, dashed, no marks"),
        Shape::Dots | Shape::Circles | Shape::Diamonds => {
            let mark = match series.shape {
                Shape::Dots => "*",
                Shape::Circles => "o",
                _ => "diamond*",
            };
            let bars = |point: &Point| {
                let (low, high) = point.interval?;
                let (a, b) = match in_rows {
                    true => ((low, point.y), (high, point.y)),
                    false => ((point.x, low), (point.x, high)),
                };
                Some(format!(
                    "\\draw[{color}] (axis cs:{},{}) -- (axis cs:{},{});\n",
                    a.0, a.1, b.0, b.1
                ))
            };
            series.points.iter().filter_map(bars).collect::<String>() + &plain(&format!("only marks, mark={mark}"))
        }
        Shape::Band => {
            let side = |of: fn((f64, f64)) -> f64, name: &str| {
                let ends = series
                    .points
                    .iter()
                    .filter_map(|point| Some((point.x, of(point.interval?))));
                let points: String = ends.map(|(x, y)| format!(" ({x},{y})")).collect();
                format!("\\addplot[draw=none, forget plot, name path={name}{index}] coordinates {{{points} }};\n")
            };
            format!(
                "{}{}\\addplot[{color}, opacity=0.2{forget}] fill between[of=low{index} and high{index}];\n{legend}",
                side(|(low, _)| low, "low"),
                side(|(_, high)| high, "high")
            )
        }
    }
}
