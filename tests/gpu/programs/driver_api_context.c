/* Sections about contexts, streams, events, host callbacks and threads.
 *
 * Owns no state beyond what a section makes for itself. section_threads and the callbacks run code on other threads;
 * those only write variables that the main thread reads after joining or synchronising.
 */
#include "driver_api.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define STREAM_LEGACY ((CUstream)(uintptr_t)1)
#define STREAM_PER_THREAD ((CUstream)(uintptr_t)2)

void section_context(void) {
    CUcontext first = NULL, second = NULL, got = NULL, primary = NULL;
    unsigned flags = 99, version = 0;
    unsigned long long id = 0, other = 0;
    int device = -1, low = 0, high = 0, config = -1;
    size_t value = 0;
    char label[48];

    cu_must(cu.cuInit(0), "cuInit");
    ASK("cuCtxCreate", cu.cuCtxCreate_v2(&first, 0, 0));
    ASK("cuCtxGetCurrent", cu.cuCtxGetCurrent(&got));
    VALUE("current is the new one", "%d", got == first);
    ASK("cuCtxCreate of device 9", cu.cuCtxCreate_v2(&second, 0, 9));
    ASK("cuCtxCreate with bad flags", cu.cuCtxCreate_v2(&second, 0x8000, 0));
    ASK("cuCtxCreate second", cu.cuCtxCreate_v2(&second, 4, 0));
    ASK("cuCtxGetDevice", cu.cuCtxGetDevice(&device));
    ASK("cuCtxGetFlags", cu.cuCtxGetFlags(&flags));
    VALUE("cuCtxGetFlags", "%u", flags);
    ASK("cuCtxGetApiVersion", cu.cuCtxGetApiVersion(second, &version));
    VALUE("cuCtxGetApiVersion", "%u", version);
    cu.cuCtxGetId(first, &id);
    cu.cuCtxGetId(second, &other);
    VALUE("ids of two contexts", "%s", id == other ? "the same" : "different");
    ASK("cuCtxPopCurrent", cu.cuCtxPopCurrent_v2(&got));
    VALUE("popped the second", "%d", got == second);
    ASK("cuCtxGetCurrent under it", cu.cuCtxGetCurrent(&got));
    VALUE("the first is under it", "%d", got == first);
    ASK("cuCtxPushCurrent second", cu.cuCtxPushCurrent_v2(second));
    ASK("cuCtxPushCurrent second again", cu.cuCtxPushCurrent_v2(second));
    ASK("cuCtxSetCurrent first", cu.cuCtxSetCurrent(first));
    cu.cuCtxPopCurrent_v2(&got);
    VALUE("set replaced the top", "%d", got == first);
    cu.cuCtxPopCurrent_v2(&got);
    VALUE("under the replaced top", "%d", got == second);
    ASK("cuCtxSetCurrent null", cu.cuCtxSetCurrent(NULL));
    ASK("cuCtxGetCurrent after null", cu.cuCtxGetCurrent(&got));
    VALUE("current after null", "%s", SET(got));
    ASK("cuCtxSetCurrent second", cu.cuCtxSetCurrent(second));
    ASK("cuCtxGetStreamPriorityRange", cu.cuCtxGetStreamPriorityRange(&low, &high));
    VALUE("cuCtxGetStreamPriorityRange", "%d %d", low, high);
    ASK("cuCtxGetCacheConfig", cu.cuCtxGetCacheConfig(&config));
    VALUE("cuCtxGetCacheConfig", "%d", config);
    ASK("cuCtxSetCacheConfig 1", cu.cuCtxSetCacheConfig(1));
    ASK("cuCtxSetCacheConfig 77", cu.cuCtxSetCacheConfig(77));
    for (int limit = -1; limit <= 10; limit++) {
        value = 0;
        snprintf(label, sizeof label, "cuCtxGetLimit %d", limit);
        if (ASK(label, cu.cuCtxGetLimit(&value, limit)) == 0)
            VALUE(label, "%zu", value);
    }
    ASK("cuCtxSetLimit stack 4096", cu.cuCtxSetLimit(0, 4096));
    cu.cuCtxGetLimit(&value, 0);
    VALUE("stack limit then", "%zu", value);
    ASK("cuCtxSetLimit stack huge", cu.cuCtxSetLimit(0, (size_t)1 << 40));
    ASK("cuCtxSetLimit printf 2 MiB", cu.cuCtxSetLimit(1, 2u << 20));
    cu.cuCtxGetLimit(&value, 1);
    VALUE("printf limit then", "%zu", value);
    ASK("cuCtxSetLimit 99", cu.cuCtxSetLimit(99, 1));
    ASK("cuCtxResetPersistingL2Cache", cu.cuCtxResetPersistingL2Cache());
    ASK("cuCtxSynchronize", cu.cuCtxSynchronize());
    ASK("cuCtxDestroy second, current", cu.cuCtxDestroy_v2(second));
    ASK("cuCtxGetCurrent after destroy", cu.cuCtxGetCurrent(&got));
    VALUE("current after destroy", "%s", SET(got));
    ASK("cuDevicePrimaryCtxRetain", cu.cuDevicePrimaryCtxRetain(&primary, 0));
    ASK("cuCtxDestroy of the primary", cu.cuCtxDestroy_v2(primary));
    ASK("cuCtxDestroy first", cu.cuCtxDestroy_v2(first));
}

void section_primary(void) {
    CUcontext one = NULL, two = NULL;
    unsigned flags = 99;
    int active = -1;
    CUdeviceptr address = 0;

    cu_must(cu.cuInit(0), "cuInit");
#define STATE(label)                                                                                                   \
    ASK(label, cu.cuDevicePrimaryCtxGetState(0, &flags, &active));                                                     \
    VALUE(label, "flags %u active %d", flags, active)
    STATE("state before");
    ASK("release before retain", cu.cuDevicePrimaryCtxRelease_v2(0));
    ASK("set flags 4", cu.cuDevicePrimaryCtxSetFlags_v2(0, 4));
    STATE("state with flags");
    ASK("set flags 0x8000", cu.cuDevicePrimaryCtxSetFlags_v2(0, 0x8000));
    ASK("set flags 0", cu.cuDevicePrimaryCtxSetFlags_v2(0, 0));
    ASK("retain", cu.cuDevicePrimaryCtxRetain(&one, 0));
    STATE("state retained");
    ASK("retain again", cu.cuDevicePrimaryCtxRetain(&two, 0));
    VALUE("both are the same", "%d", one == two);
    ASK("set flags while active", cu.cuDevicePrimaryCtxSetFlags_v2(0, 1));
    STATE("state after set flags while active");
    cu.cuCtxSetCurrent(one);
    ASK("alloc", cu.cuMemAlloc_v2(&address, 1 << 20));
    ASK("release", cu.cuDevicePrimaryCtxRelease_v2(0));
    STATE("state after one release");
    ASK("memset after one release", cu.cuMemsetD8_v2(address, 1, 16));
    ASK("release the last", cu.cuDevicePrimaryCtxRelease_v2(0));
    STATE("state after the last release");
    ASK("memset after the last release", cu.cuMemsetD8_v2(address, 1, 16));
    ASK("release once more", cu.cuDevicePrimaryCtxRelease_v2(0));
    ASK("retain anew", cu.cuDevicePrimaryCtxRetain(&two, 0));
    cu.cuCtxSetCurrent(two);
    ASK("alloc anew", cu.cuMemAlloc_v2(&address, 1 << 20));
    ASK("reset", cu.cuDevicePrimaryCtxReset_v2(0));
    STATE("state after reset");
    ASK("memset after reset", cu.cuMemsetD8_v2(address, 1, 16));
    ASK("retain after reset", cu.cuDevicePrimaryCtxRetain(&two, 0));
    cu.cuCtxSetCurrent(two);
    ASK("alloc after reset", cu.cuMemAlloc_v2(&address, 1 << 20));
    ASK("retain of device 9", cu.cuDevicePrimaryCtxRetain(&two, 9));
#undef STATE
}

void section_stream(void) {
    CUcontext context = start_context(), got = NULL;
    CUstream stream = NULL, other = NULL;
    CUstream known[] = {NULL, STREAM_LEGACY, STREAM_PER_THREAD};
    unsigned flags = 99;
    int priority = 99, capturing = 99, device = -1;
    unsigned long long id = 0, next = 0;
    char label[64];

    for (int i = 0; i < 3; i++) {
        snprintf(label, sizeof label, "cuStreamQuery of %d", i);
        ASK(label, cu.cuStreamQuery(known[i]));
        snprintf(label, sizeof label, "cuStreamSynchronize of %d", i);
        ASK(label, cu.cuStreamSynchronize(known[i]));
        snprintf(label, sizeof label, "cuStreamGetFlags of %d", i);
        if (ASK(label, cu.cuStreamGetFlags(known[i], &flags)) == 0)
            VALUE(label, "%u", flags);
        snprintf(label, sizeof label, "cuStreamGetPriority of %d", i);
        if (ASK(label, cu.cuStreamGetPriority(known[i], &priority)) == 0)
            VALUE(label, "%d", priority);
        snprintf(label, sizeof label, "cuStreamIsCapturing of %d", i);
        if (ASK(label, cu.cuStreamIsCapturing(known[i], &capturing)) == 0)
            VALUE(label, "%d", capturing);
        snprintf(label, sizeof label, "cuStreamGetCtx of %d", i);
        if (ASK(label, cu.cuStreamGetCtx(known[i], &got)) == 0)
            VALUE(label, "%s", got == context ? "the primary" : "another");
        snprintf(label, sizeof label, "cuStreamDestroy of %d", i);
        ASK(label, cu.cuStreamDestroy_v2(known[i]));
    }
    ASK("cuStreamCreate flags 0", cu.cuStreamCreate(&stream, 0));
    ASK("cuStreamGetFlags", cu.cuStreamGetFlags(stream, &flags));
    VALUE("cuStreamGetFlags", "%u", flags);
    ASK("cuStreamCreate flags 1", cu.cuStreamCreate(&other, 1));
    ASK("cuStreamGetFlags non-blocking", cu.cuStreamGetFlags(other, &flags));
    VALUE("cuStreamGetFlags non-blocking", "%u", flags);
    ASK("cuStreamGetId", cu.cuStreamGetId(stream, &id));
    ASK("cuStreamGetId of another", cu.cuStreamGetId(other, &next));
    VALUE("the ids", "%s", id == next ? "the same" : "different");
    ASK("cuStreamGetDevice", cu.cuStreamGetDevice(stream, &device));
    VALUE("cuStreamGetDevice", "%d", device);
    ASK("cuStreamQuery", cu.cuStreamQuery(stream));
    ASK("cuStreamSynchronize", cu.cuStreamSynchronize(stream));
    ASK("cuStreamDestroy", cu.cuStreamDestroy_v2(stream));
    ASK("cuStreamDestroy other", cu.cuStreamDestroy_v2(other));
    ASK("cuStreamCreate flags 2", cu.cuStreamCreate(&other, 2));
    ASK("cuStreamCreate flags 0xffff", cu.cuStreamCreate(&other, 0xffff));
    for (int wanted = -9; wanted <= 2; wanted++) {
        snprintf(label, sizeof label, "cuStreamCreateWithPriority %d", wanted);
        if (ASK(label, cu.cuStreamCreateWithPriority(&stream, 1, wanted)) == 0) {
            cu.cuStreamGetPriority(stream, &priority);
            VALUE(label, "%d", priority);
            cu.cuStreamDestroy_v2(stream);
        }
    }
}

void section_event(void) {
    start_context();
    CUevent event = NULL, start = NULL, end = NULL, untimed = NULL;
    CUstream stream = NULL;
    CUmodule module = load_kernels();
    CUfunction spin = kernel(module, "spin_ns");
    uint64_t long_ns = 200000000, short_ns = 20000000;
    void *long_arguments[] = {&long_ns}, *short_arguments[] = {&short_ns};
    float elapsed = -1;
    char label[48];

    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    for (unsigned flags = 0; flags <= 8; flags++) {
        snprintf(label, sizeof label, "cuEventCreate flags %u", flags);
        if (ASK(label, cu.cuEventCreate(&event, flags)) == 0)
            cu.cuEventDestroy_v2(event);
    }
    cu_must(cu.cuEventCreate(&start, 0), "cuEventCreate");
    cu_must(cu.cuEventCreate(&end, 0), "cuEventCreate");
    cu_must(cu.cuEventCreate(&untimed, 2), "cuEventCreate");
    ASK("query never recorded", cu.cuEventQuery(start));
    ASK("synchronize never recorded", cu.cuEventSynchronize(start));
    ASK("elapsed never recorded", cu.cuEventElapsedTime(&elapsed, start, end));
    ASK("wait never recorded", cu.cuStreamWaitEvent(stream, start, 0));
    ASK("wait with flags 7", cu.cuStreamWaitEvent(stream, start, 7));
    ASK("record", cu.cuEventRecord(start, stream));
    ASK("spin", cu.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, long_arguments, NULL));
    ASK("record end", cu.cuEventRecord(end, stream));
    ASK("query while running", cu.cuEventQuery(end));
    ASK("stream query while running", cu.cuStreamQuery(stream));
    ASK("elapsed while running", cu.cuEventElapsedTime(&elapsed, start, end));
    ASK("other stream is not held", cu.cuStreamQuery(NULL));
    ASK("synchronize end", cu.cuEventSynchronize(end));
    ASK("query after", cu.cuEventQuery(end));
    ASK("elapsed", cu.cuEventElapsedTime(&elapsed, start, end));
    VALUE("elapsed of 200 ms", "%s", elapsed >= 199.0f && elapsed < 260.0f ? "about right" : "wrong");
    ASK("elapsed backwards", cu.cuEventElapsedTime(&elapsed, end, start));
    VALUE("elapsed backwards", "%s", elapsed < 0 ? "negative" : "not negative");
    float first = -elapsed;
    ASK("elapsed again", cu.cuEventElapsedTime(&elapsed, start, end));
    VALUE("elapsed again", "%s", elapsed == first ? "the same" : "another");
    ASK("record start again", cu.cuEventRecord(start, stream));
    ASK("synchronize start", cu.cuEventSynchronize(start));
    ASK("elapsed with a later start", cu.cuEventElapsedTime(&elapsed, start, end));
    ASK("spin again", cu.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, long_arguments, NULL));
    ASK("record end again", cu.cuEventRecord(end, stream));
    ASK("elapsed while running again", cu.cuEventElapsedTime(&elapsed, start, end));
    ASK("stream wait for end", cu.cuStreamWaitEvent(NULL, end, 0));
    ASK("synchronize the waiting stream", cu.cuStreamSynchronize(NULL));
    ASK("query what it waited for", cu.cuEventQuery(end));
    ASK("stream query behind it", cu.cuStreamQuery(stream));
    ASK("elapsed of the second", cu.cuEventElapsedTime(&elapsed, start, end));
    VALUE("elapsed of the second 200 ms", "%s", elapsed >= 199.0f && elapsed < 260.0f ? "about right" : "wrong");
    ASK("record untimed", cu.cuEventRecord(untimed, stream));
    ASK("synchronize untimed", cu.cuEventSynchronize(untimed));
    ASK("elapsed untimed", cu.cuEventElapsedTime(&elapsed, start, untimed));
    ASK("record with flags 0", cu.cuEventRecordWithFlags(start, stream, 0));
    ASK("record with flags 1", cu.cuEventRecordWithFlags(start, stream, 1));
    ASK("record with flags 8", cu.cuEventRecordWithFlags(start, stream, 8));
    ASK("destroy while pending: spin", cu.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, short_arguments, NULL));
    ASK("destroy while pending: record", cu.cuEventRecord(end, stream));
    ASK("destroy while pending", cu.cuEventDestroy_v2(end));
    ASK("stream destroy while pending", cu.cuStreamDestroy_v2(stream));
    ASK("context synchronize", cu.cuCtxSynchronize());
    ASK("module unload", cu.cuModuleUnload(module));
}

static volatile int steps[8];
static volatile int stepped;

static void note_step(void *user) { steps[stepped++ & 7] = (int)(intptr_t)user; }

static volatile CUresult inside_result;

static void call_inside(void *user) {
    CUdeviceptr address = 0;
    (void)user;
    inside_result = cu.cuMemAlloc_v2(&address, 4096);
}

static void on_stream(CUstream stream, CUresult status, void *user) {
    (void)stream;
    steps[stepped++ & 7] = (int)(intptr_t)user + 100 * status;
}

void section_host_function(void) {
    start_context();
    CUstream stream = NULL;
    CUdeviceptr address = 0;
    static volatile uint32_t *pinned;
    void *pointer = NULL;
    uint64_t spin = 50000000;
    void *arguments[] = {&spin};
    CUmodule module = load_kernels();

    cu_must(cu.cuStreamCreate(&stream, 1), "cuStreamCreate");
    cu_must(cu.cuMemAlloc_v2(&address, 4096), "cuMemAlloc");
    cu_must(cu.cuMemHostAlloc(&pointer, 4096, 0), "cuMemHostAlloc");
    pinned = pointer;
    ASK("spin", cu.cuLaunchKernel(kernel(module, "spin_ns"), 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
    ASK("first", cu.cuLaunchHostFunc(stream, note_step, (void *)(intptr_t)1));
    VALUE("not yet called", "%d", stepped);
    ASK("memset between", cu.cuMemsetD32Async(address, 0xabcd, 4, stream));
    ASK("copy between", cu.cuMemcpyDtoHAsync_v2(pointer, address, 4, stream));
    ASK("second", cu.cuLaunchHostFunc(stream, note_step, (void *)(intptr_t)2));
    ASK("callback", cu.cuStreamAddCallback(stream, on_stream, (void *)(intptr_t)3, 0));
    ASK("callback with flags 1", cu.cuStreamAddCallback(stream, on_stream, NULL, 1));
    ASK("synchronize", cu.cuStreamSynchronize(stream));
    VALUE("order", "%d: %d %d %d", stepped, steps[0], steps[1], steps[2]);
    VALUE("copied", "%x", pinned[0]);
    ASK("a function that calls CUDA", cu.cuLaunchHostFunc(stream, call_inside, NULL));
    ASK("synchronize after it", cu.cuStreamSynchronize(stream));
    VALUE("what the call inside got", "%d", (int)inside_result);
}

static void *other_thread(void *user) {
    CUresult *results = user;
    CUdeviceptr address = 0;
    CUcontext current = NULL;
    results[0] = cu.cuCtxGetCurrent(&current);
    results[1] = current == NULL ? 0 : 1;
    results[2] = cu.cuMemAlloc_v2(&address, 4096);
    return NULL;
}

struct shared_work {
    CUcontext context;
    CUfunction fill;
    CUdeviceptr address;
    CUevent event;
    CUresult result;
};

static void *fill_and_record(void *user) {
    struct shared_work *work = user;
    uint32_t value = 0x5a5a5a5a;
    size_t count = 1 << 20;
    void *arguments[] = {&work->address, &value, &count};
    work->result = cu.cuCtxSetCurrent(work->context);
    if (work->result == 0)
        work->result = cu.cuLaunchKernel(work->fill, 4096, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL);
    if (work->result == 0)
        work->result = cu.cuEventRecord(work->event, NULL);
    return NULL;
}

void section_threads(void) {
    CUcontext context = start_context();
    CUmodule module = load_kernels();
    CUresult results[3] = {-1, -1, -1};
    pthread_t thread;
    uint32_t word = 0;

    pthread_create(&thread, NULL, other_thread, results);
    pthread_join(thread, NULL);
    VALUE("a new thread", "get current %d, set %d, alloc %d", results[0], results[1], results[2]);

    struct shared_work work = {.context = context, .fill = kernel(module, "fill_u32"), .result = -1};
    cu_must(cu.cuMemAlloc_v2(&work.address, 4u << 20), "cuMemAlloc");
    cu_must(cu.cuEventCreate(&work.event, 0), "cuEventCreate");
    pthread_create(&thread, NULL, fill_and_record, &work);
    pthread_join(thread, NULL);
    VALUE("work of another thread", "%d", work.result);
    ASK("synchronize its event", cu.cuEventSynchronize(work.event));
    ASK("read what it wrote", cu.cuMemcpyDtoH_v2(&word, work.address + (4u << 20) - 4, 4));
    VALUE("read what it wrote", "%x", word);
}
