//! User-interactive authentication, as a state machine whose state is in the database.
//!
//! A session belongs to one user, one endpoint and one request body; it ends when a flow is complete or its time is over. Which
//! process of a cluster a stage is sent to does not matter. Client-Server API, "User-Interactive Authentication API".

use model::UserNr;
use ruma::api::{
    client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
    error::{ErrorKind, StandardErrorBody},
};
use ruma::{OwnedUserId, ServerName, UserId};
use serde_json::Value;
use storage::UiaSessionRow;

use crate::{Accounts, Error, Requester, guesses::Guesser, secrets};

/// How long somebody may take to complete a flow, in milliseconds.
const SESSION_LIFETIME_MS: i64 = 15 * 60_000;
/// Longest session id that is looked up, in bytes; ours are 43.
const SESSION_ID_BYTES_MAX: usize = 64;

/// Somebody has completed a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completed {
    /// The registration token that was shown, not yet used.
    pub registration_token: Option<String>,
}

/// How far somebody has come.
struct Progress {
    session_id: Option<String>,
    completed: Vec<AuthType>,
    registration_token: Option<String>,
}

impl Progress {
    const fn none() -> Self {
        Self { session_id: None, completed: Vec::new(), registration_token: None }
    }
}

impl Accounts {
    /// Asks the requester for their password before `endpoint` does what `body` says.
    ///
    /// An application service has no password and is believed. Client-Server API v1.17, "Application services".
    ///
    /// # Errors
    ///
    /// [`Error::AuthenticationNeeded`] with what is missing.
    pub async fn confirm_by_password(
        &self,
        requester: &Requester,
        endpoint: &str,
        body: &Value,
        auth: Option<&AuthData>,
    ) -> Result<(), Error> {
        if requester.app_service.is_some() {
            return Ok(());
        }
        let operation = operation(endpoint, body);
        self.authenticate_interactively(Some(requester), &operation, &[vec![AuthType::Password]], auth).await.map(drop)
    }

    /// Goes one step through the flows of an operation.
    ///
    /// # Errors
    ///
    /// [`Error::AuthenticationNeeded`] with what is missing, and what was wrong if something was.
    pub async fn authenticate_interactively(
        &self,
        requester: Option<&Requester>,
        operation: &str,
        flows: &[Vec<AuthType>],
        auth: Option<&AuthData>,
    ) -> Result<Completed, Error> {
        let user_nr = requester.map_or(UserNr(0), |requester| requester.user_nr);
        let challenge = async |progress: Progress, wrong: Option<(ErrorKind, &str)>| {
            self.challenge(user_nr, operation, flows, progress, wrong).await
        };
        let Some(auth) = auth else { return Err(challenge(Progress::none(), None).await) };

        // 1. Which session.
        let mut progress = Progress::none();
        if let Some(session_id) = auth.session() {
            let session = match session_id.len() <= SESSION_ID_BYTES_MAX {
                true => self.0.storage.get_uia_session(session_id).await?,
                false => None,
            };
            let Some(session) = session else {
                let wrong = (ErrorKind::Unknown, "the session is unknown or has ended");
                return Err(challenge(progress, Some(wrong)).await);
            };
            if session.user_nr != user_nr || session.operation != operation {
                return Err(Error::Forbidden("the session was made for another request"));
            }
            progress = Progress {
                session_id: Some(session_id.to_owned()),
                completed: serde_json::from_str::<Vec<String>>(&session.completed)
                    .unwrap_or_default()
                    .iter()
                    .map(|stage| AuthType::from(&**stage))
                    .collect(),
                registration_token: session.registration_token,
            };
        }

        // 2. The stage that is shown, if it is one of ours; a bare session only asks how things stand.
        if let Some(stage) = auth.auth_type() {
            if !flows.iter().flatten().any(|known| *known == stage) {
                let wrong = (ErrorKind::Unrecognized, "this stage is not part of any flow");
                return Err(challenge(progress, Some(wrong)).await);
            }
            if let Err(wrong) = self.check_stage(requester, auth, &mut progress).await? {
                return Err(challenge(progress, Some((ErrorKind::Forbidden, wrong))).await);
            }
            if !progress.completed.contains(&stage) {
                progress.completed.push(stage);
            }
        }

        // 3. Complete when a flow has all its stages. A session can be completed once only.
        let is_complete = flows.iter().any(|flow| flow.iter().all(|stage| progress.completed.contains(stage)));
        if !is_complete {
            return Err(challenge(progress, None).await);
        }
        if let Some(session_id) = &progress.session_id
            && !self.0.storage.delete_uia_session(session_id).await?
        {
            return Err(Error::Forbidden("the session has been used"));
        }
        Ok(Completed { registration_token: progress.registration_token })
    }

    /// Checks one stage; the inner error is what the person did wrong.
    async fn check_stage(
        &self,
        requester: Option<&Requester>,
        auth: &AuthData,
        progress: &mut Progress,
    ) -> Result<Result<(), &'static str>, Error> {
        match auth {
            AuthData::Dummy(_) => Ok(Ok(())),
            AuthData::Password(shown) => {
                let Some(requester) = requester else { return Ok(Err("nobody is logged in")) };
                let server = requester.user_id.server_name();
                let user_id = self.user_of_identifier(&shown.identifier, server);
                let is_own = match &user_id {
                    Some(user_id) => {
                        self.find_user(user_id).await?.is_some_and(|user| user.user_nr == requester.user_nr)
                    }
                    None => false,
                };
                match self.check_guess(Some(Guesser::LoggedIn(&requester.user_id)), &shown.password).await {
                    Ok(_) if is_own => Ok(Ok(())),
                    Ok(_) | Err(Error::Forbidden(_)) => Ok(Err("the user name or the password is wrong")),
                    Err(other) => Err(other),
                }
            }
            AuthData::RegistrationToken(shown) => {
                if !self.is_registration_token_valid(&shown.token).await? {
                    return Ok(Err("the registration token is not valid"));
                }
                progress.registration_token = Some(shown.token.clone());
                Ok(Ok(()))
            }
            _ => Ok(Err("this stage is not known")),
        }
    }

    /// The answer that asks for more, with the session in the database so that the next request can go on with it.
    async fn challenge(
        &self,
        user_nr: UserNr,
        operation: &str,
        flows: &[Vec<AuthType>],
        progress: Progress,
        wrong: Option<(ErrorKind, &str)>,
    ) -> Error {
        let session_id = progress.session_id.unwrap_or_else(|| self.0.storage.random().secret());
        let completed: Vec<&str> = progress.completed.iter().map(AuthType::as_str).collect();
        let session = UiaSessionRow {
            user_nr,
            operation: operation.to_owned(),
            completed: Value::from(completed).to_string(),
            registration_token: progress.registration_token,
            expires_at_ms: self.now_ms() + SESSION_LIFETIME_MS,
        };
        if let Err(error) = self.0.storage.upsert_uia_session(&session_id, session).await {
            return error.into();
        }
        let mut info = UiaaInfo::new(flows.iter().map(|stages| AuthFlow::new(stages.clone())).collect());
        info.completed = progress.completed;
        info.session = Some(session_id);
        info.params = serde_json::value::to_raw_value(&serde_json::json!({})).ok();
        info.auth_error = wrong.map(|(kind, message)| Box::new(StandardErrorBody::new(kind, message.to_owned())));
        Error::AuthenticationNeeded(Box::new(info))
    }

    /// The user that an identifier means, on `server` where it has a localpart only. Client-Server API, "Identifier types".
    ///
    /// We know users by their name alone: mail addresses and phone numbers mean nobody.
    #[must_use]
    pub fn user_of_identifier(&self, identifier: &UserIdentifier, server: &ServerName) -> Option<OwnedUserId> {
        let UserIdentifier::Matrix(matrix) = identifier else { return None };
        let user_id = match matrix.user.starts_with('@') {
            true => UserId::parse(&*matrix.user).ok()?,
            false => UserId::parse(format!("@{}:{server}", matrix.user)).ok()?,
        };
        self.0.servers.has_user(&user_id).then_some(user_id)
    }
}

/// What a session is bound to.
fn operation(endpoint: &str, body: &Value) -> String {
    let hash = secrets::hash(&body.to_string());
    hash.iter().fold(format!("{endpoint} "), |text, byte| format!("{text}{byte:02x}"))
}
