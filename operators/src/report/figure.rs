//! What a figure shows, apart from how it is drawn.

use serde::{Deserialize, Serialize};

use super::numbers;

/// A figure: series over two axes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it shows.
    pub caption: String,
    /// The same in words, for those who do not see it.
    pub alt: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Names of the rows, from top to bottom, if the vertical axis is no number; points then have the row as `y`.
    pub rows: Vec<String>,
    /// What is drawn, the later over the earlier.
    pub series: Vec<Series>,
    /// Lines across the figure.
    pub guides: Vec<Guide>,
    /// The inputs that it is drawn from.
    pub sources: Vec<String>,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// Whether it is logarithmic.
    pub log: bool,
    /// Whether its numbers are sizes (`1.6M`).
    pub sizes: bool,
}

/// A series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name in the legend; without one it is not there.
    pub name: String,
    /// Which colour of the palette.
    pub color: usize,
    /// How it is drawn.
    pub shape: Shape,
    /// Its points in order.
    pub points: Vec<Point>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A line.
    Line,
    /// A broken line.
    Dashed,
    /// Points, with their intervals.
    Dots,
    /// Circles, with their intervals.
    Circles,
    /// Diamonds, with their intervals.
    Diamonds,
    /// The area between the ends of the intervals.
    Band,
}

/// A point. Its interval is along the axis of values: horizontal in a figure with rows, else vertical.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Place on the horizontal axis.
    pub x: f64,
    /// Place on the vertical axis.
    pub y: f64,
    /// Ends of its interval.
    pub interval: Option<(f64, f64)>,
}

/// A line across the figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guide {
    /// Whether it stands at a place of the horizontal axis (else it lies at one of the vertical axis).
    pub upright: bool,
    /// The place.
    pub at: f64,
    /// What it says.
    pub label: String,
}

impl Point {
    /// A point without an interval.
    pub fn at(x: f64, y: f64) -> Self {
        Point { x, y, interval: None }
    }
}

impl Figure {
    /// The figure without what cannot be drawn: numbers that are not finite, or not positive on a logarithmic axis.
    pub fn drawable(&self) -> Figure {
        let fits = |axis: &Axis, value: f64| value.is_finite() && (!axis.log || value > 0.0);
        let values = if self.rows.is_empty() { &self.y } else { &self.x };
        let mut figure = self.clone();
        for series in &mut figure.series {
            series
                .points
                .retain(|point| fits(&self.x, point.x) && fits(&self.y, point.y));
            for point in &mut series.points {
                // An end that a logarithmic axis does not have is drawn at the point itself.
                point.interval = point.interval.map(|(low, high)| {
                    let middle = if self.rows.is_empty() { point.y } else { point.x };
                    let end = |end: f64| if fits(values, end) { end } else { middle };
                    (end(low), end(high))
                });
            }
        }
        figure.series.retain(|series| !series.points.is_empty());
        figure
            .guides
            .retain(|guide| fits(if guide.upright { &self.x } else { &self.y }, guide.at));
        figure
    }

    /// The horizontal and the vertical scale that hold all of it; rows go by these names.
    pub fn scales(&self, rows: &[String]) -> (Scale, Scale) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let ends = || {
            let ends = points().flat_map(|point| point.interval);
            ends.flat_map(|(low, high)| [low, high])
        };
        let guides = |upright: bool| {
            let guides = self.guides.iter().filter(move |guide| guide.upright == upright);
            guides.map(|guide| guide.at)
        };
        let across = points().map(|point| point.x).chain(guides(true));
        match rows.is_empty() {
            false => (Scale::over(&self.x, across.chain(ends())), Scale::of_rows(rows)),
            true => {
                let upwards = points().map(|point| point.y).chain(ends()).chain(guides(false));
                (Scale::over(&self.x, across), Scale::over(&self.y, upwards))
            }
        }
    }

    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.drawable().series.is_empty()
    }
}

/// An axis with its range and ticks, in the units that are drawn (logarithms, on a logarithmic one).
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    log: bool,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Places with what they are called.
    pub ticks: Vec<(f64, String)>,
}

impl Scale {
    /// A scale that holds these values, with a little room at both ends. A linear one that begins near 0 begins there.
    pub fn over(axis: &Axis, values: impl Iterator<Item = f64>) -> Scale {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        let place = |value: f64| if axis.log { value.log10() } else { value };
        values.map(place).filter(|value| value.is_finite()).for_each(|value| {
            (low, high) = (low.min(value), high.max(value));
        });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-12 * high.abs().max(1e-300) {
            let room = if low == 0.0 || axis.log { 0.5 } else { 0.1 * low.abs() };
            (low, high) = (low - room, high + room);
        }
        let room = 0.05 * (high - low);
        let from_zero = !axis.log && low >= 0.0 && low < 0.35 * high;
        let low = if from_zero { 0.0 } else { low - room };
        let high = high + room;
        let ticks = if axis.log {
            log_ticks(low, high)
        } else {
            linear_ticks(low, high)
        };
        let name = |value: f64| match (axis.sizes, axis.log) {
            (true, _) => numbers::size(value),
            (false, true) if !(1e-4..1e6).contains(&value) => format!("{value:.0e}"),
            _ => numbers::figure((value * 1e9).round() / 1e9),
        };
        let ticks = ticks.into_iter().map(|value| (place(value), name(value))).collect();
        let log = axis.log;
        Scale { log, low, high, ticks }
    }

    /// The rows of a figure: places 0, 1, ... from top to bottom.
    pub fn of_rows(rows: &[String]) -> Scale {
        let count = rows.len() as f64;
        let place = |row: usize| count - 1.0 - row as f64;
        Scale {
            log: false,
            low: -0.6,
            high: count - 0.4,
            ticks: rows
                .iter()
                .enumerate()
                .map(|(row, name)| (place(row), name.clone()))
                .collect(),
        }
    }

    /// Where a value is drawn.
    pub fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The value that is drawn at a place.
    pub fn value(&self, place: f64) -> f64 {
        if self.log { 10f64.powf(place) } else { place }
    }

    /// What a tick is called.
    pub fn name(&self, place: f64) -> &str {
        let near = |tick: &&(f64, String)| (tick.0 - place).abs() <= 1e-9 * (self.high - self.low).abs();
        self.ticks.iter().find(near).map_or("", |(_, name)| name)
    }
}

/// Round numbers, 1, 2 or 5 times a power of ten apart.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * unit);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(unit);
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Powers of ten; with 2 and 5 times these where there are few, and more where even these are few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = high - low;
    let times: &[f64] = match decades {
        d if d > 3.0 => &[1.0],
        d if d > 1.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    };
    let within = |value: &f64| (low..=high).contains(&value.log10());
    let powers = low.floor() as i32..=high.ceil() as i32;
    let ticks: Vec<f64> = powers
        .flat_map(|power| times.iter().map(move |times| times * 10f64.powi(power)))
        .filter(within)
        .collect();
    match ticks.len() {
        0..4 => linear_ticks(10f64.powf(low), 10f64.powf(high)),
        _ => ticks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(axis: &Axis, values: &[f64]) -> Vec<String> {
        let scale = Scale::over(axis, values.iter().copied());
        scale
            .ticks
            .iter()
            .map(|(place, _)| scale.name(*place).to_string())
            .collect()
    }

    #[test]
    fn ticks_are_round() {
        let linear = Axis::default();
        assert_eq!(names(&linear, &[0.01, 0.064])[..4], ["0", "0.01", "0.02", "0.03"]);
        assert_eq!(names(&linear, &[5.0, 5.0])[..3], ["4.6", "4.8", "5"]);
        let log = |sizes| Axis {
            log: true,
            sizes,
            ..Axis::default()
        };
        assert_eq!(
            names(&log(true), &[98_304.0, 2_497_472.0]),
            ["100K", "200K", "500K", "1M", "2M"]
        );
        assert_eq!(names(&log(true), &[1e3, 1e9])[..3], ["1K", "10K", "100K"]);
        assert_eq!(names(&log(false), &[0.036, 0.049])[..3], ["0.036", "0.038", "0.04"]);
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let points = vec![
            Point::at(0.0, 1.0),
            Point::at(1.0, f64::NAN),
            Point {
                interval: Some((-1.0, 3.0)),
                ..Point::at(2.0, 2.0)
            },
        ];
        let figure = Figure {
            x: Axis {
                log: true,
                ..Axis::default()
            },
            y: Axis {
                log: true,
                ..Axis::default()
            },
            series: vec![Series {
                name: String::new(),
                color: 0,
                shape: Shape::Dots,
                points,
            }],
            ..Figure::default()
        };
        let drawn = figure.drawable();
        assert_eq!(
            drawn.series[0].points,
            [Point {
                interval: Some((2.0, 3.0)),
                ..Point::at(2.0, 2.0)
            }]
        );
        assert!(!figure.is_empty() && Figure::default().is_empty());
    }
}
