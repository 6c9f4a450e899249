/*
 * Batches of copies in three dimensions: cuMemcpy3DBatchAsync, in the form of CUDA 12.8 and in that of 13.0.
 *
 * Any thread; owns nothing. As with batches in one dimension (copy_batch.c), everything is checked before anything is sent, and
 * the copies go into the stream one after the other. An extent and an offset count elements: those of the arrays that take part,
 * bytes where both sides are linear memory.
 */
#include "tpc_copy.h"
#include "tpg_client.h"

#define NOBODY SIZE_MAX /* no copy is to blame */

struct one {
    struct tpc_copy_side to, from;
    uint64_t size[3]; /* bytes, rows, slices */
};

static CUresult element_of(CUarray array, size_t *bytes) {
    static _Atomic bool said;
    CUDA_ARRAY3D_DESCRIPTOR shape;
    TPC_TRY(tpc_cuArray3DGetDescriptor_v2(&shape, array));
    switch (shape.Format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        *bytes = 1;
        break;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        *bytes = 2;
        break;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        *bytes = 4;
        break;
    default:
        return tpc_unserved(&said, "op.array.array", "an array of another format than numbers");
    }
    *bytes *= shape.NumChannels;
    return CUDA_SUCCESS;
}

/* The element of a side that is an array; of others the one that there was. */
static CUresult element(const CUmemcpy3DOperand *side, size_t *bytes) {
    switch (side->type) {
    case CU_MEMCPY_OPERAND_TYPE_POINTER:
        return side->op.ptr.ptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEMCPY_OPERAND_TYPE_ARRAY:
        return element_of(side->op.array.array, bytes);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUresult side_of(const CUmemcpy3DOperand *told, const CUextent3D *extent, size_t bytes,
                        struct tpc_copy_side *out) {
    bool wraps = false;
    if (told->type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
        *out = (struct tpc_copy_side){.type = CU_MEMORYTYPE_ARRAY,
                                      .array = told->op.array.array,
                                      .y = told->op.array.offset.y,
                                      .z = told->op.array.offset.z};
        wraps = __builtin_mul_overflow(told->op.array.offset.x, bytes, &out->x);
    } else {
        *out = (struct tpc_copy_side){
            .type = CU_MEMORYTYPE_UNIFIED, .device = told->op.ptr.ptr, .height = told->op.ptr.layerHeight};
        wraps =
            __builtin_mul_overflow(told->op.ptr.rowLength ? told->op.ptr.rowLength : extent->width, bytes, &out->pitch);
    }
    return wraps ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult check(const CUDA_MEMCPY3D_BATCH_OP *op, struct one *out) {
    size_t bytes = 1;
    const CUextent3D *extent = &op->extent;
    if (!extent->width || !extent->height || !extent->depth || op->srcAccessOrder < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ||
        op->srcAccessOrder > CU_MEMCPY_SRC_ACCESS_ORDER_ANY ||
        (op->flags & ~(unsigned)CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(element(&op->src, &bytes));
    TPC_TRY(element(&op->dst, &bytes));
    out->size[1] = extent->height;
    out->size[2] = extent->depth;
    if (__builtin_mul_overflow(extent->width, bytes, &out->size[0])) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(side_of(&op->dst, extent, bytes, &out->to));
    TPC_TRY(side_of(&op->src, extent, bytes, &out->from));
    return tpc_copy_sides_good(&out->to, &out->from, out->size);
}

static CUresult run(const char *name, const CUDA_MEMCPY3D_BATCH_OP *list, size_t count, size_t *failed,
                    CUstream stream) {
    struct one copy;
    bool wait = false;
    for (size_t i = 0; i < count; i++) {
        CUresult result = check(&list[i], &copy);
        if (result != CUDA_SUCCESS) {
            *failed =
                list[i].src.op.ptr.ptr && list[i].dst.op.ptr.ptr ? i : NOBODY; /* which has no address, is not told */
            return result;
        }
    }
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        TPC_TRY(tpc_capture_status(stream, &status));
        if (status != CU_STREAM_CAPTURE_STATUS_NONE) {
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; /* and the capture lives: drivers before 13.1 */
        }
    }
    for (size_t i = 0; i < count; i++) {
        CUresult result = check(&list[i], &copy);
        result = result ? result : tpc_copy_sides(name, &copy.to, &copy.from, copy.size, stream);
        if (result != CUDA_SUCCESS) {
            *failed = i;
            return result;
        }
        wait |= list[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    }
    return wait ? tpc_copy_wait(name, stream) : CUDA_SUCCESS;
}

CUresult tpc_cuMemcpy3DBatchAsync(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx,
                                  unsigned long long flags, CUstream hStream) {
    if (hStream == CU_STREAM_LEGACY) { /* before all else, as above */
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CONTEXT(context);
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    if (!numOps || !opList || flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t failed = NOBODY;
    CUresult result = run("cuMemcpy3DBatchAsync", opList, numOps, &failed, hStream);
    if (result != CUDA_SUCCESS && failIdx) {
        *failIdx = failed;
    }
    return result;
}
