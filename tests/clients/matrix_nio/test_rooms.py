"""Rooms and who is in them."""

import nio
from people import ok, refused


# shows: createRoom, inviteUser, joinRoom, getJoinedMembersByRoom
async def test_an_invited_person_joins_a_private_room(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.create_room(name="tea party", topic="unbirthdays")
    ok(await alice.client.room_invite(room, bob.id))
    await bob.hears("the invitation", lambda: room in bob.invited)
    assert bob.client.invited_rooms[room].name == "tea party"
    assert bob.client.invited_rooms[room].inviter == alice.id
    await bob.join(room)
    await alice.hears_state(room, "m.room.member", bob.id, lambda c: c["membership"] == "join")
    members = {member.user_id for member in ok(await alice.client.joined_members(room)).members}
    assert members == {alice.id, bob.id}
    assert bob.client.rooms[room].name == "tea party"
    assert bob.client.rooms[room].topic == "unbirthdays"


# shows: joinRoom
async def test_a_stranger_is_kept_out_of_a_private_room(people):
    alice, eve = await people("alice", listen=False), await people("eve", listen=False)
    room = await alice.create_room()
    refused(await eve.client.join(room), "M_FORBIDDEN")
    assert ok(await eve.client.joined_rooms()).rooms == []


# shows: setRoomAlias, getRoomIdByAlias, deleteRoomAlias, getJoinedRooms
async def test_anyone_joins_a_public_room_by_its_alias(people):
    alice, bob = await people("alice", listen=False), await people("bob")
    alias = f"#garden-{alice.name}:localhost"
    room = await alice.create_room(alias=alias[1:].split(":")[0], preset=nio.RoomPreset.public_chat)
    resolved = ok(await bob.client.room_resolve_alias(alias))
    assert resolved.room_id == room
    assert "localhost" in resolved.servers
    assert ok(await bob.client.join(alias)).room_id == room
    assert ok(await bob.client.joined_rooms()).rooms == [room]
    second = alias.replace("garden", "wood")
    ok(await alice.client.room_put_alias(second, room))
    ok(await alice.client.room_delete_alias(second))
    refused(await bob.client.room_resolve_alias(second), "M_NOT_FOUND")


# shows: setRoomStateWithKey, getRoomStateWithKey, getRoomState
async def test_a_change_of_the_room_reaches_everyone_and_stays(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    event_id = ok(await alice.client.room_put_state(room, "m.room.name", {"name": "new name"})).event_id
    assert (await bob.hears_event(room, event_id))["content"] == {"name": "new name"}
    assert ok(await bob.client.room_get_state_event(room, "m.room.name")).content == {"name": "new name"}
    state = {(e["type"], e["state_key"]): e for e in ok(await bob.client.room_get_state(room)).events}
    assert state["m.room.name", ""]["event_id"] == event_id
    assert state["m.room.create", ""]["sender"] == alice.id
    refused(await bob.client.room_get_state_event(room, "m.room.topic"), "M_NOT_FOUND")


# shows: setRoomStateWithKey
async def test_who_has_no_power_cannot_change_the_room(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    refused(await bob.client.room_put_state(room, "m.room.name", {"name": "mine"}), "M_FORBIDDEN")
    refused(await bob.client.room_kick(room, alice.id), "M_FORBIDDEN")
    refused(await alice.client.room_get_state_event(room, "m.room.name"), "M_NOT_FOUND")


# shows: kick
async def test_a_kicked_person_is_out_and_may_be_invited_again(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    ok(await alice.client.room_kick(room, bob.id, "too loud"))
    await bob.hears("being kicked", lambda: room in bob.left)
    refused(await bob.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "hm"}), "M_FORBIDDEN")
    ok(await alice.client.room_invite(room, bob.id))
    await bob.hears("the invitation", lambda: room in bob.invited)
    await bob.join(room)


# shows: ban, unban
async def test_a_banned_person_stays_out_until_unbanned(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.create_public_room()
    await bob.join(room)
    ok(await alice.client.room_ban(room, bob.id, "spam"))
    await bob.hears("being banned", lambda: room in bob.left)
    refused(await bob.client.join(room), "M_FORBIDDEN")
    refused(await alice.client.room_invite(room, bob.id), "M_FORBIDDEN")
    ok(await alice.client.room_unban(room, bob.id))
    await bob.join(room)


# shows: leaveRoom, forgetRoom
async def test_a_room_is_gone_after_leaving_and_forgetting_it(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    ok(await bob.client.room_leave(room))
    await bob.hears("having left", lambda: room in bob.left)
    await alice.hears_state(room, "m.room.member", bob.id, lambda c: c["membership"] == "leave")
    ok(await bob.client.room_forget(room))
    assert ok(await bob.client.joined_rooms()).rooms == []
    refused(await bob.client.room_messages(room, limit=10), "M_FORBIDDEN")


# shows: leaveRoom
async def test_an_invitation_can_be_declined(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.create_room(invite=[bob.id])
    await bob.hears("the invitation", lambda: room in bob.invited)
    ok(await bob.client.room_leave(room))
    await alice.hears_state(room, "m.room.member", bob.id, lambda c: c["membership"] == "leave")
    refused(await bob.client.join(room), "M_FORBIDDEN")
