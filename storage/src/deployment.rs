//! The name of the deployment, for what several deployments may share.

use crate::{Error, Storage, db::args, statement::statements};

statements! {
    GET_DEPLOYMENT = ["SELECT id FROM deployment WHERE one = 1"];
    INSERT_DEPLOYMENT = ["INSERT INTO deployment (one, id) VALUES (1, $1) ON CONFLICT (one) DO NOTHING"];
}

impl Storage {
    /// What names this deployment where it shares a Redis with others; chosen by chance, once.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn deployment_id(&self) -> Result<String, Error> {
        if let Some(row) = self.db().read_one(&GET_DEPLOYMENT, args![]).await? {
            return row.get(0);
        }
        self.db().write(&INSERT_DEPLOYMENT, args![self.random().alphanumeric(12)]).await?;
        let row = self.db().read_one(&GET_DEPLOYMENT, args![]).await?;
        row.ok_or_else(|| Error::Damaged("the deployment has no name".to_owned()))?.get(0)
    }
}
