//! Figures as SVG, drawn by plotters. Colours are variables of the page, so that one drawing is light and dark.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use sluice_engine::{Error, Result};

use super::figure::{Figure, Scale, Series, Shape};
use super::html::escape;

const WIDTH: u32 = 720;
const HEIGHT: u32 = 380;
/// Height of a row, of a figure with rows.
const ROW: u32 = 34;
const LEGEND_LINE: u32 = 22;
const FONT: &str = "sans-serif";
/// Width of a letter at the size of legends and labels.
const LETTER: f64 = 6.6;
/// Letters of a row's name that fit.
const NAME_LETTERS: usize = 30;
/// Colours of the palette.
pub const COLORS: usize = 8;

// Colours that stand for variables; they occur nowhere else.
const INK: RGBColor = RGBColor(1, 0, 1);
const SOFT: RGBColor = RGBColor(1, 0, 2);
const GRID: RGBColor = RGBColor(1, 0, 3);
const BACK: RGBColor = RGBColor(1, 0, 4);

fn color(series: usize) -> RGBColor {
    RGBColor(2, 0, (series % COLORS) as u8)
}

/// The variables in place of the colours that stand for them.
fn themed(svg: &str) -> String {
    let mut text = svg.to_string();
    for (color, name) in [(INK, "ink"), (SOFT, "soft"), (GRID, "grid"), (BACK, "back")] {
        text = text.replace(&hex(color), &format!("var(--{name})"));
    }
    for series in 0..COLORS {
        text = text.replace(&hex(color(series)), &format!("var(--s{series})"));
    }
    text
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// The variables of both themes, as declarations of CSS.
pub const LIGHT: &str = "--ink:#1b1b1a;--soft:#5f5f59;--grid:#e4e4de;--back:#fff;--s0:#0b5cad;--s1:#c8501e;--s2:#1c7d54;\
    --s3:#8a3fa0;--s4:#9a7400;--s5:#c22f5d;--s6:#2a8a9a;--s7:#6b6b64";
/// See [`LIGHT`].
pub const DARK: &str = "--ink:#ececea;--soft:#a8a8a2;--grid:#33333a;--back:#17171a;--s0:#6cb2f5;--s1:#f79160;--s2:#5fcf9c;\
    --s3:#cf93e6;--s4:#e0bd4c;--s5:#f7809f;--s6:#6fd0de;--s7:#aaaaa3";

/// The figure as an element of a page that has the variables.
pub fn inline(figure: &Figure, id: &str) -> Result<String> {
    let (body, width, height) = drawn(figure)?;
    Ok(format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\">\
        <title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>\n{body}</svg>",
        escape(&figure.caption),
        escape(&figure.alt)
    ))
}

/// The figure as a file.
pub fn standalone(figure: &Figure) -> Result<String> {
    let (body, width, height) = drawn(figure)?;
    Ok(format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\
        <title>{}</title><desc>{}</desc>\n<style>svg{{{LIGHT};background:var(--back)}}@media(prefers-color-scheme:dark){{svg{{{DARK}}}}}</style>\n{body}</svg>\n",
        escape(&figure.caption),
        escape(&figure.alt)
    ))
}

/// What is inside the element, its width and height.
fn drawn(figure: &Figure) -> Result<(String, u32, u32)> {
    let figure = figure.drawable();
    let legend = Legend::of(&figure);
    let body = match figure.rows.len() as u32 {
        0 => HEIGHT,
        rows => 70 + ROW * rows.max(2),
    };
    let height = body + legend.height();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("cannot draw a figure: {error}"));
        let (top, bottom) = root.split_vertically(legend.height());
        legend.draw(&top).map_err(|error| failed(&error))?;
        draw(&figure, &bottom).map_err(|error| failed(&error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    // The element is made anew: with a view box, so that it shrinks with the page, and with words for those who do not see.
    let inside = text
        .find("<svg")
        .and_then(|start| text[start..].find('>').map(|end| start + end + 1))
        .zip(text.rfind("</svg>"));
    let (start, end) = inside.ok_or_else(|| Error::internal("a drawing without an element"))?;
    Ok((themed(&text[start..end]), WIDTH, height))
}

type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

/// An axis in the units that are drawn, with its own ticks.
struct Ticked(Scale);

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value - self.0.low) / (self.0.high - self.0.low);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, _hint: H) -> Vec<f64> {
        self.0.ticks.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.0.low..self.0.high
    }
}

fn draw(figure: &Figure, area: &Drawing) -> Result<(), Failure> {
    let points = || figure.series.iter().flat_map(|series| &series.points);
    let in_rows = !figure.rows.is_empty();
    let names: Vec<String> = figure.rows.iter().map(|name| cut(name, NAME_LETTERS)).collect();
    let (x, y) = figure.scales(&names);
    let longest = y.ticks.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER) as u32 + if in_rows { 18 } else { 40 };
    let mut chart = ChartBuilder::on(area)
        .margin_top(8)
        .margin_right(24)
        .margin_bottom(4)
        .margin_left(4)
        .x_label_area_size(46)
        .y_label_area_size(left)
        .build_cartesian_2d(Ticked(x.clone()), Ticked(y.clone()))?;
    let label = (FONT, 15).into_font().color(&SOFT);
    let (x_name, y_name) = (
        |place: &f64| x.name(*place).to_string(),
        |place: &f64| y.name(*place).to_string(),
    );
    let mut mesh = chart.configure_mesh();
    mesh.axis_style(SOFT)
        .bold_line_style(GRID)
        .light_line_style(GRID)
        .label_style(label.clone())
        .axis_desc_style((FONT, 16).into_font().color(&INK))
        .x_desc(&figure.x.label)
        .x_label_formatter(&x_name)
        .y_label_formatter(&y_name);
    match in_rows {
        true => mesh.disable_y_mesh(),
        false => mesh.y_desc(&figure.y.label),
    };
    mesh.draw()?;
    for guide in &figure.guides {
        // The words stand where there is room for them.
        let (from, to, at_left) = match guide.upright {
            true => {
                let at = x.place(guide.at);
                ((at, y.low), (at, y.high), at < (x.low + x.high) / 2.0)
            }
            false => {
                let at = y.place(guide.at);
                ((x.low, at), (x.high, at), true)
            }
        };
        let (words_at, anchor, shift) = match (guide.upright, at_left) {
            (true, true) => (to, Pos::new(HPos::Left, VPos::Top), (6, 4)),
            (true, false) => (to, Pos::new(HPos::Right, VPos::Top), (-6, 4)),
            (false, _) => (from, Pos::new(HPos::Left, VPos::Bottom), (8, -3)),
        };
        let line = [from, to].into_iter();
        chart.draw_series(DashedLineSeries::new(line, 5, 4, SOFT.stroke_width(1)))?;
        let style = (FONT, 14).into_font().color(&SOFT).pos(anchor);
        chart.draw_series([EmptyElement::at(words_at) + Text::new(guide.label.clone(), shift, style)])?;
    }
    // In a figure with rows, what lies in one row is joined by a thin line.
    for row in 0..figure.rows.len() {
        let here = points()
            .filter(|point| point.y == row as f64)
            .map(|point| x.place(point.x));
        let (low, high) = here.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), at| {
            (low.min(at), high.max(at))
        });
        if low < high {
            let at = figure.rows.len() as f64 - 1.0 - row as f64;
            chart.draw_series(LineSeries::new([(low, at), (high, at)], SOFT.mix(0.45).stroke_width(2)))?;
        }
    }
    for series in &figure.series {
        let place = |at_x: f64, at_y: f64| match in_rows {
            true => (x.place(at_x), figure.rows.len() as f64 - 1.0 - at_y),
            false => (x.place(at_x), y.place(at_y)),
        };
        let color = color(series.color);
        let line = || series.points.iter().map(|point| place(point.x, point.y));
        match series.shape {
            Shape::Line => {
                chart.draw_series(LineSeries::new(line(), color.stroke_width(2)))?;
            }
            Shape::Dashed => {
                chart.draw_series(DashedLineSeries::new(line(), 7, 4, color.stroke_width(2)))?;
            }
            Shape::Band => {
                let end = |of: fn((f64, f64)) -> f64| {
                    let ends = series
                        .points
                        .iter()
                        .filter_map(move |point| Some((point.x, of(point.interval?))));
                    ends.map(|(at, end)| place(at, end)).collect::<Vec<_>>()
                };
                let lower = end(|(low, _)| low);
                let around: Vec<_> = end(|(_, high)| high)
                    .into_iter()
                    .chain(lower.into_iter().rev())
                    .collect();
                if around.len() > 2 {
                    chart.draw_series([Polygon::new(around, color.mix(0.18).filled())])?;
                }
            }
            Shape::Dots | Shape::Circles | Shape::Diamonds => {
                for point in &series.points {
                    let at = place(point.x, point.y);
                    if let Some((low, high)) = point.interval {
                        let ends = match in_rows {
                            true => [(x.place(low), at.1), (x.place(high), at.1)],
                            false => [(at.0, y.place(low)), (at.0, y.place(high))],
                        };
                        chart.draw_series([PathElement::new(ends.to_vec(), color.stroke_width(2))])?;
                    }
                    match series.shape {
                        Shape::Dots => chart.draw_series([Circle::new(at, 5, color.filled())])?,
                        Shape::Circles => {
                            chart.draw_series([Circle::new(at, 5, BACK.filled())])?;
                            chart.draw_series([Circle::new(at, 5, color.stroke_width(2))])?
                        }
                        _ => chart.draw_series([EmptyElement::at(at) + Polygon::new(diamond(), color.filled())])?,
                    };
                }
            }
        }
    }
    Ok(())
}

/// A diamond around its place.
fn diamond() -> Vec<(i32, i32)> {
    vec![(0, -7), (6, 0), (0, 7), (-6, 0)]
}

/// The series with names, in lines above the figure.
struct Legend<'a> {
    lines: Vec<Vec<(u32, &'a Series)>>,
}

impl<'a> Legend<'a> {
    fn of(figure: &'a Figure) -> Self {
        let mut lines: Vec<Vec<(u32, &Series)>> = Vec::new();
        let mut at = WIDTH;
        for series in figure.series.iter().filter(|series| !series.name.is_empty()) {
            let width = 46 + (series.name.chars().count() as f64 * (LETTER + 0.4)) as u32;
            if at + width > WIDTH {
                lines.push(Vec::new());
                at = 12;
            }
            if let Some(line) = lines.last_mut() {
                line.push((at, series));
            }
            at += width;
        }
        Legend { lines }
    }

    fn height(&self) -> u32 {
        match self.lines.len() as u32 {
            0 => 0,
            lines => lines * LEGEND_LINE + 8,
        }
    }

    fn draw(&self, area: &Drawing) -> Result<(), Failure> {
        let style = (FONT, 15)
            .into_font()
            .color(&INK)
            .pos(Pos::new(HPos::Left, VPos::Center));
        for (number, line) in self.lines.iter().enumerate() {
            let y = (number as u32 * LEGEND_LINE + 16) as i32;
            for (x, series) in line {
                let x = *x as i32;
                let color = color(series.color);
                match series.shape {
                    Shape::Line => area.draw(&PathElement::new(vec![(x, y), (x + 22, y)], color.stroke_width(3)))?,
                    Shape::Dashed => {
                        for from in [x, x + 13] {
                            area.draw(&PathElement::new(vec![(from, y), (from + 8, y)], color.stroke_width(3)))?;
                        }
                    }
                    Shape::Band => {
                        area.draw(&Rectangle::new([(x, y - 6), (x + 22, y + 6)], color.mix(0.25).filled()))?
                    }
                    Shape::Dots => area.draw(&Circle::new((x + 11, y), 5, color.filled()))?,
                    Shape::Circles => area.draw(&Circle::new((x + 11, y), 5, color.stroke_width(2)))?,
                    Shape::Diamonds => {
                        let moved = diamond()
                            .into_iter()
                            .map(|(a, b)| (x + 11 + a, y + b))
                            .collect::<Vec<_>>();
                        area.draw(&Polygon::new(moved, color.filled()))?;
                    }
                }
                area.draw(&Text::new(series.name.clone(), (x + 30, y), style.clone()))?;
            }
        }
        Ok(())
    }
}

/// The text, or its beginning with a sign that there is more.
pub fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figure::{Axis, Guide, Point};

    fn figure() -> Figure {
        let points = [1e5, 1e6, 1e7].map(|x: f64| Point {
            interval: Some((0.01 * x.ln() - 0.01, 0.01 * x.ln() + 0.01)),
            ..Point::at(x, 0.01 * x.ln())
        });
        let series = |name: &str, shape| Series {
            name: name.into(),
            color: 1,
            shape,
            points: points.to_vec(),
        };
        Figure {
            caption: "a <b> & \"c\"".into(),
            alt: "grows".into(),
            x: Axis {
                label: "parameters".into(),
                log: true,
                sizes: true,
            },
            y: Axis {
                label: "recall".into(),
                log: true,
                sizes: false,
            },
            series: [
                Shape::Band,
                Shape::Line,
                Shape::Dashed,
                Shape::Dots,
                Shape::Circles,
                Shape::Diamonds,
            ]
            .map(|shape| series("</svg><script>alert(1)</script>", shape))
            .to_vec(),
            guides: vec![Guide {
                upright: true,
                at: 2e6,
                label: "<here>".into(),
            }],
            ..Figure::default()
        }
    }

    #[test]
    fn a_figure_has_words_and_the_colours_of_the_page() {
        let svg = inline(&figure(), "f1").unwrap();
        assert!(svg.starts_with("<svg viewBox=\"0 0 720 "), "{svg}");
        assert!(
            svg.contains("<title id=\"f1-title\">a &lt;b&gt; &amp; &quot;c&quot;</title>"),
            "{svg}"
        );
        assert!(
            svg.contains("role=\"img\"") && svg.contains("1M") && svg.contains("parameters"),
            "{svg}"
        );
        assert!(
            svg.contains("var(--s1)") && svg.contains("var(--ink)") && svg.contains("var(--grid)"),
            "{svg}"
        );
        assert!(!svg.contains("\"#"), "a colour is no variable: {svg}");
        assert!(!svg.contains("<script") && !svg.contains("<here>"), "{svg}");
        assert_eq!(svg.matches("</svg>").count(), 1);
        let file = standalone(&figure()).unwrap();
        assert!(
            file.contains("prefers-color-scheme:dark") && file.contains("--s1:"),
            "{file}"
        );
    }

    #[test]
    fn what_is_in_rows_names_them() {
        let mut figure = figure();
        figure.rows = vec!["first".into(), "a name that is longer than what fits there".into()];
        for series in &mut figure.series {
            series.points = vec![Point::at(0.1, 0.0), Point::at(0.2, 1.0), Point::at(0.3, 1.0)];
        }
        (figure.x.log, figure.y.log) = (false, false);
        let svg = inline(&figure, "f1").unwrap();
        assert!(
            svg.contains("first") && svg.contains("a name that is longer than wh…"),
            "{svg}"
        );
    }

    #[test]
    fn an_empty_figure_is_drawn_empty() {
        assert!(inline(&Figure::default(), "f").unwrap().contains("</svg>"));
    }
}
