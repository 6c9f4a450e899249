/* Managed memory on the machine's driver and on the remote one: what each side wrote the other reads, and what calls answer.
 *
 * Prints one line for each question, "QUESTION = ANSWER". Nothing here needs concurrent access: the program touches the memory
 * only when the GPU has nothing to do that may use it, as the contract of a device without it asks. Sums of what was read are
 * the answers, so a value that is old anywhere is a line that differs.
 */
#include "cu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(call) cu_must((call), #call)

enum { GLOBAL = 1, HOST = 2, SINGLE = 4, NON_BLOCKING = 1, DEVICE_PLACE = 1, HOST_PLACE = 2 };

static CUfunction fill_u32, iota_u32, saxpy;
static CUstream one, two;

static void *managed(size_t size) {
    CUdeviceptr address = 0;
    MUST(cu.cuMemAllocManaged(&address, size, GLOBAL));
    return (void *)(uintptr_t)address;
}

static CUdeviceptr at(const void *memory) { return (CUdeviceptr)(uintptr_t)memory; }

static void launch(CUfunction f, size_t threads, CUstream stream, void **params) {
    MUST(cu.cuLaunchKernel(f, (unsigned)(threads / 256 + 1), 1, 1, 256, 1, 1, 0, stream, params, NULL));
}

static void run_fill(void *memory, uint32_t value, size_t count, CUstream stream) {
    CUdeviceptr address = at(memory);
    void *params[] = {&address, &value, &count};
    launch(fill_u32, count, stream, params);
}

static void run_iota(void *memory, size_t count, CUstream stream) {
    CUdeviceptr address = at(memory);
    void *params[] = {&address, &count};
    launch(iota_u32, count, stream, params);
}

static void run_saxpy(float a, void *x, void *y, int count, CUstream stream) {
    CUdeviceptr first = at(x), second = at(y);
    void *params[] = {&count, &a, &first, &second};
    launch(saxpy, (size_t)count, stream, params);
}

static uint64_t sum(const uint32_t *words, size_t count) {
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total = total * 31 + words[i];
    }
    return total;
}

static void tell(const char *what, size_t count, const void *words, size_t there) {
    printf("%s, %zu words = %016llx\n", what, count, (unsigned long long)sum(words, there));
}

/* ---- values ---- */

static void back_and_forth(size_t count) {
    uint32_t *words = managed(count * 4);
    tell("fresh", count, words, count);
    for (uint32_t turn = 1; turn < 4; turn++) {
        run_iota(words, count, one);
        MUST(cu.cuStreamSynchronize(one));
        tell("from a kernel", count, words, count);
        float *floats = (float *)(void *)words;
        for (size_t i = 0; i < count; i += turn) {
            floats[i] = (float)(i % 1000 + turn);
        }
        run_fill(words + count / 2, turn, count / 4, two);
        MUST(cu.cuCtxSynchronize());
        tell("from both sides", count, words, count);
        for (size_t i = 0; i < count; i++) {
            floats[i] = (float)(i % 1000);
        }
        run_saxpy(2, floats, floats, (int)count, one);
        floats = NULL;
        MUST(cu.cuStreamSynchronize(one));
        tell("changed by a kernel", count, words, count);
    }
    MUST(cu.cuMemFree_v2(at(words)));
}

static void copies(void) {
    enum { COUNT = 100000, SIZE = COUNT * 4 };
    uint32_t *words = managed(SIZE), *others = managed(SIZE), *host = malloc(SIZE), *pinned;
    CUdeviceptr device;
    void *allocated;
    MUST(cu.cuMemAlloc_v2(&device, SIZE));
    MUST(cu.cuMemAllocHost_v2(&allocated, SIZE));
    pinned = allocated;
    for (uint32_t turn = 1; turn < 4; turn++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            words[i] = i * turn;
        }
        MUST(cu.cuMemcpyHtoD_v2(device, words, SIZE));
        MUST(cu.cuMemcpyDtoH_v2(host, device, SIZE));
        tell("host to device", COUNT, host, COUNT);
        MUST(cu.cuMemcpyDtoH_v2(others, device, SIZE));
        MUST(cu.cuCtxSynchronize());
        tell("device to host", COUNT, others, COUNT);
        others[7] = 1;
        MUST(cu.cuMemcpy(at(words), at(others), SIZE));
        MUST(cu.cuMemcpy(at(host), at(words), SIZE));
        MUST(cu.cuCtxSynchronize());
        tell("anything to anything", COUNT, host, COUNT);
        words[9] = 77;
        MUST(cu.cuMemcpyAsync(device, at(words), SIZE, one));
        MUST(cu.cuMemcpyAsync(at(others), device, SIZE, one));
        MUST(cu.cuMemcpyAsync(at(pinned), at(others), SIZE, one));
        MUST(cu.cuStreamSynchronize(one));
        tell("in a stream", COUNT, others, COUNT);
        tell("in a stream, pinned", COUNT, pinned, COUNT);
        MUST(cu.cuMemsetD32_v2(at(words) + 8, turn, COUNT - 2));
        MUST(cu.cuMemsetD2D8_v2(at(words), 100, 0x22, 50, 100));
        MUST(cu.cuCtxSynchronize());
        tell("memsets", COUNT, words, COUNT);
    }
    printf("copies past the end = %d %d %d\n", cu.cuMemcpyHtoD_v2(device, words, SIZE + 1),
           cu.cuMemcpyDtoH_v2(words + 1, device, SIZE), cu.cuMemsetD8_v2(at(words), 1, SIZE + 1));
    MUST(cu.cuMemFree_v2(at(words)));
    MUST(cu.cuMemFree_v2(at(others)));
    MUST(cu.cuMemFree_v2(device));
    MUST(cu.cuMemFreeHost(pinned));
    free(host);
}

static void add_one(void *user) {
    uint32_t *words = user;
    for (int i = 0; i < 100000; i++) {
        words[i]++;
    }
}

/* Kernels, functions of the program and copies one behind the other. */
static void host_functions(void) {
    uint32_t *words = managed(100000 * 4);
    uint32_t *copy = managed(100000 * 4);
    for (uint32_t turn = 1; turn < 4; turn++) {
        run_fill(words, turn, 100000, one);
        MUST(cu.cuLaunchHostFunc(one, add_one, words));
        MUST(cu.cuMemcpyAsync(at(copy), at(words), 100000 * 4, one));
        MUST(cu.cuLaunchHostFunc(one, add_one, words));
        MUST(cu.cuStreamSynchronize(one));
        tell("behind host functions", 100000, words, 100000);
        tell("between host functions", 100000, copy, 100000);
    }
    MUST(cu.cuMemFree_v2(at(words)));
    MUST(cu.cuMemFree_v2(at(copy)));
}

static void attached(void) {
    CUdeviceptr address;
    MUST(cu.cuMemAllocManaged(&address, 80000, HOST));
    uint32_t *words = (uint32_t *)(uintptr_t)address;
    printf("attach = %d %d %d %d %d %d\n", cu.cuStreamAttachMemAsync(one, address, 100, SINGLE),
           cu.cuStreamAttachMemAsync(one, address + 4, 0, SINGLE), cu.cuStreamAttachMemAsync(one, address, 0, 3),
           cu.cuStreamAttachMemAsync(NULL, address, 0, SINGLE), cu.cuStreamAttachMemAsync(one, address, 0, SINGLE),
           cu.cuStreamAttachMemAsync(one, address, 80000, SINGLE));
    MUST(cu.cuStreamSynchronize(one));
    for (uint32_t turn = 1; turn < 4; turn++) {
        words[5] = turn;
        run_fill(words + 10, turn, 10000, one);
        MUST(cu.cuStreamSynchronize(one));
        tell("attached to a stream", 20000, words, 20000);
    }
    MUST(cu.cuStreamAttachMemAsync(one, address, 0, HOST));
    MUST(cu.cuStreamSynchronize(one));
    words[3] = 9;
    MUST(cu.cuStreamAttachMemAsync(one, address, 0, GLOBAL));
    MUST(cu.cuStreamSynchronize(one));
    run_fill(words, 1, 2, two);
    MUST(cu.cuStreamSynchronize(two));
    tell("attached to all", 20000, words, 20000);
    MUST(cu.cuMemFree_v2(address));
}

/* ---- answers ---- */

static void questions(void) {
    enum { SIZE = 1 << 20 };
    const CUmemLocation gpu = {DEVICE_PLACE, 0}, host = {HOST_PLACE, 0}, nobody = {DEVICE_PLACE, 99}, bad = {9, 0};
    CUdeviceptr p = 0, q, device;
    printf("allocate = %d %d %d %d %d\n", cu.cuMemAllocManaged(NULL, 4096, 1), cu.cuMemAllocManaged(&p, 0, 1),
           cu.cuMemAllocManaged(&p, 4096, 0), cu.cuMemAllocManaged(&p, 4096, 4),
           cu.cuMemAllocManaged(&p, 1ull << 60, 1));
    MUST(cu.cuMemAllocManaged(&p, 5000, GLOBAL));
    MUST(cu.cuMemAllocManaged(&q, SIZE, GLOBAL));
    MUST(cu.cuMemAlloc_v2(&device, SIZE));
    const int asked[] = {2, 6, 8, 9, 12, 13, 16};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        uint64_t value = 0;
        const int result = cu.cuPointerGetAttribute(&value, asked[i], p + 7);
        printf("pointer attribute %d = %d, %llu\n", asked[i], result, (unsigned long long)value);
    }
    for (int which = 3; which <= 4; which++) {
        CUdeviceptr value = 0;
        const int result = cu.cuPointerGetAttribute(&value, which, p + 7);
        printf("pointer attribute %d = %d, %s\n", which, result, value == p + 7 ? "the address" : "another one");
    }
    for (int advice = 0; advice < 8; advice++) {
        printf("advice %d = %d %d %d %d\n", advice, cu.cuMemAdvise_v2(q, SIZE, advice, gpu),
               cu.cuMemAdvise_v2(q, SIZE, advice, host), cu.cuMemAdvise_v2(q, SIZE, advice, nobody),
               cu.cuMemAdvise_v2(device, SIZE, advice, gpu));
    }
    printf("advice = %d %d %d\n", cu.cuMemAdvise_v2(q, SIZE, 1, bad), cu.cuMemAdvise_v2(q, 0, 1, gpu),
           cu.cuMemAdvise_v2(q + 100, 10, 1, gpu));
    MUST(cu.cuMemAdvise_v2(q, SIZE / 2, 3, gpu));
    MUST(cu.cuMemAdvise_v2(q, SIZE, 5, gpu));
    MUST(cu.cuMemAdvise_v2(q, SIZE, 1, gpu));
    MUST(cu.cuMemPrefetchAsync_v2(q, SIZE, gpu, 0, one));
    MUST(cu.cuStreamSynchronize(one));
    for (int which = 1; which <= 8; which++) {
        int values[2] = {77, 77}, half[2] = {77, 77};
        const int result = cu.cuMemRangeGetAttribute(values, which == 3 ? 8 : 4, which, q, SIZE);
        const int other = cu.cuMemRangeGetAttribute(half, which == 3 ? 8 : 4, which, q, SIZE / 2);
        printf("range attribute %d = %d, %d %d; of the first half %d, %d %d\n", which, result, values[0], values[1],
               other, half[0], half[1]);
    }
    printf("prefetch = %d %d %d\n", cu.cuMemPrefetchAsync_v2(q, SIZE, host, 0, one),
           cu.cuMemPrefetchAsync_v2(device, SIZE, gpu, 0, one), cu.cuMemPrefetchAsync_v2(q, SIZE, gpu, 1, one));
    MUST(cu.cuStreamSynchronize(one));
    printf("free = %d %d %d %d %d\n", cu.cuMemFree_v2(p + 1), cu.cuMemFreeHost((void *)(uintptr_t)p),
           cu.cuMemFree_v2(p), cu.cuMemFree_v2(q), cu.cuMemFree_v2(device));
}

int main(void) {
    CUcontext context;
    CUmodule module;
    setvbuf(stdout, NULL, _IOLBF, 0);
    cu_load();
    MUST(cu.cuInit(0));
    MUST(cu.cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cu.cuCtxSetCurrent(context));
    MUST(cu.cuStreamCreate(&one, NON_BLOCKING));
    MUST(cu.cuStreamCreate(&two, 0));
    char *ptx = cu_kernels_ptx();
    MUST(cu.cuModuleLoadData(&module, ptx));
    free(ptx);
    MUST(cu.cuModuleGetFunction(&fill_u32, module, "fill_u32"));
    MUST(cu.cuModuleGetFunction(&iota_u32, module, "iota_u32"));
    MUST(cu.cuModuleGetFunction(&saxpy, module, "saxpy"));
    static const size_t counts[] = {1, 1024, 1025, 16384, 16385, 100000, 1 << 20, 64 << 20};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        back_and_forth(counts[i]);
    }
    copies();
    host_functions();
    attached();
    questions();
    char libraries[8192];
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"\", \"metrics\": {}, \"libraries\": %s}\n", libraries);
    return 0;
}
