/* Starts `cpus=` CPUs (APIC ids 0 to N-1) by INIT and start-up IPI; each says that it is up. */
#include "rt/cpus.h"

void cpu_main(uint32_t id)
{
	(void)id;
	halt_for_ever();
}

void guest_main(void)
{
	apic_init();
	print("cpu %u up\n", cpu_id());
	print("ALL %u CPUS UP\n", cpus_start(option("cpus", 2)));
}
