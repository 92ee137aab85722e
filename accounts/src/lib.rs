//! Users, devices, tokens, keys and account data.
