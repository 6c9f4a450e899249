/*
 * Events of a set, and what is computed of two samples (GPM).
 *
 * Executor thread only: a set is only looked at, never waited for. How many metrics there are is the client's, bounded by the
 * struct as the headers know it; the driver refuses more than it has. Texts are the driver's own.
 */
#include "tpg_session.h"
#include "tpw_nvml.h"
#include <tp_nvml.h>

#include <string.h>

#define METRICS (sizeof(((nvmlGpmMetricsGet_t *)NULL)->metrics) / sizeof(nvmlGpmMetric_t))
#define TEXTS 3u
#define TEXT_MAX 96u

/* The client numbers what it holds; whoever numbers on would have the driver take memory without end. */
static bool numbered(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle) {
    bool right = tp_id_index(tp_handle_id(handle)) < TP_NVML_PLACES;
    if (!right) {
        tpw_violation(s, frame, "more event sets or samples than a client may hold");
    }
    return right;
}

int32_t tpw_nvmlEventSetCreate(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_nvmlEventSetCreate_in *in) {
    nvmlEventSet_t set = NULL;
    if (!numbered(s, frame, in->set)) {
        return TPW_LATER;
    }
    int32_t error = (int32_t)s->nvml.nvmlEventSetCreate(&set);
    return tpw_made(s, frame, TPG_NVMLEVENTS, in->set, (uint64_t)(uintptr_t)set, error);
}

int32_t tpw_nvmlGpmSampleAlloc(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_nvmlGpmSampleAlloc_in *in) {
    nvmlGpmSample_t sample = NULL;
    if (!numbered(s, frame, in->gpmSample)) {
        return TPW_LATER;
    }
    int32_t error = (int32_t)s->nvml.nvmlGpmSampleAlloc(&sample);
    return tpw_made(s, frame, TPG_NVMLSAMPLE, in->gpmSample, (uint64_t)(uintptr_t)sample, error);
}

int32_t tpw_nvml_event(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_nvml_event_in *in,
                       struct tpg_nvml_event_out *out, nvmlEventSet_t set) {
    nvmlEventData_t data;
    memset(&data, 0, sizeof data);
    nvmlReturn_t result = s->nvml.nvmlEventSetWait_v2(set, &data, 0);
    if (result != NVML_SUCCESS) {
        return (int32_t)result;
    }
    out->device = tpw_known(s, TPG_NVMLDEVICE, (uint64_t)(uintptr_t)data.device);
    out->type = data.eventType;
    out->data = data.eventData;
    out->gpu_instance = data.gpuInstanceId;
    out->compute_instance = data.computeInstanceId;
    return NVML_SUCCESS;
}

/* Puts a text with its NUL behind the others, or an empty one for none. */
static char *put_text(char *at, const char *text) {
    size_t size = text ? strnlen(text, TEXT_MAX - 1) : 0;
    if (size) {
        memcpy(at, text, size);
    }
    at[size] = 0;
    return at + size + 1;
}

int32_t tpw_nvml_gpm_metrics(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_nvml_gpm_metrics_in *in, struct tpg_nvml_gpm_metrics_out *out,
                             nvmlGpmSample_t first, nvmlGpmSample_t second) {
    static nvmlGpmMetricsGet_t get;
    static int results[METRICS];
    static double values[METRICS];
    static char texts[METRICS * TEXTS * TEXT_MAX];
    if (in->ids_count > METRICS) {
        tpw_violation(s, frame, "more metrics than there are");
        return TPW_LATER;
    }
    memset(&get, 0, sizeof get);
    get.version = NVML_GPM_METRICS_GET_VERSION;
    get.numMetrics = (unsigned int)in->ids_count;
    get.sample1 = first;
    get.sample2 = second;
    for (size_t i = 0; i < in->ids_count; i++) {
        memcpy(&get.metrics[i].metricId, (const char *)in->ids + i * sizeof get.metrics[i].metricId,
               sizeof get.metrics[i].metricId);
    }
    nvmlReturn_t result = s->nvml.nvmlGpmMetricsGet(&get);
    char *at = texts;
    for (size_t i = 0; i < in->ids_count; i++) {
        const nvmlGpmMetric_t *metric = &get.metrics[i];
        bool named = metric->nvmlReturn == NVML_SUCCESS;
        results[i] = (int)metric->nvmlReturn;
        values[i] = metric->value;
        at = put_text(at, named ? metric->metricInfo.shortName : NULL);
        at = put_text(at, named ? metric->metricInfo.longName : NULL);
        at = put_text(at, named ? metric->metricInfo.unit : NULL);
    }
    out->results = results;
    out->results_count = in->ids_count;
    out->values = values;
    out->values_count = in->ids_count;
    out->texts = texts;
    out->texts_size = (size_t)(at - texts);
    return (int32_t)result;
}
