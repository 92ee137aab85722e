//! `download`: the file of a message.

use std::path::{Path, PathBuf};

use client::{Client, RoomEvent, Secrecy};
use ruma::api::client::room::get_room_event;
use serde_json::Value;

use crate::{
    arguments::Download,
    failure::Failure,
    rooms,
    show::{print, safe_line},
};

pub(crate) async fn download(client: &Client, options: &Download) -> Result<(), Failure> {
    let room_id = rooms::find_joined(client, &options.room).await?.room_id;
    let request = get_room_event::v3::Request::new(room_id.clone(), options.event.clone());
    let answer = client.api().send(request).await?;
    let unreadable = || Failure::Refused("the server's answer is no event".to_owned());
    let event: Value = serde_json::from_str(answer.event.json().get()).map_err(|_| unreadable())?;
    let event = client.read(&room_id, &[event]).await?.pop().ok_or_else(unreadable)?;
    if let Secrecy::Undecryptable(reason) = &event.secrecy {
        return Err(Failure::NotTrusted(format!("the message cannot be read: {reason}")));
    }
    let path = match &options.output {
        Some(path) => path.clone(),
        None => own_name(&event)?,
    };
    let bytes_max = u64::from(options.max_size) << 20;
    client.download_file(&event.content, &path, bytes_max).await?;
    print(safe_line(&path.display().to_string()))?;
    Ok(())
}

/// The name that the sender gave the file, in this folder and nowhere else. Replaces nothing.
fn own_name(event: &RoomEvent) -> Result<PathBuf, Failure> {
    let said =
        event.content.get("filename").or_else(|| event.content.get("body")).and_then(Value::as_str).unwrap_or_default();
    let name = file_name(said)
        .ok_or_else(|| Failure::Refused("the file has no name that can be used; --output gives it one".to_owned()))?;
    if Path::new(&name).exists() {
        return Err(Failure::Refused(format!("{name} exists already; --output names another file")));
    }
    Ok(name.into())
}

/// The last part of a name, if it is not hidden.
fn file_name(said: &str) -> Option<String> {
    let name = said.rsplit(['/', '\\']).next().map(safe_line)?;
    (!name.is_empty() && !name.starts_with('.')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_in_the_folder_and_is_not_hidden() {
        for (said, name) in [
            ("cat.png", Some("cat.png")),
            ("../../etc/passwd", Some("passwd")),
            ("C:\\autoexec.bat", Some("autoexec.bat")),
            ("/home/alice/.bashrc", None),
            ("..", None),
            ("folder/", None),
            ("a\nb", Some("a b")),
        ] {
            assert_eq!(file_name(said).as_deref(), name, "{said}");
        }
    }
}
