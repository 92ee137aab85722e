//! What `mxc://` URIs stand for, and which contents there are.

use model::UserNr;
use ruma::ServerName;

use crate::{
    Error, Storage,
    db::{Row, args},
    statement::{Statement, statements},
};

statements! {
    INSERT_CONTENT = ["
        INSERT INTO media_contents (hash, length, created_at_ms) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING"];
    /// What was cached of another server is replaced when it was fetched again.
    UPSERT_MEDIA = ["
        INSERT INTO media (server_name, media_id, hash, content_type, file_name, uploader_nr, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (server_name, media_id) DO UPDATE
           SET hash = excluded.hash, content_type = excluded.content_type, file_name = excluded.file_name,
               created_at_ms = excluded.created_at_ms"];
    COUNT_PENDING_MEDIA = ["SELECT count(*) FROM media WHERE uploader_nr = $1 AND expires_at_ms > $2"];
    INSERT_PENDING_MEDIA = ["
        INSERT INTO media (server_name, media_id, uploader_nr, created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4, $5)"];
    FILL_PENDING_MEDIA = ["
        UPDATE media SET hash = $3, content_type = $4, file_name = $5, expires_at_ms = NULL
         WHERE server_name = $1 AND media_id = $2 AND expires_at_ms > $6"];
    GET_MEDIA = ["
        SELECT m.hash, c.length, m.content_type, m.file_name, m.uploader_nr, m.created_at_ms, m.expires_at_ms
          FROM media m LEFT JOIN media_contents c ON c.hash = m.hash
         WHERE m.server_name = $1 AND m.media_id = $2"];
    DELETE_OLD_PENDING = ["
        DELETE FROM media WHERE (server_name, media_id) IN
               (SELECT server_name, media_id FROM media WHERE expires_at_ms < $1 LIMIT $2)"];
}

/// Of URIs that were to be uploaded to before a time.
pub(crate) const DELETE_OLD_PENDING_MEDIA: &Statement = &DELETE_OLD_PENDING;

/// Names content: the SHA-256 of its bytes.
pub type ContentHash = [u8; 32];

/// Content that is in the media store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaContent {
    /// Its name.
    pub hash: ContentHash,
    /// Its length in bytes.
    pub length: u64,
}

/// What was said of a file by whoever uploaded it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MediaDescription {
    /// Its type, as in a `Content-Type` header.
    pub content_type: Option<String>,
    /// Its name.
    pub file_name: Option<String>,
}

/// What an `mxc://` URI stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaRow {
    /// The content; nothing while it is not uploaded yet.
    pub content: Option<MediaContent>,
    /// What was said of it.
    pub description: MediaDescription,
    /// Which of our users uploaded it or is to; nobody for media of other servers.
    pub uploader: Option<UserNr>,
    /// When it was uploaded or created, or fetched from another server.
    pub created_at_ms: i64,
    /// Until when it is to be uploaded, if it is not yet.
    pub expires_at_ms: Option<i64>,
}

impl Storage {
    /// Keeps a file under a URI: uploaded by a user of ours, or fetched from another server. Its bytes are in the media store.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_media(
        &self,
        (server_name, media_id): (&ServerName, &str),
        content: MediaContent,
        description: &MediaDescription,
        uploader: Option<UserNr>,
    ) -> Result<(), Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        tx.execute(&INSERT_CONTENT, args![content.hash.to_vec(), length_of(content), now_ms]).await?;
        let args = args![
            server_name.as_str(),
            media_id,
            content.hash.to_vec(),
            description.content_type.as_deref(),
            description.file_name.as_deref(),
            uploader.map(|user| user.0),
            now_ms,
        ];
        tx.execute(&UPSERT_MEDIA, args).await?;
        tx.commit().await
    }

    /// Creates a URI that its user is to upload to before its end; `false` when the user has `pending_max` of such already.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_pending_media(
        &self,
        (server_name, media_id): (&ServerName, &str),
        uploader: UserNr,
        expires_at_ms: i64,
        pending_max: i64,
    ) -> Result<bool, Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        let pending = tx.fetch_one(&COUNT_PENDING_MEDIA, args![uploader, now_ms]).await?;
        if pending.map(|row| row.get::<i64>(0)).transpose()?.unwrap_or(0) >= pending_max {
            tx.rollback().await?;
            return Ok(false);
        }
        let args = args![server_name.as_str(), media_id, uploader, now_ms, expires_at_ms];
        tx.execute(&INSERT_PENDING_MEDIA, args).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Gives a URI that was created its content; `false` when it has some already, has ended, or was never created.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn fill_pending_media(
        &self,
        (server_name, media_id): (&ServerName, &str),
        content: MediaContent,
        description: &MediaDescription,
    ) -> Result<bool, Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        tx.execute(&INSERT_CONTENT, args![content.hash.to_vec(), length_of(content), now_ms]).await?;
        let args = args![
            server_name.as_str(),
            media_id,
            content.hash.to_vec(),
            description.content_type.as_deref(),
            description.file_name.as_deref(),
            now_ms,
        ];
        if tx.execute(&FILL_PENDING_MEDIA, args).await? == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// What a URI stands for; nothing when it is not known here.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_media(&self, server_name: &ServerName, media_id: &str) -> Result<Option<MediaRow>, Error> {
        let row = self.db().read_one(&GET_MEDIA, args![server_name.as_str(), media_id]).await?;
        row.as_ref().map(media_of).transpose()
    }
}

fn length_of(content: MediaContent) -> i64 {
    i64::try_from(content.length).expect("no file is that large")
}

fn media_of(row: &Row) -> Result<MediaRow, Error> {
    let damaged = || Error::Damaged("the content of a media id".to_owned());
    let content = match row.get::<Option<Vec<u8>>>(0)? {
        Some(hash) => {
            let length = row.get::<Option<i64>>(1)?.ok_or_else(damaged)?;
            Some(MediaContent {
                hash: hash.try_into().map_err(|_| damaged())?,
                length: u64::try_from(length).map_err(|_| damaged())?,
            })
        }
        None => None,
    };
    Ok(MediaRow {
        content,
        description: MediaDescription { content_type: row.get(2)?, file_name: row.get(3)? },
        uploader: row.maybe_nr(4)?,
        created_at_ms: row.get(5)?,
        expires_at_ms: row.get(6)?,
    })
}
