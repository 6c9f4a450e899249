// Simulated GPU: order within and between streams, events, callbacks, stream memory operations, sticky errors, threads.
#include "simgpu_check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

static const unsigned long long MS = 1000000;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

// A gate holds a stream until the test opens it, so that order is checked without guessing times.
typedef struct {
    unsigned *word;
    unsigned closed;
} gate_t;

static gate_t gate_make(void) {
    gate_t gate = {0};
    OK(cuMemAllocHost_v2((void **)&gate.word, 4));
    *gate.word = 0;
    return gate;
}

static void gate_close(gate_t *gate, CUstream stream) {
    OK(cuStreamWaitValue32_v2(stream, (CUdeviceptr)(uintptr_t)gate->word, ++gate->closed, CU_STREAM_WAIT_VALUE_GEQ));
}

static void gate_open(gate_t *gate) { __atomic_store_n(gate->word, gate->closed, __ATOMIC_RELEASE); }

static void asynchrony(CUmodule module) {
    CUstream stream;
    CUevent begin, end, plain;
    gate_t gate = gate_make();
    float ms;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&begin, 0));
    OK(cuEventCreate(&end, 0));
    OK(cuEventCreate(&plain, CU_EVENT_DISABLE_TIMING));
    OK(cuStreamQuery(stream));
    OK(cuEventQuery(begin)); // never recorded
    GIVES(400, cuEventElapsedTime_v2(&ms, begin, end));
    OK(cuEventRecord(begin, stream));
    OK(spin(module, 20 * MS, stream));
    gate_close(&gate, stream);
    OK(cuEventRecordWithFlags(end, stream, 0));
    OK(cuEventRecord(plain, stream));
    GIVES(600, cuStreamQuery(stream));
    GIVES(600, cuEventQuery(end));
    GIVES(600, cuEventElapsedTime_v2(&ms, begin, end));
    GIVES(400, cuEventElapsedTime_v2(&ms, begin, plain));
    gate_open(&gate);
    OK(cuEventSynchronize(end));
    OK(cuEventElapsedTime_v2(&ms, begin, end));
    CHECK(ms >= 19.9f);
    OK(cuStreamSynchronize(stream));
    OK(cuStreamQuery(stream));
    OK(cuEventDestroy_v2(begin));
    GIVES(400, cuEventQuery(begin));
    OK(cuEventDestroy_v2(end));
    OK(cuEventDestroy_v2(plain));
    // Destroying a busy stream does not stop its work, and freeing what it uses waits for it.
    unsigned *word;
    OK(cuMemAllocHost_v2((void **)&word, 4));
    *word = 0;
    gate_close(&gate, stream);
    OK(spin(module, 10 * MS, stream));
    OK(fill(module, (CUdeviceptr)(uintptr_t)word, 5, 1, stream));
    OK(cuStreamDestroy_v2(stream));
    GIVES(400, cuStreamQuery(stream));
    CHECK(*(volatile unsigned *)word == 0);
    double t = now_ms();
    gate_open(&gate);
    OK(cuMemFreeHost(word));
    CHECK(now_ms() - t >= 9);
    OK(cuMemFreeHost(gate.word));
}

// True when work in `second` waits for earlier work in `first`.
static int waits(CUmodule module, CUstream first, CUstream second, CUdeviceptr p) {
    gate_t gate = gate_make();
    CUevent done;
    unsigned value = 0;
    int independent;
    OK(cuEventCreate(&done, CU_EVENT_DISABLE_TIMING));
    gate_close(&gate, first);
    OK(fill(module, p, 1, 1, first));
    OK(fill(module, p, 2, 1, second));
    OK(cuEventRecord(done, second));
    double t = now_ms();
    while (!(independent = cuEventQuery(done) == CUDA_SUCCESS) && now_ms() - t < 50)
        usleep(500);
    gate_open(&gate);
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(&value, p, 4));
    CHECK(value == (independent ? 1u : 2u)); // and the memory tells the same story
    OK(cuEventDestroy_v2(done));
    OK(cuMemFreeHost(gate.word));
    return !independent;
}

static void default_streams(CUmodule module) {
    CUdeviceptr p;
    CUstream blocking, other, independent;
    CUstream legacy = NULL, legacy1 = (CUstream)(uintptr_t)1, per_thread = (CUstream)(uintptr_t)2;
    gate_t gate = gate_make();
    OK(cuMemAlloc_v2(&p, 4));
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuStreamCreate(&other, CU_STREAM_DEFAULT));
    OK(cuStreamCreateWithPriority(&independent, CU_STREAM_NON_BLOCKING, -100));
    int priority;
    OK(cuStreamGetPriority(independent, &priority));
    CHECK(priority == -5);
    CHECK(waits(module, legacy, blocking, p));
    CHECK(waits(module, blocking, legacy, p));
    CHECK(waits(module, per_thread, legacy1, p)); // the per-thread stream is a blocking one
    CHECK(!waits(module, legacy, independent, p));
    CHECK(!waits(module, independent, legacy, p));
    CHECK(!waits(module, blocking, other, p)); // blocking streams are independent of each other
    gate_close(&gate, blocking);
    GIVES(600, cuStreamQuery(legacy));
    OK(cuStreamQuery(independent));
    gate_open(&gate);
    OK(cuStreamSynchronize(legacy)); // covers the blocking stream
    OK(cuStreamQuery(blocking));
    CUstreamAttrValue attribute = {.syncPolicy = CU_SYNC_POLICY_YIELD}, read = {0};
    OK(cuStreamSetAttribute(blocking, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &attribute));
    OK(cuStreamCopyAttributes(independent, blocking));
    OK(cuStreamGetAttribute(independent, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &read));
    CHECK(read.syncPolicy == CU_SYNC_POLICY_YIELD);
    OK(cuStreamGetAttribute(independent, CU_LAUNCH_ATTRIBUTE_PRIORITY, &read));
    CHECK(read.priority == 0);
    GIVES(1, cuStreamSetAttribute(blocking, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &attribute));
    unsigned long long a, b;
    OK(cuStreamGetId(legacy, &a));
    OK(cuStreamGetId(per_thread, &b));
    CHECK(a != b);
    OK(cuStreamDestroy_v2(blocking));
    OK(cuStreamDestroy_v2(other));
    OK(cuStreamDestroy_v2(independent));
    OK(cuMemFreeHost(gate.word));
    OK(cuMemFree_v2(p));
}

static void event_order(CUmodule module) {
    CUstream first, second;
    CUevent event;
    CUdeviceptr p;
    gate_t early = gate_make(), late = gate_make();
    unsigned value;
    OK(cuMemAlloc_v2(&p, 4));
    OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuStreamWaitEvent(second, event, 0)); // never recorded: nothing to wait for
    OK(cuStreamSynchronize(second));
    gate_close(&early, first);
    OK(fill(module, p, 1, 1, first));
    OK(cuEventRecord(event, first));
    OK(cuStreamWaitEvent(second, event, 0));
    gate_close(&late, first);        // later work of the first stream is not waited for
    OK(cuEventRecord(event, first)); // and the wait above means the earlier record
    OK(cuEventDestroy_v2(event));
    OK(fill(module, p, 2, 1, second));
    usleep(3000);
    GIVES(600, cuStreamQuery(second));
    gate_open(&early);
    OK(cuStreamSynchronize(second));
    GIVES(600, cuStreamQuery(first));
    OK(cuMemcpyDtoHAsync_v2(&value, p, 4, second));
    CHECK(value == 2); // pageable: there when the call returns
    gate_open(&late);
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamDestroy_v2(second));
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(p));
    OK(cuMemFreeHost(early.word));
    OK(cuMemFreeHost(late.word));
}

static _Atomic int called;
static _Atomic int call_inside;

static void host_function(void *data) {
    CUdeviceptr p;
    call_inside = (int)cuMemAlloc_v2(&p, 4);
    called = *(int *)data;
}

static void write_later(void *bytes) {
    usleep(20000);
    memset(bytes, 2, 16);
}

/* When the source of an upload from pageable memory is read: asynchronous at the call, rows too; synchronous behind the stream. */
static void pageable_uploads(void) {
    CUstream blocking;
    CUdeviceptr p;
    unsigned char bytes[16], got[8];
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuMemAlloc_v2(&p, sizeof got));
    CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = bytes,
                          .srcPitch = 2,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = p,
                          .dstPitch = 1,
                          .WidthInBytes = 1,
                          .Height = sizeof got};
    for (int form = 0; form < 4; form++) {
        memset(bytes, 1, sizeof bytes);
        OK(cuMemsetD8_v2(p, 0, sizeof got));
        OK(cuLaunchHostFunc(blocking, write_later, bytes));
        switch (form) {
        case 0:
            OK(cuMemcpyHtoDAsync_v2(p, bytes, sizeof got, blocking));
            break;
        case 1:
            OK(cuMemcpy2DAsync_v2(&rows, blocking));
            break;
        case 2:
            OK(cuMemcpyHtoD_v2(p, bytes, sizeof got));
            break;
        default:
            OK(cuMemcpy2D_v2(&rows));
        }
        OK(cuCtxSynchronize());
        OK(cuMemcpyDtoH_v2(got, p, sizeof got));
        CHECK(got[0] == (form < 2 ? 1 : 2) && got[7] == got[0]);
    }
    OK(cuMemFree_v2(p));
    OK(cuStreamDestroy_v2(blocking));
}

/* Pinned memory is read in its turn; but less than 64 KiB in asynchronous form at the call, where only the order of blocking and
 * legacy streams stands in front of it. */
static void pinned_uploads(void) {
    static const size_t sizes[] = {4, 16384, 65536};
    CUstream blocking;
    CUdeviceptr p;
    unsigned char *bytes, got;
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuMemAlloc_v2(&p, 65536));
    OK(cuMemHostAlloc((void **)&bytes, 65536, 0));
    for (size_t i = 0; i < 3; i++)
        for (int form = 0; form < 3; form++) {
            memset(bytes, 1, 65536);
            OK(cuLaunchHostFunc(blocking, write_later, bytes));
            if (form == 0)
                OK(cuMemcpyHtoDAsync_v2(p, bytes, sizes[i], CU_STREAM_LEGACY));
            else if (form == 1)
                OK(cuMemcpyHtoDAsync_v2(p, bytes, sizes[i], blocking));
            else
                OK(cuMemcpyHtoD_v2(p, bytes, sizes[i]));
            OK(cuCtxSynchronize());
            OK(cuMemcpyDtoH_v2(&got, p, 1));
            CHECK(got == (form == 0 && sizes[i] < 65536 ? 1 : 2));
        }
    OK(cuMemFreeHost(bytes));
    OK(cuMemFree_v2(p));
    OK(cuStreamDestroy_v2(blocking));
}

static void callback(CUstream stream, CUresult status, void *data) {
    (void)stream;
    called = (int)status * 1000 + *(int *)data;
}

static void host_work(void) {
    CUstream stream;
    int one = 1, two = 2;
    OK(cuStreamCreate(&stream, 0));
    gate_t gate = gate_make();
    gate_close(&gate, stream);
    OK(cuLaunchHostFunc(stream, host_function, &one));
    CHECK(called == 0);
    gate_open(&gate);
    OK(cuStreamSynchronize(stream));
    CHECK(called == 1 && call_inside == 800);
    OK(cuStreamAddCallback(stream, callback, &two, 0));
    OK(cuStreamSynchronize(stream));
    CHECK(called == 2);
    OK(cuMemFreeHost(gate.word));
    OK(cuStreamDestroy_v2(stream));
}

static void memory_operations(void) {
    CUstream stream, other;
    CUdeviceptr p;
    uint64_t *flag;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&p, 16));
    OK(cuMemsetD8_v2(p, 0, 16));
    OK(cuCtxSynchronize());
    OK(cuMemHostAlloc((void **)&flag, 64, 0));
    *flag = 0;
    OK(cuStreamWaitValue64_v2(stream, (CUdeviceptr)(uintptr_t)flag, 5, CU_STREAM_WAIT_VALUE_GEQ));
    OK(cuStreamWriteValue32_v2(stream, p, 77, 0));
    usleep(5000);
    GIVES(600, cuStreamQuery(stream));
    __atomic_store_n(flag, 6, __ATOMIC_RELEASE);
    OK(cuStreamWaitValue32_v2(other, p, 77, CU_STREAM_WAIT_VALUE_EQ)); // between streams
    OK(cuStreamWriteValue64_v2(other, (CUdeviceptr)(uintptr_t)flag, 99, 0));
    OK(cuStreamSynchronize(other));
    CHECK(*flag == 99);
    GIVES(1, cuStreamWriteValue32_v2(stream, p + 2, 1, 0));
    GIVES(1, cuStreamWriteValue64_v2(stream, p + 12, 1, 0));
    GIVES(1, cuStreamWriteValue64_v2(stream, (CUdeviceptr)(uintptr_t)&stream, 1, 0));
    CUstreamBatchMemOpParams batch[2] = {
        {.writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32, .address = p, .value = 3}},
        {.waitValue = {
             .operation = CU_STREAM_MEM_OP_WAIT_VALUE_32, .address = p, .value = 3, .flags = CU_STREAM_WAIT_VALUE_EQ}}};
    OK(cuStreamBatchMemOp_v2(stream, 2, batch, 0));
    OK(cuStreamSynchronize(stream));
    OK(cuMemFreeHost(flag));
    OK(cuMemFree_v2(p));
    OK(cuStreamDestroy_v2(stream));
    OK(cuStreamDestroy_v2(other));
}

static void capture(void) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuStreamIsCapturing(NULL, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuStreamGetCaptureInfo_v3(NULL, &status, NULL, NULL, NULL, NULL, NULL));
    GIVES(900, cuStreamBeginCapture_v2(NULL, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK(mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK(mode == CU_STREAM_CAPTURE_MODE_RELAXED);
}

static void pinned_order(void) {
    // Pinned memory is read when the stream gets there, pageable memory at the call.
    CUstream stream;
    CUdeviceptr p, q;
    gate_t gate = gate_make();
    unsigned *pinned, pageable = 1, value;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&p, 4));
    OK(cuMemAlloc_v2(&q, 4));
    OK(cuMemAllocHost_v2((void **)&pinned, 4));
    *pinned = 1;
    gate_close(&gate, stream);
    OK(cuMemcpyHtoDAsync_v2(p, pinned, 4, stream));
    OK(cuMemcpyHtoDAsync_v2(q, &pageable, 4, stream));
    *(volatile unsigned *)pinned = 2;
    pageable = 9;
    gate_open(&gate);
    OK(cuMemcpyDtoHAsync_v2(&value, p, 4, stream));
    CHECK(value == 2);
    OK(cuMemcpyDtoHAsync_v2(&value, q, 4, stream));
    CHECK(value == 1);
    OK(cuMemFreeHost(pinned));
    OK(cuMemFreeHost(gate.word));
    OK(cuMemFree_v2(p));
    OK(cuMemFree_v2(q));
    OK(cuStreamDestroy_v2(stream));
}

static _Atomic int opened;

static void *open_later(void *argument) {
    usleep(30000);
    opened = 1;
    gate_open(argument);
    return NULL;
}

static void backpressure(CUmodule module) {
    CUstream stream;
    gate_t gate = gate_make();
    pthread_t opener;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    gate_close(&gate, stream);
    for (int i = 0; i < 1023; i++)
        OK(spin(module, 0, stream)); // fills the queue and does not block
    CHECK(pthread_create(&opener, NULL, open_later, &gate) == 0);
    OK(spin(module, 0, stream)); // one more does
    CHECK(opened == 1);
    pthread_join(opener, NULL);
    OK(cuStreamSynchronize(stream));
    OK(cuMemFreeHost(gate.word));
    OK(cuStreamDestroy_v2(stream));
}

static void speed(CUmodule module) {
    unsigned long long zero = 0;
    void *params[] = {&zero};
    CUfunction function = kernel(module, "spin_ns");
    enum { N = 20000 };
    OK(cuCtxSynchronize());
    double t = now_ms();
    for (int i = 0; i < N; i++)
        OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
    OK(cuCtxSynchronize());
    fprintf(stderr, "launch and run: %.2f us each\n", (now_ms() - t) * 1000 / (double)N);
}

static void *worker(void *argument) {
    CUmodule module = (CUmodule)argument;
    CUcontext context;
    CUstream stream;
    CUdeviceptr p;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    GIVES(201, cuCtxSynchronize());
    OK(cuCtxSetCurrent(context));
    for (int round = 0; round < 20; round++) {
        CUevent event;
        enum { N = 3000 };
        unsigned back[N];
        OK(cuStreamCreate(&stream, round & 1));
        OK(cuMemAlloc_v2(&p, N * 4));
        OK(cuEventCreate(&event, 0));
        OK(iota(module, p, N, stream));
        OK(cuEventRecord(event, stream));
        OK(cuStreamWaitEvent((CUstream)(uintptr_t)2, event, 0));
        OK(cuMemcpyDtoHAsync_v2(back, p, sizeof back, (CUstream)(uintptr_t)2));
        for (unsigned i = 0; i < N; i++)
            CHECK(back[i] == i);
        OK(fill(module, p, 7, N, NULL));
        OK(cuMemcpyDtoH_v2(back, p, sizeof back));
        CHECK(back[0] == 7 && back[N - 1] == 7);
        OK(cuEventDestroy_v2(event));
        OK(cuMemFree_v2(p));
        OK(cuStreamDestroy_v2(stream));
    }
    OK(cuDevicePrimaryCtxRelease_v2(0));
    return NULL;
}

static void threads(CUmodule module) {
    pthread_t all[6];
    for (int i = 0; i < 6; i++)
        CHECK(pthread_create(&all[i], NULL, worker, (void *)module) == 0);
    for (int i = 0; i < 6; i++)
        pthread_join(all[i], NULL);
}

// Making more streams than a context has room for waits for all its work (580.159.04: the 33rd to 36th).
static void room_for_streams(void) {
    CUcontext context;
    CUstream busy, more[40];
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(cuStreamCreate(&busy, CU_STREAM_NON_BLOCKING));
    OK(spin(load_kernels(), 300000000, busy));
    for (int i = 0; i < 40; i++) {
        OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
        if (i == 27)
            GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(busy));
    }
    OK(cuStreamQuery(busy));
    OK(spin(load_kernels(), 300000000, busy));
    for (int i = 0; i < 40; i++) // there is room now
        OK(cuStreamDestroy_v2(more[i]));
    for (int i = 0; i < 40; i++)
        OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
    GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(busy));
    OK(cuCtxDestroy_v2(context));
}

// The 36th, 79th, 122nd, 164th and 207th stream wait for all work of the context, and no other does (580.159.04, measured).
static void lots_of_streams(void) {
    static const int waits[] = {36, 79, 122, 164, 207};
    CUcontext context;
    CUstream busy, more;
    CUdeviceptr word;
    int lot = 0;
    OK(cuCtxCreate_v2(&context, 0, 0));
    CUmodule module = load_kernels();
    OK(cuMemAlloc_v2(&word, 4));
    OK(cuMemsetD32_v2(word, 0, 1));
    OK(cuStreamSynchronize(NULL));
    OK(cuStreamCreate(&busy, CU_STREAM_NON_BLOCKING));
    OK(cuStreamWaitValue32_v2(busy, word, 1, CU_STREAM_WAIT_VALUE_EQ)); // who waits for that waits for ever
    for (int n = 2; n < 230; n++) {
        bool waiting = lot < 5 && n == waits[lot];
        if (waiting) {
            OK(cuMemsetD32_v2(word, 1, 1));
            OK(cuStreamSynchronize(busy));
            OK(spin(module, 100000000, busy));
        }
        OK(cuStreamCreate(&more, CU_STREAM_NON_BLOCKING));
        if (waiting) {
            OK(cuStreamQuery(busy));
            OK(cuMemsetD32_v2(word, 0, 1));
            OK(cuStreamSynchronize(NULL));
            OK(cuStreamWaitValue32_v2(busy, word, 1, CU_STREAM_WAIT_VALUE_EQ));
            lot++;
        }
    }
    CHECK(lot == 5);
    OK(cuMemsetD32_v2(word, 1, 1));
    OK(cuCtxDestroy_v2(context));
}

// What broke the device was heard of: every context of it answers so, until the process ends (580.159.04, measured).
static void broken(CUresult error, CUcontext own, CUcontext other, CUstream stream, CUevent event) {
    CUdeviceptr p;
    CUcontext context;
    char byte = 0;
    CUcontext both[] = {own, other};
    for (int i = 0; i < 2; i++) {
        OK(cuCtxSetCurrent(both[i]));
        OK(cuCtxGetCurrent(&context)); // what only asks still answers
        CHECK(context == both[i]);
        GIVES(error, cuStreamSynchronize(stream));
        GIVES(error, cuStreamQuery(stream));
        GIVES(error, cuStreamQuery(NULL));
        GIVES(error, cuEventQuery(event));
        GIVES(error, cuEventSynchronize(event));
        GIVES(error, cuEventRecord(event, stream));
        GIVES(error, cuStreamWaitEvent(stream, event, 0));
        GIVES(error, cuMemcpyHtoDAsync_v2(0x1000, &byte, 1, stream));
        GIVES(error, cuMemAlloc_v2(&p, 4));
        GIVES(error, cuCtxSynchronize()); // and a stuck stream does not hang it
        GIVES(error, cuStreamDestroy_v2(stream));
    }
    OK(cuCtxDestroy_v2(other));
    GIVES(error, cuCtxCreate_v2(&context, 0, 0));
    OK(cuCtxSetCurrent(NULL));
    OK(cuDevicePrimaryCtxReset_v2(0));
    GIVES(error, cuDevicePrimaryCtxRetain(&context, 0));
    exit(FAULTED);
}

static void sticky(void) {
    CUstream stream, stuck;
    CUevent event;
    CUdeviceptr p, flag, reserved;
    CUcontext other, own = start();
    CUmodule module = load_kernels();
    char byte = 0;
    int code = 5;
    OK(cuCtxCreate_v2(&other, 0, 0));
    OK(cuCtxSetCurrent(own));
    OK(cuStreamCreate(&stream, 0));
    OK(cuStreamCreate(&stuck, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, 0));
    OK(cuMemAlloc_v2(&p, 100));
    OK(cuMemAlloc_v2(&flag, 4));
    OK(cuMemsetD8_v2(flag, 0, 4));
    OK(cuStreamSynchronize(NULL));
    if (fault_here()) {
        OK(cuStreamWaitValue32_v2(stuck, flag, 1, CU_STREAM_WAIT_VALUE_EQ)); // would wait for ever
        gate_t gate = gate_make(); // an error that came at once would be given by the calls behind it
        gate_close(&gate, stream);
        OK(fill(module, p, 1, 26, stream)); // one element too many
        OK(cuEventRecord(event, stream));
        OK(cuLaunchHostFunc(stream, host_function, &code));
        called = 0;
        gate_open(&gate);
        GIVES(700, cuStreamSynchronize(stream));
        CHECK(called == 0); // host functions do not run after an error
        broken(CUDA_ERROR_ILLEGAL_ADDRESS, own, other, stream, event);
    }
    // A kernel in a reservation without a mapping faults; so does one in memory without access rights.
    OK(cuMemAddressReserve(&reserved, 2 << 20, 0, 0, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(reserved, 0, 1, stream)); // that is nobody's
    if (fault_here()) {
        OK(fill(module, reserved, 1, 1, stream));
        GIVES(700, cuStreamSynchronize(stream));
        broken(CUDA_ERROR_ILLEGAL_ADDRESS, own, other, stream, event);
    }
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle handle;
    OK(cuMemCreate(&handle, 2 << 20, &prop, 0));
    OK(cuMemMap(reserved, 2 << 20, 0, handle, 0));
    // Copies and memsets do not reach what the device has no access to, and the context lives on.
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(reserved, &byte, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(&byte, reserved, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(reserved, 0, 1, stream));
    OK(cuCtxSynchronize());
    if (fault_here()) {
        OK(fill(module, reserved, 1, 1, NULL));
        GIVES(700, cuCtxSynchronize());
        broken(CUDA_ERROR_ILLEGAL_ADDRESS, own, other, stream, event);
    }
    CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READ};
    OK(cuMemSetAccess(reserved, 2 << 20, &access, 1));
    OK(cuMemcpyDtoH_v2(&byte, reserved, 1));
    if (fault_here()) {
        OK(fill(module, reserved, 1, 1, NULL));
        GIVES(700, cuCtxSynchronize()); // read-only
        broken(CUDA_ERROR_ILLEGAL_ADDRESS, own, other, stream, event);
    }
    if (fault_here()) { // in the created context
        OK(cuCtxSetCurrent(other));
        OK(fill(load_kernels(), p + 2, 1, 1, NULL));
        GIVES(716, cuCtxSynchronize());
        broken(CUDA_ERROR_MISALIGNED_ADDRESS, own, other, stream, event);
    }
    OK(cuMemUnmap(reserved, 2 << 20));
    OK(cuMemRelease(handle));
    OK(cuMemAddressFree(reserved, 2 << 20));
}

int main(void) {
    each_fault(sticky); // in processes that begin before there is a driver in this one
    start();
    CUmodule module = load_kernels();
    asynchrony(module);
    default_streams(module);
    event_order(module);
    pageable_uploads();
    pinned_uploads();
    host_work();
    memory_operations();
    capture();
    pinned_order();
    backpressure(module);
    speed(module);
    threads(module);
    room_for_streams();
    lots_of_streams();
    puts("ok");
    return 0;
}
