//! The first vCPU's registers at the guest's first instruction. All others wait for the guest's start-up interrupt, in
//! the state that KVM resets them to.

use super::Entry;
use super::layout::GDT;
use super::linux::GDT_ENTRIES;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 1 << 1;

/// IA32_APIC_BASE: address, on, of the bootstrap processor.
const APIC_BASE: u64 = 0xfee0_0000;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_FIRST: u64 = 1 << 8;

const LDT: u8 = 0b0010;
const CODE: u8 = 0b1011;
const DATA: u8 = 0b0011;
const BUSY_TSS: u8 = 0b1011;

/// The segments and control registers of the first vCPU after a reset (Intel SDM 3, table 10-1), with its local APIC where
/// it always is, switched on.
pub fn at_reset() -> kvm_sregs {
    kvm_sregs {
        ldt: kvm_segment { limit: 0xffff, type_: LDT, present: 1, ..kvm_segment::default() },
        cr0: 0x6000_0010,
        apic_base: APIC_BASE | APIC_ENABLED | APIC_FIRST,
        ..kvm_sregs::default()
    }
}

/// Changes `sregs` (as a reset leaves them) for `entry` and gives the general registers.
pub fn at_entry(entry: Entry, sregs: &mut kvm_sregs) -> kvm_regs {
    let data = flat(0x18, DATA, false);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: BUSY_TSS, present: 1, ..kvm_segment::default() };
    sregs.idt.limit = 0;
    match entry {
        Entry::Pvh { rip, start_info } => {
            sregs.cs = flat(0x10, CODE, false);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs { rip: rip.into(), rbx: start_info.into(), rflags: RFLAGS_FIXED, ..kvm_regs::default() }
        }
        Entry::Linux64 { rip, zero_page, page_table } => {
            sregs.cs = flat(0x10, CODE, true);
            sregs.gdt.base = GDT;
            sregs.gdt.limit = size_of_val(&GDT_ENTRIES) as u16 - 1;
            sregs.cr3 = page_table;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
            kvm_regs { rip, rsi: zero_page, rflags: RFLAGS_FIXED, ..kvm_regs::default() }
        }
    }
}

/// A segment over the whole address space, of 32 bits, or of 64 bits where `long`.
fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_is_entered_with_paging_off_and_the_start_info_in_ebx() {
        let mut sregs = kvm_sregs { cr0: 0x6000_0010, ..kvm_sregs::default() };
        let regs = at_entry(Entry::Pvh { rip: 0x100_0000, start_info: 0x6000 }, &mut sregs);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, 0x6000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.ss.db), (1, 0, 1));
    }

    #[test]
    fn linux_is_entered_in_long_mode_with_the_zero_page_in_rsi() {
        let mut sregs = kvm_sregs::default();
        let entry = Entry::Linux64 { rip: 0x10_0200, zero_page: 0x7000, page_table: 0x9000 };
        let regs = at_entry(entry, &mut sregs);
        assert_eq!((regs.rip, regs.rsi), (0x10_0200, 0x7000));
        assert_eq!((sregs.cr3, sregs.efer, sregs.cr0 >> 31), (0x9000, 0x500, 1));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.gdt.base, sregs.gdt.limit), (0, 1, GDT, 31));
    }
}
