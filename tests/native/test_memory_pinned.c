/*
 * Pinned memory inside the shared segment as a program sees it: one address for the program and the GPU, whatever its size.
 *
 * These cases hold over shared memory only, with the segment mapped at its own address; tests/test_shmem_pinned.py runs
 * them. Part of test_memory.c. Threads in one case, which then own everything they use.
 */
#include "test_memory.h"

#include <sys/resource.h>

/* Where pinned memory of a process lies that finds no room in the segment; its mirror has the same address. */
#define OUTSIDE 0x360000000000u
#define OUTSIDE_SPACE (1ull << 40)

/* Memory of the segment, not of this process: the GPU reaches any size of it. */
static bool shared(void *memory) {
    if ((uintptr_t)memory - OUTSIDE < OUTSIDE_SPACE) {
        return false;
    }
    CUdeviceptr device = 0;
    CUresult result = cuMemHostGetDevicePointer_v2(&device, memory, 0);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
    return result == CUDA_SUCCESS && device == (CUdeviceptr)(uintptr_t)memory;
}

void case_shared_pointers(void) {
    enum { SIZE = 200000 };
    void *memory, *again;
    unsigned flags = 0, type = 0, managed = 7;
    int device = -1;
    CUdeviceptr start = 0, pointer = 0;
    void *host = NULL;
    size_t size = 0;
    CUcontext context = NULL, current = NULL;
    OK(cuMemHostAlloc(&memory, SIZE, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_WRITECOMBINED));
    CHECK(shared(memory));
    unsigned char *bytes = memory;
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)(bytes + 777);
    for (int i = 0; i < SIZE; i++) {
        CHECK(bytes[i] == 0);
    }
    memset(memory, 0xab, SIZE);
    OK(cuMemHostGetFlags(&flags, bytes + 5));
    CHECK(flags == (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_WRITECOMBINED | CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
    OK(cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, at));
    OK(cuPointerGetAttribute(&pointer, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, at));
    OK(cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, at));
    OK(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, at));
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, at));
    OK(cuPointerGetAttribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at));
    OK(cuPointerGetAttribute(&context, CU_POINTER_ATTRIBUTE_CONTEXT, at));
    OK(cuCtxGetCurrent(&current));
    CHECK(type == CU_MEMORYTYPE_HOST && managed == 0 && pointer == at && host == bytes + 777 && device == 0);
    CHECK(start == (CUdeviceptr)(uintptr_t)memory && size == SIZE && context == current);
    OK(cuMemGetAddressRange_v2(&start, &size, at));
    CHECK(start == (CUdeviceptr)(uintptr_t)memory && size == SIZE);
    GIVES(712, cuMemHostRegister_v2(bytes + 4096, 4096, 0));
    GIVES(1, cuMemHostUnregister(memory)); /* pinned, and not by a registration */
    GIVES(1, cuMemHostUnregister(bytes + 4096));
    unsigned char *own = aligned_alloc(4096, 8192);
    CHECK(own != NULL);
    GIVES(713, cuMemHostUnregister(own));
    OK(cuMemHostRegister_v2(own, 80, 0));
    GIVES(712, cuMemHostRegister_v2(own + 40, 80, 0));
    GIVES(1, cuMemHostUnregister(own + 40)); /* registered, and does not begin there */
    GIVES(713, cuMemHostUnregister(own + 80));
    OK(cuMemHostUnregister(own));
    GIVES(713, cuMemHostUnregister(own));
    CUdeviceptr linear;
    OK(cuMemAlloc_v2(&linear, 4096));
    GIVES(1, cuMemHostUnregister((void *)(uintptr_t)(linear + 64))); /* CUDA's, and no registration */
    OK(cuMemFree_v2(linear));
    free(own);
    GIVES(1, cuMemFreeHost(bytes + 1));
    GIVES(1, cuMemFree_v2((CUdeviceptr)(uintptr_t)memory));
    GIVES(1, cuMemsetD8_v2(at, 0, SIZE - 776));
    OK(cuMemFreeHost(memory));
    GIVES(1, cuMemFreeHost(memory));
    GIVES(1, cuMemHostGetFlags(&flags, memory));
    GIVES(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
    GIVES(1, cuMemsetD8_v2(at, 0, 1));
    /* What a process had there before is not told to the next one that gets it. */
    OK(cuCtxSynchronize());
    OK(cuMemAllocHost_v2(&again, SIZE));
    for (int tries = 0; again != memory; tries++) { /* another session has begun meanwhile, and has its part there */
        CHECK(tries < 10);
        memory = again;
        memset(memory, 0xab, SIZE);
        OK(cuMemFreeHost(memory));
        OK(cuCtxSynchronize());
        OK(cuMemAllocHost_v2(&again, SIZE));
    }
    for (int i = 0; i < SIZE; i++) {
        CHECK(((unsigned char *)again)[i] == 0);
    }
    OK(cuMemFreeHost(again));
    OK(cuMemHostAlloc(&memory, 0, 0));
    CHECK(!memory);
}

void case_shared_kernels(void) {
    CUmodule module = load_kernels();
    CUfunction fill = kernel(module, "fill_u32"), add = kernel(module, "vector_add"),
               spin_ns = kernel(module, "spin_ns");
    enum { COUNT = 3 << 20 };
    void *memory;
    CUdeviceptr device;
    CUstream stream;
    size_t count = COUNT;
    int int_count = COUNT;
    uint32_t value = 0x12345678;
    unsigned char byte = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemHostAlloc(&memory, 3 * COUNT * 4ull, 0));
    CHECK(shared(memory));
    uint32_t *words = memory;
    float *floats = memory;
    CUdeviceptr first = (CUdeviceptr)(uintptr_t)memory, second = first + COUNT * 4ull, third = second + COUNT * 4ull;
    for (int i = 0; i < 3; i++) {
        value += 0x01010101;
        void *params[] = {&first, &value, &count};
        OK(cuLaunchKernel(fill, COUNT / 256, 1, 1, 256, 1, 1, 0, stream, params, NULL));
        OK(i ? cuCtxSynchronize() : cuStreamSynchronize(stream));
        for (size_t k = 0; k < COUNT; k++) {
            CHECK(words[k] == value);
        }
        for (int k = 0; k < COUNT; k++) {
            floats[k] = (float)(k % 1000 + i);
            floats[COUNT + k] = (float)(2 * (k % 1000));
        }
        void *sum[] = {&first, &second, &third, &int_count};
        OK(cuLaunchKernel(add, COUNT / 256, 1, 1, 256, 1, 1, 0, stream, sum, NULL));
        OK(cuStreamSynchronize(stream));
        for (int k = 0; k < COUNT; k++) {
            CHECK(floats[2 * COUNT + k] == (float)(k % 1000 + i) + (float)(2 * (k % 1000)));
        }
    }
    /* It is read when the stream gets there, not when the copy is called. */
    OK(cuMemAlloc_v2(&device, MIB));
    for (int i = 0; i < 5; i++) {
        memset(memory, 1, MIB);
        run_spin(spin_ns, 30000000, stream);
        OK(cuMemcpyHtoDAsync_v2(device, memory, i % 2 ? MIB : 64, stream));
        memset(memory, 2 + i, MIB);
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(&byte, device, 1));
        CHECK(byte == 2 + i);
    }
    /* As the device's side of copies and memsets; the forms that are synchronous for host memory are. */
    unsigned char *bytes = memory, *plain = malloc(MIB);
    for (int i = 0; i < 20; i++) {
        OK(cuMemsetD8_v2(first, (unsigned char)(i + 1), MIB));
        CHECK(bytes[0] == i + 1 && bytes[MIB - 1] == i + 1);
        random_fill(plain, MIB);
        OK(cuMemcpyHtoD_v2(first, plain, MIB));
        CHECK(memcmp(plain, memory, MIB) == 0);
        OK(cuMemcpyDtoD_v2(device, first, MIB));
        OK(cuMemcpyDtoD_v2(second, device, MIB));
        OK(cuCtxSynchronize());
        CHECK(memcmp(plain, words + COUNT, MIB) == 0);
        memset(plain, 0, MIB);
        OK(cuMemcpyDtoH_v2(plain, second, MIB));
        CHECK(memcmp(plain, words + COUNT, MIB) == 0);
        OK(cuMemcpy(third, second, 1000));
        CHECK(memcmp(words + 2 * COUNT, plain, 1000) == 0);
    }
    OK(cuMemFreeHost(memory));
    OK(cuMemFree_v2(device));
}

/* Something else lies where the segment should be mapped: two addresses for one memory, and nothing else is lost. */
void case_shared_elsewhere(void) {
    CUfunction fill = kernel(load_kernels(), "fill_u32");
    enum { WORDS = 1 << 20 };
    void *memory, *host = NULL;
    CUdeviceptr device, inside, single;
    unsigned type = 0;
    size_t count = WORDS;
    uint32_t value = 0x55aa1234, *back = malloc(WORDS * 4ull);
    OK(cuMemHostAlloc(&memory, WORDS * 4ull, 0));
    OK(cuMemHostGetDevicePointer_v2(&device, memory, 0));
    uint32_t *words = memory;
    CHECK(device != (CUdeviceptr)(uintptr_t)memory && device - SEGMENT_AT < 1ull << 40);
    OK(cuMemHostGetDevicePointer_v2(&inside, words + 10, 0));
    OK(cuPointerGetAttribute(&single, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, (CUdeviceptr)(uintptr_t)memory));
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 4));
    OK(cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, device + 4));
    CHECK(inside == device + 40 && single == device && type == CU_MEMORYTYPE_HOST && host == words + 1);
    void *params[] = {&device, &value, &count};
    OK(cuLaunchKernel(fill, WORDS / 256, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
    OK(cuCtxSynchronize());
    for (size_t i = 0; i < WORDS; i++) {
        CHECK(words[i] == value);
    }
    random_fill(memory, WORDS * 4ull);
    OK(cuMemcpyDtoH_v2(back, device, WORDS * 4ull));
    CHECK(memcmp(back, memory, WORDS * 4ull) == 0);
    OK(cuMemsetD8_v2(device, 9, 100));
    CHECK(words[24] == 0x09090909 && words[25] == back[25]);
    OK(cuMemFreeHost(memory));
    GIVES(1, cuMemsetD8_v2(device, 9, 100));
    GIVES(1, cuMemFreeHost(memory));
    free(back);
    case_copies();
    case_boxes();
}

/* When the arena is full allocations go on, in memory of this process: slower, never wrong. */
void case_shared_full(void) {
    enum { PIECE = 2 << 20, MOST = 4000 };
    static unsigned char *pieces[MOST];
    size_t count = 0, in_segment = 0;
    void *memory;
    CUdeviceptr device;
    OK(cuMemAlloc_v2(&device, PIECE));
    for (size_t outside = 0; outside < 4; count++) {
        CHECK(count < MOST);
        OK(cuMemHostAlloc(&memory, PIECE - 1, 0));
        pieces[count] = memory;
        outside += !shared(memory);
        in_segment += shared(memory);
        random_fill(memory, 5000);
    }
    CHECK(in_segment >= 2);
    /* So small that it may have a device address there, too: of its mirror. */
    CUfunction fill = kernel(load_kernels(), "fill_u32");
    enum { SMALLS = 1024 }; /* the run of a client that has just ended may come back meanwhile */
    void *small[SMALLS];
    CUdeviceptr twin = 0;
    size_t smalls = 0, words = 1024;
    do {
        CHECK(smalls < SMALLS);
        OK(cuMemHostAlloc(&memory, 4096, 0));
        small[smalls++] = memory;
    } while (shared(memory));
    OK(cuMemHostGetDevicePointer_v2(&twin, memory, 0));
    for (uint32_t value = 1; value < 20; value++) {
        void *params[] = {&twin, &value, &words};
        OK(cuLaunchKernel(fill, 4, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
        OK(cuStreamSynchronize(NULL));
        const uint32_t *seen = memory;
        CHECK(seen[0] == value && seen[1023] == value);
    }
    while (smalls) {
        OK(cuMemFreeHost(small[--smalls]));
    }
    unsigned char *back = malloc(PIECE);
    for (size_t i = 0; i < count; i++) {
        OK(cuMemcpyHtoDAsync_v2(device, pieces[i], PIECE - 1, NULL));
        OK(cuMemcpyDtoHAsync_v2(pieces[count - 1 - i], device, PIECE - 1, NULL));
        OK(cuStreamSynchronize(NULL));
        CHECK(memcmp(pieces[i], pieces[count - 1 - i], PIECE - 1) == 0);
        OK(cuMemcpyDtoH_v2(back, device, PIECE - 1));
        CHECK(memcmp(pieces[i], back, PIECE - 1) == 0);
    }
    for (size_t i = 0; i < count; i++) {
        OK(cuMemFreeHost(pieces[i]));
    }
    for (size_t i = 0; i < in_segment; i++) { /* all of it has come back */
        OK(cuMemHostAlloc(&memory, PIECE - 1, 0));
        pieces[i] = memory;
        CHECK(shared(memory));
    }
    for (size_t i = 0; i < in_segment; i++) {
        OK(cuMemFreeHost(pieces[i]));
    }
    OK(cuMemFree_v2(device));
}

/* Freed while queued work still writes it: nobody else gets those bytes before. */
void case_shared_free(void) {
    CUfunction spin_ns = kernel(load_kernels(), "spin_ns");
    CUstream stream, other;
    CUdeviceptr device;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&device, MIB));
    uint64_t spin = 10000000;
    unsigned proved = 0;
    for (int i = 0; i < 30; i++) {
        void *first, *second;
        size_t size = i % 2 ? MIB : 100;
        OK(cuMemsetD8_v2(device, 7, MIB));
        OK(cuMemHostAlloc(&first, size, 0));
        OK(cuCtxSynchronize());
        run_spin(spin_ns, spin, stream);
        OK(cuMemcpyDtoHAsync_v2(first, device, size, stream));
        OK(cuMemFreeHost(first));
        OK(cuMemHostAlloc(&second, size, 0));
        /* On a busy machine the stream may be done by now, and then the same place is right. */
        bool busy = cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
        CHECK(shared(second) && (!busy || second != first));
        proved += busy;
        spin = busy || spin > 1000000000 ? spin : 2 * spin;
        memset(second, i, size);
        OK(cuMemcpyHtoDAsync_v2(device, second, size, other));
        OK(cuCtxSynchronize());
        const unsigned char *bytes = second;
        for (size_t k = 0; k < size; k++) {
            CHECK(bytes[k] == i);
        }
        OK(cuMemFreeHost(second));
    }
    CHECK(proved > 0);
}

/* Copies with pinned memory are part of a graph, which reads and writes it again at each launch. */
void case_shared_captured(void) {
    enum { SIZE = 300000 };
    void *memory, *result;
    CUdeviceptr device, other;
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    OK(cuMemHostAlloc(&memory, SIZE, 0));
    OK(cuMemHostAlloc(&result, SIZE, 0));
    OK(cuMemAlloc_v2(&device, SIZE));
    OK(cuMemAlloc_v2(&other, SIZE));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuCtxSynchronize());
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuMemcpyHtoDAsync_v2(device, memory, SIZE, stream));
    OK(cuMemcpyDtoDAsync_v2(other, device, SIZE, stream));
    OK(cuMemcpyDtoHAsync_v2(result, other, SIZE, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int i = 0; i < 5; i++) {
        random_fill(memory, SIZE);
        memset(result, 0, SIZE);
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(memory, result, SIZE) == 0);
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuMemFreeHost(memory));
    OK(cuMemFreeHost(result));
}

/* A worker that is gone takes no memory away from the program: it still reads and writes what it has pinned. */
void case_shared_outlives(void) {
    void *memory;
    CUdeviceptr device;
    OK(cuMemHostAlloc(&memory, 5 * MIB, 0));
    OK(cuMemAlloc_v2(&device, 5 * MIB));
    CHECK(shared(memory));
    unsigned char *bytes = memory, *wanted = malloc(5 * MIB);
    random_fill(wanted, 5 * MIB);
    OK(cuMemcpyHtoD_v2(device, wanted, 5 * MIB));
    OK(cuMemcpyDtoH_v2(memory, device, 5 * MIB));
    puts("holding");
    fflush(stdout);
    CHECK(getchar() != EOF);
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < 1000 && result == CUDA_SUCCESS; i++) {
        result = cuStreamSynchronize(NULL);
        usleep(10000);
    }
    CHECK(result != CUDA_SUCCESS);
    CHECK(cuMemcpyHtoD_v2(device, memory, 5 * MIB) == result);
    CHECK(memcmp(memory, wanted, 5 * MIB) == 0);
    for (size_t i = 0; i < 5 * MIB; i++) {
        bytes[i] ^= 0xff;
    }
    for (size_t i = 0; i < 5 * MIB; i++) {
        CHECK(bytes[i] == (wanted[i] ^ 0xff));
    }
    CHECK(cuMemHostAlloc(&memory, MIB, 0) != CUDA_SUCCESS);
}

static void *churn(void *context) {
    enum { LIVE = 12 };
    struct {
        unsigned char *memory;
        size_t size;
        unsigned char value;
    } live[LIVE] = {0};
    CUdeviceptr device;
    CUstream stream;
    uint64_t state = (uint64_t)(uintptr_t)&live ^ (uint64_t)getpid() * 0x9e3779b97f4a7c15ull;
    OK(cuCtxSetCurrent(context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&device, MIB));
    for (int step = 0; step < 400; step++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        size_t i = (size_t)(state >> 33) % LIVE;
        void *memory;
        if (live[i].memory) {
            for (size_t k = 0; k < live[i].size; k += 997) {
                CHECK(live[i].memory[k] == live[i].value);
            }
            CHECK(live[i].memory[live[i].size - 1] == live[i].value);
            OK(cuMemFreeHost(live[i].memory));
            live[i].memory = NULL;
            continue;
        }
        live[i].size = (size_t)(state >> 20) % (step % 3 ? 50000 : MIB) + 1;
        live[i].value = (unsigned char)(state >> 50);
        OK(cuMemHostAlloc(&memory, live[i].size, 0));
        live[i].memory = memory;
        OK(cuMemsetD8Async(device, live[i].value, live[i].size, stream));
        OK(cuMemcpyDtoHAsync_v2(memory, device, live[i].size, stream));
        if (step % 4 == 0) {
            OK(cuStreamSynchronize(stream));
        } else {
            while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
            }
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        if (live[i].memory) {
            OK(cuMemFreeHost(live[i].memory));
        }
    }
    OK(cuMemFree_v2(device));
    return NULL;
}

/* Many allocations by several threads, and by as many processes as run this at once: every byte stays whose it is. */
void case_shared_churn(void) {
    pthread_t threads[3];
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_create(&threads[i], NULL, churn, context) == 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* ---- failures while others read ---- */

static _Atomic bool asking;

static void *ask_run(void *context) {
    size_t unused, total;
    OK(cuCtxSetCurrent(context));
    while (asking) {
        OK(cuMemGetInfo_v2(&unused, &total));
    }
    return NULL;
}

/* On a worker whose cuMemsetD16Async fails: the wait says so, also when another thread has just read the notice of it. */
void case_shared_failures(void) {
    enum { ROUNDS = 1500 };
    pthread_t thread;
    CUcontext context;
    CUdeviceptr memory;
    CUstream stream;
    OK(cuCtxGetCurrent(&context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, 4096));
    asking = true;
    CHECK(pthread_create(&thread, NULL, ask_run, context) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        OK(cuMemsetD16Async(memory, 3, 64, stream));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamSynchronize(stream));
        OK(cuStreamSynchronize(stream));
    }
    asking = false;
    pthread_join(thread, NULL);
}

/* ---- waiting costs nothing ---- */

static double cpu_seconds(void) {
    struct rusage used;
    CHECK(getrusage(RUSAGE_SELF, &used) == 0);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* A copy of several chunks that has to wait for a kernel of two seconds. */
void case_shared_patience(void) {
    size_t size = 4 * MIB;
    CUdeviceptr memory;
    CUfunction slow = kernel(load_kernels(), "spin_ns");
    unsigned char *data = malloc(size);
    CHECK(data);
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuMemsetD8_v2(memory, 7, size));
    OK(cuMemcpyDtoH_v2(data, memory, size));
    double before = cpu_seconds();
    run_spin(slow, 2000000000, NULL);
    data[0] = 0;
    OK(cuMemcpyDtoH_v2(data, memory, size));
    CHECK(data[0] == 7);
    CHECK(cpu_seconds() - before < 0.2);
    free(data);
}
