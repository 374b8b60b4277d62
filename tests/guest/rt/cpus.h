/* A guest with several CPUs. */
#ifndef CPUS_H
#define CPUS_H

#include "rt.h"

#define CPUS_MAX 32u

/* Of the CPU that asks. */
uint32_t cpu_id(void);
/* Starts CPUs 1 to `cpus` - 1; each says that it is up and goes to cpu_main. Returns how many there are then. */
uint32_t cpus_start(uint32_t cpus);
/* The guest's: what CPU `id`, not the first, does. */
void cpu_main(uint32_t id);

#endif
