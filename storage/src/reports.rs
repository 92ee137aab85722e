//! What users have reported.

use model::UserNr;

use crate::{Error, Storage, db::args, statement::statements};

statements! {
    INSERT_REPORT = ["
        INSERT INTO reports (report_nr, at_ms, reporter_nr, room_id, event_id, user_id, reason)
        VALUES ($1, $2, $3, $4, $5, $6, $7)"];
    LIST_REPORTS = ["
        SELECT report_nr, at_ms, reporter_nr, room_id, event_id, user_id, reason FROM reports
         WHERE report_nr < $1 ORDER BY report_nr DESC LIMIT $2"];
}

/// What somebody reports. What it is not about is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewReport {
    /// A room.
    pub room_id: String,
    /// An event in that room.
    pub event_id: String,
    /// A user.
    pub user_id: String,
    /// Why; may be empty.
    pub reason: String,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// Its number; later ones have larger numbers, within what one process takes in.
    pub report_nr: i64,
    /// When it came, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who reported.
    pub reporter_nr: UserNr,
    /// What they reported.
    pub report: NewReport,
}

impl Storage {
    /// Keeps a report; durable when it returns.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_report(&self, reporter_nr: UserNr, report: NewReport) -> Result<(), Error> {
        let NewReport { room_id, event_id, user_id, reason } = report;
        let report_nr = self.take_report_nr().await?;
        let args = args![report_nr, self.clock().now_ms(), reporter_nr, room_id, event_id, user_id, reason];
        self.db().write(&INSERT_REPORT, args).await.map(drop)
    }

    /// Reports with smaller numbers than `before`, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_reports(&self, before: i64, limit: u32) -> Result<Vec<ReportRow>, Error> {
        let rows = self.db().read(&LIST_REPORTS, args![before, i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                let (room_id, event_id) = (row.get(3)?, row.get(4)?);
                let report = NewReport { room_id, event_id, user_id: row.get(5)?, reason: row.get(6)? };
                Ok(ReportRow { report_nr: row.get(0)?, at_ms: row.get(1)?, reporter_nr: row.nr(2)?, report })
            })
            .collect()
    }
}
