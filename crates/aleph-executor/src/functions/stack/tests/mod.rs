//! Against a real kernel's TCP, and against guests that mean harm.

mod hostile;
mod kernel;
mod packets;
mod real;
mod taken_over;
