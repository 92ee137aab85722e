//! The rules for who is told of what.

use serde_json::{Value, json};
use test_kit::{TestUser, on_each_database};

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
        put("a?after=none").await.is_error(404, "M_NOT_FOUND");
        put("a?after=a").await.is_error(404, "M_NOT_FOUND");
        assert_eq!(ids(&alice).await, ["c", "b", "a"]);
        assert_eq!(alice.get("/pushrules/global/content/b").await.ok()["pattern"], "word");
        alice.request("DELETE", "/pushrules/global/content/b", &Value::Null).await.ok();
        alice.get("/pushrules/global/content/b").await.is_error(404, "M_NOT_FOUND");
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
}
