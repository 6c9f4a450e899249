/*
 * What the client is told about each device when it starts, so that every question about devices is answered without a round
 * trip. Sent as it lies in memory: fixed-width fields only, little-endian, no padding that the compiler could choose.
 */
#ifndef TP_DEVICE_H
#define TP_DEVICE_H

#include <stdint.h>

#define TP_DEVICE_ATTRIBUTES 192
#define TP_DEVICE_LIMITS 16
#define TP_LIMIT_UNKNOWN (-1) /* in limit_results: the device had no context that could be asked */

struct tp_device_description {
    char name[256];
    char pci_bus_id[32];
    uint8_t uuid[16];      /* cuDeviceGetUuid_v2 */
    uint64_t total_memory; /* under the worker's memory limit */
    int32_t attributes[TP_DEVICE_ATTRIBUTES];
    int32_t attribute_results[TP_DEVICE_ATTRIBUTES]; /* what the driver returned for each, CUDA_SUCCESS or an error */
    uint64_t limits[TP_DEVICE_LIMITS];               /* of a fresh primary context, by CUlimit */
    int32_t limit_results[TP_DEVICE_LIMITS];
    int32_t priority_low, priority_high; /* cuCtxGetStreamPriorityRange */
    uint32_t zero[2];
};

_Static_assert(sizeof(struct tp_device_description) ==
                   256 + 32 + 16 + 8 + 8 * TP_DEVICE_ATTRIBUTES + 12 * TP_DEVICE_LIMITS + 16,
               "no padding");

#endif
