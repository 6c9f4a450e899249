/*
 * Pools of managed and of pinned host memory: what they give, and that a free waits for its stream.
 *
 * Part of test_memory.c; tests/test_memory.py and tests/test_shmem_pinned.py run the case.
 */
#include "test_memory.h"

enum { WORDS = 25000, SIZE = WORDS * 4 };

static CUmemoryPool make(CUmemAllocationType type, CUmemLocationType where, int id, size_t most) {
    CUmemPoolProps props = {.allocType = type, .location = {.type = where, .id = id}, .maxSize = most};
    CUmemoryPool pool = NULL;
    OK(cuMemPoolCreate(&pool, &props));
    return pool;
}

static CUresult refused(CUmemAllocationType type, CUmemLocationType where, int id, int handles) {
    CUmemPoolProps props = {
        .allocType = type, .handleTypes = (CUmemAllocationHandleType)handles, .location = {.type = where, .id = id}};
    CUmemoryPool pool = NULL;
    CUresult result = cuMemPoolCreate(&pool, &props);
    CHECK(!pool);
    return result;
}

static uint64_t number(CUmemoryPool pool, CUmemPool_attribute attribute) {
    uint64_t value = 77;
    OK(cuMemPoolGetAttribute(pool, attribute, &value));
    return value;
}

struct look {
    uint32_t *words;
    bool right;
};

static void look_and_write(void *user) {
    struct look *look = user;
    look->right = true;
    for (uint32_t i = 0; i < WORDS; i++) {
        look->right = look->right && look->words[i] == 0x05050505;
        look->words[i] = i;
    }
}

static void check_attributes(CUmemoryPool pool, CUdeviceptr memory, bool managed) {
    CUmemoryPool of = NULL;
    CUcontext context;
    CUdeviceptr start;
    size_t size;
    unsigned type, is_managed = 7;
    OK(cuPointerGetAttribute(&of, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, memory + 9));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, memory + 9));
    OK(cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, memory + 9));
    OK(cuPointerGetAttribute(&context, CU_POINTER_ATTRIBUTE_CONTEXT, memory + 9));
    CHECK(of == pool && is_managed == managed && !context);
    CHECK(type == (managed ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST));
    OK(cuMemGetAddressRange_v2(&start, &size, memory + 9));
    CHECK(start == memory && size == SIZE);
}

/* Work that is queued, a host function among it, still has the memory; calls have it no more. */
static void check_free(CUdeviceptr memory, CUfunction spin, CUstream stream) {
    struct look look = {.words = (uint32_t *)(uintptr_t)memory};
    CUdeviceptr copy;
    unsigned type;
    static uint32_t back[WORDS];
    OK(cuMemAlloc_v2(&copy, SIZE));
    run_spin(spin, 30000000, stream);
    OK(cuMemsetD8Async(memory, 5, SIZE, stream));
    OK(cuLaunchHostFunc(stream, look_and_write, &look));
    OK(cuMemcpyAsync(copy, memory, SIZE, stream));
    OK(cuMemFreeAsync(memory, stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(memory, stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(memory));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, memory));
    OK(cuStreamSynchronize(stream));
    CHECK(look.right);
    OK(cuMemcpyDtoH_v2(back, copy, SIZE));
    for (uint32_t i = 0; i < WORDS; i++) {
        CHECK(back[i] == i);
    }
    OK(cuMemFree_v2(copy));
}

static void check_pool(CUmemAllocationType type, CUmemLocationType where, CUfunction fill, CUfunction spin,
                       CUstream stream) {
    const bool managed = type == CU_MEM_ALLOCATION_TYPE_MANAGED;
    CUmemoryPool pool = make(type, where, 0, 0);
    CUdeviceptr memory, small, none;
    CUgraph graph;
    uint64_t threshold = 1 << 20;
    int reuse = 0;
    OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    CHECK(number(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) == threshold);
    OK(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
    CHECK(reuse == 1 && number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 0);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuDeviceSetMemPool(0, pool));
    OK(cuMemAllocFromPoolAsync(&memory, SIZE, pool, stream));
    OK(cuMemAllocFromPoolAsync(&small, 64, pool, stream));
    CHECK(number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) >= SIZE + 64);
    check_attributes(pool, memory, managed);
    uint32_t *words = (uint32_t *)(uintptr_t)memory, *few = (uint32_t *)(uintptr_t)small;
    for (uint32_t i = 0; i < WORDS; i++) {
        words[i] = 3 * i;
    }
    OK(cuMemcpyAsync(small, memory + 400, 64, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(few[0] == 300 && few[15] == 345);
    if (managed) {
        uint32_t value = 9;
        size_t count = WORDS;
        void *params[] = {&memory, &value, &count};
        OK(cuLaunchKernel(fill, WORDS / 256 + 1, 1, 1, 256, 1, 1, 0, stream, params, NULL));
        OK(cuStreamSynchronize(stream));
        CHECK(words[0] == 9 && words[WORDS - 1] == 9);
    } else {
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeHost((void *)(uintptr_t)small));
    }
    check_free(memory, spin, stream);
    for (int i = 0; i < 50; i++) { /* addresses come back */
        OK(cuMemAllocFromPoolAsync(&memory, SIZE, pool, stream));
        OK(cuMemsetD8Async(memory, 1, SIZE, stream));
        OK(cuMemFreeAsync(memory, stream));
    }
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(small, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(stream));
    OK(cuMemPoolTrimTo(pool, 0));
    OK(cuMemFree_v2(small));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(small));
    if (number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) != 0) { /* a host function frees: it may be under way */
        OK(cuCtxSynchronize());
    }
    CHECK(number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 0);
    CHECK(number(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH) >= SIZE);
    OK(cuMemAllocFromPoolAsync(&memory, SIZE, pool, stream));
    OK(cuMemPoolDestroy(pool));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemAllocFromPoolAsync(&none, SIZE, pool, stream));
    ((uint32_t *)(uintptr_t)memory)[0] = 1; /* what it gave stays */
    OK(cuMemFreeAsync(memory, stream));
    OK(cuStreamSynchronize(stream));
}

void case_local_pools(void) {
    static const struct {
        CUmemAllocationType type;
        CUmemLocationType where;
    } kinds[] = {{CU_MEM_ALLOCATION_TYPE_MANAGED, CU_MEM_LOCATION_TYPE_DEVICE},
                 {CU_MEM_ALLOCATION_TYPE_MANAGED, CU_MEM_LOCATION_TYPE_INVALID},
                 {CU_MEM_ALLOCATION_TYPE_MANAGED, CU_MEM_LOCATION_TYPE_HOST},
                 {CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_HOST},
                 {CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_HOST_NUMA},
                 {CU_MEM_ALLOCATION_TYPE_MANAGED, CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT}};
    CUmodule module = load_kernels();
    CUfunction fill = kernel(module, "fill_u32"), spin = kernel(module, "spin_ns");
    CUstream stream;
    CUdeviceptr memory;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        check_pool(kinds[i].type, kinds[i].where, fill, spin, stream);
    }
    CUmemoryPool bounded = make(CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_HOST, 0, 4096);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, cuMemAllocFromPoolAsync(&memory, 5000, bounded, stream));
    OK(cuMemAllocFromPoolAsync(&memory, 4000, bounded, stream));
    OK(cuMemFreeAsync(memory, stream));
    OK(cuMemPoolDestroy(bounded));
    CHECK(refused(CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_INVALID, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(refused(CU_MEM_ALLOCATION_TYPE_MANAGED, CU_MEM_LOCATION_TYPE_DEVICE, 99, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(refused((CUmemAllocationType)3, CU_MEM_LOCATION_TYPE_DEVICE, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(refused(CU_MEM_ALLOCATION_TYPE_MANAGED, (CUmemLocationType)5, 0, 0) == CUDA_ERROR_NOT_SUPPORTED);
    /* Memory of other calls is no pool's. */
    void *pinned;
    OK(cuMemHostAlloc(&pinned, 4096, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync((CUdeviceptr)(uintptr_t)pinned, stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2((CUdeviceptr)(uintptr_t)pinned));
    OK(cuMemFreeHost(pinned));
    OK(cuStreamDestroy_v2(stream));
}
