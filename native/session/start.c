/*
 * The client's first operation, which its cuInit waits for: the driver is started, its devices are described.
 *
 * Executor thread only. Nothing of the client's is read here but the flags of its cuInit.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

/* What the client's tables cover (api/procaddress.json); a newer driver is answered for as this one. */
#define TABLE_VERSION 13000

int32_t tpw_start(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_start_in *in,
                  struct tpg_start_out *out) {
    if (in->flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = tpw_start_driver(s);
    if (!error && s->device_count == 0) {
        error = CUDA_ERROR_NO_DEVICE;
    }
    int version = 0;
    error = error ? error : (int32_t)s->cuda.cuDriverGetVersion(&version);
    struct tp_device_description *descriptions =
        tpw_scratch(s, (uint64_t)s->device_count, sizeof *descriptions, &error);
    for (int i = 0; i < s->device_count && !error; i++) {
        error = tpw_device_describe(s, i, &descriptions[i]);
        if (error) {
            tp_log(TP_ERROR, "the driver does not describe device %d: error %d", i, error);
        }
    }
    TPW_TRY(error);
    out->driver_version = version < TABLE_VERSION ? version : TABLE_VERSION;
    out->devices = descriptions;
    out->devices_size = (size_t)s->device_count * sizeof *descriptions;
    return tpw_memory_reserved(s, &out->reserved_base, &out->reserved_size);
}
