/*
 * The array of field values.
 *
 * Executor thread only. How many there are is the client's, bounded by the frame.
 */
#include "tpg_session.h"
#include "tpw_nvml.h"

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
