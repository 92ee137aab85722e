//! The user's own identity: making it, and what it signs. Client-Server API, "Cross-signing".

use std::collections::BTreeMap;

use ruma::{
    UserId,
    api::client::{
        keys::{upload_signatures, upload_signing_keys},
        uiaa::{AuthData, MatrixUserIdentifier, Password, UserIdentifier},
    },
    encryption::CrossSigningKey,
    serde::Raw,
};

use serde_json::value::to_raw_value;

use super::Client;
use crate::{
    Error,
    cross_signing::{IdentityTrust, PublicKey},
};

impl Client {
    /// Makes an identity for the user, which this device has the keys of and is signed by. Most servers take the first one as it is, and ask
    /// for `password` when it replaces another.
    ///
    /// # Errors
    ///
    /// [`Error::IdentityExists`] when the user has one already and `replace` is not set: verify this device or recover instead, since a new one
    /// makes everybody verify again. [`Error::NeedsAuthentication`] when the server asks for a password that was not given.
    pub async fn make_identity(&self, password: Option<&str>, replace: bool) -> Result<(), Error> {
        let own = self.user_id().to_owned();
        self.learn(&own).await?;
        let keys = {
            let mut machine = self.machine().await;
            let known = machine.identity(&own).map(|identity| identity.keys.master.key);
            if known.is_some() && !replace && machine.next_master().await? != known {
                return Err(Error::IdentityExists);
            }
            machine.next_identity().await?
        };
        let raw = |key: &PublicKey| Raw::<CrossSigningKey>::from_json(to_raw_value(&key.object).expect("JSON is JSON"));
        let mut request = upload_signing_keys::v3::Request::new();
        request.master_key = Some(raw(&keys.master));
        request.self_signing_key = keys.self_signing.as_ref().map(raw);
        request.user_signing_key = keys.user_signing.as_ref().map(raw);
        match (self.api().send(request.clone()).await, password) {
            (Err(Error::NeedsAuthentication(info)), Some(password)) => {
                let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(own.to_string()));
                let mut auth = Password::new(user, password.to_owned());
                auth.session = info.session.clone();
                request.auth = Some(AuthData::Password(auth));
                self.api().send(request).await?;
            }
            (answer, _) => _ = answer?,
        }
        self.machine().await.identity_published(keys).await?;
        self.upload_signatures().await
    }

    /// How far a user's identity is to be believed; nothing when they have none.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`].
    pub async fn identity_trust(&self, user_id: &UserId) -> Result<Option<IdentityTrust>, Error> {
        self.learn(user_id).await?;
        Ok(self.machine().await.identity_trust(user_id))
    }

    /// Whether a device is verified: by itself, or by its verified owner.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownDevice`]; [`Error::Unreachable`].
    pub async fn is_verified(&self, user_id: &UserId, device_id: &ruma::DeviceId) -> Result<bool, Error> {
        self.learn(user_id).await?;
        self.machine().await.is_known_verified(user_id, device_id).await
    }

    /// Accepts the identity that the server shows for a user now, though nobody compared it.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when the user has none.
    pub async fn accept_identity(&self, user_id: &UserId) -> Result<(), Error> {
        self.machine().await.accept_identity(user_id).await
    }

    /// Asks for a user's devices and identity, if they may have changed. Our own are followed from now on.
    pub(super) async fn learn(&self, user_id: &UserId) -> Result<(), Error> {
        let user = vec![user_id.to_owned()];
        if user_id == self.user_id() {
            self.machine().await.follow(&user).await?;
        } else {
            self.machine().await.doubt_untracked(user_id).await?;
        }
        self.ask_for_devices(Some(user)).await
    }

    /// Gives the server the signatures that it lacks.
    pub(super) async fn upload_signatures(&self) -> Result<(), Error> {
        let _turn = self.0.signing.lock().await;
        let signatures = self.machine().await.signatures().await?;
        if signatures.is_empty() {
            return Ok(());
        }
        let mut signed: BTreeMap<_, upload_signatures::v3::SignedKeys> = BTreeMap::new();
        for one in signatures.values() {
            let keys = signed.entry(one.user_id.clone()).or_default();
            keys.add_cross_signing_keys(
                one.name.as_str().into(),
                Raw::from_json(to_raw_value(&one.object).expect("JSON is JSON")),
            );
        }
        match self.api().send(upload_signatures::v3::Request::new(signed)).await {
            Ok(answer) => {
                for (user_id, failures) in &answer.failures {
                    for name in failures.keys() {
                        tracing::warn!(user.id = %user_id, key = name, "the server refused a signature of ours");
                    }
                }
            }
            Err(error @ Error::Refused { .. }) if !error.is_temporary() => {
                tracing::warn!(%error, "the server refused signatures of ours");
            }
            Err(error) => return Err(error),
        }
        self.machine().await.signatures_uploaded(signatures.into_keys()).await
    }
}
