/*
 * What both sides of NVML must agree on beside the operations: how devices are numbered, how many
 * other objects there may be, and which lists there are.
 *
 * The session makes one nvmldevice object for each device that it shows, in NVML's order; the client computes the same
 * handles from the index alone. Constants only, no state.
 */
#ifndef TP_NVML_H
#define TP_NVML_H

#include <tp_wire.h>

#define TP_NVML_DEVICES 64u /* more than any host has */
#define TP_NVML_UUID 96u
#define TP_NVML_SERIAL 32u
/* Event sets that a client may hold, and samples. */
#define TP_NVML_PLACES 1024u
/* Elements of one list: the longest real one, the sample buffers, has some hundreds. */
#define TP_NVML_LIST_MAX 8192u

/* Handle of device `index`: always generation 1, because devices neither come nor go. */
static inline uint64_t tp_nvml_device(uint32_t kind, uint32_t index) {
    return tp_handle_make(kind, 1u << TP_INDEX_BITS | index);
}

#endif
