//! Capabilities (capabilities(7)): all of them go, but for the few that serving takes.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h, since 2.6.26): 64 of them in two words.
const VERSION: u32 = 0x2008_0522;

const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_NET_BIND_SERVICE: u32 = 10;

/// A kernel has no more than fit into its masks.
const CAPABILITIES: u32 = 64;

#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Those that stay, as far as there were any: a reload may bind a port below 1024; and root goes on to
/// read and write what it could, which without this would depend on who owns each file, and to give the
/// administrators' socket to their group (`[admin].group`).
fn wanted(is_root: bool) -> u64 {
    let files = if is_root { 1 << CAP_DAC_OVERRIDE | 1 << CAP_CHOWN } else { 0 };
    1 << CAP_NET_BIND_SERVICE | files
}

/// Drops the others from every set, and gives the names of those that are left.
///
/// # Errors
/// What the kernel said.
pub(super) fn keep_few() -> io::Result<Vec<&'static str>> {
    let wanted = wanted(nix::unistd::geteuid().is_root());
    // Since 4.3; the arguments that it does not use must be 0.
    // SAFETY: the call takes numbers only.
    let cleared =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if cleared != 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in (0..CAPABILITIES).filter(|capability| wanted & (1 << capability) == 0) {
        // Without CAP_SETPCAP the set stays; as no program that is executed gains anything any more
        // (no_new_privs), it is of no use then. Those that the kernel does not know are refused too.
        // SAFETY: the call takes numbers only.
        let _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
    }
    let permitted = read()? & wanted;
    let words = |half: u32| {
        let word = (permitted >> (32 * half)) as u32;
        Words { effective: word, permitted: word, inheritable: 0 }
    };
    let header = Header { version: VERSION, process: 0 };
    let sets = [words(0), words(1)];
    // SAFETY: the kernel reads a header and, for this version, two structures of three words.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let names = [
        (CAP_CHOWN, "CAP_CHOWN"),
        (CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
        (CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    ];
    let left = read()?;
    Ok(names.into_iter().filter(|(bit, _)| left & (1 << bit) != 0).map(|(_, name)| name).collect())
}

/// The permitted ones.
fn read() -> io::Result<u64> {
    let header = Header { version: VERSION, process: 0 };
    let mut sets = [Words::default(); 2];
    // SAFETY: the kernel reads a header and, for this version, writes two structures of three words.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(sets[0].permitted) | u64::from(sets[1].permitted) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_kernel_is_never_wanted() {
        const NET_ADMIN: u64 = 1 << 12;
        const SYS_PTRACE: u64 = 1 << 19;
        const SYS_ADMIN: u64 = 1 << 21;
        const PERFMON: u64 = 1 << 38;
        const BPF: u64 = 1 << 39;
        for is_root in [true, false] {
            let kept = wanted(is_root);
            assert_eq!(kept & (NET_ADMIN | SYS_PTRACE | SYS_ADMIN | PERFMON | BPF), 0);
        }
        assert_eq!(wanted(false), 1 << CAP_NET_BIND_SERVICE);
    }

    #[test]
    fn this_kernel_tells() {
        assert!(read().is_ok());
    }
}
