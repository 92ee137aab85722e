//! Files in rooms.

use std::sync::{Arc, Mutex};

use client::{Error, NewFile, NewRoom};
use test_kit::TestServer;

use crate::people::{Person, encrypted_room};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_through_a_server_that_cannot_read_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    let plaintext: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&source, &plaintext).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let file = NewFile { path: &source, name: "plan.pdf", content_type: "application/pdf" };
    let progress = {
        let told = told.clone();
        move |bytes| told.lock().unwrap().push(bytes)
    };
    let sent = alice.client.send_file(&room, file, progress).await.unwrap();
    let heard = bob.hears(&sent).await;
    assert_eq!((&heard.content["msgtype"], &heard.content["body"]), (&"m.file".into(), &"plan.pdf".into()));
    assert_eq!(heard.content["info"]["size"], 300_000);
    assert_eq!(bob.client.download_file(&heard.content, &target, 300_000).await.unwrap(), 300_000);
    assert_eq!(std::fs::read(&target).unwrap(), plaintext);
    let told = told.lock().unwrap().clone();
    assert!(told.is_sorted() && told.len() > 1 && told.last() == Some(&300_000), "{told:?}");

    let uri = heard.content["file"]["url"].as_str().expect("an address");
    let kept = bob.user.download(uri).await;
    assert_eq!(kept.bytes.len(), plaintext.len());
    assert!(kept.bytes != plaintext && !kept.bytes.windows(64).any(|part| part == &plaintext[..64]));
    assert!(heard.content.get("url").is_none());

    let mut changed = heard.content.clone();
    changed["file"]["hashes"]["sha256"] = "fdSLu/YkRx3Wyh3KQabP3rd6+SFiKg5lsJZQHtkSAYA".into();
    let other = folder.path().join("other");
    assert!(matches!(bob.client.download_file(&changed, &other, 300_000).await, Err(Error::AttachmentChanged)));
    assert!(matches!(bob.client.download_file(&heard.content, &other, 1000).await, Err(Error::TooLarge { .. })));
    changed["file"]["url"] = "mxc://127.0.0.1/absent".into();
    assert!(bob.client.download_file(&changed, &other, 300_000).await.is_err());
    assert!(!other.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_a_room_without_encryption_goes_as_it_is() {
    let server = TestServer::start().await;
    let alice = Person::new(&server, "alice").await;
    let room = alice.client.create_room(NewRoom { is_encrypted: false, ..NewRoom::default() }).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::write(&source, b"for everybody").unwrap();
    let file = NewFile { path: &source, name: "note.txt", content_type: "text/plain" };
    let sent = alice.client.send_file(&room, file, |_| {}).await.unwrap();
    let heard = alice.hears(&sent).await;
    let uri = heard.content["url"].as_str().expect("an address");
    let kept = alice.user.download(uri).await;
    assert_eq!((kept.bytes.as_ref(), kept.content_type.starts_with("text/plain")), (&b"for everybody"[..], true));
    alice.client.download_file(&heard.content, &target, 1000).await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"for everybody");
}

/// Such as a log. What is announced at the beginning is what is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_grows_while_it_is_sent_arrives_as_it_was() {
    let server = TestServer::start().await;
    let alice = Person::new(&server, "alice").await;
    let room = encrypted_room(&alice, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::write(&source, vec![7; 300_001]).unwrap();
    let grow = {
        let source = source.clone();
        move |_| {
            let mut file = std::fs::OpenOptions::new().append(true).open(&source).unwrap();
            std::io::Write::write_all(&mut file, &[8; 1000]).unwrap();
        }
    };
    let file = NewFile { path: &source, name: "log", content_type: "text/plain" };
    let sent = alice.client.send_file(&room, file, grow).await.unwrap();
    let heard = alice.hears(&sent).await;
    assert_eq!(alice.client.download_file(&heard.content, &target, 1 << 20).await.unwrap(), 300_001);
    assert!(std::fs::read(&target).unwrap() == vec![7; 300_001]);
}
