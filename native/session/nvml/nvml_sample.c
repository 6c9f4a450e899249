/*
 * What is computed of two samples (GPM).
 *
 * Executor thread only. How many metrics there are is the client's, bounded by the
 * struct as the headers know it; the driver refuses more than it has. Texts are the driver's own.
 */
#include "tpg_session.h"
#include "tpw_nvml.h"

#include <string.h>

#define METRICS (sizeof(((nvmlGpmMetricsGet_t *)NULL)->metrics) / sizeof(nvmlGpmMetric_t))
#define TEXTS 3u
#define TEXT_MAX 96u

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
