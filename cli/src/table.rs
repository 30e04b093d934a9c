//! Text in columns.
#![forbid(unsafe_code)]

use std::io::{self, Write};

/// Which side a column's texts stand at.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Writes `header` and `rows` with two spaces between columns.
pub(crate) fn write(
    out: &mut dyn Write,
    header: &[(&str, Align)],
    rows: &[Vec<String>],
) -> io::Result<()> {
    let width = |column: usize, title: &str| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([title.chars().count()]).max().unwrap_or(0)
    };
    let columns: Vec<(usize, Align)> = header
        .iter()
        .enumerate()
        .map(|(column, (title, align))| (width(column, title), *align))
        .collect();
    let titles: Vec<String> = header
        .iter()
        .map(|(title, _)| (*title).to_owned())
        .collect();
    for row in std::iter::once(&titles).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&columns)
            .map(|(cell, (width, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            })
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Align, write};

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let mut out = Vec::new();
        let rows = [
            vec!["1".to_owned(), "grün".to_owned()],
            vec!["100".to_owned(), "x".to_owned()],
        ];
        write(
            &mut out,
            &[("n", Align::Right), ("name", Align::Left)],
            &rows,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "  n  name\n  1  grün\n100  x\n"
        );
    }
}
