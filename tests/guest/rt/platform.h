/* Where the machine has its devices: vmsup's places, as vmm-worker/src/devices/layout.rs fixes them.
 * Another machine is a matter of -D (QEMU's microvm: VIRTIO_BASE=0xfeb00000 VIRTIO_STRIDE=0x200).
 */
#ifndef PLATFORM_H
#define PLATFORM_H

#define COM1 0x3f8
#define COM1_GSI 4
#define I8042_COMMAND 0x64

#ifndef VIRTIO_BASE
#define VIRTIO_BASE 0xd0000000u
#endif
#ifndef VIRTIO_STRIDE
#define VIRTIO_STRIDE 0x1000u
#endif
#ifndef VIRTIO_SLOTS
#define VIRTIO_SLOTS 18u
#endif
/* GSIs go up from here and leave out 9, the power device's. */
#ifndef VIRTIO_FIRST_GSI
#define VIRTIO_FIRST_GSI 5u
#endif
#define GED_GSI 9u
/* One byte: a bit for each event since the last read, which clears them. */
#define GED_SELECT_PORT 0x600
#define GED_POWER_BUTTON 1
#define POWER_PORT 0x600
#define POWER_SIZE 8
#define SLEEP_CONTROL_PORT 0x604
#define RESET_PORT 0x606

#define LAPIC_BASE 0xfee00000u
#define IOAPIC_BASE 0xfec00000u

#endif
