//! How the agent's binary is linked: by itself.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=OPT_LEVEL");
    let is_agent = std::env::var_os("CARGO_FEATURE_PID1").is_some();
    // Only the profile `guest` optimizes for size; others build a stand-in with a library.
    let is_guest = std::env::var("OPT_LEVEL").is_ok_and(|level| level == "z");
    if is_agent && is_guest {
        for argument in [
            "-nostartfiles",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=none",
            "-Wl,--gc-sections",
            "-Wl,-z,noseparate-code",
            "-Wl,-z,norelro",
            "-Wl,--no-eh-frame-hdr",
        ] {
            println!("cargo:rustc-link-arg-bin=aleph-guest={argument}");
        }
    }
}
