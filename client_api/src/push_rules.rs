//! Push rules. Client-Server API, "Push Rules: API".

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use ruma::{
    api::client::push::{
        delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    push::{AnyPushRuleRef, RuleKind},
};
use serde_json::Value;
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, requester::Requester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_pushrules_all)
        .ruma_route(get_pushrules_global_scope)
        .ruma_route(get_pushrule)
        .ruma_route(set_pushrule)
        .ruma_route(delete_pushrule)
        .ruma_route(get_pushrule_actions)
        .ruma_route(set_pushrule_actions)
        .ruma_route(get_pushrule_enabled)
        .ruma_route(set_pushrule_enabled)
}

/// The kind of a path. Clients call the one of threads as it is called in a ruleset, too. MSC4306, "New Push Rules".
fn kind_of(kind: RuleKind) -> RuleKind {
    if kind.as_str() == "postcontent" { RuleKind::PostContent } else { kind }
}

fn unknown() -> MatrixError {
    MatrixError::not_found("there is no such push rule")
}

/// `GET /pushrules/`.
async fn get_pushrules_all(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<get_pushrules_all::v3::Request>,
) -> Result<Ruma<get_pushrules_all::v3::Response>, MatrixError> {
    let rules = accounts.push_rules(&requester.user_id, requester.user_nr).await?;
    Ok(Ruma(get_pushrules_all::v3::Response::new(rules)))
}

/// `GET /pushrules/global/`.
async fn get_pushrules_global_scope(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<get_pushrules_global_scope::v3::Request>,
) -> Result<Ruma<get_pushrules_global_scope::v3::Response>, MatrixError> {
    let rules = accounts.push_rules(&requester.user_id, requester.user_nr).await?;
    Ok(Ruma(get_pushrules_global_scope::v3::Response::new(rules)))
}

/// `GET /pushrules/global/{kind}/{ruleId}`.
async fn get_pushrule(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_pushrule::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    Ok(Json(accounts.push_rule(&requester, kind_of(request.kind), &request.rule_id).await?))
}

/// `PUT /pushrules/global/{kind}/{ruleId}`.
async fn set_pushrule(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<set_pushrule::v3::Request>,
) -> Result<Ruma<set_pushrule::v3::Response>, MatrixError> {
    let (after, before) = (request.after.as_deref(), request.before.as_deref());
    accounts.set_push_rule(&requester, request.rule, after, before).await?;
    Ok(Ruma(set_pushrule::v3::Response::new()))
}

/// `DELETE /pushrules/global/{kind}/{ruleId}`.
async fn delete_pushrule(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_pushrule::v3::Request>,
) -> Result<Ruma<delete_pushrule::v3::Response>, MatrixError> {
    accounts.delete_push_rule(&requester, kind_of(request.kind), &request.rule_id).await?;
    Ok(Ruma(delete_pushrule::v3::Response::new()))
}

/// `GET /pushrules/global/{kind}/{ruleId}/actions`.
async fn get_pushrule_actions(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_pushrule_actions::v3::Request>,
) -> Result<Ruma<get_pushrule_actions::v3::Response>, MatrixError> {
    let rules = accounts.push_rules(&requester.user_id, requester.user_nr).await?;
    let actions =
        rules.get(kind_of(request.kind), &request.rule_id).map(AnyPushRuleRef::actions).ok_or_else(unknown)?;
    Ok(Ruma(get_pushrule_actions::v3::Response::new(actions.to_vec())))
}

/// `PUT /pushrules/global/{kind}/{ruleId}/actions`.
async fn set_pushrule_actions(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<set_pushrule_actions::v3::Request>,
) -> Result<Ruma<set_pushrule_actions::v3::Response>, MatrixError> {
    accounts.set_push_rule_actions(&requester, kind_of(request.kind), &request.rule_id, request.actions).await?;
    Ok(Ruma(set_pushrule_actions::v3::Response::new()))
}

/// `GET /pushrules/global/{kind}/{ruleId}/enabled`.
async fn get_pushrule_enabled(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_pushrule_enabled::v3::Request>,
) -> Result<Ruma<get_pushrule_enabled::v3::Response>, MatrixError> {
    let rules = accounts.push_rules(&requester.user_id, requester.user_nr).await?;
    let enabled =
        rules.get(kind_of(request.kind), &request.rule_id).map(AnyPushRuleRef::enabled).ok_or_else(unknown)?;
    Ok(Ruma(get_pushrule_enabled::v3::Response::new(enabled)))
}

/// `PUT /pushrules/global/{kind}/{ruleId}/enabled`.
async fn set_pushrule_enabled(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<set_pushrule_enabled::v3::Request>,
) -> Result<Ruma<set_pushrule_enabled::v3::Response>, MatrixError> {
    accounts.enable_push_rule(&requester, kind_of(request.kind), &request.rule_id, request.enabled).await?;
    Ok(Ruma(set_pushrule_enabled::v3::Response::new()))
}
