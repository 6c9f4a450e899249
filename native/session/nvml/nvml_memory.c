/*
 * NVML's memory figures under the worker's limit.
 *
 * Executor thread only; the worker's sessions write what the quota page says of them. Under a limit NVML says the same as
 * cuMemGetInfo: the limit is the total, and what the worker's sessions have reserved is in use.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include "tpw_nvml.h"

struct figures {
    uint64_t total, free, used;
};

/* False when there is no limit, or none that is below what the device has. */
static bool limited(struct tpw_session *s, uint64_t handle, uint64_t total, uint64_t available, struct figures *out) {
    uint64_t limit = tp_quota_limit(s->quota);
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
    error = error ? error : (int32_t)s->nvml.nvmlDeviceGetMemoryInfo_v2(device, memory);
    if (!error && limited(s, in->device, memory->total, memory->free, &figures)) {
        memory->total = figures.total;
        memory->free = figures.free;
        memory->used = figures.used;
    }
    out->memory = memory;
    out->memory_size = in->memory_size;
    return error;
}
