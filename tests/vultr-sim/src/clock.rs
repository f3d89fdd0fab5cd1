//! The cloud's calendar, in the two forms in which the API writes its dates.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as volumes and instances have it: `2020-10-10T01:56:20+00:00`.
pub(crate) fn now() -> String {
    let (day, time) = date(seconds());
    format!("{day}T{time}+00:00")
}

/// Now, as snapshots and file systems have it: `2020-10-10 01:56:20`.
pub(crate) fn now_without_zone() -> String {
    let (day, time) = date(seconds());
    format!("{day} {time}")
}

/// Since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Day and time of so many seconds since 1970.
fn date(seconds: u64) -> (String, String) {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that a leap day is the last one of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    (format!("{year:04}-{month:02}-{day:02}"), format!("{hour:02}:{minute:02}:{second:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendar_s() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_602_294_980, "2020-10-10 01:56:20"),
            (4_102_444_799, "2099-12-31 23:59:59"),
        ] {
            let (day, time) = date(seconds);
            assert_eq!(format!("{day} {time}"), text);
        }
    }
}
