//! Writes the rules of guests' networks again as soon as somebody has removed them. Without it that
//! is left to the next sweep, and guests are not kept apart until then.

use super::inner::Inner;
use super::network::blocking;
use crate::vm::chain;
use aleph_vm_networking::NetworkConfig;
use aleph_vm_networking::watch::Watch;
use std::io;
use std::sync::Weak;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Hears of rules that others remove; nothing, where the kernel tells nobody.
pub(super) fn listen(config: &NetworkConfig) -> Option<AsyncFd<Watch>> {
    let watch = Watch::open(&config.name).and_then(register);
    watch
        .inspect_err(|error| tracing::warn!(%error, "rules that are gone wait for the next sweep"))
        .ok()
}

#[allow(unsafe_code)]
fn register(watch: Watch) -> io::Result<AsyncFd<Watch>> {
    // SAFETY: the watch owns its socket, which is the same until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }?)
}

/// The time between two looks: a node that makes a thousand VMs a second is told of each.
const PAUSE: Duration = Duration::from_millis(20);

/// Listens until the node lets go of its guests.
pub(super) async fn guard(
    inner: Weak<Inner>,
    watch: AsyncFd<Watch>,
    mut leaving: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            // What is told from now on makes it ready again.
            ready = watch.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return tracing::error!(%error, "nobody hears of rules that are gone"),
            },
            _ = leaving.wait_for(|leaving| *leaving) => return,
        }
        let lost = watch.get_ref().lost().unwrap_or_else(|error| {
            tracing::warn!(%error, "what the kernel tells of its rules cannot be read");
            true
        });
        let Some(network) = inner.upgrade().and_then(|inner| inner.network.clone()) else {
            return;
        };
        if lost {
            match blocking(move || network.mend()).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!("the firewall's tables were gone, and are written again");
                }
                Err(error) => tracing::error!(error = %chain(&error), "guests are not kept apart"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
