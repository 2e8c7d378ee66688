//! The memory functions that the compiler calls, for a program without a C library.
//!
//! They go by words rather than with `rep movsb`, which an emulated processor runs byte by
//! byte. The names have a prefix, so that the functions can be tested in a program that has a C
//! library; the agent's binary gives them their own names.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .text.aleph_memory,\"ax\",@progbits",
    ".globl aleph_memcpy, aleph_memmove, aleph_memset, aleph_memcmp, aleph_strlen",
    // (rdi: to, rsi: from, rdx: count). Loads of a block come before its stores, so it is also
    // right for overlapping ranges where `to` is below `from`.
    "aleph_memcpy:",
    "    mov rax, rdi",
    "2:  cmp rdx, 32",
    "    jb 3f",
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    add rsi, 32",
    "    add rdi, 32",
    "    sub rdx, 32",
    "    jmp 2b",
    "3:  cmp rdx, 8",
    "    jb 4f",
    "    mov rcx, [rsi]",
    "    mov [rdi], rcx",
    "    add rsi, 8",
    "    add rdi, 8",
    "    sub rdx, 8",
    "    jmp 3b",
    "4:  test rdx, rdx",
    "    jz 5f",
    "    mov cl, [rsi]",
    "    mov [rdi], cl",
    "    inc rsi",
    "    inc rdi",
    "    dec rdx",
    "    jmp 4b",
    "5:  ret",
    // The same, from the end where `to` lies within the source.
    "aleph_memmove:",
    "    mov rax, rdi",
    "    sub rax, rsi",
    "    cmp rax, rdx",
    "    jae aleph_memcpy",
    "    mov rax, rdi",
    "2:  cmp rdx, 8",
    "    jb 3f",
    "    mov rcx, [rsi + rdx - 8]",
    "    mov [rdi + rdx - 8], rcx",
    "    sub rdx, 8",
    "    jmp 2b",
    "3:  test rdx, rdx",
    "    jz 4f",
    "    mov cl, [rsi + rdx - 1]",
    "    mov [rdi + rdx - 1], cl",
    "    dec rdx",
    "    jmp 3b",
    "4:  ret",
    // (rdi: to, sil: byte, rdx: count)
    "aleph_memset:",
    "    mov rax, rdi",
    "    movzx ecx, sil",
    "    mov rsi, 0x0101010101010101",
    "    imul rcx, rsi",
    "2:  cmp rdx, 8",
    "    jb 3f",
    "    mov [rdi], rcx",
    "    add rdi, 8",
    "    sub rdx, 8",
    "    jmp 2b",
    "3:  test rdx, rdx",
    "    jz 4f",
    "    mov [rdi], cl",
    "    inc rdi",
    "    dec rdx",
    "    jmp 3b",
    "4:  ret",
    // (rdi, rsi: what to compare, rdx: count)
    "aleph_memcmp:",
    "2:  cmp rdx, 8",
    "    jb 3f",
    "    mov rcx, [rdi]",
    "    cmp rcx, [rsi]",
    "    jne 3f",
    "    add rdi, 8",
    "    add rsi, 8",
    "    sub rdx, 8",
    "    jmp 2b",
    "3:  xor eax, eax",
    "4:  test rdx, rdx",
    "    jz 5f",
    "    movzx eax, byte ptr [rdi]",
    "    movzx ecx, byte ptr [rsi]",
    "    inc rdi",
    "    inc rsi",
    "    dec rdx",
    "    sub eax, ecx",
    "    jz 4b",
    "5:  ret",
    // (rdi: text that ends in a zero)
    "aleph_strlen:",
    "    mov rax, rdi",
    "2:  cmp byte ptr [rax], 0",
    "    je 3f",
    "    inc rax",
    "    jmp 2b",
    "3:  sub rax, rdi",
    "    ret",
    ".popsection",
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    unsafe extern "C" {
        fn aleph_memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8;
        fn aleph_memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8;
        fn aleph_memset(to: *mut u8, byte: i32, n: usize) -> *mut u8;
        fn aleph_memcmp(a: *const u8, b: *const u8, n: usize) -> i32;
        fn aleph_strlen(text: *const u8) -> usize;
    }

    #[test]
    fn texts_are_measured() {
        for text in [c"", c"a", c"of some length"] {
            // SAFETY: the text ends in a zero.
            let n = unsafe { aleph_strlen(text.as_ptr().cast()) };
            assert_eq!(n, text.count_bytes());
        }
    }

    proptest! {
        #[test]
        fn bytes_move_as_slices_say(
            bytes in prop::collection::vec(any::<u8>(), 1..300),
            from in 0_usize..300, to in 0_usize..300, n in 0_usize..300,
        ) {
            let (from, to) = (from % bytes.len(), to % bytes.len());
            let n = n.min(bytes.len() - from.max(to));
            let mut want = bytes.clone();
            want.copy_within(from..from + n, to);
            let mut got = bytes.clone();
            let base = got.as_mut_ptr();
            // SAFETY: both ranges lie in the vector.
            let returned = unsafe { aleph_memmove(base.add(to), base.add(from), n) };
            prop_assert_eq!(returned, base.wrapping_add(to));
            prop_assert_eq!(&got, &want);

            let mut copy = vec![0; n];
            // SAFETY: both have `n` bytes and do not overlap.
            unsafe { aleph_memcpy(copy.as_mut_ptr(), bytes.as_ptr().add(from), n) };
            prop_assert_eq!(&copy[..], &bytes[from..from + n]);
        }

        #[test]
        fn bytes_are_set(byte in any::<u8>(), n in 0_usize..100, rest in 0_usize..20) {
            let mut got = vec![!byte; n + rest];
            // SAFETY: the vector has at least `n` bytes.
            unsafe { aleph_memset(got.as_mut_ptr(), i32::from(byte) | 0x100, n) };
            prop_assert!(got[..n].iter().all(|b| *b == byte));
            prop_assert!(got[n..].iter().all(|b| *b == !byte));
        }

        #[test]
        fn bytes_compare_as_slices_do(
            a in prop::collection::vec(0_u8..3, 0..50), b in prop::collection::vec(0_u8..3, 0..50),
        ) {
            let n = a.len().min(b.len());
            // SAFETY: both have at least `n` bytes.
            let got = unsafe { aleph_memcmp(a.as_ptr(), b.as_ptr(), n) };
            prop_assert_eq!(got.cmp(&0), a[..n].cmp(&b[..n]));
        }
    }
}
