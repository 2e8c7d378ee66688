//! What is sent to Firecracker, against Firecracker's own description of its API for each version,
//! and a client against peers that do what they should not.
//!
//! | file | what it does |
//! | --- | --- |
//! | `description` | reads the tables `fields.tsv` and `calls.tsv`, and compares bodies with them |
//! | `strategy` | draws calls, right ones and wrong ones |
//! | `conformity` | holds what is drawn against the tables |
//! | `limits` | each wrong value, and what is said of it |
//! | `double` | sends what is drawn to a program that reads it as Firecracker does |
//! | `files` | the configuration file |
//! | `peer`, `client` | a peer that plays a script, and the client |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod conformity;
mod description;
mod double;
mod files;
mod limits;
mod peer;
mod strategy;
