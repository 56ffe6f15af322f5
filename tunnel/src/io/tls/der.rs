//! The two things that are read of a certificate and that webpki does not tell: when it is valid, and all its names.
//!
//! What is read here decides nothing about trust; it is for warnings and renewals.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When a certificate is valid (RFC 5280, section 4.1.2.5), to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: SystemTime,
    /// Until then.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads it from a certificate; `None` when that is malformed.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let mut validity = Reader(before_subject(certificate)?.1);
        Some(Self {
            not_before: validity.time()?,
            not_after: validity.time()?,
        })
    }
}

/// Returns the DNS names, in small letters, and the addresses of a certificate; `None` when that is malformed.
pub(super) fn names(certificate: &[u8]) -> Option<BTreeSet<String>> {
    let (mut rest, _) = before_subject(certificate)?;
    let _subject = rest.expect(SEQUENCE)?;
    let _key = rest.expect(SEQUENCE)?;
    let mut names = BTreeSet::new();
    while let Some((tag, content)) = rest.next() {
        if tag != EXTENSIONS {
            continue;
        }
        let mut extensions = Reader(Reader(content).expect(SEQUENCE)?);
        while let Some((SEQUENCE, extension)) = extensions.next() {
            let mut extension = Reader(extension);
            if extension.expect(OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
                continue;
            }
            while let Some((tag, content)) = extension.next() {
                if tag == OCTET_STRING {
                    add_names(&mut names, Reader(Reader(content).expect(SEQUENCE)?));
                }
            }
        }
    }
    Some(names)
}

fn add_names(names: &mut BTreeSet<String>, mut general: Reader<'_>) {
    while let Some((tag, content)) = general.next() {
        let name = match tag {
            DNS_NAME => std::str::from_utf8(content)
                .ok()
                .map(str::to_ascii_lowercase),
            IP_ADDRESS => {
                let v4 = <[u8; 4]>::try_from(content).map(IpAddr::from);
                let any = v4.or_else(|_| <[u8; 16]>::try_from(content).map(IpAddr::from));
                any.ok().map(|address| address.to_string())
            }
            _ => None,
        };
        names.extend(name);
    }
}

/// Writes a time as logs do.
pub(super) fn date(seconds: u64) -> String {
    // The last second that has four digits for its year.
    let last = days(9999, 12, 31).saturating_mul(DAY) + DAY - 1;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(last));
    humantime::format_rfc3339_seconds(time).to_string()
}

// Tags (X.690, section 8.1.2; RFC 5280, section 4.1 and 4.2.1.6).
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Returns what follows the validity, and the validity.
fn before_subject(certificate: &[u8]) -> Option<(Reader<'_>, &[u8])> {
    let certificate = Reader(certificate).expect(SEQUENCE)?;
    let mut signed = Reader(Reader(certificate).expect(SEQUENCE)?);
    let (tag, _) = signed.next()?;
    if tag == VERSION {
        signed.expect(INTEGER)?;
    }
    let _algorithm = signed.expect(SEQUENCE)?;
    let _issuer = signed.expect(SEQUENCE)?;
    let validity = signed.expect(SEQUENCE)?;
    Some((signed, validity))
}

/// Reads one value after the other (X.690, section 10.1: definite lengths only).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x84 => {
                let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = after;
                let bytes = bytes.iter();
                bytes.fold(0, |length, byte| length << 8 | usize::from(*byte))
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .and_then(|(found, content)| (found == tag).then_some(content))
    }

    /// Years before 1970 count as 1970.
    fn time(&mut self) -> Option<SystemTime> {
        let (tag, text) = self.next()?;
        let mut digits = text.strip_suffix(b"Z")?.chunks_exact(2).map(|pair| {
            let text = std::str::from_utf8(pair).ok()?;
            let all = pair.iter().all(u8::is_ascii_digit);
            all.then(|| text.parse::<u64>().ok())?
        });
        let mut two = || digits.next()?;
        let year = match tag {
            UTC_TIME => match two()? {
                year @ 50.. => 1900 + year,
                year => 2000 + year,
            },
            GENERALIZED_TIME => two()? * 100 + two()?,
            _ => return None,
        };
        let (month, day, hour, minute, second) = (two()?, two()?, two()?, two()?, two()?);
        let is_time = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !is_time {
            return None;
        }
        if year < 1970 {
            return Some(UNIX_EPOCH);
        }
        let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
        Some(UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

const DAY: u64 = 24 * 3600;

/// Returns the days from 1970-01-01 to a day from then on in the Gregorian calendar.
const fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last of one.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    // The days from 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str], not_before: u64, not_after: u64) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn dates_and_names_are_read() {
        // As `date -u -d 2049-12-31T23:59:59 +%s` says, and a second later: another encoding.
        for (before, after) in [
            (0, 951_782_400),
            (1_709_164_800, 2_524_607_999),
            (1, 2_524_608_000),
        ] {
            let der = certificate(&["A.example", "*.b", "10.0.0.1", "::1"], before, after);
            let validity = Validity::of(&der).unwrap();
            let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(
                (seconds(validity.not_before), seconds(validity.not_after)),
                (before, after)
            );
            let names = names(&der).unwrap();
            assert_eq!(
                Vec::from_iter(names),
                ["*.b", "10.0.0.1", "::1", "a.example"]
            );
        }
        assert_eq!(names(&certificate(&[], 0, 1)), Some(BTreeSet::new()));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (year, month, day, expected) in [
            (1970, 1, 1, 0),
            (1970, 3, 1, 59),
            (2000, 2, 29, 11_016),
            (2024, 12, 31, 20_088),
            (2100, 3, 1, 47_541),
        ] {
            assert_eq!(days(year, month, day), expected, "{year}-{month}-{day}");
        }
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn nothing_malformed_is_read_and_nothing_panics() {
        let der = certificate(&["a.example"], 0, 1);
        for length in 0..der.len() {
            assert!(Validity::of(&der[..length]).is_none());
        }
        for at in 0..der.len() {
            for value in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = value;
                let _ = (Validity::of(&changed), names(&changed));
            }
        }
    }
}
