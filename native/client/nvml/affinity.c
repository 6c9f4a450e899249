/*
 * Which processors and which memory of the client's machine are near a device: all, as the device is in none of its slots.
 *
 * Any thread; reads the kernel's list of what is online, and nothing of the worker.
 */
#include "tpn.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* Sets a bit for each number of a list like "0-3,8" as far as the set goes. Without a list the kernel knows of no such thing. */
static nvmlReturn_t online(const char *path, nvmlDevice_t device, unsigned int words, unsigned long *set) {
    if (!tpn_device_index(device, NULL) || !words || !set) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    char text[4096];
    FILE *file = fopen(path, "re");
    bool there = file && fgets(text, sizeof text, file);
    if (file) {
        fclose(file);
    }
    if (!there) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    const unsigned long width = sizeof *set * CHAR_BIT;
    memset(set, 0, words * sizeof *set);
    for (char *at = text, *end; *at >= '0' && *at <= '9'; at = *end == ',' ? end + 1 : end) {
        unsigned long first = strtoul(at, &end, 10), last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        for (unsigned long i = first; i <= last && i / width < words; i++) {
            set[i / width] |= 1ul << i % width;
        }
    }
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet) {
    return online("/sys/devices/system/cpu/online", device, cpuSetSize, cpuSet);
}

nvmlReturn_t tpn_nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int cpuSetSize,
                                                     unsigned long *cpuSet, nvmlAffinityScope_t scope) {
    return scope > NVML_AFFINITY_SCOPE_SOCKET ? NVML_ERROR_INVALID_ARGUMENT
                                              : tpn_nvmlDeviceGetCpuAffinity(device, cpuSetSize, cpuSet);
}

nvmlReturn_t tpn_nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int nodeSetSize, unsigned long *nodeSet,
                                             nvmlAffinityScope_t scope) {
    return scope > NVML_AFFINITY_SCOPE_SOCKET ? NVML_ERROR_INVALID_ARGUMENT
                                              : online("/sys/devices/system/node/online", device, nodeSetSize, nodeSet);
}
