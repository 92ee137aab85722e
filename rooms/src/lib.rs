//! Events, authorization, state, membership, receipts and typing.
