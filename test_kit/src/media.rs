//! Files that people upload and download.

use crate::{Answer, TestUser, encode};

impl TestUser {
    /// Uploads a file; gives its `mxc://` URI.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn upload(&self, content_type: &str, name: &str, bytes: impl Into<bytes::Bytes>) -> String {
        let answer = self.try_upload(content_type, &format!("?filename={}", encode(name)), bytes).await.ok();
        answer["content_uri"].as_str().unwrap_or_else(|| panic!("{answer} lacks a URI")).to_owned()
    }

    /// Uploads a file that may be refused.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn try_upload(&self, content_type: &str, query: &str, bytes: impl Into<bytes::Bytes>) -> Answer {
        let path = format!("/_matrix/media/v3/upload{query}");
        let answer = self.http().send("POST", path.as_bytes(), Some(self.token()), Some(content_type), bytes).await;
        answer.unwrap_or_else(|failure| panic!("an upload: {failure:?}"))
    }

    /// Downloads a file, with more headers.
    pub async fn download_with(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        let token = format!("Bearer {}", self.token());
        let headers = [headers, &[("authorization", &token)]].concat();
        self.http().request_with("GET", &download_path(uri), &headers).await
    }

    /// Downloads a file.
    pub async fn download(&self, uri: &str) -> Answer {
        self.download_with(uri, &[]).await
    }
}

/// Where a file is to be had.
///
/// # Panics
///
/// When this is no `mxc://` URI.
#[must_use]
pub fn download_path(uri: &str) -> String {
    let id = uri.strip_prefix("mxc://").unwrap_or_else(|| panic!("{uri} is no mxc:// URI"));
    format!("/_matrix/client/v1/media/download/{id}")
}
