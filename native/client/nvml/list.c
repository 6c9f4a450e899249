/*
 * Functions that fill an array: the caller asks for the length with no room first, and the count is an answer even when the
 * room was too small. One operation carries all of them.
 *
 * Any thread. Room that a caller offers beyond TP_NVML_LIST_MAX elements is not used: no list is longer.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"
#include <unistd.h>

struct list {
    const char *name;
    enum tp_nvml_list what;
    unsigned int argument;
    unsigned long long since;
    size_t unit;
    unsigned int value_type;
};

/* Fills up to *count elements of list->unit bytes. With `second`, an element's halves go to two arrays. */
static nvmlReturn_t fill(struct list *list, nvmlDevice_t device, unsigned int *count, void *first, void *second) {
    if (!count || !tpn_device_index(device, NULL) || (*count && !first)) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct tpg_nvml_list_in a = {
        .device = (uint64_t)(uintptr_t)device,
        .what = list->what,
        .argument = list->argument,
        .since = list->since,
        .capacity = *count < TP_NVML_LIST_MAX ? *count : TP_NVML_LIST_MAX,
    };
    struct tpg_nvml_list_out o;
    struct tp_reply reply;
    nvmlReturn_t result = tpn_call_nvml_list(list->name, &a, &o, &reply);
    if (result == NVML_SUCCESS) {
        size_t elements = o.data_size / list->unit;
        if (elements > a.capacity || o.data_size % list->unit) {
            result = tpn_bad_reply(&reply);
        } else {
            result = (nvmlReturn_t)o.status;
            *count = o.count;
            list->value_type = o.value_type;
            size_t half = second ? list->unit / 2 : list->unit;
            for (size_t i = 0; i < elements; i++) {
                const unsigned char *at = (const unsigned char *)o.data + i * list->unit;
                memcpy((unsigned char *)first + i * half, at, half);
                if (second) {
                    memcpy((unsigned char *)second + i * half, at + half, half);
                }
            }
        }
    }
    tp_reply_free(&reply);
    return result;
}

nvmlReturn_t tpn_nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *clocksMHz) {
    struct list list = {
        .name = "nvmlDeviceGetSupportedMemoryClocks", .what = TP_NVML_MEMORY_CLOCKS, .unit = sizeof *clocksMHz};
    return fill(&list, device, count, clocksMHz, NULL);
}

nvmlReturn_t tpn_nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memoryClockMHz,
                                                      unsigned int *count, unsigned int *clocksMHz) {
    struct list list = {.name = "nvmlDeviceGetSupportedGraphicsClocks",
                        .what = TP_NVML_GRAPHICS_CLOCKS,
                        .argument = memoryClockMHz,
                        .unit = sizeof *clocksMHz};
    return fill(&list, device, count, clocksMHz, NULL);
}

nvmlReturn_t tpn_nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                           unsigned int *pageCount, unsigned long long *addresses) {
    struct list list = {.name = "nvmlDeviceGetRetiredPages",
                        .what = TP_NVML_RETIRED_PAGES,
                        .argument = (unsigned int)cause,
                        .unit = sizeof *addresses};
    return fill(&list, device, pageCount, addresses, NULL);
}

nvmlReturn_t tpn_nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                              unsigned int *pageCount, unsigned long long *addresses,
                                              unsigned long long *timestamps) {
    struct list list = {.name = "nvmlDeviceGetRetiredPages_v2",
                        .what = TP_NVML_RETIRED_PAGES_TIMES,
                        .argument = (unsigned int)cause,
                        .unit = sizeof *addresses + sizeof *timestamps};
    if (pageCount && *pageCount && !timestamps) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return fill(&list, device, pageCount, addresses, timestamps ? timestamps : addresses);
}

/* Where an instance of a profile could be; the first form has to be given an array. */
nvmlReturn_t tpn_nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int profileId,
                                                               nvmlGpuInstancePlacement_t *placements,
                                                               unsigned int *count) {
    if (!count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct list list = {.name = "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
                        .what = TP_NVML_PLACEMENTS,
                        .argument = profileId,
                        .unit = sizeof *placements};
    unsigned int room = placements ? *count : 0; /* without an array the count says nothing */
    nvmlReturn_t result = fill(&list, device, &room, placements, NULL);
    if (result == NVML_SUCCESS) {
        *count = room;
    }
    return result;
}

nvmlReturn_t tpn_nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned int profileId,
                                                            nvmlGpuInstancePlacement_t *placements,
                                                            unsigned int *count) {
    return placements ? tpn_nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, profileId, placements, count)
                      : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t tpn_nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                      unsigned long long lastSeenTimeStamp, nvmlValueType_t *sampleValType,
                                      unsigned int *sampleCount, nvmlSample_t *samples) {
    if (!sampleValType || !sampleCount) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct list list = {.name = "nvmlDeviceGetSamples",
                        .what = TP_NVML_SAMPLES,
                        .argument = (unsigned int)type,
                        .since = lastSeenTimeStamp,
                        .unit = sizeof *samples};
    /* Without an array the caller asks how much room there must be, whatever the count says. */
    unsigned int room = samples ? *sampleCount : 0;
    nvmlReturn_t result = fill(&list, device, &room, samples, NULL);
    if (result == NVML_SUCCESS || result == NVML_ERROR_INSUFFICIENT_SIZE) {
        *sampleCount = room;
        *sampleValType = (nvmlValueType_t)list.value_type;
    }
    return result;
}

nvmlReturn_t tpn_nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization,
                                                 unsigned int *processSamplesCount,
                                                 unsigned long long lastSeenTimeStamp) {
    if (!processSamplesCount) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct list list = {.name = "nvmlDeviceGetProcessUtilization",
                        .what = TP_NVML_PROCESS_UTILIZATION,
                        .since = lastSeenTimeStamp,
                        .unit = sizeof *utilization};
    unsigned int room = utilization ? *processSamplesCount : 0, offered = room;
    nvmlReturn_t result = fill(&list, device, &room, utilization, NULL);
    for (unsigned int i = 0; result == NVML_SUCCESS && utilization && i < room && i < offered; i++) {
        utilization[i].pid = (unsigned int)getpid();
    }
    if (result == NVML_SUCCESS || result == NVML_ERROR_INSUFFICIENT_SIZE) {
        *processSamplesCount = room;
    }
    return result;
}

nvmlReturn_t tpn_nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values) {
    if (!values || valuesCount <= 0 || !tpn_device_index(device, NULL) ||
        (size_t)valuesCount > TP_FRAME_MAX / 2 / sizeof *values) { /* the answer has to fit, too */
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    struct tpg_nvml_fields_in a = {
        .device = (uint64_t)(uintptr_t)device, .values = values, .values_count = (size_t)valuesCount};
    struct tpg_nvml_fields_out o;
    struct tp_reply reply;
    nvmlReturn_t result = tpn_call_nvml_fields("nvmlDeviceGetFieldValues", &a, &o, &reply);
    if (result == NVML_SUCCESS) {
        if (o.results_count != a.values_count) {
            result = tpn_bad_reply(&reply);
        } else {
            memcpy(values, o.results, o.results_count * sizeof *values);
        }
    }
    tp_reply_free(&reply);
    return result;
}
