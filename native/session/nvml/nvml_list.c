/*
 * NVML functions that fill an array, and the array of field values.
 *
 * Executor thread only. The capacity is the client's: bounded by TP_NVML_LIST_MAX, and the driver gets memory for as many
 * elements as it is told. The driver's own result travels beside the count, because a count is an answer even when the room
 * was too small.
 */
#include "tpg_session.h"
#include <tp_nvml.h>
#include "tpw_nvml.h"

#include <unistd.h>

union room {
    unsigned int words[TP_NVML_LIST_MAX];
    unsigned long long longs[2 * TP_NVML_LIST_MAX];
    nvmlSample_t samples[TP_NVML_LIST_MAX];
    nvmlProcessUtilizationSample_t processes[TP_NVML_LIST_MAX];
    nvmlGpuInstancePlacement_t placements[TP_NVML_LIST_MAX];
};
static union room room;

/* Addresses and times come in two arrays and travel as pairs. */
static void pair(unsigned long long *addresses, const unsigned long long *times, unsigned int count) {
    for (unsigned int i = count; i-- > 0;) {
        unsigned long long address = addresses[i];
        addresses[2 * i] = address;
        addresses[2 * i + 1] = times[i];
    }
}

/* Keeps the samples of this process: other processes are not the client's business. */
static unsigned int keep_own(unsigned int count) {
    unsigned int kept = 0;
    for (unsigned int i = 0; i < count; i++) {
        if (room.processes[i].pid == (unsigned int)getpid()) {
            room.processes[kept++] = room.processes[i];
        }
    }
    return kept;
}

static nvmlReturn_t process_utilization(struct tpw_session *s, nvmlDevice_t device, uint64_t since,
                                        unsigned int capacity, unsigned int *count) {
    *count = TP_NVML_LIST_MAX;
    nvmlReturn_t status = s->nvml.nvmlDeviceGetProcessUtilization(device, room.processes, count, since);
    if (status != NVML_SUCCESS) {
        *count = 0;
        return status;
    }
    *count = keep_own(*count < TP_NVML_LIST_MAX ? *count : TP_NVML_LIST_MAX);
    if (*count == 0) {
        return NVML_ERROR_NOT_FOUND; /* as the driver says when no process has samples */
    }
    return *count > capacity ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

int32_t tpw_nvml_list(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_nvml_list_in *in,
                      struct tpg_nvml_list_out *out, nvmlDevice_t device) {
    static unsigned long long times[TP_NVML_LIST_MAX];
    if (in->capacity > TP_NVML_LIST_MAX) {
        tpw_violation(s, frame, "a list with more room than lists have");
        return TPW_LATER;
    }
    unsigned int count = in->capacity, argument = in->argument;
    size_t unit = 0;
    nvmlReturn_t status = NVML_ERROR_INVALID_ARGUMENT;
    nvmlValueType_t type = (nvmlValueType_t)0;
    unsigned long long *longs = in->capacity ? room.longs : NULL;
    unsigned int *words = in->capacity ? room.words : NULL;
    memset(&room, 0, sizeof room);
    switch (in->what) {
    case TP_NVML_MEMORY_CLOCKS:
        unit = sizeof *words;
        status = s->nvml.nvmlDeviceGetSupportedMemoryClocks(device, &count, words);
        break;
    case TP_NVML_GRAPHICS_CLOCKS:
        unit = sizeof *words;
        status = s->nvml.nvmlDeviceGetSupportedGraphicsClocks(device, argument, &count, words);
        break;
    case TP_NVML_RETIRED_PAGES:
        unit = sizeof *longs;
        status = s->nvml.nvmlDeviceGetRetiredPages(device, (nvmlPageRetirementCause_t)argument, &count, longs);
        break;
    case TP_NVML_RETIRED_PAGES_TIMES:
        unit = 2 * sizeof *longs;
        status = s->nvml.nvmlDeviceGetRetiredPages_v2(device, (nvmlPageRetirementCause_t)argument, &count, longs,
                                                      in->capacity ? times : NULL);
        if (status == NVML_SUCCESS && in->capacity) {
            pair(room.longs, times, count < in->capacity ? count : in->capacity);
        }
        break;
    case TP_NVML_SAMPLES:
        unit = sizeof(nvmlSample_t);
        status = s->nvml.nvmlDeviceGetSamples(device, (nvmlSamplingType_t)argument, in->since, &type, &count,
                                              in->capacity ? room.samples : NULL);
        break;
    case TP_NVML_PROCESS_UTILIZATION:
        unit = sizeof *room.processes;
        status = process_utilization(s, device, in->since, in->capacity, &count);
        break;
    case TP_NVML_PLACEMENTS:
        /* The driver writes all that there are, whatever the count says: some tens at most. */
        unit = sizeof *room.placements;
        status = s->nvml.nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, argument,
                                                                       in->capacity ? room.placements : NULL, &count);
        break;
    default:
        tpw_violation(s, frame, "a list that there is not");
        return TPW_LATER;
    }
    out->status = (int)status;
    out->count = count;
    out->value_type = (unsigned int)type;
    out->data = &room;
    out->data_size = status == NVML_SUCCESS ? (count < in->capacity ? count : in->capacity) * unit : 0;
    return NVML_SUCCESS;
}

int32_t tpw_nvml_fields(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_nvml_fields_in *in,
                        struct tpg_nvml_fields_out *out, nvmlDevice_t device) {
    int32_t error = 0;
    nvmlFieldValue_t *values = tpw_scratch(s, in->values_count, sizeof *values, &error);
    if (error) {
        return error;
    }
    if (!in->values_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    memcpy(values, in->values, in->values_count * sizeof *values);
    error = (int32_t)s->nvml.nvmlDeviceGetFieldValues(device, (int)in->values_count, values);
    out->results = values;
    out->results_count = in->values_count;
    return error;
}
