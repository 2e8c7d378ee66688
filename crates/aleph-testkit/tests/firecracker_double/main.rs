//! The program that stands for Firecracker answers as that does, and runs real guests.

mod agent;
mod api;
mod commands;
mod double;
mod http;
mod process;
mod versions;
mod vm;
