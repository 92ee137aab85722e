// matrix-js-sdk as an actor: one device that does what it is told, a JSON object a line. The commands are in
// `test_kit/src/bin/encryption/actor.rs`.

import "./quiet.js";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Attachment, EncryptedAttachment } from "@matrix-org/matrix-sdk-crypto-wasm";
import { MatrixEvent, createClient } from "matrix-js-sdk";
import { CryptoEvent, VerificationPhase, VerifierEvent, decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";

const WAIT_MS_MAX = 30_000;
const ENCRYPTION = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };

let client, crypto, url, secretStorageKey;
let requested, request, verifier, sas, verified;

async function eventually(what, condition) {
    const deadline = Date.now() + WAIT_MS_MAX;
    for (;;) {
        const value = await condition();
        if (value) return value;
        if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
        await sleep(20);
    }
}

const commands = {
    async login({ url: baseUrl, user, password }) {
        url = baseUrl;
        const account = await createClient({ baseUrl }).loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user },
            password,
            initial_device_display_name: "matrix-js-sdk",
        });
        client = createClient({
            baseUrl,
            userId: account.user_id,
            accessToken: account.access_token,
            deviceId: account.device_id,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], secretStorageKey],
                cacheSecretStorageKey: (_id, _info, key) => (secretStorageKey = key),
            },
        });
        await client.initRustCrypto({ useIndexedDB: false });
        crypto = client.getCrypto();
        client.on(CryptoEvent.VerificationRequestReceived, (received) => (requested = received));
        await client.startClient({ initialSyncLimit: 100, pollTimeout: 10_000 });
        await eventually("the first sync", () => client.isInitialSyncComplete());
        return { device: account.device_id };
    },

    async create_room({ invite }) {
        const { room_id: room } = await client.createRoom({
            preset: "private_chat", invite: [invite], initial_state: [ENCRYPTION],
        });
        await present(room);
        return { room };
    },

    async invite({ room, user }) {
        await client.invite(room, user);
    },

    async join({ room }) {
        await eventually("the invitation", () => client.getRoom(room)?.getMyMembership() === "invite");
        await client.joinRoom(room);
        await present(room);
    },

    async leave({ room }) {
        await client.leave(room);
    },

    async sees_member({ room, user, membership }) {
        await eventually(`${user} is ${membership}`, () => client.getRoom(room).getMember(user)?.membership === membership);
    },

    async knows_device({ user, device }) {
        const known = async () => (await crypto.getUserDeviceInfo([user], false)).get(user)?.has(device);
        await eventually(`${device} of ${user} is known`, known);
    },

    async send({ room, body }) {
        return { event: (await client.sendMessage(room, { msgtype: "m.text", body })).event_id };
    },

    async receives({ room, event }) {
        const received = await decrypted(room, event);
        return { body: received.getContent().body, sender: received.getSender() };
    },

    async read({ room, event }) {
        const read = new MatrixEvent(await client.fetchRoomEvent(room, event));
        await client.decryptEventIfNeeded(read);
        return read.isDecryptionFailure() ? { unreadable: read.decryptionFailureReason } : { body: read.getContent().body };
    },

    async send_file({ room, name, data }) {
        const bytes = Buffer.from(data, "base64");
        const encrypted = Attachment.encrypt(bytes);
        const file = JSON.parse(encrypted.mediaEncryptionInfo);
        const { content_uri: uri } = await client.uploadContent(encrypted.encryptedData, { type: "application/octet-stream" });
        const content = { msgtype: "m.file", body: name, filename: name, file: { ...file, url: uri }, info: { size: bytes.length } };
        return { event: (await client.sendMessage(room, content)).event_id };
    },

    async fetch_file({ room, event }) {
        const { url: uri, ...info } = (await decrypted(room, event)).getContent().file;
        const address = client.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
        const answer = await fetch(address, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
        if (!answer.ok) throw new Error(`${answer.status} for ${address.replace(url, "")}`);
        const encrypted = new EncryptedAttachment(new Uint8Array(await answer.arrayBuffer()), JSON.stringify(info));
        return { data: Buffer.from(Attachment.decrypt(encrypted)).toString("base64") };
    },

    async has_fallback_key() {},

    async set_up_backup({ password }) {
        const identifier = { type: "m.id.user", user: client.getUserId() };
        await crypto.bootstrapCrossSigning({
            authUploadDeviceSigningKeys: (send) => send({ type: "m.login.password", identifier, password }),
        });
        const key = await crypto.createRecoveryKeyFromPassphrase();
        await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewKeyBackup: true });
        return { recovery_key: key.encodedPrivateKey };
    },

    async restore_backup({ recovery_key: key }) {
        secretStorageKey = decodeRecoveryKey(key);
        // What is in the storage is compared with the public keys.
        await eventually("the own identity is known", () => crypto.userHasCrossSigningKeys());
        await crypto.bootstrapCrossSigning({});
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await crypto.restoreKeyBackup();
    },

    async request_verification({ user, device }) {
        request = await crypto.requestDeviceVerification(user, device);
    },

    async accept_verification({ user, device }) {
        request = await eventually("somebody asks for a verification", () => requested);
        if (request.otherUserId !== user || request.otherDeviceId !== device) throw new Error("somebody else asks");
        await request.accept();
    },

    async compare() {
        const reaches = (phase, what) => eventually(what, () => {
            if (request.cancellationCode) throw new Error(`the verification was canceled: ${request.cancellationCode}`);
            return request.phase === phase;
        });
        if (request.initiatedByMe) {
            await reaches(VerificationPhase.Ready, "the other is ready");
            verifier = await request.startVerification("m.sas.v1");
        } else {
            await reaches(VerificationPhase.Started, "the other starts");
            verifier = request.verifier;
        }
        verifier.on(VerifierEvent.ShowSas, (shown) => (sas = shown));
        verified = verifier.verify();
        verified.catch(() => {});
        const shown = eventually("the keys are exchanged", () => sas ?? verifier.getShowSasCallbacks());
        // A verification that is canceled fails there and not here.
        sas = await Promise.race([shown, verified.then(() => shown)]);
        return { emoji: sas.sas.emoji.map(([symbol]) => symbol) };
    },

    async confirm() {
        await sas.confirm();
        await verified;
        await eventually("the verification is done", () => request.phase === VerificationPhase.Done);
    },

    async trusts({ user, device }) {
        return { trusted: (await crypto.getDeviceVerificationStatus(user, device)).isVerified() };
    },
};

async function present(room) {
    await eventually("the room is there", () => client.getRoom(room)?.getMyMembership() === "join");
    await eventually("the room is encrypted", () => crypto.isEncryptionEnabledInRoom(room));
}

async function decrypted(room, id) {
    return eventually(`${id} is there, decrypted`, () => {
        const event = client.getRoom(room)?.findEventById(id);
        return event?.getClearContent() && !event.isDecryptionFailure() && event;
    });
}

const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const { version } = createRequire(import.meta.url)("matrix-js-sdk/package.json");
answer({ library: "matrix-js-sdk", version });
for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...command } = JSON.parse(line);
    try {
        answer({ ok: (await commands[name](command)) ?? {} });
    } catch (error) {
        answer({ failed: `${error}` });
    }
}
process.exit();
