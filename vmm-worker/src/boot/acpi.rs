//! The ACPI tables: how a stock kernel finds its processors, its interrupt controllers and every device.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no PM timer, no SCI, no fixed power button. Sleep and reset are single
//! registers, and the power button is a device that the Generic Event Device announces.

use super::BootError;
use super::layout::{ACPI, ACPI_SIZE};
use crate::devices::{VirtioSlot, layout as device};
use crate::memory::GuestMemory;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
    Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

const OEM: [u8; 6] = *b"VMSUP ";
const OEM_TABLE: [u8; 8] = *b"VMSUP   ";
const OEM_REVISION: u32 = 1;
/// Where a PC has its I/O APIC and its local APICs, and KVM with it.
const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// FADT IAPC_BOOT_ARCH: no VGA, no CMOS clock (the guest has kvmclock). The bit for an i8042 is not set: that one can
/// only reset, and a guest that probes it for a keyboard wastes its time.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// Notification value of a power button that was pressed (ACPI 6.5, 4.8.2.2.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// Writes the tables and returns the address of the RSDP.
///
/// # Errors
/// Guest RAM does not take them.
pub fn write(memory: &GuestMemory, cpus: u8, virtio: &[VirtioSlot]) -> Result<u64, BootError> {
    let tables = tables(ACPI, cpus, virtio);
    debug_assert!(tables.len() <= ACPI_SIZE);
    memory.write_slice(&tables, GuestAddress(ACPI))?;
    Ok(ACPI)
}

/// All tables, one after the other, as they lie at `base`. The RSDP is first.
fn tables(base: u64, cpus: u8, virtio: &[VirtioSlot]) -> Vec<u8> {
    // The RSDP is written last, into the room that is left for it: it holds the XSDT's address.
    let mut all = vec![0; Rsdp::len()];
    let dsdt = append(&mut all, base, &dsdt(virtio));
    let mut fadt = Vec::new();
    fadt_at(dsdt).to_aml_bytes(&mut fadt);
    let fadt = append(&mut all, base, &fadt);
    let mut madt = Vec::new();
    processors(cpus).to_aml_bytes(&mut madt);
    let madt = append(&mut all, base, &madt);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let mut bytes = Vec::new();
    xsdt.to_aml_bytes(&mut bytes);
    let xsdt = append(&mut all, base, &bytes);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    all[..rsdp.len()].copy_from_slice(&rsdp);
    all
}

/// Puts a table at the next multiple of 16 and returns its address.
fn append(all: &mut Vec<u8>, base: u64, table: &[u8]) -> u64 {
    all.resize(all.len().next_multiple_of(16), 0);
    let address = base + all.len() as u64;
    all.extend_from_slice(table);
    address
}

fn fadt_at(dsdt: u64) -> FADT {
    let register = |port: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // No fixed buttons: the power button is a device, and there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = register(device::RESET_PORT);
    fadt.reset_value = device::RESET_VALUE;
    fadt.sleep_control_reg = register(device::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(device::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"VMSUP\0\0\0").into();
    fadt.finalize()
}

fn processors(cpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(virtio: &[VirtioSlot]) -> Vec<u8> {
    let mut aml = Vec::new();
    let (s5, zero) = (device::SLEEP_TYPE_S5, 0u8);
    Name::new(Path::new("_S5_"), &Package::new(vec![&s5, &s5, &zero, &zero])).to_aml_bytes(&mut aml);
    let serial = Device::new(
        Path::new("COM1"),
        vec![&PNP_COM1, &FIRST, &Resources(Space::Ports(device::COM1_PORT, device::COM1_SIZE), device::COM1_GSI)],
    );
    Scope::new(Path::new("_SB_"), vec![&serial, &PowerButton, &EventDevice]).to_aml_bytes(&mut aml);
    for (n, slot) in virtio.iter().enumerate() {
        let (name, number) = (format!("VR{n:02}"), n as u8);
        let window = Resources(Space::Window(slot.base, slot.size), slot.gsi);
        let hardware = Name::new(Path::new("_HID"), &"LNRO0005");
        let unique = Name::new(Path::new("_UID"), &number);
        let device = Device::new(Path::new(&name), vec![&hardware, &unique, &window]);
        Scope::new(Path::new("_SB_"), vec![&device]).to_aml_bytes(&mut aml);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// A `_HID` of the PNP kind.
struct Pnp(&'static str);
const PNP_COM1: Pnp = Pnp("PNP0501");

impl Aml for Pnp {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Name::new(Path::new("_HID"), &EISAName::new(self.0)).to_aml_bytes(sink);
    }
}

/// `_UID` of the first of its kind.
struct Unique(u8);
const FIRST: Unique = Unique(0);

impl Aml for Unique {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Name::new(Path::new("_UID"), &self.0).to_aml_bytes(sink);
    }
}

/// Where a device's registers are.
enum Space {
    Ports(u64, u64),
    Window(u64, u64),
    Nowhere,
}

/// `_CRS`: registers and one interrupt, edge-triggered, active high, not shared.
struct Resources(Space, u32);

impl Aml for Resources {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = Interrupt::new(true, true, false, false, self.1);
        // Ports and windows are constants of `devices::layout`, within 16 and 32 bits.
        let template = |space: &dyn Aml, sink: &mut dyn AmlSink| {
            Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![space, &interrupt])).to_aml_bytes(sink);
        };
        match self.0 {
            Space::Ports(base, size) => template(&IO::new(base as u16, base as u16, 1, size as u8), sink),
            Space::Window(base, size) => template(&Memory32Fixed::new(true, base as u32, size as u32), sink),
            Space::Nowhere => {
                Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])).to_aml_bytes(sink);
            }
        }
    }
}

/// The power button (control method, ACPI 6.5, 4.8.2.2.1.2).
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(Path::new("PWRB"), vec![&Pnp("PNP0C0C"), &FIRST]).to_aml_bytes(sink);
    }
}

/// The Generic Event Device (ACPI 6.5, 5.6.9): its interrupt runs `_EVT`, which reads the event select register and
/// tells the power button.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (port, length) = (device::GED_SELECT_PORT as u16, 1u8);
        let (select, local) = (Path::new("ESEL"), Local(0));
        let (button, pressed, bit) = (Path::new("\\_SB_.PWRB"), BUTTON_PRESSED, device::GED_POWER_BUTTON);
        let masked = And::new(&Local(1), &local, &bit);
        Device::new(
            Path::new("GED_"),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0013"),
                &FIRST,
                &Resources(Space::Nowhere, device::GED_GSI),
                &OpRegion::new(Path::new("EREG"), OpRegionSpace::SystemIO, &port, &length),
                &Field::new(
                    Path::new("EREG"),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    vec![FieldEntry::Named(*b"ESEL", 8)],
                ),
                &Method::new(
                    Path::new("_EVT"),
                    1,
                    true,
                    vec![&Store::new(&local, &select), &If::new(&masked, vec![&Notify::new(&button, &pressed)])],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize) -> Vec<VirtioSlot> {
        (0..count)
            .map(|n| VirtioSlot {
                base: device::VIRTIO_BASE + n as u64 * device::VIRTIO_SIZE,
                size: device::VIRTIO_SIZE,
                gsi: 10 + n as u32,
            })
            .collect()
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> usize {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    }

    /// The table at `address`, its checksum verified.
    fn table(all: &[u8], address: usize) -> &[u8] {
        let at = address - ACPI as usize;
        let bytes = &all[at..at + u32_at(all, at + 4)];
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum of {:?}", &bytes[..4]);
        bytes
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let all = tables(ACPI, 3, &slots(2));
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!(all[..20].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(all[..36].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        let xsdt = table(&all, u64_at(&all, 24));
        let fadt = table(&all, u64_at(xsdt, 36));
        let madt = table(&all, u64_at(xsdt, 44));
        assert_eq!((&fadt[..4], &madt[..4]), (b"FACP".as_slice(), b"APIC".as_slice()));
        assert_eq!(&table(&all, u64_at(fadt, 140))[..4], b"DSDT");
    }

    #[test]
    fn the_madt_has_every_vcpu_once() {
        let mut bytes = Vec::new();
        processors(32).to_aml_bytes(&mut bytes);
        let ids: Vec<u8> = bytes[44..44 + 32 * 8].chunks(8).map(|entry| entry[3]).collect();
        assert_eq!(ids, (0..32).collect::<Vec<u8>>());
        assert_eq!(bytes.len(), 44 + 32 * 8 + 12);
    }

    #[test]
    fn the_largest_machine_has_room_for_its_tables() {
        let all = tables(ACPI, worker_api::CPUS_MAX, &slots(worker_api::DISKS_MAX + 8));
        assert!(all.len() <= ACPI_SIZE, "{} bytes", all.len());
    }

    #[test]
    fn the_dsdt_names_every_virtio_window() {
        let aml = dsdt(&slots(3));
        for slot in slots(3) {
            let mut window = vec![0x86, 9, 0, 1];
            window.extend_from_slice(&(slot.base as u32).to_le_bytes());
            window.extend_from_slice(&(slot.size as u32).to_le_bytes());
            assert_eq!(aml.windows(window.len()).filter(|w| *w == window).count(), 1);
        }
    }
}
