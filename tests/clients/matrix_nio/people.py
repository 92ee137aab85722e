"""A person with a client: matrix-nio, listening to /sync with long polls, and remembering what it heard."""

import asyncio
import collections
import shutil
import tempfile

import nio

PASSWORD = "correct horse battery staple"
WAIT_SECONDS_MAX = 30
# More than happens in any of the scenarios, so that what a person hears has no gaps.
MUCH = {"room": {"timeline": {"limit": 200, "unread_thread_notifications": True}}}


def ok(response):
    """The response, which must not be an error."""
    assert not isinstance(response, nio.ErrorResponse), f"unexpected error: {response}"
    return response


def refused(response, errcode):
    """Asserts that the response is an error with this code."""
    assert isinstance(response, nio.ErrorResponse), f"expected {errcode}, got {response}"
    assert response.status_code == errcode, f"expected {errcode}, got {response}"


class Person:
    def __init__(self, server, name, encrypted=False):
        self.server, self.name = server, name
        self.store = tempfile.mkdtemp(prefix="swiftchat-nio-store-") if encrypted else ""
        # Short waits before nio tries again, since servers end and start in these tests.
        config = nio.AsyncClientConfig(max_timeout_retry_wait_time=0.3, encryption_enabled=encrypted)
        self.client = nio.AsyncClient(server.url, f"@{name}:localhost", store_path=self.store, config=config)
        self.news = asyncio.Condition()
        self.listening = None
        # What was heard, by room: timeline events in order, the newest ephemeral events, invitations, left rooms.
        self.timeline = collections.defaultdict(list)
        self.typing, self.receipts, self.room_account_data = {}, collections.defaultdict(list), collections.defaultdict(list)
        self.invited, self.left = set(), set()
        # By room: the main timeline's unread messages and highlights, and those of each thread that has any.
        self.unread = collections.defaultdict(lambda: (0, 0, {}))
        # The newest presence of others.
        self.presence = {}
        self.to_device = []

    @classmethod
    async def register(cls, server, name, encrypted=False, listen=True):
        person = cls(server, name, encrypted)
        ok(await person.client.register(name, PASSWORD, device_name="first device"))
        if listen:
            await person.listen()
        return person

    async def second_device(self, listen=False):
        """The same person, logged in with the password on another device."""
        other = Person(self.server, self.name)
        ok(await other.client.login(PASSWORD, device_name="second device"))
        if listen:
            await other.listen()
        return other

    @property
    def id(self):
        return self.client.user_id

    async def close(self):
        await self.stop_listening()
        await self.client.close()
        if self.store:
            shutil.rmtree(self.store, ignore_errors=True)

    # Listening

    async def listen(self):
        """Starts to listen, and waits for the first answer."""
        started = asyncio.Event()
        self.listening = asyncio.create_task(self._listen(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([waiting, self.listening], timeout=WAIT_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        if self.listening.done():
            self.listening.result()
        assert started.is_set(), f"{self.name} got no answer from /sync"

    async def stop_listening(self):
        if self.listening:
            self.listening.cancel()
            await asyncio.gather(self.listening, return_exceptions=True)
            self.listening = None

    async def _listen(self, started):
        while True:
            response = await self.client.sync(timeout=30_000, sync_filter=MUCH)
            if not isinstance(response, nio.SyncResponse):
                # The server ends or has ended; nio waits by itself where it cannot connect.
                await asyncio.sleep(0.1)
                continue
            if self.store:
                await self._keep_keys_going()
            async with self.news:
                self._remember(response)
                self.news.notify_all()
            started.set()

    async def _keep_keys_going(self):
        if self.client.should_upload_keys:
            ok(await self.client.keys_upload())
        if self.client.should_query_keys:
            ok(await self.client.keys_query())

    def _remember(self, response):
        for room_id, room in response.rooms.join.items():
            self.invited.discard(room_id)
            self.left.discard(room_id)
            # A gap in the very first answer is the past; later it would be a loss.
            assert not (room.timeline.limited and self.timeline[room_id]), f"{self.name} has a gap in {room_id}"
            self.timeline[room_id] += [event.source for event in room.timeline.events]
            for event in room.ephemeral:
                if isinstance(event, nio.TypingNoticeEvent):
                    self.typing[room_id] = event.users
                elif isinstance(event, nio.ReceiptEvent):
                    self.receipts[room_id] += event.receipts
            self.room_account_data[room_id] += room.account_data
            self._remember_unread(room_id, room)
        for room_id, room in response.rooms.leave.items():
            self.invited.discard(room_id)
            self.left.add(room_id)
            self.timeline[room_id] += [event.source for event in room.timeline.events]
        self.invited |= set(response.rooms.invite)
        self.to_device += response.to_device_events
        self.presence.update({event.user_id: event for event in response.presence_events})

    def _remember_unread(self, room_id, room):
        counts, threads = room.unread_notifications, room.unread_thread_notifications
        if counts is None or counts.notification_count is None:
            return
        self.unread[room_id] = counts.notification_count, counts.highlight_count, {
            root: (thread.notification_count, thread.highlight_count)
            for root, thread in (threads or {}).items() if thread.notification_count
        }

    async def hears(self, what, condition):
        """Waits until what was heard fulfils the condition, and returns the condition's value."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX), self.news:
                return await self.news.wait_for(condition)
        except TimeoutError:
            if self.listening.done():
                # It was the listening that went wrong.
                self.listening.result()
            raise AssertionError(
                f"{self.name} did not hear {what}; timelines: "
                f"{ {room: [(e['type'], e.get('content')) for e in events] for room, events in self.timeline.items()} }"
            ) from None

    async def has_unread(self, room_id, notifications, highlights, threads=None):
        """Waits until the counts are these; threads by their root."""
        expected = notifications, highlights, threads or {}
        try:
            await self.hears("counts", lambda: self.unread[room_id] == expected)
        except AssertionError:
            raise AssertionError(f"{self.name} has {self.unread[room_id]} unread in {room_id}, not {expected}") from None

    async def hears_event(self, room_id, event_id):
        return await self.hears(
            f"event {event_id}", lambda: next((e for e in self.timeline[room_id] if e["event_id"] == event_id), None)
        )

    async def hears_state(self, room_id, event_type, state_key, fits):
        """Waits for a state event in the timeline whose content fits."""
        return await self.hears(
            f"{event_type} {state_key!r}",
            lambda: next((
                e for e in reversed(self.timeline[room_id])
                if e["type"] == event_type and e.get("state_key") == state_key and fits(e["content"])
            ), None),
        )

    def texts(self, room_id):
        """The texts of the room's messages, in the order of the timeline."""
        return [
            event["content"]["body"] for event in self.timeline[room_id]
            if event["type"] == "m.room.message" and "body" in event["content"]
        ]

    # Doing

    async def create_room(self, **options):
        return ok(await self.client.room_create(**options)).room_id

    async def create_public_room(self):
        return await self.create_room(preset=nio.RoomPreset.public_chat)

    async def room_with(self, *others, **options):
        """Creates a private room that the others are invited to and join; returns when they have heard of it."""
        room_id = await self.create_room(invite=[other.id for other in others], **options)
        for other in others:
            await other.hears("the invitation", lambda other=other: room_id in other.invited)
            await other.join(room_id)
        return room_id

    async def join(self, room_id):
        ok(await self.client.join(room_id))
        if self.listening:
            await self.hears_state(room_id, "m.room.member", self.id, lambda content: content["membership"] == "join")

    async def send(self, room_id, content, event_type="m.room.message", **options):
        response = await self.client.room_send(room_id, event_type, content, ignore_unverified_devices=True, **options)
        return ok(response).event_id

    async def say(self, room_id, text, **options):
        return await self.send(room_id, {"msgtype": "m.text", "body": text}, **options)

    async def page(self, room_id, start, direction, limit=7, end=None):
        """All events from a token on, in the order of the pages."""
        events, seen = [], set()
        while start and start not in seen and start != end:
            seen.add(start)
            page = ok(await self.client.room_messages(room_id, start, end=end, direction=direction, limit=limit))
            events += [event.source for event in page.chunk]
            assert len(page.chunk) <= limit
            start = page.end
            assert len(seen) < 200, "paging does not come to an end"
        return events


def ids(events):
    return [event["event_id"] for event in events]
