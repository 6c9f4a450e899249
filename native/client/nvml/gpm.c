/*
 * What is computed of two samples of a device (GPM). The samples are in the session; the names of metrics are texts that a
 * program may keep for ever, so they are kept here, once for each metric.
 *
 * Any thread. Texts are the worker's: bounded by the reply, and cut to their array.
 */
#include "tpn.h"

#include "tpg_nvml_send.h"
#include <stdlib.h>

#define METRICS (sizeof(((nvmlGpmMetricsGet_t *)NULL)->metrics) / sizeof(nvmlGpmMetric_t))
#define TEXTS 3u

/* The text that stays, equal to `text` where the metric had none before; NULL for an empty one, and without memory. */
static char *kept(unsigned int metric, unsigned int which, const char *text) {
    static _Atomic(char *) texts[METRICS][TEXTS];
    if (metric >= METRICS || !*text) {
        return NULL;
    }
    _Atomic(char *) *place = &texts[metric][which];
    char *there = atomic_load_explicit(place, memory_order_acquire);
    char *copy = there ? NULL : malloc(strlen(text) + 1);
    if (!copy) {
        return there;
    }
    strcpy(copy, text);
    if (!atomic_compare_exchange_strong(place, &there, copy)) {
        free(copy);
        return there;
    }
    return copy;
}

/* The next text of the reply; false when it has none that ends. */
static bool next_text(const char **at, const char *end, const char **text) {
    const char *stop = memchr(*at, 0, (size_t)(end - *at));
    *text = *at;
    *at = stop ? stop + 1 : end;
    return stop != NULL;
}

static bool store(nvmlGpmMetricsGet_t *get, const struct tpg_nvml_gpm_metrics_out *o) {
    const char *at = o->texts, *end = at + o->texts_size;
    if (o->results_count != get->numMetrics || o->values_count != get->numMetrics) {
        return false;
    }
    for (unsigned int i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &get->metrics[i];
        const char *text[TEXTS];
        for (unsigned int t = 0; t < TEXTS; t++) {
            if (!next_text(&at, end, &text[t])) {
                return false;
            }
        }
        int result;
        memcpy(&result, (const char *)o->results + i * sizeof result, sizeof result);
        metric->nvmlReturn = (nvmlReturn_t)result;
        if (metric->nvmlReturn == NVML_SUCCESS) { /* else it stays as it was, as with the driver's */
            memcpy(&metric->value, (const char *)o->values + i * sizeof metric->value, sizeof metric->value);
        }
        if (*text[0] || *text[1] || *text[2]) {
            metric->metricInfo.shortName = kept(metric->metricId, 0, text[0]);
            metric->metricInfo.longName = kept(metric->metricId, 1, text[1]);
            metric->metricInfo.unit = kept(metric->metricId, 2, text[2]);
        }
    }
    return true;
}

nvmlReturn_t tpn_do_nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *metricsGet) {
    if (metricsGet->version != NVML_GPM_METRICS_GET_VERSION) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    unsigned int ids[METRICS], count = metricsGet->numMetrics;
    if (count > METRICS) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    TPN_CHECK_HANDLE(NVMLSAMPLE, metricsGet->sample1, true);
    TPN_CHECK_HANDLE(NVMLSAMPLE, metricsGet->sample2, true);
    for (unsigned int i = 0; i < count; i++) {
        ids[i] = metricsGet->metrics[i].metricId;
    }
    struct tpg_nvml_gpm_metrics_in a = {.first = (uint64_t)(uintptr_t)metricsGet->sample1,
                                        .second = (uint64_t)(uintptr_t)metricsGet->sample2,
                                        .ids = ids,
                                        .ids_count = count};
    struct tpg_nvml_gpm_metrics_out o;
    struct tp_reply reply;
    nvmlReturn_t result = tpn_call_nvml_gpm_metrics("nvmlGpmMetricsGet", &a, &o, &reply);
    if (result == NVML_SUCCESS && !store(metricsGet, &o)) {
        result = tpn_bad_reply(&reply);
    }
    tp_reply_free(&reply);
    return result;
}
