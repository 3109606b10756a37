//! Energy of the processors, where the kernel tells (the RAPL counters under `/sys/class/powercap`).

use std::fs;
use std::path::{Path, PathBuf};

/// Adds up the counters of all packages. A counter starts again from zero after some minutes, so it wants to be read
/// every minute.
pub struct Meter {
    packages: Vec<Package>,
    joules: f64,
}

struct Package {
    counter: PathBuf,
    /// Where the counter starts again, in microjoules.
    range: u64,
    last: u64,
}

impl Meter {
    /// The counters of this machine.
    pub fn here() -> Meter {
        Meter::at(Path::new("/sys/class/powercap"))
    }

    fn at(folder: &Path) -> Meter {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let packages = entries.filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().to_string();
            // `intel-rapl:0` is a package (of AMD too), `intel-rapl:0:1` a part of it.
            let number = name.strip_prefix("intel-rapl:")?;
            number.parse::<u32>().ok()?;
            let counter = entry.path().join("energy_uj");
            let (last, range) = (
                number_in(&counter)?,
                number_in(&entry.path().join("max_energy_range_uj"))?,
            );
            Some(Package { counter, range, last })
        });
        Meter {
            packages: packages.collect(),
            joules: 0.0,
        }
    }

    /// Joules since the start, of the whole machine; `None` where nothing is known.
    pub fn joules(&mut self) -> Option<f64> {
        for package in &mut self.packages {
            let Some(now) = number_in(&package.counter) else {
                continue;
            };
            let turned = if now < package.last { package.range } else { 0 };
            self.joules += (now + turned - package.last) as f64 / 1e6;
            package.last = now;
        }
        (!self.packages.is_empty()).then_some(self.joules)
    }
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_up_over_the_turn_of_a_counter() {
        let folder = tempfile::tempdir().unwrap();
        let set = |zone: &str, file: &str, value: u64| {
            fs::create_dir_all(folder.path().join(zone)).unwrap();
            fs::write(folder.path().join(zone).join(file), format!("{value}\n")).unwrap();
        };
        assert_eq!(Meter::at(folder.path()).joules(), None);
        assert_eq!(Meter::at(&folder.path().join("none")).joules(), None);
        for (zone, start) in [("intel-rapl:0", 5_000_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 7)] {
            set(zone, "energy_uj", start);
            set(zone, "max_energy_range_uj", 9_000_000);
        }
        let mut meter = Meter::at(folder.path());
        assert_eq!(meter.joules(), Some(0.0));
        set("intel-rapl:0", "energy_uj", 8_500_000);
        set("intel-rapl:0:0", "energy_uj", 6_000_000);
        assert_eq!(meter.joules(), Some(3.5));
        set("intel-rapl:0", "energy_uj", 500_000);
        set("intel-rapl:1", "energy_uj", 250_000);
        assert_eq!(meter.joules(), Some(4.75));
    }
}
