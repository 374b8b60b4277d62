//! The VM in KVM: memslots, interrupt controllers, vCPUs, and the wires between KVM and the devices.
//!
//! Runs on the main thread, each vCPU's part on its own thread, under the start-up filter; after narrowing no thread may
//! call any of these ioctls. Memslots come before the interrupt controllers: the other way round each waits for a grace
//! period of the kernel's.

use crate::boot::{Entry, registers};
use crate::devices::IoEvent;
use crate::interrupt::Interrupt;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::{cpuid, sys};
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS, KVM_MAX_CPUID_ENTRIES, KVM_X86_QUIRK_LINT0_REENABLED, Msrs,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, SyncReg, VcpuFd, VmFd};
use rustix::fs::{FileType, fstat};
use std::os::fd::OwnedFd;
use worker_api::{Part, StartFailure};

/// Three pages that Intel's processors need to run real mode, and that no guest RAM may take: in the MMIO hole, below
/// the BIOS's place.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// IA32_MISC_ENABLE, and its bit for fast string instructions.
const MSR_MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: MTRRs on, all memory write-back. Without it Linux takes memory for uncached.
const MSR_MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Why KVM could not make the VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// What was passed as `/dev/kvm` is something else.
    #[error("the fd for /dev/kvm is not KVM")]
    NotKvm,
    /// One of its requests failed.
    #[error("KVM cannot {what}: {why}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        why: kvm_ioctls::Error,
    },
    /// The supervisor passed on something that is no CPUID.
    #[error("{0} CPUID entries are more than KVM takes")]
    Offer(usize),
    /// A vCPU's thread could not be called out of the guest.
    #[error("a vCPU cannot be made to pause: {0}")]
    Kick(std::io::Error),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl From<&VmError> for StartFailure {
    fn from(error: &VmError) -> Self {
        let part = match error {
            VmError::Memory(_) => Part::Memory,
            VmError::Kick(_) => Part::Thread,
            VmError::NotKvm | VmError::Refused { .. } | VmError::Offer(_) => Part::Kvm,
        };
        StartFailure { part, detail: error.to_string() }
    }
}

impl From<VmError> for StartFailure {
    fn from(error: VmError) -> Self {
        StartFailure::from(&error)
    }
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |why| VmError::Refused { what, why }
}

/// Takes `/dev/kvm`.
///
/// # Errors
/// It is something else.
pub fn kvm(fd: OwnedFd) -> Result<Kvm, VmError> {
    let stat = fstat(&fd).map_err(|_| VmError::NotKvm)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(VmError::NotKvm);
    }
    let kvm = sys::kvm(fd);
    if u32::try_from(kvm.get_api_version()) == Ok(KVM_API_VERSION) { Ok(kvm) } else { Err(VmError::NotKvm) }
}

/// Makes the VM with its RAM.
///
/// # Errors
/// What KVM says.
pub fn create(kvm: &Kvm, memory: &'static GuestMemory) -> Result<VmFd, VmError> {
    let vm = kvm.create_vm().map_err(refused("make a VM"))?;
    memory::show_to_guest(&vm, memory)?;
    vm.set_tss_address(TSS_ADDRESS).map_err(refused("place the TSS"))?;
    Ok(vm)
}

/// Makes the interrupt controllers.
///
/// # Errors
/// What KVM says.
pub fn create_interrupt_controllers(vm: &VmFd) -> Result<(), VmError> {
    vm.create_irq_chip().map_err(refused("make the interrupt controllers"))?;
    cut_off_pic(vm)
}

/// What KVM can offer to every vCPU. Asking is slow (a third of a millisecond where the host itself is virtual), so it is
/// asked once, beside the making of the VM.
pub struct Offer {
    cpuid: CpuId,
    tsc_deadline: bool,
}

impl Offer {
    /// Asks KVM.
    ///
    /// # Errors
    /// What KVM says.
    pub fn ask(kvm: &Kvm) -> Result<Self, VmError> {
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("tell its CPUID"))?;
        Ok(Offer { cpuid, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
    }

    /// As the supervisor passes it on.
    pub fn to_wire(&self) -> worker_api::Offer {
        let entry = |e: &kvm_cpuid_entry2| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx];
        worker_api::Offer { cpuid: self.cpuid.as_slice().iter().map(entry).collect(), tsc_deadline: self.tsc_deadline }
    }

    /// As another worker was told. Its length was checked with the spec.
    ///
    /// # Errors
    /// There are more entries than KVM takes.
    pub fn from_wire(offer: &worker_api::Offer) -> Result<Self, VmError> {
        let entry = |&[function, index, flags, eax, ebx, ecx, edx]: &[u32; 7]| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        };
        let entries: Vec<_> = offer.cpuid.iter().map(entry).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| VmError::Offer(entries.len()))?;
        Ok(Offer { cpuid, tsc_deadline: offer.tsc_deadline })
    }
}

/// Makes vCPU number `index` of `count`. After the interrupt controllers.
///
/// # Errors
/// What KVM says.
pub fn create_vcpu(vm: &VmFd, offer: &Offer, index: u8, count: u8) -> Result<VcpuFd, VmError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(refused("make a vCPU"))?;
    let cpuid = cpuid::for_vcpu(&offer.cpuid, index, count, offer.tsc_deadline);
    vcpu.set_cpuid2(&cpuid).map_err(refused("set a vCPU's CPUID"))?;
    set_msrs(&vcpu);
    Ok(vcpu)
}

/// What firmware would set. A KVM that does not know one of these has nothing to set either.
fn set_msrs(vcpu: &VcpuFd) {
    let mut rest: &[_] = &[MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    // One request for all, because each loads the vCPU's state; KVM stops at the first that it does not know.
    while let Ok(msrs) = Msrs::from_entries(rest) {
        let set = vcpu.set_msrs(&msrs).unwrap_or(0);
        match rest.get(set + 1..) {
            Some(behind) if !behind.is_empty() => rest = behind,
            _ => break,
        }
    }
}

/// Cuts the PIC off from the first vCPU, before there is one. This machine has I/O APIC and local APICs only
/// (hardware-reduced ACPI), and no guest masks a PIC that it is told is not there; KVM's hears every interrupt, and has the
/// quirk of resetting the first LINT0 so that it gets through, with a vector that nobody chose.
fn cut_off_pic(vm: &VmFd) -> Result<(), VmError> {
    let mut quirks = kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS, ..kvm_enable_cap::default() };
    quirks.args[0] = KVM_X86_QUIRK_LINT0_REENABLED.into();
    vm.enable_cap(&quirks).map_err(refused("mask the PIC"))
}

/// Wires the devices: interrupts as irqfds, notifications as ioeventfds.
///
/// # Errors
/// What KVM says.
pub fn wire(vm: &VmFd, irqs: &[(u32, Interrupt)], ioevents: &[IoEvent]) -> Result<(), VmError> {
    for (gsi, interrupt) in irqs {
        vm.register_irqfd(interrupt.eventfd(), *gsi).map_err(refused("wire an interrupt"))?;
    }
    for event in ioevents {
        vm.register_ioevent(&event.fd, &IoEventAddress::Mmio(event.address), event.datamatch)
            .map_err(refused("wire a queue notification"))?;
    }
    Ok(())
}

/// Has the first vCPU take its registers for the guest's first instruction when it is first run: with KVM_RUN itself, for
/// each request of its own would load the vCPU's state once more.
pub fn enter(vcpu: &mut VcpuFd, entry: Entry) {
    let mut sregs = registers::at_reset();
    let regs = registers::at_entry(entry, &mut sregs);
    let shared = vcpu.sync_regs_mut();
    (shared.regs, shared.sregs) = (regs, sregs);
    vcpu.set_sync_dirty_reg(SyncReg::Register);
    vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VM of the machine's own KVM with these vCPUs, as a start makes it.
    fn vcpus(count: u8) -> (VmFd, Vec<VcpuFd>) {
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let kvm = kvm(device.into()).unwrap();
        let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
        let vm = create(&kvm, Box::leak(Box::new(memory))).unwrap();
        create_interrupt_controllers(&vm).unwrap();
        let offer = Offer::ask(&kvm).unwrap();
        let vcpus = (0..count).map(|index| create_vcpu(&vm, &offer, index, count).unwrap()).collect();
        (vm, vcpus)
    }

    /// Offset of LVT LINT0 in a local APIC, and the value that masks it.
    const LVT_LINT0: usize = 0x350;
    const LVT_MASKED: u32 = 1 << 16;

    #[test]
    fn what_kvm_offers_comes_through_the_supervisor_unchanged() {
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let asked = Offer::ask(&kvm(device.into()).unwrap()).unwrap();
        let told = Offer::from_wire(&asked.to_wire()).unwrap();
        assert_eq!(told.cpuid.as_slice(), asked.cpuid.as_slice());
        assert_eq!(told.tsc_deadline, asked.tsc_deadline);
        assert!(asked.cpuid.as_slice().len() <= worker_api::CPUID_MAX);
        let frame = worker_api::Reply::Offer(asked.to_wire());
        assert!(ipc::codec::encode(&frame, <worker_api::Reply as ipc::Message>::MAX_BYTES).is_ok());
    }

    #[test]
    fn the_first_vcpu_starts_from_what_a_reset_leaves() {
        let (_vm, vcpus) = vcpus(1);
        let reset = vcpus[0].get_sregs().unwrap();
        let ours = registers::at_reset();
        assert_eq!(ours.apic_base, reset.apic_base);
        assert_eq!(
            (ours.cr0, ours.cr2, ours.cr3, ours.cr4, ours.cr8),
            (reset.cr0, reset.cr2, reset.cr3, reset.cr4, reset.cr8)
        );
        assert_eq!((ours.ldt, ours.interrupt_bitmap), (reset.ldt, reset.interrupt_bitmap));
    }

    #[test]
    fn the_pic_cannot_interrupt_any_vcpu() {
        let (_vm, vcpus) = vcpus(2);
        for vcpu in vcpus {
            let state = vcpu.get_lapic().unwrap();
            let lint0: Vec<u8> = state.regs[LVT_LINT0..LVT_LINT0 + 4].iter().map(|b| *b as u8).collect();
            assert_eq!(u32::from_le_bytes(lint0.try_into().unwrap()), LVT_MASKED);
        }
    }

    #[test]
    fn every_vcpu_says_its_own_number() {
        let (_vm, vcpus) = vcpus(3);
        for (index, vcpu) in (0..).zip(vcpus) {
            let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let features = cpuid.as_slice().iter().find(|leaf| leaf.function == 1).unwrap();
            assert_eq!((features.ebx >> 24, features.ebx >> 16 & 0xff), (index, 3));
        }
    }

    /// Nothing but what KVM supports, and what `cpuid.rs` adds on purpose; of nested virtualisation nothing.
    #[test]
    fn a_vcpu_is_told_of_no_feature_that_kvm_does_not_support() {
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let supported = Offer::ask(&kvm(device.into()).unwrap()).unwrap().cpuid;
        // As it is passed to KVM: some back ends add to it themselves.
        let told = cpuid::for_vcpu(&supported, 1, 2, true);
        let leaf = |list: &CpuId, function, index| {
            let found = list.as_slice().iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
            found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        };
        let (ebx, ecx, edx) = (1, 2, 3);
        for (function, register, added) in [
            // Added: the deadline timer, which KVM tells otherwise, and that this is a guest.
            (0x1, ecx, 1 << 24 | 1 << 31),
            // HTT: two processors.
            (0x1, edx, 1 << 28),
            (0x7, ebx, 0),
            (0x7, ecx, 0),
            (0x7, edx, 0),
            // CMP_LEGACY: they are cores.
            (0x8000_0001, ecx, 1 << 1),
            (0x8000_0001, edx, 0),
            (0x8000_0007, edx, 0),
            (0x8000_0008, ebx, 0),
            (0x8000_000a, edx, 0),
        ] {
            let (told, supported) = (leaf(&told, function, 0)[register], leaf(&supported, function, 0)[register]);
            assert_eq!(told & !(supported | added), 0, "leaf {function:#x}, register {register}: {told:#x}");
        }
        let nested = [leaf(&told, 1, 0)[ecx] & 1 << 5, leaf(&told, 0x8000_0001, 0)[ecx] & 1 << 2];
        assert_eq!((nested, leaf(&told, 0x8000_000a, 0)), ([0; 2], [0; 4]));
    }

    #[test]
    fn what_is_not_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(kvm(null.into()), Err(VmError::NotKvm)));
        let pipe = std::io::pipe().unwrap().0;
        assert!(matches!(kvm(pipe.into()), Err(VmError::NotKvm)));
    }
}
