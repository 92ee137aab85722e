//! Tokens and devices.

use accounts::{Error, LoggedIn, NewAccount, Options, SessionRequest};
use ruma::user_id;

use crate::World;

async fn logged_in(world: &World, refresh_token: bool) -> LoggedIn {
    let account = NewAccount { password: Some("secret".to_owned()), ..NewAccount::default() };
    let alice = world.accounts.register(user_id!("@alice:one.test"), account).await.unwrap();
    let request = SessionRequest { device_id: Some("A".into()), refresh_token, ..SessionRequest::default() };
    world.accounts.log_in(&alice, request).await.unwrap()
}

fn is_unknown<T: std::fmt::Debug>(result: Result<T, Error>, soft: bool) {
    assert!(matches!(result, Err(Error::UnknownToken { soft_logout }) if soft_logout == soft), "{result:?}");
}

/// A client that did not get the answer asks again, and must not be locked out. Client-Server API, "Refreshing access tokens".
#[tokio::test]
async fn the_old_tokens_are_valid_until_a_new_one_is_used() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let first = logged_in(&world, true).await;
        let old_refresh = first.refresh_token.clone().unwrap();
        accounts.authenticate(&first.access_token, None).await.unwrap();

        let lost = accounts.refresh(&old_refresh).await.unwrap();
        accounts.authenticate(&first.access_token, None).await.unwrap();
        let second = world.other.refresh(&old_refresh).await.unwrap();
        is_unknown(accounts.authenticate(&lost.access_token, None).await, false);
        is_unknown(accounts.refresh(&lost.refresh_token.unwrap()).await, false);

        assert_eq!(accounts.authenticate(&second.access_token, None).await.unwrap().device(), "A");
        is_unknown(accounts.authenticate(&first.access_token, None).await, false);
        is_unknown(accounts.refresh(&old_refresh).await, false);

        // The new refresh token counts as a use too.
        let third = accounts.refresh(&second.refresh_token.clone().unwrap()).await.unwrap();
        let fourth = accounts.refresh(&third.refresh_token.unwrap()).await.unwrap();
        is_unknown(accounts.refresh(&second.refresh_token.unwrap()).await, false);
        is_unknown(accounts.authenticate(&second.access_token, None).await, false);
        accounts.authenticate(&fourth.access_token, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_expired_token_is_a_soft_logout_and_can_be_refreshed() {
    for world in World::each(Options { access_token_lifetime_ms: 1_000, ..Options::default() }).await {
        let first = logged_in(&world, true).await;
        world.accounts.authenticate(&first.access_token, None).await.unwrap();
        world.clock.advance_ms(1_000);
        is_unknown(world.accounts.authenticate(&first.access_token, None).await, true);
        is_unknown(world.other.authenticate(&first.access_token, None).await, true);
        let second = world.accounts.refresh(&first.refresh_token.unwrap()).await.unwrap();
        world.accounts.authenticate(&second.access_token, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_without_a_refresh_token_does_not_end_by_itself() {
    for world in World::each(Options::default()).await {
        let session = logged_in(&world, false).await;
        assert_eq!((session.refresh_token, session.expires_in), (None, None));
        world.clock.advance_ms(365 * 86_400_000);
        world.accounts.authenticate(&session.access_token, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_logged_out_device_is_gone_with_its_tokens() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let session = logged_in(&world, true).await;
        let alice = accounts.authenticate(&session.access_token, None).await.unwrap();
        accounts.log_out(&alice).await.unwrap();
        is_unknown(accounts.authenticate(&session.access_token, None).await, false);
        is_unknown(accounts.refresh(&session.refresh_token.unwrap()).await, false);
        assert!(accounts.devices(&alice).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn logging_in_again_on_a_device_voids_its_old_tokens_and_keeps_its_name() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let first = logged_in(&world, true).await;
        let alice = accounts.authenticate(&first.access_token, None).await.unwrap();
        accounts.name_device(&alice, "A", Some("desk".to_owned())).await.unwrap();
        let user = accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        let request = SessionRequest {
            device_id: Some("A".into()),
            display_name: Some("other".to_owned()),
            ..SessionRequest::default()
        };
        accounts.log_in(&user, request).await.unwrap();
        is_unknown(accounts.authenticate(&first.access_token, None).await, false);
        is_unknown(accounts.refresh(&first.refresh_token.unwrap()).await, false);
        let devices = accounts.devices(&alice).await.unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].display_name.as_deref(), Some("desk"));
    }
}

#[tokio::test]
async fn a_device_is_seen_but_not_written_on_every_request() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let session = logged_in(&world, false).await;
        let seen = async || {
            let requester = accounts.authenticate(&session.access_token, Some([10, 0, 0, 1].into())).await.unwrap();
            accounts.device(&requester, "A").await.unwrap()
        };
        let first = seen().await;
        assert_eq!(first.last_seen_ip.as_deref(), Some("10.0.0.1"));
        world.clock.advance_ms(60_000);
        assert_eq!(seen().await.last_seen_at_ms, first.last_seen_at_ms);
        world.clock.advance_ms(180_000);
        assert_eq!(seen().await.last_seen_at_ms, first.last_seen_at_ms.map(|at_ms| at_ms + 240_000));
    }
}

#[tokio::test]
async fn a_login_token_is_good_once_and_for_a_while() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (token, lifetime) = world.accounts.make_login_token(&alice).await.unwrap();
        assert_eq!(world.other.take_login_token(&token).await.unwrap().user_nr, alice.user_nr);
        assert!(matches!(world.accounts.take_login_token(&token).await, Err(Error::Forbidden(_))));
        let (token, _) = world.accounts.make_login_token(&alice).await.unwrap();
        world.clock.advance_ms(i64::try_from(lifetime.as_millis()).unwrap());
        assert!(matches!(world.accounts.take_login_token(&token).await, Err(Error::Forbidden(_))));
    }
}

/// A thief who made one before must not come back with it.
#[tokio::test]
async fn login_tokens_end_with_the_sessions() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (token, _) = accounts.make_login_token(&alice).await.unwrap();
        accounts.change_password(&alice, "other", true).await.unwrap();
        assert!(matches!(accounts.take_login_token(&token).await, Err(Error::Forbidden(_))));
        let (token, _) = accounts.make_login_token(&alice).await.unwrap();
        accounts.log_out_all(alice.user_nr, None).await.unwrap();
        assert!(matches!(accounts.take_login_token(&token).await, Err(Error::Forbidden(_))));
    }
}

#[tokio::test]
async fn a_changed_password_logs_the_other_devices_out_only_if_asked() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let user = accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        let second = accounts.log_in(&user, SessionRequest::default()).await.unwrap();
        accounts.change_password(&alice, "other", false).await.unwrap();
        accounts.authenticate(&second.access_token, None).await.unwrap();
        accounts.change_password(&alice, "third", true).await.unwrap();
        is_unknown(accounts.authenticate(&second.access_token, None).await, false);
        assert_eq!(accounts.devices(&alice).await.unwrap().len(), 1, "the own device stays");
        assert!(matches!(accounts.check_password(Some(&alice.user_id), "secret").await, Err(Error::Forbidden(_))));
        accounts.check_password(Some(&alice.user_id), "third").await.unwrap();
    }
}

/// Each process of a cluster remembers tokens; a thief's must end everywhere when its device is logged out anywhere.
#[tokio::test]
async fn a_token_that_one_process_revoked_ends_in_the_others() {
    for world in World::each(Options::default()).await.into_iter().filter(|world| world.accounts.storage().is_shared())
    {
        let session = logged_in(&world, false).await;
        let alice = world.accounts.authenticate(&session.access_token, None).await.unwrap();
        world.other.authenticate(&session.access_token, None).await.unwrap();
        let running = tokio::spawn({
            let other = world.other.clone();
            async move { other.run(std::future::pending()).await }
        });
        world.accounts.log_out(&alice).await.unwrap();
        let ended = async {
            while world.other.authenticate(&session.access_token, None).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        // Well before it would be forgotten by itself.
        tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.expect("it ends");
        running.abort();
    }
}
