//! Files in rooms: encrypted where the room is. Client-Server API, "Sending encrypted attachments".

use std::path::Path;

use futures_util::StreamExt as _;
use ruma::{OwnedEventId, OwnedMxcUri, RoomId, events::room::EncryptedFile};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::Client;
use crate::{
    Error,
    attachments::{self, Decryptor},
    signatures::Object,
};

/// A file to be sent.
pub struct NewFile<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// What others see as its name.
    pub name: &'a str,
    /// Such as `image/png`.
    pub content_type: &'a str,
}

impl Client {
    /// Sends a file: encrypted if the room is. `progress` is told how many bytes have been sent.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be read; [`Error::Unreachable`], also when it changed on the way; else as [`send`](Self::send).
    pub async fn send_file(
        &self,
        room_id: &RoomId,
        file: NewFile<'_>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<OwnedEventId, Error> {
        let is_encrypted = self.room(room_id).await?.encryption.is_some();
        let opened = tokio::fs::File::open(file.path).await?;
        let bytes = opened.metadata().await?.len();
        // What is written to it meanwhile is no part of what was announced.
        let opened = opened.take(bytes);
        let mut content = json!({
            "msgtype": message_type(file.content_type),
            "body": file.name,
            "filename": file.name,
            "info": { "mimetype": file.content_type, "size": bytes },
        });
        let mut sent = 0;
        let count = move |piece: &std::io::Result<bytes::Bytes>| {
            sent += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            progress(sent);
        };
        if is_encrypted {
            let (pieces, encrypted) = attachments::encrypt(opened);
            // What it is is nobody's business but the room's.
            let uri = self.api().upload("application/octet-stream", bytes, pieces.inspect(count)).await?;
            content["file"] = serde_json::to_value(encrypted.finish().at(uri)).expect("a file can be described");
        } else {
            let uri = self.api().upload(file.content_type, bytes, attachments::read(opened).inspect(count)).await?;
            content["url"] = uri.as_str().into();
        }
        self.send(room_id, "m.room.message", &content).await
    }

    /// Gets the file of a message into `path`, which exists only when all of it is there, and, if it was encrypted, is what was sent.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] when the message has no file; [`Error::TooLarge`] beyond `bytes_max`; [`Error::AttachmentChanged`];
    /// [`Error::File`]; [`Error::Unreachable`].
    pub async fn download_file(&self, content: &Object, path: &Path, bytes_max: u64) -> Result<u64, Error> {
        if let Some(file) = content.get("file") {
            let file: EncryptedFile =
                serde_json::from_value(file.clone()).map_err(|_| Error::Malformed("encrypted file"))?;
            let pieces = self.api().download(&file.url).await?;
            return attachments::save(pieces, Some(Decryptor::new(&file)?), path, bytes_max).await;
        }
        let uri = content.get("url").and_then(Value::as_str).map(OwnedMxcUri::from).ok_or(Error::Malformed("file"))?;
        let pieces = self.api().download(&uri).await?;
        attachments::save(pieces, None, path, bytes_max).await
    }
}

/// Client-Server API, "m.room.message msgtypes".
fn message_type(content_type: &str) -> &'static str {
    match content_type.split('/').next() {
        Some("image") => "m.image",
        Some("video") => "m.video",
        Some("audio") => "m.audio",
        _ => "m.file",
    }
}
