/*
 * What the rest of the memory files may ask about reservations and mappings (vmm.c).
 *
 * Any thread. A mapping is named by the `detail` of its range, and lives as long as the program keeps it mapped: asking about
 * an address while another thread unmaps it is as wrong here as it is with the driver.
 */
#ifndef TPC_VMM_H
#define TPC_VMM_H

#include <stdbool.h>
#include <stdint.h>

#define TPC_VMM_DEVICES 64

struct tpc_mapping;
int tpc_mapping_device(const struct tpc_mapping *mapping); /* ordinal of the program */
int tpc_mapping_access(const struct tpc_mapping *mapping, int device);

#endif
