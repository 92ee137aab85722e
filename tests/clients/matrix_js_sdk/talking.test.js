// Messages and what belongs to them.

import assert from "node:assert/strict";
import { eventually } from "./person.js";
import { scenario } from "./scenarios.js";

// shows: sendMessage, sync
scenario("people talk both ways, and each message appears once", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const asked = await alice.say(room, "why is a raven like a writing desk?");
    assert.equal((await bob.hears(room, asked)).getSender(), alice.id);
    const answered = await bob.say(room, "I haven't the slightest idea");
    await alice.hears(room, answered);
    // Bob's own message, shown before it was sent, became the one that the server sent back.
    await eventually(() => bob.client.getRoom(room).findEventById(answered)?.status === null, "bob hears himself");
    const said = ["why is a raven like a writing desk?", "I haven't the slightest idea"];
    assert.deepEqual(alice.texts(room), said);
    assert.deepEqual(bob.texts(room), said);
});

// shows: sendMessage
scenario("an edit replaces the text", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const original = await alice.say(room, "tee");
    const event = await bob.hears(room, original);
    await alice.say(room, "* tea", {
        "m.new_content": { msgtype: "m.text", body: "tea" },
        "m.relates_to": { rel_type: "m.replace", event_id: original },
    });
    await eventually(() => event.getContent().body === "tea", "bob sees the new text");
});

// shows: sendMessage
scenario("a reaction is counted at its message", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const message = await alice.say(room, "tea?");
    await bob.hears(room, message);
    await bob.client.sendEvent(room, "m.reaction", {
        "m.relates_to": { rel_type: "m.annotation", event_id: message, key: "☕" },
    });
    await eventually(() => {
        const { relations } = alice.client.getRoom(room);
        const reactions = relations.getChildEventsForEvent(message, "m.annotation", "m.reaction");
        return reactions?.getSortedAnnotationsByKey().some(([key, events]) => key === "☕" && events.size === 1);
    }, "alice sees the reaction");
});

// shows: sendMessage
scenario("a reply names what it answers", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const question = await alice.say(room, "more tea?");
    await bob.hears(room, question);
    const reply = await bob.say(room, "I've had nothing yet", { "m.relates_to": { "m.in_reply_to": { event_id: question } } });
    assert.equal((await alice.hears(room, reply)).replyEventId, question);
});

// shows: redactEvent
scenario("a redacted message is empty for everyone", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const mistake = await alice.say(room, "my password is hunter2");
    const event = await bob.hears(room, mistake);
    await alice.client.redactEvent(room, mistake, undefined, { reason: "oops" });
    await eventually(() => event.isRedacted(), "bob sees the redaction");
    assert.equal(event.getContent().body, undefined);
    const other = keep(await bob.secondDevice());
    const later = await other.hears(room, mistake);
    assert.ok(later.isRedacted());
    assert.equal(later.getUnsigned().redacted_because.content.reason, "oops");
});

// shows: postReceipt, setReadMarker
scenario("receipts and read markers show what was read", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const message = await bob.hears(room, await alice.say(room, "read me"));
    await bob.client.sendReadReceipt(message);
    await eventually(() => alice.client.getRoom(room).hasUserReadEvent(bob.id, message.getId()), "alice sees the receipt");
    const next = await bob.hears(room, await alice.say(room, "and me"));
    await bob.client.setRoomReadMarkers(room, next.getId(), next);
    await eventually(() => alice.client.getRoom(room).getEventReadUpTo(bob.id) === next.getId(), "alice sees the next receipt");
    const other = keep(await bob.secondDevice());
    const marker = other.client.getRoom(room).getAccountData("m.fully_read");
    assert.equal(marker.getContent().event_id, next.getId());
    assert.equal(other.client.getRoom(room).getEventReadUpTo(bob.id), next.getId());
});

// shows: setTyping
scenario("typing is seen while it lasts", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const member = alice.client.getRoom(room).getMember(bob.id);
    await bob.client.sendTyping(room, true, 60_000);
    await eventually(() => member.typing, "alice sees bob typing");
    await bob.client.sendTyping(room, false, 0);
    await eventually(() => !member.typing, "alice sees bob stop");
});

// shows: sendToDevice
scenario("a message to a device reaches it once", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const heard = [];
    bob.client.on("toDeviceEvent", (event) => heard.push(event.getContent().n));
    for (const n of [0, 1, 2]) {
        const contents = new Map([[bob.id, new Map([[bob.client.getDeviceId(), { n }]])]]);
        await alice.client.sendToDevice("org.example.ping", contents);
    }
    await eventually(() => heard.length >= 3, "three messages arrive");
    const room = await alice.roomWith([bob]);
    await bob.hears(room, await alice.say(room, "end"));
    assert.deepEqual(heard, [0, 1, 2]);
});

// shows: getRoomEvents, getEventContext, getOneRoomEvent
scenario("scrolling back shows the whole history once and in order", async ({ people, keep }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const sent = [];
    for (let n = 0; n < 45; n++) sent.push(await alice.say(room, `message ${n}`));
    const other = keep(await bob.secondDevice({ initialSyncLimit: 5 }));
    assert.deepEqual(other.events(room).map((event) => event.getId()), sent.slice(-5));
    await other.scrollToTheBeginning(room, 9);
    const ids = other.events(room).map((event) => event.getId());
    assert.equal(new Set(ids).size, ids.length);
    const messages = other.events(room).filter((event) => event.getType() === "m.room.message");
    assert.deepEqual(messages.map((event) => event.getId()), sent);
    assert.equal(other.events(room)[0].getType(), "m.room.create");
    // A link to an event in the middle opens the timeline around it.
    const fresh = keep(await bob.secondDevice({ initialSyncLimit: 5 }));
    const timelines = fresh.client.getRoom(room).getUnfilteredTimelineSet();
    const timeline = await fresh.client.getEventTimeline(timelines, sent[20]);
    assert.ok(timeline.getEvents().some((event) => event.getId() === sent[20]));
    assert.equal((await fresh.client.fetchRoomEvent(room, sent[20])).content.body, "message 20");
});
