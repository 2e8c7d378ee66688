//! A program for guests that begins a connection to its host by vsock.

use crate::root::target;
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// `call PORT TEXT`: connects to the host's port, says the text and a line's end, prints what it hears until the
/// host closes, and exits 0; 3 where nobody listens.
const SOURCE: &str = r#"
#include <linux/vm_sockets.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    struct sockaddr_vm host = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = strtoul(argv[1], 0, 10),
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0) return 4;
    if (connect(fd, (struct sockaddr *)&host, sizeof host)) return 3;
    if (write(fd, argv[2], strlen(argv[2])) != (ssize_t)strlen(argv[2])) return 5;
    if (write(fd, "\n", 1) != 1) return 5;
    char heard[4096];
    ssize_t n;
    while ((n = read(fd, heard, sizeof heard)) > 0)
        if (write(1, heard, n) != n) return 6;
    return n ? 7 : 0;
}
"#;

/// The program: static, for any Linux of this architecture.
///
/// # Errors
/// Where there is no C compiler, or no static C library.
pub fn vsock_call() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir_in(target())?;
    let (source, program) = (folder.path().join("call.c"), folder.path().join("call"));
    std::fs::write(&source, SOURCE)?;
    let compiled = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-o"])
        .args([&program, &source])
        .output()
        .context("running gcc")?;
    let said = String::from_utf8_lossy(&compiled.stderr);
    ensure!(compiled.status.success(), "{said}");
    Ok(std::fs::read(program)?)
}
