//! Names of rooms, and the directories that list them.

use serde_json::{Value, json};
use test_kit::{Answer, ServerOptions, TestDatabase, TestServer, TestUser, encode, on_each_database};

const REGISTRATION: &str = "
id: irc
url: null
as_token: the token of the bridge
hs_token: the token of the server
sender_localpart: _irc_bot
namespaces:
  users:
    - exclusive: true
      regex: '@_irc_.*'
  rooms: []
  aliases:
    - exclusive: true
      regex: '#_irc_.*'
    - exclusive: false
      regex: '#shared_.*'
";
const TOKEN: Option<&str> = Some("the token of the bridge");

fn path(alias: &str) -> String {
    format!("/directory/room/{}", encode(alias))
}

async fn name(user: &TestUser, alias: &str, room: &str) -> Answer {
    user.put(&path(alias), &json!({ "room_id": room })).await
}

async fn canonical(user: &TestUser, room: &str) -> Value {
    user.get(&format!("/rooms/{}/state/m.room.canonical_alias/", encode(room))).await.json()
}

on_each_database! {
    /// Client-Server API, "m.room.canonical_alias".
    // shows: setRoomStateWithKey, deleteRoomAlias
    async fn a_room_names_only_aliases_that_point_to_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (room, other) = (alice.create_public_room().await, alice.create_public_room().await);
        for alias in ["#a:localhost", "#b:localhost", "#c:localhost"] {
            name(&alice, alias, &room).await.ok();
        }
        name(&alice, "#other:localhost", &other).await.ok();
        let set = async |content: Value| alice.try_set_state(&room, "m.room.canonical_alias", "", &content).await;
        for (content, errcode) in [
            (json!({ "alias": "#nowhere:localhost" }), "M_BAD_ALIAS"),
            (json!({ "alias": "#other:localhost" }), "M_BAD_ALIAS"),
            (json!({ "alias": "#far:example.org" }), "M_BAD_ALIAS"),
            (json!({ "alias": "#a:localhost", "alt_aliases": ["#b:localhost", "#other:localhost"] }), "M_BAD_ALIAS"),
            (json!({ "alias": "no alias" }), "M_INVALID_PARAM"),
            (json!({ "alt_aliases": ["no alias"] }), "M_INVALID_PARAM"),
            (json!({ "alias": 5 }), "M_BAD_JSON"),
        ] {
            set(content).await.is_error(400, errcode);
        }
        set(json!({ "alias": "#a:localhost", "alt_aliases": ["#b:localhost", "#c:localhost"], "x": 1 })).await.ok();
        let body = json!({ "initial_state": [{ "type": "m.room.canonical_alias", "content": { "alias": "#a:localhost" } }] });
        alice.post("/createRoom", &body).await.is_error(400, "M_BAD_ALIAS");

        // What is removed is named no more, but by who may not change that.
        alice.request("DELETE", &path("#b:localhost"), &Value::Null).await.ok();
        let expected = json!({ "alias": "#a:localhost", "alt_aliases": ["#c:localhost"], "x": 1 });
        assert_eq!(canonical(&alice, &room).await, expected);
        alice.request("DELETE", &path("#a:localhost"), &Value::Null).await.ok();
        assert_eq!(canonical(&alice, &room).await, json!({ "alt_aliases": ["#c:localhost"], "x": 1 }));
        // An alias that is gone may stay named: only new ones are looked at.
        bob.join(&room).await;
        name(&bob, "#bobs:localhost", &room).await.ok();
        set(json!({ "alias": "#bobs:localhost" })).await.ok();
        bob.request("DELETE", &path("#bobs:localhost"), &Value::Null).await.ok();
        assert_eq!(canonical(&alice, &room).await, json!({ "alias": "#bobs:localhost" }));
        set(json!({ "alias": "#bobs:localhost", "x": 2 })).await.ok();
        set(json!({ "alias": "#bobs:localhost", "alt_aliases": ["#c:localhost"] })).await.ok();
    }

    // shows: setRoomAlias, deleteRoomAlias, getLocalAliases
    async fn aliases_are_made_by_members_and_removed_by_their_makers_and_by_who_has_the_power(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        name(&eve, "#eves:localhost", &room).await.is_error(403, "M_FORBIDDEN");
        name(&eve, "#eves:localhost", "!nowhere:localhost").await.is_error(403, "M_FORBIDDEN");
        name(&bob, "#bobs:localhost", &room).await.ok();
        name(&alice, "#alices:localhost", &room).await.ok();
        name(&alice, "#alices:example.org", &room).await.is_error(400, "M_INVALID_PARAM");
        let delete = async |user: &TestUser, alias: &str| user.request("DELETE", &path(alias), &Value::Null).await;
        delete(&eve, "#bobs:localhost").await.is_error(403, "M_FORBIDDEN");
        delete(&bob, "#alices:localhost").await.is_error(403, "M_FORBIDDEN");
        delete(&alice, "#bobs:localhost").await.ok();
        delete(&alice, "#bobs:localhost").await.is_error(404, "M_NOT_FOUND");
        // Who made an alias and was put out of the room may still remove it.
        name(&bob, "#bobs:localhost", &room).await.ok();
        alice.remove(&room, "ban", &bob).await;
        delete(&bob, "#bobs:localhost").await.ok();
        let aliases = format!("/rooms/{}/aliases", encode(&room));
        assert_eq!(alice.get(&aliases).await.ok(), json!({ "aliases": ["#alices:localhost"] }));
        bob.get(&aliases).await.is_error(403, "M_FORBIDDEN");
        eve.get(&aliases).await.is_error(403, "M_FORBIDDEN");
    }

    /// The order is by members: pages lead both ways through all rooms, each once.
    // shows: getPublicRooms, queryPublicRooms
    async fn the_pages_of_the_directory_are_the_whole_in_both_directions(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut expected = Vec::new();
        for index in 0..7 {
            let body = json!({ "visibility": "public", "name": format!("room {index}") });
            let room = alice.create_room_with(&body).await;
            if index % 3 == 0 {
                bob.join(&room).await;
                expected.insert(index / 3, room);
            } else {
                expected.push(room);
            }
        }
        let ids = |page: &Value| -> Vec<String> {
            let rooms = page["chunk"].as_array().unwrap();
            rooms.iter().map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
        };
        for limit in [1, 2, 3, 7, 100] {
            let (mut pages, mut since) = (Vec::new(), String::new());
            loop {
                let page = bob.get(&format!("/publicRooms?limit={limit}{since}")).await.ok();
                assert_eq!(page["total_room_count_estimate"], 7);
                let next = page["next_batch"].as_str().map(encode);
                pages.push(page);
                let Some(next) = next else { break };
                since = format!("&since={next}");
            }
            assert_eq!(pages.iter().flat_map(&ids).collect::<Vec<_>>(), expected, "by {limit}");
            for pair in pages.windows(2) {
                let body = json!({ "limit": limit, "since": pair[1]["prev_batch"] });
                assert_eq!(ids(&bob.post("/publicRooms", &body).await.ok()), ids(&pair[0]), "back by {limit}");
            }
            assert_eq!(pages[0]["prev_batch"], Value::Null);
        }
        for since in ["nonsense", "d1_n_1", "s1_1"] {
            bob.get(&format!("/publicRooms?since={since}")).await.is_error(400, "M_INVALID_PARAM");
        }
        bob.get("/publicRooms?limit=-1").await.is_error(400, "M_INVALID_PARAM");
        let long = json!({ "filter": { "generic_search_term": "x".repeat(501) } });
        bob.post("/publicRooms", &long).await.is_error(400, "M_INVALID_PARAM");
        bob.post("/publicRooms?server=example.org", &json!({})).await.is_error(404, "M_NOT_FOUND");
    }
}

/// Application Service API, "Registration" and "Application service room directory management".
// shows: updateAppserviceRoomDirectoryVisibility, queryPublicRooms, setRoomAlias, getProtocols, getProtocolMetadata
// shows: queryLocationByProtocol, queryUserByProtocol, queryLocationByAlias, queryUserByID
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_has_aliases_and_a_directory_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("irc.yaml");
    std::fs::write(&file, REGISTRATION).unwrap();
    for database in TestDatabase::each().await {
        let mut options = ServerOptions::default();
        options.config.application_services.registrations = vec![file.clone()];
        let server = TestServer::on(database, options).await;
        let (http, alice) = (server.http(), server.user("alice").await);
        let bridge = async |method: &str, path: &str, body: &Value| {
            http.request(method, &format!("/_matrix/client/v3{path}"), TOKEN, body).await
        };
        let created = bridge("POST", "/createRoom", &json!({ "preset": "public_chat", "name": "bridged" })).await.ok();
        let bridged = created["room_id"].as_str().unwrap().to_owned();
        let own = alice.create_room_with(&json!({ "visibility": "public", "name": "own" })).await;

        // 1. Aliases.
        for alias in ["#_irc_a:localhost", "#shared_a:localhost"] {
            bridge("PUT", &path(alias), &json!({ "room_id": bridged })).await.ok();
        }
        bridge("PUT", &path("#free:localhost"), &json!({ "room_id": bridged })).await.is_error(400, "M_EXCLUSIVE");
        name(&alice, "#_irc_b:localhost", &own).await.is_error(400, "M_EXCLUSIVE");
        alice.post("/createRoom", &json!({ "room_alias_name": "_irc_b" })).await.is_error(400, "M_EXCLUSIVE");
        name(&alice, "#shared_b:localhost", &own).await.ok();
        alice.request("DELETE", &path("#_irc_a:localhost"), &Value::Null).await.is_error(400, "M_EXCLUSIVE");
        bridge("DELETE", &path("#_irc_a:localhost"), &Value::Null).await.ok();

        // 2. The directory.
        let listing = format!("/directory/list/appservice/libera/{}", encode(&bridged));
        alice.put(&listing, &json!({ "visibility": "public" })).await.is_error(403, "M_FORBIDDEN");
        bridge("PUT", &listing, &json!({ "visibility": "hidden" })).await.is_error(400, "M_INVALID_PARAM");
        bridge("PUT", &listing, &json!({ "visibility": "public" })).await.ok();
        let unknown = format!("/directory/list/appservice/libera/{}", encode("!nowhere:localhost"));
        bridge("PUT", &unknown, &json!({ "visibility": "public" })).await.is_error(404, "M_NOT_FOUND");
        let names = async |body: Value| -> Vec<String> {
            let answer = alice.post("/publicRooms", &body).await.ok();
            let rooms = answer["chunk"].as_array().unwrap();
            assert_eq!(answer["total_room_count_estimate"], rooms.len());
            rooms.iter().map(|room| room["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(json!({})).await, ["own"]);
        assert_eq!(names(json!({ "third_party_instance_id": "irc|libera" })).await, ["bridged"]);
        for other in ["irc|oftc", "irc", "", "xmpp|libera", "irc|libera|"] {
            assert_eq!(names(json!({ "third_party_instance_id": other })).await, Vec::<String>::new(), "{other}");
        }
        assert_eq!(names(json!({ "include_all_networks": true })).await, ["bridged", "own"]);
        let filter = json!({ "include_all_networks": true, "filter": { "generic_search_term": "bri" } });
        assert_eq!(names(filter).await, ["bridged"]);
        // Of what the bridge says of its networks the server knows nothing, and makes up nothing.
        assert_eq!(alice.get("/thirdparty/protocols").await.ok(), json!({}));
        for of_protocol in ["protocol/irc", "location/irc?channel=%23a", "user/irc?nickname=a"] {
            alice.get(&format!("/thirdparty/{of_protocol}")).await.is_error(404, "M_NOT_FOUND");
        }
        let location = |alias: &str| format!("/thirdparty/location?alias={}", encode(alias));
        assert_eq!(alice.get(&location("#shared_a:localhost")).await.ok(), json!([]));
        alice.get(&location("#nowhere:localhost")).await.is_error(404, "M_NOT_FOUND");
        alice.get("/thirdparty/location").await.is_error(400, "M_MISSING_PARAM");
        assert_eq!(alice.get("/thirdparty/user?userid=%40_irc_a%3Alocalhost").await.ok(), json!([]));
        alice.get("/thirdparty/user?userid=nonsense").await.is_error(400, "M_INVALID_PARAM");
        for path in
            ["protocols", "protocol/irc", "location/irc", "user/irc", "user?userid=%40a%3Ab", "location?alias=%23a%3Ab"]
        {
            let path = format!("/_matrix/client/v3/thirdparty/{path}");
            http.request("GET", &path, None, &Value::Null).await.is_error(401, "M_MISSING_TOKEN");
        }
        // A room that takes the place of another takes it in the directories, too.
        let upgrade = format!("/rooms/{}/upgrade", encode(&bridged));
        let upgraded = bridge("POST", &upgrade, &json!({ "new_version": "12" })).await.ok();
        let found = alice.post("/publicRooms", &json!({ "third_party_instance_id": "irc|libera" })).await.ok();
        assert_eq!(found["chunk"][0]["room_id"], upgraded["replacement_room"]);
        assert_eq!(found["total_room_count_estimate"], 1);
        let bridged = upgraded["replacement_room"].as_str().unwrap();
        let listing = format!("/directory/list/appservice/libera/{}", encode(bridged));
        bridge("PUT", &listing, &json!({ "visibility": "private" })).await.ok();
        assert_eq!(names(json!({ "include_all_networks": true })).await, ["own"]);
        server.shutdown().await;
    }
}
