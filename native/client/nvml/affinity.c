/*
 * Which processors and which memory of the client's machine are near a device: all, as the device is in none of its slots; and
 * which devices are near a processor, or each other.
 *
 * Any thread; reads the kernel's list of what is online, and nothing of the worker.
 */
#include "tpn.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* Sets a bit for each number of a list like "0-3,8" as far as the set goes. Without a list the kernel knows of no such thing. */
nvmlReturn_t tpn_online(const char *path, nvmlDevice_t device, unsigned int words, unsigned long *set) {
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

/* Puts a device into the list of a caller who may only want the count. */
static void listed(nvmlDevice_t device, unsigned int room, unsigned int *count, nvmlDevice_t *list) {
    if (list && *count < room) {
        list[*count] = device;
    }
    ++*count;
}

/* How many there are; with an array, how many are in it. */
static nvmlReturn_t counted(unsigned int found, unsigned int room, unsigned int *count, const nvmlDevice_t *list) {
    *count = list && found > room ? room : found;
    return NVML_SUCCESS;
}

nvmlReturn_t tpn_nvmlSystemGetTopologyGpuSet(unsigned int cpuNumber, unsigned int *count, nvmlDevice_t *deviceArray) {
    (void)cpuNumber;
    if (!count || (deviceArray && !*count)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    unsigned int found = 0, room = *count;
    for (unsigned int i = 0; i < tpn_device_count; i++) {
        listed(tpn_device_at(i), room, &found, deviceArray);
    }
    return counted(found, room, count, deviceArray);
}

nvmlReturn_t tpn_nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
                                                  unsigned int *count, nvmlDevice_t *deviceArray) {
    if (!count || (deviceArray && !*count) || level > NVML_TOPOLOGY_SYSTEM || level % 10 ||
        !tpn_device_index(device, NULL)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    unsigned int found = 0, room = *count;
    for (unsigned int i = 0; i < tpn_device_count; i++) {
        nvmlDevice_t other = tpn_device_at(i);
        nvmlGpuTopologyLevel_t common;
        nvmlReturn_t result =
            other == device ? NVML_SUCCESS : tpn_nvmlDeviceGetTopologyCommonAncestor(device, other, &common);
        if (result != NVML_SUCCESS) {
            return result;
        }
        if (other != device && common == level) {
            listed(other, room, &found, deviceArray);
        }
    }
    return counted(found, room, count, deviceArray);
}
