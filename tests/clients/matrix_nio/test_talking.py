"""Messages and what belongs to them, heard by long polls."""

import asyncio

import nio
from people import ids, ok


# shows: sendMessage, sync
async def test_people_talk_both_ways(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    asked = await alice.say(room, "why is a raven like a writing desk?")
    event = await bob.hears_event(room, asked)
    assert event["sender"] == alice.id
    assert event["content"] == {"msgtype": "m.text", "body": "why is a raven like a writing desk?"}
    answered = await bob.say(room, "I haven't the slightest idea")
    await alice.hears_event(room, answered)
    await bob.hears_event(room, answered)
    assert alice.texts(room) == bob.texts(room) == [
        "why is a raven like a writing desk?", "I haven't the slightest idea",
    ]


# shows: sync
async def test_many_voices_at_once_reach_everyone_once_and_in_one_order(people):
    alice, bob, carol = await people("alice"), await people("bob"), await people("carol")
    room = await alice.room_with(bob, carol)
    everyone = (alice, bob, carol)
    sent = await asyncio.gather(*(person.say(room, f"{person.name} {n}") for n in range(15) for person in everyone))
    for person in everyone:
        await person.hears("all messages", lambda person=person: len(person.texts(room)) >= len(sent))
        heard = [e["event_id"] for e in person.timeline[room] if e["type"] == "m.room.message"]
        assert sorted(heard) == sorted(sent)
    assert alice.texts(room) == bob.texts(room) == carol.texts(room)


# shows: sendMessage
async def test_a_repeated_transaction_makes_one_event(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    first = await alice.say(room, "once", tx_id="same")
    second = await alice.say(room, "once", tx_id="same")
    assert first == second
    last = await alice.say(room, "end")
    await bob.hears_event(room, last)
    assert bob.texts(room) == ["once", "end"]
    own = await alice.hears_event(room, first)
    assert own["unsigned"]["transaction_id"] == "same"
    assert "transaction_id" not in (await bob.hears_event(room, first)).get("unsigned", {})


# shows: sendMessage, getOneRoomEvent
async def test_an_edit_a_reaction_and_a_reply_reach_the_others(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    original = await alice.say(room, "tee")
    await bob.hears_event(room, original)
    edit = await alice.send(room, {
        "msgtype": "m.text", "body": "* tea", "m.new_content": {"msgtype": "m.text", "body": "tea"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": original},
    })
    assert (await bob.hears_event(room, edit))["content"]["m.relates_to"]["event_id"] == original
    reaction = await bob.send(
        room, {"m.relates_to": {"rel_type": "m.annotation", "event_id": original, "key": "☕"}}, "m.reaction"
    )
    assert (await alice.hears_event(room, reaction))["content"]["m.relates_to"]["key"] == "☕"
    reply = await bob.send(room, {
        "msgtype": "m.text", "body": "with milk", "m.relates_to": {"m.in_reply_to": {"event_id": original}},
    })
    heard = await alice.hears_event(room, reply)
    assert heard["content"]["m.relates_to"] == {"m.in_reply_to": {"event_id": original}}
    fetched = ok(await bob.client.room_get_event(room, edit)).event.source
    assert fetched["content"]["m.new_content"]["body"] == "tea"


# shows: redactEvent, getOneRoomEvent
async def test_a_redacted_message_is_empty_for_everyone(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    mistake = await alice.say(room, "my password is hunter2")
    await bob.hears_event(room, mistake)
    redaction = ok(await alice.client.room_redact(room, mistake, "oops")).event_id
    heard = await bob.hears_event(room, redaction)
    assert heard["type"] == "m.room.redaction"
    assert heard["content"].get("redacts", heard.get("redacts")) == mistake
    fetched = ok(await bob.client.room_get_event(room, mistake)).event.source
    assert fetched["content"] == {}
    assert fetched["unsigned"]["redacted_because"]["event_id"] == redaction


# shows: postReceipt
async def test_a_receipt_shows_what_was_read(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    event_id = await alice.say(room, "read me")
    await bob.hears_event(room, event_id)
    ok(await bob.client.update_receipt_marker(room, event_id))
    await alice.hears(
        "the receipt",
        lambda: any((r.user_id, r.event_id, r.receipt_type) == (bob.id, event_id, "m.read") for r in alice.receipts[room]),
    )


# shows: setReadMarker
async def test_a_read_marker_is_kept_for_the_reader_alone(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    event_id = await alice.say(room, "read me")
    await bob.hears_event(room, event_id)
    ok(await bob.client.room_read_markers(room, event_id, event_id))
    await bob.hears(
        "the marker",
        lambda: any(isinstance(d, nio.FullyReadEvent) and d.event_id == event_id for d in bob.room_account_data[room]),
    )
    await alice.hears("the receipt", lambda: any(r.event_id == event_id for r in alice.receipts[room]))
    assert not any(isinstance(data, nio.FullyReadEvent) for data in alice.room_account_data[room])


# shows: setTyping
async def test_typing_is_seen_while_it_lasts(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    ok(await bob.client.room_typing(room, True, timeout=60_000))
    await alice.hears("typing", lambda: alice.typing.get(room) == [bob.id])
    ok(await bob.client.room_typing(room, False))
    await alice.hears("no more typing", lambda: alice.typing.get(room) == [])


# shows: sendToDevice
async def test_a_message_to_a_device_reaches_this_device_once(people):
    alice, bob = await people("alice"), await people("bob")
    other = await bob.second_device(listen=True)
    try:
        for n in range(3):
            message = nio.ToDeviceMessage("org.example.ping", bob.id, bob.client.device_id, {"n": n})
            ok(await alice.client.to_device(message))
        await bob.hears("three messages", lambda: len(bob.to_device) >= 3)
        assert [event.source["content"]["n"] for event in bob.to_device] == [0, 1, 2]
        assert {event.sender for event in bob.to_device} == {alice.id}
        # The next answer to each shows that nothing came to the other device, and nothing twice to this.
        room = await alice.room_with(bob)
        await bob.hears_event(room, await alice.say(room, "end"))
        await other.hears("the room", lambda: "end" in other.texts(room))
        assert (len(bob.to_device), other.to_device) == (3, [])
        assert len(ids(bob.timeline[room])) == len(set(ids(bob.timeline[room])))
    finally:
        await other.close()
