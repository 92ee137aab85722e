//! Many rows as the parameters of one statement.

use serde::Serialize;

use crate::db::storable;

/// The columns of many rows, for the piece `(rows …)` of a statement; their order is that of the piece.
///
/// PostgreSQL takes each column as an array. SQLite takes all rows as one JSON text and all bytes as one blob.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) columns: Vec<Column>,
}

pub(crate) enum Column {
    Bigint(Vec<Option<i64>>),
    Text(Vec<Option<String>>),
    Boolean(Vec<Option<bool>>),
    Bytea(Vec<Option<Vec<u8>>>),
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a column of numbers.
    pub(crate) fn bigint<T: Into<Option<i64>>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.columns.push(Column::Bigint(values.into_iter().map(Into::into).collect()));
        self
    }

    /// Adds a column of texts.
    pub(crate) fn text<T: Into<Option<String>>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.columns.push(Column::Text(values.into_iter().map(|value| value.into().map(storable)).collect()));
        self
    }

    /// Adds a column of truths.
    pub(crate) fn boolean<T: Into<Option<bool>>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.columns.push(Column::Boolean(values.into_iter().map(Into::into).collect()));
        self
    }

    /// Adds a column of bytes.
    pub(crate) fn bytea<T: Into<Option<Vec<u8>>>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.columns.push(Column::Bytea(values.into_iter().map(Into::into).collect()));
        self
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.columns.first().map_or(0, |column| match column {
            Column::Bigint(values) => values.len(),
            Column::Text(values) => values.len(),
            Column::Boolean(values) => values.len(),
            Column::Bytea(values) => values.len(),
        })
    }

    /// How many parameters SQLite takes them as.
    pub(crate) fn sqlite_parameters(&self) -> usize {
        1 + usize::from(self.columns.iter().any(|column| matches!(column, Column::Bytea(_))))
    }

    /// The rows as SQLite takes them: JSON, and the blob that it points into if there are bytes.
    pub(crate) fn to_sqlite(&self) -> (String, Option<Vec<u8>>) {
        let mut json = Vec::with_capacity(self.len() * self.columns.len() * 12 + 2);
        let mut blob = self.columns.iter().any(|column| matches!(column, Column::Bytea(_))).then(Vec::new);
        json.push(b'[');
        for row in 0..self.len() {
            json.extend_from_slice(if row == 0 { b"[" } else { b",[" });
            push_json(&mut json, &row);
            for column in &self.columns {
                json.push(b',');
                match column {
                    Column::Bigint(values) => push_json(&mut json, &values[row]),
                    Column::Text(values) => push_json(&mut json, &values[row]),
                    Column::Boolean(values) => push_json(&mut json, &values[row]),
                    Column::Bytea(values) => match (&values[row], &mut blob) {
                        (Some(bytes), Some(blob)) => {
                            push_json(&mut json, &[blob.len() + 1, bytes.len()]);
                            blob.extend_from_slice(bytes);
                        }
                        _ => json.extend_from_slice(b"null"),
                    },
                }
            }
            json.push(b']');
        }
        json.push(b']');
        if let Some(blob) = blob.as_mut().filter(|blob| blob.is_empty()) {
            // SQLite takes a blob of no bytes as none at all, and then its parts are no bytes but NULL.
            blob.push(0);
        }
        (String::from_utf8(json).expect("JSON is UTF-8"), blob)
    }
}

fn push_json(json: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(json, value).expect("numbers, texts and truths serialize");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_gets_one_json_text_and_one_blob() {
        let rows =
            Rows::new().bigint([1, 2]).text([Some("a\"".to_owned()), None]).bytea([b"xy".to_vec(), b"z".to_vec()]);
        assert_eq!(rows.to_sqlite(), (r#"[[0,1,"a\"",[1,2]],[1,2,null,[3,1]]]"#.to_owned(), Some(b"xyz".to_vec())));
    }
}
