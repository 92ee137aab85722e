//! Clients of ours at whole servers.

mod conversations;
mod files;
mod hostile;
mod outages;
mod people;
mod recovery;
mod relay;
mod trust;
