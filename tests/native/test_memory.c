/*
 * Memory as a program sees it: the client library, a worker and the simulated GPU in real processes.
 *
 * Each argument names a case, here or in test_memory_copies.c; tests/test_memory.py builds and runs them.
 */
#include "test_memory.h"

/* ---- allocations ---- */

void case_allocations(void) {
    enum { LIVE = 300 };
    static struct {
        CUdeviceptr address;
        size_t size;
        unsigned char value;
    } live[LIVE];
    size_t free_before, free_after, total;
    OK(cuMemGetInfo_v2(&free_before, &total));
    for (int step = 0; step < 4000; step++) {
        size_t i = random_below(LIVE);
        if (live[i].address) {
            unsigned char first = 0, last = 0;
            CUdeviceptr base;
            size_t size;
            OK(cuMemGetAddressRange_v2(&base, &size, live[i].address + live[i].size / 2));
            CHECK(base == live[i].address && size == live[i].size);
            if (step % 4 == 0) {
                OK(cuMemcpyDtoH_v2(&first, live[i].address, 1));
                OK(cuMemcpyDtoH_v2(&last, live[i].address + live[i].size - 1, 1));
                CHECK(first == live[i].value && last == live[i].value);
            }
            OK(cuMemFree_v2(live[i].address));
            GIVES(1, cuMemFree_v2(live[i].address));
            live[i].address = 0;
        } else {
            live[i].size = random_below(10) ? random_below(100 * KIB) + 1 : random_below(6 * MIB) + 1;
            live[i].value = (unsigned char)random_next();
            OK(cuMemAlloc_v2(&live[i].address, live[i].size));
            CHECK(live[i].address % 256 == 0);
            OK(cuMemsetD8_v2(live[i].address, live[i].value, live[i].size));
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        for (size_t k = 0; k < LIVE; k++) {
            CHECK(i == k || !live[i].address || !live[k].address || live[i].address >= live[k].address + live[k].size ||
                  live[k].address >= live[i].address + live[i].size);
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        if (live[i].address) {
            OK(cuMemFree_v2(live[i].address));
        }
    }
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&free_after, &total));
    CHECK(free_after == free_before);

    /* Freed while queued work still uses it: nothing faults, and what comes after does not get the same bytes too
     * early. */
    CUfunction spin_ns = kernel(load_kernels(), "spin_ns");
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 20; i++) {
        CUdeviceptr a, b;
        unsigned char byte = 0;
        size_t size = i % 2 ? 5 * MIB : 1000;
        OK(cuMemAlloc_v2(&a, size));
        run_spin(spin_ns, 3000000, stream);
        OK(cuMemsetD8Async(a, 1, size, stream));
        OK(cuMemFree_v2(a));
        OK(cuMemAlloc_v2(&b, size));
        OK(cuMemsetD8_v2(b, 2, size));
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(&byte, b + size - 1, 1));
        CHECK(byte == 2);
        OK(cuMemFree_v2(b));
    }
    GIVES(1, cuMemFree_v2(0x123456789000ull));
    GIVES(1, cuMemcpyHtoD_v2(0x123456789000ull, &total, 8));
    GIVES(1, cuMemsetD8_v2(0x123456789000ull, 0, 8));
}

/* Under a limit of 64 MiB: every way of allocating counts, to the byte. */
void case_limit(void) {
    CUdeviceptr a, b, address;
    CUstream stream;
    size_t free_bytes, total, device_total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuDeviceTotalMem_v2(&device_total, 0));
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(device_total == 64 * MIB && total == 64 * MIB && free_bytes == 64 * MIB);
    GIVES(2, cuMemAlloc_v2(&a, 64 * MIB + 1));
    for (int i = 0; i < 3; i++) {
        OK(cuMemAlloc_v2(&a, 64 * MIB));
        OK(cuMemGetInfo_v2(&free_bytes, &total));
        CHECK(free_bytes == 0);
        GIVES(2, cuMemAlloc_v2(&b, 1));
        GIVES(2, cuMemAllocAsync(&b, 1, stream));
        OK(cuMemFree_v2(a));
    }
    OK(cuMemAlloc_v2(&a, 1));
    OK(cuMemAlloc_v2(&b, 64 * MIB - 1));
    GIVES(2, cuMemAlloc_v2(&address, 1));
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
    OK(cuMemAllocAsync(&a, 60 * MIB, stream));
    GIVES(2, cuMemAllocAsync(&b, 4 * MIB + 1, stream));
    OK(cuMemAlloc_v2(&b, 4 * MIB));
    OK(cuMemFreeAsync(a, stream));
    OK(cuMemFree_v2(b));
    OK(cuMemAlloc_v2(&a, 64 * MIB)); /* waits for the frees in the stream */
    OK(cuMemFree_v2(a));
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle, more;
    OK(cuMemCreate(&handle, 62 * MIB, &prop, 0));
    GIVES(2, cuMemCreate(&more, 4 * MIB, &prop, 0));
    OK(cuMemAddressReserve(&address, 64 * MIB, 0, 0, 0));
    OK(cuMemMap(address, 62 * MIB, 0, handle, 0));
    OK(cuMemRelease(handle));
    GIVES(2, cuMemAlloc_v2(&a, 2 * MIB + 1)); /* the mapping keeps it */
    OK(cuMemUnmap(address, 62 * MIB));
    OK(cuMemAlloc_v2(&a, 64 * MIB));
    OK(cuMemFree_v2(a));
}

/* Under the same limit: what a program lets its pools keep is not memory that nobody counts. */
void case_kept(void) {
    enum { POOLS = 4 };
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool pools[POOLS];
    CUdeviceptr a;
    CUstream stream;
    uint64_t threshold = UINT64_MAX, reserved = 0, all = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < POOLS; i++) {
        OK(cuMemPoolCreate(&pools[i], &props));
        OK(cuMemPoolSetAttribute(pools[i], CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
        OK(cuMemAllocFromPoolAsync(&a, 60 * MIB, pools[i], stream));
        OK(i == 1 ? cuMemFreeAsync(a, stream) : cuMemFree_v2(a)); /* the last ones without a stream */
        OK(cuStreamSynchronize(stream));
        OK(cuCtxSynchronize());
    }
    /* Pools are trimmed when the last free is done, which no wait of the program's is for. */
    for (int tries = 0; tries < 200 && (!tries || all > 64 * MIB); tries++) {
        all = 0;
        for (int i = 0; i < POOLS; i++) {
            OK(cuMemPoolGetAttribute(pools[i], CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
            all += reserved;
        }
        usleep(tries ? 10000 : 0);
    }
    CHECK(all <= 64 * MIB);
}

/* Without a limit: a pool that keeps nothing gives its memory back at a wait after cuMemFree, too. */
void case_given_back(void) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool pool;
    CUdeviceptr a;
    CUstream stream;
    uint64_t reserved = UINT64_MAX;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemPoolCreate(&pool, &props));
    OK(cuMemAllocFromPoolAsync(&a, 60 * MIB, pool, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemFree_v2(a));
    for (int tries = 0; tries < 200 && reserved; tries++) {
        OK(cuCtxSynchronize());
        OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
        usleep(10000);
    }
    CHECK(!reserved);
}

/* A second client under the same limit while the first holds 40 of 64 MiB: waits for a line, then lets go. */
void case_hold(void) {
    CUdeviceptr a;
    OK(cuMemAlloc_v2(&a, 40 * MIB));
    printf("holding\n");
    fflush(stdout);
    CHECK(getchar() != EOF);
}

void case_share(void) {
    CUdeviceptr a;
    size_t free_bytes, total;
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(free_bytes == 24 * MIB);
    GIVES(2, cuMemAlloc_v2(&a, 24 * MIB + 1));
    OK(cuMemAlloc_v2(&a, 24 * MIB));
}

/* ---- mapped host memory ---- */

/* What stands until the program writes a word goes on when the program waits for it, in any way. */
static void check_words(void) {
    volatile uint32_t *word;
    CUdeviceptr device;
    CUstream stream;
    CUevent event;
    OK(cuMemHostAlloc((void **)&word, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    *word = 0;
    OK(cuMemHostGetDevicePointer_v2(&device, (void *)word, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (uint32_t i = 1; i <= 5; i++) {
        OK(cuStreamWaitValue32_v2(stream, device, i, CU_STREAM_WAIT_VALUE_GEQ));
        OK(cuEventRecord(event, stream));
        GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(stream));
        *word = i;
        if (i == 1) {
            OK(cuStreamSynchronize(stream));
        } else if (i == 2) {
            OK(cuEventSynchronize(event));
        } else if (i == 3) {
            OK(cuCtxSynchronize());
        }
        while (i == 4 && cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
        }
        while (cuEventQuery(event) == CUDA_ERROR_NOT_READY) {
        }
    }
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFreeHost((void *)word));
}

void case_twins(void) {
    check_words();
    CUmodule module = load_kernels();
    CUfunction fill = kernel(module, "fill_u32"), add = kernel(module, "vector_add");
    enum { COUNT = 1000 };
    void *memory;
    CUdeviceptr device, inside, single;
    CUstream stream;
    size_t count = COUNT;
    uint32_t value = 0xabcdef01;
    int small_count = COUNT;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemHostAlloc(&memory, 3 * COUNT * 4, CU_MEMHOSTALLOC_DEVICEMAP));
    uint32_t *words = memory;
    float *floats = memory;
    memset(memory, 0, 3 * COUNT * 4);
    OK(cuMemHostGetDevicePointer_v2(&device, memory, 0));
    OK(cuMemHostGetDevicePointer_v2(&inside, words + 10, 0));
    OK(cuPointerGetAttribute(&single, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, (CUdeviceptr)(uintptr_t)memory));
    CHECK(inside == device + 40 && single == device);
    unsigned type = 0;
    void *host_again = NULL;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 4));
    OK(cuPointerGetAttribute(&host_again, CU_POINTER_ATTRIBUTE_HOST_POINTER, device + 4));
    CHECK(type == CU_MEMORYTYPE_HOST && host_again == words + 1);
    for (int i = 0; i < 20; i++) {
        /* A kernel writes, the program reads after each kind of wait. */
        value += 0x01010101;
        void *params[] = {&device, &value, &count};
        OK(cuLaunchKernel(fill, 4, 1, 1, 256, 1, 1, 0, stream, params, NULL));
        if (i % 3 == 0) {
            OK(cuStreamSynchronize(stream));
        } else if (i % 3 == 1) {
            OK(cuCtxSynchronize());
        } else {
            while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
            }
        }
        for (size_t k = 0; k < COUNT; k++) {
            CHECK(words[k] == value);
        }
        CHECK(words[COUNT] == 0 || i > 0);
        /* The program writes, a kernel reads. */
        CUdeviceptr second = device + COUNT * 4, third = device + 2 * COUNT * 4;
        for (int k = 0; k < COUNT; k++) {
            floats[k] = (float)(k + i);
            floats[COUNT + k] = (float)(2 * k);
        }
        void *sum[] = {&device, &second, &third, &small_count};
        OK(cuLaunchKernel(add, 4, 1, 1, 256, 1, 1, 0, stream, sum, NULL));
        OK(cuStreamSynchronize(stream));
        for (int k = 0; k < COUNT; k++) {
            CHECK(floats[2 * COUNT + k] == (float)(k + i) + (float)(2 * k));
        }
    }
    /* Copies by either address. */
    uint32_t back[4] = {0};
    words[0] = 77;
    OK(cuMemcpyDtoH_v2(back, device, 16));
    CHECK(back[0] == 77);
    OK(cuMemFreeHost(memory));
    GIVES(1, cuMemcpyDtoH_v2(back, device, 16));
    for (int i = 0; i < 100; i++) { /* the area for twins is used again and again */
        OK(cuMemHostAlloc(&memory, 64 * KIB, CU_MEMHOSTALLOC_DEVICEMAP));
        OK(cuMemHostGetDevicePointer_v2(&device, memory, 0));
        OK(cuMemFreeHost(memory));
    }
}

/* The worker bounds what it has for twins: beyond that an address is refused, and copies still work. */
void case_twin_limit(void) {
    void *memory[2];
    CUdeviceptr device, there;
    OK(cuMemAlloc_v2(&device, 4096));
    for (int i = 0; i < 20; i++) { /* what was freed is there again */
        OK(cuMemHostAlloc(&memory[0], 100 * MIB, CU_MEMHOSTALLOC_DEVICEMAP));
        OK(cuMemHostAlloc(&memory[1], 100 * MIB, CU_MEMHOSTALLOC_DEVICEMAP));
        OK(cuMemHostGetDevicePointer_v2(&there, memory[0], 0));
        GIVES(2, cuMemHostGetDevicePointer_v2(&there, memory[1], 0));
        OK(cuMemcpyDtoH_v2(memory[1], device, 4096));
        OK(cuMemFreeHost(memory[0]));
        OK(cuMemFreeHost(memory[1]));
        OK(cuCtxSynchronize());
    }
}

/* ---- virtual memory ---- */

void case_vmm(void) {
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle one, two, again;
    CUmemAllocationProp told;
    CUdeviceptr base, plain, next;
    size_t granularity, size;
    unsigned long long flags = 9;
    unsigned char *host = malloc(4 * MIB), *back = malloc(4 * MIB);
    OK(cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CHECK(granularity == 2 * MIB);
    OK(cuMemAddressReserve(&base, 64 * MIB, 0, 0, 0));
    OK(cuMemAddressReserve(&next, 64 * MIB, 256 * MIB, 0, 0));
    CHECK(next % (256 * MIB) == 0);
    OK(cuMemAddressFree(next, 64 * MIB));
    OK(cuMemCreate(&one, 2 * MIB, &prop, 0));
    prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR; /* may be asked for, cannot be used */
    OK(cuMemCreate(&two, 4 * MIB, &prop, 0));
    prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_FABRIC;
    GIVES(800, cuMemCreate(&again, 4 * MIB, &prop, 0));
    OK(cuMemMap(base, 2 * MIB, 0, one, 0));
    OK(cuMemMap(base + 2 * MIB, 4 * MIB, 0, two, 0));
    GIVES(1, cuMemMap(base + 4 * MIB, 2 * MIB, 0, one, 0));
    GIVES(1, cuMemMap(base + 64 * MIB, 2 * MIB, 0, one, 0));
    GIVES(1, cuMemMap(base + 62 * MIB, 4 * MIB, 0, two, 0));
    GIVES(1, cuMemMap(base + 32 * MIB, 4 * MIB, 2 * MIB, two, 0));
    OK(cuMemSetAccess(base, 6 * MIB, &access, 1));
    OK(cuMemGetAccess(&flags, &access.location, base + 3 * MIB));
    CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    random_fill(host, 4 * MIB);
    OK(cuMemcpyHtoD_v2(base + 1 * MIB, host, 4 * MIB)); /* across the seam */
    OK(cuMemcpyDtoH_v2(back, base + 1 * MIB, 4 * MIB));
    CHECK(memcmp(host, back, 4 * MIB) == 0);
    OK(cuMemsetD8_v2(base + 1 * MIB, 5, 3 * MIB));
    GIVES(1, cuMemcpyDtoH_v2(back, base + 4 * MIB, 2 * MIB + 1));
    OK(cuCtxSynchronize()); /* unmapping under queued work is the program's fault */
    OK(cuMemRelease(one));
    GIVES(1, cuMemRelease(one));
    OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(base + 100)));
    OK(cuMemGetAllocationPropertiesFromHandle(&told, again));
    CHECK(told.type == prop.type && told.location.type == prop.location.type);
    OK(cuMemRelease(again));
    GIVES(1, cuMemUnmap(base, 1 * MIB));
    GIVES(1, cuMemUnmap(base, 4 * MIB));
    GIVES(1, cuMemAddressFree(base, 64 * MIB));
    OK(cuMemUnmap(base, 6 * MIB));
    GIVES(1, cuMemcpyDtoH_v2(back, base, 1));
    OK(cuMemMap(base, 4 * MIB, 0, two, 0));
    OK(cuMemSetAccess(base, 4 * MIB, &access, 1));
    OK(cuMemcpyDtoH_v2(back, base + 1 * MIB, 1)); /* its contents stayed */
    CHECK(back[0] == 5);
    OK(cuMemUnmap(base, 4 * MIB));
    OK(cuMemRelease(two));
    OK(cuMemAddressFree(base, 64 * MIB));
    GIVES(1, cuMemAddressFree(base, 64 * MIB));
    GIVES(1, cuMemAddressReserve(&base, 12345, 0, 0, 0));
    OK(cuMemAlloc_v2(&plain, 100));
    OK(cuMemGetAddressRange_v2(&next, &size, plain));
    CHECK(next == plain && size == 100);
}

/* ---- pools ---- */

static uint64_t reserved(CUmemoryPool pool) {
    uint64_t bytes = 0;
    OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes));
    return bytes;
}

/* Whoever waits gets the memory back that is free, up to the threshold; what nobody waited for stays. */
static void check_given_back(CUstream stream) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool pool;
    CUevent event;
    uint64_t threshold = 32 * MIB;
    OK(cuMemPoolCreate(&pool, &props));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (int i = 0; i < 4; i++) {
        CUdeviceptr parts[4];
        for (int k = 0; k < 4; k++) {
            OK(cuMemAllocFromPoolAsync(&parts[k], 32 * MIB, pool, stream));
        }
        CHECK(reserved(pool) >= 128 * MIB);
        for (int k = 0; k < 4; k++) {
            OK(cuMemFreeAsync(parts[k], stream));
        }
        OK(cuEventRecord(event, stream));
        OK(i == 0 ? cuStreamSynchronize(stream) : i == 1 ? cuEventSynchronize(event) : cuCtxSynchronize());
        /* Over shared memory the GPU itself ends a wait: the session learns of it with the next wait that it answers. */
        OK(cuCtxSynchronize());
        CHECK(reserved(pool) == (i < 3 ? 0 : 32 * MIB));
        OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, i == 2 ? &threshold : &(uint64_t){0}));
    }
    OK(cuMemPoolTrimTo(pool, 0));
    CHECK(reserved(pool) == 0);
    OK(cuEventDestroy_v2(event));
    OK(cuMemPoolDestroy(pool));
}

void case_pools(void) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool standard, own, current, of_pointer;
    CUdeviceptr a, b;
    CUstream stream;
    int reuse = -1;
    uint64_t threshold = 12345, used = 1;
    unsigned char byte = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuDeviceGetDefaultMemPool(&standard, 0));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(standard == current);
    OK(cuMemPoolCreate(&own, &props));
    OK(cuDeviceSetMemPool(0, own));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(current == own);
    OK(cuMemAllocAsync(&a, 3 * MIB, stream));
    OK(cuPointerGetAttribute(&of_pointer, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, a));
    CHECK(of_pointer == own);
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    CHECK(used >= 3 * MIB);
    OK(cuMemPoolSetAttribute(own, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    threshold = 0;
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    CHECK(threshold == 12345);
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
    CHECK(reuse == 0 || reuse == 1);
    GIVES(1, cuMemPoolGetAttribute(own, (CUmemPool_attribute)99, &threshold));
    OK(cuMemsetD8Async(a, 9, 3 * MIB, stream));
    OK(cuMemcpyDtoHAsync_v2(&byte, a + 3 * MIB - 1, 1, stream));
    CHECK(byte == 9);
    GIVES(1, cuMemsetD8_v2(a, 9, 3 * MIB + 1));
    GIVES(1, cuMemFreeAsync(a + 1, stream));
    OK(cuMemFreeAsync(a, stream));
    GIVES(1, cuMemFreeAsync(a, stream));
    OK(cuMemAllocFromPoolAsync(&a, 100, standard, stream));
    OK(cuMemAlloc_v2(&b, 100));
    OK(cuMemFreeAsync(b, stream)); /* memory of either kind may be freed in either way */
    OK(cuMemFree_v2(a));
    OK(cuMemPoolTrimTo(own, 0));
    GIVES(1, cuMemPoolDestroy(standard));
    OK(cuMemPoolDestroy(own));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(current == standard);
    OK(cuMemAllocAsync(&a, 100, stream));
    OK(cuStreamSynchronize(stream));
    check_given_back(stream);
}

/* ---- several threads ---- */

static void *thread_run(void *argument) {
    CUcontext context = argument;
    CUdeviceptr device;
    CUstream stream;
    void *pinned;
    enum { SIZE = 3 << 20 };
    unsigned char *host = malloc(SIZE), *back = malloc(SIZE);
    unsigned seed = (unsigned)(uintptr_t)&context;
    OK(cuCtxSetCurrent(context));
    OK(cuMemAlloc_v2(&device, SIZE));
    OK(cuMemHostAlloc(&pinned, SIZE, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 60; i++) {
        size_t size = (size_t)rand_r(&seed) % (i % 4 ? 50000 : SIZE) + 1;
        for (size_t k = 0; k < size; k++) {
            host[k] = (unsigned char)(rand_r(&seed) >> 7);
        }
        memset(pinned, 0, size);
        OK(cuMemcpyHtoDAsync_v2(device, host, size, stream));
        OK(cuMemcpyDtoHAsync_v2(i % 2 ? back : pinned, device, size, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(host, i % 2 ? back : pinned, size) == 0);
        CUdeviceptr extra;
        OK(cuMemAlloc_v2(&extra, size));
        unsigned type = 0;
        OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, extra + size - 1));
        CHECK(type == CU_MEMORYTYPE_DEVICE);
        OK(cuMemFree_v2(extra));
        GIVES(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, extra));
    }
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree_v2(device));
    free(host);
    free(back);
    return NULL;
}

void case_threads(void) {
    pthread_t threads[6];
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    for (int i = 0; i < 6; i++) {
        CHECK(pthread_create(&threads[i], NULL, thread_run, context) == 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* Memory of graphs counts from the launch that takes it until it is trimmed; the driver takes 32 MiB at a time. */
static void case_graph_limit(void) {
    CUgraph graphs[2];
    CUgraphExec execs[2];
    CUstream stream;
    CUdeviceptr memory[2], plain;
    const size_t sizes[] = {30u << 20, 60u << 20};
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 2; i++) {
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        OK(cuMemAllocAsync(&memory[i], sizes[i], stream));
        OK(cuMemsetD8Async(memory[i], 1, sizes[i], stream));
        OK(cuMemFreeAsync(memory[i], stream));
        OK(cuStreamEndCapture(stream, &graphs[i]));
        OK(cuGraphInstantiateWithFlags(&execs[i], graphs[i], 0));
    }
    OK(cuMemAlloc_v2(&plain, 40u << 20)); /* nothing is taken yet */
    CHECK(cuGraphLaunch(execs[0], stream) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemFree_v2(plain));
    OK(cuGraphLaunch(execs[0], stream));
    OK(cuStreamSynchronize(stream));
    CHECK(cuMemAlloc_v2(&plain, 40u << 20) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuDeviceGraphMemTrim(0));
    OK(cuMemAlloc_v2(&plain, 40u << 20));
    CHECK(cuGraphUpload(execs[0], stream) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemFree_v2(plain));
    OK(cuGraphLaunch(execs[0], stream));
    OK(cuStreamSynchronize(stream));
    OK(cuGraphLaunch(execs[1], stream)); /* what the other has left is trimmed for it */
    OK(cuStreamSynchronize(stream));
    for (int i = 0; i < 2; i++) {
        OK(cuGraphExecDestroy(execs[i]));
        OK(cuGraphDestroy(graphs[i]));
    }
    OK(cuStreamSynchronize(stream));
    OK(cuStreamDestroy_v2(stream));
    OK(cuDeviceGraphMemTrim(0));
    OK(cuMemAlloc_v2(&plain, 64u << 20));
    OK(cuMemFree_v2(plain));
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {{"copies", case_copies},
             {"visible", case_visible},
             {"boxes", case_boxes},
             {"allocations", case_allocations},
             {"limit", case_limit},
             {"hold", case_hold},
             {"share", case_share},
             {"twins", case_twins},
             {"vmm", case_vmm},
             {"pools", case_pools},
             {"kept", case_kept},
             {"given_back", case_given_back},
             {"threads", case_threads},
             {"in_step", case_in_step},
             {"first_copy", case_first_copy},
             {"standing", case_standing},
             {"ordered_frees", case_ordered_frees},
             {"ordered_limit", case_ordered_limit},
             {"graph_limit", case_graph_limit},
             {"order", case_order},
             {"stall", case_stall},
             {"twin_limit", case_twin_limit},
             {"local_pools", case_local_pools},
             {"managed", case_managed},
             {"managed_copies", case_managed_copies},
             {"managed_large", case_managed_large},
             {"managed_order", case_managed_order},
             {"managed_attached", case_managed_attached},
             {"managed_hints", case_managed_hints},
             {"managed_signals", case_managed_signals},
             {"managed_limit", case_managed_limit},
             {"managed_variables", case_managed_variables},
             {"shared_pointers", case_shared_pointers},
             {"shared_kernels", case_shared_kernels},
             {"shared_full", case_shared_full},
             {"shared_elsewhere", case_shared_elsewhere},
             {"shared_captured", case_shared_captured},
             {"shared_outlives", case_shared_outlives},
             {"shared_free", case_shared_free},
             {"shared_churn", case_shared_churn},
             {"shared_failures", case_shared_failures},
             {"shared_patience", case_shared_patience}};

int main(int argc, char **argv) {
    CUcontext context;
    CHECK(argc > 1);
    if (strcmp(argv[1], "shared_elsewhere") == 0) {
        CHECK(mmap((void *)(SEGMENT_AT + 64 * KIB), 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
              MAP_FAILED);
    }
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    for (int i = 1; i < argc; i++) {
        bool found = false;
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            if (strcmp(argv[i], cases[k].name) == 0) {
                cases[k].run();
                found = true;
            }
        }
        CHECK(found);
    }
    return 0;
}
