/*
 * The driver and its devices: loading and initialising it once, and describing its devices to the client.
 *
 * Executor thread only. Nothing of the client's is read here. The description is made anew for each start: total memory follows the worker's limit, and limits of contexts can be told only for devices whose primary
 * context exists already (the warm session's device 0), because making one on every device would cost each 527 MiB.
 */
#include "tpw_session.h"

#include <dlfcn.h>

void *tpw_open_library(struct tpw_session *s, bool nvml) {
    const char *path = nvml ? s->nvml_path : s->driver_path;
    void *library = path && path[0] ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) {
        tp_log(TP_ERROR, "%s cannot be loaded: %s", path ? path : "(no path)", path ? dlerror() : "not given");
    }
    return library;
}

int32_t tpw_start_driver(struct tpw_session *s) {
    if (s->started) {
        return s->start_result;
    }
    if (!s->cuda_loaded) {
        void *library = tpw_open_library(s, false);
        if (!library || tpg_load_cuda(&s->cuda, library) == 0) {
            return CUDA_ERROR_NO_DEVICE; /* tpw_open_library has said why */
        }
        s->cuda_loaded = true;
    }
    int32_t error = CUDA_SUCCESS;
    TP_ASK(tpw_driver_starts, error, s);
    TPW_TRY(error);
    s->started = true;
    uint64_t begin = tp_now_ns();
    s->start_result = (int32_t)s->cuda.cuInit(0);
    tp_log(TP_DEBUG, "cuInit gave %d after %llu ms", (int)s->start_result,
           (unsigned long long)((tp_now_ns() - begin) / 1000000));
    int count = 0;
    /* No capture of the client's may forbid this thread what another of the client's threads may do. */
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    if (!s->start_result) {
        s->start_result = (int32_t)s->cuda.cuThreadExchangeStreamCaptureMode(&mode);
    }
    if (!s->start_result) {
        s->start_result = (int32_t)s->cuda.cuDeviceGetCount(&count);
    }
    if (count > TPW_MAX_DEVICES) {
        tp_log(TP_WARN, "the host has %d devices; a session offers the first %d", count, TPW_MAX_DEVICES);
        count = TPW_MAX_DEVICES;
    }
    for (int i = 0; i < count && !s->start_result; i++) {
        s->start_result = (int32_t)s->cuda.cuDeviceGet(&s->devices[i], i);
    }
    s->device_count = s->start_result ? 0 : count;
    if (!s->start_result) {
        s->start_result = tpw_sm_share_begin(s);
        s->share_failed = s->start_result;
    }
    return s->start_result;
}

bool tpw_about_the_question(int32_t result) {
    return result == CUDA_SUCCESS || result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_UNSUPPORTED_LIMIT ||
           result == CUDA_ERROR_NOT_SUPPORTED;
}

/* What cannot be asked yet is marked as unknown; what the driver fails to tell is an error. */
static int32_t describe_context(struct tpw_session *s, int index, struct tp_device_description *what) {
    CUcontext previous;
    for (int i = 0; i < TP_DEVICE_LIMITS; i++) {
        what->limit_results[i] = TP_LIMIT_UNKNOWN;
    }
    if (!s->primary[index]) {
        return CUDA_SUCCESS;
    }
    int32_t error = (int32_t)s->cuda.cuCtxPushCurrent_v2(s->primary[index]);
    TPW_TRY(error);
    for (int i = 0; i < TP_DEVICE_LIMITS && !error; i++) {
        size_t value = 0;
        what->limit_results[i] =
            i < CU_LIMIT_MAX ? (int32_t)s->cuda.cuCtxGetLimit(&value, (CUlimit)i) : CUDA_ERROR_INVALID_VALUE;
        what->limits[i] = value;
        error = tpw_about_the_question(what->limit_results[i]) ? CUDA_SUCCESS : what->limit_results[i];
    }
    error = error ? error : (int32_t)s->cuda.cuCtxGetStreamPriorityRange(&what->priority_low, &what->priority_high);
    int32_t left = (int32_t)s->cuda.cuCtxPopCurrent_v2(&previous);
    return error ? error : left;
}

int32_t tpw_device_describe(struct tpw_session *s, int index, struct tp_device_description *what) {
    CUdevice device = s->devices[index];
    CUuuid uuid;
    size_t total = 0;
    int32_t error = (int32_t)s->cuda.cuDeviceGetName(what->name, (int)sizeof what->name, device);
    if (!error) {
        error = (int32_t)s->cuda.cuDeviceGetPCIBusId(what->pci_bus_id, (int)sizeof what->pci_bus_id, device);
    }
    if (!error) {
        error = (int32_t)s->cuda.cuDeviceGetUuid_v2(&uuid, device);
    }
    error = error ? error : (int32_t)s->cuda.cuDeviceTotalMem_v2(&total, device);
    TPW_TRY(error);
    memcpy(what->uuid, uuid.bytes, sizeof what->uuid);
    uint64_t limit = tp_quota_limit(s->quota);
    what->total_memory = limit && limit < total ? limit : total;
    what->attribute_results[0] = CUDA_ERROR_INVALID_VALUE;
    for (int i = 1; i < TP_DEVICE_ATTRIBUTES; i++) {
        what->attribute_results[i] =
            (int32_t)s->cuda.cuDeviceGetAttribute(&what->attributes[i], (CUdevice_attribute)i, device);
        if (!tpw_about_the_question(what->attribute_results[i])) {
            return what->attribute_results[i];
        }
    }
    if (tpw_sm_count(s, index)) {
        what->attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = tpw_sm_count(s, index);
    }
    return describe_context(s, index, what);
}
