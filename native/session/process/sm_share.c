/*
 * A share of the multiprocessors: with TF_CUDA_SM_PERCENT_LIMIT all contexts of the client are green ones, on the same part of
 * their device.
 *
 * Executor thread only, from the driver's start on. The session retains the driver's primary context as ever, and works in a
 * green one of it, which has its memory, modules and limits, its own streams, and no stream of the thread. Where the driver
 * would tell of the whole device, or wants what a green context lacks, its table gets the functions of this file. On an H200
 * (580.159.04, measured) kernels of streams and of graphs, wherever those are launched, keep to the part.
 */
#include "tpw_session.h"

#include <stdlib.h>

static struct {
    unsigned percent; /* 0: no limit */
    struct tpg_cuda_driver driver;
    CUcontext whole[TPW_MAX_DEVICES]; /* primary contexts, by device */
    CUgreenCtx greens[TPW_MAX_DEVICES];
    CUdevResource parts[TPW_MAX_DEVICES];
    CUdevResourceDesc descs[TPW_MAX_DEVICES];
} share;

/* Finds the largest group that the driver makes within the limit, or else the smallest that it makes. */
static CUresult divide(CUdevice device) {
    CUdevResource all, rest, *part = &share.parts[device];
    TPW_TRY(share.driver.cuDeviceGetDevResource(device, &all, CU_DEV_RESOURCE_TYPE_SM));
    const unsigned most = all.sm.smCount * share.percent / 100;
    unsigned least = most + 1;
    do {
        unsigned groups = 1;
        least -= least > 1;
        TPW_TRY(share.driver.cuDevSmResourceSplitByCount(part, &groups, &all, &rest, 0, least));
    } while (part->sm.smCount > most && least > 1);
    TPW_TRY(share.driver.cuDevResourceGenerateDesc(&share.descs[device], part, 1));
    tp_log(TP_INFO, "the client works on %u of the %u multiprocessors of device %d", part->sm.smCount, all.sm.smCount,
           device);
    return CUDA_SUCCESS;
}

/* Only the first of a device is asked for. It stays, as the primary one does. */
static CUresult retain(CUcontext *out, CUdevice device) {
    CUgreenCtx green = NULL;
    TPW_TRY(share.driver.cuDevicePrimaryCtxRetain(&share.whole[device], device));
    CUresult result = share.driver.cuGreenCtxCreate(&green, share.descs[device], device, CU_GREEN_CTX_DEFAULT_STREAM);
    result = result == CUDA_SUCCESS ? share.driver.cuCtxFromGreenCtx(out, green) : result;
    if (result == CUDA_SUCCESS) {
        share.greens[device] = green;
        return CUDA_SUCCESS;
    }
    if (green) {
        share.driver.cuGreenCtxDestroy(green);
    }
    share.driver.cuDevicePrimaryCtxRelease_v2(device);
    return result;
}

/* What a green context has can be split again, which a part alone cannot. */
static CUresult resource(CUdevice device, CUdevResource *out, CUdevResourceType type) {
    if (type != CU_DEV_RESOURCE_TYPE_SM) {
        return share.driver.cuDeviceGetDevResource(device, out, type);
    }
    *out = share.parts[device];
    return share.greens[device] ? share.driver.cuGreenCtxGetDevResource(share.greens[device], out, type) : CUDA_SUCCESS;
}

static CUresult synchronize(CUstream stream) {
    CUdevice device;
    if (stream != CU_STREAM_PER_THREAD) {
        return share.driver.cuStreamSynchronize(stream);
    }
    TPW_TRY(share.driver.cuCtxGetDevice(&device));
    TPW_TRY(share.driver.cuCtxPushCurrent_v2(share.whole[device]));
    CUresult result = share.driver.cuStreamSynchronize(stream);
    CUcontext left;
    share.driver.cuCtxPopCurrent_v2(&left);
    return result;
}

int32_t tpw_sm_share_begin(struct tpw_session *s) {
    const char *text = getenv("TF_CUDA_SM_PERCENT_LIMIT");
    const unsigned long percent = text ? strtoul(text, NULL, 10) : 0;
    if (!percent || percent >= 100) {
        return CUDA_SUCCESS;
    }
    share.percent = (unsigned)percent;
    share.driver = s->cuda;
    s->cuda.cuDevicePrimaryCtxRetain = retain;
    s->cuda.cuDeviceGetDevResource = resource;
    s->cuda.cuStreamSynchronize = synchronize;
    for (int i = 0; i < s->device_count; i++) {
        TPW_TRY(s->devices[i] < TPW_MAX_DEVICES ? divide(s->devices[i]) : CUDA_ERROR_INVALID_DEVICE);
    }
    return CUDA_SUCCESS;
}

CUdevResourceDesc tpw_sm_share(const struct tpw_session *s, int index) {
    return share.percent ? share.descs[s->devices[index]] : NULL;
}

int tpw_sm_count(const struct tpw_session *s, int index) {
    return share.percent ? (int)share.parts[s->devices[index]].sm.smCount : 0;
}
