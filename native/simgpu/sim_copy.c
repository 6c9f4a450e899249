// cuMemcpy* in one dimension, and cuMemset*: arguments are checked here, then the operation is queued.
//
// A device address must lie in a live allocation, or in a mapping that some device has access to, for the whole length, else
// error 1; where another device has it, it is a fault of the stream, error 700. Memory of cuMemMap needs access for the device that copies (nobody says whether that is the stream's or the current
// context's, so here both need it); only a peer copy names the devices that it may be reached by. Pageable host memory follows the driver: an asynchronous upload takes up to 2 MiB at the call
// and returns, everything else waits for the stream; a download returns once the bytes have arrived. Host pointers are read and written for the whole
// length that was asked for.
#include "sim_copy.h"
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

#define STAGING_BYTES (2u << 20) // larger pageable uploads wait for the copy; of these the driver stages the first part
#define SMALL_BYTES 65536u // asynchronous copies of pinned memory below this are read at the call in an idle stream

CUresult sim_side_prepare(sim_context_t *context, sim_side_t *side, sim_place_t place, uint64_t width, uint64_t height,
                          uint64_t depth, bool write, bool *pinned) {
    uint64_t planes, last, extent;
    // The last byte of the last row: rows may be shorter than the pitch.
    if (__builtin_mul_overflow(depth - 1, side->slice, &planes) ||
        __builtin_mul_overflow(height - 1, side->pitch, &last) || __builtin_add_overflow(planes, last, &extent) ||
        __builtin_add_overflow(extent, width, &extent) || extent > UINT64_MAX - side->address)
        return CUDA_ERROR_INVALID_VALUE;
    side->device = side->caller = context->device;
    CUresult result = CUDA_SUCCESS;
    pthread_rwlock_rdlock(&sim.map_lock);
    bool host_pinned = sim_map_pinned(side->address, extent);
    sim_range_t *range = sim_map_find(side->address);
    bool device_side = (range && range->kind != SIM_RANGE_HOST && range->kind != SIM_RANGE_REGISTERED) ||
                       sim_map_reserved(side->address) || sim_device_address(side->address);
    *pinned = host_pinned;
    if (place == SIM_PLACE_HOST || (place == SIM_PLACE_UNIFIED && !device_side)) {
        // A host pointer. Pinned memory goes through the map, so that its release is noticed; anything else is
        // followed as it is.
        side->mapped = host_pinned;
        if (!side->address)
            result = CUDA_ERROR_INVALID_VALUE;
        if (place == SIM_PLACE_HOST && device_side) {
            side->mapped = true; // cuMemcpyHtoD of a device address works under unified addressing
            *pinned = true;
        }
    } else {
        side->mapped = true;
        *pinned = true;
    }
    if (side->mapped && !host_pinned) {
        // Every row on its own: gaps between rows belong to nobody.
        for (uint64_t z = 0; z < depth && result == CUDA_SUCCESS; z++)
            for (uint64_t y = 0; y < height && result == CUDA_SUCCESS; y++) {
                bool solid = depth == 1 && height > 1 && side->pitch == width;
                result = sim_map_check(side->address + z * side->slice + y * side->pitch,
                                       solid ? width * height : width, context->device, ~0u, write);
                if (solid)
                    break;
            }
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result == CUDA_ERROR_ILLEGAL_ADDRESS ? CUDA_SUCCESS : result; // found by the operation itself, and sticky
}

int sim_copy_device(sim_context_t *context, CUstream stream) {
    sim_stream_t *found;
    pthread_mutex_lock(&sim.lock);
    bool known = sim_stream_resolve(context, stream, &found) == CUDA_SUCCESS;
    int device = known ? found->context->device : context->device; // an unknown one is found out when it is used
    pthread_mutex_unlock(&sim.lock);
    return device;
}

// Whether nothing was put into the stream itself that is not done: what the order of blocking and legacy streams puts in front of
// it does not count, as the driver has it.
static bool stream_idle(sim_context_t *context, CUstream stream) {
    sim_stream_t *found;
    pthread_mutex_lock(&sim.lock);
    bool idle = sim_stream_resolve(context, stream, &found) == CUDA_SUCCESS && found->done == found->enqueued;
    pthread_mutex_unlock(&sim.lock);
    return idle;
}

static bool captures(CUstream stream) {
    CUstreamCaptureStatus status;
    return cuStreamIsCapturing(stream, &status) == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

static bool stage(sim_copy_t *copy, uint64_t bytes) {
    unsigned char *to = copy->staging = malloc(bytes);
    if (!to)
        return false;
    for (uint64_t z = 0; z < copy->depth; z++)
        for (uint64_t y = 0; y < copy->height; y++, to += copy->width)
            memcpy(to, (const void *)(uintptr_t)(copy->src.address + z * copy->src.slice + y * copy->src.pitch),
                   copy->width);
    copy->staged = copy->src;
    copy->src.address = (uint64_t)(uintptr_t)copy->staging;
    copy->src.mapped = false;
    copy->src.pitch = copy->width;
    copy->src.slice = copy->width * copy->height;
    return true;
}

// Of nothing that is copied or set the stream alone is looked at (580.159.04, measured).
static CUresult stream_alone(CUstream stream) {
    return !stream || sim_is(stream, SIM_STREAM) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult sim_copy_submit(sim_context_t *context, CUstream stream, sim_copy_t *copy, sim_place_t dst, sim_place_t src,
                         const sim_peers_t *peers, bool async) {
    if (!copy->width || !copy->height || !copy->depth)
        return stream_alone(stream);
    bool dst_pinned, src_pinned;
    CUresult result =
        sim_side_prepare(context, &copy->dst, dst, copy->width, copy->height, copy->depth, true, &dst_pinned);
    if (result == CUDA_SUCCESS)
        result = sim_side_prepare(context, &copy->src, src, copy->width, copy->height, copy->depth, false, &src_pinned);
    if (result != CUDA_SUCCESS)
        return result;
    if (peers) {
        copy->dst.device = copy->dst.caller = peers->dst;
        copy->src.device = copy->src.caller = peers->src;
    } else {
        copy->dst.device = copy->src.device = sim_copy_device(context, stream);
    }
    bool wait = !dst_pinned; // a download into pageable memory returns when the bytes are there
    uint64_t bytes;
    bool known = !__builtin_mul_overflow(copy->width, copy->height, &bytes) &&
                 !__builtin_mul_overflow(bytes, copy->depth, &bytes);
    if (!src_pinned) {
        bool small = known && bytes <= STAGING_BYTES;
        if (!async || !small || !dst_pinned)
            wait = true;
        else if (!captures(stream) && !stage(copy, bytes)) // each launch of the graph reads it
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_rwlock_rdlock(&sim.map_lock); // what decides is where the memory is, not the name of the call
    bool to_host = sim_map_pinned(copy->dst.address, 1), from_host = src_pinned && sim_map_pinned(copy->src.address, 1);
    bool host_memory = to_host || from_host;
    pthread_rwlock_unlock(&sim.map_lock);
    if (async && from_host && !to_host && known && bytes < SMALL_BYTES && stream_idle(context, stream) &&
        !stage(copy, bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    bool both_device = dst_pinned && src_pinned && !host_memory && dst == SIM_PLACE_DEVICE && src == SIM_PLACE_DEVICE;
    // Synchronous forms wait, except device to device; and every form from one place of host memory to another, by whatever name (580.159.04, seen).
    if ((!async && !both_device) || (to_host && (from_host || !src_pinned)))
        wait = true;
    sim_op_t op = {.kind = SIM_OP_COPY, .u.copy = *copy};
    return sim_submit(context, stream, &op, false, !wait ? SIM_GO_ON : async ? SIM_WAIT_OR_CAPTURE : SIM_WAIT);
}

static CUresult copy1d(sim_context_t *context, CUstream stream, uint64_t dst, sim_place_t dst_place, uint64_t src,
                       sim_place_t src_place, size_t bytes, bool async) {
    sim_copy_t copy = {.dst = {.address = dst}, .src = {.address = src}, .width = bytes, .height = 1, .depth = 1};
    return sim_copy_submit(context, stream, &copy, dst_place, src_place, NULL, async);
}

static uint64_t host(const void *p) { return (uint64_t)(uintptr_t)p; }

CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy1d(context, NULL, dst, SIM_PLACE_UNIFIED, src, SIM_PLACE_UNIFIED, ByteCount, false);
}

CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy1d(context, hStream, dst, SIM_PLACE_UNIFIED, src, SIM_PLACE_UNIFIED, ByteCount, true);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy1d(context, NULL, dstDevice, SIM_PLACE_DEVICE, host(srcHost), SIM_PLACE_HOST, ByteCount, false);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy1d(context, hStream, dstDevice, SIM_PLACE_DEVICE, host(srcHost), SIM_PLACE_HOST, ByteCount, true);
}

CUresult cuMemcpyDtoH_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find(host(dstHost));
    const bool read_only =
        range && range->kind == SIM_RANGE_REGISTERED && (range->flags & CU_MEMHOSTREGISTER_READ_ONLY);
    pthread_rwlock_unlock(&sim.map_lock);
    if (ByteCount && read_only) // 580.159.04, asked
        return CUDA_ERROR_INVALID_VALUE;
    return copy1d(context, NULL, host(dstHost), SIM_PLACE_HOST, srcDevice, SIM_PLACE_DEVICE, ByteCount, false);
}

CUresult cuMemcpyDtoHAsync_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy1d(context, hStream, host(dstHost), SIM_PLACE_HOST, srcDevice, SIM_PLACE_DEVICE, ByteCount, true);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return copy1d(context, NULL, dstDevice, SIM_PLACE_DEVICE, srcDevice, SIM_PLACE_DEVICE, ByteCount, false);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return copy1d(context, hStream, dstDevice, SIM_PLACE_DEVICE, srcDevice, SIM_PLACE_DEVICE, ByteCount, true);
}

CUresult sim_copy_peers(CUcontext dst, CUcontext src, sim_peers_t *peers) {
    pthread_mutex_lock(&sim.lock);
    bool live = sim_handle_is(dst, SIM_CONTEXT) && sim_handle_is(src, SIM_CONTEXT);
    if (live)
        *peers = (sim_peers_t){((sim_context_t *)(void *)dst)->device, ((sim_context_t *)(void *)src)->device};
    pthread_mutex_unlock(&sim.lock);
    return live ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult peer1d(sim_context_t *context, CUstream stream, uint64_t dst, CUcontext dst_context, uint64_t src,
                       CUcontext src_context, size_t bytes, bool async) {
    sim_copy_t copy = {.dst = {.address = dst}, .src = {.address = src}, .width = bytes, .height = 1, .depth = 1};
    sim_peers_t peers;
    const CUcontext own = (CUcontext)(void *)context; // for NULL (580.159.04, asked)
    CUresult result = sim_copy_peers(dst_context ? dst_context : own, src_context ? src_context : own, &peers);
    return result ? result : sim_copy_submit(context, stream, &copy, SIM_PLACE_DEVICE, SIM_PLACE_DEVICE, &peers, async);
}

CUresult cuMemcpyPeer(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
                      size_t ByteCount) {
    SIM_ENTER_CONTEXT(context);
    return peer1d(context, NULL, dstDevice, dstContext, srcDevice, srcContext, ByteCount, false);
}

CUresult cuMemcpyPeerAsync(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
                           size_t ByteCount, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    CUresult result = sim_capture_bars(context, hStream); // (580.159.04, measured)
    if (result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        return result;
    return peer1d(context, hStream, dstDevice, dstContext, srcDevice, srcContext, ByteCount, true);
}

// ---- Batches -----------------------------------------------------------------------------------------------------

static CUresult check_batch(const CUdeviceptr *dsts, const CUdeviceptr *srcs, const size_t *sizes, size_t count,
                            const CUmemcpyAttributes *attrs, const size_t *places, size_t attr_count, size_t *failed) {
    if (!dsts || !srcs || !sizes || !attrs || !places || !attr_count || attr_count > count || places[0])
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < attr_count; i++) {
        unsigned order = attrs[i].srcAccessOrder;
        if (places[i] >= count || (i && places[i] <= places[i - 1]) || order < 1 || order > 3 || attrs[i].flags > 1)
            return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++)
        if (!sizes[i] || !dsts[i] || !srcs[i]) {
            *failed = i;
            return CUDA_ERROR_INVALID_VALUE;
        }
    return CUDA_SUCCESS;
}

// Copy after copy in the stream: in a batch there is no order, so any will do. Sources are always read in stream order, and
// where they must be read before the call returns, it waits.
static CUresult copy_batch(const CUdeviceptr *dsts, const CUdeviceptr *srcs, const size_t *sizes, size_t count,
                           const CUmemcpyAttributes *attrs, const size_t *places, size_t attr_count, size_t *fail,
                           CUstream stream) {
    SIM_ENTER();
    if (!stream)
        return CUDA_ERROR_INVALID_VALUE;
    if (fail)
        *fail = SIZE_MAX; // before all else (580.159.04, measured)
    if (stream == CU_STREAM_LEGACY)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER_STREAM(context, stream);
    size_t failed = SIZE_MAX, attr = 0;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    bool wait = false;
    CUresult result = check_batch(dsts, srcs, sizes, count, attrs, places, attr_count, &failed);
    if (result == CUDA_SUCCESS)
        result = cuStreamIsCapturing(stream, &status);
    if (result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; // and the capture lives, as with driver 13.0
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        attr += attr + 1 < attr_count && places[attr + 1] == i;
        wait |= attrs[attr].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
        result = copy1d(context, stream, dsts[i], SIM_PLACE_UNIFIED, srcs[i], SIM_PLACE_UNIFIED, sizes[i], true);
        failed = result ? i : failed;
    }
    if (result == CUDA_SUCCESS && wait)
        result = cuStreamSynchronize(stream);
    if (result != CUDA_SUCCESS && fail)
        *fail = failed;
    return result;
}

CUresult cuMemcpyBatchAsync(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                            CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, size_t *failIdx,
                            CUstream hStream) {
    if (!hStream) // before everything else
        return CUDA_ERROR_INVALID_VALUE;
    SIM_BEGINS(failIdx, SIZE_MAX);
    return copy_batch(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, failIdx, hStream);
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                               CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, CUstream hStream) {
    return copy_batch(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, NULL, hStream);
}

// ---- Memset ------------------------------------------------------------------------------------------------------

static CUresult set2d(sim_context_t *context, CUstream stream, uint64_t dst, size_t pitch, uint32_t value,
                      uint32_t element, size_t width, size_t height, bool async) {
    sim_set_t set = {.dst = {.address = dst, .pitch = pitch}, .height = height, .value = value, .element = element};
    if (!width || !height)
        return stream_alone(stream);
    if (__builtin_mul_overflow((uint64_t)width, (uint64_t)element, &set.width))
        return CUDA_ERROR_INVALID_VALUE;
    if (dst & (element - 1))
        return CUDA_ERROR_INVALID_VALUE;
    if (height > 1 && (pitch < set.width || (pitch & (element - 1))))
        return CUDA_ERROR_INVALID_VALUE;
    bool pinned;
    CUresult result = sim_side_prepare(context, &set.dst, SIM_PLACE_DEVICE, set.width, height, 1, true, &pinned);
    // A capture takes any address (cuDNN has its kernels captured with NULL and an offset as workspace); that the graph's
    // launch breaks the context is assumed.
    if (result != CUDA_SUCCESS && !(result == CUDA_ERROR_INVALID_VALUE && set.dst.mapped && captures(stream)))
        return result;
    set.dst.device = sim_copy_device(context, stream);
    pthread_rwlock_rdlock(&sim.map_lock);
    bool host_memory = sim_map_pinned(dst, 1); // the one case in which cuMemset waits
    pthread_rwlock_unlock(&sim.map_lock);
    sim_op_t op = {.kind = SIM_OP_SET, .u.set = set};
    return sim_submit(context, stream, &op, false, !async && host_memory ? SIM_WAIT : SIM_GO_ON);
}

CUresult cuMemsetD8_v2(CUdeviceptr dstDevice, unsigned char uc, size_t N) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, 0, uc, 1, N, 1, false);
}

CUresult cuMemsetD8Async(CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, 0, uc, 1, N, 1, true);
}

CUresult cuMemsetD16_v2(CUdeviceptr dstDevice, unsigned short us, size_t N) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, 0, us, 2, N, 1, false);
}

CUresult cuMemsetD16Async(CUdeviceptr dstDevice, unsigned short us, size_t N, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, 0, us, 2, N, 1, true);
}

CUresult cuMemsetD32_v2(CUdeviceptr dstDevice, unsigned int ui, size_t N) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, 0, ui, 4, N, 1, false);
}

CUresult cuMemsetD32Async(CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, 0, ui, 4, N, 1, true);
}

CUresult cuMemsetD2D8_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, dstPitch, uc, 1, Width, Height, false);
}

CUresult cuMemsetD2D8Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height,
                           CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, dstPitch, uc, 1, Width, Height, true);
}

CUresult cuMemsetD2D16_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, dstPitch, us, 2, Width, Height, false);
}

CUresult cuMemsetD2D16Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height,
                            CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, dstPitch, us, 2, Width, Height, true);
}

CUresult cuMemsetD2D32_v2(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height) {
    SIM_ENTER_CONTEXT(context);
    return set2d(context, NULL, dstDevice, dstPitch, ui, 4, Width, Height, false);
}

CUresult cuMemsetD2D32Async(CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height,
                            CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    return set2d(context, hStream, dstDevice, dstPitch, ui, 4, Width, Height, true);
}
