//! A module for Node.js that has OpenSSL draw a new seed when it is loaded: Node.js itself offers
//! no way to. It is loaded once, after a snapshot was resumed.
//!
//! `build.rs` compiles it on its own, without the standard library: no part of the crate. What it
//! calls is bound when it is called, to Node.js's own functions and to those of the OpenSSL that
//! Debian's Node.js has loaded. It exports the one that Node.js looks for (Node-API,
//! `NAPI_MODULE_INIT`).

#![no_std]

use core::ffi::{c_char, c_int, c_void};
use core::ptr::null;

unsafe extern "C" {
    /// RAND_poll(3): reseeds the first generator from the kernel; those of threads follow it.
    fn RAND_poll() -> c_int;
    /// Has the caller's JavaScript catch an error.
    fn napi_throw_error(env: *mut c_void, code: *const c_char, message: *const c_char) -> c_int;
}

/// # Safety
/// Node.js calls it with its environment and an object, which is not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn napi_register_module_v1(
    env: *mut c_void,
    exports: *mut c_void,
) -> *mut c_void {
    // SAFETY: the first takes nothing and locks what it changes; the second gets the environment
    // that this call came with, and text that ends with a zero.
    unsafe {
        if RAND_poll() != 1 {
            napi_throw_error(env, null(), c"OpenSSL cannot get a new seed".as_ptr());
        }
    }
    exports
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
