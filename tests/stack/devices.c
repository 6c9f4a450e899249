/*
 * Two devices in one client, one check for each word that the role is given: copies, peer access, pools, answers that are kept.
 *
 * One thread. Sizes are of both kinds of allocation: parts of a shared granule, and granules of their own. A fault breaks its
 * device for good, so whatever must fault does so in a process of its own.
 */
#include "stack.h"

enum { SMALL = 1 << 10, LARGE = 3 << 18 }; /* words */

static CUcontext device[2];
static CUstream stream[2];
static CUfunction fill_on[2];
static uint32_t host[LARGE];

static void on(int i) { OK(cuCtxSetCurrent(device[i])); }

static void open_both(void) {
    OK(cuInit(0));
    for (int i = 0; i < 2; i++) {
        OK(cuDevicePrimaryCtxRetain(&device[i], i));
        on(i);
        OK(cuStreamCreate(&stream[i], CU_STREAM_NON_BLOCKING));
        fill_on[i] = kernel(load_kernels(), "fill_u32");
    }
}

static CUdeviceptr memory_on(int i, size_t words) {
    CUdeviceptr memory;
    on(i);
    OK(cuMemAlloc_v2(&memory, words * 4));
    return memory;
}

static CUresult fill_with(int i, CUdeviceptr memory, uint32_t value, size_t words, CUstream where) {
    void *params[] = {&memory, &value, &words};
    return launch(fill_on[i], words, where, params);
}

static void holds(CUdeviceptr memory, uint32_t value, size_t words) {
    memset(host, 0, words * 4);
    OK(cuMemcpyDtoH_v2(host, memory, words * 4));
    for (size_t i = 0; i < words; i++) {
        CHECK(host[i] == value);
    }
}

/* Whichever way memory goes from one device to the other, whatever context is current and whoever's stream it is. */
static void copies(void) {
    const size_t sizes[] = {SMALL, LARGE};
    uint32_t value = 1;
    open_both();
    for (size_t k = 0; k < 2; k++) {
        size_t words = sizes[k], bytes = words * 4;
        CUdeviceptr memory[2] = {memory_on(0, words), memory_on(1, words)};
        for (int i = 0; i < 16; i++, value++) {
            int from = i & 1, to = !from, current = i >> 1 & 1, queue = i >> 2 & 1;
            on(from);
            OK(fill_with(from, memory[from], value, words, NULL));
            OK(cuCtxSynchronize());
            on(current);
            if (i & 8) {
                OK(cuMemcpyPeerAsync(memory[to], device[to], memory[from], device[from], bytes, stream[queue]));
            } else {
                OK(cuMemcpyDtoDAsync_v2(memory[to], memory[from], bytes, stream[queue]));
            }
            OK(cuStreamSynchronize(stream[queue]));
            on(to);
            holds(memory[to], value, words);
        }
        for (int i = 0; i < 4; i++, value++) { /* rows */
            int from = i & 1, to = !from;
            CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                  .srcDevice = memory[from],
                                  .srcPitch = 256,
                                  .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                  .dstDevice = memory[to],
                                  .dstPitch = 256,
                                  .WidthInBytes = 128,
                                  .Height = bytes / 256};
            on(to);
            OK(cuMemsetD32_v2(memory[to], 0, words));
            OK(cuCtxSynchronize());
            on(from);
            OK(cuMemsetD32_v2(memory[from], value, words));
            OK(cuCtxSynchronize());
            on(i >> 1);
            OK(cuMemcpy2DAsync_v2(&rows, stream[i >> 1]));
            OK(cuStreamSynchronize(stream[i >> 1]));
            OK(cuMemcpyDtoH_v2(host, memory[to], bytes));
            for (size_t word = 0; word < words; word++) {
                CHECK(host[word] == (word % 64 < 32 ? value : 0));
            }
        }
        for (int i = 0; i < 2; i++) {
            OK(cuMemFree_v2(memory[i]));
        }
    }
}

/* Host memory to and from a device, and what is set there, in a stream and a context of the other. */
static void host_copies(void) {
    static uint32_t sent[LARGE];
    const size_t sizes[] = {8, SMALL, LARGE};
    uint32_t *pinned;
    open_both();
    OK(cuMemHostAlloc((void **)&pinned, sizeof sent, CU_MEMHOSTALLOC_PORTABLE));
    for (size_t k = 0; k < 3; k++) {
        size_t words = sizes[k], bytes = words * 4;
        for (int i = 0; i < 8; i++) {
            int owner = i & 1, current = i >> 1 & 1;
            CUstream queue = i & 4 ? stream[!owner] : stream[current];
            CUdeviceptr memory = memory_on(owner, words);
            for (size_t word = 0; word < words; word++) {
                sent[word] = (uint32_t)word * 2654435761u + (uint32_t)i;
                pinned[word] = ~sent[word];
            }
            on(current);
            OK(cuMemcpyHtoDAsync_v2(memory, sent, bytes, queue));
            memset(host, 0, bytes);
            OK(cuMemcpyDtoHAsync_v2(host, memory, bytes, queue));
            OK(cuStreamSynchronize(queue));
            CHECK(!memcmp(host, sent, bytes));
            OK(cuMemcpyHtoDAsync_v2(memory, pinned, bytes, queue));
            OK(cuMemcpyDtoHAsync_v2(pinned, memory, bytes, queue));
            OK(cuStreamSynchronize(queue));
            CHECK(pinned[words - 1] == ~sent[words - 1]);
            OK(cuMemcpyDtoH_v2(host, memory, bytes)); /* the current context's default stream */
            CHECK(host[0] == ~sent[0] && host[words - 1] == ~sent[words - 1]);
            OK(cuMemcpyHtoD_v2(memory, sent, bytes));
            OK(cuMemcpyDtoH_v2(host, memory, bytes));
            CHECK(!memcmp(host, sent, bytes));
            OK(cuMemsetD32Async(memory, 77, words, queue));
            OK(cuStreamSynchronize(queue));
            holds(memory, 77, words);
            OK(cuMemFree_v2(memory));
        }
    }
    OK(cuMemFreeHost(pinned));
}

/* The forms without a stream: what the program does next comes after them, on any device. */
static void order(void) {
    open_both();
    CUdeviceptr memory[2] = {memory_on(0, LARGE), memory_on(1, LARGE)};
    CUfunction spin_on = kernel(load_kernels(), "spin_ns");
    uint64_t ns = 30000000;
    void *params[] = {&ns};
    for (uint32_t value = 1; value < 5; value++) {
        for (size_t i = 0; i < LARGE; i++) {
            host[i] = value;
        }
        on(0);
        OK(cuMemcpyHtoD_v2(memory[0], host, LARGE * 4));
        on(1);
        OK(cuMemcpyPeer(memory[1], device[1], memory[0], device[0], LARGE * 4));
        holds(memory[1], value, LARGE);
        OK(launch(spin_on, 1, NULL, params)); /* of the destination, with another context current at the copy */
        OK(fill_with(1, memory[1], 1000, LARGE, NULL));
        on(0);
        OK(cuMemcpyPeer(memory[0], device[0], memory[1], device[1], LARGE * 4));
        holds(memory[0], 1000, LARGE);
        on(1);
        OK(launch(spin_on, 1, stream[1], params));
        OK(fill_with(1, memory[1], 2000, LARGE, stream[1]));
        on(0);
        OK(cuMemcpyPeer(memory[0], device[0], memory[1], device[1], LARGE * 4));
        holds(memory[0], 2000, LARGE);
    }
    /* A wait for one device's default stream says nothing of another's. */
    on(1);
    double began = now_ms();
    OK(launch(spin_on, 1, NULL, params));
    on(0);
    OK(cuStreamSynchronize(NULL));
    on(1);
    OK(cuStreamSynchronize(NULL));
    CHECK(now_ms() - began > 25);
}

/* Memory of a device may still be read by another when it is freed. */
static void frees(void) {
    open_both();
    CUdeviceptr target = memory_on(1, LARGE);
    CUfunction spin_on = kernel(load_kernels(), "spin_ns");
    uint64_t ns = 60000000;
    void *params[] = {&ns};
    CUdeviceptr source = memory_on(0, LARGE);
    OK(fill_with(0, source, 11, LARGE, NULL));
    OK(cuCtxSynchronize());
    on(1);
    OK(launch(spin_on, 1, stream[1], params));
    OK(cuMemcpyDtoDAsync_v2(target, source, LARGE * 4, stream[1]));
    on(0);
    OK(cuMemFree_v2(source));
    source = memory_on(0, LARGE);
    OK(fill_with(0, source, 12, LARGE, NULL));
    OK(cuCtxSynchronize());
    on(1);
    OK(cuStreamSynchronize(stream[1]));
    holds(target, 11, LARGE);
}

/* A kernel of a fresh context on `i`, which is given access to the other device's memory first, or faults. */
static void kernel_elsewhere(int i, CUdeviceptr memory, bool allowed) {
    CUcontext context;
    if (!allowed && !fault_here()) {
        return;
    }
    OK(cuCtxCreate_v2(&context, 0, i));
    CUfunction fill_in = kernel(load_kernels(), "fill_u32");
    uint32_t value = 1;
    uint64_t words = 4;
    void *params[] = {&memory, &value, &words};
    if (allowed) {
        OK(cuCtxEnablePeerAccess(device[!i], 0));
    }
    OK(launch(fill_in, 4, NULL, params));
    GIVES(allowed ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    OK(cuCtxDestroy_v2(context));
    if (!allowed) {
        exit(FAULTED);
    }
}

static void peers_story(void) {
    int can = 0;
    open_both();
    OK(cuDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can == 1);
    OK(cuDeviceCanAccessPeer(&can, 0, 0));
    CHECK(can == 0);
    CUdeviceptr small = memory_on(1, SMALL), large = memory_on(1, LARGE), freed = memory_on(1, LARGE);
    OK(cuMemFree_v2(freed)); /* its granules are kept for the next */
    OK(cuCtxSynchronize());
    kernel_elsewhere(0, small, false);
    kernel_elsewhere(0, large, false);
    on(0);
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(device[1]));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuCtxEnablePeerAccess(device[1], 1));
    GIVES(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, cuCtxEnablePeerAccess(device[0], 0));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuCtxEnablePeerAccess(NULL, 0));
    OK(cuCtxEnablePeerAccess(device[1], 0));
    GIVES(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, cuCtxEnablePeerAccess(device[1], 0));
    CUdeviceptr later[3] = {memory_on(1, SMALL), memory_on(1, LARGE), memory_on(1, 4 * LARGE)};
    CUdeviceptr back = memory_on(0, SMALL);
    on(0);
    OK(fill_with(0, small, 1, SMALL, NULL));
    OK(fill_with(0, large, 2, LARGE, NULL));
    for (uint32_t i = 0; i < 3; i++) {
        OK(fill_with(0, later[i], 3 + i, SMALL, NULL));
    }
    OK(cuMemcpyDtoDAsync_v2(back, later[1], SMALL * 4, NULL));
    OK(cuCtxSynchronize());
    holds(back, 4, SMALL);
    on(1);
    holds(small, 1, SMALL);
    holds(large, 2, LARGE);
    for (uint32_t i = 0; i < 3; i++) {
        holds(later[i], 3 + i, SMALL);
    }
    kernel_elsewhere(1, back, false); /* one way only */
    kernel_elsewhere(1, back, true);
    kernel_elsewhere(1, back, false); /* that access went with its context */
    on(0);
    OK(cuCtxDisablePeerAccess(device[1]));
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(device[1]));
    kernel_elsewhere(0, small, false);
    kernel_elsewhere(0, later[1], false);
    on(0);
    OK(cuMemcpyPeerAsync(back, device[0], large, device[1], SMALL * 4, NULL)); /* copies never needed it */
    OK(cuCtxSynchronize());
    holds(back, 2, SMALL);
    OK(cuCtxEnablePeerAccess(device[1], 0));
    OK(fill_with(0, small, 6, SMALL, NULL));
    OK(cuCtxSynchronize());
    holds(small, 6, SMALL);
}

/* Access ends with either context; what is made anew has none. */
static void contexts_that_end_story(void) {
    open_both();
    CUdeviceptr memory = memory_on(1, SMALL);
    on(0);
    OK(cuCtxEnablePeerAccess(device[1], 0));
    OK(cuDevicePrimaryCtxReset_v2(0));
    kernel_elsewhere(0, memory, false);
    OK(cuDevicePrimaryCtxRetain(&device[0], 0));
    on(0);
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(device[1]));
    OK(cuCtxEnablePeerAccess(device[1], 0));
    fill_on[0] = kernel(load_kernels(), "fill_u32");
    OK(fill_with(0, memory, 5, SMALL, NULL));
    OK(cuCtxSynchronize());
    holds(memory, 5, SMALL);
    OK(cuDevicePrimaryCtxReset_v2(1));
    OK(cuDevicePrimaryCtxRetain(&device[1], 1));
    memory = memory_on(1, SMALL);
    kernel_elsewhere(0, memory, false);
    on(0);
    OK(cuCtxEnablePeerAccess(device[1], 0));
    OK(fill_with(0, memory, 6, SMALL, NULL));
    OK(cuCtxSynchronize());
    holds(memory, 6, SMALL);
}

static void peers(void) { each_fault(peers_story); }
static void peers_of_contexts_that_end(void) { each_fault(contexts_that_end_story); }

/* What breaks a device is told of that device alone, wherever it is heard first; the other goes on. */
static void one_breaks(int bad, bool posted) {
    const int good = !bad;
    CUcontext again;
    CUdeviceptr small[2] = {memory_on(0, SMALL), memory_on(1, SMALL)}, none = posted ? small[bad] : 0;
    on(bad);
    OK(fill_with(bad, none, 1, SMALL,
                 stream[bad])); /* a launch that fails on its way (by the test), or a kernel that faults */
    on(good);
    if (posted) {
        OK(cuCtxSynchronize());
        OK(fill_with(good, small[good], 7, SMALL, NULL));
        OK(cuStreamSynchronize(NULL));
    }
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream[bad]));
    for (int turn = 0; turn < 2; turn++) {
        on(good);
        OK(fill_with(good, small[good], 5, SMALL, stream[good]));
        OK(cuStreamSynchronize(stream[good]));
        OK(cuCtxSynchronize());
        holds(small[good], 5, SMALL);
        OK(cuMemFree_v2(memory_on(good, LARGE)));
        CUstream other;
        OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
        OK(fill_with(good, small[good], 6, SMALL, other));
        OK(cuStreamSynchronize(other));
        on(bad);
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemsetD8_v2(small[bad], 1, 4));
        GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamQuery(stream[bad]));
    }
    OK(cuDevicePrimaryCtxReset_v2(bad)); /* current */
    on(good);
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuDevicePrimaryCtxRetain(&again, bad));
    OK(cuCtxSynchronize());
    OK(cuCtxCreate_v2(&again, 0, good));
    OK(cuCtxSynchronize());
    OK(cuCtxDestroy_v2(again));
}

static void one_breaks_story(void) {
    open_both();
    for (int bad = 0; bad < 2; bad++) {
        if (fault_here()) {
            one_breaks(bad, false);
            exit(FAULTED);
        }
    }
}
static void one_of_two_breaks(void) { each_fault(one_breaks_story); }

/* The same by a launch that the worker's driver refuses: it is the first. */
static void one_of_two_breaks_at_a_launch(void) {
    open_both();
    one_breaks(0, true);
}

/* Devices that do not reach each other: no peer access, and every copy as before. */
static void strangers(void) {
    int can = 1;
    open_both();
    OK(cuDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can == 0);
    on(0);
    GIVES(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, cuCtxEnablePeerAccess(device[1], 0));
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(device[1]));
    copies();
    host_copies();
}

static size_t free_on(int i) {
    size_t free = 0, total = 0;
    on(i);
    OK(cuMemGetInfo_v2(&free, &total));
    return free;
}

/* Stream-ordered memory is that of the stream's device or of its pool's, and counts there. */
static void pools(void) {
    const size_t bytes = 64 << 20;
    CUdeviceptr memory;
    int where;
    open_both();
    size_t before[2] = {free_on(0), free_on(1)};
    on(0);
    OK(cuMemAllocAsync(&memory, bytes, stream[1]));
    OK(cuPointerGetAttribute(&where, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory));
    CHECK(where == 1);
    OK(cuMemsetD8Async(memory, 3, bytes, stream[1]));
    OK(cuStreamSynchronize(stream[1]));
    CHECK(free_on(0) + bytes / 2 > before[0] && free_on(1) + bytes / 2 < before[1]);
    on(0);
    holds(memory, 0x03030303, SMALL);
    CUdeviceptr copy = memory_on(0, SMALL);
    OK(cuMemcpyDtoDAsync_v2(copy, memory, SMALL * 4, stream[0]));
    OK(cuStreamSynchronize(stream[0]));
    holds(copy, 0x03030303, SMALL);
    OK(cuMemFreeAsync(memory, stream[1]));
    OK(cuStreamSynchronize(stream[1]));
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 1}};
    CUmemoryPool pool;
    OK(cuMemPoolCreate(&pool, &props));
    before[0] = free_on(0);
    before[1] = free_on(1);
    on(0);
    OK(cuMemAllocFromPoolAsync(&memory, bytes, pool, stream[0]));
    OK(cuPointerGetAttribute(&where, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory));
    CHECK(where == 1);
    CHECK(free_on(0) + bytes / 2 > before[0] && free_on(1) + bytes / 2 < before[1]);
    OK(cuMemFreeAsync(memory, stream[0]));
    OK(cuStreamSynchronize(stream[0]));
    OK(cuMemPoolDestroy(pool));
}

/* A kernel of a library is on every device; how many blocks of it fit is asked on each. */
static void occupancy(void) {
    const CUfunction_attribute dynamic = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    CUlibrary library;
    CUkernel one;
    int most = 0, blocks = 0;
    open_both();
    OK(cuDeviceGetAttribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0));
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&one, library, "no_parameters"));
    OK(cuKernelSetAttribute(dynamic, most, one, 0));
    for (int i = 0; i < 4; i++) {
        on(i & 1);
        OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (CUfunction)(void *)one, 128, (size_t)most));
        CHECK(i & 1 ? blocks == 0 : blocks > 0);
    }
    OK(cuLibraryUnload(library));
}

static const struct check checks[] = {{"copies", copies},
                                      {"host-copies", host_copies},
                                      {"order", order},
                                      {"frees", frees},
                                      {"peers", peers},
                                      {"peers-of-contexts-that-end", peers_of_contexts_that_end},
                                      {"strangers", strangers},
                                      {"pools", pools},
                                      {"occupancy", occupancy},
                                      {"one-of-two-breaks", one_of_two_breaks},
                                      {"one-of-two-breaks-at-a-launch", one_of_two_breaks_at_a_launch}};

int role_devices(int count, char **words) { return run_check(checks, sizeof checks / sizeof *checks, count, words); }
