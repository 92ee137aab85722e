//! What other servers' transactions were answered.

use model::{Clock, Random};

use crate::{
    Commit, NewReceivedTransaction, ReceivedTransactionKey, Storage, received_transactions::KEPT_MS,
    testing::TestDatabase,
};

fn key(destination: &str, origin: &str, id: &str) -> ReceivedTransactionKey {
    ReceivedTransactionKey {
        destination: destination.try_into().unwrap(),
        origin: origin.try_into().unwrap(),
        transaction_id: id.to_owned(),
    }
}

async fn answer(storage: &Storage, key: &ReceivedTransactionKey, answer: &str) {
    let new = NewReceivedTransaction { key: key.clone(), answer: answer.to_owned() };
    storage.commit(Commit { received_transactions: vec![new], ..Commit::default() }).await.unwrap();
}

#[tokio::test]
async fn the_first_answer_to_a_transaction_counts_until_it_is_old() {
    for database in TestDatabase::each().await {
        let clock = Clock::manual(1_700_000_000_000);
        let storage = Storage::open(database.options.clone(), clock.clone(), Random::seeded(1)).await.unwrap();
        let known = key("one.test", "other.test", "t");
        answer(&storage, &known, "first").await;
        answer(&storage, &known, "second").await;
        assert_eq!(storage.find_received_transaction(&known).await.unwrap().as_deref(), Some("first"));
        for unknown in
            [key("two.test", "other.test", "t"), key("one.test", "one.test", "t"), key("one.test", "other.test", "u")]
        {
            assert_eq!(storage.find_received_transaction(&unknown).await.unwrap(), None, "{unknown:?}");
        }
        clock.advance_ms(KEPT_MS);
        storage.clean().await.unwrap();
        assert!(storage.find_received_transaction(&known).await.unwrap().is_some());
        clock.advance_ms(1);
        storage.clean().await.unwrap();
        assert_eq!(storage.find_received_transaction(&known).await.unwrap(), None);
    }
}
