"""Files that people send each other."""

import io

import nio
from people import ok, refused

PICTURE = bytes(range(256)) * 2_000


# shows: uploadContent, getContentAuthed, getConfigAuthed
async def test_a_file_that_is_sent_is_received_byte_by_byte(people):
    alice, bob = await people("alice"), await people("bob")
    room = await alice.room_with(bob)
    config = ok(await alice.client.content_repository_config())
    assert config.upload_size == 50 * 1024 * 1024
    uploaded, _ = await alice.client.upload(
        io.BytesIO(PICTURE), content_type="image/png", filename="päonie.png", filesize=len(PICTURE)
    )
    sent = await alice.send(room, {"msgtype": "m.image", "body": "päonie.png", "url": ok(uploaded).content_uri})
    event = await bob.hears_event(room, sent)
    got = ok(await bob.client.download(mxc=event["content"]["url"]))
    assert (got.body, got.content_type, got.filename) == (PICTURE, "image/png", "päonie.png")
    ok(await alice.client.set_avatar(uploaded.content_uri))
    avatar = ok(await bob.client.get_avatar(alice.id))
    assert ok(await bob.client.download(mxc=avatar.avatar_url)).body == PICTURE


# shows: uploadContent, getContentAuthed
async def test_an_encrypted_file_is_only_bytes_to_the_server(people):
    alice, bob = await people("alice"), await people("bob")
    uploaded, keys = await alice.client.upload(
        io.BytesIO(PICTURE), content_type="image/png", filename="secret.png", filesize=len(PICTURE), encrypt=True
    )
    got = ok(await bob.client.download(mxc=ok(uploaded).content_uri))
    assert got.body != PICTURE and got.content_type == "application/octet-stream"
    clear = nio.crypto.attachments.decrypt_attachment(
        got.body, keys["key"]["k"], keys["hashes"]["sha256"], keys["iv"]
    )
    assert clear == PICTURE
    refused(await bob.client.download(mxc="mxc://localhost/unknown"), "M_NOT_FOUND")
