//! Unix sockets by name, and who is at their other end.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::ptr;

use super::socket::get_option;

/// The abstract name that goes with a TCP address.
pub(crate) fn name_of(address: std::net::SocketAddr) -> String {
    format!("farcall-{address}")
}

/// Listens at a path. A socket there that nobody listens on is replaced.
pub(crate) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            _ => return Err(error),
        },
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Listens on an abstract name.
pub(crate) fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to an abstract name. Does not block: a listener whose queue is full refuses.
pub(crate) fn connect(name: &str) -> io::Result<OwnedFd> {
    Ok(UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?.into())
}

/// Connects to a path.
pub(crate) fn connect_path(path: &str) -> io::Result<OwnedFd> {
    Ok(UnixStream::connect(path)?.into())
}

/// Whether the other end belongs to this user or to root: only those may pose as a server.
pub(crate) fn peer_is_trusted(fd: &OwnedFd) -> bool {
    // SAFETY: cannot fail.
    peer(fd).is_some_and(|peer| peer.uid == 0 || peer.uid == unsafe { libc::geteuid() })
}

/// A descriptor that is readable once the process that connected has ended. None where the system cannot
/// tell, such as for a process of another PID namespace.
pub(crate) fn peer_process(fd: &OwnedFd) -> Option<OwnedFd> {
    let pid = peer(fd)?.pid;
    if pid <= 0 {
        return None;
    }
    // SAFETY: no pointers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = RawFd::try_from(process).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: just created, owned by nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(process) })
}

/// Who connected, or listens, at the other end.
fn peer(fd: &OwnedFd) -> Option<libc::ucred> {
    // SAFETY: an all-zero ucred is valid.
    let mut peer: libc::ucred = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: `peer` is `size` writable bytes.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &raw mut size,
        )
    };
    (result == 0).then_some(peer)
}

/// Whether a socket is a Unix socket.
pub(crate) fn is_unix(fd: RawFd) -> bool {
    get_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX)
}
