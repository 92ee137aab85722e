//! Users, what they have, and their end.

use std::collections::BTreeMap;

use accounts::{AppService, Error, Namespace, NewAccount, Options, RegisteredUser, SharedSecretRegistration};
use hmac::{Hmac, KeyInit as _, Mac as _};
use model::{Position, RoomNr};
use ruma::{
    events::AnyToDeviceEventContent, push::RuleKind, serde::Raw, server_name, to_device::DeviceIdOrAllDevices, user_id,
};
use serde_json::json;

use crate::World;

#[tokio::test]
async fn a_name_is_taken_once_on_each_server_name() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        world.user(user_id!("@alice:one.test")).await;
        let check = async |name, server| accounts.check_available(name, server, None).await;
        assert!(matches!(check("alice", server_name!("one.test")).await, Err(Error::UserInUse)));
        assert_eq!(check("alice", server_name!("two.test")).await.unwrap(), "@alice:two.test");
        for name in ["Alice", "ALICE", "@Alice:one.test"] {
            assert!(matches!(check(name, server_name!("one.test")).await, Err(Error::UserInUse)), "{name}");
        }
        assert_eq!(check("Bob", server_name!("one.test")).await.unwrap(), "@bob:one.test");
        for bad in ["", "al ice", "älice", "@alice:two.test", "alice:one.test"] {
            let refused = check(bad, server_name!("one.test")).await;
            assert!(matches!(refused, Err(Error::InvalidUsername(_))), "{bad}: {refused:?}");
        }
        assert!(check(&"a".repeat(300), server_name!("one.test")).await.is_err());
        assert_eq!(accounts.server_of_host(Some("TWO.test:8448")), "two.test");
        assert_eq!(accounts.server_of_host(Some("elsewhere.test")), "one.test");
        assert_eq!(accounts.server_of_host(None), "one.test");
    }
}

/// Many addresses guess at one account as well as one does. The real user waits a while, and is not locked out.
#[tokio::test]
async fn wrong_passwords_of_an_account_are_limited_and_a_right_one_passes_after_the_wait() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        for name in [user_id!("@alice:one.test"), user_id!("@nobody:one.test")] {
            let mut wrong = 0;
            let wait = loop {
                match accounts.check_password(Some(name), "guess").await {
                    Err(Error::Forbidden(_)) => wrong += 1,
                    Err(Error::LimitExceeded(wait)) => break wait,
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(wrong, 10, "{name}");
            world.clock.advance_ms(i64::try_from(wait.as_millis()).unwrap() - 1);
            let early = accounts.check_password(Some(name), "secret").await;
            assert!(matches!(early, Err(Error::LimitExceeded(_))), "{early:?}");
            world.clock.advance_ms(1);
        }
        for _ in 0..20 {
            accounts.check_password(Some(&alice.user_id), "secret").await.expect("right ones do not count");
        }
        accounts.check_password(Some(user_id!("@bob:one.test")), "x").await.expect_err("there is no such user");
    }
    for world in World::each(Options { limit_guesses: false, ..Options::default() }).await {
        for _ in 0..30 {
            let refused = world.accounts.check_password(Some(user_id!("@alice:one.test")), "guess").await;
            assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
        }
    }
}

/// Names of before may have capitals, and two may differ in nothing else: the exact one goes first.
#[tokio::test]
async fn a_name_with_capitals_logs_in_who_is_called_so_or_else_the_one_in_small_letters() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let by_name = async |name| accounts.check_password(Some(name), "secret").await.map(|user| user.user_nr);
        assert_eq!(by_name(user_id!("@Alice:one.test")).await.unwrap(), alice.user_nr);
        let older = NewAccount { password: Some("secret".to_owned()), ..NewAccount::default() };
        let older = accounts.register(user_id!("@Alice:one.test"), older).await.unwrap();
        assert_eq!(by_name(user_id!("@Alice:one.test")).await.unwrap(), older.user_nr);
        assert_eq!(by_name(user_id!("@ALICE:one.test")).await.unwrap(), alice.user_nr);
        // The Kelvin sign is no K.
        assert!(by_name(user_id!("@alice\u{212a}:one.test")).await.is_err());
    }
}

#[tokio::test]
async fn an_administrator_makes_a_user_and_sets_the_password_anew() {
    for world in World::each(Options::default()).await {
        let alice = user_id!("@alice:one.test");
        let accounts = &world.accounts;
        assert_eq!(accounts.create_user(alice, "one", false).await.unwrap(), RegisteredUser::New);
        let user = accounts.check_password(Some(alice), "one").await.unwrap();
        let session = accounts.log_in(&user, Default::default()).await.unwrap();
        let requester = accounts.authenticate(&session.access_token, None).await.unwrap();
        let (login_token, _) = accounts.make_login_token(&requester).await.unwrap();
        assert_eq!(accounts.create_user(alice, "two", true).await.unwrap(), RegisteredUser::Changed);
        assert!(accounts.authenticate(&session.access_token, None).await.is_err(), "no session stays");
        assert!(accounts.take_login_token(&login_token).await.is_err());
        assert!(accounts.devices(&requester).await.unwrap().is_empty());
        let user = accounts.check_password(Some(alice), "two").await.unwrap();
        assert!(user.is_admin);
        assert!(accounts.check_password(Some(alice), "one").await.is_err());
        let refused = accounts.create_user(user_id!("@bob:elsewhere.test"), "x", false).await;
        assert!(matches!(refused, Err(Error::InvalidUsername(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_deactivated_user_cannot_come_back_and_leaves_the_name_taken() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        accounts.set_profile_field(alice.user_nr, "displayname", &json!("Alice")).await.unwrap();
        accounts.deactivate(&alice, true).await.unwrap();
        assert!(matches!(accounts.check_password(Some(&alice.user_id), "secret").await, Err(Error::UserDeactivated)));
        assert!(matches!(accounts.create_user(&alice.user_id, "new", false).await, Err(Error::UserDeactivated)));
        assert!(matches!(accounts.profile(&alice.user_id).await, Err(Error::NotFound(_))));
        assert!(accounts.devices(&alice).await.unwrap().is_empty());
        let taken = accounts.check_available("alice", server_name!("one.test"), None).await;
        assert!(matches!(taken, Err(Error::UserInUse)));
        assert!(accounts.storage().get_user(&alice.user_id).await.unwrap().unwrap().is_erased);
    }
}

#[tokio::test]
async fn a_guest_becomes_a_user_of_the_same_name() {
    for world in World::each(Options { guests: true, ..Options::default() }).await {
        let accounts = &world.accounts;
        let guest = NewAccount { is_guest: true, ..NewAccount::default() };
        let guest = accounts.register(user_id!("@visitor:one.test"), guest).await.unwrap();
        let token = accounts.log_in(&guest, Default::default()).await.unwrap().access_token;
        assert!(accounts.authenticate(&token, None).await.unwrap().is_guest);
        assert!(matches!(accounts.guest_of_token(&token, Some("other")).await, Err(Error::InvalidUsername(_))));
        assert!(matches!(accounts.guest_of_token("none", Some("visitor")).await, Err(Error::Forbidden(_))));
        let requester = accounts.guest_of_token(&token, Some("visitor")).await.unwrap();
        let account = NewAccount { password: Some("secret".to_owned()), ..NewAccount::default() };
        let proof = Default::default();
        accounts.register_with_proof(&requester.user_id, Some(&requester), account, proof).await.unwrap();
        assert!(!accounts.authenticate(&token, None).await.unwrap().is_guest);
        accounts.check_password(Some(&requester.user_id), "secret").await.unwrap();
    }
}

#[tokio::test]
async fn an_application_service_acts_as_its_users_and_nobody_takes_their_names() {
    let service = AppService {
        id: "irc".to_owned(),
        as_token: "its-token".to_owned(),
        hs_token: "our-token".to_owned(),
        sender_localpart: "ircbot".to_owned(),
        users: vec![Namespace::new(true, "@irc_.*").unwrap()],
        aliases: Vec::new(),
        rooms: Vec::new(),
        rate_limited: true,
    };
    for world in World::each(Options { app_services: vec![service.clone()], ..Options::default() }).await {
        let accounts = &world.accounts;
        assert!(accounts.app_service_of("another").is_none());
        let service = accounts.app_service_of("its-token").unwrap();
        let one = server_name!("one.test");
        assert!(matches!(accounts.check_available("irc_bob", one, None).await, Err(Error::Exclusive(_))));
        assert!(matches!(accounts.check_available("bob", one, Some(&service)).await, Err(Error::Exclusive(_))));
        let capitals = accounts.check_available("irc_Bob", one, Some(&service)).await;
        assert!(matches!(capitals, Err(Error::InvalidUsername(_))), "{capitals:?}");
        let bob = accounts.check_available("irc_bob", one, Some(&service)).await.unwrap();
        let as_bob = async || accounts.authenticate_app_service(service.clone(), Some(&bob), None).await;
        assert!(matches!(as_bob().await, Err(Error::Forbidden(_))), "it has to register the user first");
        let account = NewAccount { app_service: Some(service.id.clone()), ..NewAccount::default() };
        accounts.register(&bob, account).await.unwrap();
        assert_eq!(as_bob().await.unwrap().user_id, bob);
        let sender = accounts.authenticate_app_service(service.clone(), None, None).await.unwrap();
        assert_eq!(sender.user_id, "@ircbot:one.test");
        let alice = world.user(user_id!("@alice:one.test")).await;
        let as_alice = accounts.authenticate_app_service(service.clone(), Some(&alice.user_id), None).await;
        assert!(matches!(as_alice, Err(Error::Forbidden(_))), "{as_alice:?}");
    }
}

/// The code as the documentation of existing tooling computes it.
fn code(secret: &str, parts: &[&str]) -> String {
    let mut code = Hmac::<sha1::Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    code.update(parts.join("\0").as_bytes());
    code.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn who_knows_the_secret_registers_once_per_nonce() {
    let secret = Some("shared".to_owned());
    for world in World::each(Options { registration_shared_secret: secret.clone(), ..Options::default() }).await {
        let accounts = &world.accounts;
        let shown = |nonce: &str, mac: String| SharedSecretRegistration {
            nonce: nonce.to_owned(),
            username: "root".to_owned(),
            password: "pw".to_owned(),
            admin: true,
            user_type: None,
            displayname: Some("Root".to_owned()),
            mac,
        };
        let register = async |shown| accounts.register_by_secret(server_name!("one.test"), shown).await;
        let nonce = accounts.registration_nonce().unwrap();
        let wrong = code("other", &[&nonce, "root", "pw", "admin"]);
        assert!(matches!(register(shown(&nonce, wrong)).await, Err(Error::Forbidden(_))));
        let nonce = accounts.registration_nonce().unwrap();
        let no_admin = code("shared", &[&nonce, "root", "pw", "notadmin"]);
        assert!(matches!(register(shown(&nonce, no_admin)).await, Err(Error::Forbidden(_))));
        let nonce = accounts.registration_nonce().unwrap();
        let right = shown(&nonce, code("shared", &[&nonce, "root", "pw", "admin"]));
        assert!(register(right.clone()).await.unwrap().is_admin);
        assert!(matches!(register(right).await, Err(Error::Unknown(_))), "a nonce is good once");
        assert_eq!(accounts.profile(user_id!("@root:one.test")).await.unwrap()["displayname"], "Root");
    }
    for world in World::each(Options::default()).await {
        assert!(world.accounts.registration_nonce().is_err(), "without a secret this way is closed");
    }
}

#[tokio::test]
async fn a_profile_has_a_bound_and_a_change_is_in_the_stream() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let before = accounts.storage().published();
        let set =
            async |field, value: serde_json::Value| accounts.set_profile_field(alice.user_nr, field, &value).await;
        set("org.example.big", json!("x".repeat(40_000))).await.unwrap();
        assert!(accounts.storage().published() > before);
        let two = set("org.example.more", json!("x".repeat(40_000))).await;
        assert!(matches!(two, Err(Error::ProfileTooLarge(_))), "{two:?}");
        set("org.example.big", json!("x".repeat(50_000))).await.unwrap();
        accounts.delete_profile_field(alice.user_nr, "org.example.big").await.unwrap();
        set("org.example.more", json!("x".repeat(40_000))).await.unwrap();
        assert_eq!(accounts.profile(&alice.user_id).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn push_rules_are_the_defaults_with_what_the_user_changed() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let stored = accounts.account_data(alice.user_nr, None, "m.push_rules").await.unwrap();
        assert!(stored.contains(".m.rule.master"), "the first sync shows them");
        accounts.enable_push_rule(&alice, RuleKind::Override, ".m.rule.master", true).await.unwrap();
        let rule = accounts.push_rule(&alice, RuleKind::Override, ".m.rule.master").await.unwrap();
        assert_eq!(rule["enabled"], true);
        let gone = accounts.delete_push_rule(&alice, RuleKind::Override, ".m.rule.master").await;
        assert!(matches!(gone, Err(Error::InvalidParam(_))));
        let none = accounts.enable_push_rule(&alice, RuleKind::Room, "!none:one.test", true).await;
        assert!(matches!(none, Err(Error::NotFound(_))));
        let by_hand = accounts.set_account_data(alice.user_nr, None, "m.push_rules", "{}").await;
        assert!(matches!(by_hand, Err(Error::OwnEndpoint)));
    }
}

#[tokio::test]
async fn tags_that_are_set_at_the_same_time_do_not_lose_each_other() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (user, room) = (alice.user_nr, RoomNr(7));
        let names: Vec<String> = (0..20).map(|number| format!("u.{number}")).collect();
        let tasks: Vec<_> = names
            .iter()
            .cloned()
            .map(|name| {
                let accounts = world.accounts.clone();
                tokio::spawn(async move { accounts.set_tag(user, room, &name, json!({"order": 0.5})).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(world.accounts.tags(user, room).await.unwrap().len(), names.len());
        world.accounts.delete_tag(user, room, "u.3").await.unwrap();
        assert!(!world.accounts.tags(user, room).await.unwrap().contains_key("u.3"));
    }
}

#[tokio::test]
async fn a_message_to_all_devices_arrives_once_though_it_was_sent_twice() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:two.test")).await;
        let user = accounts.check_password(Some(&bob.user_id), "secret").await.unwrap();
        accounts.log_in(&user, Default::default()).await.unwrap();
        let content: Raw<AnyToDeviceEventContent> = Raw::from_json_string(r#"{"a":1}"#.to_owned()).unwrap();
        let messages = BTreeMap::from([
            (bob.user_id.clone(), BTreeMap::from([(DeviceIdOrAllDevices::AllDevices, content.clone())])),
            (user_id!("@none:one.test").to_owned(), BTreeMap::from([(DeviceIdOrAllDevices::AllDevices, content)])),
        ]);
        for accounts in [&world.accounts, &world.accounts, &world.other] {
            accounts.send_to_device(&alice, "m.test", "t1".into(), messages.clone()).await.unwrap();
        }
        for device in accounts.devices(&bob).await.unwrap() {
            let storage = accounts.storage();
            let waiting = storage
                .list_to_device(bob.user_nr, &device.device_id, Position(0), Position(i64::MAX), 10)
                .await
                .unwrap();
            assert_eq!(waiting.len(), 1);
            let event: serde_json::Value = serde_json::from_str(&waiting[0].1).unwrap();
            assert_eq!(event, json!({"content": {"a": 1}, "sender": "@alice:one.test", "type": "m.test"}));
        }
    }
}

#[tokio::test]
async fn the_same_filter_has_the_same_id() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let filter = |limit: u32| serde_json::from_value(json!({"room": {"timeline": {"limit": limit}}})).unwrap();
        let first = world.accounts.create_filter(alice.user_nr, &filter(1)).await.unwrap();
        let second = world.accounts.create_filter(alice.user_nr, &filter(2)).await.unwrap();
        assert_eq!(world.other.create_filter(alice.user_nr, &filter(1)).await.unwrap(), first);
        assert_ne!(first, second);
        let found = world.accounts.filter(alice.user_nr, &second).await.unwrap();
        assert_eq!(found.room.timeline.limit, Some(2_u32.into()));
        assert!(matches!(world.accounts.filter(alice.user_nr, "9").await, Err(Error::NotFound(_))));
        assert!(matches!(world.accounts.filter(alice.user_nr, "x").await, Err(Error::NotFound(_))));
    }
}
