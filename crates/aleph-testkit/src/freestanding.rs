//! A guest of some twenty instructions, for hosts whose KVM runs nothing larger.

/// Where it is loaded: the first address that a kernel may have.
const ADDRESS: u64 = 0x10_0000;

/// Where its instructions begin in the file.
const OFFSET: usize = 0x1000;

/// Writes the letters from a to z to 26 pages from 4 MiB on, one to each. Then writes them to the first
/// serial port as those pages have them, again and again, with a pause of 16,000 instructions after
/// each, and counts in each page how often that was.
const CODE: &[u8] = &[
    0xbf, 0x00, 0x00, 0x40, 0x00, //    mov edi, 0x400000
    0xb0, 0x61, //                      mov al, 'a'
    0x88, 0x07, //                   1: mov [rdi], al
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0xfe, 0xc0, //                      inc al
    0x3c, 0x7b, //                      cmp al, 'z' + 1
    0x72, 0xf2, //                      jb 1b
    0xbf, 0x00, 0x00, 0x40, 0x00, // 2: mov edi, 0x400000
    0xb3, 0x1a, //                      mov bl, 26
    0xba, 0xf8, 0x03, 0x00, 0x00, //    mov edx, 0x3f8
    0x8a, 0x07, //                   3: mov al, [rdi]
    0xee, //                            out dx, al
    0xff, 0x47, 0x08, //                inc dword [rdi + 8]
    0xb9, 0x00, 0x20, 0x00, 0x00, //    mov ecx, 0x2000
    0xff, 0xc9, //                   4: dec ecx
    0x75, 0xfc, //                      jnz 4b
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0xfe, 0xcb, //                      dec bl
    0x75, 0xe7, //                      jnz 3b
    0xeb, 0xd7, //                      jmp 2b
];

/// It, as an ELF kernel for a VMM that starts those in long mode.
#[must_use]
pub fn freestanding_kernel() -> Vec<u8> {
    let mut elf = vec![0; OFFSET];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    let length = CODE.len() as u64;
    // The file: 64 bits, little-endian, an executable for x86-64.
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &ADDRESS.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    // Its one segment: loaded, readable and executable.
    put(64, &1_u32.to_le_bytes());
    put(68, &5_u32.to_le_bytes());
    put(72, &(OFFSET as u64).to_le_bytes());
    put(80, &ADDRESS.to_le_bytes());
    put(88, &ADDRESS.to_le_bytes());
    put(96, &length.to_le_bytes());
    put(104, &length.to_le_bytes());
    put(112, &4096_u64.to_le_bytes());
    elf.extend(CODE);
    elf
}
