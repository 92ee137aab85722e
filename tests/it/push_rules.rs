//! The rules for who is told of what.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

async fn ids(user: &TestUser) -> Vec<String> {
    let rules = user.get("/pushrules/").await.ok();
    let own = rules["global"]["content"].as_array().unwrap().iter().filter(|rule| rule["default"] == false);
    own.filter_map(|rule| rule["rule_id"].as_str().map(str::to_owned)).collect()
}

on_each_database! {
    // shows: setPushRule, getPushRules, getPushRule, deletePushRule
    async fn a_rule_is_moved_beside_another(server: TestServer) {
        let alice = server.user("alice").await;
        let body = json!({ "actions": ["notify"], "pattern": "word" });
        let put = async |rule: &str| alice.put(&format!("/pushrules/global/content/{rule}"), &body).await;
        for rule in ["c", "b?before=c", "a?before=b"] {
            put(rule).await.ok();
        }
        assert_eq!(ids(&alice).await, ["a", "b", "c"]);
        put("a?after=c").await.ok();
        assert_eq!(ids(&alice).await, ["b", "c", "a"]);
        put("b?after=c").await.ok();
        assert_eq!(ids(&alice).await, ["c", "b", "a"]);
        for beside in ["after=none", "before=none", "after=a", "before=a", "before=none&after=c"] {
            put(&format!("a?{beside}")).await.is_error(400, "M_UNKNOWN");
        }
        assert_eq!(ids(&alice).await, ["c", "b", "a"]);
        // What stands before counts, a new rule is the first one, and one that is changed stays where it is.
        put("a?before=b&after=c").await.ok();
        assert_eq!(ids(&alice).await, ["c", "a", "b"]);
        put("a?before=c&after=b").await.ok();
        assert_eq!(ids(&alice).await, ["a", "c", "b"]);
        put("d").await.ok();
        put("c").await.ok();
        assert_eq!(ids(&alice).await, ["d", "a", "c", "b"]);
        assert_eq!(alice.get("/pushrules/global/content/b").await.ok()["pattern"], "word");
        alice.request("DELETE", "/pushrules/global/content/b", &Value::Null).await.ok();
        alice.get("/pushrules/global/content/b").await.is_error(404, "M_NOT_FOUND");
    }

    /// Rules belong to accounts: whoever has none learns nothing of them, and changes nothing.
    async fn strangers_and_guests_have_no_rules(server: TestServer) {
        let (rule, body) = ("/pushrules/global/override/.m.rule.master", json!({ "actions": [], "enabled": true }));
        let (enabled, actions) = (format!("{rule}/enabled"), format!("{rule}/actions"));
        let guest = test_kit::register_guest(server.http()).await;
        for (method, path) in [
            ("GET", "/pushrules/"),
            ("GET", "/pushrules/global/"),
            ("GET", rule),
            ("GET", &enabled),
            ("GET", &actions),
            ("PUT", "/pushrules/global/override/mine"),
            ("PUT", &enabled),
            ("PUT", &actions),
            ("DELETE", rule),
        ] {
            let body = if method == "PUT" { &body } else { &Value::Null };
            let whole = format!("/_matrix/client/v3{path}");
            server.http().request(method, &whole, None, body).await.is_error(401, "M_MISSING_TOKEN");
            server.http().request(method, &whole, Some("nobody's"), body).await.is_error(401, "M_UNKNOWN_TOKEN");
            guest.request(method, path, body).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
    }

    /// All of a ruleset goes through the memory of each process that counts for its owner.
    async fn rules_are_bounded(server: TestServer) {
        let alice = server.user("alice").await;
        let put = async |kind: &str, number: usize, body: &Value| {
            alice.put(&format!("/pushrules/global/{kind}/rule{number}"), body).await
        };
        let keyword = json!({ "actions": ["notify"], "pattern": "tea" });
        for number in 0..200 {
            put("content", number, &keyword).await.ok();
        }
        put("content", 200, &keyword).await.is_error(413, "M_TOO_LARGE");
        let condition = json!({ "kind": "event_match", "key": "content.body", "pattern": "tea" });
        put("override", 0, &json!({ "actions": [], "conditions": [condition] })).await.is_error(413, "M_TOO_LARGE");
        // What is there is changed, and makes room.
        put("content", 7, &json!({ "actions": [], "pattern": "coffee" })).await.ok();
        alice.request("DELETE", "/pushrules/global/content/rule8", &Value::Null).await.ok();
        put("content", 200, &keyword).await.ok();
        let long = json!({ "actions": [{ "set_tweak": "org.example.note", "value": "x".repeat(60_000) }], "conditions": [] });
        let mut refused = 0;
        for number in 1..6 {
            let answer = put("underride", number, &long).await;
            refused += usize::from(answer.status.as_u16() == 413);
            assert!(matches!(answer.status.as_u16(), 200 | 413), "{answer}");
        }
        assert!((1..5).contains(&refused), "{refused} of 5 were refused");
    }

    // shows: setPushRuleEnabled, isPushRuleEnabled, setPushRuleActions, getPushRuleActions, getPushRulesGlobal
    async fn a_default_rule_is_switched_off_and_changed_but_stays(server: TestServer) {
        let alice = server.user("alice").await;
        let path = "/pushrules/global/override/.m.rule.suppress_notices";
        alice.put(&format!("{path}/enabled"), &json!({ "enabled": false })).await.ok();
        assert_eq!(alice.get(&format!("{path}/enabled")).await.ok(), json!({ "enabled": false }));
        alice.put(&format!("{path}/actions"), &json!({ "actions": ["notify"] })).await.ok();
        assert_eq!(alice.get(&format!("{path}/actions")).await.ok(), json!({ "actions": ["notify"] }));
        let global = alice.get("/pushrules/global/").await.ok();
        assert!(global["override"].is_array(), "{global}");
        assert_eq!(alice.request("DELETE", path, &Value::Null).await.status.as_u16(), 400);
    }

    // shows: setPushRule, getPushRule, setPushRuleEnabled, sync
    async fn rules_of_every_kind_reach_all_devices(server: TestServer) {
        let alice = server.user("alice").await;
        let phone = alice.log_in_again().await;
        let since = phone.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let conditions = json!([{ "kind": "event_match", "key": "type", "pattern": "m.*" }]);
        let bodies = [
            ("override", "mine", json!({ "actions": ["notify"], "conditions": conditions })),
            ("underride", "mine", json!({ "actions": [], "conditions": [] })),
            ("content", "mine", json!({ "actions": [{ "set_tweak": "highlight" }], "pattern": "t?a" })),
            ("room", "!room:localhost", json!({ "actions": ["dont_notify"] })),
            ("sender", "@bob:localhost", json!({ "actions": ["notify", { "set_tweak": "sound", "value": "ring" }] })),
        ];
        for (kind, rule_id, body) in &bodies {
            let path = format!("/pushrules/global/{kind}/{}", encode(rule_id));
            alice.put(&path, body).await.ok();
            let rule = alice.get(&path).await.ok();
            assert_eq!((&rule["rule_id"], &rule["default"], &rule["enabled"]), (&json!(rule_id), &json!(false), &json!(true)));
            assert_eq!(rule["actions"], body["actions"], "{kind}");
            // What is switched off stays off when it is changed.
            alice.put(&format!("{path}/enabled"), &json!({ "enabled": false })).await.ok();
            alice.put(&path, body).await.ok();
            assert_eq!(alice.get(&format!("{path}/enabled")).await.ok()["enabled"], false);
        }
        let sync = phone.sync(Some(&since)).await;
        let told = sync["account_data"]["events"].as_array().unwrap();
        let rules = &told.iter().find(|event| event["type"] == "m.push_rules").unwrap()["content"]["global"];
        assert_eq!(*rules, alice.get("/pushrules/global/").await.ok());
        for (kind, rule_id, _) in &bodies {
            let has = rules[kind].as_array().unwrap().iter().any(|rule| rule["rule_id"] == *rule_id);
            assert!(has, "{kind} of {rules}");
        }
        // Its own come first, but for the one that switches everything off.
        assert_eq!(rules["override"][0]["rule_id"], ".m.rule.master");
        assert_eq!(rules["override"][1]["rule_id"], "mine");
    }

    // shows: setPushRule, setPushRuleEnabled, setPushRuleActions, deletePushRule
    async fn what_is_no_rule_is_refused(server: TestServer) {
        let alice = server.user("alice").await;
        let before = alice.get("/pushrules/").await.ok();
        let put = async |path: &str, body: Value| alice.put(&format!("/pushrules/global/{path}"), &body).await;
        let body = json!({ "actions": [], "pattern": "x", "conditions": [] });
        for path in ["content/.mine", "content/a%2Fb", "content/a%5Cb", "override/mine?before=.m.rule.master"] {
            put(path, body.clone()).await.is_error(400, "M_INVALID_PARAM");
        }
        // Nobody makes rules of the kind that is about threads.
        for path in ["nothing/mine", "room/no-room", "sender/nobody", "postcontent/mine", "io.element.msc4306.postcontent/mine"] {
            put(path, body.clone()).await.is_error(400, "M_INVALID_PARAM");
        }
        for path in ["content/.m.rule.contains_user_name", "override/.m.rule.master", "override/mine?after=.m.rule.reaction"] {
            put(path, body.clone()).await.is_error(400, "M_INVALID_PARAM");
        }
        put(&format!("override/{}", "a".repeat(256)), body.clone()).await.is_error(400, "M_INVALID_PARAM");
        put("override/mine", json!({ "actions": [], "conditions": [{ "pattern": "x" }] })).await.is_error(400, "M_BAD_JSON");
        put("override/mine", json!({ "actions": "notify", "conditions": [] })).await.is_error(400, "M_BAD_JSON");
        put("override/.m.rule.master/enabled", json!({ "enabled": "yes" })).await.is_error(400, "M_BAD_JSON");
        put("override/.m.rule.master/enabled", json!({})).await.is_error(400, "M_BAD_JSON");
        put("override/.m.rule.master/actions", json!({ "actions": 1 })).await.is_error(400, "M_BAD_JSON");
        put("override/.m.rule.nothing/enabled", json!({ "enabled": true })).await.is_error(404, "M_NOT_FOUND");
        put("override/.m.rule.nothing/actions", json!({ "actions": [] })).await.is_error(404, "M_NOT_FOUND");
        put("nothing/mine/enabled", json!({ "enabled": true })).await.is_error(404, "M_NOT_FOUND");
        put("nothing/mine/actions", json!({ "actions": [] })).await.is_error(404, "M_NOT_FOUND");
        assert_eq!(put("content/mine", json!({ "actions": [] })).await.status.as_u16(), 400, "without a pattern");
        assert_eq!(put("content/mine", json!({ "pattern": "x" })).await.status.as_u16(), 400, "without actions");
        let long = json!({ "actions": [], "pattern": "?".repeat(256) });
        put("content/mine", long).await.is_error(400, "M_INVALID_PARAM");
        put("content/mine/enabled", json!({ "enabled": true })).await.is_error(404, "M_NOT_FOUND");
        put("content/mine/actions", json!({ "actions": [] })).await.is_error(404, "M_NOT_FOUND");
        for path in ["content/mine", "content/mine/enabled", "content/mine/actions", "nothing/mine"] {
            alice.get(&format!("/pushrules/global/{path}")).await.is_error(404, "M_NOT_FOUND");
        }
        for path in ["content/mine", "nothing/mine", "override/.m.rule.nothing"] {
            let path = format!("/pushrules/global/{path}");
            alice.request("DELETE", &path, &Value::Null).await.is_error(404, "M_NOT_FOUND");
        }
        let data = format!("/user/{}/account_data/m.push_rules", encode(alice.id()));
        alice.put(&data, &json!({ "global": {} })).await.is_error(405, "M_BAD_JSON");
        assert_eq!(alice.get("/pushrules/").await.ok(), before);
    }
}
