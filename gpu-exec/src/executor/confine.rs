//! What an executor may ask of the kernel once it has a client. The CPU devices get a list of the system calls that
//! they need and no others; the real driver is a library of its own, whose needs change with its versions: for it the
//! calls are refused that no driver needs and that change other processes, the system or what the process is.
//!
//! A refused call fails with `EPERM`. The lists hold for all threads that the process starts from here on.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgramRef, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use crate::DeviceKind;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Confines the process. Call it while there is no other thread, or none but those of the real driver, which is started before.
///
/// # Errors
/// The kernel has no filters of system calls, other threads are there already, or a driver's have filters of their own.
pub(crate) fn confine(kind: DeviceKind) -> io::Result<()> {
    if kind == DeviceKind::Cuda {
        return filter(kind, apply_filter_all_threads);
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("threads were started before the filter"));
    }
    filter(kind, apply_filter)
}

/// How a filter becomes that of this thread, or of all.
type Apply = fn(BpfProgramRef<'_>) -> seccompiler::Result<()>;

fn filter(kind: DeviceKind, apply: Apply) -> io::Result<()> {
    match kind {
        DeviceKind::Soft | DeviceKind::Null => {
            // Its flags lie in memory, where a filter cannot see them; libc then takes `clone`, as on old kernels.
            // Of several filters the strictest holds, so the second one may let it pass.
            let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            let without = [(libc::SYS_clone3, vec![])].into();
            install(without, SeccompAction::Allow, absent, apply)?;
            let listed = allowed().map_err(io::Error::other)?;
            install(
                listed,
                SeccompAction::Errno(EPERM),
                SeccompAction::Allow,
                apply,
            )
        }
        DeviceKind::Cuda => {
            let refused = REFUSED.iter().map(|call| (*call, vec![])).collect();
            install(
                refused,
                SeccompAction::Allow,
                SeccompAction::Errno(EPERM),
                apply,
            )
        }
    }
}

const EPERM: u32 = libc::EPERM.unsigned_abs();

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// What is allowed whatever its arguments are.
const ALLOWED: &[i64] = &[
    // Memory; `mmap` and `mprotect` are below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // Connections and descriptors that it was given.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_lseek,
    // Files: the cache of modules, what libraries and the standard library look up.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_utimensat,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // Threads; `clone` is below, `clone3` is refused before.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time, chance, and who and where it is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // To see the end of a client on this host.
    libc::SYS_pidfd_open,
    // The addresses of network interfaces, over netlink: which sockets there can be is said below.
    libc::SYS_bind,
];

/// What other architectures have under newer names only.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[i64] = &[];

/// What the real driver's process may not do: become or look into another, or change the system.
const REFUSED: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_open_by_handle_at,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
];

/// Everything that a CPU device's executor needs.
fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let all = ALLOWED.iter().chain(ALLOWED_OLD);
    let mut rules: Rules = all.map(|call| (*call, vec![])).collect();
    let own = u64::from(std::process::id());
    // A thread of this process, in no namespace of its own.
    let thread = flags(libc::CLONE_THREAD, NAMESPACES | libc::CLONE_THREAD);
    // Memory is never writable and executable at once, nor becomes executable: libraries are mapped so.
    let (write, execute) = (bits(libc::PROT_WRITE), bits(libc::PROT_EXEC));
    let pages = [0, write, execute].map(|value| masked(2, write | execute, value));
    let some = |argument, values: &[u64]| -> Result<Vec<_>, _> {
        values.iter().map(|value| equal(argument, *value)).collect()
    };
    rules.insert(libc::SYS_clone, vec![thread?]);
    rules.insert(libc::SYS_mmap, pages.into_iter().collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_mprotect, vec![masked(2, execute, 0)?]);
    rules.insert(libc::SYS_tgkill, vec![equal(0, own)?]);
    // Of itself only, and only to ask.
    rules.insert(
        libc::SYS_prlimit64,
        vec![both(equal_to(0, 0)?, equal_to(2, 0)?)?],
    );
    let families = [libc::AF_UNIX, libc::AF_NETLINK].map(bits);
    rules.insert(libc::SYS_socket, some(0, &families)?);
    let names = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_SET_TIMERSLACK,
        PR_SET_VMA,
    ];
    rules.insert(libc::SYS_prctl, some(0, &names.map(bits))?);
    let mut controls = some(
        1,
        &[libc::TCGETS, libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX],
    )?;
    controls.push(masked(1, 0xff00, RDMA_IOCTLS)?);
    rules.insert(libc::SYS_ioctl, controls);
    Ok(rules)
}

/// `CLONE_NEW...` of every kind (`linux/sched.h`).
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// Names anonymous memory (`linux/prctl.h`); glibc does.
const PR_SET_VMA: i32 = 0x5356_4d41;
/// `RDMA_IOCTL_MAGIC` (`rdma/ib_user_ioctl_cmds.h`), where an ioctl's number has its type.
const RDMA_IOCTLS: u64 = 0x1b00;

fn bits(flags: i32) -> u64 {
    u64::from(flags.unsigned_abs())
}

fn flags(value: i32, mask: i32) -> Result<SeccompRule, seccompiler::BackendError> {
    masked(0, bits(mask), bits(value))
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let masked = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, masked, value)?;
    SeccompRule::new(vec![condition])
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![equal_to(argument, value)?])
}

fn equal_to(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    // The kernel takes 32 bits of these arguments.
    let length = if argument == 2 {
        SeccompCmpArgLen::Qword
    } else {
        SeccompCmpArgLen::Dword
    };
    SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value)
}

fn both(
    one: SeccompCondition,
    other: SeccompCondition,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![one, other])
}

fn install(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
    apply: Apply,
) -> io::Result<()> {
    let filter = SeccompFilter::new(rules, otherwise, listed, ARCH).map_err(io::Error::other)?;
    let program: Vec<_> = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| io::Error::other(error))?;
    apply(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{ErrorKind, Read as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::filter;
    use crate::DeviceKind;

    /// Runs something on a thread of its own that has a device's filter; the other threads of the test have none.
    fn confined<T: Send>(kind: DeviceKind, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                filter(kind, seccompiler::apply_filter).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn refused<T>(outcome: std::io::Result<T>) -> bool {
        outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_cpu_device_starts_nothing_and_calls_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        for kind in [DeviceKind::Soft, DeviceKind::Null] {
            confined(kind, || {
                assert!(refused(Command::new("/bin/true").spawn()), "a program");
                assert!(refused(TcpStream::connect(address)), "a connection");
                assert!(refused(UdpSocket::bind("127.0.0.1:0")), "a socket");
                assert!(
                    refused(UnixStream::connect(path)),
                    "a connection on this host"
                );
                let flags = nix::sched::CloneFlags::CLONE_NEWUSER;
                assert_eq!(nix::sched::unshare(flags), Err(nix::errno::Errno::EPERM));
                let parent = nix::unistd::getppid();
                assert_eq!(
                    nix::sys::signal::kill(parent, None),
                    Err(nix::errno::Errno::EPERM)
                );
            });
        }
    }

    #[test]
    fn a_cpu_device_still_has_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, theirs) = std::io::pipe().unwrap();
        confined(DeviceKind::Soft, move || {
            let path = folder.path().join("module");
            std::fs::write(&path, b"image").unwrap();
            std::fs::rename(&path, folder.path().join("other")).unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
            // Threads, memory of every kind, descriptors of others.
            let sum = std::thread::spawn(|| {
                vec![1_u8; 64 << 20]
                    .iter()
                    .map(|b| u64::from(*b))
                    .sum::<u64>()
            });
            assert_eq!(sum.join().unwrap(), 64 << 20);
            assert!(std::thread::available_parallelism().is_ok());
            drop(theirs);
            assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        });
    }

    #[test]
    fn memory_with_data_does_not_become_code() {
        confined(DeviceKind::Soft, || {
            let memory = memmap2::MmapMut::map_anon(4096).unwrap();
            assert!(refused(memory.make_exec()));
        });
        let memory = memmap2::MmapMut::map_anon(4096).unwrap();
        assert!(memory.make_exec().is_ok(), "without the filter");
    }

    #[test]
    fn the_real_driver_starts_nothing_either() {
        confined(DeviceKind::Cuda, || {
            assert!(refused(Command::new("/bin/true").spawn()), "a program");
            assert!(
                UdpSocket::bind("127.0.0.1:0").is_ok(),
                "what a driver does is its own affair"
            );
        });
    }
}
