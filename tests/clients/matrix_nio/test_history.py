"""History: what /messages pages through is what /sync has shown, every event exactly once."""

import nio
from people import ids, ok

FEW = {"room": {"timeline": {"limit": 5}}}


# shows: getRoomEvents, sync
async def test_paging_back_from_a_first_sync_gives_every_event_once(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    for n in range(33):
        last = await alice.say(room, f"message {n}")
    await bob.hears_event(room, last)
    heard = await alice.hears("everything", lambda: last in ids(alice.timeline[room]) and alice.timeline[room])

    newcomer = await bob.second_device()
    try:
        first = ok(await newcomer.client.sync(sync_filter=FEW)).rooms.join[room].timeline
        assert first.limited
        assert [e.source["content"]["body"] for e in first.events] == [f"message {n}" for n in range(28, 33)]
        older = await newcomer.page(room, first.prev_batch, nio.MessageDirection.back)
        backward = ids(reversed(older)) + ids(e.source for e in first.events)
        assert backward[-33:] == [e["event_id"] for e in heard if e["type"] == "m.room.message"]
        assert len(backward) == len(set(backward))
        assert older[-1]["type"] == "m.room.create"
        # The other way round, the same token leads to what the sync has shown.
        forward = await newcomer.page(room, first.prev_batch, nio.MessageDirection.front)
        assert ids(forward) == ids(e.source for e in first.events)
    finally:
        await newcomer.close()


# shows: getRoomEvents, sync
async def test_a_gap_in_the_timeline_can_be_filled_exactly(people):
    alice, bob = await people("alice"), await people("bob", listen=False)
    room = await alice.create_public_room()
    await bob.join(room)
    before = ok(await bob.client.sync(sync_filter=FEW))
    sent = [await alice.say(room, f"message {n}") for n in range(20)]
    after = ok(await bob.client.sync(sync_filter=FEW, since=before.next_batch)).rooms.join[room].timeline
    assert after.limited
    assert ids(e.source for e in after.events) == sent[-5:]
    missing = await bob.page(room, after.prev_batch, nio.MessageDirection.back, end=before.next_batch)
    assert ids(reversed(missing)) == sent[:-5]
    # And forward from what was known before, up to the gap's end.
    forward = await bob.page(room, before.next_batch, nio.MessageDirection.front, end=after.prev_batch)
    assert ids(forward) == sent[:-5]


# shows: getEventContext
async def test_the_context_of_an_event_is_what_was_said_around_it(people):
    alice, bob = await people("alice", listen=False), await people("bob", listen=False)
    room = await alice.create_public_room()
    await bob.join(room)
    sent = [await alice.say(room, f"message {n}") for n in range(9)]
    context = ok(await bob.client.room_context(room, sent[4], limit=6))
    assert context.event.event_id == sent[4]
    assert ids(e.source for e in context.events_before) == [sent[3], sent[2], sent[1]]
    assert ids(e.source for e in context.events_after) == [sent[5], sent[6], sent[7]]
    assert any(e.source["type"] == "m.room.create" for e in context.state)
    # The tokens of the context continue it without a gap or an overlap.
    earlier = await bob.page(room, context.start, nio.MessageDirection.back)
    assert earlier[0]["event_id"] == sent[0]
    later = await bob.page(room, context.end, nio.MessageDirection.front)
    assert ids(later) == [sent[8]]


# shows: getRoomEvents
async def test_a_newcomer_reads_the_shared_history_of_a_public_room(people):
    alice, bob = await people("alice", listen=False), await people("bob")
    room = await alice.create_public_room()
    said = await alice.say(room, "before you came")
    await bob.join(room)
    page = ok(await bob.client.room_messages(room, limit=50))
    assert said in ids(e.source for e in page.chunk)


# shows: getRoomEvents
async def test_what_is_hidden_from_newcomers_stays_hidden(people):
    alice, bob = await people("alice", listen=False), await people("bob")
    room = await alice.create_room(
        preset=nio.RoomPreset.public_chat,
        initial_state=[{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}],
    )
    hidden = await alice.say(room, "before you came")
    await bob.join(room)
    shown = await alice.say(room, "after you came")
    await bob.hears_event(room, shown)
    seen = ids(await bob.page(room, ok(await bob.client.room_messages(room, limit=1)).start, nio.MessageDirection.back))
    assert shown in seen
    assert hidden not in seen
    assert hidden not in ids(bob.timeline[room])
    assert isinstance(await bob.client.room_get_event(room, hidden), nio.ErrorResponse)
