"""The server ends and starts again while people talk: nothing is lost, nothing is doubled."""

import asyncio

import nio
import pytest
from people import ids, ok

MESSAGES = 30


# shows: sync, sendMessage
@pytest.mark.parametrize("ending", ["in_order", "by_a_crash"])
async def test_people_talk_on_after_the_server_ended(people, server, ending):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    read = await alice.say(room, "before")
    await bob.hears_event(room, read)
    ok(await bob.client.update_receipt_marker(room, read))
    sent = [read]

    async def talk():
        # nio repeats a request with the same transaction until it is answered.
        for n in range(MESSAGES):
            sent.append(await alice.say(room, f"message {n}"))

    talking = asyncio.create_task(talk())
    await bob.hears("some messages", lambda: len(bob.texts(room)) > MESSAGES // 3)
    await asyncio.to_thread(server.stop if ending == "in_order" else server.kill)
    await asyncio.to_thread(server.start)
    await asyncio.wait_for(talking, 60)

    expected = ["before"] + [f"message {n}" for n in range(MESSAGES)]
    for person in (alice, bob):
        await person.hears("the last message", lambda person=person: sent[-1] in ids(person.timeline[room]))
        assert person.texts(room) == expected
        heard = ids(person.timeline[room])
        assert len(heard) == len(set(heard))
    # The stored history says the same to a device that sees it for the first time.
    newcomer = await bob.second_device()
    try:
        first = ok(await newcomer.client.sync(sync_filter={"room": {"timeline": {"limit": 3}}}))
        timeline = first.rooms.join[room].timeline
        older = await newcomer.page(room, timeline.prev_batch, nio.MessageDirection.back)
        stored = list(reversed(older)) + [e.source for e in timeline.events]
        assert [e["event_id"] for e in stored if e["type"] == "m.room.message"] == sent
    finally:
        await newcomer.close()
    # And so does the server's word on what it knew before.
    assert {m.user_id for m in ok(await bob.client.joined_members(room)).members} == {alice.id, bob.id}
    ok(await bob.client.whoami())
