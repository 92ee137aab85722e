//! `[media]`: files.

use std::{num::NonZeroU64, path::PathBuf};

use serde::Deserialize;

/// Files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MediaConfig {
    /// Where they are kept, relative to the data folder. The processes of a cluster must share it. Default: `media`.
    pub folder: PathBuf,
    /// Largest file that somebody may upload, in bytes. Default: 52428800.
    pub upload_bytes_max: NonZeroU64,
    /// Largest file that is fetched from another server, in bytes. Default: 104857600.
    pub remote_bytes_max: NonZeroU64,
}

impl Default for MediaConfig {
    fn default() -> Self {
        Self {
            folder: "media".into(),
            upload_bytes_max: const { NonZeroU64::new(50 << 20).unwrap() },
            remote_bytes_max: const { NonZeroU64::new(100 << 20).unwrap() },
        }
    }
}
