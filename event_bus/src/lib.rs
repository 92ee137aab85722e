//! Wake-ups and ephemeral state, in memory or in Redis.
