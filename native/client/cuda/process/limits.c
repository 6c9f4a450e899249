/*
 * Limits and stream priorities of contexts, kept per context in the client.
 *
 * A fresh context has the limits that the device description told; the worker could tell them only if a context of that
 * device existed at the start, otherwise the first question of a context fetches them all. Any thread; `info_known` releases
 * what was stored before it. Values that the worker sends are numbers for the program and index nothing here.
 */
#include "process_internal.h"
#include "tpg_cuda_send.h"

static struct tpc_context_record *record_of(struct tpc_context *context) {
    return (struct tpc_context_record *)context;
}

void tpc_limits_fresh(struct tpc_context_record *record) {
    const struct tp_device_description *what = &tpc_devices[record->base.device].what;
    bool known = true;
    for (int i = 0; i < TP_DEVICE_LIMITS; i++) {
        record->base.limits[i] = what->limits[i];
        record->limit_results[i] = what->limit_results[i];
        known &= what->limit_results[i] != TP_LIMIT_UNKNOWN;
    }
    record->priority_low = what->priority_low;
    record->priority_high = what->priority_high;
    atomic_store_explicit(&record->info_known, known, memory_order_release);
}

static CUresult fetch(struct tpc_context_record *record) {
    struct tpg_context_info_out out = {.limits_count = 0};
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_context_info("cuCtxGetLimit", &out, &reply));
    if (out.limits_count != TP_DEVICE_LIMITS || out.results_count != TP_DEVICE_LIMITS) {
        return tpc_bad_reply(&reply);
    }
    memcpy(record->base.limits, out.limits, sizeof record->base.limits);
    memcpy(record->limit_results, out.results, sizeof record->limit_results);
    record->priority_low = out.priority_low;
    record->priority_high = out.priority_high;
    atomic_store_explicit(&record->info_known, true, memory_order_release);
    return CUDA_SUCCESS;
}

static CUresult current_with_info(struct tpc_context_record **out) {
    struct tpc_context *context;
    TPC_TRY(tpc_current_living(&context));
    *out = record_of(context);
    return atomic_load_explicit(&(*out)->info_known, memory_order_acquire) ? CUDA_SUCCESS : fetch(*out);
}

CUresult tpc_cuCtxGetLimit(size_t *pvalue, CUlimit limit) {
    struct tpc_context_record *record;
    TPC_TRY(current_with_info(&record));
    if (!pvalue || (unsigned)limit >= CU_LIMIT_MAX || (unsigned)limit >= TP_DEVICE_LIMITS) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (record->limit_results[limit] != CUDA_SUCCESS) {
        return (CUresult)record->limit_results[limit];
    }
    *pvalue = record->base.limits[limit];
    return CUDA_SUCCESS;
}

/* The driver rounds and bounds the value: the answer carries what it has set. */
CUresult tpc_limit_set(struct tpc_context *context, CUlimit limit, size_t value) {
    if ((unsigned)limit >= CU_LIMIT_MAX || (unsigned)limit >= TP_DEVICE_LIMITS) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t set;
    TPC_TRY(tpc_call_context_limit("cuCtxSetLimit", (int)limit, value, &set));
    context->limits[limit] = set;
    return CUDA_SUCCESS;
}

CUresult tpc_cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority) {
    struct tpc_context_record *record;
    TPC_TRY(current_with_info(&record));
    if (leastPriority) {
        *leastPriority = record->priority_low;
    }
    if (greatestPriority) {
        *greatestPriority = record->priority_high;
    }
    return CUDA_SUCCESS;
}
