// The server ends and starts again while people talk: nothing is lost, nothing is doubled.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "./person.js";
import { scenario } from "./scenarios.js";

const MESSAGES = 30;

// Sends a message as an app does that keeps its unsent messages: again with the same transaction until it is answered.
async function insist(person, room, body) {
    const transaction = randomUUID();
    for (let tries = 0; ; tries++) {
        try {
            return (await person.client.http.authedRequest(
                "PUT",
                `/rooms/${encodeURIComponent(room)}/send/m.room.message/${transaction}`,
                undefined,
                { msgtype: "m.text", body },
            )).event_id;
        } catch (error) {
            assert.ok(tries < 600 && (error.httpStatus === undefined || error.httpStatus >= 500), error.stack);
            await sleep(50);
        }
    }
}

for (const ending of ["in order", "by a crash"]) {
    // shows: sync, sendMessage
    scenario(`people talk on after the server ended ${ending}`, async ({ people, keep, server }) => {
        const alice = await people("alice");
        const bob = await people("bob");
        const room = await alice.roomWith([bob]);
        const sent = [];
        const talking = (async () => {
            for (let n = 0; n < MESSAGES; n++) sent.push(await insist(alice, room, `message ${n}`));
        })();
        await eventually(() => bob.texts(room).length > MESSAGES / 3, "bob hears some messages");
        await (ending === "in order" ? server.stop() : server.kill());
        await server.start();
        await talking;

        const expected = Array.from({ length: MESSAGES }, (_, n) => `message ${n}`);
        for (const person of [alice, bob]) {
            // An app tries again at once when it comes back to the front.
            await eventually(() => {
                person.client.retryImmediately();
                return person.client.getRoom(room).findEventById(sent.at(-1));
            }, `${person.username} hears the last message`);
            // More may have come while the client was away than one answer of /sync holds.
            await person.scrollToTheBeginning(room);
            assert.deepEqual(person.texts(room), expected);
            const ids = person.events(room).map((event) => event.getId());
            assert.equal(new Set(ids).size, ids.length);
        }
        const other = keep(await bob.secondDevice({ initialSyncLimit: 100 }));
        const stored = other.events(room).filter((event) => event.getType() === "m.room.message");
        assert.deepEqual(stored.map((event) => event.getId()), sent);
    });
}
