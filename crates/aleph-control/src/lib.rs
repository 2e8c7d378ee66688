//! The node as a service.
