//! Lines of a terminal, bounded in width and in number.

use super::DIMMED;

/// The most lines of a report.
pub(super) const LINES: usize = 24;
/// The most columns of a line.
pub(super) const COLUMNS: usize = 100;

/// Wraps a text at its spaces, and words that are longer than a line anywhere. The first line
/// begins with `first`, the others with `indent` spaces.
pub(super) fn wrap(first: &str, indent: usize, text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for mut word in text.split(' ') {
        loop {
            let space = usize::from(!is_empty);
            if columns(&line) + space + columns(word) <= COLUMNS {
                line.extend(std::iter::repeat_n(' ', space));
                line.push_str(word);
                is_empty &= word.is_empty();
                break;
            }
            if is_empty {
                let (start, rest) = split_at_column(word, COLUMNS.saturating_sub(columns(&line)));
                line.push_str(start);
                word = rest;
            }
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            is_empty = true;
        }
    }
    lines.push(line);
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

/// Returns at most `limit` lines of them. If some are left out, the last one ends with `…`.
pub(super) fn cut(mut lines: Vec<String>, limit: usize) -> Vec<String> {
    if lines.len() > limit {
        lines.truncate(limit);
        if let Some(last) = lines.last_mut() {
            let (start, _) = split_at_column(last, COLUMNS - 2);
            *last = format!("{start} …");
        }
    }
    lines
}

/// Returns as many of the paragraphs as `limit` lines have room for, and a line that says how many
/// are left out.
pub(super) fn fit(paragraphs: &[Vec<String>], limit: usize, noun: &str) -> Vec<String> {
    if paragraphs.iter().map(Vec::len).sum::<usize>() <= limit {
        return paragraphs.concat();
    }
    let mut lines = Vec::new();
    let mut rest = paragraphs.len();
    for paragraph in paragraphs {
        let room = limit.saturating_sub(lines.len() + usize::from(rest > 1));
        if paragraph.len() > room && !lines.is_empty() {
            break;
        }
        lines.extend(cut(paragraph.clone(), room));
        rest -= 1;
    }
    if rest > 0 {
        lines.push(more(rest, noun));
    }
    lines
}

/// Returns the line that says where the rest is.
pub(super) fn more(count: usize, noun: &str) -> String {
    format!("           {DIMMED}… and {count} more{noun}: --json FILE{DIMMED:#}")
}

/// Divides `lines` between sections that each need a number of lines and want another: the earlier
/// ones first get what they want beyond what all need.
pub(super) fn divide<const N: usize>(lines: usize, sections: [(usize, usize); N]) -> [usize; N] {
    let mut given = sections.map(|(needed, wanted)| needed.min(wanted));
    let mut left = lines.saturating_sub(given.iter().sum());
    for (given, (_, wanted)) in given.iter_mut().zip(sections) {
        let extra = wanted.saturating_sub(*given).min(left);
        *given += extra;
        left -= extra;
    }
    given
}

/// Returns the end of a text, of at most `limit` columns, with `…` before it if it was longer.
pub(super) fn tail(text: &str, limit: usize) -> String {
    let whole = columns(text);
    if whole <= limit {
        return text.to_owned();
    }
    let mut dropped = 0;
    let kept = text.chars().skip_while(|c| {
        let is_dropped = whole - dropped > limit - 1;
        dropped += width(*c);
        is_dropped
    });
    format!("…{}", kept.collect::<String>())
}

/// Returns how many columns a text takes, at most.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Wide characters begin with Hangul (Unicode Standard Annex 11).
fn width(c: char) -> usize {
    let is_narrow = c < '\u{1100}' || matches!(c, '…' | '\u{fffd}');
    if is_narrow { 1 } else { 2 }
}

/// Splits a text before the character that passes `limit` columns. At least one character is in the
/// first part.
fn split_at_column(text: &str, limit: usize) -> (&str, &str) {
    let mut taken = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        taken += width(c);
        (taken > limit && at > 0).then_some(at)
    });
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_at_spaces_and_long_words_anywhere() {
        let text = format!("{} {}", "a".repeat(60), "b".repeat(60));
        let lines = wrap("note ", 5, &text);
        assert_eq!(lines[0], format!("note {}", "a".repeat(60)));
        assert_eq!(lines[1], format!("     {}", "b".repeat(60)));
        for word in ["c".repeat(300), "世".repeat(150)] {
            let lines = wrap("", 5, &word);
            assert_eq!(lines.len(), 4);
            assert!(lines.iter().all(|line| columns(line) <= COLUMNS));
            assert_eq!(lines.concat().replace(' ', ""), word);
        }
        assert_eq!(wrap("  ", 5, "a  b"), ["  a  b"]);
        assert_eq!(wrap("a", 5, ""), ["a"]);
    }

    #[test]
    fn what_is_cut_says_so() {
        let lines = wrap("", 0, &"word ".repeat(100));
        let short = cut(lines.clone(), 2);
        assert_eq!(short.len(), 2);
        assert!(short[1].ends_with(" …") && columns(&short[1]) <= COLUMNS);
        assert_eq!(cut(lines.clone(), 99), lines);
        assert_eq!(tail("/usr/bin/python3", 8), "…python3");
        assert_eq!(tail("python3", 8), "python3");
    }

    #[test]
    fn paragraphs_that_do_not_fit_are_counted() {
        let of = |lengths: &[usize]| -> Vec<Vec<String>> {
            lengths.iter().map(|it| vec!["x".to_owned(); *it]).collect()
        };
        assert_eq!(fit(&of(&[1, 1, 2]), 4, "").len(), 4);
        let lines = fit(&of(&[1, 1, 2]), 3, " reasons");
        assert_eq!(lines.len(), 3);
        assert!(lines[2].contains("… and 1 more reasons: --json FILE"));
        assert_eq!(fit(&of(&[9, 1]), 3, "").len(), 3);
        assert_eq!(fit(&of(&[9]), 3, ""), ["x", "x", "x …"]);
        assert!(fit(&[], 3, "").is_empty());
    }

    #[test]
    fn what_sections_need_comes_before_what_they_want() {
        assert_eq!(divide(10, [(4, 9), (3, 9)]), [7, 3]);
        assert_eq!(divide(10, [(4, 2), (3, 9)]), [2, 8]);
        assert_eq!(divide(20, [(4, 2), (3, 9)]), [2, 9]);
    }
}
