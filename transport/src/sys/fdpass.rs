//! Descriptors over a Unix socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Descriptors of one message.
pub(crate) const FDS: usize = 3;
/// Room for them in a control message.
const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

const _: () = assert!(size_of::<libc::cmsghdr>() + FDS * 4 <= CONTROL_BYTES);

fn message(iov: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = ptr::from_mut(iov);
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    message
}

/// Sends bytes with descriptors. Does not block.
pub(crate) fn send(socket: RawFd, bytes: &[u8], fds: [BorrowedFd<'_>; FDS]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    let mut message = message(&mut iov, &mut control);
    let raw = fds.map(|fd| fd.as_raw_fd());
    let data_len = u32::try_from(size_of_val(&raw)).map_err(io::Error::other)?;
    // SAFETY: pure arithmetic.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(data_len) } as usize;
    // SAFETY: `message` has a control buffer large enough for one header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: pure arithmetic.
    let len = unsafe { libc::CMSG_LEN(data_len) } as usize;
    let filled = libc::cmsghdr {
        cmsg_len: len,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: `header` points at the start of the aligned control buffer.
    unsafe { header.write(filled) };
    // SAFETY: `header` is the header just written.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the buffer has room for FDS descriptors after the header (asserted above).
    unsafe { data.cast::<[RawFd; FDS]>().write_unaligned(raw) };
    // SAFETY: every pointer in `message` outlives the call.
    let sent = unsafe {
        libc::sendmsg(
            socket,
            &raw const message,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes and the descriptors that came with them; all or none of `FDS`.
pub(crate) fn recv(socket: RawFd, bytes: &mut [u8]) -> io::Result<(usize, Option<[OwnedFd; FDS]>)> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    let mut message = message(&mut iov, &mut control);
    // SAFETY: every pointer in `message` outlives the call.
    let got = unsafe {
        libc::recvmsg(
            socket,
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok((got, received_fds(&message)))
}

/// Owns every descriptor that came, so that surplus ones are closed.
fn received_fds(message: &libc::msghdr) -> Option<[OwnedFd; FDS]> {
    let mut fds = Vec::new();
    // SAFETY: `message` was filled by recvmsg.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so a header inside the control buffer.
        let found = unsafe { header.read_unaligned() };
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: pure arithmetic.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (found.cmsg_len - overhead) / size_of::<RawFd>();
            // SAFETY: `header` is a valid header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for n in 0..count {
                let at = data.wrapping_add(n);
                // SAFETY: the kernel wrote `count` descriptors from `data` on.
                let fd = unsafe { at.read_unaligned() };
                // SAFETY: the kernel made it for us just now; nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: both are valid.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds.try_into().ok()
}
