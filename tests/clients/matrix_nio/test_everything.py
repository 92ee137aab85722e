"""Four people, two rooms and a space through a long day: everything that rooms and sync offer, a restart in the middle of it."""

import asyncio
import json

import nio
from nio.api import RelationshipType, ThreadInclusion
from people import ids, ok

# Events that count as unread for those who did not send them: the default push rules let messages and polls notify, and
# leave reactions, edits and changes of state in peace.
POLL = "m.poll.start"


# shows: createRoom, joinRoom, getSpaceHierarchy, sendMessage, getRelatingEvents, getThreadRoots, sync, postReceipt, setPresence, upgradeRoom, redactEvent
async def test_four_people_spend_a_day_in_two_rooms_and_a_space(people, server):
    alice, bob, carol, dave = [await people(name) for name in ("alice", "bob", "carol", "dave")]
    everyone = (alice, bob, carol, dave)
    others = (bob, carol, dave)

    # A space with two rooms in it: one that anybody may join, one for its members alone.
    garden = await alice.create_room(preset=nio.RoomPreset.public_chat, name="garden")
    study = await alice.room_with(*others, name="study")
    space = await alice.create_room(preset=nio.RoomPreset.public_chat, name="house", space=True)
    for room in (garden, study):
        ok(await alice.client.room_put_state(space, "m.space.child", {"via": ["localhost"]}, room))
    for person in others:
        await person.join(space)
        hierarchy = ok(await person.client.space_get_hierarchy(space))
        assert {room["room_id"] for room in hierarchy.rooms} == {space, garden, study}
        await person.join(garden)

    # A conversation with a reaction, an edit, a mention and a poll. The senders have read what they answer.
    opening = await alice.say(garden, "who wants tee?")
    edit = await alice.send(garden, {
        "msgtype": "m.text", "body": "* who wants tea?", "m.new_content": {"msgtype": "m.text", "body": "who wants tea?"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": opening},
    })
    reaction = await bob.send(
        garden, {"m.relates_to": {"rel_type": "m.annotation", "event_id": opening, "key": "☕"}}, "m.reaction"
    )
    mention = await alice.send(garden, {"msgtype": "m.text", "body": "Dave?", "m.mentions": {"user_ids": [dave.id]}})
    poll = await alice.send(garden, {
        "m.text": [{"body": "Milk?"}],
        "m.poll": {
            "kind": "m.disclosed", "max_selections": 1, "question": {"m.text": [{"body": "Milk?"}]},
            "answers": [{"m.id": "yes", "m.text": [{"body": "Yes"}]}, {"m.id": "no", "m.text": [{"body": "No"}]}],
        },
    }, POLL)
    vote = await carol.send(
        garden, {"m.relates_to": {"rel_type": "m.reference", "event_id": poll}, "m.selections": ["yes"]}, "m.poll.response"
    )
    for person in everyone:
        await person.hears_event(garden, vote)
    again = await bob.client.room_send(
        garden, "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": opening, "key": "☕"}}
    )
    assert again.status_code == "M_DUPLICATE_ANNOTATION"
    related = [e.event_id async for e in dave.client.room_get_event_relations(garden, opening)]
    assert sorted(related) == sorted([edit, reaction])
    votes = [e.event_id async for e in dave.client.room_get_event_relations(garden, poll, RelationshipType.reference)]
    assert votes == [vote]
    bundled = ok(await dave.client.room_get_event(garden, opening)).event.source["unsigned"]["m.relations"]
    assert bundled["m.replace"]["event_id"] == edit

    # What dave has not read: alice's two messages that are no edit, one of them to him. A poll of the default rules of
    # today notifies nobody.
    await dave.has_unread(garden, 2, 1)
    ok(await dave.client.update_receipt_marker(garden, mention))
    await dave.has_unread(garden, 0, 0)

    # A thread: counted apart, read apart.
    def in_thread(body, **content):
        return {"msgtype": "m.text", "body": body, "m.relates_to": {"rel_type": "m.thread", "event_id": opening}, **content}

    await bob.send(garden, in_thread("one lump"))
    reply = await carol.send(garden, in_thread("or two?", **{"m.mentions": {"user_ids": [dave.id]}}))
    await dave.has_unread(garden, 0, 0, {opening: (2, 1)})
    roots = [e async for e in dave.client.room_get_threads(garden)]
    assert [root.event_id for root in roots] == [opening]
    thread = roots[0].source["unsigned"]["m.relations"]["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (2, reply)
    assert thread["current_user_participated"] is False
    assert [e.event_id async for e in dave.client.room_get_threads(garden, ThreadInclusion.participated)] == []

    # Presence, seen by who shares a room.
    ok(await carol.client.set_presence("unavailable", "in the rose garden"))
    await alice.hears(
        "carol's presence",
        lambda: (p := alice.presence.get(carol.id)) and (p.presence, p.status_msg) == ("unavailable", "in the rose garden"),
    )

    # The server crashes and starts again; what was counted and read before is as it was.
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    after = await alice.say(study, "what was that noise?")
    for person in everyone:
        await person.hears_event(study, after)
    other = await dave.second_device(listen=True)
    try:
        await other.has_unread(garden, 0, 0, {opening: (2, 1)})
        ok(await dave.client.update_receipt_marker(garden, reply, thread_id=opening))
        await other.has_unread(garden, 0, 0, {})
        await other.has_unread(study, 1, 0)
    finally:
        await other.close()

    # The newest reply of the thread is taken back.
    gone = ok(await carol.client.room_redact(garden, reply)).event_id
    for person in everyone:
        await person.hears_event(garden, gone)
    [root] = [e async for e in bob.client.room_get_threads(garden, ThreadInclusion.participated)]
    assert root.source["unsigned"]["m.relations"]["m.thread"]["count"] == 1

    # The study moves; everybody follows.
    response = await alice.client.send(
        "POST", f"/_matrix/client/v3/rooms/{study}/upgrade", json.dumps({"new_version": "12"}),
        {"authorization": f"Bearer {alice.client.access_token}"},
    )
    moved = (await response.json())["replacement_room"]
    for person in everyone:
        tombstone = await person.hears_state(study, "m.room.tombstone", "", lambda content: True)
        assert tombstone["content"]["replacement_room"] == moved
    await alice.hears_state(moved, "m.room.create", "", lambda content: content["predecessor"]["room_id"] == study)
    for person in others:
        ok(await alice.client.room_invite(moved, person.id))
        await person.hears("the invitation", lambda person=person: moved in person.invited)
        await person.join(moved)
        await person.hears_state(moved, "m.room.name", "", lambda content: content["name"] == "study")
    evening = await bob.say(moved, "good evening")

    # Nothing is lost, nothing is doubled: what each heard is what a device sees that pages through the history.
    for person in everyone:
        await person.hears_event(moved, evening)
        for room in (garden, study, moved, space):
            heard = ids(person.timeline[room])
            assert len(heard) == len(set(heard))
            stored = await person.page(room, person.client.next_batch, nio.MessageDirection.back)
            assert heard == [e["event_id"] for e in reversed(stored)][-len(heard):]
