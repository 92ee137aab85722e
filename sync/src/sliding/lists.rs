//! Which rooms a request looks at: lists with filters and ranges, and rooms asked for by name. MSC4186, "Lists and subscriptions".

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use model::{Membership, Position, RoomNr};
use ruma::OwnedRoomId;

use super::{
    Look,
    connection::SentState,
    request::{Filters, LISTS_MAX, List, Request, Scope},
    required_state::RequiredState,
};
use crate::{
    Error, Sync,
    room_facts::{KnownSummary, ListedRoom, UserList},
    room_marks::RoomMarks,
};

/// What a request wants of rooms that are in the same lists, from all of these together. MSC4186, "Combining room configs".
#[derive(Debug)]
pub(super) struct Combination<'a> {
    /// The lists in whose ranges they are.
    pub(super) lists: Vec<&'a str>,
    pub(super) timeline_limit: u32,
    /// Ascending places in [`Selection::asked`].
    pub(super) required_state: Vec<usize>,
}

/// A room that a request looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<'a> {
    /// Its place in the user's list.
    pub(super) place: usize,
    /// The place of what is wanted of it in [`Selection::combinations`].
    pub(super) combination: usize,
    /// The room, if it is asked for by name.
    pub(super) subscribed: Option<&'a OwnedRoomId>,
}

/// The rooms that a request looks at, and how many rooms each list has.
#[derive(Debug, Default)]
pub(super) struct Selection<'a> {
    pub(super) rooms: Vec<Selected<'a>>,
    pub(super) combinations: Vec<Combination<'a>>,
    /// The state that the lists and subscriptions ask for, each once: combinations only name it, as there may be many of them.
    pub(super) asked: Vec<&'a RequiredState>,
    pub(super) counts: BTreeMap<String, usize>,
}

impl<'a> Selection<'a> {
    /// Whether a room is one that an extension is about.
    pub(super) fn covers(&self, scope: &Scope, selected: &Selected<'_>) -> bool {
        scope.covers(&self.combinations[selected.combination].lists, selected.subscribed)
    }

    fn add(&mut self, request: &'a Request, bits: &[u128], subscribed: &HashMap<usize, &'a OwnedRoomId>) {
        let configs = request.lists.values().map(|list| &list.config).chain(request.subscriptions.values());
        let asked: BTreeSet<&RequiredState> = configs.map(|config| &config.required_state).collect();
        let places: BTreeMap<&RequiredState, usize> =
            asked.iter().enumerate().map(|(place, asked)| (*asked, place)).collect();
        let of_lists: Vec<usize> = request.lists.values().map(|list| places[&list.config.required_state]).collect();
        self.asked = asked.into_iter().collect();
        // What is wanted of a room depends on the lists that it is in, and on what is asked of it by name.
        let mut known: HashMap<(u128, Option<(u32, usize)>), usize> = HashMap::new();
        for (place, bits) in bits.iter().enumerate() {
            let subscribed = subscribed.get(&place).copied();
            if *bits == 0 && subscribed.is_none() {
                continue;
            }
            let by_name = subscribed.and_then(|room_id| request.subscriptions.get(room_id));
            let by_name = by_name.map(|config| (config.timeline_limit, places[&config.required_state]));
            let combination = *known.entry((*bits, by_name)).or_insert_with(|| {
                let lists = || request.lists.iter().enumerate().filter(|(list, _)| bits & (1 << list) != 0);
                let limits = lists().map(|(_, (_, list))| list.config.timeline_limit);
                let required_state: BTreeSet<usize> =
                    lists().map(|(list, _)| of_lists[list]).chain(by_name.map(|(_, place)| place)).collect();
                self.combinations.push(Combination {
                    lists: lists().map(|(_, (name, _))| name.as_str()).collect(),
                    timeline_limit: limits.chain(by_name.map(|(limit, _)| limit)).max().unwrap_or(0),
                    required_state: required_state.into_iter().collect(),
                });
                self.combinations.len() - 1
            });
            self.rooms.push(Selected { place, combination, subscribed });
        }
    }
}

/// What filters look at.
struct Known<'a> {
    marks: &'a RoomMarks,
    summaries: HashMap<RoomNr, Arc<KnownSummary>>,
    /// The rooms of the spaces that are asked for.
    in_spaces: HashMap<&'a OwnedRoomId, HashSet<OwnedRoomId>>,
}

impl Sync {
    /// Finds the rooms that a request looks at.
    pub(super) async fn select<'a>(&self, look: &Look<'a>) -> Result<Selection<'a>, Error> {
        let (request, list, state) = (look.request, &*look.list, &*look.start.state);
        let mut selection = Selection::default();
        let hidden = self.ignored_invites(&look.settings, look.list.rooms.iter().map(|room| &room.row)).await?;
        let is_hidden = |room: &ListedRoom| hidden.contains(&room.row.room_nr);
        let is_listed: Vec<bool> =
            list.rooms.iter().map(|room| is_listed(list, state, room) && !is_hidden(room)).collect();
        let filters: Vec<&Filters> = request.lists.values().map(|list| &list.filters).collect();
        let summaries = if filters.iter().any(|filters| needs_summary(filters)) {
            let rooms = list.rooms.iter().zip(&is_listed).filter(|(_, is_listed)| **is_listed);
            self.summaries(rooms.map(|(room, _)| &room.facts).collect()).await?
        } else {
            HashMap::new()
        };
        let spaces: BTreeSet<&OwnedRoomId> =
            filters.iter().filter_map(|filters| filters.spaces.as_ref()).flatten().collect();
        let mut in_spaces = HashMap::new();
        for space in spaces {
            in_spaces.insert(space, self.rooms_of_space(list, space, look.upto).await?);
        }
        let known = Known { marks: &look.marks, summaries, in_spaces };
        // In which lists each room is: a bit for each.
        let mut bits = vec![0; list.rooms.len()];
        let mut by_activity: Option<Vec<usize>> = None;
        for (bit, (name, asked)) in request.lists.iter().enumerate().take(LISTS_MAX) {
            let matching = |place: &usize| is_listed[*place] && matches(&asked.filters, &list.rooms[*place], &known);
            let found: Vec<usize> = if is_whole(asked, list.rooms.len()) {
                (0..list.rooms.len()).filter(matching).collect()
            } else {
                let order = by_activity.get_or_insert_with(|| by_activity_of(list));
                order.iter().copied().filter(matching).collect()
            };
            selection.counts.insert(name.clone(), found.len());
            for place in in_ranges(asked, &found) {
                bits[place] |= 1 << bit;
            }
        }
        let by_name = request.subscriptions.keys().filter_map(|room_id| Some((*list.by_id.get(room_id)?, room_id)));
        // Whoever has nothing to do with a room, or was never let in, is not told that it exists.
        let by_name = by_name.filter(|(place, _)| {
            let room = &list.rooms[*place];
            may_subscribe(list, state, room) && !is_hidden(room)
        });
        let by_name = by_name.collect();
        selection.add(request, &bits, &by_name);
        Ok(selection)
    }

    /// The rooms that a space names, if the user is in it. Client-Server API, "Spaces".
    async fn rooms_of_space(
        &self,
        list: &UserList,
        space: &OwnedRoomId,
        upto: Position,
    ) -> Result<HashSet<OwnedRoomId>, Error> {
        let room = list.by_id.get(space).map(|place| &list.rooms[*place]);
        let Some(room) = room.filter(|room| room.row.membership == Membership::Join) else { return Ok(HashSet::new()) };
        let state = self.0.storage.get_state_at(room.row.room_nr, upto).await?;
        Ok(self.0.rooms.space_children(room.row.room_nr, state).await?.into_iter().collect())
    }
}

/// Whether a room is among those of the lists. MSC4186, "Lists": who left is told if they knew the room, who was removed always.
fn is_listed(list: &UserList, state: &SentState, room: &ListedRoom) -> bool {
    !room.is_out() || list.removed.contains(&room.row.room_nr) || state.rooms.contains_key(&room.row.room_nr)
}

/// Whether a room may be asked for by name. MSC4186, "Subscriptions".
fn may_subscribe(list: &UserList, state: &SentState, room: &ListedRoom) -> bool {
    is_listed(list, state, room) || room.row.membership == Membership::Leave
}

fn by_activity_of(list: &UserList) -> Vec<usize> {
    // Taken once: something may happen meanwhile.
    let mut order: Vec<(Reverse<Position>, usize)> =
        list.rooms.iter().enumerate().map(|(place, room)| (Reverse(room.last()), place)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, place)| place).collect()
}

/// Whether the ranges of a list leave nothing out, however the rooms are ordered.
fn is_whole(list: &List, rooms: usize) -> bool {
    let is_whole = |(first, last): &(u64, u64)| *first == 0 && last.saturating_add(1) >= rooms as u64;
    list.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(is_whole))
}

fn in_ranges(list: &List, rooms: &[usize]) -> Vec<usize> {
    let Some(ranges) = &list.ranges else { return rooms.to_vec() };
    let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).min(rooms.len());
    let parts = ranges.iter().filter(|(first, last)| first <= last);
    parts.flat_map(|(first, last)| &rooms[place(*first)..place(last.saturating_add(1))]).copied().collect()
}

fn needs_summary(filters: &Filters) -> bool {
    filters.is_encrypted.is_some()
        || filters.room_types.is_some()
        || !filters.not_room_types.is_empty()
        || filters.room_name_like.is_some()
}

/// MSC4186, "SlidingRoomFilter".
fn matches(filters: &Filters, room: &ListedRoom, known: &Known<'_>) -> bool {
    let room_id = &room.facts.room.id;
    let is = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    if !is(filters.is_invited, room.row.membership == Membership::Invite)
        || (filters.is_dm.is_some() && !is(filters.is_dm, known.marks.direct.contains(room_id)))
    {
        return false;
    }
    if let Some(spaces) = &filters.spaces
        && !spaces.iter().any(|space| known.in_spaces.get(space).is_some_and(|rooms| rooms.contains(room_id)))
    {
        return false;
    }
    if filters.tags.is_some() || !filters.not_tags.is_empty() {
        let tags = known.marks.tags.get(&room.row.room_nr);
        let has_one = |wanted: &BTreeSet<String>| tags.is_some_and(|tags| !tags.is_disjoint(wanted));
        if filters.tags.as_ref().is_some_and(|wanted| !has_one(wanted)) || has_one(&filters.not_tags) {
            return false;
        }
    }
    if !needs_summary(filters) {
        return true;
    }
    let Some(summary) = known.summaries.get(&room.row.room_nr) else { return false };
    let shown = &summary.shown;
    // Whoever is out does not learn whether the room has become encrypted: they are told that they are out, whatever is asked for.
    (room.is_out() || is(filters.is_encrypted, shown.encryption.is_some()))
        && filters.room_types.as_ref().is_none_or(|types| types.contains(&shown.room_type))
        && !filters.not_room_types.contains(&shown.room_type)
        && filters.room_name_like.as_ref().is_none_or(|wanted| {
            // Whoever is out does not learn how the room is called now.
            let name = shown.name.as_ref().filter(|_| !room.is_out());
            name.is_some_and(|name| name.to_lowercase().contains(&wanted.to_lowercase()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_cut_at_the_end_of_the_list() {
        let list = |ranges: &[(u64, u64)]| List { ranges: Some(ranges.to_vec()), ..List::default() };
        let rooms = [7, 5, 3, 1];
        assert_eq!(in_ranges(&list(&[(0, 1)]), &rooms), [7, 5]);
        assert_eq!(in_ranges(&list(&[(1, 1), (3, u64::MAX)]), &rooms), [5, 1]);
        assert_eq!(in_ranges(&list(&[(4, 9), (u64::MAX, u64::MAX)]), &rooms), [0; 0]);
        assert_eq!(in_ranges(&list(&[]), &rooms), [0; 0]);
        assert_eq!(in_ranges(&List::default(), &rooms), rooms);
    }

    #[test]
    fn a_range_over_all_rooms_needs_no_order() {
        let list = |first, last| List { ranges: Some(vec![(first, last)]), ..List::default() };
        assert!(is_whole(&List::default(), 10) && is_whole(&list(0, 9), 10));
        assert!(!is_whole(&list(0, 8), 10) && !is_whole(&list(1, 20), 10));
    }
}
