// A person with a client: matrix-js-sdk as an app starts it, with `startClient()`.

import "./quiet.js";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { Filter, createClient } from "matrix-js-sdk";

export const PASSWORD = "correct horse battery staple";
const WAIT_MS_MAX = 30_000;

let people = 0;

export class Person {
    // Makes a person with an account and a name that nobody else has, whose client has synced once.
    static async register(server, name, options = {}) {
        const username = `${name}${process.pid}x${++people}`;
        const account = await register(server, username);
        return new Person(server, username, account).started(options);
    }

    constructor(server, username, account) {
        this.server = server;
        this.username = username;
        this.id = account.user_id;
        this.client = createClient({
            baseUrl: server.url,
            userId: account.user_id,
            accessToken: account.access_token,
            deviceId: account.device_id,
            timelineSupport: true,
        });
    }

    async started({ encrypted = false, initialSyncLimit = 50, threadSupport = false } = {}) {
        if (encrypted) await this.client.initRustCrypto({ useIndexedDB: false });
        const filter = new Filter(this.id);
        filter.setTimelineLimit(initialSyncLimit);
        filter.setUnreadThreadNotifications(threadSupport);
        const options = { initialSyncLimit, pollTimeout: 30_000, lazyLoadMembers: true, threadSupport, filter };
        await this.client.startClient(options);
        await eventually(() => this.client.isInitialSyncComplete(), `${this.username} has synced`);
        return this;
    }

    // The same person, logged in with the password on another device.
    async secondDevice(options = {}) {
        const account = await anonymous(this.server).loginRequest(passwordLogin(this.id));
        return new Person(this.server, this.username, account).started(options);
    }

    stop() {
        this.client.stopClient();
    }

    async createRoom(options = {}) {
        const { room_id: roomId } = await this.client.createRoom({ preset: "private_chat", ...options });
        return this.hasRoom(roomId, "join");
    }

    // Creates a private room that the others are invited to and join; returns when all have heard of it.
    async roomWith(others, options = {}) {
        const room = await this.createRoom({ invite: others.map((other) => other.id), ...options });
        for (const other of others) {
            await other.hasRoom(room.roomId, "invite");
            await other.join(room.roomId);
            await eventually(() => room.getMember(other.id)?.membership === "join", `${this.username} sees who joined`);
        }
        return room.roomId;
    }

    async join(roomId) {
        await this.client.joinRoom(roomId);
        return this.hasRoom(roomId, "join");
    }

    // Waits until the client knows the room with this membership of its own.
    async hasRoom(roomId, membership) {
        return eventually(() => {
            const room = this.client.getRoom(roomId);
            return room?.getMyMembership() === membership && room;
        }, `${this.username} has ${membership} in ${roomId}`);
    }

    async say(roomId, body, content = {}) {
        const message = { msgtype: "m.text", body, ...content };
        // The library gives up on a thread's message whose echo comes by /sync before the answer to the request.
        const { event_id: eventId } = await (content["m.relates_to"]?.rel_type === "m.thread"
            ? this.client.http.authedRequest(
                  "PUT", `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/${randomUUID()}`, undefined, message,
              )
            : this.client.sendMessage(roomId, message));
        return eventId;
    }

    // Waits until the main timeline has so many unread messages and highlights, and each of these threads too.
    async hasUnread(roomId, expected, threads = {}) {
        const room = this.client.getRoom(roomId);
        const counts = () => ({
            main: ["total", "highlight"].map((kind) => room.getRoomUnreadNotificationCount(kind)),
            threads: Object.fromEntries(Object.keys(threads).map(
                (root) => [root, ["total", "highlight"].map((kind) => room.getThreadUnreadNotificationCount(root, kind))],
            )),
        });
        const wanted = { main: expected, threads };
        await eventually(() => isDeepStrictEqual(counts(), wanted), `${this.username} has ${JSON.stringify(wanted)} unread`)
            .catch((error) => assert.fail(`${error.message}, but ${JSON.stringify(counts())}`));
    }

    async hears(roomId, eventId) {
        return eventually(() => this.client.getRoom(roomId)?.findEventById(eventId), `${this.username} hears ${eventId}`);
    }

    // Scrolls back until the server has no more.
    async scrollToTheBeginning(roomId, limit = 30) {
        for (let page = 0; ; page++) {
            assert.ok(page < 50, "scrolling does not come to an end");
            const oldest = this.#timelines(roomId)[0];
            const more = await this.client.paginateEventTimeline(oldest, { backwards: true, limit });
            // Without more there, the piece may have met an older one.
            if (!more && this.#timelines(roomId)[0] === oldest) return;
        }
    }

    // The pieces of the room's timeline that are joined without a gap, ending with the live one.
    #timelines(roomId) {
        const pieces = [this.client.getRoom(roomId).getLiveTimeline()];
        for (let older; (older = pieces[0].getNeighbouringTimeline("b")); ) pieces.unshift(older);
        return pieces;
    }

    // The events up to now without a gap, in the order of the timeline.
    events(roomId) {
        return this.#timelines(roomId).flatMap((timeline) => timeline.getEvents());
    }

    // The texts of the room's messages, in the order of the timeline.
    texts(roomId) {
        return this.events(roomId).filter((event) => event.getType() === "m.room.message").map((event) => event.getContent().body);
    }
}

export function anonymous(server) {
    return createClient({ baseUrl: server.url });
}

// Registers as the specification says: asks, then completes the stage with the session.
export async function register(server, username) {
    const client = anonymous(server);
    const question = await refused(client.registerRequest({ username, password: PASSWORD }), 401);
    assert.ok(question.data.flows.some((flow) => flow.stages.join() === "m.login.dummy"), JSON.stringify(question.data));
    return client.registerRequest({
        username,
        password: PASSWORD,
        initial_device_display_name: "first device",
        auth: { type: "m.login.dummy", session: question.data.session },
    });
}

export function passwordLogin(user, extra = {}) {
    return { type: "m.login.password", identifier: { type: "m.id.user", user }, password: PASSWORD, ...extra };
}

// Asserts that the server refuses with this status and, if given, this code, and returns the error.
export async function refused(promise, status, errcode) {
    const error = await promise.then(
        (answer) => assert.fail(`expected ${status}, got ${JSON.stringify(answer)}`),
        (error) => error,
    );
    assert.equal(error.httpStatus, status, error.stack);
    if (errcode) assert.equal(error.errcode, errcode);
    return error;
}

// Waits until the condition gives something, and returns that.
export async function eventually(condition, what) {
    const deadline = Date.now() + WAIT_MS_MAX;
    for (;;) {
        const value = await condition();
        if (value) return value;
        assert.ok(Date.now() < deadline, `never happened: ${what}`);
        await sleep(20);
    }
}
