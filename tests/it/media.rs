//! Files: uploads, downloads, and what becomes of those that do not come to their end.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use test_kit::{
    Http, ServerOptions, TestDatabase, TestServer, TestUser, download_path, eventually, on_each_database, register,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::durability::{folder, start};

/// Bytes that are no text, and differ everywhere.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

/// The contents in a folder of files, and what is not whole yet.
fn files(folder: &Path) -> (usize, usize) {
    let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let shards = fs::read_dir(folder.join("contents")).unwrap();
    (shards.map(|shard| count(&shard.unwrap().path())).sum(), count(&folder.join("incoming")))
}

/// Begins a request without ending it; its body has a length, or comes in chunks.
async fn begin_upload(http: &Http, token: &str, length: Option<usize>, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(http.base().trim_start_matches("http://")).await.unwrap();
    let length = match length {
        Some(length) => format!("Content-Length: {length}"),
        None => "Transfer-Encoding: chunked".to_owned(),
    };
    let head = format!(
        "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

/// The head of an answer.
async fn head_of(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap() == 1 {
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).unwrap()
}

on_each_database! {
    // shows: uploadContent, getContentAuthed, getContentOverrideNameAuthed, getConfigAuthed, getConfig
    async fn a_file_is_downloaded_as_it_was_uploaded(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for length in [0, 1, 65_536, 300_001] {
            let uri = alice.upload("image/png", "a picture.png", bytes(length)).await;
            assert!(uri.starts_with("mxc://localhost/"), "{uri}");
            let got = bob.download(&uri).await;
            assert_eq!((got.status.as_u16(), got.header("content-length")), (200, &*length.to_string()));
            assert!(got.bytes == bytes(length), "{length}");
            assert_eq!(got.header("content-type"), "image/png");
            assert_eq!(got.header("content-disposition"), "inline; filename=\"a picture.png\"");
            assert_eq!(got.header("x-content-type-options"), "nosniff");
            assert!(got.header("content-security-policy").starts_with("sandbox; default-src 'none'"));
            assert_eq!(got.header("cross-origin-resource-policy"), "cross-origin");
        }
        let uri = alice.upload("image/png", "ours.png", "png").await;
        let named = bob.get(&format!("{}/th%C3%A9irs.png", download_path(&uri))).await;
        assert_eq!(named.header("content-disposition"), "inline; filename*=utf-8''th%C3%A9irs.png");
        assert_eq!(&named.bytes[..], b"png");
        let config = bob.get("/_matrix/client/v1/media/config").await.ok();
        assert_eq!(config, json!({"m.upload.size": 50 << 20}));
        assert_eq!(bob.get("/_matrix/media/v3/config").await.ok(), config);
        // Without a name, and of no type.
        let answer = alice.try_upload("", "", "x").await.ok();
        let got = bob.download(answer["content_uri"].as_str().unwrap()).await;
        assert_eq!(got.header("content-type"), "application/octet-stream");
        assert_eq!(got.header("content-disposition"), "attachment");
        server.shutdown().await;
    }

    async fn a_part_is_given_and_what_the_client_has_is_not_given_again(server: TestServer) {
        let alice = server.user("alice").await;
        let uri = alice.upload("video/mp4", "film.mp4", bytes(200_000)).await;
        let whole = alice.download(&uri).await;
        assert_eq!(whole.header("accept-ranges"), "bytes");
        let tag = whole.header("etag").to_owned();
        let part = alice.download_with(&uri, &[("range", "bytes=70000-149999")]).await;
        assert_eq!((part.status.as_u16(), part.header("content-range")), (206, "bytes 70000-149999/200000"));
        assert!(part.bytes == bytes(200_000)[70_000..150_000]);
        let same = alice.download_with(&uri, &[("range", "bytes=0-9"), ("if-range", &tag)]).await;
        assert_eq!((same.status.as_u16(), same.bytes.len()), (206, 10));
        let other = alice.download_with(&uri, &[("range", "bytes=0-9"), ("if-range", "\"other\"")]).await;
        assert_eq!((other.status.as_u16(), other.bytes.len()), (200, 200_000));
        let behind = alice.download_with(&uri, &[("range", "bytes=200000-")]).await;
        assert_eq!((behind.status.as_u16(), behind.header("content-range")), (416, "bytes */200000"));
        let known = alice.download_with(&uri, &[("if-none-match", &tag)]).await;
        assert_eq!((known.status.as_u16(), known.bytes.len()), (304, 0));
        let token = format!("Bearer {}", alice.token());
        let head = server.http().request_with("HEAD", &download_path(&uri), &[("authorization", &token)]).await;
        assert_eq!((head.status.as_u16(), head.header("content-length"), head.bytes.len()), (200, "200000", 0));
        server.shutdown().await;
    }

    /// What a browser would run is saved, whatever the uploader says of it.
    async fn a_page_with_scripts_is_saved_and_not_shown(server: TestServer) {
        let alice = server.user("alice").await;
        let page = "<script>alert(1)</script>";
        for content_type in ["text/html", "image/svg+xml", "TEXT/HTML; charset=utf-8", "text/html;image/png", "x"] {
            let uri = alice.upload(content_type, "a.html", page).await;
            let got = alice.download(&uri).await;
            assert_eq!(got.header("content-disposition"), "attachment; filename=a.html", "{content_type}");
            assert_eq!((got.header("content-type"), got.header("x-content-type-options")), (content_type, "nosniff"));
        }
        let tricky = alice.upload("image/png", "../../a\r\nset-cookie: b\0\".png", page).await;
        let got = alice.download(&tricky).await;
        assert_eq!(got.header("content-disposition"), r#"inline; filename="../../aset-cookie: b\".png""#);
        assert_eq!(got.header("set-cookie"), "");
        let long = "x".repeat(1_025);
        alice.try_upload("image/png", &format!("?filename={long}"), page).await.is_error(400, "M_INVALID_PARAM");
        server.shutdown().await;
    }

    // shows: getContent, getContentOverrideName, getContentThumbnail
    async fn strangers_get_nothing_and_guests_may_only_look(server: TestServer) {
        let (alice, guest) = (server.user("alice").await, server.guest().await);
        let uri = alice.upload("text/plain", "a.txt", "secret").await;
        let path = download_path(&uri);
        server.http().request("GET", &path, None, &Value::Null).await.is_error(401, "M_MISSING_TOKEN");
        server.http().request("GET", &path, Some("wrong"), &Value::Null).await.is_error(401, "M_UNKNOWN_TOKEN");
        let upload = server.http().send("POST", b"/_matrix/media/v3/upload", None, None, "x").await.unwrap();
        upload.is_error(401, "M_MISSING_TOKEN");
        guest.try_upload("text/plain", "", "x").await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        assert_eq!(&guest.download(&uri).await.bytes[..], b"secret");
        // The old paths are frozen, with a token too.
        let old = path.replace("/client/v1/media", "/media/v3");
        for (path, token) in [(old.clone(), None), (format!("{old}/a.txt"), None), (old, Some(alice.token()))] {
            server.http().request("GET", &path, token, &Value::Null).await.is_error(404, "M_NOT_FOUND");
        }
        let old = path.replace("/client/v1/media/download", "/media/v3/thumbnail") + "?width=1&height=1";
        server.http().request("GET", &old, None, &Value::Null).await.is_error(404, "M_NOT_FOUND");
        let versions = server.http().request("GET", "/_matrix/client/versions", None, &Value::Null).await.ok();
        for feature in ["org.matrix.msc3916.stable", "fi.mau.msc2246.stable"] {
            assert_eq!(versions["unstable_features"][feature], true, "clients go by it");
        }
        for id in ["unknown", "..%2F..%2Fswiftchat.db", "%2e%2e", "a.b", "a%00", "%C3%A4", "a%2Fb"] {
            alice.get(&format!("/_matrix/client/v1/media/download/localhost/{id}")).await.is_error(404, "M_NOT_FOUND");
        }
        for server in ["a%2Fb", "%00", "a_b", "..%2F.."] {
            let answer = alice.get(&format!("/_matrix/client/v1/media/download/{server}/abc")).await;
            answer.is_error(400, "M_INVALID_PARAM");
        }
        // Nobody else is asked by a server that does not federate.
        alice.download("mxc://elsewhere.test/abc").await.is_error(404, "M_NOT_FOUND");
        server.shutdown().await;
    }

    /// Until they are made: it may be larger than what is asked for, but nothing else than what it is.
    // shows: getContentThumbnailAuthed
    async fn a_picture_stands_for_its_thumbnail(server: TestServer) {
        let alice = server.user("alice").await;
        let thumbnail = async |uri: &str, more: &str| {
            let path = download_path(uri).replace("/download/", "/thumbnail/");
            alice.get(&format!("{path}?width=32&height=32&method=crop{more}")).await
        };
        let jpeg = [&b"\xff\xd8\xff\xe0"[..], &bytes(100_000)].concat();
        let uri = alice.upload("text/html", "page.html", jpeg.clone()).await;
        for more in ["", "&animated=true", "&animated=false"] {
            let got = thumbnail(&uri, more).await;
            assert_eq!((got.status.as_u16(), got.header("content-type")), (200, "image/jpeg"), "{got}");
            assert_eq!(got.header("content-disposition"), "inline; filename=page.html");
            assert!(got.bytes == jpeg);
        }
        let gif = alice.upload("image/gif", "a.gif", "GIF89a moves").await;
        assert_eq!(thumbnail(&gif, "&animated=true").await.header("content-type"), "image/gif");
        thumbnail(&gif, "&animated=false").await.is_error(400, "M_UNKNOWN");
        for no_picture in ["<svg onload='alert(1)'/>", "", "PNG"] {
            let uri = alice.upload("image/png", "a.png", no_picture).await;
            thumbnail(&uri, "").await.is_error(400, "M_UNKNOWN");
        }
        thumbnail("mxc://localhost/unknown", "").await.is_error(404, "M_NOT_FOUND");
        let path = download_path(&uri).replace("/download/", "/thumbnail/");
        alice.get(&format!("{path}?width=32")).await.is_error(400, "M_MISSING_PARAM");
        alice.get(&format!("{path}?width=-1&height=1")).await.is_error(400, "M_INVALID_PARAM");
        server.shutdown().await;
    }

    // shows: createContent, uploadContentToMXC
    async fn a_uri_may_be_made_before_its_file(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let created = alice.post("/_matrix/media/v1/create", &json!({})).await.ok();
        let uri = created["content_uri"].as_str().unwrap().to_owned();
        assert!(created["unused_expires_at"].as_i64().unwrap() > server.clock().now_ms() + 23 * 3_600_000);
        let path = download_path(&uri);
        bob.get(&format!("{path}?timeout_ms=0")).await.is_error(504, "M_NOT_YET_UPLOADED");
        let waiting = tokio::spawn({
            let (bob, path) = (bob.clone(), path.clone());
            async move { bob.get(&format!("{path}?timeout_ms=30000")).await }
        });
        let put = async |user: &TestUser, uri: &str, body: &'static str| {
            let path = format!("{}?filename=a.txt", uri.replace("mxc://", "/_matrix/media/v3/upload/"));
            server.http().send("PUT", path.as_bytes(), Some(user.token()), Some("text/plain"), body).await.unwrap()
        };
        put(&bob, &uri, "bob's").await.is_error(403, "M_FORBIDDEN");
        assert_eq!(put(&alice, &uri, "alice's").await.ok(), json!({}));
        let got = waiting.await.unwrap();
        assert_eq!((&got.bytes[..], got.header("content-type")), (&b"alice's"[..], "text/plain"));
        put(&alice, &uri, "again").await.is_error(409, "M_CANNOT_OVERWRITE_MEDIA");
        put(&alice, "mxc://localhost/never", "x").await.is_error(404, "M_NOT_FOUND");
        put(&alice, "mxc://elsewhere.test/never", "x").await.is_error(404, "M_NOT_FOUND");
        let uploaded = alice.upload("text/plain", "b.txt", "b").await;
        put(&alice, &uploaded, "again").await.is_error(409, "M_CANNOT_OVERWRITE_MEDIA");
        assert_eq!(&bob.download(&uri).await.bytes[..], b"alice's");
        let mut made = 0;
        while alice.post("/_matrix/media/v1/create", &json!({})).await.status == 200 {
            made += 1;
        }
        assert_eq!(made, 50);
        alice.post("/_matrix/media/v1/create", &json!({})).await.is_error(429, "M_LIMIT_EXCEEDED");
        bob.post("/_matrix/media/v1/create", &json!({})).await.ok();
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_breaks_off_leaves_nothing() {
    for database in TestDatabase::each().await {
        let media = tempfile::tempdir().unwrap();
        let mut options = ServerOptions::default();
        options.config.media.folder = media.path().to_owned();
        options.config.media.upload_bytes_max = 1_000_000.try_into().unwrap();
        let server = TestServer::on(database, options).await;
        let alice = server.user("alice").await;
        alice.upload("image/png", "just.png", bytes(1_000_000)).await;
        assert_eq!(files(media.path()), (1, 0));
        alice.try_upload("image/png", "", bytes(1_000_001)).await.is_error(413, "M_TOO_LARGE");
        // Before the body comes, if its length is announced; else when there is too much of it.
        let mut announced = begin_upload(server.http(), alice.token(), Some(1_000_001), b"").await;
        assert!(head_of(&mut announced).await.starts_with("HTTP/1.1 413 "));
        let chunk = [b"80000\r\n", &bytes(0x80000)[..], b"\r\n"].concat();
        let mut chunked = begin_upload(server.http(), alice.token(), None, &chunk).await;
        eventually!(files(media.path()) == (1, 1));
        chunked.write_all(&chunk).await.unwrap();
        assert!(head_of(&mut chunked).await.starts_with("HTTP/1.1 413 "));
        eventually!(files(media.path()) == (1, 0));
        for length in [Some(999_999), None] {
            let broken = begin_upload(server.http(), alice.token(), length, &chunk).await;
            eventually!(files(media.path()) == (1, 1));
            drop(broken);
            eventually!(files(media.path()) == (1, 0));
        }
        // Each user has so many at once, and no more places than that are taken.
        let mut under_way = Vec::new();
        for _ in 0..20 {
            under_way.push(begin_upload(server.http(), alice.token(), Some(999_999), &bytes(300_000)).await);
        }
        eventually!(files(media.path()) == (1, 20));
        alice.try_upload("image/png", "", "x").await.is_error(429, "M_LIMIT_EXCEEDED");
        server.user("bob").await.upload("image/png", "b.png", "b").await;
        drop(under_way);
        eventually!(alice.try_upload("image/png", "", "x").await.status == 200);
        server.shutdown().await;
    }
}

/// Kept once, whoever uploads it, and each upload has a URI of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_file_takes_its_place_once() {
    let media = tempfile::tempdir().unwrap();
    let mut options = ServerOptions::default();
    options.config.media.folder = media.path().to_owned();
    let server = TestServer::with(options).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let one = alice.upload("image/png", "one.png", bytes(1_000)).await;
    let other = bob.upload("text/plain", "other.txt", bytes(1_000)).await;
    assert_ne!(one, other);
    assert_eq!(files(media.path()), (1, 0));
    assert_eq!(alice.download(&other).await.header("content-type"), "text/plain");
    assert_eq!(bob.download(&one).await.header("content-type"), "image/png");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_survive_a_kill_and_half_of_one_leaves_nothing() {
    let folder = folder(&TestDatabase::sqlite());
    let media = folder.path().join("data/media");
    let (mut program, http) = start(folder.path(), &[]);
    let mut alice = register(&http, "alice").await;
    let mut kept = Vec::new();
    for kill in 0..3 {
        for number in 0..3 {
            let content = bytes(400_000 + kill * 10 + number);
            kept.push((alice.upload("image/png", "a.png", content.clone()).await, content));
        }
        let _half = begin_upload(alice.http(), alice.token(), Some(1_000_000), &bytes(700_000)).await;
        eventually!(files(&media) == (kept.len(), 1));
        program.kill();
        let (restarted, http) = start(folder.path(), &[]);
        (program, alice) = (restarted, alice.at(&http));
        assert_eq!(files(&media), (kept.len(), 0));
        for (uri, content) in &kept {
            assert!(alice.download(uri).await.bytes == *content, "{uri}");
        }
    }
    drop(program);
}

/// One process takes the file, another one gives it, also to somebody who waits there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_a_folder_share_its_files() {
    let Some(first) = TestServer::on_postgres().await else { return };
    let second = first.beside(ServerOptions::default()).await;
    let alice = first.user("alice").await;
    let uri = alice.upload("image/png", "a.png", bytes(100_000)).await;
    assert!(alice.at(second.http()).download(&uri).await.bytes == bytes(100_000));
    let created = alice.post("/_matrix/media/v1/create", &json!({})).await.ok();
    let uri = created["content_uri"].as_str().unwrap().to_owned();
    let waiting = tokio::spawn({
        let (alice, path) = (alice.at(second.http()), format!("{}?timeout_ms=30000", download_path(&uri)));
        async move { alice.get(&path).await }
    });
    let path = uri.replace("mxc://", "/_matrix/media/v3/upload/");
    let put = first.http().send("PUT", path.as_bytes(), Some(alice.token()), Some("text/plain"), "later").await;
    put.unwrap().ok();
    assert_eq!(&waiting.await.unwrap().bytes[..], b"later");
    first.shutdown().await;
    second.shutdown().await;
}

/// Each name has its own files; those of the other are read without asking anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_belong_to_the_name_of_their_uploader() {
    let mut options = ServerOptions::default();
    options.config.server.names = vec!["one.test".try_into().unwrap(), "two.test".try_into().unwrap()];
    let server = TestServer::with(options).await;
    let alice = register(&server.http().for_host("one.test"), "alice").await;
    let bob = register(&server.http().for_host("two.test"), "bob").await;
    let (of_alice, of_bob) =
        (alice.upload("text/plain", "a", "alice's").await, bob.upload("text/plain", "b", "bob's").await);
    assert!(of_alice.starts_with("mxc://one.test/") && of_bob.starts_with("mxc://two.test/"));
    assert_eq!(&alice.download(&of_bob).await.bytes[..], b"bob's");
    assert_eq!(&bob.download(&of_alice).await.bytes[..], b"alice's");
    alice.download(&of_bob.replace("two.test", "one.test")).await.is_error(404, "M_NOT_FOUND");
    server.shutdown().await;
}

/// Who goes away in the midst of a download, or reads nothing of it, keeps nobody from anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_is_nobodys_concern() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let uri = alice.upload("image/png", "a.png", bytes(5_000_000)).await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(server.http().base().trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            download_path(&uri),
            alice.token()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 200 "));
    }
    let download = tokio::time::timeout(Duration::from_secs(30), alice.download(&uri)).await.unwrap();
    assert!(download.bytes == bytes(5_000_000));
    server.shutdown().await;
}
