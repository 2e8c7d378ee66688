//! Startup code, heap and panics.
#![allow(unsafe_code)]

use aleph_guest::{Allocator, init};

#[global_allocator]
static HEAP: Allocator = Allocator::new();

// The kernel enters with the arguments on an aligned stack and everything else undefined. The
// agent wants no arguments; the zero ends the chain of frames.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "    xor ebp, ebp",
    "    and rsp, -16",
    "    call {enter}",
    "    ud2",
    ".globl memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memcpy: jmp aleph_memcpy",
    "memmove: jmp aleph_memmove",
    "memset: jmp aleph_memset",
    "memcmp: jmp aleph_memcmp",
    "bcmp: jmp aleph_memcmp",
    "strlen: jmp aleph_strlen",
    // The libraries that come with the compiler are built to unwind. Nothing here ever does,
    // but their tables name these.
    ".globl rust_eh_personality, _Unwind_Resume",
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "    ud2",
    enter = sym enter,
);

extern "C" fn enter() -> ! {
    init::run()
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    init::panicked(info)
}
