/*
 * Managed memory as a program sees it: one address, and the bytes that were written last, by whomever.
 *
 * Part of test_memory.c; tests/test_memory.py and tests/test_shmem_pinned.py run the cases. The contract is that of a device without
 * concurrent access; what a program does beyond it is asked for, too, where it must not give an old value.
 */
#include "test_memory.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>

static CUfunction fill_u32, iota_u32, saxpy, spin_ns;
static CUstream one, two;

static void prepare(void) {
    CUmodule module = load_kernels();
    fill_u32 = kernel(module, "fill_u32");
    iota_u32 = kernel(module, "iota_u32");
    saxpy = kernel(module, "saxpy");
    spin_ns = kernel(module, "spin_ns");
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&two, CU_STREAM_DEFAULT));
}

static void *managed(size_t size) {
    CUdeviceptr address = 0;
    OK(cuMemAllocManaged(&address, size, CU_MEM_ATTACH_GLOBAL));
    return (void *)(uintptr_t)address;
}

static CUdeviceptr at(const void *memory) { return (CUdeviceptr)(uintptr_t)memory; }

static void run_fill(void *memory, uint32_t value, size_t count, CUstream stream) {
    CUdeviceptr address = at(memory);
    void *params[] = {&address, &value, &count};
    OK(cuLaunchKernel(fill_u32, (unsigned)(count / 256 + 1), 1, 1, 256, 1, 1, 0, stream, params, NULL));
}

static void run_iota(void *memory, size_t count, CUstream stream) {
    CUdeviceptr address = at(memory);
    void *params[] = {&address, &count};
    OK(cuLaunchKernel(iota_u32, (unsigned)(count / 256 + 1), 1, 1, 256, 1, 1, 0, stream, params, NULL));
}

/* y = a * x + y */
static void run_saxpy(float a, void *x, void *y, uint32_t count, CUstream stream) {
    CUdeviceptr first = at(x), second = at(y);
    void *params[] = {&count, &a, &first, &second};
    OK(cuLaunchKernel(saxpy, count / 256 + 1, 1, 1, 256, 1, 1, 0, stream, params, NULL));
}

static void attributes(void) {
    unsigned managed_is = 0, type = 0;
    CUdeviceptr start = 0, device = 0, base = 0;
    void *host = NULL;
    size_t size = 0;
    int value = 0, ordinal = -1, sync = 0;
    CUdeviceptr address = 0;
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0));
    CHECK(value == 1);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 0));
    CHECK(value == 0);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0));
    CHECK(value == 0);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST, 0));
    CHECK(value == 0);
    GIVES(1, cuMemAllocManaged(NULL, 4096, 1));
    GIVES(1, cuMemAllocManaged(&address, 0, 1));
    GIVES(1, cuMemAllocManaged(&address, 4096, 0));
    GIVES(1, cuMemAllocManaged(&address, 4096, 3));
    GIVES(1, cuMemAllocManaged(&address, 4096, 4));
    GIVES(2, cuMemAllocManaged(&address, 1ull << 60, 1));
    OK(cuMemAllocManaged(&address, 5000, CU_MEM_ATTACH_GLOBAL));
    OK(cuPointerGetAttribute(&managed_is, CU_POINTER_ATTRIBUTE_IS_MANAGED, address + 7));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address + 7));
    OK(cuPointerGetAttribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, address + 7));
    OK(cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, address + 7));
    OK(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address + 7));
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, address + 7));
    OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address + 7));
    OK(cuPointerGetAttribute(&sync, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, address + 7));
    CHECK(managed_is == 1 && type == CU_MEMORYTYPE_DEVICE && device == address + 7 && at(host) == address + 7);
    CHECK(start == address && size == 5000 && ordinal == 0 && sync == 1);
    OK(cuMemGetAddressRange_v2(&base, &size, address + 10));
    CHECK(base == address && size == 5000);
    GIVES(1, cuMemFree_v2(address + 1));
    GIVES(1, cuMemFreeHost((void *)(uintptr_t)address));
    OK(cuMemFree_v2(address));
    GIVES(1, cuMemFree_v2(address));
    GIVES(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address));
}

/* Of sizes around pages and pieces: what each side writes the other sees, again and again. */
static void back_and_forth(size_t count) {
    uint32_t *words = managed(count * 4);
    for (size_t i = 0; i < count; i++) {
        CHECK(words[i] == 0);
    }
    for (uint32_t turn = 1; turn < 4; turn++) {
        run_iota(words, count, turn % 2 ? one : NULL);
        OK(turn == 1 ? cuStreamSynchronize(one) : cuCtxSynchronize());
        for (size_t i = 0; i < count; i++) {
            CHECK(words[i] == (uint32_t)i);
        }
        run_fill(words, turn, count, one);
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == turn && words[count - 1] == turn && words[count / 2] == turn);
        float *floats = (float *)(void *)words;
        for (size_t i = 0; i < count; i++) {
            floats[i] = (float)(i % 1000 + turn);
        }
        run_saxpy(2, floats, floats, (uint32_t)count, two);
        OK(cuStreamSynchronize(two));
        for (size_t i = 0; i < count; i++) {
            CHECK(floats[i] == 3 * (float)(i % 1000 + turn));
        }
        floats[count - 1] = 1;
        run_saxpy(1, floats, floats, (uint32_t)count, two);
        OK(cuStreamSynchronize(two));
        CHECK(floats[count - 1] == 2 && (count == 1 || floats[0] == 6 * (float)turn));
    }
    OK(cuMemFree_v2(at(words)));
}

void case_managed(void) {
    prepare();
    attributes();
    static const size_t counts[] = {1, 1024, 1025, 16384, 16385, 100000, 1 << 20};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        back_and_forth(counts[i]);
    }
    /* Many small ones beside each other, and what was freed comes back as zero. */
    enum { MANY = 200 };
    uint32_t *small[MANY];
    for (int turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < MANY; i++) {
            small[i] = managed(i % 3 ? 12 : 9000);
            CHECK(small[i][0] == 0 && small[i][2] == 0);
            small[i][0] = i;
            run_fill(small[i] + 1, 1000 + i, 2, i % 2 ? one : two);
        }
        OK(cuCtxSynchronize());
        for (uint32_t i = 0; i < MANY; i++) {
            CHECK(small[i][0] == i && small[i][1] == 1000 + i && small[i][2] == 1000 + i);
            OK(cuMemFree_v2(at(small[i])));
        }
    }
}

/* Copies and memsets with managed memory at either end, in every form, and what the program touches before and after. */
void case_managed_copies(void) {
    enum { COUNT = 50000, SIZE = COUNT * 4 };
    prepare();
    uint32_t *words = managed(SIZE), *others = managed(SIZE), *host = malloc(SIZE), *pinned;
    CUdeviceptr device;
    OK(cuMemAlloc_v2(&device, SIZE));
    OK(cuMemHostAlloc((void **)&pinned, SIZE, 0));
    for (uint32_t turn = 1; turn < 4; turn++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            words[i] = i * turn;
        }
        OK(cuMemcpyHtoD_v2(device, words, SIZE)); /* managed as host memory */
        OK(cuMemcpyDtoH_v2(host, device, SIZE));
        CHECK(memcmp(host, words, SIZE) == 0);
        OK(cuMemcpyDtoH_v2(others, device, SIZE));
        CHECK(memcmp(others, words, SIZE) == 0);
        others[7] = 1;
        OK(cuMemcpy(at(words), at(others), SIZE)); /* found out by the addresses */
        CHECK(words[7] == 1 && words[8] == 8 * turn);
        OK(cuMemcpy(at(host), at(words), SIZE));
        CHECK(host[7] == 1);
        words[9] = 77;
        OK(cuMemcpyAsync(device, at(words), SIZE, one));
        OK(cuMemcpyAsync(at(others), device, SIZE, one));
        OK(cuStreamSynchronize(one));
        CHECK(others[9] == 77 && others[10] == 10 * turn);
        host[0] = 5;
        OK(cuMemcpyHtoDAsync_v2(at(words), host, SIZE, one));
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == 5);
        pinned[3] = 3 + turn;
        OK(cuMemcpyAsync(at(words), at(pinned), SIZE, one));
        OK(cuMemcpyAsync(at(pinned), at(words), SIZE, one));
        OK(cuStreamSynchronize(one));
        CHECK(words[3] == 3 + turn && pinned[3] == 3 + turn);
        words[1] = 4;
        OK(cuMemsetD32_v2(at(words) + 8, turn, COUNT - 2));
        CHECK(words[1] == 4 && words[2] == turn && words[COUNT - 1] == turn);
        OK(cuMemsetD8Async(at(words), 0x11, SIZE, one));
        CHECK(words[1] == 0x11111111); /* without waiting: a touch does */
        OK(cuMemsetD2D8_v2(at(words), 100, 0x22, 50, 100));
        CHECK(((unsigned char *)words)[9949] == 0x22 && ((unsigned char *)words)[9950] == 0x11);
        CUDA_MEMCPY2D box = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                             .srcHost = words,
                             .srcPitch = 200,
                             .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
                             .dstDevice = at(others),
                             .dstPitch = 300,
                             .WidthInBytes = 100,
                             .Height = 20};
        OK(cuMemcpy2D_v2(&box));
        CHECK(memcmp((char *)others + 300 * 19, (char *)words + 200 * 19, 100) == 0);
        CUcontext context;
        OK(cuCtxGetCurrent(&context));
        CUDA_MEMCPY3D_PEER peer = {.srcMemoryType = CU_MEMORYTYPE_UNIFIED,
                                   .srcDevice = at(words),
                                   .srcContext = context,
                                   .srcPitch = 200,
                                   .srcHeight = 10,
                                   .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                   .dstDevice = at(others),
                                   .dstContext = context,
                                   .dstPitch = 128,
                                   .dstHeight = 7,
                                   .WidthInBytes = 60,
                                   .Height = 5,
                                   .Depth = 3};
        words[500 * 2 + 3] = turn;
        OK(turn == 1 ? cuMemcpy3DPeer(&peer) : cuMemcpy3DPeerAsync(&peer, one));
        CHECK(memcmp((char *)others + 128 * 14, (char *)words + 200 * 20, 60) == 0);
        peer.srcContext = NULL; /* the current one */
        OK(cuMemcpy3DPeer(&peer));
        peer.srcContext = (CUcontext)(void *)&peer;
        GIVES(201, cuMemcpy3DPeer(&peer));
    }
    GIVES(1, cuMemcpyHtoD_v2(device, words, SIZE + 1));
    GIVES(1, cuMemcpyDtoH_v2(words + 1, device, SIZE));
    GIVES(1, cuMemsetD8_v2(at(words), 1, SIZE + 1));
    GIVES(1, cuMemHostRegister_v2(words, SIZE, 0));
    OK(cuMemFree_v2(at(words)));
    GIVES(1, cuMemcpyHtoD_v2(device, words, 4));
    OK(cuMemFree_v2(at(others)));
    OK(cuMemFree_v2(device));
    OK(cuMemFreeHost(pinned));
    free(host);
}

/* Large memory comes as it is touched, in any order; against the contract, a touch while kernels run waits for them. */
void case_managed_large(void) {
    enum { COUNT = 12 << 20 };
    prepare();
    uint32_t *words = managed(COUNT * 4ull);
    words[COUNT / 3] = 9; /* one page of fresh memory */
    run_saxpy(0, words, words, 1, one);
    OK(cuStreamSynchronize(one));
    CHECK(words[COUNT / 3] == 9 && words[COUNT / 3 + 1] == 0 && words[COUNT - 1] == 0);
    for (uint32_t turn = 1; turn < 4; turn++) {
        run_spin(spin_ns, 20000000, one);
        run_iota(words, COUNT, one);
        CHECK(words[COUNT - 1] == COUNT - 1); /* nobody has waited */
        for (int i = 0; i < 300; i++) {
            size_t place = random_below(COUNT);
            CHECK(words[place] == (uint32_t)place);
            words[place] = turn;
            run_fill(words + place + (place + 1 < COUNT), 5, place + 1 < COUNT, i % 2 ? one : two);
            if (i % 50 == 0) {
                CHECK(words[place] == turn && (place + 1 == COUNT || words[place + 1] == 5));
                run_iota(words, COUNT, two);
            }
            if (i % 50 != 0) {
                OK(cuCtxSynchronize());
                CHECK(words[place] == turn);
                words[place] = (uint32_t)place;
                if (place + 1 < COUNT) {
                    words[place + 1] = (uint32_t)place + 1;
                }
            }
        }
        run_iota(words, COUNT, two);
        OK(cuCtxSynchronize());
        uint64_t sum = 0;
        for (size_t i = 0; i < COUNT; i++) {
            sum += words[i];
        }
        CHECK(sum == (uint64_t)COUNT * (COUNT - 1) / 2);
        for (size_t i = 0; i < COUNT; i++) {
            words[i]++;
        }
        run_fill(words, 7, 1, one);
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == 7 && words[1] == 2 && words[COUNT - 1] == COUNT);
    }
    OK(cuMemFree_v2(at(words)));
}

/* ---- threads, host functions, graphs ---- */

static void *thread_managed(void *context) {
    CUstream stream;
    OK(cuCtxSetCurrent(context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    uint32_t *words = managed(300000);
    for (uint32_t turn = 0; turn < 60; turn++) {
        words[turn] = turn;
        words[70000] = turn;
        run_fill(words + 100, turn, 1000, stream);
        OK(cuStreamSynchronize(stream));
        CHECK(words[turn] == turn && words[100] == turn && words[1099] == turn && words[70000] == turn);
    }
    OK(cuMemFree_v2(at(words)));
    OK(cuStreamDestroy_v2(stream));
    return NULL;
}

static void add_one(void *user) {
    uint32_t *words = user;
    for (int i = 0; i < 30000; i++) {
        words[i]++;
    }
}

void case_managed_order(void) {
    pthread_t threads[4];
    CUcontext context;
    prepare();
    OK(cuCtxGetCurrent(&context));
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, thread_managed, context) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    /* A host function sees what kernels before it wrote, and the kernels behind it what it wrote. */
    uint32_t *words = managed(30000 * 4);
    float *copy = managed(30000 * 4);
    for (uint32_t turn = 1; turn < 5; turn++) {
        run_spin(spin_ns, 5000000, one);
        run_fill(words, turn, 30000, one);
        OK(cuLaunchHostFunc(one, add_one, words));
        OK(cuMemcpyAsync(at(copy), at(words), 30000 * 4, one));
        OK(cuLaunchHostFunc(one, add_one, words));
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == turn + 2 && words[29999] == turn + 2);
        CHECK(memcmp(&(uint32_t){turn + 1}, &copy[29999], 4) == 0);
    }
    /* While a host function runs, somebody loads an image, for which the worker's driver may wait: the function's touches go on. */
    for (uint32_t turn = 1; turn < 4; turn++) {
        CUlibrary library;
        CUkernel loaded;
        run_spin(spin_ns, 20000000, one);
        run_fill(words, turn, 30000, one);
        OK(cuLaunchHostFunc(one, add_one, words));
        OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
        OK(cuLibraryGetKernel(&loaded, library, "fill_u32"));
        CUdeviceptr address = at(words) + 4;
        uint32_t value = 70;
        size_t count = 1;
        void *params[] = {&address, &value, &count};
        OK(cuLaunchKernel((CUfunction)(void *)loaded, 1, 1, 1, 1, 1, 1, 0, one, params, NULL));
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == turn + 1 && words[1] == 70 && words[29999] == turn + 1);
        OK(cuLibraryUnload(library));
    }
    /* A graph reads what is there when it is launched. */
    CUgraph graph;
    CUgraphExec exec;
    float *x = managed(4000), *y = managed(4000);
    OK(cuStreamBeginCapture_v2(one, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    run_saxpy(2, x, y, 1000, one);
    OK(cuMemcpyAsync(at(copy), at(y), 4000, one));
    OK(cuMemcpyHtoDAsync_v2(at(copy) + 4000, x, 4000, one));
    x[0] = 1; /* while it is captured */
    OK(cuStreamEndCapture(one, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int turn = 1; turn < 4; turn++) {
        for (int i = 0; i < 1000; i++) {
            x[i] = (float)(i + turn);
            y[i] = 1;
        }
        OK(cuGraphLaunch(exec, two));
        OK(cuStreamSynchronize(two));
        for (int i = 0; i < 1000; i++) {
            CHECK(y[i] == 2 * (float)(i + turn) + 1 && copy[i] == y[i] && copy[1000 + i] == x[i]);
        }
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuMemFree_v2(at(x)));
    OK(cuMemFree_v2(at(y)));
    OK(cuMemFree_v2(at(copy)));
    OK(cuMemFree_v2(at(words)));
}

/* ---- attachment ---- */

void case_managed_attached(void) {
    enum { COUNT = 20000 };
    prepare();
    CUdeviceptr address, other;
    OK(cuMemAllocManaged(&address, COUNT * 4, CU_MEM_ATTACH_HOST));
    OK(cuMemAllocManaged(&other, COUNT * 4, CU_MEM_ATTACH_GLOBAL));
    volatile uint32_t *words = (uint32_t *)(uintptr_t)address;
    GIVES(1, cuStreamAttachMemAsync(one, address, 100, CU_MEM_ATTACH_SINGLE));
    GIVES(1, cuStreamAttachMemAsync(one, address + 4, 0, CU_MEM_ATTACH_SINGLE));
    GIVES(1, cuStreamAttachMemAsync(one, address, 0, 3));
    GIVES(1, cuStreamAttachMemAsync(NULL, address, 0, CU_MEM_ATTACH_SINGLE));
    words[5] = 5;
    OK(cuStreamAttachMemAsync(one, address, 0, CU_MEM_ATTACH_SINGLE));
    for (uint32_t turn = 0; turn < 5; turn++) {
        run_fill((uint32_t *)(uintptr_t)address + 10, turn, COUNT - 10, one);
        OK(cuStreamSynchronize(one));
        /* A kernel in another stream, which a touch must not wait for: this thread lets it end. */
        volatile uint32_t *gate;
        OK(cuMemHostAlloc((void **)&gate, 4096, 0));
        *gate = 0;
        CUdeviceptr word;
        OK(cuMemAlloc_v2(&word, 8));
        OK(cuMemsetD32_v2(word, 0, 2));
        OK(cuStreamSynchronize(NULL)); /* streams that do not wait for that one write and read it */
        OK(cuStreamWaitValue32_v2(two, word, 1, CU_STREAM_WAIT_VALUE_EQ));
        run_fill((uint32_t *)(uintptr_t)other, turn, COUNT, two);
        CHECK(words[5] == 5 && words[10] == turn && words[COUNT - 1] == turn);
        words[5] = 5;
        words[11] = 99;
        OK(cuStreamWriteValue32_v2(one, word, 1, 0));
        OK(cuStreamSynchronize(two));
        CHECK(((volatile uint32_t *)(uintptr_t)other)[COUNT - 1] == turn && words[11] == 99);
        OK(cuMemFree_v2(word));
        OK(cuMemFreeHost((void *)(uintptr_t)gate));
    }
    OK(cuStreamAttachMemAsync(one, address, COUNT * 4, CU_MEM_ATTACH_HOST));
    OK(cuStreamSynchronize(one));
    words[0] = 1;
    run_fill((uint32_t *)(uintptr_t)other, 8, COUNT, two);
    CHECK(words[0] == 1 && words[11] == 99);
    /* Against the contract, which devices with concurrent access do not mind: a kernel uses what is attached to the host. */
    words[7] = 70;
    run_fill((uint32_t *)(uintptr_t)address + 8, 9, 2, two);
    OK(cuCtxSynchronize());
    CHECK(words[7] == 70 && words[8] == 9 && words[9] == 9);
    OK(cuStreamAttachMemAsync(NULL, address, 0, CU_MEM_ATTACH_GLOBAL));
    run_saxpy(0, (void *)(uintptr_t)address, (void *)(uintptr_t)address, 0, two);
    OK(cuMemcpyAsync(other, address, COUNT * 4, two));
    OK(cuStreamSynchronize(two));
    CHECK(((volatile uint32_t *)(uintptr_t)other)[0] == 1 && ((volatile uint32_t *)(uintptr_t)other)[11] == 99);
    OK(cuMemFree_v2(address));
    OK(cuMemFree_v2(other));
}

/* ---- advice ---- */

static int range_attribute(CUdeviceptr address, size_t size, CUmem_range_attribute attribute) {
    int value = 77;
    OK(cuMemRangeGetAttribute(&value, 4, attribute, address, size));
    return value;
}

void case_managed_hints(void) {
    enum { SIZE = 1 << 20 };
    prepare();
    CUdeviceptr q = at(managed(SIZE)), device;
    const CUmemLocation gpu = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
                        host = {.type = CU_MEM_LOCATION_TYPE_HOST, .id = 5},
                        nobody = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 99}, bad = {.type = 9};
    OK(cuMemAlloc_v2(&device, SIZE));
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY) == 0);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION) == -2);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION) == -2);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE) == 0);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID) == -2);
    int who[3] = {7, 7, 7}, one_value = 7;
    OK(cuMemRangeGetAttribute(who, 12, CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY, q, SIZE));
    CHECK(who[0] == -2 && who[2] == -2);
    for (int advice = 0; advice < 8; advice++) {
        const bool known = advice > 0 && advice < 7, placed = advice == 3 || advice == 5 || advice == 6;
        GIVES(known ? 0 : 1, cuMemAdvise_v2(q, SIZE, (CUmem_advise)advice, gpu));
        GIVES(known ? 0 : 1, cuMemAdvise_v2(q, SIZE, (CUmem_advise)advice, host));
        GIVES(known && !placed ? 0 : 1, cuMemAdvise_v2(q, SIZE, (CUmem_advise)advice, nobody));
        GIVES(1, cuMemAdvise_v2(device, SIZE, (CUmem_advise)advice, gpu));
        GIVES(1, cuMemAdvise_v2(q, SIZE * 64, (CUmem_advise)advice, gpu));
    }
    GIVES(1, cuMemAdvise_v2(q, SIZE, CU_MEM_ADVISE_SET_READ_MOSTLY, bad));
    GIVES(1, cuMemAdvise_v2(q, 0, CU_MEM_ADVISE_SET_READ_MOSTLY, gpu));
    OK(cuMemAdvise_v2(q + 100, 10, CU_MEM_ADVISE_SET_READ_MOSTLY, gpu));
    CHECK(range_attribute(q, 4096, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY) == 1);
    CHECK(range_attribute(q, 4097, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY) == 0);
    OK(cuMemAdvise_v2(q, SIZE, CU_MEM_ADVISE_SET_READ_MOSTLY, gpu));
    OK(cuMemAdvise(q, SIZE, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 0));
    OK(cuMemAdvise_v2(q, SIZE, CU_MEM_ADVISE_SET_ACCESSED_BY, gpu));
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY) == 1);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION) == 0);
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE) == CU_MEM_LOCATION_TYPE_DEVICE);
    OK(cuMemAdvise(q, SIZE / 2, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, -1));
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION) == -2);
    CHECK(range_attribute(q, SIZE / 2, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION) == -1);
    CUmem_range_attribute both[] = {CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY};
    void *out[] = {&one_value, who};
    size_t sizes[] = {4, 8};
    OK(cuMemRangeGetAttributes(out, sizes, both, 2, q, SIZE));
    CHECK(one_value == 1 && who[0] == 0 && who[1] == -2);
    GIVES(1, cuMemRangeGetAttributes(out, sizes, both, 0, q, SIZE));
    GIVES(1, cuMemRangeGetAttribute(who, 8, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, q, SIZE));
    GIVES(1, cuMemRangeGetAttribute(who, 4, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, device, SIZE));
    GIVES(1, cuMemRangeGetAttribute(who, 4, (CUmem_range_attribute)9, q, SIZE));
    ((uint32_t *)(uintptr_t)q)[3] = 3;
    OK(cuMemPrefetchAsync_v2(q, SIZE, gpu, 0, one));
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION) == 0);
    OK(cuMemPrefetchAsync(q, SIZE, -1, one));
    CHECK(range_attribute(q, SIZE, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION) == -1);
    GIVES(1, cuMemPrefetchAsync_v2(device, SIZE, gpu, 0, one));
    GIVES(1, cuMemPrefetchAsync_v2(q, SIZE, gpu, 1, one));
    CHECK(((uint32_t *)(uintptr_t)q)[3] == 3);
    CUdeviceptr parts[] = {q, q + 8192, q + 65536};
    size_t part_sizes[] = {4096, 4096, 100000}, places[] = {0, 2};
    CUmemLocation where[] = {host, gpu};
    OK(cuMemPrefetchBatchAsync(parts, part_sizes, 3, where, places, 2, 0, one));
    CHECK(range_attribute(parts[1], 4096, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION) == -1);
    CHECK(range_attribute(parts[2], 100000, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION) == 0);
    OK(cuMemDiscardBatchAsync(parts, part_sizes, 3, 0, one));
    OK(cuMemDiscardAndPrefetchBatchAsync(parts, part_sizes, 3, where, places, 2, 0, one));
    GIVES(1, cuMemPrefetchBatchAsync(parts, part_sizes, 3, where, places, 2, 1, one));
    GIVES(1, cuMemPrefetchBatchAsync(parts, part_sizes, 3, where, places, 0, 0, one));
    GIVES(1, cuMemPrefetchBatchAsync(parts, part_sizes, 0, where, places, 2, 0, one));
    parts[2] = device;
    GIVES(1, cuMemDiscardBatchAsync(parts, part_sizes, 3, 0, one));
    OK(cuMemFree_v2(q));
    OK(cuMemFree_v2(device));
}

/* ---- signals and processes ---- */

static sigjmp_buf jump;
static volatile sig_atomic_t faults;

static void on_fault(int number, siginfo_t *information, void *context) {
    (void)number, (void)information, (void)context;
    faults++;
    siglongjmp(jump, 1);
}

static bool faults_at(volatile uint32_t *word) {
    const int before = faults;
    if (!sigsetjmp(jump, 1)) {
        (void)*word;
    }
    return faults > before;
}

/* The program's own faults stay its own, whether it sets its handler before or after. */
void case_managed_signals(void) {
    struct sigaction own = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    prepare();
    for (int turn = 0; turn < 3; turn++) {
        CHECK(turn == 2 || sigaction(SIGSEGV, &own, NULL) == 0);
        uint32_t *words = managed(100000);
        CHECK(turn == 0 || sigaction(SIGSEGV, &own, NULL) == 0);
        CHECK(faults_at(NULL));
        words[0] = 4;
        run_fill(words + 1, 5, 1, one);
        OK(cuStreamSynchronize(one));
        CHECK(words[0] == 4 && words[1] == 5);
        CHECK(faults_at(NULL) && faults_at(NULL));
        run_fill(words + 1, 6, 1, one);
        OK(cuStreamSynchronize(one));
        CHECK(!faults_at(words) && words[1] == 6);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            _exit(faults_at(words) ? 0 : 1); /* as natively: a child has none of it */
        }
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        OK(cuMemFree_v2(at(words)));
        CHECK(faults_at(words));
    }
    /* What the kernel is asked to write into memory that the device has is refused, and not lost. */
    uint32_t *words = managed(100000);
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "12345678", 8) == 8);
    CHECK(read(ends[0], words, 4) == 4 && memcmp(words, "1234", 4) == 0); /* fresh memory is the program's */
    run_fill(words + 1, 6, 1, one);
    OK(cuStreamSynchronize(one));
    CHECK(read(ends[0], words, 4) == -1 && errno == EFAULT);
    words[0] = 0;
    CHECK(read(ends[0], words, 4) == 4 && memcmp(words, "5678", 4) == 0 && words[1] == 6);
    OK(cuMemFree_v2(at(words)));
}

/* ---- variables ---- */

static const char variables_ptx[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                                    ".visible .global .attribute(.managed) .align 4 .u32 counter = 7;\n"
                                    ".visible .global .align 4 .u32 plain = 9;\n"
                                    ".visible .global .attribute(.managed) .align 4 .b8 table[100000];\n"
                                    ".visible .global .attribute(.managed) .align 4 .u32 last[2] = {1, 2};\n"
                                    ".visible .entry fill_u32(.param .u64 p, .param .u32 v, .param .u64 n) { ret; }\n";

/* What lies beside a variable is another's, and stays as that left it. */
static void use_variables(uint32_t *counter, uint32_t *table, uint32_t *last) {
    CHECK(*counter == 7 && table[0] == 0 && table[24999] == 0 && last[0] == 1 && last[1] == 2);
    for (uint32_t turn = 1; turn < 4; turn++) {
        *counter = 100 + turn;
        last[0] = turn;
        run_fill(table + 1, turn, 24998, one);
        run_fill(last + 1, 2 * turn, 1, one);
        OK(cuStreamSynchronize(one));
        CHECK(*counter == 100 + turn && table[0] == 0 && table[1] == turn && table[24998] == turn && table[24999] == 0);
        CHECK(last[0] == turn && last[1] == 2 * turn);
        uint32_t value = 0;
        OK(cuMemcpyDtoH_v2(&value, at(counter), 4));
        CHECK(value == 100 + turn);
        value = 7;
        OK(cuMemcpyHtoD_v2(at(counter), &value, 4));
        CHECK(*counter == 7);
    }
}

static void *variable_of(CUmodule module, const char *name, size_t expected) {
    CUdeviceptr address = 0;
    size_t size = 0;
    unsigned managed_is = 0;
    OK(cuModuleGetGlobal_v2(&address, &size, module, name));
    OK(cuPointerGetAttribute(&managed_is, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
    CHECK(size == expected && managed_is == 1);
    return (void *)(uintptr_t)address;
}

void case_managed_variables(void) {
    prepare();
    CUmodule modules[3];
    for (int i = 0; i < 3; i++) {
        OK(cuModuleLoadData(&modules[i], variables_ptx));
    }
    uint32_t *first = variable_of(modules[0], "counter", 4);
    CHECK(*first == 7);
    *first = 8; /* a variable that becomes known later lies in the same page, perhaps */
    uint32_t *table = variable_of(modules[0], "table", 100000), *last = variable_of(modules[0], "last", 8);
    CHECK(*first == 8);
    *first = 7;
    use_variables(first, table, last);
    for (int i = 1; i < 3; i++) {
        uint32_t *counter = variable_of(modules[i], "counter", 4);
        CHECK(counter != first);
        use_variables(counter, variable_of(modules[i], "table", 100000), variable_of(modules[i], "last", 8));
    }
    GIVES(1, cuMemFree_v2(at(first)));
    OK(cuModuleUnload(modules[1]));
    CHECK(*first == 7 && table[1] == 3 && last[0] == 3);
    *first = 11;
    run_fill(table, 12, 25000, two);
    OK(cuCtxSynchronize());
    CHECK(*first == 11 && table[24999] == 12);
    OK(cuModuleLoadData(&modules[1], variables_ptx));
    use_variables(variable_of(modules[1], "counter", 4), variable_of(modules[1], "table", 100000),
                  variable_of(modules[1], "last", 8));

    CUlibrary library;
    CUdeviceptr address = 0, same = 0;
    size_t size = 0;
    OK(cuLibraryLoadData(&library, variables_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetManaged(&address, &size, library, "counter"));
    CHECK(size == 4 && *(uint32_t *)(uintptr_t)address == 7);
    OK(cuLibraryGetManaged(&same, NULL, library, "counter"));
    CHECK(same == address);
    OK(cuLibraryGetManaged(NULL, &size, library, "table"));
    CHECK(size == 100000);
    GIVES(500, cuLibraryGetManaged(&same, &size, library, "plain"));
    GIVES(500, cuLibraryGetManaged(&same, &size, library, "nothing"));
    GIVES(1, cuLibraryGetManaged(NULL, NULL, library, "counter"));
    GIVES(1, cuLibraryGetManaged(&same, &size, library, NULL));
    OK(cuLibraryGetGlobal(&same, &size, library, "plain"));
    OK(cuLibraryUnload(library));
    for (int i = 0; i < 3; i++) {
        OK(cuModuleUnload(modules[i]));
    }
}

/* Under a limit of 64 MiB: it counts as device memory. */
void case_managed_limit(void) {
    CUdeviceptr a, b;
    for (int i = 0; i < 3; i++) {
        OK(cuMemAllocManaged(&a, 60 * MIB, CU_MEM_ATTACH_GLOBAL));
        GIVES(2, cuMemAllocManaged(&b, 5 * MIB, CU_MEM_ATTACH_GLOBAL));
        GIVES(2, cuMemAlloc_v2(&b, 5 * MIB));
        *(char *)(uintptr_t)a = 1;
        OK(cuMemFree_v2(a));
    }
    OK(cuCtxSynchronize()); /* the next client of the worker has the room */
}
