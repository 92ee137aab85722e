// Rooms by lists: the SlidingSync class of matrix-js-sdk in place of /sync.

import assert from "node:assert/strict";
import { SlidingSync } from "matrix-js-sdk/lib/sliding-sync.js";
import { Person, eventually, register } from "./person.js";
import { scenario } from "./scenarios.js";

let count = 0;

// A person whose client has one list of all rooms in place of /sync.
class SlidingPerson extends Person {
    async started({ encrypted = false } = {}) {
        if (encrypted) await this.client.initRustCrypto({ useIndexedDB: false });
        const wanted = { required_state: [["*", "*"]], timeline_limit: 50 };
        const lists = new Map([["all", { ...wanted, ranges: [[0, 99]] }]]);
        this.sliding = new SlidingSync(this.server.url, lists, wanted, this.client, 30_000);
        await this.client.startClient({ slidingSync: this.sliding, initialSyncLimit: 50 });
        await eventually(() => this.client.isInitialSyncComplete(), `${this.username} has synced`);
        return this;
    }
}

// A scenario like the others, whose people use sliding sync.
function slidingScenario(name, body) {
    scenario(name, ({ keep, server }) => {
        const people = async (name, options) => {
            const username = `${name}${process.pid}s${++count}`;
            const account = await register(server, username);
            return keep(await new SlidingPerson(server, username, account).started(options));
        };
        return body({ people, server });
    });
}

slidingScenario("people who use sliding sync talk, also after the server was away", async ({ people, server }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob], { name: "a room in a list" });
    await eventually(() => bob.client.getRoom(room).name === "a room in a list", "bob knows how the room is called");
    await eventually(() => bob.sliding.getListData("all")?.joinedCount === 1, "bob's list has the room");

    const sent = [];
    const talk = async () => {
        for (const person of [alice, bob, alice]) {
            sent.push(await person.say(room, `message ${sent.length}`));
            for (const listener of [alice, bob]) await listener.hears(room, sent.at(-1));
        }
    };
    await talk();
    await server.stop();
    await server.start();
    await talk();
    const expected = sent.map((_, n) => `message ${n}`);
    for (const person of [alice, bob]) {
        assert.deepEqual(person.texts(room), expected);
        const ids = person.events(room).map((event) => event.getId());
        assert.equal(new Set(ids).size, ids.length, "nothing came twice");
        await person.scrollToTheBeginning(room);
        assert.deepEqual(person.texts(room), expected);
        assert.equal(person.events(room)[0].getType(), "m.room.create");
    }
});

slidingScenario("typing, receipts and account data come with sliding sync", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const event = await alice.say(room, "read me");
    await bob.hears(room, event);
    await bob.client.sendTyping(room, true, 20_000);
    await eventually(() => alice.client.getRoom(room).getMember(bob.id).typing, "alice sees bob type");
    await bob.client.sendReadReceipt(bob.client.getRoom(room).findEventById(event));
    await eventually(
        () => alice.client.getRoom(room).getEventReadUpTo(bob.id, true) === event,
        "alice sees what bob has read",
    );
    await bob.client.setRoomTag(room, "u.work", { order: 0.5 });
    await eventually(() => bob.client.getRoom(room).tags["u.work"], "bob's tag comes back");
    await bob.client.setAccountData("org.example.x", { a: 1 });
    await eventually(() => bob.client.getAccountData("org.example.x")?.getContent().a === 1, "so does account data");
});

slidingScenario("people who use sliding sync read what is encrypted for them", async ({ people }) => {
    const alice = await people("alice", { encrypted: true });
    const bob = await people("bob", { encrypted: true });
    const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
    const room = await alice.roomWith([bob], { initial_state: [encryption] });
    const event = await alice.say(room, "a secret");
    await eventually(
        () => bob.client.getRoom(room).findEventById(event)?.getContent().body === "a secret",
        "bob reads what was encrypted",
    );
});
