// Four people, two rooms and a space through a long day: everything that rooms and sync offer, a restart in the middle of it.

import assert from "node:assert/strict";
import { eventually, refused } from "./person.js";
import { scenario } from "./scenarios.js";

// shows: createRoom, joinRoom, getSpaceHierarchy, sendMessage, getRelatingEvents, getThreadRoots, sync, postReceipt, setPresence, upgradeRoom, redactEvent
scenario("four people spend a day in two rooms and a space", async ({ people, keep, server }) => {
    const everyone = [];
    for (const name of ["alice", "bob", "carol", "dave"]) everyone.push(await people(name, { threadSupport: true }));
    const [alice, bob, carol, dave] = everyone;
    const others = [bob, carol, dave];
    const allHear = (room, event) => Promise.all(everyone.map((person) => person.hears(room, event)));
    const relates = (rel_type, event_id, more = {}) => ({ "m.relates_to": { rel_type, event_id, ...more } });

    // A space with two rooms in it: one that anybody may join, one for its members alone.
    const garden = (await alice.createRoom({ preset: "public_chat", name: "garden" })).roomId;
    const study = await alice.roomWith(others, { name: "study" });
    const space = (await alice.createRoom({ preset: "public_chat", name: "house", creation_content: { type: "m.space" } })).roomId;
    for (const room of [garden, study]) await alice.client.sendStateEvent(space, "m.space.child", { via: ["localhost"] }, room);
    for (const person of others) {
        await person.join(space);
        const { rooms } = await person.client.getRoomHierarchy(space);
        assert.deepEqual(rooms.map((room) => room.room_id).sort(), [space, garden, study].sort());
        await person.join(garden);
    }

    // A conversation with a reaction, an edit, a mention and a poll.
    const opening = await alice.say(garden, "who wants tee?");
    const edit = await alice.say(garden, "* who wants tea?", {
        "m.new_content": { msgtype: "m.text", body: "who wants tea?" }, ...relates("m.replace", opening),
    });
    const react = () => bob.client.sendEvent(garden, "m.reaction", relates("m.annotation", opening, { key: "☕" }));
    const { event_id: reaction } = await react();
    const mention = await alice.say(garden, "Dave?", { "m.mentions": { user_ids: [dave.id] } });
    const { event_id: poll } = await alice.client.sendEvent(garden, "m.poll.start", {
        "m.text": [{ body: "Milk?" }],
        "m.poll": {
            kind: "m.disclosed", max_selections: 1, question: { "m.text": [{ body: "Milk?" }] },
            answers: [{ "m.id": "yes", "m.text": [{ body: "Yes" }] }, { "m.id": "no", "m.text": [{ body: "No" }] }],
        },
    });
    const { event_id: vote } = await carol.client.sendEvent(
        garden, "m.poll.response", { ...relates("m.reference", poll), "m.selections": ["yes"] },
    );
    await allHear(garden, mention);
    await refused(react(), 400, "M_DUPLICATE_ANNOTATION");
    const related = await dave.client.relations(garden, opening, null, null);
    assert.deepEqual(related.events.map((event) => event.getId()).sort(), [edit, reaction].sort());
    const votes = await dave.client.relations(garden, poll, "m.reference", "m.poll.response");
    assert.deepEqual(votes.events.map((event) => event.getId()), [vote]);
    await eventually(
        () => dave.client.getRoom(garden).findEventById(opening).getContent().body === "who wants tea?", "dave sees the edit",
    );

    // What dave has not read, and then has.
    await dave.hasUnread(garden, [2, 1]);
    await dave.client.sendReadReceipt(dave.client.getRoom(garden).findEventById(mention));
    await dave.hasUnread(garden, [0, 0]);

    // A thread: counted apart, read apart.
    const inThread = (body, more = {}) => ({ body, content: { ...relates("m.thread", opening), ...more } });
    const lump = inThread("one lump");
    await bob.say(garden, lump.body, lump.content);
    const two = inThread("or two?", { "m.mentions": { user_ids: [dave.id] } });
    const reply = await carol.say(garden, two.body, two.content);
    await dave.hasUnread(garden, [0, 0], { [opening]: [2, 1] });
    const threads = () => dave.client.createThreadListMessagesRequest(garden, null, 10, "b");
    const [root] = (await threads()).chunk;
    assert.equal(root.event_id, opening);
    assert.equal(root.unsigned["m.relations"]["m.thread"].count, 2);
    assert.equal(root.unsigned["m.relations"]["m.thread"].latest_event.event_id, reply);

    // Presence, seen by who shares a room.
    carol.client.setSyncPresence("unavailable");
    await carol.client.setPresence({ presence: "unavailable", status_msg: "in the rose garden" });
    await eventually(() => {
        const user = alice.client.getUser(carol.id);
        return user?.presence === "unavailable" && user.presenceStatusMsg === "in the rose garden";
    }, "alice sees carol's presence");

    // The server crashes and starts again; what was counted and read before is as it was.
    await server.kill();
    await server.start();
    const noise = await alice.say(study, "what was that noise?");
    await eventually(() => {
        for (const person of everyone) person.client.retryImmediately();
        return everyone.every((person) => person.client.getRoom(study).findEventById(noise));
    }, "everybody hears of the noise");
    const other = keep(await dave.secondDevice({ threadSupport: true }));
    await other.hasUnread(garden, [0, 0], { [opening]: [2, 1] });
    await dave.hears(garden, reply);
    await dave.client.sendReadReceipt(dave.client.getRoom(garden).findEventById(reply));
    await other.hasUnread(garden, [0, 0], { [opening]: [0, 0] });
    await other.hasUnread(study, [1, 0]);

    // The newest reply of the thread is taken back.
    await carol.client.redactEvent(garden, reply);
    assert.equal((await threads()).chunk[0].unsigned["m.relations"]["m.thread"].count, 1);

    // The study moves; everybody follows.
    const { replacement_room: moved } = await alice.client.upgradeRoom(study, "12");
    const tombstone = (person) => person.client.getRoom(study).currentState.getStateEvents("m.room.tombstone", "");
    for (const person of everyone) {
        await eventually(() => tombstone(person)?.getContent().replacement_room === moved, `${person.username} sees the tombstone`);
    }
    const room = await alice.hasRoom(moved, "join");
    assert.equal(room.findPredecessor().roomId, study);
    for (const person of others) {
        await alice.client.invite(moved, person.id);
        await person.hasRoom(moved, "invite");
        assert.equal((await person.join(moved)).name, "study");
    }
    const evening = await bob.say(moved, "good evening");
    await allHear(moved, evening);

    // Nothing is lost, nothing is doubled.
    for (const person of everyone) {
        for (const room of [garden, study, moved, space]) {
            const ids = person.events(room).map((event) => event.getId());
            assert.equal(new Set(ids).size, ids.length);
        }
        await person.scrollToTheBeginning(garden);
        assert.deepEqual(person.texts(study), ["what was that noise?"]);
        assert.deepEqual(person.texts(moved), ["good evening"]);
        const heard = new Set(person.events(garden).map((event) => event.getId()));
        for (const event of [opening, edit, reaction, mention, poll, vote]) assert.ok(heard.has(event), `${person.username} lost ${event}`);
    }
});
