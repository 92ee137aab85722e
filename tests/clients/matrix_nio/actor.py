"""matrix-nio as an actor: one device that does what it is told, a JSON object a line. The commands are in
`test_kit/src/bin/encryption/actor.rs`.

nio leaves some things to the program that uses it, and they are done here: the message that asks for a verification and its answer,
and reading an event again whose key came after it.
"""

import asyncio
import base64
import contextlib
import hashlib
import importlib.metadata
import io
import json
import shutil
import sys
import tempfile
import time
import uuid

import nio
from nio.crypto.attachments import decrypt_attachment
from nio.crypto.sas import Sas, SasState

WAIT_SECONDS_MAX = 30
VERSION = importlib.metadata.version("matrix-nio")
ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


class Impossible(Exception):
    """The library cannot do this."""


def ok(response):
    if isinstance(response, nio.ErrorResponse):
        raise RuntimeError(f"{type(response).__name__}: {response.message}")
    return response


class Actor:
    def __init__(self):
        self.store = tempfile.mkdtemp(prefix="swiftchat-nio-actor-")
        self.client = self.syncing = None
        self.news = asyncio.Condition()
        # Events of the timelines by room and id, as the library gave them.
        self.events = {}
        self.invited = set()
        # What was asked by to-device messages that the library does not know.
        self.asked = {}
        self.transaction = self.other = self.known_sas = None
        self.begins = False

    async def waits(self, what, condition):
        """Waits until the condition gives something, which it may do after each answer to /sync."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX), self.news:
                while not (value := condition()):
                    with contextlib.suppress(TimeoutError):
                        # Some things change without a sync.
                        await asyncio.wait_for(self.news.wait(), 0.2)
                    if self.syncing.done():
                        self.syncing.result()
                return value
        except TimeoutError:
            raise RuntimeError(f"waited in vain until {what}") from None

    # Rooms

    async def login(self, url, user, password):
        config = nio.AsyncClientConfig(max_timeout_retry_wait_time=0.3, encryption_enabled=True)
        self.client = nio.AsyncClient(url, user, store_path=self.store, config=config)
        ok(await self.client.login(password, device_name="matrix-nio"))
        self.client.add_response_callback(self.synced, nio.SyncResponse)
        self.client.add_to_device_callback(self.to_device, (nio.UnknownToDeviceEvent, nio.KeyVerificationCancel))
        everything = {"room": {"timeline": {"limit": 100}}}
        self.syncing = asyncio.create_task(self.client.sync_forever(timeout=10_000, sync_filter=everything))
        await self.waits("the keys are uploaded", lambda: self.client.olm.account.shared)
        return {"device": self.client.device_id}

    async def synced(self, response):
        async with self.news:
            for room, update in [*response.rooms.join.items(), *response.rooms.leave.items()]:
                for event in update.timeline.events:
                    self.events[room, event.event_id] = event
            self.invited = set(self.client.invited_rooms)
            self.news.notify_all()

    async def create_room(self, invite):
        created = ok(await self.client.room_create(invite=[invite], initial_state=[ENCRYPTED]))
        await self.waits("the room is there", lambda: self.joined(created.room_id) and self.client.rooms[created.room_id].encrypted)
        return {"room": created.room_id}

    async def invite(self, room, user):
        ok(await self.client.room_invite(room, user))

    async def join(self, room):
        await self.waits("the invitation", lambda: room in self.client.invited_rooms)
        ok(await self.client.join(room))
        await self.waits("the room is there", lambda: self.joined(room) and self.client.rooms[room].encrypted)

    def joined(self, room):
        return room in self.client.rooms and self.client.user_id in self.client.rooms[room].users

    async def leave(self, room):
        ok(await self.client.room_leave(room))

    async def sees_member(self, room, user, membership):
        def holds():
            known = self.client.rooms[room]
            standing = "invite" if user in known.invited_users else "join" if user in known.users else "leave"
            return standing == membership

        await self.waits(f"{user} is {membership} in {room}", holds)

    async def knows_device(self, user, device):
        await self.waits(f"{device} of {user} is known", lambda: device in self.client.device_store[user])

    # Messages

    async def send(self, room, body):
        content = {"msgtype": "m.text", "body": body}
        sent = await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
        return {"event": ok(sent).event_id}

    def heard(self, room, event):
        """The event of the timeline, if it is there and can be read by now."""
        found = self.events.get((room, event))
        if isinstance(found, nio.MegolmEvent):
            with contextlib.suppress(nio.EncryptionError):
                found = self.events[room, event] = self.client.decrypt_event(found)
        return None if isinstance(found, nio.MegolmEvent) else found

    async def receives(self, room, event):
        found = await self.waits(f"{event} is there, decrypted", lambda: self.heard(room, event))
        return {"body": found.source["content"]["body"], "sender": found.sender}

    async def read(self, room, event):
        found = ok(await self.client.room_get_event(room, event)).event
        if not isinstance(found, nio.MegolmEvent):
            return {"body": found.source["content"].get("body")}
        found.room_id = room
        try:
            return {"body": self.client.decrypt_event(found).source["content"]["body"]}
        except nio.EncryptionError as error:
            return {"unreadable": str(error)}

    async def send_file(self, room, name, data):
        # The padding may be missing; more of it does no harm.
        data = base64.b64decode(data + "==")
        uploaded, keys = await self.client.upload(io.BytesIO(data), "application/octet-stream", name, encrypt=True, filesize=len(data))
        file = {**keys, "url": ok(uploaded).content_uri}
        content = {"msgtype": "m.file", "body": name, "filename": name, "file": file, "info": {"size": len(data)}}
        return {"event": ok(await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)).event_id}

    async def fetch_file(self, room, event):
        found = await self.waits(f"{event} is there, decrypted", lambda: self.heard(room, event))
        file = found.source["content"]["file"]
        body = ok(await self.client.download(file["url"])).body
        data = decrypt_attachment(body, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
        return {"data": base64.b64encode(data).decode()}

    async def has_fallback_key(self):
        raise Impossible(f"matrix-nio {VERSION} makes no fallback keys")

    async def set_up_backup(self, password):
        raise Impossible(f"matrix-nio {VERSION} has no key backup, no secret storage and no cross-signing")

    async def restore_backup(self, recovery_key, room):
        await self.set_up_backup(None)

    # Verification

    async def to_device(self, event):
        kind = event.source["type"].removeprefix("m.key.verification.")
        self.asked[kind, event.sender] = event.source["content"]

    async def tell(self, kind, user, device, **content):
        content["transaction_id"] = self.transaction
        ok(await self.client.to_device(nio.ToDeviceMessage(f"m.key.verification.{kind}", user, device, content)))

    async def request_verification(self, user, device):
        self.transaction, self.other, self.begins = uuid.uuid4().hex, (user, device), True
        now = int(time.time() * 1000)
        await self.tell("request", user, device, from_device=self.client.device_id, methods=["m.sas.v1"], timestamp=now)

    async def accept_verification(self, user, device):
        def is_asked():
            if any(event.source["content"].get("msgtype") == "m.key.verification.request" for event in self.events.values()):
                raise Impossible(f"matrix-nio {VERSION} knows no verification in a room, where the other asks for it")
            return self.asked.get(("request", user))

        asked = await self.waits("somebody asks for a verification", is_asked)
        assert asked["from_device"] == device, asked
        self.transaction, self.other = asked["transaction_id"], (user, device)
        await self.tell("ready", user, device, from_device=self.client.device_id, methods=["m.sas.v1"])

    def sas(self):
        """The verification as far as it is; one that was canceled is an error."""
        # One that is canceled is forgotten by the library.
        self.known_sas = sas = self.client.key_verifications.get(self.transaction, self.known_sas)
        reason = self.asked.get(("cancel", self.other[0]), {}).get("code") or (sas and sas.canceled and sas.cancel_code)
        is_hexadecimal = sas and not self.begins and len(sas.commitment) == len(hashlib.sha256().hexdigest())
        if reason == "m.mismatched_commitment" or reason and is_hexadecimal:
            raise Impossible(
                f"matrix-nio {VERSION} writes the commitment of a verification in hexadecimal (`crypto/sas.py`), where the "
                "specification and the others want base64: verification works with itself alone"
            )
        if reason:
            raise RuntimeError(f"the verification was canceled: {reason}")
        return sas

    async def compare(self):
        user, device = self.other
        if self.begins:
            await self.waits("the other is ready", lambda: self.sas() or self.asked.get(("ready", user)))
            other = self.client.device_store[user][device]
            olm = self.client.olm
            sas = Sas(olm.user_id, olm.device_id, olm.account.identity_keys["ed25519"], other, self.transaction)
            olm.key_verifications[self.transaction] = sas
            ok(await self.client.to_device(sas.start_verification()))
        else:
            await self.waits("the other starts", self.sas)
            ok(await self.client.accept_key_verification(self.transaction))
        await self.waits("the keys are exchanged", lambda: self.sas().established_sas)
        return {"emoji": [symbol for symbol, _ in self.sas().get_emoji()]}

    async def confirm(self):
        await self.waits("the keys are exchanged", lambda: self.sas().state != SasState.accepted)
        ok(await self.client.confirm_short_auth_string(self.transaction))
        await self.waits("the other confirms", lambda: self.sas().verified)
        await self.tell("done", *self.other)

    async def trusts(self, user, device):
        return {"trusted": self.client.device_store[user][device].verified}

    async def close(self):
        if self.syncing:
            self.syncing.cancel()
            await asyncio.gather(self.syncing, return_exceptions=True)
            await self.client.close()
        shutil.rmtree(self.store, ignore_errors=True)


async def main():
    def answer(value):
        print(json.dumps(value), flush=True)

    actor = Actor()
    answer({"library": "matrix-nio", "version": VERSION})
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            try:
                answer({"ok": await getattr(actor, command.pop("do"))(**command) or {}})
            except Impossible as why:
                answer({"impossible": str(why)})
            except Exception as error:
                answer({"failed": f"{type(error).__name__}: {error}"})
    finally:
        await actor.close()


asyncio.run(main())
