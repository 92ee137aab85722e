// Accounts and devices. Each comment `shows:` names the operations of the specification that the scenario proves.

import "./quiet.js";
import assert from "node:assert/strict";
import { createClient } from "matrix-js-sdk";
import { PASSWORD, anonymous, eventually, passwordLogin, refused, register } from "./person.js";
import { scenario } from "./scenarios.js";

// shows: register, getTokenOwner, getVersions, getCapabilities, getPushRules, defineFilter, sync
scenario("a client starts with what the server offers", async ({ people }) => {
    const alice = await people("alice");
    const whoami = await alice.client.whoami();
    assert.equal(whoami.user_id, alice.id);
    assert.equal(whoami.device_id, alice.client.getDeviceId());
    const { versions } = await alice.client.getVersions();
    assert.ok(versions.includes("v1.1"), versions.join());
    const capabilities = await alice.client.getCapabilities();
    assert.equal(capabilities["m.room_versions"].available[capabilities["m.room_versions"].default], "stable");
    const rules = await alice.client.getPushRules();
    assert.ok(rules.global.override.some((rule) => rule.rule_id === ".m.rule.master"));
});

// shows: checkUsernameAvailability
scenario("a name is available until someone takes it", async ({ people, server }) => {
    const client = anonymous(server);
    assert.equal(await client.isUsernameAvailable("nobody-yet"), true);
    const alice = await people("alice");
    assert.equal(await client.isUsernameAvailable(alice.username), false);
});

// shows: getLoginFlows, login, logout
scenario("a person logs in with the password and logs out", async ({ people, server }) => {
    const alice = await people("alice");
    const client = anonymous(server);
    const { flows } = await client.loginFlows();
    assert.ok(flows.some((flow) => flow.type === "m.login.password"));
    await refused(client.loginRequest(passwordLogin(alice.id, { password: "a guess" })), 403, "M_FORBIDDEN");
    const login = await client.loginRequest(passwordLogin(alice.username));
    assert.equal(login.user_id, alice.id);
    assert.notEqual(login.device_id, alice.client.getDeviceId());
    const session = createClient({ baseUrl: server.url, accessToken: login.access_token, userId: alice.id });
    await session.logout();
    await refused(session.whoami(), 401, "M_UNKNOWN_TOKEN");
    assert.equal((await alice.client.whoami()).user_id, alice.id);
});

// shows: refresh
scenario("a refresh token gives a new access token", async ({ people, server }) => {
    const alice = await people("alice");
    const login = await anonymous(server).loginRequest(passwordLogin(alice.id, { refresh_token: true }));
    assert.ok(login.refresh_token && login.expires_in_ms > 0, JSON.stringify(Object.keys(login)));
    const refreshed = await anonymous(server).refreshToken(login.refresh_token);
    assert.notEqual(refreshed.access_token, login.access_token);
    const session = createClient({ baseUrl: server.url, accessToken: refreshed.access_token, userId: alice.id });
    const whoami = await session.whoami();
    assert.deepEqual([whoami.user_id, whoami.device_id], [alice.id, login.device_id]);
    await refused(anonymous(server).refreshToken("not a token"), 401, "M_UNKNOWN_TOKEN");
});

// shows: getDevices, getDevice, updateDevice, deleteDevice
scenario("a device is renamed, and deleted with the password", async ({ people, server }) => {
    const alice = await people("alice");
    const { device_id: other, access_token: accessToken } = await anonymous(server).loginRequest(passwordLogin(alice.id));
    await alice.client.setDeviceDetails(other, { display_name: "kitchen tablet" });
    assert.equal((await alice.client.getDevice(other)).display_name, "kitchen tablet");
    const { data: question } = await refused(alice.client.deleteDevice(other), 401);
    const { auth, ...login } = passwordLogin(alice.id, { session: question.session });
    await alice.client.deleteDevice(other, login);
    const { devices } = await alice.client.getDevices();
    assert.deepEqual(devices.map((device) => device.device_id), [alice.client.getDeviceId()]);
    const session = createClient({ baseUrl: server.url, accessToken, userId: alice.id });
    await refused(session.whoami(), 401, "M_UNKNOWN_TOKEN");
});

// shows: changePassword
scenario("a changed password ends other sessions and the old password", async ({ people, server }) => {
    const alice = await people("alice");
    const other = await anonymous(server).loginRequest(passwordLogin(alice.id));
    const { data: question } = await refused(alice.client.setPassword({}, "a new password", true), 401);
    await alice.client.setPassword(passwordLogin(alice.id, { session: question.session }), "a new password", true);
    const session = createClient({ baseUrl: server.url, accessToken: other.access_token, userId: alice.id });
    await refused(session.whoami(), 401, "M_UNKNOWN_TOKEN");
    await refused(anonymous(server).loginRequest(passwordLogin(alice.id)), 403, "M_FORBIDDEN");
    await anonymous(server).loginRequest(passwordLogin(alice.id, { password: "a new password" }));
});

// shows: deactivateAccount
scenario("a deactivated account is gone for good", async ({ server }) => {
    const name = `leaver${process.pid}`;
    const account = await register(server, name);
    const client = createClient({ baseUrl: server.url, accessToken: account.access_token, userId: account.user_id });
    const { data: question } = await refused(client.deactivateAccount(undefined, true), 401);
    await client.deactivateAccount(passwordLogin(account.user_id, { session: question.session }), true);
    await refused(client.whoami(), 401, "M_UNKNOWN_TOKEN");
    const login = anonymous(server).loginRequest({ ...passwordLogin(account.user_id), password: PASSWORD });
    const error = await refused(login, 403);
    assert.ok(["M_FORBIDDEN", "M_USER_DEACTIVATED"].includes(error.errcode), error.errcode);
});

// shows: setProfileField, getProfileField, getUserProfile
scenario("a new name and picture reach the people in the room", async ({ people }) => {
    const alice = await people("alice");
    const bob = await people("bob");
    const room = await alice.roomWith([bob]);
    await bob.hears(room, await alice.say(room, "hello"));
    await alice.client.setDisplayName("Alice Liddell");
    await alice.client.setAvatarUrl("mxc://localhost/rabbit");
    assert.deepEqual(await bob.client.getProfileInfo(alice.id), {
        displayname: "Alice Liddell",
        avatar_url: "mxc://localhost/rabbit",
    });
    const member = bob.client.getRoom(room).getMember(alice.id);
    await eventually(() => member.rawDisplayName === "Alice Liddell", "the name changes");
    await eventually(() => member.getMxcAvatarUrl() === "mxc://localhost/rabbit", "the picture changes");
});

// shows: setAccountData, getAccountData
scenario("account data reaches the other devices", async ({ people, keep }) => {
    const alice = await people("alice");
    const other = keep(await alice.secondDevice());
    await alice.client.setAccountData("org.example.theme", { colour: "teal" });
    await eventually(() => other.client.getAccountData("org.example.theme")?.getContent().colour === "teal", "the data arrives");
    assert.deepEqual(await other.client.getAccountDataFromServer("org.example.theme"), { colour: "teal" });
});
