//! Programs of a few instructions for x86-64 Linux, which need nothing but their own file: what
//! runs in a jail cannot have a library.

/// A program that opens a file and ends with its first byte, or with the error's number.
pub(crate) fn read_and_exit(path: &str, flags: u32) -> Vec<u8> {
    let mut code = vec![0xb8, 2, 0, 0, 0]; // mov eax, open
    code.extend([0x48, 0x8d, 0x3d]); // lea rdi, [rip + after]
    let place = code.len();
    code.extend([0; 4]);
    code.push(0xbe); // mov esi, flags
    code.extend(flags.to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x48, 0x85, 0xc0, 0x78, 29]); // test rax, rax; js failed
    let good = code.len();
    code.extend([0x89, 0xc7, 0x31, 0xc0]); // mov edi, eax; xor eax, eax (read)
    code.extend([0x48, 0x8d, 0x74, 0x24, 0xf0]); // lea rsi, [rsp - 16]
    code.extend([0xba, 1, 0, 0, 0]); // mov edx, 1
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x0f, 0xb6, 0x7c, 0x24, 0xf0]); // movzx edi, byte [rsp - 16]
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // mov eax, exit; syscall
    code[good - 1] = u8::try_from(code.len() - good).unwrap_or_default();
    code.extend([0xf7, 0xd8, 0x89, 0xc7]); // failed: neg eax; mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // mov eax, exit; syscall
    let after = u32::try_from(code.len() - place - 4).unwrap_or_default();
    code[place..place + 4].copy_from_slice(&after.to_le_bytes());
    code.extend(path.as_bytes());
    code.push(0);
    program(&code)
}

/// A program that waits until it is killed.
pub(crate) fn pause() -> Vec<u8> {
    // mov eax, pause; syscall; jmp to the first
    program(&[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])
}

/// An ELF file with this code, as `elf(5)` has it.
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 64 + 56;
    let length = u64::from(HEADERS) + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, n: u16| file.extend(n.to_le_bytes());
    let word = |file: &mut Vec<u8>, n: u32| file.extend(n.to_le_bytes());
    let long = |file: &mut Vec<u8>, n: u64| file.extend(n.to_le_bytes());
    half(&mut file, 2); // an executable file
    half(&mut file, 62); // for x86-64
    word(&mut file, 1);
    long(&mut file, BASE + u64::from(HEADERS)); // where it begins
    long(&mut file, 64); // program headers
    long(&mut file, 0); // no sections
    word(&mut file, 0);
    for n in [64, 56, 1, 64, 0, 0] {
        half(&mut file, n);
    }
    word(&mut file, 1); // loaded
    word(&mut file, 5); // to be read and executed
    for n in [0, BASE, BASE, length, length, 4096] {
        long(&mut file, n);
    }
    file.extend(code);
    file
}
