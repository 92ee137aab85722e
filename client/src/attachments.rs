//! Files that only the members of a room can read. Client-Server API, "Sending encrypted attachments".
//!
//! AES-256 in counter mode under a key of its own for each file, and the SHA-256 of what the server keeps. Both ways work on pieces, so
//! that a file of any size needs the memory of one. What was decrypted is whole only once [`Decryptor::finish`] has compared the hash;
//! [`save`] shows a file under its name only then.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use aes::cipher::{KeyIvInit as _, StreamCipher as _};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use ruma::{
    OwnedMxcUri,
    events::room::{
        EncryptedFile, EncryptedFileHash, EncryptedFileHashAlgorithm, EncryptedFileHashes, EncryptedFileInfo,
        V2EncryptedFileInfo,
    },
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;
use zeroize::Zeroizing;

use crate::Error;

/// The whole counter block counts, as old files whose counter did not start at zero need it; for others it makes no difference.
type Aes256Ctr = ctr::Ctr128BE<aes::Aes256>;

/// Bytes that are read, encrypted and sent at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Encrypts one file, piece by piece.
pub struct Encryptor {
    cipher: Aes256Ctr,
    hash: Sha256,
    info: V2EncryptedFileInfo,
}

/// What the members of the room need to read a file, but for where it is.
#[derive(Debug, Clone)]
pub struct Encrypted {
    info: V2EncryptedFileInfo,
    sha256: [u8; 32],
}

impl Encryptor {
    /// Starts a file with a key and an initialization vector of its own.
    #[must_use]
    pub fn new() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(&mut key[..]);
        // The counter is the second half and starts at zero.
        let mut iv = [0; 16];
        rand::fill(&mut iv[..8]);
        Self::with(&key, iv)
    }

    fn with(key: &Zeroizing<[u8; 32]>, iv: [u8; 16]) -> Self {
        let cipher = Aes256Ctr::new((&**key).into(), (&iv).into());
        Self { cipher, hash: Sha256::new(), info: V2EncryptedFileInfo::encode(**key, iv) }
    }

    /// Encrypts the next piece in place.
    pub fn apply(&mut self, piece: &mut [u8]) {
        self.cipher.apply_keystream(piece);
        self.hash.update(&*piece);
    }

    /// Ends the file.
    #[must_use]
    pub fn finish(self) -> Encrypted {
        Encrypted { info: self.info, sha256: self.hash.finalize().into() }
    }
}

impl Default for Encryptor {
    fn default() -> Self {
        Self::new()
    }
}

impl Encrypted {
    /// What goes into the event, once the server has said where the file is.
    #[must_use]
    pub fn at(self, url: OwnedMxcUri) -> EncryptedFile {
        EncryptedFile::new(url, self.info.into(), EncryptedFileHashes::with_sha256(self.sha256))
    }
}

/// Decrypts one file, piece by piece. Nothing of it is to be believed before [`Self::finish`].
pub struct Decryptor {
    cipher: Aes256Ctr,
    hash: Sha256,
    sha256: [u8; 32],
}

impl Decryptor {
    /// Starts with what the event says of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when the file is of another version than `v2`, or has no SHA-256.
    pub fn new(file: &EncryptedFile) -> Result<Self, Error> {
        let EncryptedFileInfo::V2(info) = &file.info else {
            return Err(Error::Forged("the file is encrypted in an unknown way"));
        };
        let Some(EncryptedFileHash::Sha256(sha256)) = file.hashes.get(&EncryptedFileHashAlgorithm::Sha256) else {
            return Err(Error::Forged("the file has no SHA-256"));
        };
        let cipher = Aes256Ctr::new(info.k.as_inner().into(), info.iv.as_inner().into());
        Ok(Self { cipher, hash: Sha256::new(), sha256: *sha256.as_inner() })
    }

    /// Decrypts the next piece in place.
    ///
    /// # Errors
    ///
    /// [`Error::AttachmentChanged`] when the key stream ends, as it never does for a file that somebody could have sent.
    pub fn apply(&mut self, piece: &mut [u8]) -> Result<(), Error> {
        self.hash.update(&*piece);
        self.cipher.try_apply_keystream(piece).map_err(|_| Error::AttachmentChanged)
    }

    /// Compares the hash of all that came with that of the event.
    ///
    /// # Errors
    ///
    /// [`Error::AttachmentChanged`] when it is another: everything that was decrypted is to be thrown away.
    pub fn finish(self) -> Result<(), Error> {
        let same = self.hash.finalize().as_slice().ct_eq(&self.sha256);
        if bool::from(same) { Ok(()) } else { Err(Error::AttachmentChanged) }
    }
}

/// What `file` holds, as it is asked for.
pub fn read<R: AsyncRead + Unpin + Send + 'static>(file: R) -> ReaderStream<R> {
    ReaderStream::with_capacity(file, PIECE_BYTES)
}

/// Encrypts what `file` holds as it is asked for. What belongs into the event is known when the last piece was taken.
pub fn encrypt(
    file: impl AsyncRead + Unpin + Send + 'static,
) -> (impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, Encrypting) {
    let encrypting = Encrypting(Arc::new(Mutex::new(Encryptor::new())));
    let encryptor = encrypting.0.clone();
    let pieces = read(file).map(move |piece| {
        let mut piece = Vec::from(piece?);
        encryptor.lock().expect("encryption does not panic").apply(&mut piece);
        Ok(piece.into())
    });
    (pieces, encrypting)
}

/// A file on its way.
pub struct Encrypting(Arc<Mutex<Encryptor>>);

impl Encrypting {
    /// What belongs into the event, for all pieces that were taken. A server that has a file of another length has another file.
    #[must_use]
    pub fn finish(self) -> Encrypted {
        let encryptor = self.0.lock().expect("encryption does not panic");
        Encrypted { info: encryptor.info.clone(), sha256: encryptor.hash.clone().finalize().into() }
    }
}

/// Writes what the server gives into the file at `path`, decrypted if there is a `decryptor`. The file exists only when everything is there and
/// right.
///
/// # Errors
///
/// [`Error::AttachmentChanged`] when it is not what was sent, [`Error::TooLarge`] beyond `bytes_max`, [`Error::File`] when the disk
/// fails, and those of `pieces`. In all cases `path` is as it was.
pub async fn save(
    pieces: impl Stream<Item = Result<Bytes, Error>>,
    mut decryptor: Option<Decryptor>,
    path: &Path,
    bytes_max: u64,
) -> Result<u64, Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable to this user only, and gone when we return early.
    let unfinished = tempfile::NamedTempFile::new_in(folder)?;
    let mut output = tokio::fs::File::from_std(unfinished.reopen()?);
    let (mut pieces, mut bytes) = (std::pin::pin!(pieces), 0);
    while let Some(piece) = pieces.next().await {
        let mut piece = Vec::from(piece?);
        bytes += piece.len() as u64;
        if bytes > bytes_max {
            return Err(Error::TooLarge { bytes_max });
        }
        if let Some(decryptor) = &mut decryptor {
            decryptor.apply(&mut piece)?;
        }
        output.write_all(&piece).await?;
    }
    decryptor.map_or(Ok(()), Decryptor::finish)?;
    // Only this tells that the last piece could not be written.
    output.flush().await?;
    output.sync_all().await?;
    unfinished.persist(path).map_err(|error| error.error)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use ruma::mxc_uri;

    use super::*;

    fn event_of(encrypted: Encrypted) -> EncryptedFile {
        // As it travels: written into an event, and read from it.
        let file = encrypted.at(mxc_uri!("mxc://example.org/file").to_owned());
        serde_json::from_str(&serde_json::to_string(&file).expect("it is written")).expect("it is read")
    }

    async fn encrypted(plaintext: Vec<u8>) -> (Vec<Bytes>, EncryptedFile) {
        let (pieces, file) = encrypt(std::io::Cursor::new(plaintext));
        let pieces: Vec<Bytes> = pieces.map(|piece| piece.expect("memory can be read")).collect().await;
        (pieces, event_of(file.finish()))
    }

    fn stream(pieces: Vec<Bytes>) -> impl Stream<Item = Result<Bytes, Error>> {
        futures_util::stream::iter(pieces.into_iter().map(Ok))
    }

    /// The ciphertext was made with `openssl enc -aes-256-ctr`, the hash with `sha256sum`.
    #[test]
    fn a_file_is_encrypted_as_openssl_does_it() {
        let key = Zeroizing::new(std::array::from_fn(|n| n as u8));
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&[0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7]);
        let mut encryptor = Encryptor::with(&key, iv);
        let mut text = *b"a secret file, longer than one block";
        let (first, second) = text.split_at_mut(5);
        encryptor.apply(first);
        encryptor.apply(second);
        assert_eq!(hex(&text), "ba2cc9d733a3a78b4ebb70b78dc70e891e36f1aacda0abe4714c1b81d92e58db204bde54");
        let file = serde_json::to_value(event_of(encryptor.finish())).expect("it is written");
        assert_eq!(file["v"], "v2");
        assert_eq!(file["key"]["k"], "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
        assert_eq!(file["key"]["alg"], "A256CTR");
        assert_eq!(file["iv"], "8PHy8/T19vcAAAAAAAAAAA");
        assert_eq!(file["hashes"]["sha256"], "NaFCnbBzVecnR+3CKe5+XuGN94Yjalf+SEElwwIiOPU");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[tokio::test]
    async fn files_of_all_lengths_come_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        for length in [0, 1, 15, 16, 17, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7] {
            let plaintext: Vec<u8> = (0..length).map(|n| (n * 7 % 251) as u8).collect();
            let (pieces, file) = encrypted(plaintext.clone()).await;
            assert!(length < 16 || pieces.concat() != plaintext, "{length}: it is encrypted");
            let path = folder.path().join(length.to_string());
            let bytes =
                save(stream(pieces), Decryptor::new(&file).ok(), &path, 1 << 30).await.expect("it is decrypted");
            assert_eq!(bytes, length as u64);
            assert_eq!(std::fs::read(&path).expect("the file is there"), plaintext);
        }
    }

    #[tokio::test]
    async fn each_file_has_a_key_of_its_own_and_a_counter_from_zero() {
        let (first, second) = (encrypted(vec![0; 64]).await, encrypted(vec![0; 64]).await);
        assert_ne!(first.0, second.0);
        for (_, file) in [first, second] {
            let EncryptedFileInfo::V2(info) = &file.info else { panic!("version 2 is written") };
            assert_eq!(info.iv.as_inner()[8..], [0; 8]);
        }
    }

    #[tokio::test]
    async fn a_file_that_the_server_changed_never_appears() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let (pieces, file) = encrypted(vec![7; 100_000]).await;
        let mut flipped = pieces.concat();
        flipped[99_999] ^= 1;
        let mut longer = pieces.concat();
        longer.push(0);
        for changed in [flipped, longer, pieces.concat()[..99_999].to_vec(), Vec::new()] {
            let result = save(stream(vec![changed.into()]), Decryptor::new(&file).ok(), &path, 1 << 30).await;
            assert!(matches!(result, Err(Error::AttachmentChanged)), "{result:?}");
        }
        let result = save(stream(pieces), Decryptor::new(&file).ok(), &path, 99_999).await;
        assert!(matches!(result, Err(Error::TooLarge { bytes_max: 99_999 })), "{result:?}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_file_without_a_hash_or_of_another_version_is_refused() {
        let whole = serde_json::to_value(event_of(Encryptor::new().finish())).expect("it is written");
        for (field, value) in [("hashes", serde_json::json!({})), ("v", "v3".into())] {
            let mut changed = whole.clone();
            changed[field] = value;
            let file: EncryptedFile = serde_json::from_value(changed).expect("it is read");
            assert!(matches!(Decryptor::new(&file), Err(Error::Forged(_))), "{field}");
        }
    }
}
