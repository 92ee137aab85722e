// Rooms and who is in them.

import assert from "node:assert/strict";
import { eventually, refused } from "./person.js";
import { scenario } from "./scenarios.js";

// shows: createRoom, inviteUser, joinRoom, setRoomStateWithKey
scenario("an invited person sees the room before and after joining it", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.createRoom({ name: "tea party", topic: "unbirthdays" });
    await alice.client.invite(room.roomId, bob.id);
    const invitation = await bob.hasRoom(room.roomId, "invite");
    assert.equal(invitation.name, "tea party");
    await bob.join(room.roomId);
    await eventually(() => room.getMember(bob.id)?.membership === "join", "alice sees bob");
    assert.equal(room.getJoinedMemberCount(), 2);
    await alice.client.setRoomName(room.roomId, "croquet");
    await eventually(() => bob.client.getRoom(room.roomId).name === "croquet", "bob sees the new name");
    await refused(bob.client.setRoomName(room.roomId, "mine"), 403, "M_FORBIDDEN");
});

// shows: setRoomAlias, getRoomIdByAlias, getLocalAliases, joinRoom
scenario("anyone joins a public room by its alias", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.createRoom({ preset: "public_chat" });
    const alias = `#garden-${alice.username}:localhost`;
    await alice.client.createAlias(alias, room.roomId);
    assert.equal((await bob.client.getRoomIdForAlias(alias)).room_id, room.roomId);
    assert.deepEqual((await alice.client.getLocalAliases(room.roomId)).aliases, [alias]);
    await bob.client.joinRoom(alias);
    await bob.hasRoom(room.roomId, "join");
});

// shows: kick, ban, unban
scenario("who is kicked may come back, who is banned may not", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.createRoom({ preset: "public_chat" });
    await bob.join(room.roomId);
    await alice.client.kick(room.roomId, bob.id, "too loud");
    await bob.hasRoom(room.roomId, "leave");
    await bob.join(room.roomId);
    await alice.client.ban(room.roomId, bob.id, "spam");
    await bob.hasRoom(room.roomId, "ban");
    await refused(bob.client.joinRoom(room.roomId), 403);
    await alice.client.unban(room.roomId, bob.id);
    await bob.join(room.roomId);
});

// shows: setRoomStateWithKey
scenario("power is given and used", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    await refused(bob.client.setRoomTopic(room, "bob was here"), 403, "M_FORBIDDEN");
    await alice.client.setPowerLevel(room, bob.id, 50);
    const state = () => bob.client.getRoom(room).currentState;
    await eventually(() => state().getMember(bob.id)?.powerLevel === 50, "bob has power");
    await bob.client.setRoomTopic(room, "bob was here");
    const topic = () => alice.client.getRoom(room).currentState.getStateEvents("m.room.topic", "")?.getContent().topic;
    await eventually(() => topic() === "bob was here", "alice sees the topic");
});

// shows: leaveRoom, forgetRoom
scenario("a room is gone after leaving and forgetting it", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    await bob.client.leave(room);
    await bob.hasRoom(room, "leave");
    await bob.client.forget(room);
    assert.equal(bob.client.getRoom(room), null);
    const other = keep(await bob.secondDevice());
    assert.deepEqual(other.client.getRooms().map((known) => known.roomId), []);
});

// shows: createRoom, setAccountData, getAccountData, setRoomTag
scenario("a direct chat is one for both, and stays one with its tag after an upgrade", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const phone = keep(await bob.secondDevice());
    const room = await alice.createRoom({ invite: [bob.id], is_direct: true, preset: "trusted_private_chat" });
    const invitation = await bob.hasRoom(room.roomId, "invite");
    assert.equal(invitation.getDMInviter(), alice.id);
    await bob.join(room.roomId);
    assert.equal(bob.client.getRoom(room.roomId).getDMInviter(), alice.id, "also once it is accepted");
    await bob.client.setAccountData("m.direct", { [alice.id]: [room.roomId] });
    await bob.client.setRoomTag(room.roomId, "m.favourite", { order: 0.5 });
    const direct = () => phone.client.getAccountData("m.direct")?.getContent()[alice.id] ?? [];
    await eventually(() => direct().includes(room.roomId), "the other device knows of the direct chat");
    await eventually(() => phone.client.getRoom(room.roomId)?.tags["m.favourite"]?.order === 0.5, "and of the tag");
    const { replacement_room: next } = await alice.client.upgradeRoom(room.roomId, "12");
    await alice.client.invite(next, bob.id);
    await bob.hasRoom(next, "invite");
    await bob.join(next);
    await eventually(() => direct().includes(next), "the new room is a direct chat too");
    await eventually(() => phone.client.getRoom(next)?.tags["m.favourite"]?.order === 0.5, "and has the tag");
});

// shows: setRoomTag, getRoomTags, deleteRoomTag, setAccountDataPerRoom
scenario("tags and account data of a room reach the other devices", async ({ people, keep }) => {
    const alice = await people("alice");
    const room = await alice.createRoom();
    const other = keep(await alice.secondDevice());
    await alice.client.setRoomTag(room.roomId, "m.favourite", { order: 0.25 });
    await alice.client.setRoomAccountData(room.roomId, "org.example.colour", { colour: "teal" });
    const mirrored = other.client.getRoom(room.roomId);
    await eventually(() => mirrored.tags["m.favourite"]?.order === 0.25, "the tag arrives");
    await eventually(() => mirrored.getAccountData("org.example.colour")?.getContent().colour === "teal", "the data arrives");
    await alice.client.deleteRoomTag(room.roomId, "m.favourite");
    await eventually(() => !("m.favourite" in mirrored.tags), "the tag goes");
});

// shows: getMembersByRoom
scenario("members that a lazy sync leaves out are loaded when asked for", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const carol = await people("carol");
    const room = await alice.roomWith([bob, carol]);
    const other = keep(await alice.secondDevice());
    const seen = other.client.getRoom(room);
    await seen.loadMembersIfNeeded();
    assert.deepEqual(seen.getJoinedMembers().map((member) => member.userId).sort(), [alice.id, bob.id, carol.id].sort());
});

// shows: getSpaceHierarchy, getRoomSummary
scenario("a person walks through a space and sees what its rooms are", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const space = await alice.createRoom({ preset: "public_chat", name: "garden", creation_content: { type: "m.space" } });
    const names = ["hedge", "maze", "pond"];
    for (const [index, name] of names.entries()) {
        const room = await alice.createRoom({ preset: "public_chat", name });
        const content = { via: ["localhost"], order: String(index) };
        await alice.client.sendStateEvent(space.roomId, "m.space.child", content, room.roomId);
    }
    const first = await bob.client.getRoomHierarchy(space.roomId, 2);
    const second = await bob.client.getRoomHierarchy(space.roomId, 2, undefined, false, first.next_batch);
    assert.deepEqual([...first.rooms, ...second.rooms].map((room) => room.name), ["garden", ...names]);
    assert.equal(second.next_batch, undefined);
    const summary = await bob.client.getRoomSummary(second.rooms[0].room_id, ["localhost"]);
    assert.equal(summary.name, "maze");
    assert.equal(summary.membership, "leave");
    await bob.join(second.rooms[0].room_id);
});

// shows: roomInitialSync, peekEvents
scenario("a person looks into a room that the world may read and hears what is said there", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const readable = { type: "m.room.history_visibility", content: { history_visibility: "world_readable" } };
    const room = await alice.createRoom({ initial_state: [readable] });
    const before = await alice.say(room.roomId, "curiouser");
    const seen = await bob.client.peekInRoom(room.roomId);
    assert.ok(seen.findEventById(before), "what was said before is there");
    // Following starts some time after looking.
    await eventually(async () => {
        await alice.say(room.roomId, "and curiouser");
        return seen.getLiveTimeline().getEvents().some((event) => event.getContent().body === "and curiouser");
    }, "bob hears what is said");
    bob.client.stopPeeking();
});

// shows: knockRoom
scenario("who knocks is let in", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.createRoom({
        name: "tea party",
        initial_state: [{ type: "m.room.join_rules", content: { join_rule: "knock" } }],
    });
    await bob.client.knockRoom(room.roomId, { reason: "no room, no room" });
    const door = await bob.hasRoom(room.roomId, "knock");
    assert.equal(door.name, "tea party");
    await eventually(() => room.getMember(bob.id)?.membership === "knock", "alice hears the knock");
    await alice.client.invite(room.roomId, bob.id);
    await bob.hasRoom(room.roomId, "invite");
    await bob.join(room.roomId);
});
