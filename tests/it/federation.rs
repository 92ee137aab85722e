//! Federation: how servers find, know and ask each other.

mod devices;
mod directory;
mod edus;
mod examination;
mod guest;
mod handshakes;
mod invitations;
mod invited;
mod joining;
mod joining_peers;
mod keys;
mod openid;
mod policy_servers;
mod profiles;
mod requests;
mod resolution;
mod sending;
mod server_acls;
mod server_lists;
mod serving;
mod spaces;
mod strangers;
mod transactions;
mod well_known;
