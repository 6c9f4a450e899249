// Checks of device resources and green contexts. For the simulated GPU itself and, remote, through the whole stack.
//
// Errors and numbers are those of driver 580.159 on an H200, whose 132 multiprocessors are given out by eights; what nobody
// has asked it stands in docs/assumed.md. Every check ends what it makes. The first one is to run before any context is made.
#ifndef GREEN_CHECKS_H
#define GREEN_CHECKS_H

#include "simgpu_check.h"

#include <pthread.h>

enum { GREEN_SMS = 132, GREEN_STEP = 8, GREEN_WORDS = 4096 };
#define SM CU_DEV_RESOURCE_TYPE_SM

static inline void green_split(void) {
    CUdevResource whole, groups[20], rest, bad, again;
    unsigned n = 77;
    for (int type = 0; type < 6; type++)
        GIVES(type == SM ? 0 : 914, cuDeviceGetDevResource(0, &whole, (CUdevResourceType)type));
    GIVES(1, cuDeviceGetDevResource(0, NULL, SM));
    GIVES(101, cuDeviceGetDevResource(9, &whole, SM));
    OK(cuDeviceGetDevResource(0, &whole, SM));
    CHECK(whole.type == SM && whole.sm.smCount == GREEN_SMS);
    CHECK(whole.sm.minSmPartitionSize == GREEN_STEP && whole.sm.smCoscheduledAlignment == GREEN_STEP);

    OK(cuDevSmResourceSplitByCount(NULL, &n, &whole, NULL, 0, 16));
    CHECK(n == 8);
    n = 2;
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 16));
    CHECK(n == 2 && groups[0].type == SM && groups[0].sm.smCount == 16 && groups[1].sm.smCount == 16);
    CHECK(groups[0].sm.minSmPartitionSize == 0 && groups[0].sm.smCoscheduledAlignment == 0);
    CHECK(rest.type == SM && rest.sm.smCount == 100);
    n = 1;
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 7));
    CHECK(n == 1 && groups[0].sm.smCount == 8 && rest.sm.smCount == 124);
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, NULL, 0, 0));
    GIVES(915, cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 1000));
    CHECK(n == 1);
    n = 20;
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 16));
    CHECK(n == 8 && rest.sm.smCount == 4);
    n = 20;
    OK(cuDevSmResourceSplitByCount(NULL, &n, &whole, NULL, 0, 8));
    CHECK(n == 15);
    OK(cuDevSmResourceSplitByCount(NULL, &n, &whole, NULL, CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING, 8));
    CHECK(n == 16);
    for (unsigned flags = 1; flags <= 8; flags *= 2) {
        n = 1;
        OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, flags, 8));
        CHECK(n == 1 && groups[0].sm.smCount == 8);
    }
    for (unsigned flags = 0; flags < 3; flags++) { // without clusters the steps are finer
        n = 1;
        OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, flags, 33));
        CHECK(groups[0].sm.smCount == (flags == 1 ? 34 : 40) && rest.sm.smCount == GREEN_SMS - groups[0].sm.smCount);
    }
    GIVES(1, cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 3, 8));
    n = 0;
    GIVES(1, cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 8));
    CHECK(n == 0);
    n = 1;
    GIVES(1, cuDevSmResourceSplitByCount(groups, &n, NULL, &rest, 0, 8));
    GIVES(1, cuDevSmResourceSplitByCount(groups, NULL, &whole, &rest, 0, 8));
    // What the driver did not make.
    memset(&bad, 0, sizeof bad);
    GIVES(914, cuDevSmResourceSplitByCount(groups, &n, &bad, &rest, 0, 8));
    bad = whole;
    memset(bad._internal_padding, 0, sizeof bad._internal_padding);
    GIVES(915, cuDevSmResourceSplitByCount(groups, &n, &bad, &rest, 0, 8));
    // A part is not split again, nor what is left.
    n = 2;
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, &rest, 0, 16));
    n = 1;
    GIVES(915, cuDevSmResourceSplitByCount(&again, &n, &groups[0], NULL, 0, 8));
    GIVES(915, cuDevSmResourceSplitByCount(&again, &n, &rest, NULL, 0, 8));
    CHECK(n == 1);
}

static inline CUdevResourceDesc green_desc(unsigned count, unsigned many) {
    CUdevResource whole, groups[8];
    CUdevResourceDesc desc;
    OK(cuDeviceGetDevResource(0, &whole, SM));
    OK(cuDevSmResourceSplitByCount(groups, &many, &whole, NULL, 0, count));
    OK(cuDevResourceGenerateDesc(&desc, groups, many));
    return desc;
}

static inline CUgreenCtx green_make(unsigned count) {
    CUgreenCtx green;
    OK(cuGreenCtxCreate(&green, green_desc(count, 1), 0, CU_GREEN_CTX_DEFAULT_STREAM));
    return green;
}

static inline void green_descriptions(void) {
    CUdevResource whole, groups[2], bad;
    CUdevResourceDesc desc;
    unsigned n = 2;
    OK(cuDeviceGetDevResource(0, &whole, SM));
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, NULL, 0, 16));
    GIVES(1, cuDevResourceGenerateDesc(&desc, NULL, 1));
    GIVES(1, cuDevResourceGenerateDesc(NULL, groups, 1));
    memset(&bad, 0, sizeof bad);
    GIVES(914, cuDevResourceGenerateDesc(&desc, &bad, 1));
    bad.type = SM;
    GIVES(915, cuDevResourceGenerateDesc(&desc, &bad, 1));
    OK(cuDevResourceGenerateDesc(&desc, groups, 2));
    OK(cuDevResourceGenerateDesc(&desc, &whole, 1));
}

// What a green context has can be split, though its part could not; cooperative grids and questions know its size.
static inline void green_inside(void) {
    CUgreenCtx green = green_make(64), small;
    CUdevResource mine, part, rest;
    CUdevResourceDesc desc;
    CUexecAffinityParam affinity;
    CUcontext context;
    unsigned n = 1;
    OK(cuGreenCtxGetDevResource(green, &mine, SM));
    CHECK(mine.sm.smCount == 64);
    OK(cuDevSmResourceSplitByCount(&part, &n, &mine, &rest, 0, 8));
    CHECK(n == 1 && part.sm.smCount == 8 && rest.sm.smCount == 56);
    GIVES(915, cuDevSmResourceSplitByCount(&part, &n, &mine, &rest, 0, 72));
    OK(cuDevResourceGenerateDesc(&desc, &part, 1));
    OK(cuGreenCtxCreate(&small, desc, 0, CU_GREEN_CTX_DEFAULT_STREAM));
    OK(cuGreenCtxGetDevResource(small, &part, SM));
    CHECK(part.sm.smCount == 8);
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuCtxPushCurrent_v2(context));
    GIVES(201, cuCtxGetExecAffinity(&affinity, CU_EXEC_AFFINITY_TYPE_SM_COUNT));
    OK(cuCtxPopCurrent_v2(&context));
    OK(cuGreenCtxDestroy(small));
    OK(cuGreenCtxDestroy(green));
}

// The primary context is active for as long as there is a green one.
static inline void green_primary(void) {
    CUgreenCtx green = NULL, second = NULL;
    CUdevResourceDesc desc = green_desc(16, 1);
    unsigned flags = 7;
    int active = 7;
    unsigned long long id = 0, other = 0;
    CUcontext context, again, current = (CUcontext)(void *)&id;
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
    GIVES(1, cuGreenCtxCreate(&green, desc, 0, 0));
    GIVES(1, cuGreenCtxCreate(NULL, desc, 0, 1));
    GIVES(101, cuGreenCtxCreate(&green, desc, 9, 1));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active && !green);
    OK(cuGreenCtxCreate(&green, desc, 0, 1));
    OK(cuGreenCtxCreate(&second, desc, 0, 1));
    CHECK(green && second && green != second);
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(active);
    OK(cuCtxGetCurrent(&current));
    CHECK(!current);
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuCtxFromGreenCtx(&again, green));
    CHECK(context == again && (void *)context != (void *)green);
    GIVES(201, cuCtxFromGreenCtx(&again, NULL));
    GIVES(1, cuCtxFromGreenCtx(NULL, green));
    OK(cuGreenCtxGetId(green, &id));
    OK(cuCtxGetId(context, &other));
    CHECK(id == other && id);
    GIVES(201, cuGreenCtxGetId(NULL, &other));
    GIVES(1, cuGreenCtxGetId(green, NULL));
    OK(cuGreenCtxGetId(second, &other));
    CHECK(other != id);
    GIVES(201, cuGreenCtxDestroy(NULL));
    OK(cuGreenCtxDestroy(green));
    GIVES(709, cuGreenCtxDestroy(green));
    GIVES(709, cuCtxFromGreenCtx(&again, green));
    GIVES(709, cuGreenCtxGetId(green, &id));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(active);
    OK(cuGreenCtxDestroy(second));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
}

static inline void green_nothing(void *data) { (void)data; }

// What one has, and its streams.
static inline void green_streams(CUcontext primary) {
    CUgreenCtx green = green_make(16), told = NULL;
    CUcontext context, whose;
    CUdevResource has;
    CUstream stream, plain, legacy;
    CUevent event;
    unsigned flags;
    CUdevice device = 9;
    size_t limit;
    OK(cuCtxFromGreenCtx(&context, green));
    GIVES(1, cuGreenCtxStreamCreate(&stream, green, 0, 0));
    GIVES(201, cuGreenCtxStreamCreate(&stream, NULL, 1, 0));
    GIVES(1, cuGreenCtxStreamCreate(NULL, green, 1, 0));
    OK(cuGreenCtxStreamCreate(&plain, green, 1, 100));
    OK(cuStreamDestroy_v2(plain));
    OK(cuGreenCtxStreamCreate(&stream, green, 1, 0));
    OK(cuStreamGetGreenCtx(stream, &told));
    CHECK(told == green);
    GIVES(1, cuStreamGetGreenCtx(stream, NULL));
    OK(cuStreamGetCtx(stream, &whose));
    CHECK(whose == context);
    told = NULL;
    OK(cuStreamGetCtx_v2(stream, &whose, &told));
    CHECK(whose == primary && told == green);
    OK(cuStreamGetGreenCtx(NULL, &told)); // of the primary context, which is current
    CHECK(!told);
    OK(cuGreenCtxGetDevResource(green, &has, SM));
    CHECK(has.type == SM && has.sm.smCount == 16 && has.sm.minSmPartitionSize == GREEN_STEP);
    GIVES(914, cuGreenCtxGetDevResource(green, &has, CU_DEV_RESOURCE_TYPE_INVALID));
    GIVES(1, cuGreenCtxGetDevResource(green, NULL, SM));
    GIVES(201, cuGreenCtxGetDevResource(NULL, &has, SM));
    OK(cuCtxGetDevResource(context, &has, SM));
    CHECK(has.sm.smCount == 16);
    OK(cuCtxGetDevResource(primary, &has, SM));
    CHECK(has.sm.smCount == GREEN_SMS);

    OK(cuCtxSetCurrent(context));
    GIVES(201, cuCtxGetDevResource(NULL, &has, SM));
    OK(cuCtxGetCurrent(&whose));
    CHECK(whose == context);
    OK(cuStreamCreate(&legacy, 0));
    OK(cuStreamCreate(&plain, 1));
    OK(cuStreamGetGreenCtx(plain, &told));
    CHECK(told == green);
    OK(cuStreamGetGreenCtx(NULL, &told));
    CHECK(told == green);
    OK(cuCtxGetDevice(&device));
    OK(cuCtxGetFlags(&flags));
    CHECK(device == 0 && flags == CU_CTX_MAP_HOST);
    OK(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE));
    GIVES(201, cuCtxDestroy_v2(context));
    OK(cuCtxSynchronize());
    OK(cuCtxPushCurrent_v2(primary));
    OK(cuCtxSynchronize_v2(context));
    OK(cuCtxPopCurrent_v2(&whose));
    CHECK(whose == primary);
    OK(cuEventCreate(&event, 0));
    OK(cuEventRecord(event, stream));
    OK(cuEventSynchronize(event));
    OK(cuStreamDestroy_v2(legacy));

    // Afterwards its streams, and whoever is in it, are told that it is gone; events and memory are the primary context's.
    OK(cuGreenCtxDestroy(green));
    GIVES(709, cuCtxSynchronize());
    OK(cuCtxSetCurrent(primary));
    GIVES(709, cuStreamQuery(stream));
    GIVES(709, cuStreamSynchronize(stream));
    GIVES(709, cuStreamGetGreenCtx(stream, &told));
    GIVES(709, cuEventRecord(event, stream));
    GIVES(709, cuStreamWaitEvent(stream, event, 0));
    GIVES(709, cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(709, cuLaunchHostFunc(stream, green_nothing, NULL));
    GIVES(709, cuStreamDestroy_v2(stream));
    GIVES(709, cuStreamDestroy_v2(plain));
    OK(cuCtxSetCurrent(context)); // a name is enough
    GIVES(709, cuCtxSynchronize());
    OK(cuCtxSetCurrent(primary));
    OK(cuEventQuery(event));
    OK(cuEventRecord(event, NULL));
    OK(cuEventDestroy_v2(event));
}

static inline void green_expect(CUdeviceptr words, unsigned value) {
    unsigned found[GREEN_WORDS];
    OK(cuMemcpyDtoH_v2(found, words, sizeof found));
    for (unsigned i = 0; i < GREEN_WORDS; i++)
        CHECK(found[i] == value);
}

// Memory, modules, libraries and graphs of one side on the other, with streams of both.
static inline void green_work(CUcontext primary) {
    CUgreenCtx green = green_make(8);
    CUcontext context, whose;
    CUstream own, mine;
    CUdeviceptr before, inside, pooled;
    CUmodule outer = load_kernels(), inner;
    CUlibrary library;
    CUkernel fill_any;
    CUfunction here;
    CUgraph graph;
    CUgraphExec exec;
    unsigned *pinned, value = 5;
    size_t n = GREEN_WORDS;
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuMemAlloc_v2(&before, GREEN_WORDS * 4));
    OK(cuStreamCreate(&mine, CU_STREAM_NON_BLOCKING));
    OK(cuGreenCtxStreamCreate(&own, green, CU_STREAM_NON_BLOCKING, 0));
    OK(cuMemsetD32Async(before, 3, GREEN_WORDS, own)); // with the primary one current
    OK(cuStreamSynchronize(own));
    green_expect(before, 3);
    OK(fill(outer, before, 4, GREEN_WORDS, own));
    OK(cuStreamSynchronize(own));
    green_expect(before, 4);

    OK(cuCtxSetCurrent(context));
    inner = load_kernels();
    OK(cuMemAlloc_v2(&inside, GREEN_WORDS * 4));
    OK(cuMemAllocAsync(&pooled, GREEN_WORDS * 4, own));
    OK(cuMemHostAlloc((void **)&pinned, GREEN_WORDS * 4, 0));
    OK(cuPointerGetAttribute(&whose, CU_POINTER_ATTRIBUTE_CONTEXT, inside));
    CHECK(whose == primary);
    OK(fill(outer, inside, 6, GREEN_WORDS, own));
    OK(fill(inner, pooled, 7, GREEN_WORDS, own));
    OK(cuMemcpyDtoHAsync_v2(pinned, pooled, GREEN_WORDS * 4, own));
    OK(cuMemFreeAsync(pooled, own));
    OK(fill(inner, before, 8, GREEN_WORDS, NULL));
    OK(cuCtxSynchronize());
    CHECK(pinned[0] == 7 && pinned[GREEN_WORDS - 1] == 7);
    green_expect(inside, 6);
    green_expect(before, 8);
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&fill_any, library, "fill_u32"));
    void *params[] = {&inside, &value, &n};
    OK(cuLaunchKernel((CUfunction)fill_any, 16, 1, 1, 256, 1, 1, 0, own, params, NULL));
    OK(cuStreamSynchronize(own));
    green_expect(inside, 5);
    value = 9;
    OK(cuKernelGetFunction(&here, fill_any));
    OK(cuLaunchKernel(here, 16, 1, 1, 256, 1, 1, 0, own, params, NULL));
    OK(cuStreamSynchronize(own));
    green_expect(inside, 9);

    OK(cuStreamBeginCapture_v2(own, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(fill(inner, before, 10, GREEN_WORDS, own));
    OK(cuMemcpyDtoDAsync_v2(inside, before, GREEN_WORDS * 4, own));
    OK(cuStreamEndCapture(own, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, own));
    OK(cuStreamSynchronize(own));
    green_expect(inside, 10);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuMemFreeHost(pinned));
    OK(cuStreamDestroy_v2(own));
    OK(cuCtxSetCurrent(primary));

    // What was made inside is there when the green context is gone, with work under way at its end.
    OK(cuGreenCtxStreamCreate(&own, green, CU_STREAM_NON_BLOCKING, 0));
    OK(spin(outer, 20000000, own));
    OK(fill(outer, inside, 11, GREEN_WORDS, own));
    OK(cuGreenCtxDestroy(green));
    OK(fill(inner, before, 12, GREEN_WORDS, mine));
    OK(cuStreamSynchronize(mine));
    green_expect(before, 12);
    OK(cuMemcpyDtoDAsync_v2(inside, before, GREEN_WORDS * 4, mine));
    OK(cuStreamSynchronize(mine));
    GIVES(709, cuStreamSynchronize(own));
    GIVES(709, fill(outer, inside, 13, GREEN_WORDS, own));
    GIVES(709, cuMemcpyDtoDAsync_v2(inside, before, 64, own));
    green_expect(before, 12);
    OK(cuMemFree_v2(inside));
    OK(cuMemFree_v2(before));
    OK(cuLibraryUnload(library));
    OK(cuModuleUnload(inner));
    OK(cuModuleUnload(outer));
    OK(cuStreamDestroy_v2(mine));
}

// A primary context waits for its green ones.
static inline void green_primary_waits(CUmodule module) {
    CUgreenCtx green = green_make(8);
    CUcontext context;
    CUstream own;
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuGreenCtxStreamCreate(&own, green, CU_STREAM_NON_BLOCKING, 0));
    OK(spin(module, 30000000, own));
    OK(cuCtxSynchronize());
    OK(cuStreamQuery(own));
    OK(cuGreenCtxDestroy(green));
    // One that ends with work under way is waited for, and its end is no error of the wait, whichever is seen first.
    for (int i = 0; i < 60; i++) {
        green = green_make(8);
        OK(cuGreenCtxStreamCreate(&own, green, CU_STREAM_NON_BLOCKING, 0));
        OK(spin(module, 100000, own));
        OK(cuGreenCtxDestroy(green));
        OK(cuCtxSynchronize());
    }
}

// Events of a whole context: all that is in it, all that will be.
static inline void green_events(CUcontext primary, CUmodule module) {
    CUgreenCtx green = green_make(8);
    CUcontext context, created;
    CUstream own, second, mine;
    CUevent event, foreign;
    CUdeviceptr words;
    unsigned *gate, seen = 0;
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&words, GREEN_WORDS * 4));
    OK(cuMemHostAlloc((void **)&gate, 4096, 0));
    *gate = 0;
    OK(cuGreenCtxStreamCreate(&own, green, CU_STREAM_NON_BLOCKING, 0));
    OK(cuGreenCtxStreamCreate(&second, green, CU_STREAM_NON_BLOCKING, 0));
    OK(cuStreamCreate(&mine, CU_STREAM_NON_BLOCKING));
    OK(cuGreenCtxRecordEvent(green, event));
    OK(cuEventSynchronize(event));
    OK(cuGreenCtxWaitEvent(green, event));
    OK(cuCtxRecordEvent(context, event));
    OK(cuCtxWaitEvent(context, event));
    OK(cuCtxRecordEvent(primary, event));
    OK(cuCtxWaitEvent(primary, event));
    GIVES(201, cuGreenCtxRecordEvent(NULL, event));
    GIVES(201, cuGreenCtxWaitEvent(NULL, event));
    GIVES(400, cuGreenCtxRecordEvent(green, NULL));
    GIVES(201, cuCtxRecordEvent(NULL, event));
    GIVES(201, cuCtxWaitEvent(NULL, event));
    GIVES(400, cuCtxRecordEvent(context, NULL));
    GIVES(400, cuCtxWaitEvent(context, NULL));

    // Behind the event stands what was in both streams, and what comes after it in a third one waits.
    OK(cuMemsetD32_v2(words, 0, GREEN_WORDS));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(spin(module, 30000000, own));
    OK(fill(module, words, 21, GREEN_WORDS, own));
    OK(cuGreenCtxRecordEvent(green, event));
    OK(cuStreamWaitEvent(mine, event, 0));
    OK(cuMemcpyDtoHAsync_v2(&seen, words, 4, mine));
    OK(cuStreamSynchronize(mine));
    CHECK(seen == 21);
    OK(cuEventQuery(event));
    OK(spin(module, 30000000, mine));
    OK(fill(module, words, 22, GREEN_WORDS, mine));
    OK(cuEventRecord(event, mine));
    OK(cuGreenCtxWaitEvent(green, event));
    OK(cuMemcpyDtoHAsync_v2(&seen, words, 4, second));
    OK(cuStreamSynchronize(second));
    CHECK(seen == 22);
    // One that is recorded anew while somebody waits for it is waited for as it was.
    OK(spin(module, 5000000, own));
    OK(cuGreenCtxRecordEvent(green, event));
    OK(cuEventSynchronize(event));

    // A context with a stream that captures has no such event, and the capture ends.
    for (int which = 0; which < 4; which++) {
        CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
        CUgraph graph = NULL;
        OK(cuStreamBeginCapture_v2(own, CU_STREAM_CAPTURE_MODE_RELAXED));
        GIVES(900, which == 0   ? cuGreenCtxRecordEvent(green, event)
                   : which == 1 ? cuGreenCtxWaitEvent(green, event)
                   : which == 2 ? cuCtxRecordEvent(context, event)
                                : cuCtxWaitEvent(context, event));
        OK(cuStreamIsCapturing(own, &status));
        CHECK(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        GIVES(901, cuStreamEndCapture(own, &graph));
    }
    OK(cuCtxCreate_v2(&created, 0, 0));
    OK(cuEventCreate(&foreign, 0));
    GIVES(400, cuGreenCtxRecordEvent(green, foreign));
    OK(cuCtxRecordEvent(created, foreign));
    OK(cuEventSynchronize(foreign));
    OK(cuCtxDestroy_v2(created));
    OK(cuCtxSetCurrent(primary));
    OK(cuGreenCtxDestroy(green));
    GIVES(709, cuGreenCtxRecordEvent(green, event));
    GIVES(709, cuGreenCtxWaitEvent(green, event));
    GIVES(709, cuCtxRecordEvent(context, event));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(mine));
    OK(cuMemFreeHost(gate));
    OK(cuMemFree_v2(words));
}

typedef struct {
    CUcontext context;
    CUdeviceptr words;
    CUmodule module;
    unsigned value;
} green_thread_t;

static inline void *green_thread(void *what) {
    green_thread_t *t = what;
    CUstream stream;
    OK(cuCtxSetCurrent(t->context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 20; i++) {
        OK(fill(t->module, t->words, t->value + i, GREEN_WORDS, stream));
        OK(cuStreamSynchronize(stream));
        green_expect(t->words, t->value + i);
    }
    OK(cuStreamDestroy_v2(stream));
    return NULL;
}

// A share for each thread, at once.
static inline void green_threads(CUcontext primary, CUmodule module) {
    CUdevResource whole, groups[4];
    green_thread_t threads[4];
    CUgreenCtx greens[4];
    pthread_t ids[4];
    unsigned n = 4;
    OK(cuDeviceGetDevResource(0, &whole, SM));
    OK(cuDevSmResourceSplitByCount(groups, &n, &whole, NULL, 0, 32));
    CHECK(n == 4);
    for (unsigned i = 0; i < 4; i++) {
        CUdevResourceDesc desc;
        OK(cuDevResourceGenerateDesc(&desc, &groups[i], 1));
        OK(cuGreenCtxCreate(&greens[i], desc, 0, CU_GREEN_CTX_DEFAULT_STREAM));
        threads[i] = (green_thread_t){.module = module, .value = 1000 * i};
        OK(cuCtxFromGreenCtx(&threads[i].context, greens[i]));
        OK(cuMemAlloc_v2(&threads[i].words, GREEN_WORDS * 4));
        CHECK(!pthread_create(&ids[i], NULL, green_thread, &threads[i]));
    }
    for (unsigned i = 0; i < 4; i++) {
        CHECK(!pthread_join(ids[i], NULL));
        OK(cuGreenCtxDestroy(greens[i]));
        OK(cuMemFree_v2(threads[i].words));
    }
    (void)primary;
}

// Made and ended again and again, and asked for the same again and again, without an end.
static inline void green_many(void) {
    CUdevResource whole;
    CUdevResourceDesc desc = green_desc(8, 1);
    for (int i = 0; i < 5000; i++)
        OK(cuDeviceGetDevResource(0, &whole, SM));
    for (int i = 0; i < 100; i++) {
        CUgreenCtx green;
        CUstream stream;
        OK(cuGreenCtxCreate(&green, desc, 0, CU_GREEN_CTX_DEFAULT_STREAM));
        OK(cuGreenCtxStreamCreate(&stream, green, CU_STREAM_NON_BLOCKING, 0));
        OK(cuGreenCtxDestroy(green));
    }
}

// The per-thread stream is none of a green context.
static inline void green_per_thread(CUcontext primary, CUmodule module) {
    const CUstream per_thread = CU_STREAM_PER_THREAD;
    CUgreenCtx green = green_make(8);
    CUcontext context;
    CUdeviceptr words, more;
    CUevent event;
    unsigned flags;
    int priority;
    unsigned long long id;
    OK(cuMemAlloc_v2(&words, 4096));
    OK(cuEventCreate(&event, 0));
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuCtxSetCurrent(context));
    GIVES(400, fill(module, words, 1, 1, per_thread));
    GIVES(400, cuStreamQuery(per_thread));
    GIVES(400, cuStreamSynchronize(per_thread));
    GIVES(400, cuStreamGetFlags(per_thread, &flags));
    GIVES(400, cuStreamGetPriority(per_thread, &priority));
    GIVES(400, cuMemsetD8Async(words, 1, 8, per_thread));
    GIVES(400, cuEventRecord(event, per_thread));
    GIVES(400, cuStreamGetCtx(per_thread, &context));
    GIVES(400, cuStreamGetId(per_thread, &id));
    GIVES(400, cuMemAllocAsync(&more, 64, per_thread));
    OK(fill(module, words, 1, 1, CU_STREAM_LEGACY));
    OK(cuCtxSynchronize());
    OK(cuCtxSetCurrent(primary));
    OK(cuStreamQuery(per_thread));
    OK(cuGreenCtxDestroy(green));
    OK(cuEventDestroy_v2(event));
    OK(cuMemFree_v2(words));
}

// The primary context is not reset while a green one lives.
static inline void green_reset(CUcontext primary) {
    CUgreenCtx green = green_make(8);
    CUcontext context;
    CUdeviceptr words;
    OK(cuCtxFromGreenCtx(&context, green));
    GIVES(800, cuDevicePrimaryCtxReset_v2(0));
    OK(cuCtxFromGreenCtx(&context, green));
    OK(cuGreenCtxDestroy(green));
    GIVES(709, cuGreenCtxDestroy(green));
    OK(cuDevicePrimaryCtxReset_v2(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(context == primary);
    OK(cuCtxSetCurrent(primary));
    OK(cuMemAlloc_v2(&words, 4096));
    OK(cuMemFree_v2(words));
}

static inline void check_green(void) {
    OK(cuInit(0));
    green_split();
    green_descriptions();
    green_primary();
    green_inside();
    CUcontext primary = start();
    CUmodule module = load_kernels();
    green_streams(primary);
    green_work(primary);
    green_primary_waits(module);
    green_events(primary, module);
    green_threads(primary, module);
    green_many();
    green_per_thread(primary, module);
    OK(cuModuleUnload(module));
    green_reset(primary);
}

#endif
