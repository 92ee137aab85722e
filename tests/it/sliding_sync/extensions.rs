//! What is told beside rooms.

use serde_json::{Value, json};
use test_kit::{encode, on_each_database};

use super::{FORMS, pos};

on_each_database! {
    async fn messages_to_a_device_come_until_their_token_comes_back(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (number, form) in FORMS.into_iter().enumerate() {
            let ask = |since: Option<&str>| {
                let mut to_device = json!({ "enabled": true, "limit": 2 });
                if let Some(since) = since {
                    to_device["since"] = json!(since);
                }
                json!({ "extensions": { "to_device": to_device, "e2ee": { "enabled": true } } })
            };
            let first = form.sync(&bob, None, 0, &ask(None)).await;
            let token = |answer: &Value| answer["extensions"]["to_device"]["next_batch"].as_str().unwrap().to_owned();
            let numbers = |answer: &Value| -> Vec<u64> {
                let events = answer["extensions"]["to_device"]["events"].as_array().unwrap();
                events.iter().map(|event| event["content"]["n"].as_u64().unwrap()).collect()
            };
            assert_eq!(numbers(&first), [0; 0]);
            assert_eq!(first["extensions"]["e2ee"]["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
            assert_eq!(first["extensions"]["e2ee"]["device_unused_fallback_key_types"], json!([]));
            let send = async {
                for n in 0..3 {
                    let body = json!({ "messages": { bob.id(): { bob.device_id(): { "n": n } } } });
                    alice.put(&format!("/sendToDevice/org.example.x/{number}-{n}"), &body).await.ok();
                }
            };
            let (start, since) = (pos(&first).to_owned(), token(&first));
            let body = ask(Some(&since));
            let (waited, ()) = tokio::join!(form.sync(&bob, Some(&start), 30_000, &body), send);
            assert_eq!(numbers(&waited)[0], 0);
            // Again from the same place, on the same connection or another: all are there still.
            let again = form.sync(&bob, None, 0, &ask(Some(&since))).await;
            assert_eq!(numbers(&again), [0, 1]);
            let rest = form.sync(&bob, Some(pos(&again)), 0, &ask(Some(&token(&again)))).await;
            assert_eq!(numbers(&rest), [2]);
            let none = form.sync(&bob, Some(pos(&rest)), 0, &ask(Some(&token(&rest)))).await;
            assert_eq!(numbers(&none), [0; 0]);
            // They were acknowledged.
            let none = form.sync(&bob, None, 0, &ask(Some(&since))).await;
            assert_eq!(numbers(&none), [0; 0]);
        }
    }

    async fn extensions_tell_of_the_rooms_that_they_are_about(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let (seen, other) = (alice.create_public_room().await, alice.create_public_room().await);
            bob.join(&seen).await;
            bob.join(&other).await;
            let event = alice.send_text(&seen, "read me").await;
            let receipt = |room: &str, event: &str| format!("/rooms/{}/receipt/m.read/{}", encode(room), encode(event));
            let tag = |room: &str| format!("/user/{}/rooms/{}/tags/u.x", encode(bob.id()), encode(room));
            alice.post(&receipt(&seen, &event), &json!({})).await.ok();
            bob.put(&tag(&seen), &json!({})).await.ok();
            let extensions = |lists: Value| {
                let scope = json!({ "enabled": true, "lists": lists });
                json!({ "receipts": scope, "account_data": scope, "typing": scope })
            };
            let body = |lists: Value| {
                let subscription = json!({ &seen: form.config(5, &[]), &other: form.config(5, &[]) });
                let list = form.list([0, 0], 5, &[]);
                json!({ "room_subscriptions": subscription, "lists": { "top": list }, "extensions": extensions(lists) })
            };
            let first = form.sync(&bob, None, 0, &body(json!([]))).await;
            let shown = &first["extensions"];
            assert!(shown["receipts"]["rooms"][&seen]["content"][&event]["m.read"][alice.id()]["ts"].is_u64(), "{first}");
            assert_eq!(shown["account_data"]["rooms"][&seen][0]["type"], "m.tag", "{first}");
            assert!(shown["account_data"]["global"].to_string().contains("m.push_rules"), "{first}");
            // News of each kind, one after the other, wake who waits.
            let mut at = pos(&first).to_owned();
            let event = alice.send_text(&other, "x").await;
            at = pos(&form.sync(&bob, Some(&at), 0, &body(json!([]))).await).to_owned();
            let path = receipt(&other, &event);
            let empty = json!({});
            let wait = body(json!([]));
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), alice.post(&path, &empty));
            assert!(news["extensions"]["receipts"]["rooms"][&other]["content"][&event].is_object(), "{news}");
            let typing = json!({ "typing": true, "timeout": 30_000 });
            let path = format!("/rooms/{}/typing/{}", encode(&other), encode(alice.id()));
            at = pos(&news).to_owned();
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), alice.put(&path, &typing));
            assert_eq!(news["extensions"]["typing"]["rooms"][&other]["content"]["user_ids"], json!([alice.id()]), "{news}");
            at = pos(&news).to_owned();
            let path = tag(&other);
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), bob.put(&path, &empty));
            assert_eq!(news["extensions"]["account_data"]["rooms"][&other][0]["content"]["tags"], json!({ "u.x": {} }), "{news}");
            assert_eq!(form.sync(&bob, Some(pos(&news)), 0, &wait).await["extensions"], json!({}));
        }
    }

    /// An extension that was off, or about other rooms, has not lost what happened meanwhile.
    async fn what_an_extension_did_not_tell_it_tells_later(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        for form in FORMS {
            let event = alice.send_text(&room, "x").await;
            let body = |is_on: bool| {
                let on = json!({ "enabled": is_on });
                json!({ "lists": { "all": form.list([0, 9], 5, &[]) }, "extensions": { "receipts": on, "account_data": on } })
            };
            let first = form.sync(&bob, None, 0, &body(true)).await;
            let receipt = format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&event));
            alice.post(&receipt, &json!({})).await.ok();
            let data = |name: &str| format!("/user/{}/{name}/org.example.{form:?}", encode(bob.id()));
            bob.put(&data("account_data"), &json!({ "a": 1 })).await.ok();
            bob.put(&data(&format!("rooms/{}/account_data", encode(&room))), &json!({ "a": 2 })).await.ok();
            let off = form.sync(&bob, Some(pos(&first)), 0, &body(false)).await;
            assert_eq!(off["extensions"], json!({}), "{off}");
            alice.send_text(&room, "y").await;
            let off = form.sync(&bob, Some(pos(&off)), 0, &body(false)).await;
            let on = form.sync(&bob, Some(pos(&off)), 0, &body(true)).await;
            assert!(on["extensions"]["receipts"]["rooms"][&room]["content"][&event].is_object(), "{on}");
            assert_eq!(on["extensions"]["account_data"]["rooms"][&room][0]["content"], json!({ "a": 2 }), "{on}");
            assert_eq!(on["extensions"]["account_data"]["global"][0]["content"], json!({ "a": 1 }), "{on}");
            assert_eq!(form.sync(&bob, Some(pos(&on)), 0, &body(true)).await["extensions"], json!({}));
        }
    }

    async fn receipts_come_with_a_timeline_that_grows(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_public_room().await;
            bob.join(&room).await;
            let event = alice.send_text(&room, "read").await;
            alice.post(&format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&event)), &json!({})).await.ok();
            bob.send_text(&room, "not read").await;
            let on = json!({ "receipts": { "enabled": true } });
            let few = json!({ "lists": { "all": form.list([0, 0], 1, &[]) }, "extensions": on });
            let first = form.sync(&bob, None, 0, &few).await;
            let of_event = |answer: &Value| answer["extensions"]["receipts"]["rooms"][&room]["content"][&event].clone();
            assert_eq!(of_event(&first), Value::Null, "{first}");
            let more = json!({ "room_subscriptions": { &room: form.config(5, &[]) }, "extensions": on });
            let second = form.sync(&bob, Some(pos(&first)), 0, &more).await;
            assert!(of_event(&second)["m.read"][alice.id()].is_object(), "{second}");
        }
    }
}
