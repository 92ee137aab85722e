"""Accounts and devices. Each comment `shows:` names the operations of the specification that the scenario proves."""

import nio
from people import PASSWORD, Person, ok, refused


# shows: register, getTokenOwner
async def test_a_person_registers_and_is_known(people):
    alice = await people("alice", listen=False)
    whoami = ok(await alice.client.whoami())
    assert (whoami.user_id, whoami.device_id) == (alice.id, alice.client.device_id)
    assert alice.id.endswith(":localhost")


# shows: register
async def test_a_taken_name_is_refused(people, server):
    alice = await people("alice", listen=False)
    impostor = Person(server, alice.name)
    try:
        refused(await impostor.client.register(alice.name, PASSWORD), "M_USER_IN_USE")
    finally:
        await impostor.close()


# shows: getLoginFlows, login
async def test_a_person_logs_in_with_the_password(people):
    alice = await people("alice", listen=False)
    assert "m.login.password" in ok(await alice.client.login_info()).flows
    other = await alice.second_device()
    try:
        assert other.id == alice.id
        assert other.client.device_id != alice.client.device_id
        assert ok(await other.client.whoami()).device_id == other.client.device_id
    finally:
        await other.close()


# shows: login
async def test_a_wrong_password_is_refused(people, server):
    alice = await people("alice", listen=False)
    stranger = Person(server, alice.name)
    try:
        refused(await stranger.client.login("a guess"), "M_FORBIDDEN")
    finally:
        await stranger.close()


# shows: logout
async def test_a_token_is_worthless_after_logging_out(people):
    alice = await people("alice", listen=False)
    other = await alice.second_device()
    try:
        token = other.client.access_token
        ok(await other.client.logout())
        other.client.access_token = token
        refused(await other.client.whoami(), "M_UNKNOWN_TOKEN")
        ok(await alice.client.whoami())
    finally:
        await other.close()


# shows: logout_all
async def test_logging_out_everywhere_ends_every_token(people):
    alice = await people("alice", listen=False)
    other = await alice.second_device()
    try:
        token = alice.client.access_token
        ok(await alice.client.logout(all_devices=True))
        alice.client.access_token = token
        refused(await alice.client.whoami(), "M_UNKNOWN_TOKEN")
        refused(await other.client.whoami(), "M_UNKNOWN_TOKEN")
    finally:
        await other.close()


# shows: getDevices, updateDevice
async def test_devices_are_listed_and_renamed(people):
    alice = await people("alice", listen=False)
    other = await alice.second_device()
    try:
        ok(await alice.client.update_device(other.client.device_id, {"display_name": "kitchen tablet"}))
        names = {device.id: device.display_name for device in ok(await alice.client.devices()).devices}
        assert names == {alice.client.device_id: "first device", other.client.device_id: "kitchen tablet"}
    finally:
        await other.close()


# shows: deleteDevices
async def test_deleting_a_device_asks_for_the_password_and_ends_its_token(people):
    alice = await people("alice", listen=False)
    other = await alice.second_device()
    try:
        question = await alice.client.delete_devices([other.client.device_id])
        assert isinstance(question, nio.DeleteDevicesAuthResponse), question
        assert {"stages": ["m.login.password"]} in question.flows
        proof = {
            "type": "m.login.password", "session": question.session,
            "identifier": {"type": "m.id.user", "user": alice.id}, "password": "a guess",
        }
        wrong = await alice.client.delete_devices([other.client.device_id], proof)
        assert not isinstance(wrong, nio.DeleteDevicesResponse), "a wrong password deleted a device"
        proof["password"] = PASSWORD
        deleted = await alice.client.delete_devices([other.client.device_id], proof)
        assert isinstance(deleted, nio.DeleteDevicesResponse), deleted
        refused(await other.client.whoami(), "M_UNKNOWN_TOKEN")
        assert [device.id for device in ok(await alice.client.devices()).devices] == [alice.client.device_id]
    finally:
        await other.close()


# shows: setProfileField, getProfileField, getUserProfile
async def test_a_new_name_and_picture_reach_the_people_in_the_room(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    ok(await alice.client.set_displayname("Alice Liddell"))
    ok(await alice.client.set_avatar("mxc://localhost/rabbit"))
    assert ok(await bob.client.get_displayname(alice.id)).displayname == "Alice Liddell"
    assert ok(await bob.client.get_avatar(alice.id)).avatar_url == "mxc://localhost/rabbit"
    profile = ok(await bob.client.get_profile(alice.id))
    assert (profile.displayname, profile.avatar_url) == ("Alice Liddell", "mxc://localhost/rabbit")
    await bob.hears_state(
        room, "m.room.member", alice.id,
        lambda c: c.get("displayname") == "Alice Liddell" and c.get("avatar_url") == "mxc://localhost/rabbit",
    )
