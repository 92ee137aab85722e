//! Who sends, when something goes wrong with it.

use event_bus::Bus;
use model::{Clock, KeyPair, LocalServer, LocalServers, Random};
use outbound::Outbound;
use rooms::Rooms;
use ruma::owned_server_name;
use storage::testing::TestDatabase;
use tokio_util::sync::CancellationToken;

use super::{receipts::Receipt, shares::share_of, stream::Part, *};

/// A sender that nobody runs, with a destination for which something waits.
async fn sender(database: &TestDatabase) -> (Sender, Route) {
    let storage = database.open().await;
    let key = KeyPair::generate(&Random::system());
    let servers = LocalServers::new(vec![LocalServer::new(owned_server_name!("hs1"), key)]);
    let outbound = Outbound::new(outbound::Options {
        allowed_ranges: Vec::new(),
        denied_ranges: Vec::new(),
        name_servers: vec![([127, 0, 0, 1], 9).into()],
        certificate_authorities: Vec::new(),
        user_agent: "test".to_owned(),
        random: Random::system(),
    });
    let outbound = outbound.unwrap();
    let federation = Federation::new(&outbound, storage.clone(), servers.clone(), crate::Options::default()).unwrap();
    let rooms = Rooms::new(storage.clone(), servers, rooms::Options::default());
    let typing = Typing::new(Clock::system(), &Random::system());
    let sync = Sync::start(storage.clone(), rooms, typing.clone(), Bus::memory(), CancellationToken::new());
    let sender = Sender::new(federation, storage, sync, typing, None);
    let route = Route { origin: owned_server_name!("hs1"), destination: owned_server_name!("peer.test") };
    let mut destination = Destination::new(0);
    destination.push_devices(UserNr(1), Position(7));
    {
        let state = &mut *sender.lock();
        state.lease_until_ms = i64::MAX;
        state.destinations.insert(route.clone(), destination);
    }
    (sender, route)
}

fn is_free(sender: &Sender, route: &Route) -> bool {
    let state = sender.lock();
    state.destinations[route].run.is_none() && state.wheel.iter().any(|(_, waiting)| waiting == route)
}

/// Nobody would send to the destination again until its share moves to another process.
#[tokio::test]
async fn a_task_that_panics_leaves_its_place() {
    let database = TestDatabase::sqlite();
    let (sender, route) = sender(&database).await;
    let run = sender.lock().begin_run(&sender, &route).unwrap();
    assert!(sender.lock().begin_run(&sender, &route).is_none(), "one at a time");
    let task = tokio::spawn(async move {
        let _end = run.end_on_drop();
        panic!("as the test wants it");
    });
    assert!(task.await.is_err_and(|error| error.is_panic()));
    assert!(is_free(&sender, &route));
    assert!(sender.lock().begin_run(&sender, &route).is_some());
}

/// What is said of an older run would be believed of what is in flight now.
#[tokio::test]
async fn a_run_whose_destination_was_given_back_says_nothing_of_the_next_one() {
    let database = TestDatabase::sqlite();
    let (sender, route) = sender(&database).await;
    let old = sender.lock().begin_run(&sender, &route).unwrap();
    let mut again = Destination::new(0);
    again.push_devices(UserNr(1), Position(9));
    sender.lock().destinations.insert(route.clone(), again);
    let new = sender.lock().begin_run(&sender, &route).unwrap();
    assert!(matches!(sender.next_step(&new), Step::Make(_)));
    assert!(matches!(sender.next_step(&old), Step::Nothing));
    sender.arrived(&old).await.unwrap();
    drop(old.end_on_drop());
    let mut state = sender.lock();
    assert!(state.of(&new).is_some_and(|destination| destination.in_flight.is_some()));
}

/// A process that was stopped for too long is another one's follower, and must look before it sends.
#[tokio::test]
async fn nothing_is_sent_when_the_lease_is_over() {
    let database = TestDatabase::sqlite();
    let (sender, route) = sender(&database).await;
    let run = sender.lock().begin_run(&sender, &route).unwrap();
    assert!(matches!(sender.next_step(&run), Step::Make(_)));
    sender.lock().lease_until_ms = sender.now_ms();
    assert!(matches!(sender.next_step(&run), Step::Nothing));
    assert!(is_free(&sender, &route), "it is tried when the lease was renewed");
    let mut state = sender.lock();
    assert!(state.destinations.get_mut(&route).is_some_and(|destination| destination.in_flight.is_some()));
}

/// A thousand readers of a room of a thousand servers would be a million requests.
#[tokio::test]
async fn receipts_in_a_room_of_many_servers_wait_for_each_other() {
    let database = TestDatabase::sqlite();
    let (sender, route) = sender(&database).await;
    let share = SenderShare { share: share_of(&route), position: Position(0), fence: 1 };
    sender.lock().shares.insert(share.share, share);
    let receipt = |user| Receipt::of(UserNr(user), Position(10 + user));
    let put = |part| sender.put(vec![(route.clone(), Position(10), part)], None);
    for user in 0..3 {
        put(Part::PatientReceipt(receipt(user)));
    }
    assert!(sender.lock().destinations[&route].run.is_none());
    assert!(sender.lock().destinations[&route].has_receipts());
    put(Part::Receipt(receipt(3)));
    assert!(sender.lock().destinations[&route].run.is_some(), "in a small one they go at once");
}
