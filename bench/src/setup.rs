//! Makes the users and rooms that a measurement needs, several requests at a time.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    process::Processes,
    report::progress,
};

/// A room and who is in it.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) id: String,
    /// Indexes into the users; the first created it.
    pub(crate) members: Vec<usize>,
}

/// How many of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) users: usize,
    pub(crate) rooms: usize,
    /// Members of each room, at most as many as there are users.
    pub(crate) members: usize,
    /// Messages in each room, sent by its members in turn.
    pub(crate) messages: usize,
    pub(crate) text_bytes: usize,
}

/// Users and rooms.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) users: Vec<User>,
    pub(crate) rooms: Vec<Room>,
}

/// The connection number `index` to a target that may have several addresses.
pub(crate) fn connection(target: &Target, index: usize) -> Connection {
    Connection::new(target.url[index % target.url.len()].clone())
}

/// The processes to be measured.
pub(crate) fn processes(target: &Target) -> Processes {
    Processes { server: target.pid.clone(), database: target.database_pid.clone() }
}

/// A word that differs from run to run, for user names and transaction ids.
pub(crate) fn run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("bench{:x}", now.as_millis())
}

/// Makes the world of a plan.
pub(crate) async fn build(target: &Target, plan: Plan) -> Result<World> {
    let run: Arc<str> = run_name().into();
    progress(&format!("registering {} users", plan.users));
    let secret = target.registration_shared_secret.clone();
    let users: Vec<User> = parallel(target, plan.users, {
        move |mut connection, index| {
            let (name, secret) = (format!("{run}u{index}"), secret.clone());
            async move {
                let user = matrix::register(&mut connection, &name, secret.as_deref()).await;
                (connection, user)
            }
        }
    })
    .await?;
    let rooms = add_rooms(target, &users, plan).await?;
    Ok(World { users, rooms })
}

/// Makes the rooms of a plan for users who are there.
pub(crate) async fn add_rooms(target: &Target, users: &[User], plan: Plan) -> Result<Vec<Room>> {
    let users: Arc<[User]> = users.into();
    progress(&format!("making {} rooms with {} members each", plan.rooms, plan.members));
    let members: Vec<Vec<usize>> =
        (0..plan.rooms).map(|room| members_of(room, plan.members, plan.users)).collect::<Vec<_>>();
    let members: Arc<[Vec<usize>]> = members.into();
    let ids: Arc<[String]> = parallel(target, plan.rooms, {
        let (users, members) = (users.clone(), members.clone());
        move |mut connection, room| {
            let creator = users[members[room][0]].clone();
            async move {
                let id = matrix::create_public_room(&mut connection, &creator, &format!("room {room}")).await;
                (connection, id)
            }
        }
    })
    .await?
    .into();

    let joins: Arc<[(usize, usize)]> = members
        .iter()
        .enumerate()
        .flat_map(|(room, members)| members.iter().skip(1).map(move |member| (room, *member)))
        .collect();
    parallel(target, joins.len(), {
        let (users, ids, joins) = (users.clone(), ids.clone(), joins.clone());
        move |mut connection, index| {
            let (room, member) = joins[index];
            let (user, id) = (users[member].clone(), ids[room].clone());
            async move {
                let joined = matrix::join(&mut connection, &user, &id).await;
                (connection, joined)
            }
        }
    })
    .await?;

    if plan.messages > 0 {
        progress(&format!("sending {} messages into each room", plan.messages));
        parallel(target, plan.rooms, {
            let (users, members, ids) = (users.clone(), members.clone(), ids.clone());
            move |mut connection, room| {
                let (users, members, ids) = (users.clone(), members.clone(), ids.clone());
                async move {
                    let sent = send_messages(&mut connection, &users, &members[room], &ids[room], plan).await;
                    (connection, sent)
                }
            }
        })
        .await?;
    }
    let rooms = ids.iter().zip(members.iter()).map(|(id, members)| Room { id: id.clone(), members: members.clone() });
    Ok(rooms.collect())
}

async fn send_messages(
    connection: &mut Connection,
    users: &[User],
    members: &[usize],
    room_id: &str,
    plan: Plan,
) -> Result<()> {
    let path = matrix::send_path(room_id);
    for message in 0..plan.messages {
        let user = &users[members[message % members.len()]];
        let body = matrix::numbered_message(message as u64, plan.text_bytes);
        matrix::send(connection, user, &path, &format!("setup{message}"), body).await?;
    }
    Ok(())
}

/// The members of a room: as many users as asked for, another stretch of them for each room, without doubles.
fn members_of(room: usize, members: usize, users: usize) -> Vec<usize> {
    assert!(users > 0);
    (0..members.min(users)).map(|member| (room * members + member) % users).collect()
}

/// Does `count` things on the connections of the setup; the results come in the order of their numbers.
pub(crate) async fn parallel<Work, Done, Output>(target: &Target, count: usize, work: Work) -> Result<Vec<Output>>
where
    Work: Fn(Connection, usize) -> Done + Clone + Send + 'static,
    Done: Future<Output = (Connection, Result<Output>)> + Send,
    Output: Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for worker in 0..usize::from(target.setup_connections).min(count) {
        let (next, work) = (next.clone(), work.clone());
        let mut connection = connection(target, worker);
        tasks.spawn(async move {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(done);
                }
                let (returned, output) = work(connection, index).await;
                connection = returned;
                done.push((index, output?));
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        let done: Result<Vec<(usize, Output)>> = done.context("a task of the setup failed")?;
        all.extend(done?);
    }
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, output)| output).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_take_other_users_in_turn_and_nobody_twice() {
        assert_eq!(members_of(0, 3, 10), [0, 1, 2]);
        assert_eq!(members_of(3, 3, 10), [9, 0, 1]);
        assert_eq!(members_of(1, 100, 4), [0, 1, 2, 3]);
    }
}
