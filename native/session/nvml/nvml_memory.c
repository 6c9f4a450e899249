/*
 * NVML's memory figures under the worker's limit, and the one process that a client is shown.
 *
 * Executor thread only; the quota page is written by the worker's sessions, which trust each other. Under a limit NVML says
 * the same as cuMemGetInfo: the limit is the total, and what the worker's sessions have reserved is in use.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include "tpw_nvml.h"

#include <unistd.h>

struct figures {
    uint64_t total, free, used;
};

/* False when there is no limit, or none that is below what the device has. */
static bool limited(struct tpw_session *s, uint64_t handle, uint64_t total, uint64_t available, struct figures *out) {
    uint64_t limit = s->quota ? tp_quota_limit(s->quota) : 0;
    if (!limit || limit >= total) {
        return false;
    }
    uint32_t device = tpw_nvml_ordinal(handle);
    uint64_t used = tp_quota_used(s->quota, device), pending = s->memory ? s->memory->pending_bytes[device] : 0;
    used -= pending < used ? pending : used;
    out->total = limit;
    out->used = used < limit ? used : limit;
    out->free = limit - out->used < available ? limit - out->used : available;
    return true;
}

int32_t tpw_nvmlDeviceGetMemoryInfo(struct tpw_session *s, const struct tp_frame *frame,
                                    const struct tpg_nvmlDeviceGetMemoryInfo_in *in,
                                    struct tpg_nvmlDeviceGetMemoryInfo_out *out, nvmlDevice_t device) {
    struct figures figures;
    int32_t error = (int32_t)s->nvml.nvmlDeviceGetMemoryInfo(device, &out->memory);
    if (!error && limited(s, in->device, out->memory.total, out->memory.free, &figures)) {
        out->memory.total = figures.total;
        out->memory.free = figures.free;
        out->memory.used = figures.total - figures.free; /* the old struct has nothing else to put the rest in */
    }
    return error;
}

int32_t tpw_nvmlDeviceGetMemoryInfo_v2(struct tpw_session *s, const struct tp_frame *frame,
                                       const struct tpg_nvmlDeviceGetMemoryInfo_v2_in *in,
                                       struct tpg_nvmlDeviceGetMemoryInfo_v2_out *out, nvmlDevice_t device) {
    int32_t error = 0;
    struct figures figures;
    nvmlMemory_v2_t *memory = tpw_versioned(s, in->memory, in->memory_size, sizeof *memory, &error);
    if (!error) {
        error = (int32_t)s->nvml.nvmlDeviceGetMemoryInfo_v2(device, memory);
    }
    if (!error && limited(s, in->device, memory->total, memory->free, &figures)) {
        memory->total = figures.total;
        memory->free = figures.free;
        memory->used = figures.used;
    }
    out->memory = memory;
    out->memory_size = in->memory_size;
    return error;
}

/* ---- processes ---- */

/* This session's own cell of the quota page, laid out as docs/wire-format.md, section 2, says. */
static uint64_t held(const struct tpw_session *s, uint32_t device) {
    size_t cell = 4096 / 8 + (size_t)s->row * TP_QUOTA_DEVICES + device;
    if (s->row >= TP_QUOTA_ROWS || device >= TP_QUOTA_DEVICES) {
        return 0;
    }
    return atomic_load_explicit((const _Atomic uint64_t *)s->quota + cell, memory_order_relaxed);
}

/* Whether the client has made or retained a context on the device; the session's own primary context does not count. */
static bool has_context(struct tpw_session *s, uint32_t ordinal) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_CONTEXT, &at));) {
        if (object->native && tpw_context_device(s, object->id) == ordinal) {
            return true;
        }
    }
    return false;
}

/* What the driver says about this process; false when it does not know it under our number (another pid namespace). */
static bool driver_figure(struct tpw_session *s, nvmlDevice_t device, uint64_t *used) {
    static nvmlProcessInfo_t infos[1024];
    unsigned int count = sizeof infos / sizeof *infos;
    nvmlReturn_t untold = s->nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, &count, infos);
    if (untold) {
        static bool said;
        if (!said) {
            tp_log(TP_WARN,
                   "NVML does not tell what processes hold (error %d): what the client allocated is shown instead",
                   (int)untold);
        }
        said = true;
        return false;
    }
    for (unsigned int i = 0; i < count && i < sizeof infos / sizeof *infos; i++) {
        if (infos[i].pid == (unsigned int)getpid()) {
            *used = infos[i].usedGpuMemory;
            return *used != (unsigned long long)NVML_VALUE_NOT_AVAILABLE;
        }
    }
    return false;
}

static int32_t own_memory(struct tpw_session *s, uint32_t device, uint64_t *bytes) {
    static nvmlDevice_t known[TPW_MAX_DEVICES];
    int32_t error = device < TPW_MAX_DEVICES ? tpw_nvml_open(s) : NVML_ERROR_INVALID_ARGUMENT;
    if (!error && !known[device]) {
        error = tpw_nvml_of_ordinal(s, device, &known[device]);
    }
    return error || !driver_figure(s, known[device], bytes) ? -1 : 0;
}
TP_REGISTER(tpw_own_memory, own_memory);

int32_t tpw_nvml_process(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_nvml_process_in *in,
                         struct tpg_nvml_process_out *out, nvmlDevice_t device) {
    uint32_t ordinal = tpw_nvml_ordinal(in->device);
    out->present = s->cuda_loaded && has_context(s, ordinal);
    if (!out->present) {
        return NVML_SUCCESS;
    }
    /* Counted as the device's memory is: by the quota page under a limit, else by the driver, which counts contexts too. */
    bool limit = s->quota && tp_quota_limit(s->quota);
    if (limit || !driver_figure(s, device, &out->used)) {
        out->used = s->quota ? held(s, ordinal) : 0;
    }
    return NVML_SUCCESS;
}
