/*
 * Batches of copies in one dimension: cuMemcpyBatchAsync, in the form of CUDA 12.8 and in that of 13.0.
 *
 * Any thread; owns nothing. Everything is checked before anything is sent, so that a refused batch has done nothing. The copies
 * then go into the stream one after the other, which is stricter than CUDA asks: within a batch there is no order. What a
 * source's access order allows is used for host memory (the bytes are taken at the call); memory of the device is always read in
 * stream order, and where it must be read before the call returns, the call waits.
 */
#include "tpc_copy.h"
#include "tpg_client.h"

#define NOBODY SIZE_MAX /* no copy is to blame */

struct batch {
    const CUdeviceptr *dsts, *srcs;
    const size_t *sizes;
    size_t count;
    const CUmemcpyAttributes *attrs;
    const size_t *places; /* of the first copy that each attribute is for */
    size_t attr_count;
};

static CUresult check_attributes(const struct batch *b) {
    if (!b->dsts || !b->srcs || !b->sizes || !b->attrs || !b->places || !b->attr_count || b->attr_count > b->count ||
        b->places[0] != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < b->attr_count; i++) {
        const CUmemcpyAttributes *a = &b->attrs[i];
        if (b->places[i] >= b->count || (i && b->places[i] <= b->places[i - 1]) ||
            a->srcAccessOrder < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ||
            a->srcAccessOrder > CU_MEMCPY_SRC_ACCESS_ORDER_ANY ||
            (a->flags & ~(unsigned)CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return CUDA_SUCCESS;
}

static CUresult check_copy(const struct batch *b, size_t i) {
    struct tpc_place to, from;
    if (!b->sizes[i] || !b->dsts[i] || !b->srcs[i]) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = tpc_place_either(b->dsts[i], b->sizes[i], &to);
    return result ? result : tpc_place_either(b->srcs[i], b->sizes[i], &from);
}

/* Whether the source of a copy that was sent may still be read when the call returns. */
static bool is_read_later(const struct batch *b, size_t i) {
    struct tpc_range range;
    return tpc_is_device_address(b->srcs[i]) || tpc_range_at(b->srcs[i], &range);
}

static CUresult copy_all(const char *name, const struct batch *b, size_t *failed, CUstream stream) {
    bool wait = false;
    for (size_t i = 0, attr = 0; i < b->count; i++) {
        attr += attr + 1 < b->attr_count && b->places[attr + 1] == i;
        CUresult result = tpc_memcpy_anywhere(name, b->dsts[i], b->srcs[i], b->sizes[i], stream, false);
        if (result != CUDA_SUCCESS) {
            *failed = i;
            return result;
        }
        wait |= b->attrs[attr].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL && is_read_later(b, i);
    }
    return wait ? tpc_copy_wait(name, stream) : CUDA_SUCCESS;
}

static CUresult batch(const char *name, const struct batch *b, size_t *failed, CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, stream, true);
    CUresult result = stream == CU_STREAM_LEGACY ? CUDA_ERROR_INVALID_VALUE : check_attributes(b);
    for (size_t i = 0; i < b->count && result == CUDA_SUCCESS; i++) {
        result = check_copy(b, i);
        *failed = result ? i : NOBODY;
    }
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed)) && result == CUDA_SUCCESS) {
        result = tpc_capture_status(stream, &status);
        if (result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE) {
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; /* and the capture lives: drivers before 13.1 */
        }
    }
    return result ? result : copy_all(name, b, failed, stream);
}

CUresult tpc_cuMemcpyBatchAsync(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                                CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, size_t *failIdx,
                                CUstream hStream) {
    size_t failed = NOBODY;
    struct batch b = {dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs};
    if (hStream == CU_STREAM_LEGACY) { /* before all else (580.159.04, measured) */
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = batch("cuMemcpyBatchAsync", &b, &failed, hStream);
    if (result != CUDA_SUCCESS && failIdx) {
        *failIdx = failed;
    }
    return result;
}
