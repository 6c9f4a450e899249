/*
 * The samples of the client's own process, and the array of field values.
 *
 * Executor thread only. The capacity is the client's, bounded by TP_NVML_LIST_MAX; the driver is asked for all samples, so
 * that those of other processes take no room from the client's.
 */
#include "tpg_session.h"
#include "tpw_nvml.h"

#include <unistd.h>

int32_t tpw_nvmlDeviceGetProcessUtilization(struct tpw_session *s, const struct tp_frame *frame,
                                            const struct tpg_nvmlDeviceGetProcessUtilization_in *in,
                                            struct tpg_nvmlDeviceGetProcessUtilization_out *out, nvmlDevice_t device) {
    int32_t error = NVML_SUCCESS;
    unsigned int count = TP_NVML_LIST_MAX, own = 0;
    nvmlProcessUtilizationSample_t *all = tpw_scratch(s, count, sizeof *all, &error);
    if (error) {
        return error;
    }
    out->status = (int)s->nvml.nvmlDeviceGetProcessUtilization(device, all, &count, in->lastSeenTimeStamp);
    for (unsigned int i = 0; !out->status && i < count && i < TP_NVML_LIST_MAX; i++) {
        if (all[i].pid == (unsigned int)getpid()) {
            all[own++] = all[i];
        }
    }
    if (!out->status) { /* without samples the driver says so of all processes */
        out->status = !own                            ? NVML_ERROR_NOT_FOUND
                      : own > in->processSamplesCount ? NVML_ERROR_INSUFFICIENT_SIZE
                                                      : NVML_SUCCESS;
    }
    out->processSamplesCount = own;
    out->utilization = all;
    out->utilization_count = out->status ? 0 : own;
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
