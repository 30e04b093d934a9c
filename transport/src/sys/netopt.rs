//! Options of TCP sockets: where they begin, how their packets are marked, how they are polled.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::socket::{set_option, sockaddr};
use crate::options::{LocalEnd, SocketOptions};
use crate::stream::PathInfo;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A non-blocking socket for this address, with the options, and bound where they say so.
pub(super) fn open(address: &SocketAddr, options: &SocketOptions) -> io::Result<OwnedFd> {
    let fd = tcp_socket(address)?;
    apply(fd.as_raw_fd(), address.is_ipv6(), options)?;
    if let Some(LocalEnd::Address(ip)) = &options.local {
        bind(fd.as_raw_fd(), &local_for(*ip, address)?)
            .map_err(|error| told(error, format!("local address {ip}")))?;
    }
    Ok(fd)
}

/// A listening socket; what it accepts inherits its options.
pub(crate) fn listen(address: &SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
    let fd = tcp_socket(address)?;
    // A server that was restarted takes its port back from connections that linger.
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    apply(fd.as_raw_fd(), address.is_ipv6(), options)?;
    bind(fd.as_raw_fd(), address)?;
    // SAFETY: no pointers.
    if unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpListener::from(fd))
}

/// What the system knows of a connection; `None` if it is no TCP connection.
pub(crate) fn path_info(fd: &OwnedFd) -> Option<PathInfo> {
    let stream = std::net::TcpStream::from(fd.try_clone().ok()?);
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    // SAFETY: an all-zero tcp_info is valid.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: `info` is `size` writable bytes; a kernel that knows less writes less.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &raw mut size,
        )
    };
    (result == 0).then_some(PathInfo {
        local,
        peer,
        mtu_bytes: info.tcpi_pmtu,
        kernel_rtt_us: info.tcpi_rtt,
        retransmits: info.tcpi_total_retrans,
    })
}

fn apply(fd: RawFd, ipv6: bool, options: &SocketOptions) -> io::Result<()> {
    if let Some(dscp) = options.dscp {
        let tos = i32::from(dscp) << 2;
        // Also on IPv6 sockets: they may carry IPv4.
        set_option(fd, libc::IPPROTO_IP, libc::IP_TOS, tos)
            .map_err(|error| told(error, format!("DSCP {dscp}")))?;
        if ipv6 {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)
                .map_err(|error| told(error, format!("DSCP {dscp}")))?;
        }
    }
    if let Some(LocalEnd::Interface(name)) = &options.local {
        bind_to_device(fd, name).map_err(|error| told(error, format!("interface {name}")))?;
    }
    if let Some(us) = options.busy_poll_us {
        let value = i32::try_from(us).unwrap_or(i32::MAX);
        if let Err(error) = set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, value) {
            log::warn!(
                "no busy polling ({error}): it needs CAP_NET_ADMIN, or sysctl net.core.busy_read={us}"
            );
        }
    }
    Ok(())
}

/// The local end of a connection to `peer`, on any port.
fn local_for(ip: IpAddr, peer: &SocketAddr) -> io::Result<SocketAddr> {
    if ip.is_ipv4() == peer.is_ipv4() {
        return Ok(SocketAddr::new(ip, 0));
    }
    let text = format!("no way from {ip} to {}: one is IPv4, one IPv6", peer.ip());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

fn told(error: io::Error, about: String) -> io::Error {
    io::Error::new(error.kind(), format!("{about}: {error}"))
}

fn tcp_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(fd: RawFd, address: &SocketAddr) -> io::Result<()> {
    let (storage, size) = sockaddr(address);
    // SAFETY: `size` initialised bytes of a socket address of this family.
    if unsafe { libc::bind(fd, ptr::from_ref(&storage).cast(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bind_to_device(fd: RawFd, name: &str) -> io::Result<()> {
    let size = libc::socklen_t::try_from(name.len()).map_err(io::Error::other)?;
    // SAFETY: `size` readable bytes; the kernel takes the length, not a terminator.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            size,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::poll::{OUT, PollSet};
    use crate::sys::socket::{connect_start, get_option, take_error};

    fn connected(options: &SocketOptions) -> io::Result<(OwnedFd, std::net::TcpStream)> {
        let listener = listen(&"127.0.0.1:0".parse().unwrap(), options)?;
        let fd = connect_start(&listener.local_addr()?, options)?;
        let mut set = PollSet::new();
        set.add(fd.as_raw_fd(), OUT);
        set.wait(None)?;
        take_error(fd.as_raw_fd())?;
        let mut set = PollSet::new();
        set.add(listener.as_raw_fd(), crate::sys::poll::IN);
        set.wait(None)?;
        Ok((fd, listener.accept()?.0))
    }

    #[test]
    fn both_ends_carry_the_mark() {
        let options = SocketOptions {
            dscp: Some(26),
            ..SocketOptions::default()
        };
        let (near, far) = connected(&options).unwrap();
        for fd in [near.as_fd(), far.as_fd()] {
            let tos = get_option(fd.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS).unwrap();
            assert_eq!(tos, 26 << 2);
        }
    }

    #[test]
    fn a_connection_begins_where_it_is_told() {
        let ip = IpAddr::V4(Ipv4Addr::new(127, 7, 7, 7));
        let mut options = SocketOptions {
            local: Some(LocalEnd::Address(ip)),
            ..SocketOptions::default()
        };
        let (_near, far) = connected(&options).unwrap();
        assert_eq!(far.peer_addr().unwrap().ip(), ip);
        options.local = Some(LocalEnd::Interface("lo".into()));
        let (near, _far) = connected(&options).unwrap();
        let index = get_option(near.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX);
        assert_ne!(index.unwrap(), 0, "bound to an interface");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = |local| {
            let options = SocketOptions {
                local: Some(local),
                ..SocketOptions::default()
            };
            connect_start(&"127.0.0.1:9".parse().unwrap(), &options)
                .unwrap_err()
                .to_string()
        };
        assert!(error(LocalEnd::Interface("nosuch0".into())).contains("nosuch0"));
        assert!(error(LocalEnd::Address("::1".parse().unwrap())).contains("::1"));
        assert!(error(LocalEnd::Address("192.0.2.1".parse().unwrap())).contains("192.0.2.1"));
    }
}
