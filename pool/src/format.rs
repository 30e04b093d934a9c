//! Numbers as people read them.
#![forbid(unsafe_code)]

/// Thousandths of GPUs: `2`, `0.25`.
pub(crate) fn gpus(permille: u64) -> String {
    let text = format!("{}.{:03}", permille / 1000, permille % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes in the largest unit of which there is one: `1.5 GiB`.
// Four digits are shown.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let rounded = (value * 10.0).round() / 10.0;
    if rounded >= 100.0 || rounded.fract() == 0.0 {
        format!("{rounded:.0} {}", UNITS[unit])
    } else {
        format!("{rounded:.1} {}", UNITS[unit])
    }
}

/// A rate as a number: `0.4`, `12`, `31.5 k`, `2.1 M`.
pub(crate) fn per_s(rate: f64) -> String {
    let rate = rate.max(0.0);
    let short = |value: f64| {
        let text = if value >= 99.95 {
            format!("{value:.0}")
        } else {
            format!("{value:.1}")
        };
        text.strip_suffix(".0").unwrap_or(&text).to_owned()
    };
    match rate {
        0.0..9999.5 => short(rate),
        9999.5..999_950.0 => format!("{} k", short(rate / 1e3)),
        _ => format!("{} M", short(rate / 1e6)),
    }
}

/// A rate of bytes: `1.5 MiB/s`.
pub(crate) fn bytes_per_s(rate: f64) -> String {
    format!("{}/s", bytes(whole(rate)))
}

/// A short time: `0 µs`, `7.5 µs`, `42 µs`, `1.2 ms`.
pub(crate) fn micros(us: f64) -> String {
    match us {
        ..0.05 => "0 µs".to_owned(),
        0.05..9.95 => format!("{us:.1} µs"),
        9.95..999.5 => format!("{us:.0} µs"),
        _ => format!("{:.1} ms", us / 1000.0),
    }
}

/// GPUs as a part of their time: `0.35`, `2.5`.
pub(crate) fn part_gpus(count: f64) -> String {
    gpus(whole(count * 100.0) * 10)
}

/// A part as a percentage: `37 %`.
pub(crate) fn part(part: f64) -> String {
    format!("{} %", whole(part * 100.0))
}

// Never negative, and far from the limits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// A length of time in its largest unit: `40 s`, `12 min`, `3 h`, `9 d`.
pub(crate) fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// `2026-11-23 14:05:09 UTC`
pub(crate) fn time(at_ms: u64) -> String {
    let (year, month, day) = date(at_ms / 86_400_000);
    format!("{year:04}-{month:02}-{day:02} {} UTC", clock(at_ms))
}

/// `2026-11-23T14:05:09Z`
pub(crate) fn machine_time(at_ms: u64) -> String {
    let (year, month, day) = date(at_ms / 86_400_000);
    format!("{year:04}-{month:02}-{day:02}T{}Z", clock(at_ms))
}

/// `14:05:09`
pub(crate) fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1000 % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// `23 Nov`
pub(crate) fn short_date(at_ms: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, month, day) = date(at_ms / 86_400_000);
    let month = usize::try_from(month).unwrap_or(1);
    format!("{day} {}", MONTHS[(month - 1) % 12])
}

/// Year, month and day of a day since the epoch: Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for days after the epoch.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// `held` of `all`, in percent.
pub(crate) fn percent(part: u64, all: u64) -> u64 {
    (part.saturating_mul(100) + all / 2)
        .checked_div(all)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{
        bytes, bytes_per_s, gpus, machine_time, micros, part, part_gpus, per_s, percent,
        short_date, span, time,
    };

    #[test]
    fn rates_and_parts_are_short() {
        let rates = [0.0, 0.44, 12.0, 9999.0, 31_460.0, 2_140_000.0].map(per_s);
        assert_eq!(rates, ["0", "0.4", "12", "9999", "31.5 k", "2.1 M"]);
        assert_eq!(bytes_per_s(1.5 * 1024.0), "1.5 KiB/s");
        let times = [0.0, 7.52, 41.7, 999.7, 25_000.0].map(micros);
        assert_eq!(times, ["0 µs", "7.5 µs", "42 µs", "1.0 ms", "25.0 ms"]);
        assert_eq!(
            (part_gpus(0.354), part_gpus(2.5)),
            ("0.35".to_owned(), "2.5".to_owned())
        );
        assert_eq!(part(0.371), "37 %");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(gpus(2050), "2.05");
        assert_eq!(gpus(0), "0");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(80 << 30), "80 GiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes((1 << 40) - 1), "1 TiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(span(119_999), "119 s");
        assert_eq!(span(3 * 86_400_000), "3 d");
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(1, 0), 0);
    }

    #[test]
    fn times_are_right() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(machine_time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(short_date(1_735_689_599_000), "31 Dec");
    }
}
