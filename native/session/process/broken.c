/*
 * Devices that an error broke: which ones, and that the client hears of it.
 *
 * Executor thread only. Such an error breaks every context of this process on its device, until the process ends. It comes to whoever
 * looks first, in whatever context: from a call that names a stream of another, or of a post, which nobody waits for. Where it came from
 * does not say which device it broke: the devices are asked, by cuMemGetInfo, which says so once another call has (580.159.04, measured);
 * before, a device whose break nobody has seen counts as whole.
 */
#include "tpg_answer.h"
#include "tpw_session.h"

static bool sticky(int32_t error) {
    switch (error) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
        return true;
    default:
        return false;
    }
}

int32_t tpw_device_broken(struct tpw_session *s, int index) {
    if (s->broken[index] || !s->primary[index]) {
        return s->broken[index];
    }
    CUcontext previous;
    size_t free = 0, total = 0;
    int32_t error = (int32_t)s->cuda.cuCtxPushCurrent_v2(s->primary[index]);
    if (!error) {
        error = (int32_t)s->cuda.cuMemGetInfo_v2(&free, &total);
        s->cuda.cuCtxPopCurrent_v2(&previous);
    }
    if (!sticky(error)) {
        if (error) {
            tp_log(TP_WARN, "device %d was asked whether an error broke it, and gave %d", index, error);
        }
        return 0;
    }
    s->broken[index] = error;
    tp_log(TP_WARN, "device %d is broken by error %d, with all its contexts, until this session ends", index, error);
    struct tpg_device_broken_in in = {.device = index, .error = error};
    tpg_send_device_broken(s, &in);
    return error;
}

bool tpw_breaks(struct tpw_session *s, int32_t error) {
    bool breaks = false;
    for (int i = 0; TP_UNLIKELY(sticky(error)) && i < s->device_count; i++) {
        breaks |= tpw_device_broken(s, i) == error;
    }
    return breaks;
}
