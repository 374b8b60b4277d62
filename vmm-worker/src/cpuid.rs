//! What CPUID tells the guest: what KVM supports, with a topology of one socket, one core a vCPU, one thread a core, and
//! without nested virtualisation.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX: Intel's VMX.
const VMX: u32 = 1 << 5;
/// Leaf 1, ECX: the local APIC timer has a mode that counts to a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: AMD's SVM.
const SVM: u32 = 1 << 2;
/// Leaf 0x8000_0001, ECX: with HTT, the logical processors are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;

/// The CPUID of vCPU number `index` of `count`, from what KVM supports. `tsc_deadline`: the in-kernel local APIC has
/// that timer mode, which KVM tells by a capability and not by CPUID.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    // A leaf that describes dies and modules (0x1f) would overrule leaf 0xb, which is written below. Without the leaf
    // the guest reads zeros, which end it.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for entry in cpuid.as_mut_slice() {
        adapt(entry, index, count, tsc_deadline);
    }
    let has_leaf_b = supported.as_slice().iter().any(|entry| entry.function == 0xb);
    if has_leaf_b {
        for level in 0..2 {
            // The list of KVM's has room: it had at least one entry of this leaf, and KVM takes what is missing as zeros.
            let _ = cpuid.push(topology_level(level, index, count));
        }
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, index: u8, count: u8, tsc_deadline: bool) {
    let (apic_id, cores) = (u32::from(index), u32::from(count));
    match entry.function {
        0x1 => {
            entry.ecx &= !(VMX | TSC_DEADLINE);
            entry.ecx |= HYPERVISOR | if tsc_deadline { TSC_DEADLINE } else { 0 };
            entry.ebx = entry.ebx & 0xffff | apic_id << 24 | cores << 16;
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Intel's caches: no type, no cache. The last level is shared by all, the others by none.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            entry.eax = entry.eax & 0x3fff | (cores - 1) << 26 | sharers(level, count) << 14;
        }
        0x8000_0001 => {
            entry.ecx &= !(SVM | CMP_LEGACY);
            entry.ecx |= if count > 1 { CMP_LEGACY } else { 0 };
        }
        // Bits of the APIC id that number the cores, and the number of cores less one.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits(count) << 12 | (cores - 1),
        // SVM's own leaf.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD's caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            entry.eax = entry.eax & !(0xfff << 14) | sharers(level, count) << 14;
        }
        // AMD's topology: the id, one thread a core, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id & 0xff, 0),
        _ => (),
    }
}

/// How many vCPUs beside the first share a cache of `level`, as CPUID counts them: rounded up to whole bits of APIC id.
fn sharers(level: u32, count: u8) -> u32 {
    if level >= 3 { (1 << id_bits(count)) - 1 } else { 0 }
}

/// Bits that the APIC ids of `count` vCPUs differ in.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

/// Leaf 0xb: level 0 is the thread (one in a core), level 1 the core (`count` in a package).
fn topology_level(level: u32, index: u8, count: u8) -> kvm_cpuid_entry2 {
    let (shift, processors, kind) = if level == 0 { (0, 1, 1) } else { (id_bits(count), u32::from(count), 2) };
    kvm_cpuid_entry2 {
        function: 0xb,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | level,
        edx: index.into(),
        ..kvm_cpuid_entry2::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        let all = u32::MAX;
        kvm_cpuid_entry2 { function, index, eax, ebx: all, ecx: all, edx: all, ..kvm_cpuid_entry2::default() }
    }

    fn supported() -> CpuId {
        let entries = [
            entry(0x1, 0, 0),
            entry(0x4, 0, 0x121),
            entry(0x4, 3, 0x163),
            entry(0x4, 4, 0),
            entry(0xb, 0, 0),
            entry(0x1f, 0, 7),
            entry(0x8000_0001, 0, 0),
            entry(0x8000_0008, 0, 0),
            entry(0x8000_000a, 0, 1),
            entry(0x8000_001d, 3, 0x163),
            entry(0x8000_001e, 0, 0),
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).copied()
    }

    #[test]
    fn the_guest_sees_no_nested_virtualisation() {
        let cpuid = for_vcpu(&supported(), 0, 2, true);
        assert_eq!(leaf(&cpuid, 1, 0).unwrap().ecx & VMX, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).unwrap().ecx & SVM, 0);
        let svm = leaf(&cpuid, 0x8000_000a, 0).unwrap();
        assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_every_leaf_that_tells_it() {
        for count in [1, 2, 3, 32] {
            for index in 0..count {
                let cpuid = for_vcpu(&supported(), index, count, true);
                let id = u32::from(index);
                assert_eq!(leaf(&cpuid, 1, 0).unwrap().ebx >> 24, id);
                assert_eq!(leaf(&cpuid, 0xb, 0).unwrap().edx, id);
                assert_eq!(leaf(&cpuid, 0xb, 1).unwrap().edx, id);
                assert_eq!(leaf(&cpuid, 0x8000_001e, 0).unwrap().eax, id);
            }
        }
    }

    #[test]
    fn the_topology_is_one_socket_of_single_threaded_cores() {
        let cpuid = for_vcpu(&supported(), 2, 3, true);
        let (thread, core) = (leaf(&cpuid, 0xb, 0).unwrap(), leaf(&cpuid, 0xb, 1).unwrap());
        assert_eq!((thread.eax, thread.ebx, thread.ecx), (0, 1, 0x100));
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
        assert!(leaf(&cpuid, 0x1f, 0).is_none());
        assert_eq!(leaf(&cpuid, 0x4, 0).unwrap().eax >> 14, 2 << 12);
        assert_eq!(leaf(&cpuid, 0x4, 3).unwrap().eax >> 14, 2 << 12 | 3);
        assert_eq!(leaf(&cpuid, 0x4, 4).unwrap().eax, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).unwrap().ecx & 0xf0ff, 2 << 12 | 2);
        assert_eq!(leaf(&cpuid, 1, 0).unwrap().ebx >> 16 & 0xff, 3);
    }

    #[test]
    fn the_deadline_timer_is_told_where_kvm_has_it_and_only_there() {
        for has in [true, false] {
            let ecx = leaf(&for_vcpu(&supported(), 0, 1, has), 1, 0).unwrap().ecx;
            assert_eq!(ecx & TSC_DEADLINE != 0, has);
            assert_ne!(ecx & HYPERVISOR, 0);
        }
    }
}
