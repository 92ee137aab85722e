// How much is unread, in the main timeline and in threads.

import assert from "node:assert/strict";
import { eventually } from "./person.js";
import { scenario } from "./scenarios.js";

// shows: sync, postReceipt, setPushRule
scenario("unread messages are counted by thread, and cleared by receipts of each kind", async ({ people }) => {
    const alice = await people("alice", { threadSupport: true });
    const bob = await people("bob", { threadSupport: true });
    const roomId = await alice.roomWith([bob]);
    const room = bob.client.getRoom(roomId);
    const counts = () => [room.getRoomUnreadNotificationCount("total"), room.getRoomUnreadNotificationCount("highlight")];
    const inThread = (root) => [
        room.getThreadUnreadNotificationCount(root, "total"),
        room.getThreadUnreadNotificationCount(root, "highlight"),
    ];
    const become = (value, expected, what) => eventually(() => String(value()) === String(expected), what);

    const root = await alice.say(roomId, "the weather");
    const relation = { "m.relates_to": { rel_type: "m.thread", event_id: root } };
    await alice.say(roomId, "it rains", relation);
    const mention = { ...relation, "m.mentions": { user_ids: [bob.id] } };
    const last = await alice.say(roomId, "and at yours, bob?", mention);
    await become(counts, [1, 0], "the root is unread");
    await become(() => inThread(root), [2, 1], "the thread has two, one of them to bob");
    await bob.client.sendReadReceipt(await bob.hears(roomId, root));
    await become(counts, [0, 0], "the main timeline is read");
    assert.deepEqual(inThread(root), [2, 1]);
    await bob.client.sendReceipt(await bob.hears(roomId, last), "m.read.private", { thread_id: root }, true);
    await become(() => inThread(root), [0, 0], "the thread is read");
    await alice.say(roomId, "still raining", relation);
    const end = await alice.say(roomId, "good night");
    await become(counts, [1, 0], "one more");
    await become(() => inThread(root), [1, 0], "one more in the thread");
    await bob.client.sendReadReceipt(await bob.hears(roomId, end), "m.read", true);
    await become(counts, [0, 0], "all is read");
    await become(() => inThread(root), [0, 0], "threads, too");
    // A muted room counts nothing.
    await bob.client.setRoomMutePushRule("global", roomId, true);
    await alice.say(roomId, "anybody there?");
    await bob.hears(roomId, await alice.say(roomId, "hello?"));
    assert.deepEqual(counts(), [0, 0]);
});
