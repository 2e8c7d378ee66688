//! A guest with a kernel: a namespace whose one link is the guest's end of the TAP.

use super::guest::Guest;
use super::space::Space;
use aleph_vm_networking::tap::Tap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) struct Machine {
    pub(crate) guest: Guest,
    space: Space,
    ended: Arc<AtomicBool>,
    cable: Option<JoinHandle<()>>,
}

impl Machine {
    /// It takes over all that arrives at the guest.
    pub(crate) fn new(guest: Guest) -> Self {
        let space = Space::new();
        let near = space.run(|| Tap::make("eth0", 1, None).unwrap().queues.remove(0));
        let flags = rustix::fs::fcntl_getfl(&near).unwrap();
        rustix::fs::fcntl_setfl(&near, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        space.sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
             ip link set lo up
             ip link set eth0 address {} up
             ip address add {}/30 dev eth0
             ip route add default via {}",
            guest.mac, guest.address, guest.gateway
        ));
        let (far, ended) = (guest.queue(), Arc::new(AtomicBool::new(false)));
        let cable = {
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    carry(&near, &far);
                }
            })
        };
        Self {
            guest,
            space,
            ended,
            cable: Some(cable),
        }
    }

    /// A socket that hears one address and port alone.
    pub(crate) fn udp(&self, to: (Ipv4Addr, u16)) -> UdpSocket {
        self.space.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(super::ARRIVES)).unwrap();
            socket
        })
    }

    pub(crate) fn tcp(&self, to: (Ipv4Addr, u16), within: Duration) -> std::io::Result<TcpStream> {
        self.space.run(move || {
            let stream = TcpStream::connect_timeout(&to.into(), within)?;
            stream.set_read_timeout(Some(super::ARRIVES))?;
            Ok(stream)
        })
    }
}

/// Frames of both ways that are there, or of the next moment.
fn carry(near: &File, far: &File) {
    let moment = Timespec::try_from(Duration::from_millis(50)).unwrap();
    let mut both = [near, far].map(|file| PollFd::new(file, PollFlags::IN));
    poll(&mut both, Some(&moment)).unwrap();
    let mut bytes = vec![0; 70_000];
    for (mut from, mut to) in [(near, far), (far, near)] {
        while let Ok(n) = from.read(&mut bytes) {
            // A link that is not up yet, or not any more, takes none.
            let _ = to.write(&bytes[..n]);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(cable) = self.cable.take() {
            let _ = cable.join();
        }
    }
}
