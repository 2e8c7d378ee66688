//! A guest of some hundred instructions that says what is on its PCI bus, for hosts that are emulated
//! themselves: firmware starts it in a second where Linux would take minutes.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::global_asm;

/// Where its instructions begin in the file: after the boot sector that nothing boots from.
const ENTRY: usize = 0x200;
/// The sectors that are loaded for it, with the first.
const SETUP: usize = 2 * 512;

// In real mode at offset 0x200 of the segment that it is loaded at, as the kernel's boot protocol has it
// (its documentation, `arch/x86/boot`). It reads configuration space by the ports 0xcf8 and 0xcfc: of
// bus 0, and on to the last one that a bridge says it leads to. The firmware has numbered them by then.
// SI is bus, device and function as in the ports, DI the last bus, and CL a register. The timer of the
// firmware wakes it from HLT to look for a byte.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .rodata.pci_lister, \"a\"",
    ".code16",
    ".globl aleph_pci_lister",
    "aleph_pci_lister:",
    "jmp 10f",
    // The header of the boot protocol.
    ".skip 0x68",
    // All functions, one after the other. Of a device without the first one there is none.
    "10:",
    "cld",
    "11:",
    "xor esi, esi",
    "xor di, di",
    "12:",
    "mov cl, 0",
    "call 40f",
    "cmp ax, 0xffff",
    "je 30f",
    // BUS:DEVICE.FUNCTION VENDOR:DEVICE
    "push eax",
    "mov ax, si",
    "mov al, ah",
    "mov bl, 0x3a",
    "call 52f",
    "mov ax, si",
    "shr al, 3",
    "mov bl, 0x2e",
    "call 52f",
    "mov ax, si",
    "and al, 7",
    "add al, 0x30",
    "call 55f",
    "mov al, 0x20",
    "call 55f",
    "pop eax",
    "mov bl, 0x3a",
    "call 51f",
    "shr eax, 16",
    "mov bl, 10",
    "call 51f",
    // The header's type, and of a bridge the bus behind it.
    "mov cl, 0x0c",
    "call 40f",
    "shr eax, 16",
    "and al, 0x7f",
    "cmp al, 1",
    "jne 20f",
    "mov cl, 0x18",
    "call 40f",
    "shr ax, 8",
    "cmp ax, di",
    "jbe 20f",
    "mov di, ax",
    // The next function, unless that was the last of the last bus.
    "20:",
    "inc si",
    "21:",
    "jz 22f",
    "mov ax, si",
    "shr ax, 8",
    "cmp ax, di",
    "jbe 12b",
    // An empty line, and again for a byte.
    "22:",
    "mov al, 10",
    "call 55f",
    "23:",
    "sti",
    "hlt",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 23b",
    "mov dl, 0xf8",
    "in al, dx",
    "jmp 11b",
    "30:",
    "test si, 7",
    "jnz 20b",
    "add si, 8",
    "jmp 21b",
    // Reads a register into EAX.
    "40:",
    "mov eax, esi",
    "shl eax, 8",
    "or eax, 0x80000000",
    "or al, cl",
    "mov dx, 0xcf8",
    "out dx, eax",
    "mov dl, 0xfc",
    "in eax, dx",
    "ret",
    // Writes AX as four digits, and BL.
    "51:",
    "push ax",
    "mov al, ah",
    "mov bh, bl",
    "mov bl, 0",
    "call 52f",
    "mov bl, bh",
    "pop ax",
    // Writes AL as two digits, and BL unless that is 0.
    "52:",
    "push ax",
    "shr al, 4",
    "call 54f",
    "pop ax",
    "push ax",
    "and al, 15",
    "call 54f",
    "mov al, bl",
    "or al, al",
    "jz 53f",
    "call 55f",
    "53:",
    "pop ax",
    "ret",
    // Writes AL as a digit.
    "54:",
    "add al, 0x30",
    "cmp al, 0x39",
    "jbe 55f",
    "add al, 0x27",
    // Writes AL to the first serial port.
    "55:",
    "push dx",
    "push ax",
    "mov dx, 0x3fd",
    "56:",
    "in al, dx",
    "test al, 0x20",
    "jz 56b",
    "pop ax",
    "mov dl, 0xf8",
    "out dx, al",
    "pop dx",
    "ret",
    ".globl aleph_pci_lister_end",
    "aleph_pci_lister_end:",
    ".code64",
    ".popsection",
);

/// A guest of another machine has no such ports.
#[cfg(not(target_arch = "x86_64"))]
const fn code() -> &'static [u8] {
    &[]
}

#[cfg(target_arch = "x86_64")]
fn code() -> &'static [u8] {
    unsafe extern "C" {
        static aleph_pci_lister: u8;
        static aleph_pci_lister_end: u8;
    }
    let (first, end) = (&raw const aleph_pci_lister, &raw const aleph_pci_lister_end);
    // SAFETY: both are in one section, one before the other, and nothing writes there.
    unsafe { std::slice::from_raw_parts(first, end.addr() - first.addr()) }
}

/// A kernel for QEMU's `-kernel` and SeaBIOS. It writes a line for each PCI function to its first serial
/// port, such as `01:00.0 10de:2335`, and an empty one after the last; and again for each byte that it
/// reads there. It takes an initramfs, and does not look at it.
///
/// # Panics
/// Where it has grown out of its sectors.
#[must_use]
pub fn pci_lister() -> Vec<u8> {
    let mut file = vec![0; SETUP];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(ENTRY, code());
    // One sector of setup beside the first.
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    // Version 2.3 of the protocol; what it starts would be at 1 MiB; the highest address of an initramfs.
    put(0x202, b"HdrS\x03\x02");
    put(0x211, &[1]);
    put(0x214, &0x0010_0000_u32.to_le_bytes());
    put(0x22c, &0x37ff_ffff_u32.to_le_bytes());
    // What it would start.
    file.extend([0; 512]);
    file
}
