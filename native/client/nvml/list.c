/*
 * Lists that take more than their description says, and the array of field values.
 *
 * Any thread.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"

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
