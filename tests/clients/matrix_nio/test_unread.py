"""How much is unread, and whom one does not hear."""

from people import ok


# shows: sync, postReceipt
async def test_unread_messages_are_counted_until_they_are_read_on_any_device(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    other = await bob.second_device(listen=True)
    try:
        def counts(person):
            shown = person.client.rooms[room]
            return shown.unread_notifications, shown.unread_highlights

        await alice.say(room, "tea?")
        last = await alice.send(room, {"msgtype": "m.text", "body": "bob!", "m.mentions": {"user_ids": [bob.id]}})
        for device in (bob, other):
            await device.hears("two messages, one of them to bob", lambda device=device: counts(device) == (2, 1))
        await bob.hears_event(room, last)
        ok(await bob.client.update_receipt_marker(room, last))
        for device in (bob, other):
            await device.hears("nothing unread", lambda device=device: counts(device) == (0, 0))
        await alice.say(room, "with milk?")
        await other.hears("one message more", lambda: counts(other) == (1, 0))
        # Whoever answers has read the question.
        await bob.say(room, "yes")
        await other.hears("nothing unread", lambda: counts(other) == (0, 0))
    finally:
        await other.close()


# shows: setAccountData, sync
async def test_an_ignored_user_is_not_heard_but_what_they_do_to_the_room_is(people):
    alice, bob, mallory = await people("alice"), await people("bob"), await people("mallory")
    room = await alice.room_with(bob, mallory)
    path = ["user", bob.id, "account_data", "m.ignored_user_list"]
    content = {"ignored_users": {mallory.id: {}}}
    url = f"{bob.server.url}/_matrix/client/v3/{'/'.join(path)}"
    headers = {"Authorization": f"Bearer {bob.client.access_token}"}
    async with bob.client.client_session.put(url, json=content, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    await mallory.say(room, "BUY NOW")
    await mallory.client.set_displayname("Mallory & Sons")
    await bob.hears_state(room, "m.room.member", mallory.id, lambda content: content.get("displayname") == "Mallory & Sons")
    secret = await mallory.create_room(invite=[bob.id])
    last = await alice.say(room, "lovely weather")
    for person in (alice, bob):
        await person.hears_event(room, last)
    assert bob.texts(room) == ["lovely weather"]
    assert secret not in bob.invited
    assert alice.texts(room) == ["BUY NOW", "lovely weather"]
