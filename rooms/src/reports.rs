//! What users report to those who administer the server. Client-Server API, "Reporting Content".

use accounts::Requester;
use model::Membership;
use ruma::{EventId, RoomId, UserId};
use storage::NewReport;

use crate::{Error, Rooms};

/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 4_096;

impl Rooms {
    /// Keeps the report of an event. Client-Server API, "POST /rooms/{roomId}/report/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] for an event that the reporter does not see, and for who is not joined to the room now.
    pub async fn report_event(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
        reason: &str,
    ) -> Result<(), Error> {
        check_reason(reason)?;
        let unknown = |error| if matches!(error, Error::NotMember) { Error::EventUnknown } else { error };
        // Clients let users ignore whom they report.
        let (reader, _) = self.event_of_anyone(requester, room_id, event_id).await.map_err(unknown)?;
        if reader.membership.is_none_or(|row| row.membership != Membership::Join) {
            return Err(Error::EventUnknown);
        }
        let (room_id, event_id) = (room_id.to_string(), event_id.to_string());
        self.keep_report(requester, NewReport { room_id, event_id, ..NewReport::default() }, reason).await
    }

    /// Keeps the report of a room, whether or not the reporter is in it. Of a room that is not known here nothing is kept, and nothing
    /// said. Client-Server API, "POST /rooms/{roomId}/report".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for a reason that is too long.
    pub async fn report_room(&self, requester: &Requester, room_id: &RoomId, reason: &str) -> Result<(), Error> {
        check_reason(reason)?;
        match self.room(room_id).await {
            Ok(_) => {}
            Err(Error::RoomUnknown) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.keep_report(requester, NewReport { room_id: room_id.to_string(), ..NewReport::default() }, reason).await
    }

    /// Keeps the report of a user, of whatever server. Of one who is not known here nothing is kept, and nothing said. Client-Server
    /// API, "POST /users/{userId}/report".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for a reason that is too long.
    pub async fn report_user(&self, requester: &Requester, user_id: &UserId, reason: &str) -> Result<(), Error> {
        check_reason(reason)?;
        if self.storage().find_user_nr(user_id).await?.is_none() {
            return Ok(());
        }
        self.keep_report(requester, NewReport { user_id: user_id.to_string(), ..NewReport::default() }, reason).await
    }

    async fn keep_report(&self, requester: &Requester, about: NewReport, reason: &str) -> Result<(), Error> {
        let NewReport { room_id, event_id, user_id, .. } = about.clone();
        let report = NewReport { reason: reason.to_owned(), ..about };
        self.storage().insert_report(requester.user_nr, report).await?;
        let reporter = &requester.user_id;
        tracing::info!(reporter = %reporter, room.id = room_id, event.id = event_id, user.id = user_id, "{reporter} has reported something");
        Ok(())
    }
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(Error::InvalidParam(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    Ok(())
}
