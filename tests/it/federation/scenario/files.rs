//! Files in messages and profiles.

use serde_json::json;
use test_kit::eventually;

use super::Scene;
use crate::media::bytes;

pub(super) async fn files_are_exchanged(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    for turned in [false, true] {
        let (from, to) = if turned { (&mut guest, &mut maker) } else { (&mut maker, &mut guest) };
        for (name, content_type, length) in [("a.png", "image/png", 700_000), ("ä.txt", "text/plain", 1)] {
            let content = bytes(length);
            let uri = from.user.upload(content_type, name, content.clone()).await;
            let message = json!({"msgtype": "m.file", "body": name, "filename": name, "url": uri});
            let sent = from.user.send(&room, "m.room.message", &message).await;
            let seen = to.sees(&room, &sent).await;
            let got = to.user.download(seen["content"]["url"].as_str().unwrap()).await;
            assert!(got.status.is_success(), "{} downloads {uri}: {got}", to.user.id());
            assert!(got.bytes == content, "{uri} is the same for {}", to.user.id());
            assert!(got.header("content-type").starts_with(content_type), "{:?}", got.headers);
            let named = got.header("content-disposition");
            assert!(named.contains(name) || named.contains("filename*=utf-8''%C3%A4.txt"), "{named}");
            // Again, from what is here now.
            assert!(to.user.download(&uri).await.bytes == content);
        }
        let picture = from.user.upload("image/png", "me.png", bytes(5_000)).await;
        let profile = format!("/profile/{}/avatar_url", from.user.id());
        from.user.put(&profile, &json!({"avatar_url": picture})).await.ok();
        eventually!(to.user.get(&profile).await.json()["avatar_url"] == picture.as_str());
        assert!(to.user.download(&picture).await.bytes == bytes(5_000));
        let missing = to.user.download(&format!("{picture}x")).await;
        missing.is_error(404, "M_NOT_FOUND");
    }
}
