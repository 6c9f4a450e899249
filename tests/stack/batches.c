/*
 * Batches of copies: memory of all kinds in one call, when sources may change, and what is refused with which entry to blame.
 *
 * One check for each word that the role is given. Within a batch nothing depends on another copy of it.
 */
#include "stack.h"

enum { COPIES = 7, SMALL = 5000, LARGE = 200000, STEP = 1 << 18 };

static unsigned char *pinned, *registered, *plain;
static CUdeviceptr device;
static CUstream stream;
static CUmodule module;

static uint64_t number(const void *at) { return (uint64_t)(uintptr_t)at; }

static void make_all(void) {
    start();
    module = load_kernels();
    OK(cuMemAlloc_v2(&device, COPIES * STEP * 2));
    OK(cuMemHostAlloc((void **)&pinned, COPIES * STEP, 0));
    registered = aligned_alloc(4096, COPIES * STEP);
    plain = malloc(COPIES * STEP);
    CHECK(registered && plain);
    memset(registered, 0, COPIES * STEP);
    OK(cuMemHostRegister_v2(registered, COPIES * STEP, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
}

static void busy(void) {
    uint64_t ns = 5000000;
    void *params[] = {&ns};
    OK(cuLaunchKernel(kernel(module, "spin_ns"), 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

static bool all(const unsigned char *at, size_t size, unsigned char value) {
    return at[0] == value && memcmp(at, at + 1, size - 1) == 0;
}

static CUmemcpyAttributes order(CUmemcpySrcAccessOrder how) {
    return (CUmemcpyAttributes){.srcAccessOrder = how, .flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE};
}

static CUresult copy(int version, CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                     CUmemcpyAttributes *attributes, size_t *places, size_t kinds, size_t *failed) {
    return version == 1 ? cuMemcpyBatchAsync(to, from, sizes, count, attributes, places, kinds, failed, stream)
                        : cuMemcpyBatchAsync_v2(to, from, sizes, count, attributes, places, kinds, stream);
}

/* Up, down, across and between host memory, behind a memset and before an event. */
static void all_ways(void) {
    static unsigned char heap[2][LARGE];
    make_all();
    for (unsigned round = 0; round < 8; round++) {
        const int version = (round & 1) + 1;
        const size_t size = round & 2 ? LARGE : SMALL;
        CUmemcpyAttributes attributes[] = {order(CU_MEMCPY_SRC_ACCESS_ORDER_STREAM),
                                           order(CU_MEMCPY_SRC_ACCESS_ORDER_ANY)};
        size_t places[] = {0, 3}, sizes[COPIES], failed = 77;
        CUdeviceptr source = device + COPIES * STEP;
        CUdeviceptr to[COPIES] = {device,
                                  device + STEP,
                                  device + 2 * STEP,
                                  number(pinned + 3 * STEP),
                                  number(registered + 3 * STEP),
                                  number(heap[1]),
                                  number(pinned + 4 * STEP)};
        CUdeviceptr from[COPIES] = {source,        number(pinned), number(heap[0]),   source + STEP,
                                    source + STEP, source,         number(registered)};
        CUevent event;
        for (int i = 0; i < COPIES; i++) {
            sizes[i] = size - (size_t)i;
        }
        memset(pinned, (int)(round + 1), STEP);
        memset(registered, (int)(round + 2), STEP);
        memset(heap[0], (int)(round + 3), LARGE);
        busy();
        OK(cuMemsetD8Async(source, (unsigned char)(round + 4), STEP, stream));
        OK(cuMemsetD8Async(source + STEP, (unsigned char)(round + 5), STEP, stream));
        OK(copy(version, to, from, sizes, COPIES, attributes, places, 2, &failed));
        memset(heap[0], 0, LARGE); /* pageable memory was read */
        OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        OK(cuEventRecord(event, stream));
        if (round & 4) {
            OK(cuEventSynchronize(event));
        } else {
            while (cuEventQuery(event) == CUDA_ERROR_NOT_READY) {
            }
        }
        CHECK(all(pinned + 3 * STEP, sizes[3], (unsigned char)(round + 5)));
        CHECK(all(registered + 3 * STEP, sizes[4], (unsigned char)(round + 5)));
        CHECK(all(heap[1], sizes[5], (unsigned char)(round + 4)));
        CHECK(all(pinned + 4 * STEP, sizes[6], (unsigned char)(round + 2)));
        const unsigned char expected[3] = {(unsigned char)(round + 4), (unsigned char)(round + 1),
                                           (unsigned char)(round + 3)};
        for (size_t i = 0; i < 3; i++) {
            OK(cuMemcpyDtoH_v2(plain, device + i * STEP, sizes[i]));
            CHECK(all(plain, sizes[i], expected[i]));
        }
        OK(cuEventDestroy_v2(event));
    }
}

/* A source that is read during the call may change after it, whatever it is. */
static void sources_that_change(void) {
    make_all();
    for (unsigned round = 0; round < 4; round++) {
        const size_t size = round & 1 ? LARGE : SMALL;
        CUmemcpyAttributes attribute = order(CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL);
        CUdeviceptr to[] = {device, device + STEP, device + 2 * STEP, device + 3 * STEP};
        CUdeviceptr from[] = {number(pinned), number(registered), number(plain), device + 5 * STEP};
        size_t place = 0, sizes[] = {size, size, size, size};
        memset(pinned, 1, size);
        memset(registered, 2, size);
        memset(plain, 3, size);
        OK(cuMemsetD8_v2(device + 5 * STEP, 4, size));
        OK(cuCtxSynchronize());
        OK(copy(2, to, from, sizes, 4, &attribute, &place, 1, NULL));
        memset(pinned, 0xee, size);
        memset(registered, 0xee, size);
        memset(plain, 0xee, size);
        OK(cuMemsetD8_v2(device + 5 * STEP, 0xee, size));
        OK(cuCtxSynchronize());
        for (unsigned i = 0; i < 4; i++) {
            OK(cuMemcpyDtoH_v2(plain, to[i], size));
            CHECK(all(plain, size, (unsigned char)(i + 1)));
        }
    }
}

static void refusals(void) {
    make_all();
    CUmemcpyAttributes good[3] = {order(CU_MEMCPY_SRC_ACCESS_ORDER_STREAM), order(CU_MEMCPY_SRC_ACCESS_ORDER_ANY),
                                  order(CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL)};
    CUmemcpyAttributes invalid = order(CU_MEMCPY_SRC_ACCESS_ORDER_INVALID), unknown = order((CUmemcpySrcAccessOrder)4);
    CUdeviceptr to[3] = {device, device + STEP, device + 2 * STEP},
                from[3] = {number(pinned), number(pinned), number(pinned)};
    size_t sizes[3] = {16, 16, 16}, places[3] = {0, 1, 2}, late[3] = {1, 2, 3}, same[3] = {0, 1, 1},
           past[3] = {0, 1, 3};
    size_t failed = 77;
#define REFUSED(who, ...)                                                                                              \
    failed = 77;                                                                                                       \
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(1, __VA_ARGS__, &failed));                                                    \
    CHECK(failed == (who));                                                                                            \
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(2, __VA_ARGS__, NULL))
    REFUSED(SIZE_MAX, NULL, from, sizes, 3, good, places, 3);
    REFUSED(SIZE_MAX, to, NULL, sizes, 3, good, places, 3);
    REFUSED(SIZE_MAX, to, from, NULL, 3, good, places, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, NULL, places, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, good, NULL, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, good, places, 0);
    REFUSED(SIZE_MAX, to, from, sizes, 2, good, places, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 0, good, places, 1);
    REFUSED(SIZE_MAX, to, from, sizes, 3, good, late, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, good, same, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, good, past, 3);
    REFUSED(SIZE_MAX, to, from, sizes, 3, &invalid, places, 1);
    REFUSED(SIZE_MAX, to, from, sizes, 3, &unknown, places, 1);
    sizes[2] = 0;
    REFUSED(2, to, from, sizes, 3, good, places, 3);
    sizes[2] = 16;
    from[1] = 0;
    REFUSED(1, to, from, sizes, 3, good, places, 3);
    from[1] = number(pinned);
    to[2] = 0;
    REFUSED(2, to, from, sizes, 3, good, places, 3);
    to[2] = device + 2 * STEP * COPIES - 8; /* past the end of it */
    REFUSED(2, to, from, sizes, 3, good, places, 3);
    to[2] = device;
    failed = 77;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyBatchAsync(to, from, sizes, 3, good, places, 3, &failed, NULL));
    CHECK(failed == 77); /* that comes first, and before an output is set */
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyBatchAsync(to, from, sizes, 3, good, places, 3, &failed, CU_STREAM_LEGACY));
    CHECK(failed == SIZE_MAX);
    OK(cuMemcpyBatchAsync(to, from, sizes, 3, good, places, 3, NULL, CU_STREAM_PER_THREAD));
    OK(cuMemcpyBatchAsync_v2(to, from, sizes, 3, good, places, 1, CU_STREAM_PER_THREAD));
    OK(cuCtxSynchronize());
}

/* Drivers before 13.1 take no batch into a capture, which goes on all the same. */
static void captures(void) {
    CUgraph graph;
    CUmemcpyAttributes attribute = order(CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
    size_t size = 16, place = 0, count = 0;
    CUdeviceptr from;
    make_all();
    from = device + STEP;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemsetD8Async(device, 1, 16, stream));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, copy(2, &device, &from, &size, 1, &attribute, &place, 1, NULL));
    OK(cuMemsetD8Async(device, 2, 16, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphGetNodes(graph, NULL, &count));
    CHECK(count == 2);
    OK(cuGraphDestroy(graph));
}

static const struct check checks[] = {{"all-ways", all_ways},
                                      {"sources-that-change", sources_that_change},
                                      {"refusals", refusals},
                                      {"captures", captures}};

int role_batches(int count, char **words) { return run_check(checks, sizeof checks / sizeof *checks, count, words); }
