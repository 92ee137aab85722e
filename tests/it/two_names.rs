//! One deployment with two server names.

use serde_json::{Value, json};
use test_kit::{ServerOptions, TestServer, TestUser};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Registers a user by the name that the request's `Host` says.
pub(crate) async fn register(server: &TestServer, host: &str, name: &str) -> TestUser {
    let body = json!({"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}).to_string();
    let address = server.http().base().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /_matrix/client/v3/register HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    TestUser::of(server.http(), &serde_json::from_str::<Value>(body).unwrap())
}

/// Each name has its own users, with the same names even, and between them nothing goes over the network.
// shows: register, getTokenOwner, createRoom, inviteUser, joinRoomById, sendMessage, sync
#[tokio::test]
async fn users_of_two_names_in_one_process_meet_in_a_room() {
    let mut options = ServerOptions::default();
    options.config.server.names = vec!["one.test".try_into().unwrap(), "two.test".try_into().unwrap()];
    let server = TestServer::with(options).await;
    let (first, second) =
        (register(&server, "one.test", "alice").await, register(&server, "two.test:8448", "alice").await);
    assert_eq!((first.id(), second.id()), ("@alice:one.test", "@alice:two.test"));
    assert_eq!(second.get("/account/whoami").await.ok()["user_id"], "@alice:two.test");

    let room = first.post("/createRoom", &json!({"preset": "private_chat"})).await.ok();
    let room = room["room_id"].as_str().unwrap().to_owned();
    first.post(&format!("/rooms/{room}/invite"), &json!({"user_id": second.id()})).await.ok();
    second.post(&format!("/rooms/{room}/join"), &json!({})).await.ok();
    let message = json!({"msgtype": "m.text", "body": "from two"});
    second.request("PUT", &format!("/rooms/{room}/send/m.room.message/1"), &message).await.ok();

    let sync = first.get("/sync").await.ok();
    let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
    let last = events.last().unwrap();
    assert_eq!((&last["sender"], &last["content"]), (&json!("@alice:two.test"), &message));
    server.shutdown().await;
}
