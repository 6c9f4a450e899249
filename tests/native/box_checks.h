// Checks of batches of copies in three dimensions, and of pools by place, for the simulated GPU itself and, remote, through the
// whole stack.
//
// Every check makes and ends what it uses. Errors are those of driver 580.159 on an H200, or documented.
#ifndef BOX_CHECKS_H
#define BOX_CHECKS_H

#include "graph_checks.h"

static inline CUmemcpy3DOperand box_at(CUdeviceptr memory, size_t row, size_t layer) {
    CUmemcpy3DOperand side = {.type = CU_MEMCPY_OPERAND_TYPE_POINTER};
    side.op.ptr.ptr = memory;
    side.op.ptr.rowLength = row;
    side.op.ptr.layerHeight = layer;
    side.op.ptr.locHint.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return side;
}

static inline CUmemcpy3DOperand box_in(CUarray array, size_t x, size_t y, size_t z) {
    CUmemcpy3DOperand side = {.type = CU_MEMCPY_OPERAND_TYPE_ARRAY};
    side.op.array.array = array;
    side.op.array.offset = (CUoffset3D){x, y, z};
    return side;
}

static inline CUDA_MEMCPY3D_BATCH_OP box_op(CUmemcpy3DOperand to, CUmemcpy3DOperand from, size_t w, size_t h,
                                            size_t d) {
    return (CUDA_MEMCPY3D_BATCH_OP){
        .src = from, .dst = to, .extent = {w, h, d}, .srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
}

// Host to device with another row length, device to an array inside another shape, the array to the host: in turn.
static inline void check_box_batches(graph_bench_t *t) {
    enum { W = 6, H = 3, D = 2, ROW = 8 };
    unsigned char from[D][H][W], rows[D * H * ROW];
    float texels[D][H][W], back[D][H][W];
    CUarray array;
    const CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = 10, .Height = 5, .Depth = 3, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    for (int i = 0; i < D * H * W; i++) {
        (&from[0][0][0])[i] = (unsigned char)(i + 1);
        (&texels[0][0][0])[i] = (float)i;
    }
    memset(rows, 0x5a, sizeof rows);
    OK(cuMemcpyHtoD_v2(t->c, rows, sizeof rows));
    CUDA_MEMCPY3D_BATCH_OP up = box_op(box_at(t->c, ROW, 0), box_at((CUdeviceptr)(uintptr_t)from, 0, 0), W, H, D);
    size_t failed = 77;
    OK(cuMemcpy3DBatchAsync(1, &up, &failed, 0, t->stream));
    memset(from, 0, sizeof from); // pageable bytes are taken at the call
    OK(cuStreamSynchronize(t->stream));
    OK(cuMemcpyDtoH_v2(rows, t->c, sizeof rows));
    for (int i = 0; i < D * H * ROW; i++)
        CHECK(rows[i] == (i % ROW < W ? i / ROW * W + i % ROW + 1 : 0x5a));

    OK(cuArray3DCreate_v2(&array, &shape));
    memset(back, 0, sizeof back);
    CUdeviceptr host = (CUdeviceptr)(uintptr_t)texels, target = (CUdeviceptr)(uintptr_t)back;
    CUDA_MEMCPY3D_BATCH_OP in = box_op(box_in(array, 3, 1, 1), box_at(host, 0, 0), W, H, D);
    CUDA_MEMCPY3D_BATCH_OP out = box_op(box_at(target, 0, 0), box_in(array, 3, 1, 1), W, H, D);
    in.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    OK(cuMemcpy3DBatchAsync_v2(1, &in, 0, t->stream));
    OK(cuMemcpy3DBatchAsync_v2(1, &out, 0, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(memcmp(back, texels, sizeof back) == 0);

    // What cannot be copied is told by its place, and nothing of the batch is done.
    CUDA_MEMCPY3D_BATCH_OP two[2] = {up, up};
    OK(cuMemsetD8_v2(t->c, 9, sizeof rows));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
#define REFUSED(change, undo)                                                                                          \
    do {                                                                                                               \
        failed = 77;                                                                                                   \
        change;                                                                                                        \
        CHECK(cuMemcpy3DBatchAsync(2, two, &failed, 0, t->stream) == CUDA_ERROR_INVALID_VALUE && failed == 1);         \
        undo;                                                                                                          \
    } while (0)
    REFUSED(two[1].extent.width = 0, two[1].extent.width = W);
    REFUSED(two[1].extent.depth = 0, two[1].extent.depth = D);
    REFUSED(two[1].extent.width = SIZE_MAX, two[1].extent.width = W);
    REFUSED(two[1].srcAccessOrder = (CUmemcpySrcAccessOrder)0, two[1].srcAccessOrder = up.srcAccessOrder);
    REFUSED(two[1].srcAccessOrder = (CUmemcpySrcAccessOrder)4, two[1].srcAccessOrder = up.srcAccessOrder);
    REFUSED(two[1].flags = 2, two[1].flags = 0);
    REFUSED(two[1].src.type = (CUmemcpy3DOperandType)0, two[1].src.type = CU_MEMCPY_OPERAND_TYPE_POINTER);
    REFUSED(two[1].dst.op.ptr.rowLength = W - 1, two[1].dst = up.dst);
    CHECK(cuMemcpy3DBatchAsync(1, &up, NULL, 0, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpy3DBatchAsync(0, &up, NULL, 0, t->stream) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpy3DBatchAsync(1, NULL, NULL, 0, t->stream) == CUDA_ERROR_INVALID_VALUE);
    failed = 77;
    CHECK(cuMemcpy3DBatchAsync(1, &up, &failed, 0, NULL) == CUDA_ERROR_INVALID_VALUE && failed == 77);
    CHECK(cuMemcpy3DBatchAsync(1, &up, &failed, 1, t->stream) == CUDA_ERROR_INVALID_VALUE && failed == SIZE_MAX);
    failed = 77;
    two[1].src.op.ptr.ptr = 0; // is not told apart
    CHECK(cuMemcpy3DBatchAsync(2, two, &failed, 0, t->stream) == CUDA_ERROR_INVALID_VALUE && failed == SIZE_MAX);
    OK(cuStreamSynchronize(t->stream));

    // Drivers before 13.1 have no such node, and the capture goes on.
    CUstreamCaptureStatus status;
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    CHECK(cuMemcpy3DBatchAsync_v2(1, &up, 0, t->stream) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    OK(cuStreamIsCapturing(t->stream, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphDestroy(graph));
    OK(cuArrayDestroy(array));
}

static inline void check_tensor_map_address(graph_bench_t *t) {
    CUtensorMap map, before;
    memset(&map, 0x5a, sizeof map);
    before = map;
    OK(cuTensorMapReplaceAddress(&map, (void *)(uintptr_t)t->c));
    CHECK(memcmp(&map, &before, sizeof map) != 0);
    before = map;
    CHECK(cuTensorMapReplaceAddress(&map, (void *)(uintptr_t)(t->c + 8)) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuTensorMapReplaceAddress(&map, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuTensorMapReplaceAddress(&map, (void *)(UINT64_MAX - 15)) == CUDA_ERROR_INVALID_VALUE);
    CHECK(memcmp(&map, &before, sizeof map) == 0);
}

// One device: a cooperative launch, in a stream of the program's own.
static inline void check_launch_on_all_devices(graph_bench_t *t) {
    uint32_t value = 5, word = 0;
    size_t n = 64;
    void *params[] = {&t->c, &value, &n};
    CUfunction fill;
    OK(cuModuleGetFunction(&fill, t->module, "fill_u32"));
    CUDA_LAUNCH_PARAMS launch = {.function = fill,
                                 .gridDimX = 1,
                                 .gridDimY = 1,
                                 .gridDimZ = 1,
                                 .blockDimX = 64,
                                 .blockDimY = 1,
                                 .blockDimZ = 1,
                                 .hStream = t->stream,
                                 .kernelParams = params};
    OK(cuLaunchCooperativeKernelMultiDevice(&launch, 1, 3));
    OK(cuStreamSynchronize(t->stream));
    OK(cuMemcpyDtoH_v2(&word, t->c, sizeof word));
    CHECK(word == 5);
    CHECK(cuLaunchCooperativeKernelMultiDevice(&launch, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuLaunchCooperativeKernelMultiDevice(&launch, 1, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuLaunchCooperativeKernelMultiDevice(&launch, 99, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuLaunchCooperativeKernelMultiDevice(NULL, 1, 0) == CUDA_ERROR_INVALID_VALUE);
    launch.hStream = NULL;
    CHECK(cuLaunchCooperativeKernelMultiDevice(&launch, 1, 0) == CUDA_ERROR_INVALID_HANDLE);
    launch.hStream = t->stream;
    launch.function = NULL;
    CHECK(cuLaunchCooperativeKernelMultiDevice(&launch, 1, 0) == CUDA_ERROR_INVALID_HANDLE);
}

static inline void check_pools_of_host_and_managed_memory(void) {
    static const struct {
        CUmemLocationType type;
        CUmemAllocationType kind;
    } all[] = {{CU_MEM_LOCATION_TYPE_HOST, CU_MEM_ALLOCATION_TYPE_PINNED},
               {CU_MEM_LOCATION_TYPE_HOST_NUMA, CU_MEM_ALLOCATION_TYPE_PINNED},
               {CU_MEM_LOCATION_TYPE_INVALID, CU_MEM_ALLOCATION_TYPE_MANAGED},
               {CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_ALLOCATION_TYPE_MANAGED},
               {CU_MEM_LOCATION_TYPE_HOST, CU_MEM_ALLOCATION_TYPE_MANAGED},
               {CU_MEM_LOCATION_TYPE_HOST_NUMA, CU_MEM_ALLOCATION_TYPE_MANAGED}};
    CUmemoryPool pools[6], pool, own, device;
    CUstream stream;
    CUdeviceptr memory;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuDeviceGetDefaultMemPool(&device, 0));
    for (int i = 0; i < 6; i++) {
        CUmemLocation place = {.type = all[i].type};
        CUmemPoolProps props = {.allocType = all[i].kind, .location = place};
        OK(cuMemGetDefaultMemPool(&pools[i], &place, all[i].kind));
        OK(cuMemGetMemPool(&pool, &place, all[i].kind));
        CHECK(pool == pools[i] && pool != device && (!i || pool != pools[i - 1]));
        OK(cuMemAllocFromPoolAsync(&memory, 4096, pool, stream));
        OK(cuStreamSynchronize(stream));
        memset((void *)(uintptr_t)memory, 7, 4096); // which the program reaches
        OK(cuMemFreeAsync(memory, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(cuMemPoolDestroy(pool) == CUDA_ERROR_INVALID_VALUE);
        CHECK(cuMemSetMemPool(&place, all[i].kind, device) == CUDA_ERROR_INVALID_VALUE);
        OK(cuMemSetMemPool(&place, all[i].kind, pool));
        OK(cuMemPoolCreate(&own, &props));
        OK(cuMemSetMemPool(&place, all[i].kind, own));
        OK(cuMemGetMemPool(&pool, &place, all[i].kind));
        CHECK(pool == own);
        OK(cuMemPoolDestroy(own));
        OK(cuMemGetMemPool(&pool, &place, all[i].kind));
        CHECK(pool == pools[i]);
    }
    OK(cuStreamDestroy_v2(stream));
}

static inline void check_pools_by_place(void) {
    CUmemLocation place = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
    const CUmemAllocationType pinned = CU_MEM_ALLOCATION_TYPE_PINNED, none = (CUmemAllocationType)0;
    CUmemPoolProps props = {.allocType = pinned, .location = place};
    CUmemAccessDesc access = {.location = place, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemoryPool device, pool = NULL, own;
    unsigned total = 0;
    OK(cuDeviceGetDefaultMemPool(&device, 0));
    OK(cuMemGetDefaultMemPool(&pool, &place, pinned));
    CHECK(pool == device);
    OK(cuMemPoolCreate(&own, &props));
    OK(cuMemSetMemPool(&place, pinned, own));
    OK(cuMemGetMemPool(&pool, &place, pinned));
    CHECK(pool == own);
    OK(cuDeviceGetMemPool(&pool, 0));
    CHECK(pool == own);
    OK(cuMemSetMemPool(&place, pinned, device));
    OK(cuMemPoolDestroy(own));
    CHECK(cuMemGetMemPool(NULL, &place, pinned) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemGetMemPool(&pool, NULL, pinned) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemGetMemPool(&pool, &place, none) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemSetMemPool(&place, CU_MEM_ALLOCATION_TYPE_MANAGED, device) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemSetMemPool(NULL, pinned, device) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemSetMemPool(&place, pinned, NULL) == CUDA_ERROR_INVALID_VALUE);
    for (int id = -1; id < 100; id += 50)
        if (id) {
            place.id = id;
            CHECK(cuMemGetDefaultMemPool(&pool, &place, pinned) == CUDA_ERROR_INVALID_VALUE);
            CHECK(cuMemSetMemPool(&place, pinned, device) == CUDA_ERROR_INVALID_VALUE);
        }
    place = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT};
    CHECK(cuMemGetMemPool(&pool, &place, pinned) == CUDA_ERROR_NOT_SUPPORTED);
    place = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_INVALID};
    CHECK(cuMemGetMemPool(&pool, &place, pinned) == CUDA_ERROR_INVALID_VALUE);
    check_pools_of_host_and_managed_memory();

    OK(cuMemPoolSetAccess(device, &access, 1));
    OK(cuMemPoolSetAccess(device, &access, 0));
    CHECK(cuMemPoolSetAccess(device, NULL, 1) == CUDA_ERROR_INVALID_VALUE);
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
    CHECK(cuMemPoolSetAccess(device, &access, 1) == CUDA_ERROR_NOT_SUPPORTED);
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE; // the device that the memory is of
    CHECK(cuMemPoolSetAccess(device, &access, 1) == CUDA_ERROR_INVALID_DEVICE);
    access.flags = (CUmemAccess_flags)2;
    CHECK(cuMemPoolSetAccess(device, &access, 1) == CUDA_ERROR_INVALID_VALUE);
    access =
        (CUmemAccessDesc){.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 99}, .flags = (CUmemAccess_flags)3};
    CHECK(cuMemPoolSetAccess(device, &access, 1) == CUDA_ERROR_INVALID_DEVICE);
    access.location = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_HOST};
    CHECK(cuMemPoolSetAccess(device, &access, 1) == CUDA_ERROR_NOT_SUPPORTED);

    CUexecAffinityParam share;
    OK(cuCtxGetExecAffinity(&share, CU_EXEC_AFFINITY_TYPE_SM_COUNT));
    CHECK(share.type == CU_EXEC_AFFINITY_TYPE_SM_COUNT && share.param.smCount.val == 132);
    CHECK(cuCtxGetExecAffinity(&share, (CUexecAffinityType)1) == CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
    CHECK(cuCtxGetExecAffinity(NULL, CU_EXEC_AFFINITY_TYPE_SM_COUNT) == CUDA_ERROR_INVALID_VALUE);
    OK(cuFlushGPUDirectRDMAWrites(CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                                  CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER));
    CHECK(cuFlushGPUDirectRDMAWrites((CUflushGPUDirectRDMAWritesTarget)1, CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER) ==
          CUDA_ERROR_INVALID_VALUE);
    CHECK(cuFlushGPUDirectRDMAWrites(CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                                     (CUflushGPUDirectRDMAWritesScope)0) == CUDA_ERROR_INVALID_VALUE);
    OK(cuDeviceTotalMem(&total, 0)); // more than 32 bits hold
    CHECK(total == UINT32_MAX);
    CHECK(cuDeviceTotalMem(NULL, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuDeviceTotalMem(&total, 99) == CUDA_ERROR_INVALID_DEVICE);
}

#endif
