//! User-interactive authentication.

use accounts::{Completed, Error, Options, Registration};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use ruma::{
    api::client::uiaa::{AuthData, AuthType, UiaaInfo},
    user_id,
};
use serde_json::{Value, json};

use crate::World;

fn auth(value: Value) -> AuthData {
    serde_json::from_value(value).unwrap()
}

fn password(session: Option<&str>, password: &str) -> AuthData {
    auth(json!({
        "type": "m.login.password", "session": session, "password": password,
        "identifier": {"type": "m.id.user", "user": "alice"},
    }))
}

fn challenge<T: std::fmt::Debug>(result: Result<T, Error>) -> UiaaInfo {
    match result {
        Err(Error::AuthenticationNeeded(info)) => *info,
        other => panic!("not a challenge: {other:?}"),
    }
}

#[tokio::test]
async fn a_session_goes_on_in_another_process_and_is_good_for_one_request_only() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:one.test")).await;
        let body = json!({"devices": ["A"]});
        let (accounts, other) = (&world.accounts, &world.other);
        let info = challenge(accounts.confirm_by_password(&alice, "delete", &body, None).await);
        let session = info.session.as_deref();
        assert_eq!(info.flows[0].stages, [AuthType::Password]);

        let wrong = challenge(other.confirm_by_password(&alice, "delete", &body, Some(&password(session, "no"))).await);
        assert_eq!((wrong.session.as_deref(), wrong.auth_error.is_some()), (session, true));

        let right = password(session, "secret");
        for (who, endpoint, body) in
            [(&alice, "delete", &json!({"devices": ["B"]})), (&alice, "deactivate", &body), (&bob, "delete", &body)]
        {
            let refused = other.confirm_by_password(who, endpoint, body, Some(&right)).await;
            assert!(matches!(refused, Err(Error::Forbidden(_))), "{endpoint}: {refused:?}");
        }
        other.confirm_by_password(&alice, "delete", &body, Some(&right)).await.unwrap();
        let again = challenge(accounts.confirm_by_password(&alice, "delete", &body, Some(&right)).await);
        assert_ne!(again.session.as_deref(), session, "a used session is not known any more");
    }
}

#[tokio::test]
async fn a_session_ends() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let ask =
            async |auth: Option<&AuthData>| world.accounts.confirm_by_password(&alice, "x", &json!({}), auth).await;
        let info = challenge(ask(None).await);
        world.clock.advance_ms(15 * 60_000);
        let late = challenge(ask(Some(&password(info.session.as_deref(), "secret"))).await);
        assert_ne!(late.session, info.session);
        assert!(late.auth_error.is_some());
    }
}

#[tokio::test]
async fn the_password_of_somebody_else_proves_nothing() {
    for world in World::each(Options::default()).await {
        let bob = world.user(user_id!("@bob:one.test")).await;
        world.user(user_id!("@alice:one.test")).await;
        let asked = world.accounts.confirm_by_password(&bob, "x", &json!({}), Some(&password(None, "secret"))).await;
        assert!(challenge(asked).auth_error.is_some());
    }
}

#[tokio::test]
async fn a_registration_token_is_used_no_more_often_than_allowed() {
    for world in World::each(Options { registration: Registration::Token, ..Options::default() }).await {
        let accounts = &world.accounts;
        let make =
            async |name: &str, uses, end| accounts.create_registration_token(Some(name.to_owned()), uses, end).await;
        make("once", Some(1), None).await.unwrap();
        make("ended", None, Some(crate::START_MS + 1)).await.unwrap();
        world.clock.advance_ms(1);
        for (name, uses, end) in
            [("once", None, None), ("", None, None), ("ä", None, None), ("late", None, Some(crate::START_MS))]
        {
            assert!(matches!(make(name, uses, end).await, Err(Error::InvalidParam(_))), "{name}");
        }
        assert!(accounts.is_registration_token_valid("once").await.unwrap());
        for token in ["ended", "unknown"] {
            assert!(!accounts.is_registration_token_valid(token).await.unwrap(), "{token}");
        }
        let flows = [vec![AuthType::RegistrationToken]];
        let show = |token: &str| auth(json!({"type": "m.login.registration_token", "token": token}));
        let bad = accounts.authenticate_interactively(None, "register", &flows, Some(&show("unknown"))).await;
        assert!(challenge(bad).auth_error.is_some());
        // Two people hold the token at the same time: the second one comes too late.
        let mut proofs = Vec::new();
        for _ in 0..2 {
            proofs.push(
                accounts.authenticate_interactively(None, "register", &flows, Some(&show("once"))).await.unwrap(),
            );
        }
        let account = || accounts::NewAccount { password: Some("secret".to_owned()), ..Default::default() };
        let register = async |name, proof: Completed| accounts.register_with_proof(name, None, account(), proof).await;
        let second = proofs.pop().unwrap();
        register(user_id!("@alice:one.test"), proofs.pop().unwrap()).await.unwrap();
        assert!(matches!(register(user_id!("@bob:one.test"), second.clone()).await, Err(Error::Forbidden(_))));
        assert!(!accounts.is_registration_token_valid("once").await.unwrap());
        // What fails for another reason gives the use back.
        make("spare", Some(1), None).await.unwrap();
        let proof = Completed { registration_token: Some("spare".to_owned()) };
        assert!(matches!(register(user_id!("@alice:one.test"), proof).await, Err(Error::UserInUse)));
        assert!(accounts.is_registration_token_valid("spare").await.unwrap());
    }
}

/// Tries stages in any order, right and wrong.
fn try_stages(seed: u64, cases: u32, steps_max: usize) {
    println!("seed {seed}");
    let config =
        ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Default::default() };
    let run = TestRunner::new(config).run(&prop::collection::vec(0_usize..5, 1..steps_max), |steps| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::on(storage::testing::TestDatabase::sqlite(), Options::default()).await;
            world.accounts.storage().insert_registration_token("good", None, None).await.unwrap();
            let alice = world.user(user_id!("@alice:one.test")).await;
            let flows = [vec![AuthType::Password], vec![AuthType::RegistrationToken, AuthType::Dummy]];
            let mut done = Vec::new();
            let mut session: Option<String> = None;
            for step in steps {
                let (stage, shown) = match step {
                    0 => (Some(AuthType::Password), password(session.as_deref(), "secret")),
                    1 => (None, password(session.as_deref(), "wrong")),
                    2 => (Some(AuthType::Dummy), auth(json!({"type": "m.login.dummy", "session": session}))),
                    3 => {
                        let token = json!({"type": "m.login.registration_token", "token": "good", "session": session});
                        (Some(AuthType::RegistrationToken), auth(token))
                    }
                    _ => {
                        let token = json!({"type": "m.login.registration_token", "token": "bad", "session": session});
                        (None, auth(token))
                    }
                };
                done.extend(stage);
                let is_complete = flows.iter().any(|flow| flow.iter().all(|stage| done.contains(stage)));
                let accounts = if step % 2 == 0 { &world.accounts } else { &world.other };
                match accounts.authenticate_interactively(Some(&alice), "x", &flows, Some(&shown)).await {
                    Ok(_) => {
                        assert!(is_complete, "{done:?}");
                        (done, session) = (Vec::new(), None);
                    }
                    Err(Error::AuthenticationNeeded(info)) => {
                        assert!(!is_complete, "{done:?}");
                        assert!(done.iter().all(|stage| info.completed.contains(stage)), "{done:?} {info:?}");
                        session = info.session;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        });
        Ok(())
    });
    run.unwrap();
}

/// Whatever is tried in whatever order: it is complete exactly when all stages of one flow were shown rightly.
#[test]
fn a_flow_is_complete_when_all_its_stages_are() {
    try_stages(1, 24, 8);
}

/// The same with many seeds and more steps.
#[test]
fn long_a_flow_is_complete_when_all_its_stages_are() {
    for seed in 100..110 {
        try_stages(seed, 50, 20);
    }
}
