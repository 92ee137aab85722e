//! Events that others refer to and that are not here. Server-Server API, "Backfilling and retrieving missing events".

use std::sync::Arc;

use model::Pdu;
use ruma::OwnedEventId;
use storage::RoomRow;

use super::{Incoming, Received, Source};
use crate::{Error, Rooms};

impl Rooms {
    /// Takes in verified events of one room.
    pub(super) async fn receive_in_room(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        pdus: Vec<Pdu>,
    ) -> Result<Vec<(OwnedEventId, Result<Received, Error>)>, Error> {
        let judged = self.judged_by_policy_server(source.as_server, room, pdus).await?.into_iter();
        let incoming = judged.map(|(pdu, refusal)| Incoming { pdu, state_before: None, refusal, passed_on: false });
        self.receive_in_turn(room, incoming.collect()).await
    }
}
