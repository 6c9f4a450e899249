// cuMemcpy2D*, cuMemcpy3D*, cuMemcpy3DPeer*: rectangles and boxes in linear memory.
//
// The descriptors are translated to start address, pitch and slice; overflow anywhere, and a box outside an array, is error 1.
// Host sides are followed row by row for the whole box.
#include "sim_graph.h"
#include "sim_array.h"
#include "sim_copy.h"

typedef struct {
    CUmemorytype type;
    uint64_t host, device, x, y, z, pitch, rows;
    CUarray array;
    bool locked; // sim.lock is held
} part_t;

static CUresult array_side(const part_t *part, uint64_t width, uint64_t height, uint64_t depth, sim_side_t *side) {
    sim_box_t box;
    if (!part->locked)
        pthread_mutex_lock(&sim.lock);
    CUresult result = sim_array_box(part->array, &box);
    if (!part->locked)
        pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS)
        return result;
    if (part->x > box.width || width > box.width - part->x || part->y > box.rows || height > box.rows - part->y ||
        part->z > box.slices || depth > box.slices - part->z)
        return CUDA_ERROR_INVALID_VALUE;
    side->pitch = box.width;
    side->slice = box.width * box.rows;
    side->address = box.base + part->z * side->slice + part->y * side->pitch + part->x;
    return CUDA_SUCCESS;
}

// In memory of a pool a row may begin behind the pitch (Dr.Jit's do); in cuMemAlloc's the driver refuses it (580.159.04, asked).
static bool of_pool(uint64_t address) {
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find(address);
    bool of = range && range->pool;
    pthread_rwlock_unlock(&sim.map_lock);
    return of;
}

static CUresult side_of(const part_t *part, uint64_t width, uint64_t height, uint64_t depth, sim_side_t *side,
                        sim_place_t *place) {
    uint64_t start;
    switch (part->type) {
    case CU_MEMORYTYPE_HOST:
        *place = SIM_PLACE_HOST;
        start = part->host;
        break;
    case CU_MEMORYTYPE_DEVICE:
        *place = SIM_PLACE_DEVICE;
        start = part->device;
        break;
    case CU_MEMORYTYPE_UNIFIED:
        *place = SIM_PLACE_UNIFIED;
        start = part->device;
        break;
    case CU_MEMORYTYPE_ARRAY:
        *place = SIM_PLACE_DEVICE;
        return array_side(part, width, height, depth, side);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t pitch = part->pitch ? part->pitch : width + part->x, rows = part->rows ? part->rows : height + part->y;
    uint64_t right, bottom, skip;
    if (__builtin_add_overflow(part->x, width, &right) || __builtin_add_overflow(part->y, height, &bottom))
        return CUDA_ERROR_INVALID_VALUE;
    if (part->pitch && pitch < right && !(pitch >= width && of_pool(start)))
        return CUDA_ERROR_INVALID_VALUE;
    if (rows < bottom) // for one slice, too (580.159.04, asked)
        return CUDA_ERROR_INVALID_VALUE;
    side->pitch = pitch;
    if (__builtin_mul_overflow(pitch, rows, &side->slice))
        return CUDA_ERROR_INVALID_VALUE;
    if (__builtin_mul_overflow(part->z, side->slice, &skip) || __builtin_add_overflow(start, skip, &start) ||
        __builtin_mul_overflow(part->y, pitch, &skip) || __builtin_add_overflow(start, skip, &start) ||
        __builtin_add_overflow(start, part->x, &start))
        return CUDA_ERROR_INVALID_VALUE;
    side->address = start;
    return CUDA_SUCCESS;
}

static CUresult copy_box(sim_context_t *context, CUstream stream, const part_t *dst, const part_t *src, uint64_t width,
                         uint64_t height, uint64_t depth, const sim_peers_t *peers, bool async) {
    sim_copy_t copy = {.width = width, .height = height, .depth = depth};
    sim_place_t dst_place, src_place;
    if (!width || !height || !depth)
        return CUDA_SUCCESS;
    CUresult result = side_of(dst, width, height, depth, &copy.dst, &dst_place);
    if (result == CUDA_SUCCESS)
        result = side_of(src, width, height, depth, &copy.src, &src_place);
    return result == CUDA_SUCCESS ? sim_copy_submit(context, stream, &copy, dst_place, src_place, peers, async)
                                  : result;
}

static CUresult copy2d(sim_context_t *context, CUstream stream, const CUDA_MEMCPY2D *p, bool async) {
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    part_t dst = {p->dstMemoryType, (uint64_t)(uintptr_t)p->dstHost,
                  p->dstDevice,     p->dstXInBytes,
                  p->dstY,          0,
                  p->dstPitch,      0,
                  p->dstArray,      false};
    part_t src = {p->srcMemoryType, (uint64_t)(uintptr_t)p->srcHost,
                  p->srcDevice,     p->srcXInBytes,
                  p->srcY,          0,
                  p->srcPitch,      0,
                  p->srcArray,      false};
    return copy_box(context, stream, &dst, &src, p->WidthInBytes, p->Height, 1, NULL, async);
}

static CUresult boxes(const CUDA_MEMCPY3D *p, part_t *dst, part_t *src) {
    if (!p)
        return CUDA_ERROR_INVALID_VALUE; // at the levels of detail nobody looks (580.159.04, measured)
    *dst = (part_t){p->dstMemoryType, (uint64_t)(uintptr_t)p->dstHost,
                    p->dstDevice,     p->dstXInBytes,
                    p->dstY,          p->dstZ,
                    p->dstPitch,      p->dstHeight,
                    p->dstArray,      false};
    *src = (part_t){p->srcMemoryType, (uint64_t)(uintptr_t)p->srcHost,
                    p->srcDevice,     p->srcXInBytes,
                    p->srcY,          p->srcZ,
                    p->srcPitch,      p->srcHeight,
                    p->srcArray,      false};
    return CUDA_SUCCESS;
}

static CUresult copy3d(sim_context_t *context, CUstream stream, const CUDA_MEMCPY3D *p, bool async) {
    part_t dst, src;
    CUresult result = boxes(p, &dst, &src);
    return result ? result : copy_box(context, stream, &dst, &src, p->WidthInBytes, p->Height, p->Depth, NULL, async);
}

// The contexts of sides that are device memory; a host side is every device's. NULL is the current one.
static CUresult copy3d_peer(sim_context_t *context, CUstream stream, const CUDA_MEMCPY3D_PEER *p, bool async) {
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    part_t dst = {p->dstMemoryType, (uint64_t)(uintptr_t)p->dstHost,
                  p->dstDevice,     p->dstXInBytes,
                  p->dstY,          p->dstZ,
                  p->dstPitch,      p->dstHeight,
                  p->dstArray,      false};
    part_t src = {p->srcMemoryType, (uint64_t)(uintptr_t)p->srcHost,
                  p->srcDevice,     p->srcXInBytes,
                  p->srcY,          p->srcZ,
                  p->srcPitch,      p->srcHeight,
                  p->srcArray,      false};
    sim_peers_t peers;
    const CUcontext own = (CUcontext)(void *)context;
    CUresult result = sim_copy_peers(p->dstContext ? p->dstContext : own, p->srcContext ? p->srcContext : own, &peers);
    CUstreamCaptureStatus status;
    if (result == CUDA_SUCCESS && stream) // counts also where nothing is copied
        result = cuStreamIsCapturing(stream, &status);
    return result ? result : copy_box(context, stream, &dst, &src, p->WidthInBytes, p->Height, p->Depth, &peers, async);
}

CUresult sim_copy_box_prepare(sim_context_t *context, const CUDA_MEMCPY3D *p, sim_copy_t *copy) {
    part_t dst, src;
    sim_place_t dst_place, src_place;
    bool pinned;
    CUresult result = boxes(p, &dst, &src);
    if (result == CUDA_SUCCESS && (!p->WidthInBytes || !p->Height || !p->Depth))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    dst.locked = src.locked = true; // nodes are made under it
    *copy = (sim_copy_t){.width = p->WidthInBytes, .height = p->Height, .depth = p->Depth};
    result = side_of(&dst, copy->width, copy->height, copy->depth, &copy->dst, &dst_place);
    if (result == CUDA_SUCCESS)
        result = side_of(&src, copy->width, copy->height, copy->depth, &copy->src, &src_place);
    if (result == CUDA_SUCCESS)
        result =
            sim_side_prepare(context, &copy->dst, dst_place, copy->width, copy->height, copy->depth, true, &pinned);
    if (result == CUDA_SUCCESS)
        result =
            sim_side_prepare(context, &copy->src, src_place, copy->width, copy->height, copy->depth, false, &pinned);
    return result;
}

// ---- One row of an array, and linear memory ----------------------------------------------------------------------

static part_t row_of(CUarray array, size_t offset) {
    return (part_t){.type = CU_MEMORYTYPE_ARRAY, .array = array, .x = offset};
}
static part_t host_row(const void *host) {
    return (part_t){.type = CU_MEMORYTYPE_HOST, .host = (uint64_t)(uintptr_t)host};
}
static part_t device_row(CUdeviceptr device) { return (part_t){.type = CU_MEMORYTYPE_DEVICE, .device = device}; }

static CUresult copy_row(sim_context_t *context, CUstream stream, part_t dst, part_t src, size_t bytes, bool async) {
    if (bytes && ((src.type == CU_MEMORYTYPE_HOST && !src.host) || (dst.type == CU_MEMORYTYPE_HOST && !dst.host)))
        return CUDA_ERROR_INVALID_VALUE;
    return copy_box(context, stream, &dst, &src, bytes, 1, 1, NULL, async);
}

CUresult cuMemcpyHtoA_v2(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy_row(context, NULL, row_of(dstArray, dstOffset), host_row(srcHost), ByteCount, false);
}

CUresult cuMemcpyAtoH_v2(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy_row(context, NULL, host_row(dstHost), row_of(srcArray, srcOffset), ByteCount, false);
}

CUresult cuMemcpyHtoAAsync_v2(CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount,
                              CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy_row(context, hStream, row_of(dstArray, dstOffset), host_row(srcHost), ByteCount, true);
}

CUresult cuMemcpyAtoHAsync_v2(void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy_row(context, hStream, host_row(dstHost), row_of(srcArray, srcOffset), ByteCount, true);
}

CUresult cuMemcpyDtoA_v2(CUarray dstArray, size_t dstOffset, CUdeviceptr srcDevice, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy_row(context, NULL, row_of(dstArray, dstOffset), device_row(srcDevice), ByteCount, false);
}

CUresult cuMemcpyAtoD_v2(CUdeviceptr dstDevice, CUarray srcArray, size_t srcOffset, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy_row(context, NULL, device_row(dstDevice), row_of(srcArray, srcOffset), ByteCount, false);
}

CUresult cuMemcpyAtoA_v2(CUarray dstArray, size_t dstOffset, CUarray srcArray, size_t srcOffset, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy_row(context, NULL, row_of(dstArray, dstOffset), row_of(srcArray, srcOffset), ByteCount, false);
}

// The first form, whose device addresses have 32 bits, so that none means memory.
CUresult cuMemcpyHtoA(CUarray dstArray, unsigned int dstOffset, const void *srcHost, unsigned int ByteCount) {
    return cuMemcpyHtoA_v2(dstArray, dstOffset, srcHost, ByteCount);
}

CUresult cuMemcpyAtoH(void *dstHost, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount) {
    return cuMemcpyAtoH_v2(dstHost, srcArray, srcOffset, ByteCount);
}

CUresult cuMemcpyHtoAAsync(CUarray dstArray, unsigned int dstOffset, const void *srcHost, unsigned int ByteCount,
                           CUstream hStream) {
    return cuMemcpyHtoAAsync_v2(dstArray, dstOffset, srcHost, ByteCount, hStream);
}

CUresult cuMemcpyAtoHAsync(void *dstHost, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount,
                           CUstream hStream) {
    return cuMemcpyAtoHAsync_v2(dstHost, srcArray, srcOffset, ByteCount, hStream);
}

CUresult cuMemcpyDtoA(CUarray dstArray, unsigned int dstOffset, CUdeviceptr_v1 srcDevice, unsigned int ByteCount) {
    return cuMemcpyDtoA_v2(dstArray, dstOffset, srcDevice, ByteCount);
}

CUresult cuMemcpyAtoD(CUdeviceptr_v1 dstDevice, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount) {
    return cuMemcpyAtoD_v2(dstDevice, srcArray, srcOffset, ByteCount);
}

CUresult cuMemcpyAtoA(CUarray dstArray, unsigned int dstOffset, CUarray srcArray, unsigned int srcOffset,
                      unsigned int ByteCount) {
    return cuMemcpyAtoA_v2(dstArray, dstOffset, srcArray, srcOffset, ByteCount);
}

CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D *pCopy) {
    SIM_ENTER_CONTEXT(context);
    return copy2d(context, NULL, pCopy, false);
}

CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *pCopy) {
    SIM_ENTER_CONTEXT(context);
    return copy2d(context, NULL, pCopy, false);
}

CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *pCopy, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy2d(context, hStream, pCopy, true);
}

CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D *pCopy) {
    SIM_ENTER_CONTEXT(context);
    return copy3d(context, NULL, pCopy, false);
}

CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *pCopy, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy3d(context, hStream, pCopy, true);
}

CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *pCopy) {
    SIM_ENTER_CONTEXT(context);
    return copy3d_peer(context, NULL, pCopy, false);
}

CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    CUresult result = sim_capture_bars(context, hStream);
    if (result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        return result;
    return copy3d_peer(context, hStream, pCopy, true);
}

// ---- Batches -----------------------------------------------------------------------------------------------------

// The element of a side that is an array; of others the one that there was.
static CUresult element(const CUmemcpy3DOperand *side, size_t *bytes) {
    CUDA_ARRAY3D_DESCRIPTOR shape;
    if (side->type == CU_MEMCPY_OPERAND_TYPE_POINTER)
        return side->op.ptr.ptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (side->type != CU_MEMCPY_OPERAND_TYPE_ARRAY)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = cuArray3DGetDescriptor_v2(&shape, side->op.array.array);
    if (result != CUDA_SUCCESS)
        return result;
    unsigned format = shape.Format; // numbers only: 8, 16 and 32 bits, unsigned, signed and of floating point
    *bytes = shape.NumChannels * (format == 0x10   ? 2
                                  : format == 0x20 ? 4
                                                   : 1u << ((format & 7) - (format & 8 ? 0 : 1)));
    return CUDA_SUCCESS;
}

static part_t operand(const CUmemcpy3DOperand *told, uint64_t width, size_t bytes) {
    if (told->type == CU_MEMCPY_OPERAND_TYPE_ARRAY)
        return (part_t){.type = CU_MEMORYTYPE_ARRAY,
                        .array = told->op.array.array,
                        .x = told->op.array.offset.x * bytes,
                        .y = told->op.array.offset.y,
                        .z = told->op.array.offset.z};
    return (part_t){.type = CU_MEMORYTYPE_UNIFIED,
                    .device = told->op.ptr.ptr,
                    .pitch = (told->op.ptr.rowLength ? told->op.ptr.rowLength : width) * bytes,
                    .rows = told->op.ptr.layerHeight};
}

static CUresult batch_copy(sim_context_t *context, CUstream stream, const CUDA_MEMCPY3D_BATCH_OP *op) {
    size_t bytes = 1;
    unsigned order = op->srcAccessOrder;
    if (!op->extent.width || !op->extent.height || !op->extent.depth || order < 1 || order > 3 || op->flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = element(&op->src, &bytes);
    result = result ? result : element(&op->dst, &bytes);
    if (result != CUDA_SUCCESS)
        return result;
    if (op->extent.width > UINT64_MAX / bytes)
        return CUDA_ERROR_INVALID_VALUE;
    part_t dst = operand(&op->dst, op->extent.width, bytes), src = operand(&op->src, op->extent.width, bytes);
    return copy_box(context, stream, &dst, &src, op->extent.width * bytes, op->extent.height, op->extent.depth, NULL,
                    true);
}

// Copy after copy in the stream, as with batches of one dimension (sim_copy.c).
static CUresult copy_batch(size_t count, const CUDA_MEMCPY3D_BATCH_OP *list, size_t *fail, unsigned long long flags,
                           CUstream stream) {
    SIM_ENTER_STREAM(context, stream);
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    bool wait = false;
    if (!stream || stream == CU_STREAM_LEGACY)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = cuStreamIsCapturing(stream, &status);
    if (result == CUDA_SUCCESS && (!count || !list))
        return CUDA_ERROR_INVALID_VALUE;
    result = result == CUDA_SUCCESS && flags ? CUDA_ERROR_INVALID_VALUE : result;
    if (result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    size_t failed = SIZE_MAX;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        result = batch_copy(context, stream, &list[i]);
        failed = result && list[i].src.op.ptr.ptr && list[i].dst.op.ptr.ptr ? i : failed; // no address: nobody's fault
        wait |= list[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    }
    if (result == CUDA_SUCCESS && wait)
        result = cuStreamSynchronize(stream);
    if (result != CUDA_SUCCESS && fail)
        *fail = failed;
    return result;
}

CUresult cuMemcpy3DBatchAsync(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags,
                              CUstream hStream) {
    if (!hStream) // before everything else
        return CUDA_ERROR_INVALID_VALUE;
    SIM_BEGINS(failIdx, SIZE_MAX);
    return copy_batch(numOps, opList, failIdx, flags, hStream);
}

CUresult cuMemcpy3DBatchAsync_v2(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags,
                                 CUstream hStream) {
    return copy_batch(numOps, opList, NULL, flags, hStream);
}
