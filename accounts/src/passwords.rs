//! Passwords: argon2id, on blocking threads, a few at a time.

use std::sync::{Arc, OnceLock};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use model::Random;
use tokio::sync::Semaphore;

use crate::Error;

/// Most passwords that wait for their turn: what comes beyond is told to try again.
const WAITING_MAX: usize = 500;
/// Longest password, in bytes.
pub(crate) const PASSWORD_BYTES_MAX: usize = 512;

/// Hashes passwords and compares with hashes.
pub(crate) struct Passwords {
    random: Random,
    params: Params,
    /// One hash takes 19 MiB and one core: as many at a time as there are cores.
    turns: Arc<Semaphore>,
    /// Those that wait and those whose turn it is.
    places: Arc<Semaphore>,
    /// What the password of a user is compared with who does not exist, so that the answer takes as long.
    nobody: OnceLock<String>,
}

impl Passwords {
    pub(crate) fn new(random: Random, cheap: bool) -> Self {
        let params =
            if cheap { Params::new(Params::MIN_M_COST, 1, 1, None).unwrap_or_default() } else { Params::default() };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            random,
            params,
            turns: Arc::new(Semaphore::new(cores)),
            places: Arc::new(Semaphore::new(WAITING_MAX + cores)),
            nobody: OnceLock::new(),
        }
    }

    /// Checks that a password may be chosen.
    pub(crate) fn check(password: &str) -> Result<(), Error> {
        match password.len() {
            0 => Err(Error::WeakPassword("a password must not be empty")),
            1..=PASSWORD_BYTES_MAX => Ok(()),
            _ => Err(Error::InvalidParam(format!("a password may have at most {PASSWORD_BYTES_MAX} bytes"))),
        }
    }

    /// What is kept of a password: text in the PHC format, with its own salt and parameters.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, Error> {
        Self::check(password)?;
        let (password, salt, argon2) = (password.to_owned(), self.random.bytes::<16>(), self.argon2());
        self.run(move || {
            let hash = argon2.hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|error| Error::Hashing(error.to_string()))
        })
        .await?
    }

    /// Whether the password is that of the hash. Without a hash it is not, after the same time.
    pub(crate) async fn verify(&self, password: &str, hash: Option<String>) -> Result<bool, Error> {
        // A longer one cannot have been chosen.
        let fits = password.len() <= PASSWORD_BYTES_MAX;
        let exists = hash.is_some();
        let hash = match hash {
            Some(hash) => hash,
            None => self.hash_of_nobody().await?,
        };
        let (password, argon2) = (if fits { password.to_owned() } else { String::new() }, self.argon2());
        let is_same = self
            .run(move || {
                PasswordHash::new(&hash).is_ok_and(|hash| argon2.verify_password(password.as_bytes(), &hash).is_ok())
            })
            .await?;
        Ok(is_same && exists && fits)
    }

    async fn hash_of_nobody(&self) -> Result<String, Error> {
        if let Some(hash) = self.nobody.get() {
            return Ok(hash.clone());
        }
        let hash = self.hash(&self.random.secret()).await?;
        Ok(self.nobody.get_or_init(|| hash).clone())
    }

    fn argon2(&self) -> Argon2<'static> {
        Argon2::new(Algorithm::Argon2id, Version::V0x13, self.params.clone())
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _place = self.places.try_acquire().map_err(|_| Error::Busy)?;
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| Error::Busy)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|error| Error::Hashing(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_chosen_password_is_right() {
        let passwords = Passwords::new(Random::seeded(1), true);
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(passwords.verify("correct horse", Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct hors", Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
        assert!(!passwords.verify(&"x".repeat(PASSWORD_BYTES_MAX + 1), Some(hash.clone())).await.unwrap());
        assert_ne!(passwords.hash("correct horse").await.unwrap(), hash, "each has its own salt");
    }

    #[tokio::test]
    async fn an_empty_or_endless_password_is_refused() {
        let passwords = Passwords::new(Random::seeded(1), true);
        assert!(matches!(passwords.hash("").await, Err(Error::WeakPassword(_))));
        assert!(matches!(passwords.hash(&"x".repeat(513)).await, Err(Error::InvalidParam(_))));
    }
}
