// Files that people send each other.

import assert from "node:assert/strict";
import { scenario } from "./scenarios.js";

// A file as a browser gets it for the person.
async function download(person, uri) {
    const url = person.client.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
    return fetch(url, { headers: { Authorization: `Bearer ${person.client.getAccessToken()}` } });
}

// shows: uploadContent, getContentAuthed, getConfigAuthed
scenario("a file that is sent is received byte by byte", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    const { "m.upload.size": most } = await alice.client.getMediaConfig(true);
    assert.equal(most, 50 * 1024 * 1024);
    const picture = new Uint8Array(500_000).map((_, place) => place * place);
    const blob = new Blob([picture], { type: "image/png" });
    const { content_uri: url } = await alice.client.uploadContent(blob, { name: "päonie.png", type: "image/png" });
    const sent = await alice.say(room, "päonie.png", { msgtype: "m.image", url });
    const event = await bob.hears(room, sent);
    const got = await download(bob, event.getContent().url);
    assert.equal(got.status, 200);
    assert.equal(got.headers.get("content-type"), "image/png");
    assert.deepEqual(new Uint8Array(await got.arrayBuffer()), picture);
    const unknown = await download(bob, `${url}x`);
    assert.equal(unknown.status, 404);
    assert.equal((await unknown.json()).errcode, "M_NOT_FOUND");
});
