//! `send`: a text, files, or both.

use std::{io::Read as _, path::Path};

use client::{Client, Error, NewFile};
use ruma::{OwnedEventId, RoomId};

use crate::{arguments::Send, failure::Failure, rooms, show};

/// Longest text, in bytes: an event is not larger. Client-Server API, "Size limits".
const TEXT_BYTES_MAX: u64 = 65_536;

pub(crate) async fn send(client: &Client, options: Send) -> Result<(), Failure> {
    let room_id = rooms::find_joined(client, &options.room).await?.room_id;
    for path in &options.file {
        show::print(send_file(client, &room_id, path).await?)?;
    }
    if let Some(text) = options.text {
        let text = if text == "-" { all_of_stdin()? } else { text };
        if text.is_empty() {
            return Err(Failure::Usage("there is nothing to send".to_owned()));
        }
        show::print(client.send_text(&room_id, &text).await?)?;
    }
    Ok(())
}

fn all_of_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin().take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Failure::Input)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Error::TooLarge { bytes_max: TEXT_BYTES_MAX }.into());
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Sends a file under its own name, and says on a terminal how far it is.
pub(crate) async fn send_file(client: &Client, room_id: &RoomId, path: &Path) -> Result<OwnedEventId, Failure> {
    let failed = |source| Failure::File { action: "send", path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::Refused(format!("{} is not a file", path.display())));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let content_type = mime_guess::from_path(path).first_raw().unwrap_or("application/octet-stream");
    let file = NewFile { path, name: &name, content_type };
    Ok(client.send_file(room_id, file, show::progress(&name, metadata.len())).await?)
}
