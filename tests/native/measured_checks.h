// Checks of what a driver was asked last (580.159.04 on an H200): contexts that are gone, settings and frees in captures, priorities,
// nothing allocated, pitches. For the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses.
#ifndef MEASURED_CHECKS_H
#define MEASURED_CHECKS_H

#include "simgpu_check.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

static inline void check_contexts_that_are_gone(CUmodule (*load)(void)) {
    CUcontext gone, current;
    CUdevice device = -1;
    CUfunction function;
    CUevent event;
    CUgraph graph;
    CUmemGenericAllocationHandle memory;
    const CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    unsigned value;
    const char *name;
    OK(cuCtxCreate_v2(&gone, 0, 0));
    OK(cuEventCreate(&event, 0));
    OK(cuModuleGetFunction(&function, load(), "saxpy"));
    OK(cuCtxPopCurrent_v2(&current));
    OK(cuCtxDestroy_v2(gone));
    OK(cuCtxPushCurrent_v2(gone)); // it can be current again
    OK(cuCtxSetCurrent(gone));
    OK(cuCtxGetCurrent(&current));
    CHECK(current == gone);
    OK(cuCtxGetDevice(&device));
    CHECK(device == 0);
    OK(cuCtxGetFlags(&value));
    CHECK(value == 0);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxGetApiVersion(gone, &value));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxGetApiVersion(NULL, &value));
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxSynchronize());
    GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuEventDestroy_v2(event));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncGetName(&name, function));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuFuncSetCacheConfig(function, CU_FUNC_CACHE_PREFER_SHARED));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphDestroy(graph));
    OK(cuMemCreate(&memory, 2 << 20, &what, 0));
    OK(cuMemRelease(memory));
    OK(cuCtxPopCurrent_v2(&current));
}

// Nobody else may have retained the primary context. The CUDA runtime finds out by the first that it has to retain it anew.
static inline void check_primary_that_is_over(void) {
    CUcontext own, primary, again, none;
    CUevent event;
    CUgraph graph;
    CUgraphNode node;
    CUdevice device = -1;
    CUdevResource resource;
    unsigned version;
    unsigned long long id;
    CUDA_MEMSET_NODE_PARAMS set = {.elementSize = 1, .width = 4, .height = 1};
    OK(cuCtxCreate_v2(&own, 0, 0));
    OK(cuEventCreate(&event, 0));
    OK(cuMemAlloc_v2(&set.dst, 4));
    OK(cuCtxPopCurrent_v2(&none));
    OK(cuGraphCreate(&graph, 0));
    for (int reset = 0; reset < 2; reset++) {
        OK(cuDevicePrimaryCtxRetain(&primary, 0));
        OK(reset ? cuDevicePrimaryCtxReset_v2(0) : cuDevicePrimaryCtxRelease_v2(0));
        GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxGetApiVersion(primary, &version));
        OK(cuCtxGetDevice_v2(&device, primary));
        CHECK(device == 0);
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxSynchronize_v2(primary));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxGetId(primary, &id));
        memset(&resource, 0, sizeof resource);
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxGetDevResource(primary, &resource, CU_DEV_RESOURCE_TYPE_SM));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxRecordEvent(primary, event));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxWaitEvent(primary, event));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuGraphAddMemsetNode(&node, graph, NULL, 0, &set, primary));
        GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDestroy_v2(primary));
        OK(cuCtxSetCurrent(primary));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxGetApiVersion(NULL, &version));
        GIVES(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuCtxSynchronize());
        OK(cuCtxSetCurrent(NULL));
        OK(cuDevicePrimaryCtxRetain(&again, 0));
        CHECK(again == primary);
        OK(cuCtxGetApiVersion(primary, &version));
        OK(cuDevicePrimaryCtxRelease_v2(0));
    }
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuGraphDestroy(graph));
    OK(cuEventDestroy_v2(event));
    OK(cuCtxDestroy_v2(own));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxDestroy_v2(own));
}

static inline void check_flags_of_contexts(void) {
    CUcontext own;
    unsigned told;
    int active;
    OK(cuCtxGetFlags(&told));
    CHECK(told == CU_CTX_MAP_HOST); // of a primary context, always
    OK(cuCtxSetFlags(CU_CTX_SCHED_BLOCKING_SYNC));
    OK(cuCtxGetFlags(&told));
    CHECK(told == (CU_CTX_MAP_HOST | CU_CTX_SCHED_BLOCKING_SYNC));
    OK(cuDevicePrimaryCtxGetState(0, &told, &active));
    CHECK(told == 0 && active);
    OK(cuDevicePrimaryCtxSetFlags_v2(0, 0));
    OK(cuCtxGetFlags(&told));
    CHECK(told == CU_CTX_MAP_HOST);
    GIVES(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, cuDevicePrimaryCtxSetFlags(0, 0)); // the first form
    CUgraph graph;
    CUgraphExec exec;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuCtxGetFlags(&told));
    CHECK(told == (CU_CTX_MAP_HOST | CU_CTX_LMEM_RESIZE_TO_MAX)); // who makes graphs executable keeps local memory
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuCtxSetFlags(0));
    OK(cuCtxCreate_v2(&own, CU_CTX_MAP_HOST, 0));
    OK(cuCtxSetFlags(CU_CTX_SCHED_SPIN));
    OK(cuCtxGetFlags(&told));
    CHECK(told == (CU_CTX_MAP_HOST | CU_CTX_SCHED_SPIN));
    OK(cuCtxDestroy_v2(own));
    OK(cuCtxCreate_v2(&own, CU_CTX_SCHED_SPIN, 0));
    OK(cuCtxGetFlags(&told));
    CHECK(told == CU_CTX_SCHED_SPIN);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuCtxGetFlags(&told));
    CHECK(told == CU_CTX_SCHED_SPIN);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuCtxDestroy_v2(own));
}

enum { MEASURED_CAPTURES = 9 };

static inline CUresult measured_in_capture(int which, CUmemoryPool pool) {
    CUdeviceptr memory;
    size_t pitch;
    switch (which) {
    case 0:
        return cuCtxSetCacheConfig(CU_FUNC_CACHE_PREFER_SHARED);
    case 1:
        return cuCtxSetSharedMemConfig(CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE);
    case 2:
        return cuCtxSetLimit(CU_LIMIT_PRINTF_FIFO_SIZE, 1 << 20);
    case 3:
        return cuCtxSetLimit((CUlimit)77, 0); // before the argument
    case 4:
        return cuDeviceSetMemPool(0, pool);
    case 5:
        return cuMemAllocPitch_v2(&memory, &pitch, 64, 4, 4);
    case 6:
        return cuMemFree_v2(0);
    case 7:
        return cuMemAlloc_v2(NULL, 16);
    default:
        return cuMemAllocAsync(&memory, 0, NULL);
    }
}

static inline void check_what_captures_forbid(void) {
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    for (int i = 0; i < MEASURED_CAPTURES; i++) {
        CUstream stream;
        CUgraph graph;
        CUstreamCaptureStatus status;
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, measured_in_capture(i, pool));
        OK(cuStreamIsCapturing(stream, &status));
        CHECK(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
        OK(cuStreamDestroy_v2(stream));
    }
}

static inline void measured_priority(CUstream stream, int set, int told) {
    const CUstreamAttrValue value = {.priority = set};
    int found = 1;
    OK(cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_PRIORITY, &value));
    OK(cuStreamGetPriority(stream, &found));
    CHECK(found == told);
}

static inline void check_priorities(void) {
    CUstream stream, other;
    int found = 1;
    OK(cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, -1));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    measured_priority(stream, -3, -3);
    OK(cuStreamCopyAttributes(other, stream));
    OK(cuStreamGetPriority(other, &found));
    CHECK(found == -3);
    measured_priority(stream, 5, 0); // out of range is no error
    measured_priority(stream, -99, -5);
    OK(cuStreamDestroy_v2(stream));
    OK(cuStreamDestroy_v2(other));
}

static inline void check_nothing(void) {
    CUdeviceptr memory = 0x1234;
    void *host = &memory;
    uint64_t reserved = 1;
    CUmemoryPool pool;
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAllocAsync(&memory, 0, stream));
    CHECK(memory == 0);
    OK(cuMemFreeAsync(0, stream));
    OK(cuMemHostAlloc(&host, 0, 0));
    CHECK(!host);
    OK(cuMemFreeHost(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemHostUnregister(NULL));
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuMemAllocAsync(&memory, 1 << 10, stream));
    OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
    CHECK(reserved == 32u << 20); // memory comes in such lots
    OK(cuMemFreeAsync(memory, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemPoolTrimTo(pool, 0));
    OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
    CHECK(reserved == 0);
    OK(cuStreamDestroy_v2(stream));
}

static inline void check_pitches(void) {
    unsigned char rows[16], back[16] = {0};
    CUdeviceptr memory;
    for (unsigned i = 0; i < sizeof rows; i++)
        rows[i] = (unsigned char)(i + 1);
    OK(cuMemAlloc_v2(&memory, 4096));
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = rows,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = memory,
                          .WidthInBytes = 8,
                          .Height = 2};
    OK(cuMemcpy2D_v2(&copy)); // no pitch: rows side by side
    OK(cuMemcpyDtoH_v2(back, memory, sizeof back));
    CHECK(!memcmp(rows, back, sizeof rows));
    copy.srcPitch = 4;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpy2D_v2(&copy));
    copy.Height = 1;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpy2D_v2(&copy)); // even of one row
    OK(cuMemsetD2D16_v2(memory, 1, 1, 0, 4));              // none of nothing
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD2D16_v2(memory, 1, 1, 2, 2));
    OK(cuMemFree_v2(memory));
}

// Where the rows and slices of a box begin: those in front of it count where none are told.
static inline void check_slices(void) {
    unsigned char bytes[256], back[4];
    CUdeviceptr from, to;
    CUstream stream;
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)i;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAllocAsync(&from, sizeof bytes, stream));
    OK(cuMemAllocAsync(&to, sizeof bytes, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyHtoD_v2(from, bytes, sizeof bytes));
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = from,
                          .srcXInBytes = 4,
                          .srcY = 1,
                          .srcPitch = 12,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = to,
                          .dstPitch = 8,
                          .dstHeight = 2,
                          .WidthInBytes = 8,
                          .Height = 2,
                          .Depth = 2};
    for (copy.srcHeight = 0; copy.srcHeight <= 3; copy.srcHeight++) {
        if (copy.srcHeight == 1 || copy.srcHeight == 2) {
            GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpy3D_v2(&copy));
            copy.Depth = 1;
            GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpy3D_v2(&copy)); // of one slice, too
            copy.Depth = 2;
            continue;
        }
        OK(cuMemsetD8_v2(to, 0, sizeof bytes));
        OK(cuMemcpy3D_v2(&copy));
        for (unsigned i = 0; i < 4; i++) {
            OK(cuMemcpyDtoH_v2(&back[i], to + i * 8ull, 1));
        }
        CHECK(back[0] == 16 && back[1] == 28 && back[2] == 52 && back[3] == 64);
    }
    // In memory of a pool a row may begin behind the pitch.
    CUDA_MEMCPY2D parts = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                           .srcDevice = from,
                           .srcXInBytes = 16,
                           .srcPitch = 32,
                           .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                           .dstDevice = to,
                           .dstXInBytes = 32,
                           .dstPitch = 16,
                           .WidthInBytes = 16,
                           .Height = 2};
    OK(cuMemcpy2DAsync_v2(&parts, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(&back[0], to + 32, 1));
    OK(cuMemcpyDtoH_v2(&back[1], to + 48, 1));
    CHECK(back[0] == 16 && back[1] == 48);
    OK(cuMemFreeAsync(from, stream));
    OK(cuMemFreeAsync(to, stream));
    OK(cuStreamDestroy_v2(stream));
}

// What a tensor map asks of its parameters, each as a driver answered; that no context and no memory is needed among it.
static inline CUresult encode_map(CUtensorMap *map, CUdeviceptr address, unsigned rank, cuuint64_t stride,
                                  cuuint32_t box) {
    const cuuint64_t dims[6] = {64, 64, 1, 1, 1, 1}, strides[5] = {stride, 1 << 14, 1 << 14, 1 << 14, 1 << 14};
    const cuuint32_t boxes[6] = {box, 32, 1, 1, 1, 1}, steps[6] = {1, 1, 1, 1, 1, 1};
    return cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, rank, (void *)(uintptr_t)address, dims, strides,
                                  boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static inline void check_tensor_maps(void) {
    CUtensorMap map, other;
    CUdeviceptr memory;
    OK(cuMemAlloc_v2(&memory, 1 << 16));
    OK(encode_map(&map, memory, 2, 256, 32));
    CHECK(map.opaque[0] == memory);
    GIVES(CUDA_ERROR_INVALID_VALUE, encode_map(&other, memory + 4, 2, 256, 32));
    OK(encode_map(&other, 0, 2, 256, 32));
    OK(encode_map(&other, 0x7000000, 2, 256, 32));
    GIVES(CUDA_ERROR_INVALID_VALUE, encode_map(&other, memory, 0, 256, 32));
    GIVES(CUDA_ERROR_INVALID_VALUE, encode_map(&other, memory, 6, 256, 32));
    GIVES(CUDA_ERROR_INVALID_VALUE, encode_map(&other, memory, 2, 8, 32));
    GIVES(CUDA_ERROR_INVALID_VALUE, encode_map(&other, memory, 2, 256, 512));
    OK(cuTensorMapReplaceAddress(&map, (void *)(uintptr_t)(memory + 4096)));
    CHECK(map.opaque[0] == memory + 4096);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTensorMapReplaceAddress(&map, (void *)(uintptr_t)(memory + 3)));
    OK(cuMemFree_v2(memory));
}

static inline void take_a_while(void *done) {
    usleep(100000);
    atomic_store((atomic_int *)done, 1);
}

// The end of a registration waits for its context, for a host function too.
static inline void check_unregister(void) {
    void *memory = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    atomic_int done = 0;
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemHostRegister_v2(memory, 1 << 16, 0));
    OK(cuLaunchHostFunc(stream, take_a_while, (void *)&done));
    OK(cuMemHostUnregister(memory));
    CHECK(atomic_load(&done));
    GIVES(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(memory));
    OK(cuStreamDestroy_v2(stream));
    munmap(memory, 1 << 16);
}

static inline void check_addresses(void) {
    CUdeviceptr memory, reserved, from_managed, base;
    size_t size;
    unsigned char bytes[64] = {0};
    OK(cuMemAlloc_v2(&memory, (2 << 20) + 1));
    OK(cuMemAllocManaged(&from_managed, 100000, CU_MEM_ATTACH_GLOBAL));
    OK(cuMemAddressReserve(&reserved, 2 << 20, 0, 0, 0));
    // What is reserved and has no memory is nobody's, and the context lives on.
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(reserved, bytes, sizeof bytes));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(bytes, reserved, sizeof bytes));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoD_v2(memory, reserved, sizeof bytes));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(reserved, 1, sizeof bytes, CU_STREAM_LEGACY));
    GIVES(CUDA_ERROR_NOT_FOUND, cuMemGetAddressRange_v2(&base, &size, reserved));
    OK(cuCtxSynchronize());
    // Memory lies in blocks.
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_MAPPING_SIZE, memory));
    CHECK(size == 4 << 20);
    OK(cuPointerGetAttribute(&base, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR, memory + 5));
    CHECK(base == memory);
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_MAPPING_SIZE, from_managed));
    CHECK(size == 2 << 20);
    OK(cuPointerGetAttribute(&base, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR, from_managed + 5));
    CHECK(base % (2 << 20) == 0 && base <= from_managed);
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, from_managed));
    CHECK(size == 100000);
    // Memsets of nothing look at nothing.
    OK(cuMemsetD32_v2(memory + 1, 1, 0));
    OK(cuMemsetD32_v2(16, 1, 0));
    OK(cuMemsetD2D32_v2(memory + 1, 64, 1, 0, 4));
    OK(cuMemsetD2D32_v2(memory + 1, 64, 1, 16, 0));
    OK(cuMemAddressFree(reserved, 2 << 20));
    OK(cuMemFree_v2(from_managed));
    OK(cuMemFree_v2(memory));
}

static inline void check_pitches_of_nodes(void) {
    CUcontext context;
    CUdeviceptr memory;
    CUgraph graph;
    CUgraphNode node;
    OK(cuCtxGetCurrent(&context));
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuGraphCreate(&graph, 0));
    CUDA_MEMSET_NODE_PARAMS set = {.dst = memory, .pitch = 63, .elementSize = 4, .width = 4, .height = 1};
    OK(cuGraphAddMemsetNode(&node, graph, NULL, 0, &set, context)); // of one row it does not matter
    set.height = 4;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphMemsetNodeSetParams(node, &set));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemsetNode(&node, graph, NULL, 0, &set, context));
    OK(cuGraphDestroy(graph));
    OK(cuMemFree_v2(memory));
}

static inline void check_modules_of_libraries(CUmodule (*load)(void)) {
    CUlibrary library;
    CUmodule module, own = load();
    CUfunction function;
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetModule(&module, library));
    GIVES(CUDA_ERROR_NOT_PERMITTED, cuModuleUnload(module)); // it ends with the library
    OK(cuModuleGetFunction(&function, module, "saxpy"));
    OK(cuLibraryUnload(library));
    OK(cuModuleUnload(own));
}

static inline void check_ranges_of_mappings(void) {
    enum { SIZE = 2 << 20 };
    CUdeviceptr at, base;
    CUmemGenericAllocationHandle memory;
    size_t size;
    unsigned char bytes[64] = {0};
    const CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = what.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    OK(cuMemCreate(&memory, SIZE, &what, 0));
    OK(cuMemAddressReserve(&at, 2 * SIZE, 0, 0, 0));
    OK(cuMemMap(at, SIZE, 0, memory, 0));
    OK(cuMemSetAccess(at, SIZE, &access, 1));
    OK(cuMemcpyHtoD_v2(at, bytes, sizeof bytes));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(at + SIZE - 32, bytes, sizeof bytes));
    OK(cuMemGetAddressRange_v2(&base, &size, at + 5)); // the mapping's, not the reservation's
    CHECK(base == at && size == SIZE);
    GIVES(CUDA_ERROR_NOT_FOUND, cuMemGetAddressRange_v2(&base, &size, at + SIZE));
    OK(cuMemUnmap(at, SIZE));
    OK(cuMemAddressFree(at, 2 * SIZE));
    OK(cuMemRelease(memory));
}

// What was synchronous is over when memory is taken away: nothing of it comes later.
static inline void check_memory_taken_away(void) {
    enum { SIZE = 2 << 20 };
    CUdeviceptr at;
    CUmemGenericAllocationHandle memory;
    unsigned char bytes[64] = {0};
    const CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = what.location};
    for (int i = 0; i < 300; i++) {
        OK(cuMemCreate(&memory, SIZE, &what, 0));
        OK(cuMemAddressReserve(&at, SIZE, 0, 0, 0));
        OK(cuMemMap(at, SIZE, 0, memory, 0));
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        OK(cuMemSetAccess(at, SIZE, &access, 1));
        OK(cuMemcpyHtoD_v2(at, bytes, sizeof bytes));
        if (i & 1) {
            access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
            OK(cuMemSetAccess(at, SIZE, &access, 1));
        }
        OK(cuMemUnmap(at, SIZE));
        OK(cuMemAddressFree(at, SIZE));
        OK(cuMemRelease(memory));
    }
    OK(cuCtxSynchronize());
}

// Making and ending an executable graph is forbidden but in relaxed mode; using one is not.
static inline void check_graphs_in_captures(void) {
    static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                                CU_STREAM_CAPTURE_MODE_RELAXED};
    CUstream stream, other;
    CUgraph graph, captured;
    CUgraphNode node;
    CUgraphExec exec, second;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEmptyNode(&node, graph, NULL, 0));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int i = 0; i < 9; i++) {
        CUresult wanted = i % 3 < 2 ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS, result;
        CUDA_GRAPH_INSTANTIATE_PARAMS params = {0};
        OK(cuStreamBeginCapture_v2(stream, modes[i % 3]));
        OK(cuGraphLaunch(exec, other));
        if (i < 3) {
            result = cuGraphInstantiateWithFlags(&second, graph, 0);
        } else if (i < 6) {
            result = cuGraphInstantiateWithParams(&second, graph, &params);
        } else {
            result = cuGraphExecDestroy(exec);
        }
        CHECK(result == wanted);
        GIVES(wanted ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS, cuStreamEndCapture(stream, &captured));
        if (!wanted) {
            OK(cuGraphDestroy(captured));
            if (i < 6)
                OK(cuGraphExecDestroy(second));
        }
    }
    OK(cuGraphDestroy(graph));
    OK(cuStreamDestroy_v2(stream));
    OK(cuStreamDestroy_v2(other));
}

// In a primary context of device 0 that has its first flags. `load` loads an image with saxpy.
static inline void check_measured(CUmodule (*load)(void)) {
    check_flags_of_contexts();
    check_contexts_that_are_gone(load);
    check_what_captures_forbid();
    check_priorities();
    check_nothing();
    check_pitches();
    check_slices();
    check_tensor_maps();
    check_unregister();
    check_addresses();
    check_ranges_of_mappings();
    check_memory_taken_away();
    check_graphs_in_captures();
    check_pitches_of_nodes();
    check_modules_of_libraries(load);
}

#endif
