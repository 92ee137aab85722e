//! From one current state of a room to the next.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, Membership, NodeNr, Pdu};
use serde_json::value::RawValue;
use storage::{MembershipChange, RoomSummary, StateChange};

use crate::{
    Error, Rooms,
    head::{Head, apply_to_summary, membership_change},
};

impl Rooms {
    /// What changes between the state of a head and another one, and the room's summary if it does. `told` are events that need not be
    /// stored yet.
    pub(crate) async fn changes(
        &self,
        head: &Head,
        state: NodeNr,
        told: &HashMap<EventNr, Arc<Pdu>>,
    ) -> Result<(Vec<StateChange>, Option<RoomSummary>), Error> {
        let storage = self.storage();
        let differences = storage.diff_state(head.row.nr, head.state, state).await?;
        let numbers = differences.iter().flat_map(|(_, old, new)| [*old, *new]).flatten();
        let numbers: Vec<EventNr> = numbers.filter(|nr| !told.contains_key(nr)).collect();
        let events = storage.get_events(&numbers).await?;
        let pdu_of = |nr: EventNr| told.get(&nr).or_else(|| events.get(&nr).map(|event| &event.pdu));
        let mut changes = Vec::with_capacity(differences.len());
        let mut summary = head.summary.clone();
        let mut summary_changed = false;
        for (_, old_nr, now_nr) in differences {
            let (old, now) = (old_nr.and_then(pdu_of), now_nr.and_then(pdu_of));
            let mut membership = None;
            if let Some((nr, pdu)) = now_nr.zip(now) {
                membership = membership_change(storage, self.servers(), nr, pdu, old.map(|old| &**old)).await?;
                summary_changed |= apply_to_summary(&mut summary, pdu);
            } else if let Some((nr, pdu)) = old_nr.zip(old) {
                // Nothing is left of the key: as if the user had left, and as if nothing was said of the room.
                let change = membership_change(storage, self.servers(), nr, pdu, Some(pdu)).await?;
                membership = change.map(|change| MembershipChange { after: Membership::Leave, ..change });
                summary_changed |= apply_to_summary(&mut summary, &without_content(pdu));
            }
            changes.push(StateChange { event_nr: now_nr, membership });
        }
        Ok((changes, summary_changed.then_some(summary)))
    }
}

/// The event as if it said nothing.
pub(crate) fn without_content(pdu: &Pdu) -> Pdu {
    let content = RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| pdu.content.clone());
    Pdu { content, ..pdu.clone() }
}
