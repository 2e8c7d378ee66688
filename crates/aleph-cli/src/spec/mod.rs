//! Job specifications from words, environment files and job files.
//!
//! | file | what it is |
//! | --- | --- |
//! | `flags` | the flags that describe a job, and how they change a specification |
//! | `file` | a specification in JSON, TOML or YAML |
//! | `env` | environment variables from words and files |

mod env;
mod file;
mod flags;

pub(crate) use env::{environment, term};
pub(crate) use file::read;
pub(crate) use flags::JobFlags;
