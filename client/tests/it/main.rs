//! Clients of ours at whole servers.

mod conversations;
mod hostile;
mod outages;
mod people;
mod relay;
