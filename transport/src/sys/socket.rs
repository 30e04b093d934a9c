//! Socket options and vectored, non-blocking input and output.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use crate::options::SocketOptions;

/// Sends what the socket takes now, without SIGPIPE.
pub(crate) fn send(fd: RawFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    if let [part] = parts {
        // SAFETY: the slice is readable for its length.
        let sent = unsafe {
            libc::send(
                fd,
                part.as_ptr().cast(),
                part.len(),
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        };
        return usize::try_from(sent).map_err(|_| io::Error::last_os_error());
    }
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // IoSlice is ABI-compatible with iovec; the kernel only reads through it.
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len().min(64);
    // SAFETY: the header describes slices that outlive the call.
    let sent = unsafe {
        libc::sendmsg(
            fd,
            ptr::from_ref(&message),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there now. `Ok(0)` is the end of the stream (or an empty buffer).
pub(crate) fn recv(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the buffer is borrowed mutably.
    let got = unsafe {
        libc::recv(
            fd,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there now into a buffer.
pub(crate) fn recv_into(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    recv(fd, as_uninit(buffer))
}

/// A buffer for functions that write initialised bytes only, as all of this crate do.
pub(crate) fn as_uninit(buffer: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: same layout; nobody writes uninitialised bytes through it (see above).
    unsafe { &mut *(ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) }
}

/// The peer's address, if it is an IP connection.
pub(crate) fn peer_address(fd: &OwnedFd) -> Option<SocketAddr> {
    let stream = std::net::TcpStream::from(fd.try_clone().ok()?);
    stream.peer_addr().ok()
}

/// This side's address, if it is an IP connection.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    let stream = std::net::TcpStream::from(fd.try_clone_to_owned().ok()?);
    stream.local_addr().ok()
}

/// Sets an integer option.
pub(crate) fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: `value` is `size` readable bytes.
    let result = unsafe { libc::setsockopt(fd, level, name, ptr::from_ref(&value).cast(), size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads an integer option.
pub(crate) fn get_option(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut size = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: `value` is `size` writable bytes.
    let result = unsafe {
        libc::getsockopt(
            fd,
            level,
            name,
            ptr::from_mut(&mut value).cast(),
            ptr::from_mut(&mut size),
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads and clears the pending error of a socket.
pub(crate) fn take_error(fd: RawFd) -> io::Result<()> {
    match get_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Switches a descriptor to non-blocking.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes no pointer.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends our direction of a connection; the peer reads an end of stream.
pub(crate) fn shutdown_write(fd: RawFd) {
    // SAFETY: no pointers. An error means that the connection is gone already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Puts an unconnected socket in the place of `fd`, so that this process no longer holds the
/// connection while the number stays taken. Async-signal-safe.
pub(crate) fn abandon(fd: RawFd) {
    // SAFETY: no pointers.
    let dead = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if dead < 0 {
        return;
    }
    // SAFETY: no pointers; `fd` is replaced in one step.
    unsafe { libc::dup3(dead, fd, libc::O_CLOEXEC) };
    // SAFETY: created above, owned by nobody else.
    unsafe { libc::close(dead) };
}

/// Starts connecting without waiting; the socket becomes writable when it is done.
pub(crate) fn connect_start(address: &SocketAddr, options: &SocketOptions) -> io::Result<OwnedFd> {
    if let Some(dialer) = &options.dialer {
        return dialer.dial(*address);
    }
    let fd = super::netopt::open(address, options)?;
    let (storage, size) = sockaddr(address);
    // SAFETY: `size` initialised bytes of a socket address of this family.
    let result = unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(&storage).cast(), size) };
    if result == 0 {
        return Ok(fd);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINPROGRESS) {
        Ok(fd)
    } else {
        Err(error)
    }
}

fn family_of(family: i32) -> libc::sa_family_t {
    // Address families are small positive numbers.
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

pub(super) fn sockaddr(address: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: an all-zero sockaddr_storage is a valid empty one.
    let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: family_of(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every address.
            unsafe {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in>()
                    .write(raw)
            };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family_of(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every address.
            unsafe {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in6>()
                    .write(raw)
            };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, libc::socklen_t::try_from(size).unwrap_or(0))
}
