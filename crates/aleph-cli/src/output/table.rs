//! Tables that fit the terminal.

use comfy_table::{
    Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, Width, presets,
};

pub(crate) use comfy_table::Color;

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Never cut: ids and names that are typed again.
    Whole(&'static str),
    /// Cut where the terminal is too narrow.
    Text(&'static str),
    /// The same, but never to less than so many characters.
    Least(&'static str, u16),
    /// Numbers, to the right.
    Number(&'static str),
}

/// A table without frames. Each row is one line: what does not fit is cut, with `…`.
#[derive(Debug)]
pub(crate) struct Listing(Table);

impl Listing {
    pub(crate) fn new(columns: &[Column]) -> Self {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_truncation_indicator("…");
        let names = columns.iter().map(|column| match column {
            Column::Whole(name)
            | Column::Text(name)
            | Column::Least(name, _)
            | Column::Number(name) => *name,
        });
        let mut header = Row::from(names.collect::<Vec<_>>());
        header.max_height(1);
        table.set_header(header);
        for (column, made) in columns.iter().zip(table.column_iter_mut()) {
            made.set_padding((0, 2));
            match column {
                Column::Whole(_) => {
                    made.set_constraint(ColumnConstraint::ContentWidth);
                }
                Column::Text(_) => {}
                Column::Least(_, least) => {
                    // Its padding is a part of it.
                    let least = Width::Fixed(least + 2);
                    made.set_constraint(ColumnConstraint::LowerBoundary(least));
                }
                Column::Number(_) => {
                    made.set_constraint(ColumnConstraint::ContentWidth)
                        .set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self(table)
    }

    pub(crate) fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let mut row = Row::from(cells.into_iter().map(Into::into).collect::<Vec<Cell>>());
        row.max_height(1);
        self.0.add_row(row);
    }

    /// The same table for a terminal of another width.
    #[cfg(test)]
    pub(crate) fn in_width(mut self, columns: u16) -> Self {
        self.0.set_width(columns);
        self
    }
}

impl std::fmt::Display for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for line in self.0.lines() {
            write!(f, "{separator}{}", line.trim_end())?;
            separator = "\n";
        }
        Ok(())
    }
}

/// A cell, coloured where our output is a terminal that wants colours.
pub(crate) fn coloured(text: impl Into<String>, colour: Option<Color>) -> Cell {
    let cell = Cell::new(text.into());
    match colour.filter(|_| super::colours()) {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let columns = [
            Column::Whole("ID"),
            Column::Text("COMMAND"),
            Column::Number("SIZE"),
            Column::Whole("NAME"),
        ];
        let mut listing = Listing::new(&columns);
        listing.row([
            "0x1234abcd",
            "sh -c 'while true; do date; done'",
            "1.5 MiB",
            "web",
        ]);
        listing.row(["0x00000001", "true", "12 MiB", "a-longer-name"]);
        listing
    }

    #[test]
    fn a_wide_terminal_shows_all() {
        insta::assert_snapshot!(listing().in_width(100).to_string());
    }

    #[test]
    fn a_narrow_one_cuts_what_is_not_typed_again() {
        let text = listing().in_width(54).to_string();
        insta::assert_snapshot!(text);
        assert!(text.lines().all(|line| line.chars().count() <= 54));
    }
}
