//! `login` and `logout`.

use std::{fs::File, time::Duration};

use client::{Api, Client, Error, Store, cross_signing::IdentityTrust};
use ruma::UserId;
use url::Url;
use zeroize::Zeroizing;

use crate::{
    arguments::Login,
    asking,
    failure::Failure,
    home::Home,
    show::{print, safe},
};

/// Logs in, makes the user's identity if there is none, and takes in what has happened up to now.
pub(crate) async fn login(home: &Home, options: Login) -> Result<(), Failure> {
    let homeserver = homeserver(&options).await?;
    let password = password(&options)?;
    let is_new = !home.exists();
    let store = home.make(options.passphrase).await?;
    let outcome = login_with(store.clone(), &homeserver, &options, &password).await;
    let is_unused = matches!(Client::restore(store.clone()).await, Err(Error::NotLoggedIn));
    store.close().await;
    if is_new && is_unused {
        home.remove()?;
    }
    outcome
}

async fn login_with(store: Store, homeserver: &Url, options: &Login, password: &str) -> Result<(), Failure> {
    let who = client::Login { homeserver, user: &options.user, password, device_name: &options.device_name };
    let client = Client::login(store, who).await?;
    match client.make_identity(Some(password), false).await {
        Ok(()) | Err(Error::IdentityExists) => {}
        Err(error @ Error::Refused { .. }) | Err(error @ Error::NeedsAuthentication(_)) => {
            eprintln!("The server takes no identity for cross-signing: {}", safe(&error.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    client.sync_once(Duration::ZERO).await?;
    print(format_args!("{} is logged in as the device {}.", client.user_id(), client.device_id()))?;
    if client.identity_trust(client.user_id()).await? == Some(IdentityTrust::Pinned) {
        eprintln!(
            "Your other devices do not trust this one yet, and it cannot read older messages: `swiftchat-client verify {}`\n\
             beside one of them, or `swiftchat-client verify --recovery-key`.",
            client.user_id()
        );
    }
    Ok(())
}

fn password(options: &Login) -> Result<Zeroizing<String>, Failure> {
    match &options.password_file {
        Some(path) => {
            let file =
                File::open(path).map_err(|source| Failure::File { action: "read", path: path.clone(), source })?;
            asking::secret_from(file)
        }
        None if options.password_stdin => asking::secret_from(std::io::stdin()),
        None => asking::secret(
            "Password: ",
            "there is no terminal to ask for the password: give --password-stdin or --password-file",
        ),
    }
}

async fn homeserver(options: &Login) -> Result<Url, Failure> {
    if let Some(address) = &options.homeserver {
        return web_address(address);
    }
    let user = UserId::parse(&options.user).map_err(|_| {
        Failure::Usage(format!(
            "`{}` is no user id such as @alice:example.org; else --homeserver is needed",
            options.user
        ))
    })?;
    eprintln!("Looking for the server of {}.", user.server_name());
    Ok(Api::discover(user.server_name()).await?)
}

fn web_address(text: &str) -> Result<Url, Failure> {
    let address = text.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
    Ok(address.ok_or_else(|| Error::NotAServer(text.to_owned()))?)
}

/// Logs out, and deletes what the device knew.
pub(crate) async fn logout(home: &Home) -> Result<(), Failure> {
    let store = home.open().await?;
    let outcome = async {
        let client = Client::restore(store.clone()).await?;
        // Sends what waits, and sees at once whether the server is there.
        match client.sync_once(Duration::ZERO).await {
            Ok(()) | Err(Error::LoggedOut) => client.logout().await,
            Err(error) => Err(error),
        }
    }
    .await;
    store.close().await;
    outcome?;
    home.remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_the_web() {
        assert_eq!(web_address("https://example.org:8448").unwrap().port(), Some(8448));
        for wrong in ["example.org", "example.org:8448", "ftp://example.org", "https://", ""] {
            assert!(matches!(web_address(wrong), Err(Failure::Client(Error::NotAServer(_)))), "{wrong}");
        }
    }
}
