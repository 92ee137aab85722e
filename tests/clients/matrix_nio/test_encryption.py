"""End-to-end encryption of matrix-nio: the server carries keys and messages that it cannot read."""

import nio
from people import ok

ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


# shows: uploadKeys, queryKeys, claimKeys, sendToDevice
async def test_an_encrypted_message_is_read_by_the_others_alone(people):
    alice, bob = await people("alice", encrypted=True), await people("bob", encrypted=True)
    room = await alice.room_with(bob, initial_state=[ENCRYPTED])
    await alice.hears_state(room, "m.room.member", bob.id, lambda c: c["membership"] == "join")
    event_id = await alice.say(room, "down the rabbit hole")
    heard = await bob.hears_event(room, event_id)
    assert heard["type"] == "m.room.message", heard
    assert heard["content"]["body"] == "down the rabbit hole"
    # A device without the keys gets the event as the server has it.
    other = await bob.second_device()
    try:
        stored = ok(await other.client.room_get_event(room, event_id)).event
        assert isinstance(stored, nio.MegolmEvent)
        assert "rabbit" not in str(stored.source)
    finally:
        await other.close()
    answered = await bob.say(room, "curiouser and curiouser")
    assert (await alice.hears_event(room, answered))["content"]["body"] == "curiouser and curiouser"
