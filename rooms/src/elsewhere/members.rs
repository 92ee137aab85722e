//! What members are to a room that came here with thousands of them.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, Membership, NodeNr, TypeNr, UserNr};
use ruma::UserId;
use storage::{Commit, MembershipChange, RoomCommit, RoomRow, RoomSummary, StateKey};

use crate::{
    Error, Rooms,
    changes::without_content,
    head::{Head, apply_to_summary, membership_change},
    race::Race,
};

/// Most members of one commit: others wait while it is written.
pub(super) const PIECE: usize = 500;

/// A member event of a state, or one that is in it no more.
pub(super) type MemberEvent = (EventNr, Option<Gone>);

/// Says of a member event that it is in the state no more: as if its user had left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone;

impl Rooms {
    /// Brings what members are to a room into all that is derived from it, in commits of [`PIECE`] members. What is there already is left
    /// out, so doing it twice does no harm.
    ///
    /// Given of what they are the state, the members are left out of whom the room's state says something by then: that is newer.
    pub(super) async fn bring_in_members(
        &self,
        room: &Arc<RoomRow>,
        mut members: Vec<MemberEvent>,
        unless_known: Option<&HashMap<EventNr, StateKey>>,
    ) -> Result<(), Error> {
        let storage = self.storage();
        members = self.not_yet_in(room, members).await?;
        for piece in members.chunks(PIECE) {
            let changes = self.member_changes(piece).await?;
            let turn = self.turn(room.nr);
            // The head in memory stays right: the state is the same afterwards.
            let _turn = turn.take_head().await;
            let mut race = Race::default();
            loop {
                let head = storage.get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
                let mut members = Vec::with_capacity(changes.len());
                for change in &changes {
                    let is_known = match unless_known.and_then(|keys| keys.get(&change.event_nr)) {
                        Some(key) => storage.get_state_event(room.nr, head.state, *key).await?.is_some(),
                        None => false,
                    };
                    members.extend((!is_known).then(|| change.clone()));
                }
                let mut commit = RoomCommit {
                    room_nr: room.nr,
                    expected_state: head.state,
                    lease: race.wants_lease(),
                    state: head.state,
                    depth: head.depth,
                    members,
                    ..RoomCommit::default()
                };
                self.settle_memberships(&mut commit).await?;
                if commit.members.is_empty() {
                    break;
                }
                match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                    Ok(_) => break,
                    Err(error) if race.goes_on(&error).await => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// What differs between the state of a head and another one: the member events, and the room's summary if it changes.
    pub(super) async fn changes_of_state(
        &self,
        head: &Head,
        state: NodeNr,
        member: TypeNr,
    ) -> Result<(Vec<MemberEvent>, Option<RoomSummary>), Error> {
        let storage = self.storage();
        let differences = storage.diff_state(head.row.nr, head.state, state).await?;
        let empty = storage.state_key_nr("").await?;
        let (mut members, mut others) = (Vec::new(), Vec::new());
        for (key, old, new) in differences {
            match (new, old) {
                (Some(nr), _) if key.0 == member => members.push((nr, None)),
                (None, Some(nr)) if key.0 == member => members.push((nr, Some(Gone))),
                // What a room shows of itself has no key.
                (new, old) if key.1 == empty => {
                    others.extend(new.map(|nr| (nr, None)).or(old.map(|nr| (nr, Some(Gone)))))
                }
                _ => {}
            }
        }
        let events = storage.get_events(&others.iter().map(|(nr, _)| *nr).collect::<Vec<_>>()).await?;
        let (mut summary, mut has_changed) = (head.summary.clone(), false);
        for (nr, gone) in others {
            let Some(event) = events.get(&nr) else { continue };
            has_changed |= match gone {
                None => apply_to_summary(&mut summary, &event.pdu),
                Some(Gone) => apply_to_summary(&mut summary, &without_content(&event.pdu)),
            };
        }
        Ok((members, has_changed.then_some(summary)))
    }

    /// Those of some member events by which nothing is derived yet.
    pub(super) async fn not_yet_in(
        &self,
        room: &RoomRow,
        mut members: Vec<MemberEvent>,
    ) -> Result<Vec<MemberEvent>, Error> {
        if members.len() > PIECE {
            let here = self.storage().list_member_events(room.nr).await?;
            members.retain(|(nr, gone)| gone.is_some() || !here.contains(nr));
        }
        Ok(members)
    }

    /// What member events do to their users, who were nothing before: see [`Rooms::settle_memberships`].
    pub(super) async fn member_changes(&self, members: &[MemberEvent]) -> Result<Vec<MembershipChange>, Error> {
        let storage = self.storage();
        let numbers: Vec<EventNr> = members.iter().map(|(nr, _)| *nr).collect();
        let events = storage.get_events(&numbers).await?;
        let keys = events.values().filter_map(|event| event.pdu.state_key.as_deref());
        let users: Vec<&UserId> = keys.filter_map(|key| <&UserId>::try_from(key).ok()).collect();
        storage.intern(&[], &[], &users).await?;
        let mut changes = Vec::with_capacity(members.len());
        for (nr, gone) in members {
            let Some(event) = events.get(nr) else { continue };
            let change = membership_change(storage, self.servers(), *nr, &event.pdu, None).await?;
            changes.extend(change.map(|change| match gone {
                Some(Gone) => MembershipChange { after: Membership::Leave, ..change },
                None => change,
            }));
        }
        Ok(changes)
    }

    /// Corrects what a commit says that its members were before, where the room's state does not tell: it lacks some, or is another one
    /// altogether. The commit passes only while all of it is so; changes that are none are left out.
    pub(crate) async fn settle_memberships(&self, commit: &mut RoomCommit) -> Result<(), Error> {
        let storage = self.storage();
        let of_events = commit.state_changes.iter().filter_map(|change| change.membership.as_ref());
        let users: Vec<UserNr> = of_events.chain(&commit.members).map(|change| change.user_nr).collect();
        if users.is_empty() {
            return Ok(());
        }
        // First: what comes between is noticed by it.
        let head = storage.get_head(commit.room_nr).await?.ok_or(Error::RoomUnknown)?;
        commit.expected_position = Some(head.position);
        let rows = storage.list_memberships_of(commit.room_nr, &users).await?;
        let mut standing: HashMap<UserNr, (Membership, EventNr)> =
            rows.into_iter().map(|row| (row.user_nr, (row.membership, row.event_nr))).collect();
        for change in commit.state_changes.iter_mut().filter_map(|change| change.membership.as_mut()) {
            let before = standing.insert(change.user_nr, (change.after, change.event_nr));
            change.before = before.map(|(membership, _)| membership);
        }
        commit.members.retain_mut(|change| {
            let before = standing.insert(change.user_nr, (change.after, change.event_nr));
            change.before = before.map(|(membership, _)| membership);
            before != Some((change.after, change.event_nr))
        });
        Ok(())
    }
}
