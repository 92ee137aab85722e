//! Rooms on both databases: one file a subject.

mod creation;
mod history;
mod house;
mod processes;
mod reading;
mod receipts;
mod redactions;
mod reports;
mod sending;
mod spaces;
mod upgrades;
