// End-to-end encryption with the Rust cryptography of the library: the server carries what it cannot read.

import assert from "node:assert/strict";
import { eventually } from "./person.js";
import { scenario } from "./scenarios.js";

const ENCRYPTION = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };

// shows: uploadKeys, queryKeys, claimKeys, sendToDevice
scenario("people talk in an encrypted room", async ({ people, keep }) => {
    const alice = await people("alice", { encrypted: true });
    const bob = await people("bob", { encrypted: true });
    const room = await alice.roomWith([bob], { initial_state: [ENCRYPTION] });
    assert.ok(await alice.client.getCrypto().isEncryptionEnabledInRoom(room));
    const understood = async (person, eventId) => {
        const event = await person.hears(room, eventId);
        return eventually(() => event.getClearContent()?.body, `${person.username} decrypts ${eventId}`);
    };
    const sent = await alice.say(room, "down the rabbit hole");
    assert.equal(await understood(bob, sent), "down the rabbit hole");
    assert.equal(await understood(alice, await bob.say(room, "curiouser and curiouser")), "curiouser and curiouser");
    const stored = await bob.client.fetchRoomEvent(room, sent);
    assert.equal(stored.type, "m.room.encrypted");
    assert.ok(!JSON.stringify(stored).includes("rabbit"));
});
