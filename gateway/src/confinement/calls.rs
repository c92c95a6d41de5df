//! System calls that a gateway never makes are refused (seccomp(2)): with `EPERM`, so that a library
//! that tries one goes another way.
//!
//! A list of what is refused, not of what is allowed: which calls a C library makes changes with its
//! version, and a gateway that dies of an upgrade guards nothing. Refused is what reaches into the
//! kernel, into other processes, into the tree of mounts or the machine as a whole, what runs another
//! program, and what has often been a way around such filters.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long,
    sock_filter, sock_fprog,
};

/// As `struct seccomp_data` (linux/seccomp.h) has them.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT_AT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

/// `AUDIT_ARCH_*` (linux/audit.h) of what this was built for; nothing is filtered elsewhere.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// On x86-64, the numbers from here on are those of the x32 ABI: the same calls once more.
const X32: Option<u32> = if cfg!(target_arch = "x86_64") { Some(0x4000_0000) } else { None };

/// `CLONE_NEW*` (linux/sched.h), but for `CLONE_NEWTIME`, which clone(2) does not take.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// What is refused everywhere.
const REFUSED: &[c_long] = &[
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_syslog,
    libc::SYS_fanotify_init,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // The machine as a whole.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    // Other users and capabilities.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
];

/// What only this architecture has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
const HAS_BITS: u32 = BPF_JMP | BPF_JSET | BPF_K;
const RETURN: u32 = BPF_RET | BPF_K;

const fn step(code: u32, value: u32, then_skip: u8, else_skip: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: then_skip, jf: else_skip, k: value }
}

const fn refuse_with(error: i32) -> sock_filter {
    step(RETURN, libc::SECCOMP_RET_ERRNO | error as u32, 0, 0)
}

/// The filter, for one architecture.
fn program(
    architecture: u32,
    x32: Option<u32>,
    refused: impl Iterator<Item = u32>,
) -> Vec<sock_filter> {
    let refuse = refuse_with(libc::EPERM);
    let mut program = vec![
        // The same number means something else in another's mode.
        step(LOAD, ARCHITECTURE_AT, 0, 0),
        step(EQUAL, architecture, 1, 0),
        refuse,
        step(LOAD, NUMBER_AT, 0, 0),
    ];
    if let Some(first) = x32 {
        program.extend([step(AT_LEAST, first, 0, 1), refuse]);
    }
    for number in refused {
        program.extend([step(EQUAL, number, 0, 1), refuse]);
    }
    program.extend([
        // Its flags are behind a pointer, so it is said not to be there; the library takes clone(2).
        step(EQUAL, libc::SYS_clone3 as u32, 0, 1),
        refuse_with(libc::ENOSYS),
        step(EQUAL, libc::SYS_clone as u32, 0, 3),
        step(LOAD, FIRST_ARGUMENT_AT, 0, 0),
        step(HAS_BITS, NEW_NAMESPACES, 0, 1),
        refuse,
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]);
    program
}

/// Refuses them from now on, in every thread. Needs no_new_privs.
///
/// # Errors
/// What the kernel said.
pub(super) fn confine() -> io::Result<()> {
    let Some(architecture) = ARCHITECTURE else {
        return Err(io::Error::other("no list of calls for this architecture"));
    };
    let refused = REFUSED.iter().chain(REFUSED_HERE).map(|number| *number as u32);
    let mut steps = program(architecture, X32, refused);
    // A filter has at most 4,096 steps (BPF_MAXINSNS), and this one some two hundred.
    let length = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len: length, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies as many steps as the program says it has, and they outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match set {
        0 => Ok(()),
        // Since 3.17; with this flag, the number of a thread that has another filter.
        other if other > 0 => Err(io::Error::other(format!("thread {other} cannot be confined"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u32 = 7;

    /// What the kernel would do with it.
    fn verdict(program: &[sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let mut skip = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                LOAD => {
                    loaded = match k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        FIRST_ARGUMENT_AT => argument,
                        other => panic!("nothing is at {other}"),
                    }
                }
                EQUAL => skip(loaded == k),
                AT_LEAST => skip(loaded >= k),
                HAS_BITS => skip(loaded & k != 0),
                RETURN => return k,
                other => panic!("no step {other}"),
            }
        }
    }

    #[test]
    fn refuses_the_listed_and_allows_the_rest() {
        let program = program(HERE, Some(1 << 30), [321, 59].into_iter());
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        let allowed = libc::SECCOMP_RET_ALLOW;
        let clone = libc::SYS_clone as u32;
        for (architecture, number, argument, expected) in [
            (HERE, 0, 0, allowed),
            (HERE, 321, 0, refused),
            (HERE, 59, 0, refused),
            (HERE, 1 << 30, 0, refused),
            (HERE, (1 << 30) + 1, 0, refused),
            (HERE + 1, 0, 0, refused),
            (HERE, clone, 0x0001_0000, allowed), // a thread
            (HERE, clone, 0x1000_0000, refused), // a user namespace
            (HERE, clone, 0x0002_0000, refused), // a mount namespace
            (HERE, libc::SYS_clone3 as u32, 0, absent),
            // What is an argument's bit is none of a number.
            (HERE, 0, 0x1000_0000, allowed),
        ] {
            let said = verdict(&program, architecture, number, argument);
            assert_eq!(said, expected, "{architecture} {number} {argument:#x}");
        }
    }

    #[test]
    fn nothing_stands_there_twice() {
        let all: std::collections::BTreeSet<c_long> =
            REFUSED.iter().chain(REFUSED_HERE).copied().collect();
        assert_eq!(all.len(), REFUSED.len() + REFUSED_HERE.len());
        assert!(all.contains(&libc::SYS_bpf));
    }
}
