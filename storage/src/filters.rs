//! Filters that clients have uploaded.

use model::UserNr;

use crate::{Error, Storage, db::args, statement::statements};

statements! {
    GET_FILTER = ["SELECT content FROM filters WHERE user_nr = $1 AND filter_nr = $2"];
    FIND_FILTER = ["SELECT filter_nr FROM filters WHERE user_nr = $1 AND hash = $2"];
    INSERT_FILTER = ["
        INSERT INTO filters (user_nr, filter_nr, hash, content)
        SELECT $1, coalesce(max(filter_nr), -1) + 1, $2, $3 FROM filters WHERE user_nr = $1 HAVING count(*) < $4
        ON CONFLICT DO NOTHING"];
    LOCK_USER = ["SELECT user_nr FROM users WHERE user_nr = $1", (for_update)];
}

impl Storage {
    /// A filter.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_filter(&self, user_nr: UserNr, filter_nr: i64) -> Result<Option<String>, Error> {
        self.db().read_one(&GET_FILTER, args![user_nr, filter_nr]).await?.map(|row| row.get(0)).transpose()
    }

    /// The number of a filter with this content; a new one gets one. `None` when the user has `count_max` already.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_filter(
        &self,
        user_nr: UserNr,
        hash: [u8; 32],
        content: &str,
        count_max: i64,
    ) -> Result<Option<i64>, Error> {
        let find = || args![user_nr, hash.to_vec()];
        if let Some(row) = self.db().read_one(&FIND_FILTER, find()).await? {
            return row.get(0).map(Some);
        }
        let mut tx = self.db().begin().await?;
        tx.fetch(&LOCK_USER, args![user_nr]).await?;
        tx.execute(&INSERT_FILTER, args![user_nr, hash.to_vec(), content, count_max]).await?;
        let row = tx.fetch_one(&FIND_FILTER, find()).await?;
        tx.commit().await?;
        row.map(|row| row.get(0)).transpose()
    }
}
