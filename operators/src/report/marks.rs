//! Which numbers of a column are the best and the second.

use super::document::Mark;

/// Decimals of a metric in tables: numbers that print alike are alike.
pub const DECIMALS: i32 = 4;

/// The best and the second of a column where more is better, by the figures as they are printed. Alone, nobody is the best.
pub fn marks(values: &[Option<f64>]) -> Vec<Option<Mark>> {
    let printed = |value: f64| (value * 10f64.powi(DECIMALS)).round() as i64;
    let mut levels: Vec<i64> = values.iter().flatten().map(|value| printed(*value)).collect();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    let mark = |value: &Option<f64>| {
        let level = printed((*value)?);
        match levels.iter().position(|other| *other == level) {
            _ if levels.len() < 2 => None,
            Some(0) => Some(Mark::Best),
            Some(1) => Some(Mark::Second),
            _ => None,
        }
    };
    values.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prints_alike_is_marked_alike() {
        use Mark::{Best, Second};
        let marked = marks(&[Some(0.25), Some(0.5), None, Some(0.500_01), Some(0.1)]);
        assert_eq!(marked, [Some(Second), Some(Best), None, Some(Best), None]);
        assert_eq!(marks(&[Some(0.25), None]), [None, None]);
        assert_eq!(marks(&[Some(0.25), Some(0.250_001)]), [None, None]);
    }
}
