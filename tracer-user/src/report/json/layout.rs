//! The layout of the JSON report: spread over lines at the top, one line for each finding.

use std::io::{self, Write};

use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

/// Containers up to this depth have one element a line: the document and the lists in it.
const SPREAD: usize = 2;

/// Spreads the upper levels over lines and keeps each lower one on a line.
#[derive(Default)]
pub(super) struct Layout {
    spread: PrettyFormatter<'static>,
    depth: usize,
}

impl Layout {
    fn is_spread(&self) -> bool {
        self.depth <= SPREAD
    }
}

/// Forwards a call to the formatter of the current depth.
macro_rules! pass_on {
    ($self:ident.$method:ident($($argument:ident),*)) => {
        if $self.is_spread() {
            $self.spread.$method($($argument),*)
        } else {
            CompactFormatter.$method($($argument),*)
        }
    };
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        pass_on!(self.begin_array(to))
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        let ended = pass_on!(self.end_array(to));
        self.depth -= 1;
        ended
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        pass_on!(self.begin_array_value(to, first))
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        pass_on!(self.end_array_value(to))
    }

    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        pass_on!(self.begin_object(to))
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        let ended = pass_on!(self.end_object(to));
        self.depth -= 1;
        ended
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        pass_on!(self.begin_object_key(to, first))
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.spread.begin_object_value(to)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        pass_on!(self.end_object_value(to))
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_element_of_a_list_is_one_line() {
        let document = json!({
            "a": {"b": 1, "c": [2, 3]},
            "d": [{"e": {"f": null}, "g": [4]}, {}, []],
            "h": [],
            "i": "j",
        });
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Layout::default());
        document.serialize(&mut serializer).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let wanted = r#"{
  "a": {
    "b": 1,
    "c": [2,3]
  },
  "d": [
    {"e": {"f": null},"g": [4]},
    {},
    []
  ],
  "h": [],
  "i": "j"
}"#;
        assert_eq!(text, wanted);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            document
        );
    }
}
