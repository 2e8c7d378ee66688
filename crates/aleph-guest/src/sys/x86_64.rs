//! What depends on the processor: entering the kernel, and a child that shares memory.
//!
//! Another architecture adds a file of this form: [`number`], [`syscall`] and [`clone_shared`].

use core::arch::asm;
use core::ffi::c_void;

/// Numbers of the system calls that the agent makes itself.
pub(super) mod number {
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const RT_SIGACTION: usize = 13;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const BIND: usize = 49;
    pub(crate) const GETPEERNAME: usize = 52;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const KILL: usize = 62;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const SIGNALFD4: usize = 289;
}

/// Enters the kernel.
///
/// # Safety
/// The arguments must be what the call of that number asks for.
pub(super) unsafe fn syscall(number: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel clobbers rcx and r11 alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") a[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Runs `child` in a new process that shares this one's memory, on its own stack, and returns
/// the new process id, or a negated error number, once that process has executed a program or
/// ended.
///
/// # Safety
/// `flags` must have `CLONE_VM` and `CLONE_VFORK`, `stack_top` must be the end of a stack, a
/// multiple of 16, and `child` must leave by execve or exit and touch nothing but `argument`.
pub(super) unsafe fn clone_shared(
    flags: usize,
    stack_top: *mut u8,
    child: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    let result: isize;
    // SAFETY: the child never comes back to this frame: it starts on its own stack, with its
    // function and argument in registers.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") number::CLONE => result,
            in("rdi") flags,
            in("rsi") stack_top,
            in("rdx") 0_usize,
            in("r10") 0_usize,
            in("r8") 0_usize,
            in("r12") child,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
