//! A disk that boots by itself: one sector of code for SeaBIOS on a q35.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// What the code on a disk does with the power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDisk {
    /// Powers off.
    Listens,
    /// Nothing.
    Ignores,
}

/// What it writes to the first serial port once it runs.
const GREETING: &[u8] = b"booted\n\0";

/// Enables the power button's event (`PM1_EN` of ACPI, where SeaBIOS puts it on an ICH9).
const ENABLE: [u8; 7] = [
    0xba, 0x02, 0x06, // mov dx, 0x602
    0xb8, 0x00, 0x01, // mov ax, 1 << 8
    0xef, // out dx, ax
];

/// Waits for it, and powers off (`SLP_EN` with the type of S5).
const WAIT: [u8; 20] = [
    0xfb, 0xf4, // sti; hlt: the timer goes on
    0xba, 0x00, 0x06, // mov dx, 0x600
    0xed, // in ax, dx
    0xf6, 0xc4, 0x01, // test ah, 1
    0x74, 0xf5, // jz back to sti
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 1 << 13
    0xef, // out dx, ax
    0xeb, 0xec, // jmp back to sti
];

/// Writes such a disk, of this many bytes, and gives it opened for reading and writing. Its guest
/// writes `booted` and a newline to its serial port.
///
/// # Errors
/// Those of writing the file.
pub fn boot_disk(path: &Path, kind: BootDisk, bytes: u64) -> io::Result<File> {
    let mut code = vec![
        0xfc, // cld
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x00, 0x7d, // mov si, 0x7d00
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x06, // jz past the loop
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xf5, // jmp back to lodsb
    ];
    if kind == BootDisk::Listens {
        code.extend(ENABLE);
    }
    code.extend(WAIT);
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[0x100..0x100 + GREETING.len()].copy_from_slice(GREETING);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true);
    let mut file = options.open(path)?;
    file.write_all(&sector)?;
    file.set_len(bytes.max(512))?;
    Ok(file)
}
