//! Numbers as people read them.

/// `0.3 s`, `42 s`, `3 min 20 s`, `1 h 05 min`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.1} s"),
        v if v < 60.0 => format!("{v:.0} s"),
        v if v < 3600.0 => format!("{} min {:02} s", v as u64 / 60, v as u64 % 60),
        v => format!("{} h {:02} min", v as u64 / 3600, v as u64 / 60 % 60),
    }
}

/// `198,502`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `4.2 MB`.
pub fn bytes(value: u64) -> String {
    match value as f64 {
        v if v < 1e3 => format!("{v} B"),
        v if v < 1e6 => format!("{:.1} kB", v / 1e3),
        v if v < 1e9 => format!("{:.1} MB", v / 1e6),
        v => format!("{:.1} GB", v / 1e9),
    }
}

/// A number to six significant digits, without zeros at its end.
pub fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = (5 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    match format!("{value:.digits$}") {
        text if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        text => text,
    }
}

/// As [`figure`], but very large and very small numbers as `1.23e-7`; whole numbers in groups of three digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || !v.is_finite() => value.to_string(),
        v if v.fract() == 0.0 && v < 1e12 => format!("{}{}", if value < 0.0 { "-" } else { "" }, count(v as u64)),
        v if !(1e-4..1e9).contains(&v) => format!("{value:.3e}"),
        _ => {
            let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 8) as usize;
            format!("{value:.digits$}")
        }
    }
}

/// A metric of a ranking, to four decimals.
pub fn metric(value: f64) -> String {
    format!("{value:.4}")
}

/// `43.9 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// How far a value is from another one, as a share of that: `-27 %`.
pub fn change(value: f64, from: f64) -> Option<String> {
    let percent = (100.0 * (value / from - 1.0)).round();
    match percent {
        _ if !percent.is_finite() => None,
        0.0 => Some("0 %".to_string()),
        _ => Some(format!("{percent:+.0} %")),
    }
}

/// `1.2 TFLOP`: floating-point operations.
pub fn flops(value: f64) -> String {
    let units = [
        (1e18, "EFLOP"),
        (1e15, "PFLOP"),
        (1e12, "TFLOP"),
        (1e9, "GFLOP"),
        (1e6, "MFLOP"),
    ];
    match units.iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", value / unit),
        None => format!("{value:.0} FLOP"),
    }
}

/// `950 J`, `12.1 kJ`.
pub fn joules(value: f64) -> String {
    match value {
        v if v < 1e3 => format!("{v:.0} J"),
        v if v < 1e6 => format!("{:.1} kJ", v / 1e3),
        v => format!("{:.1} MJ", v / 1e6),
    }
}

/// A size on an axis: `12`, `98K`, `1.6M`, `25B`.
pub fn size(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    match units.iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{}{name}", figure((value / unit * 100.0).round() / 100.0)),
        None => figure(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(198_502), "198,502");
        assert_eq!(count(12), "12");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(bytes(4_200_000), "4.2 MB");
        assert_eq!(figure(0.262_626_26), "0.262626");
        assert_eq!(figure(1_234_567.5), "1234568");
        assert_eq!(figure(-2.5), "-2.5");
        assert_eq!(
            [short(12_101.0), short(-3.0), short(9.399_467), short(2e-7)],
            ["12,101", "-3", "9.399", "2.000e-7"]
        );
        assert_eq!(change(0.75, 1.0).as_deref(), Some("-25 %"));
        assert_eq!(change(0.999, 1.0).as_deref(), Some("0 %"));
        assert_eq!(change(1.0, 0.0), None);
        assert_eq!(
            [flops(1.13e13), flops(7.36e11), flops(12.0)],
            ["11.3 TFLOP", "736.0 GFLOP", "12 FLOP"]
        );
        assert_eq!(
            [size(98_304.0), size(1_572_864.0), size(20.0)],
            ["98.3K", "1.57M", "20"]
        );
        assert_eq!(joules(12_100.0), "12.1 kJ");
    }
}
