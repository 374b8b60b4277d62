//! Images that lie about themselves.

use super::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const RAM: u64 = 64 * MIB;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn file(bytes: &[u8]) -> OwnedFd {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file.into()
}

fn sources(kernel: OwnedFd, initrd: Option<OwnedFd>) -> Sources<'static> {
    Sources { kernel, initrd, cmdline: "console=ttyS0", cpus: 1, virtio: &[] }
}

fn boot(kernel: &[u8]) -> Result<Entry, BootError> {
    load(&memory(), RAM, sources(file(kernel), None))
}

/// The sentence that `kernel` is refused with.
fn refusal(kernel: &[u8]) -> String {
    match boot(kernel) {
        Ok(entry) => panic!("it was taken: {entry:x?}"),
        Err(error) => error.to_string(),
    }
}

/// An ELF64 with these segments: type, offset, address, bytes in the file, bytes in memory.
fn elf64(entry: u64, segments: &[(u32, u64, u64, u64, u64)], length: usize) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(2u16.to_le_bytes());
    bytes.extend(62u16.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(entry.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend([0; 8 + 4]);
    for half in [64u16, 56, segments.len() as u16, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (kind, offset, address, file_bytes, memory_bytes) in segments {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        for word in [offset, address, address, file_bytes, memory_bytes, &0x1000] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.resize(length, 0x90);
    bytes
}

/// An ELF32 with one segment and a PVH note in it.
fn elf32_pvh(entry: u32) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(2u16.to_le_bytes());
    bytes.extend(3u16.to_le_bytes());
    for word in [1u32, 0x1234_0000, 52, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 2, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (kind, offset, address, size) in [(1u32, 0u32, 0x100_0000u32, 0x200u32), (4, 0x180, 0x100_0180, 20)] {
        for word in [kind, offset, address, address, size, size, 5, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.resize(0x180, 0x90);
    for word in [4u32, 4, 18] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(entry.to_le_bytes());
    bytes.resize(0x200, 0x90);
    bytes
}

const AT: u64 = 0x100_0000;

/// The smallest bzImage: one setup sector and `body` bytes.
fn bzimage(body: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0u8; 1024 + body];
    bytes[0x1f1] = 1;
    bytes[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bytes[0x211] = 1; // loadflags: LOADED_HIGH
    bytes[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes()); // code32_start
    bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    bytes[0x234] = 1; // relocatable
    bytes[0x236..0x238].copy_from_slice(&1u16.to_le_bytes()); // xloadflags
    bytes[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes()); // cmdline_size
    bytes[0x258..0x260].copy_from_slice(&AT.to_le_bytes()); // pref_address
    bytes[0x260..0x264].copy_from_slice(&(8 * MIB as u32).to_le_bytes()); // init_size
    change(&mut bytes);
    bytes
}

#[test]
fn an_elf64_is_entered_in_long_mode() {
    let entry = boot(&elf64(AT + 4, &[(1, 0, AT, 0x300, 0x1000)], 0x300)).unwrap();
    assert!(matches!(entry, Entry::Linux64 { rip, .. } if rip == AT + 4), "{entry:x?}");
}

#[test]
fn who_jumps_to_the_bios_resets_the_machine() {
    let memory = memory();
    load(&memory, RAM, sources(file(&elf64(AT, &[(1, 0, AT, 0x300, 0x1000)], 0x300)), None)).unwrap();
    let mut code = [0; 9];
    memory.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
    // mov dx, 0x606; mov al, 1; out dx, al; hlt; jmp to hlt
    assert_eq!(code, [0xba, 0x06, 0x06, 0xb0, 1, 0xee, 0xf4, 0xeb, 0xfd]);
}

#[test]
fn an_elf32_with_a_pvh_note_is_entered_there() {
    let memory = memory();
    let entry = load(&memory, RAM, sources(file(&elf32_pvh(0x100_0010)), None)).unwrap();
    assert_eq!(entry, Entry::Pvh { rip: 0x100_0010, start_info: 0x6000 });
    let magic: u32 = memory.read_obj(GuestAddress(0x6000)).unwrap();
    assert_eq!(magic, 0x336e_c578);
    let mut cmdline = [0u8; 14];
    memory.read_slice(&mut cmdline, GuestAddress(CMDLINE)).unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    for bytes in [b"".as_slice(), b"#!/bin/sh\n", &[0; 4096], b"\x7fEL", b"MZ"] {
        assert_eq!(refusal(bytes), "boot.kernel is not a kernel: neither a bzImage nor an ELF");
    }
    let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
    let error = load(&memory(), RAM, sources(pipe, None)).unwrap_err();
    assert_eq!(error.to_string(), "boot.kernel is not a regular file");
}

#[test]
fn a_kernel_that_cannot_be_read_is_an_error() {
    let readable = file(&elf32_pvh(0x100_0010));
    let path = format!("/proc/self/fd/{}", readable.as_raw_fd());
    let write_only = File::options().write(true).open(path).unwrap();
    let error = load(&memory(), RAM, sources(write_only.into(), None)).unwrap_err();
    assert!(error.to_string().starts_with("boot.kernel cannot be read"), "{error}");
}

#[test]
fn an_elf_that_is_cut_short_is_refused_wherever_it_is_cut() {
    let whole = elf64(AT, &[(1, 0x100, AT, 0x200, 0x200), (4, 0x100, AT, 0x10, 0x10)], 0x300);
    assert!(boot(&whole).is_ok());
    for length in (4..whole.len()).step_by(7) {
        assert!(boot(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn an_elf_that_loads_over_itself_is_refused() {
    let error = refusal(&elf64(AT, &[(1, 0, AT, 0x100, 0x2000), (1, 0, AT + 0x1fff, 0x100, 0x100)], 0x200));
    assert!(error.contains("overwrites"), "{error}");
}

#[test]
fn an_elf_that_loads_outside_of_ram_is_refused() {
    for (address, size) in [
        (RAM, 0x1000),
        (RAM - 0x10, 0x1000),
        (0xd000_0000, 0x1000),
        (0xfee0_0000, 0x1000),
        (1 << 32, 0x1000),
        (u64::MAX - 0x10, 0x1000),
        (AT, u64::MAX),
        (AT, u64::MAX - AT),
    ] {
        let error = refusal(&elf64(address, &[(1, 0, address, 0x100, size)], 0x200));
        assert!(error.contains("raise memory_mib"), "{address:#x}: {error}");
    }
}

#[test]
fn an_elf_that_loads_over_the_boot_structures_is_refused() {
    for address in [0, 0x6000, 0x7000, 0xe_0000, HIGH_RAM - 1] {
        let error = refusal(&elf64(address, &[(1, 0, address, 0x100, 0x100)], 0x200));
        assert!(error.contains("the first MiB is taken"), "{address:#x}: {error}");
    }
}

#[test]
fn an_elf_whose_segment_is_not_in_the_file_is_refused() {
    for (offset, size) in [(0x200, 1), (0, 0x201), (u64::MAX, 1), (u64::MAX - 0x100, 0x200)] {
        let error = refusal(&elf64(AT, &[(1, offset, AT, size, 0x1000)], 0x200));
        assert!(error.contains("cut short"), "{offset:#x}: {error}");
    }
    let error = refusal(&elf64(AT, &[(1, 0, AT, 0x100, 0x10)], 0x200));
    assert!(error.contains("larger in the file than in memory"), "{error}");
}

#[test]
fn an_elf_that_begins_where_it_loads_nothing_is_refused() {
    for entry in [0, AT - 1, AT + 0x1000, u64::MAX] {
        let error = refusal(&elf64(entry, &[(1, 0, AT, 0x100, 0x1000)], 0x200));
        assert!(error.contains("loads nothing"), "{entry:#x}: {error}");
    }
}

#[test]
fn an_elf_for_another_machine_is_refused() {
    let good = elf64(AT, &[(1, 0, AT, 0x100, 0x1000)], 0x200);
    for (at, value, words) in [
        (18, 183, "another processor"),
        (16, 1, "object file"),
        (5, 2, "big-endian"),
        (4, 3, "unknown class"),
        (54, 55, "program headers"),
        (56, 0, "program headers"),
        (57, 255, "program headers"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        let error = refusal(&bytes);
        assert!(error.contains(words), "byte {at}: {error}");
    }
}

#[test]
fn random_changes_to_an_elf_never_panic() {
    let good = elf32_pvh(0x100_0010);
    let wide = elf64(AT, &[(1, 0, AT, 0x100, 0x1000), (4, 0x180, AT, 20, 20)], 0x200);
    let memory = memory();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut taken = 0;
    for round in 0..4000 {
        let mut bytes = if round % 2 == 0 { good.clone() } else { wide.clone() };
        for _ in 0..1 + round % 3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % 0xc0;
            bytes[at] = (state >> 20) as u8;
        }
        taken += u32::from(load(&memory, RAM, sources(file(&bytes), None)).is_ok());
    }
    assert!(taken > 100 && taken < 4000, "{taken} of 4000: the test changes too much or too little");
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    let memory = memory();
    let entry = load(&memory, RAM, sources(file(&bzimage(0x1000, |_| ())), Some(file(&[7; 5000])))).unwrap();
    assert!(matches!(entry, Entry::Linux64 { rip: 0x10_0200, zero_page: 0x7000, .. }), "{entry:x?}");
    let field = |at: u64| -> u32 { memory.read_obj(GuestAddress(0x7000 + at)).unwrap() };
    let initrd = u64::from(field(0x218));
    assert_eq!((initrd, field(0x21c)), (RAM - 2 * 4096, 5000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(initrd + 4999)).unwrap(), 7);
    assert_eq!(field(0x70), layout::ACPI as u32);
    assert_eq!(field(0x228), CMDLINE as u32);
}

#[test]
fn a_bzimage_without_room_to_unpack_is_refused() {
    let error = refusal(&bzimage(0x1000, |b| b[0x260..0x264].copy_from_slice(&(60 * MIB as u32).to_le_bytes())));
    assert!(error.contains("up to 76 MiB") && error.contains("up to 64 MiB"), "{error}");
    for pref in [u64::MAX, 0xd000_0000] {
        let error = refusal(&bzimage(0x1000, |b| b[0x258..0x260].copy_from_slice(&pref.to_le_bytes())));
        assert!(error.contains("raise memory_mib"), "{error}");
    }
}

#[test]
fn a_bzimage_without_a_64_bit_entry_is_refused() {
    let error = refusal(&bzimage(0x1000, |b| b[0x236] = 0));
    assert!(error.contains("no 64-bit entry"), "{error}");
    assert!(refusal(&bzimage(0x1000, |b| b[0x207] = 1)).contains("boot protocol 1."));
}

#[test]
fn a_bzimage_that_is_cut_short_is_refused() {
    let whole = bzimage(0x1000, |_| ());
    for length in [0x206, 0x264, 1023] {
        assert!(refusal(&whole[..length]).contains("cut short"), "{length} bytes");
    }
    // More setup sectors than the file has.
    assert!(refusal(&bzimage(0x1000, |b| b[0x1f1] = 255)).contains("cut short"));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let kernel = || file(&bzimage(0x1000, |_| ()));
    let huge = memfd_create("huge", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&huge, 1 << 40).unwrap();
    let error = load(&memory(), RAM, sources(kernel(), Some(huge))).unwrap_err();
    assert!(matches!(error, BootError::Initrd(_)));
    assert!(error.to_string().contains("room for 40 MiB"), "{error}");
    let error = load(&memory(), RAM, sources(kernel(), Some(file(b"")))).unwrap_err();
    assert_eq!(error.to_string(), "boot.initrd is empty");
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let error = load(&memory(), RAM, sources(file(&bzimage(0x1000, |b| b[0x238..0x23a].fill(0))), None)).unwrap_err();
    assert_eq!(error.to_string(), "boot.cmdline has 13 bytes, of which this kernel takes 0");
}
