//! What goes wrong with a VM's network.

use crate::ipv6::{Ipv6Config, TooNarrow};
use crate::pool::PoolError;
use crate::port::PortTaken;
use aleph_types::{Classify, ErrorClass, Ipv4Network, Ipv6Network};
use std::io;
use std::net::Ipv4Addr;

/// A network that was not made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no address for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A port that it was to have has another owner.
    #[error(transparent)]
    Port(#[from] PortTaken),
    /// The host reaches something else at the pool's addresses.
    #[error("the pool {pool} overlaps {route}, which this host reaches through {device}")]
    Overlap {
        /// The node's pool.
        pool: Ipv4Network,
        /// Where the host has a route to.
        route: Ipv4Network,
        /// By which device.
        device: String,
    },
    /// Guests that run have addresses of another pool.
    #[error("the pool cannot become {pool} while the job {job} has the address {address}")]
    PoolChanged {
        /// What the pool was to be.
        pool: Ipv4Network,
        /// A job that runs.
        job: String,
        /// Its guest's address.
        address: Ipv4Addr,
    },
    /// The node's IPv6 prefix is too small.
    #[error(transparent)]
    Ipv6Narrow(#[from] TooNarrow),
    /// The host reaches something else at addresses of the IPv6 prefix.
    #[error("the IPv6 prefix {prefix} holds {route}, which this host reaches elsewhere")]
    Ipv6Overlap {
        /// The node's prefix.
        prefix: Ipv6Network,
        /// Where the host has a route to.
        route: Ipv6Network,
    },
    /// Guests that run have addresses of another prefix.
    #[error("network.ipv6 cannot become {to} while a job has the prefix {earlier}")]
    Ipv6Changed {
        /// What a guest has.
        earlier: Ipv6Network,
        /// The setting.
        to: Ipv6Config,
    },
    /// The kernel was started without it.
    #[error("this host's kernel has no IPv6")]
    NoIpv6,
    /// The kernel does not let us.
    #[error("this process may not {what}: it lacks CAP_NET_ADMIN")]
    Forbidden {
        /// What was to be done.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel, or this host, lacks something.
    #[error("this host cannot {what}")]
    Unsupported {
        /// What was to be done.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl NetworkError {
    /// An error of the kernel's at an attempt to do `what`.
    pub(crate) fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let what = what.into();
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Self::Forbidden { what, source },
                Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                    Self::Unsupported { what, source }
                }
                _ => Self::Host { what, source },
            }
        }
    }
}

impl Classify for NetworkError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Pool(PoolError::Exhausted { .. }) => ErrorClass::Capacity,
            Self::Port(
                PortTaken::NoIpv6 { .. }
                | PortTaken::Loopback6 { .. }
                | PortTaken::NoAddress { .. },
            )
            | Self::Pool(PoolError::Small(_))
            | Self::Overlap { .. }
            | Self::Ipv6Narrow(_)
            | Self::Ipv6Overlap { .. } => ErrorClass::Invalid,
            Self::Port(_) | Self::PoolChanged { .. } | Self::Ipv6Changed { .. } => {
                ErrorClass::Conflict
            }
            Self::NoIpv6
            | Self::Forbidden { .. }
            | Self::Unsupported { .. }
            | Self::Host { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Pool(PoolError::Exhausted { .. }) => "no_address",
            Self::Pool(PoolError::Small(_)) => "small_pool",
            Self::Port(PortTaken::NoIpv6 { .. } | PortTaken::Loopback6 { .. }) | Self::NoIpv6 => {
                "no_ipv6"
            }
            Self::Port(PortTaken::NoAddress { .. }) => "no_host_address",
            Self::Port(_) => "port_taken",
            Self::Ipv6Narrow(_) => "small_pool",
            Self::Overlap { .. } | Self::Ipv6Overlap { .. } => "pool_overlaps",
            Self::PoolChanged { .. } | Self::Ipv6Changed { .. } => "pool_in_use",
            Self::Forbidden { .. } => "no_net_admin",
            Self::Unsupported { .. } => "no_nf_tables",
            Self::Host { .. } => "network",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Pool(PoolError::Exhausted { .. }) => {
                "Stop a job, wait for the cool-down, or give the node a larger pool (network.pool)."
                    .into()
            }
            Self::Pool(PoolError::Small(_)) => {
                "Give the node a pool of /30 or larger, such as 10.0.0.0/16 (network.pool).".into()
            }
            Self::Port(PortTaken::NoIpv6 { .. }) => {
                "Name an IPv4 address, or give the node's VMs IPv6 (network.ipv6).".into()
            }
            Self::Port(PortTaken::Loopback6 { .. }) => {
                "Name 127.0.0.1, or another address of the host.".into()
            }
            Self::Port(PortTaken::NoAddress { .. } | PortTaken::Other { .. }) => {
                "Name an address of the host, or leave it out.".into()
            }
            Self::Port(_) => "Choose another port, or leave it out and let the node pick.".into(),
            Self::Overlap { .. } => {
                "Give the node a pool that nothing else uses (network.pool).".into()
            }
            Self::PoolChanged { .. } => {
                "Put network.pool back, stop all jobs, and change it then.".into()
            }
            Self::Ipv6Narrow(_) | Self::Ipv6Overlap { .. } => {
                "Give the node a prefix of its own that is routed to this host, such as a /56, or \
                 say \"nat\" (network.ipv6)."
                    .into()
            }
            Self::Ipv6Changed { .. } => {
                "Put network.ipv6 back, stop all jobs, and change it then.".into()
            }
            Self::NoIpv6 => {
                "Start the host without ipv6.disable=1, or say network.ipv6 = \"off\".".into()
            }
            Self::Forbidden { .. } => {
                "Run the node as root or with CAP_NET_ADMIN, or with network.enabled = false."
                    .into()
            }
            Self::Unsupported { .. } => {
                "Load nf_tables, nft_nat, nft_fib and tun, or set network.enabled = false.".into()
            }
            Self::Host { .. } => "See aleph doctor.".into(),
        })
    }
}
