/*
 * Uploads behind host functions and downloads that write their source: the device gets what is there when the stream comes to
 * them, one check for each word that the role is given.
 *
 * A host function waits for a while before it writes, so that bytes taken too early are the old ones. Where CUDA allows a host
 * function to wait for the caller or for another stream, a check does that: a hang is a failure, too.
 */
#include "stack.h"

#include <stdatomic.h>

enum { ALLOCATED, REGISTERED, PAGEABLE };

struct source {
    unsigned char *at;
    size_t size;
    int kind;
};

struct write {
    unsigned char *at;
    size_t size;
    unsigned char value;
    unsigned microseconds;
    _Atomic int *until; /* may be NULL */
};

static struct source make(int kind, size_t size) {
    struct source source = {.size = size, .kind = kind};
    size_t whole = (size + 4095) & ~(size_t)4095;
    if (kind == ALLOCATED) {
        OK(cuMemHostAlloc((void **)&source.at, size, CU_MEMHOSTALLOC_PORTABLE));
    } else {
        CHECK(posix_memalign((void **)&source.at, 4096, whole) == 0);
    }
    if (kind == REGISTERED) {
        OK(cuMemHostRegister_v2(source.at, whole, CU_MEMHOSTREGISTER_PORTABLE));
    }
    memset(source.at, 1, size);
    return source;
}

static void unmake(struct source source) {
    if (source.kind == ALLOCATED) {
        OK(cuMemFreeHost(source.at));
        return;
    }
    if (source.kind == REGISTERED) {
        OK(cuMemHostUnregister(source.at));
    }
    free(source.at);
}

/* A host function. */
static void fill_later(void *user) {
    const struct write *write = user;
    while (write->until && !atomic_load(write->until)) {
        usleep(200);
    }
    usleep(write->microseconds);
    memset(write->at, write->value, write->size);
}

static void fill_in_callback(CUstream stream, CUresult status, void *user) {
    (void)stream, (void)status;
    fill_later(user);
}

static void expect(CUdeviceptr memory, size_t size, unsigned char value) {
    unsigned char *got = malloc(size);
    memset(got, 0xee, size);
    OK(cuMemcpyDtoH_v2(got, memory, size));
    for (size_t i = 0; i < size; i++) {
        if (got[i] != value) {
            fprintf(stderr, "byte %zu of %zu is %u and not %u\n", i, size, got[i], value);
            exit(1);
        }
    }
    free(got);
}

static const size_t sizes[] = {4, 4095, 65536, 65537, 1 << 20, (1 << 20) + 4, 3000001, (40 << 20) + 12};

/* In one stream, in another behind an event, in the legacy stream behind a blocking one: in both forms. */
static void streams_in_order(void) {
    CUstream one, other, blocking;
    CUevent event;
    CUdeviceptr memory;
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&memory, sizes[7]));
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const size_t size = sizes[i];
            struct source source = make(kind, size);
            struct write write = {.at = source.at, .size = size, .microseconds = 20000};
            write.value = 2;
            OK(cuLaunchHostFunc(one, fill_later, &write));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, one));
            OK(cuStreamSynchronize(one));
            expect(memory, size, 2);
            write.value = 3;
            OK(cuStreamAddCallback(one, fill_in_callback, &write, 0));
            OK(cuEventRecord(event, one));
            OK(cuStreamWaitEvent(other, event, 0));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, other));
            OK(cuEventRecord(event, other));
            OK(cuEventSynchronize(event));
            expect(memory, size, 3);
            write.value = 4;
            OK(cuLaunchHostFunc(blocking, fill_later, &write));
            OK(cuMemcpyHtoD_v2(memory, source.at, size));
            expect(memory, size, 4);
            write.value = 5;
            OK(cuLaunchHostFunc(blocking, fill_later, &write));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, CU_STREAM_LEGACY));
            OK(cuMemcpyAsync(memory, (CUdeviceptr)(uintptr_t)source.at, size, blocking));
            OK(cuCtxSynchronize());
            expect(memory, size, 5);
            write.value = 6; /* nothing outstanding: at once */
            fill_later(&write);
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, one));
            OK(cuStreamSynchronize(one));
            expect(memory, size, 6);
            unmake(source);
        }
    }
    OK(cuMemFree_v2(memory));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(one));
    OK(cuStreamDestroy_v2(other));
    OK(cuStreamDestroy_v2(blocking));
}

/* The synchronous form reads pageable memory behind what its stream has to do; the asynchronous one at the call, up to 1 MiB. (Of more
 * the driver takes the first part at the call and the others when the stream is there.) */
static void pageable_memory(void) {
    CUstream blocking;
    CUdeviceptr memory;
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuMemAlloc_v2(&memory, sizes[7]));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t size = sizes[i];
        struct source source = make(PAGEABLE, size);
        struct write write = {.at = source.at, .size = size, .value = 2, .microseconds = 50000};
        OK(cuLaunchHostFunc(blocking, fill_later, &write));
        OK(cuMemcpyHtoD_v2(memory, source.at, size));
        expect(memory, size, 2);
        CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = source.at,
                              .srcPitch = 2,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = memory,
                              .dstPitch = 1,
                              .WidthInBytes = 1,
                              .Height = size < 3000 ? size / 2 : 1500};
        write.value = 3;
        OK(cuLaunchHostFunc(blocking, fill_later, &write));
        OK(cuMemcpy2D_v2(&flat));
        expect(memory, flat.Height, 3);
        if (size <= 1 << 20) {
            _Atomic int go = 0;
            struct write last = {.at = source.at, .size = size, .value = 4, .until = &go};
            OK(cuLaunchHostFunc(blocking, fill_later, &last));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, blocking));
            atomic_store(&go, 1);
            OK(cuStreamSynchronize(blocking));
            expect(memory, size, 3);
        }
        unmake(source);
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(blocking));
}

/* The function goes on when the caller has come back from the copy, and has seen another stream's copy end. */
static void functions_wait_for_the_caller(void) {
    CUstream one, other;
    CUdeviceptr memory, second;
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, sizes[7]));
    OK(cuMemAlloc_v2(&second, sizes[7]));
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const size_t size = sizes[i];
            _Atomic int go = 0;
            struct source source = make(kind, size), beside = make(kind, size);
            struct write write = {.at = source.at, .size = size, .value = 2, .until = &go};
            OK(cuLaunchHostFunc(one, fill_later, &write));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, one));
            OK(cuMemcpyHtoDAsync_v2(second, beside.at, size, other));
            OK(cuStreamSynchronize(other));
            CHECK(cuStreamQuery(one) == CUDA_ERROR_NOT_READY);
            atomic_store(&go, 1);
            OK(cuStreamSynchronize(one));
            expect(second, size, 1);
            expect(memory, size, 2);
            unmake(source);
            unmake(beside);
        }
    }
    OK(cuMemFree_v2(memory));
    OK(cuMemFree_v2(second));
    OK(cuStreamDestroy_v2(one));
    OK(cuStreamDestroy_v2(other));
}

/* Down into the memory, changed by a function, and up again: behind a function that waits for the caller. */
static void downloads_in_front(void) {
    CUstream stream;
    CUdeviceptr from, to;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&from, sizes[7]));
    OK(cuMemAlloc_v2(&to, sizes[7]));
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const size_t size = sizes[i];
            _Atomic int go = 0;
            struct source source = make(kind, size), nothing = make(PAGEABLE, 1);
            struct write write = {.at = nothing.at, .size = 1, .until = &go};
            OK(cuMemsetD8Async(from, 7, size, stream));
            OK(cuLaunchHostFunc(stream, fill_later, &write));
            OK(cuMemcpyDtoHAsync_v2(source.at, from, size, stream));
            OK(cuMemcpyHtoDAsync_v2(to, source.at, size, stream));
            atomic_store(&go, 1);
            OK(cuStreamSynchronize(stream));
            expect(to, size, 7);
            OK(cuMemsetD8Async(from, 8, size, stream));
            OK(cuMemcpyDtoHAsync_v2(source.at, from, size, stream));
            OK(cuMemcpyHtoDAsync_v2(to, source.at, size, stream));
            OK(cuStreamSynchronize(stream));
            expect(to, size, 8);
            unmake(source);
            unmake(nothing);
        }
    }
    OK(cuMemFree_v2(from));
    OK(cuMemFree_v2(to));
    OK(cuStreamDestroy_v2(stream));
}

/* Rows and slices that do not lie side by side, on either side of the copy. */
static void boxes(void) {
    enum { WIDTH = 1001, ROWS = 67, SLICES = 5, PITCH = 1500, LINES = 70, TIGHT = 1024 };
    CUstream stream;
    CUdeviceptr memory;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, (size_t)TIGHT * ROWS * SLICES));
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        for (int turn = 0; turn < 4; turn++) {
            struct source source = make(kind, (size_t)PITCH * LINES * SLICES);
            struct write write = {
                .at = source.at, .size = source.size, .value = (unsigned char)(turn + 2), .microseconds = 20000};
            CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                                  .srcHost = source.at,
                                  .srcPitch = PITCH,
                                  .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                  .dstDevice = memory,
                                  .dstPitch = turn & 2 ? WIDTH : TIGHT,
                                  .WidthInBytes = WIDTH,
                                  .Height = ROWS};
            CUDA_MEMCPY3D box = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                                 .srcHost = source.at,
                                 .srcPitch = PITCH,
                                 .srcHeight = LINES,
                                 .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                 .dstDevice = memory,
                                 .dstPitch = flat.dstPitch,
                                 .dstHeight = ROWS,
                                 .WidthInBytes = WIDTH,
                                 .Height = ROWS,
                                 .Depth = SLICES};
            for (uint32_t i = 0; i < source.size; i++) {
                source.at[i] = 1;
            }
            OK(cuMemsetD8Async(memory, 0, (size_t)TIGHT * ROWS * SLICES, stream));
            OK(cuLaunchHostFunc(stream, fill_later, &write));
            OK(turn & 1 ? cuMemcpy3DAsync_v2(&box, stream) : cuMemcpy2DAsync_v2(&flat, stream));
            OK(cuStreamSynchronize(stream));
            for (size_t row = 0; row < (size_t)(turn & 1 ? ROWS * SLICES : ROWS); row++) {
                expect(memory + row * flat.dstPitch, WIDTH, write.value);
            }
            unmake(source);
        }
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

/* Every byte is where it belongs, also of a copy that goes in several pieces, by rows. */
static void places(void) {
    enum { WIDTH = 70001, ROWS = 611, PITCH = 70016 };
    CUstream stream;
    CUdeviceptr memory;
    struct source source = make(REGISTERED, (size_t)PITCH * ROWS), nothing = make(PAGEABLE, 1);
    struct write write = {.at = nothing.at, .size = 1, .microseconds = 20000};
    unsigned char *got = malloc((size_t)WIDTH * ROWS);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, (size_t)WIDTH * ROWS));
    for (uint64_t i = 0; i < source.size; i++) {
        source.at[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = source.at,
                          .srcPitch = PITCH,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = memory,
                          .dstPitch = WIDTH,
                          .WidthInBytes = WIDTH,
                          .Height = ROWS};
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    OK(cuMemcpy2DAsync_v2(&flat, stream));
    OK(cuMemcpyDtoH_v2(got, memory, 1)); /* the legacy stream does not wait for it */
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(got, memory, (size_t)WIDTH * ROWS));
    for (size_t row = 0; row < ROWS; row++) {
        CHECK(memcmp(got + row * WIDTH, source.at + row * PITCH, WIDTH) == 0);
    }
    free(got);
    unmake(source);
    unmake(nothing);
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

/* A graph reads what the functions before its launch wrote, from memory of every kind; a copy behind it what its own wrote. */
static void graphs_behind_functions(void) {
    enum { WIDTH = 3001, ROWS = 9, PITCH = 4000 };
    CUstream stream;
    CUdeviceptr memory;
    CUgraph graph;
    CUgraphExec copies, functions;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, sizes[6]));
    for (int kind = ALLOCATED; kind <= PAGEABLE; kind++) {
        for (int rows = 0; rows < 2; rows++) {
            struct source source = make(kind, sizes[6]);
            struct write write = {.at = source.at, .size = source.size, .microseconds = 20000};
            CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                                  .srcHost = source.at,
                                  .srcPitch = PITCH,
                                  .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                  .dstDevice = memory,
                                  .dstPitch = WIDTH,
                                  .WidthInBytes = WIDTH,
                                  .Height = ROWS};
            const size_t size = rows ? WIDTH * ROWS : source.size;
            OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
            OK(rows ? cuMemcpy2DAsync_v2(&flat, stream) : cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
            OK(cuStreamEndCapture(stream, &graph));
            OK(cuGraphInstantiateWithFlags(&copies, graph, 0));
            OK(cuGraphDestroy(graph));
            for (unsigned char value = 2; value < 5; value++) {
                write.value = value;
                OK(cuLaunchHostFunc(stream, fill_later, &write));
                OK(cuGraphLaunch(copies, stream));
                OK(cuStreamSynchronize(stream));
                expect(memory, size, value);
            }
            OK(cuGraphExecDestroy(copies));
            if (kind != PAGEABLE && !rows) {
                OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
                OK(cuLaunchHostFunc(stream, fill_later, &write));
                OK(cuStreamEndCapture(stream, &graph));
                OK(cuGraphInstantiateWithFlags(&functions, graph, 0));
                OK(cuGraphDestroy(graph));
                for (unsigned char value = 5; value < 8; value++) {
                    write.value = value;
                    OK(cuGraphLaunch(functions, stream));
                    OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
                    OK(cuStreamSynchronize(stream));
                    expect(memory, size, value);
                    source.at[0] = 99; /* nothing outstanding, and the session has said so */
                    OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
                    OK(cuStreamSynchronize(stream));
                    expect(memory, 1, 99);
                }
                OK(cuGraphExecDestroy(functions));
            }
            unmake(source);
        }
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

/* The source is freed at once: that waits, or takes the bytes along. */
static void sources_that_go(void) {
    CUstream stream;
    CUdeviceptr memory;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, sizes[7]));
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct source source = make(kind, sizes[i]), nothing = make(PAGEABLE, 1);
            struct write write = {.at = nothing.at, .size = 1, .microseconds = 20000};
            OK(cuLaunchHostFunc(stream, fill_later, &write));
            OK(cuMemcpyHtoDAsync_v2(memory, source.at, sizes[i], stream));
            unmake(source);
            OK(cuStreamSynchronize(stream));
            expect(memory, sizes[i], 1);
            unmake(nothing);
        }
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

static void *one_thread(void *user) {
    const uintptr_t number = (uintptr_t)user;
    CUcontext context;
    CUstream stream;
    CUdeviceptr memory;
    const size_t size = 200000 + number;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    struct source source = make((int)(number & 1), size);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, size));
    for (unsigned turn = 0; turn < 40; turn++) {
        struct write write = {
            .at = source.at, .size = size, .value = (unsigned char)(turn + number + 2), .microseconds = 500};
        OK(cuLaunchHostFunc(stream, fill_later, &write));
        OK(cuMemcpyHtoDAsync_v2(memory, source.at, turn & 1 ? size : 100, stream));
        OK(cuStreamSynchronize(stream));
        unsigned char got[100];
        OK(cuMemcpyDtoH_v2(got, memory, sizeof got));
        CHECK(got[0] == write.value && got[99] == write.value);
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
    unmake(source);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    return NULL;
}

static void threads_beside_each_other(void) {
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, one_thread, (void *)i) == 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* More than a stream takes commands, and more than the session keeps buffers. */
static void many(void) {
    enum { SMALL = 3000, LARGE = 80 };
    CUstream stream;
    CUdeviceptr memory;
    const size_t size = 16 << 20;
    struct source small = make(REGISTERED, SMALL * 4), large = make(REGISTERED, size);
    struct write write = {.at = small.at, .size = small.size, .value = 2, .microseconds = 100000};
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    for (size_t i = 0; i < SMALL; i++) {
        OK(cuMemcpyHtoDAsync_v2(memory + i * 4, small.at + i * 4, 4, stream));
    }
    OK(cuStreamSynchronize(stream));
    expect(memory, small.size, 2);
    write = (struct write){.at = large.at, .size = large.size, .value = 3, .microseconds = 100000};
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    for (size_t i = 0; i < LARGE; i++) {
        OK(cuMemcpyHtoDAsync_v2(memory, large.at, size, stream));
    }
    OK(cuStreamSynchronize(stream));
    expect(memory, size, 3);
    unmake(small);
    unmake(large);
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

/* While another stream captures; and the capturing stream goes on afterwards. */
static void beside_a_capture(void) {
    CUstream capturing, stream;
    CUdeviceptr memory;
    CUgraph graph;
    const size_t size = 100000;
    struct source source = make(REGISTERED, size);
    struct write write = {.at = source.at, .size = size, .value = 2, .microseconds = 50000};
    OK(cuStreamCreate(&capturing, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuStreamBeginCapture_v2(capturing, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
    OK(cuMemsetD8Async(memory, 9, 4, capturing));
    OK(cuStreamEndCapture(capturing, &graph));
    OK(cuStreamSynchronize(stream));
    expect(memory, size, 2);
    write.value = 3;
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED)); /* with that on its way */
    OK(cuMemsetD8Async(memory, 9, 4, stream));
    OK(cuGraphDestroy(graph));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuStreamSynchronize(stream));
    expect(memory, size, 3);
    OK(cuGraphDestroy(graph));
    unmake(source);
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(capturing));
    OK(cuStreamDestroy_v2(stream));
}

/* Streams and contexts end with copies on their way, as if these were any other work. */
static void ends(void) {
    CUcontext before, context;
    CUstream stream;
    CUdeviceptr memory;
    const size_t size = 3000001;
    struct source source = make(REGISTERED, size);
    struct write write = {.at = source.at, .size = size, .value = 2, .microseconds = 50000};
    OK(cuCtxGetCurrent(&before));
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
    OK(cuStreamDestroy_v2(stream));
    OK(cuCtxSynchronize());
    expect(memory, size, 2);
    OK(cuMemFree_v2(memory));
    for (int turn = 0; turn < 3; turn++) {
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuMemAlloc_v2(&memory, size));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuLaunchHostFunc(stream, fill_later, &write));
        OK(cuMemcpyHtoDAsync_v2(memory, source.at, size, stream));
        OK(cuCtxDestroy_v2(context));
    }
    OK(cuCtxSetCurrent(before));
    OK(cuCtxSynchronize());
    unmake(source);
}

/* Stands until the worker is gone; the test ends it. */
static void lost(void) {
    CUstream stream;
    CUdeviceptr memory;
    static _Atomic int never;
    struct source source = make(REGISTERED, 100000);
    struct write write = {.at = source.at, .size = source.size, .value = 2, .until = &never};
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, source.size));
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, source.size, stream));
    say("standing");
    CUresult waited = cuStreamSynchronize(stream);
    CUresult freed = cuMemHostUnregister(source.at);
    say("%d %d", waited, freed);
}

/* An upload that the session refuses tells so, and leaves nothing behind. */
static void refused(void) {
    CUstream stream;
    CUdeviceptr memory;
    struct source source = make(REGISTERED, 100000);
    struct write write = {.at = source.at, .size = source.size, .value = 2, .microseconds = 50000};
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, source.size));
    OK(cuLaunchHostFunc(stream, fill_later, &write));
    CUresult first = cuMemcpyHtoDAsync_v2(memory, source.at, source.size, stream);
    CUresult second = cuStreamSynchronize(stream);
    say("%d", first ? first : second);
    unmake(source); /* waits for nothing that never comes */
    OK(cuMemFree_v2(memory));
}

/* A refused host function is outstanding no longer, whichever way it was refused: an upload takes its bytes at the call. The
 * worker's driver refuses the first of each kind, and what an upload whose bytes come late needs. */
static void refused_functions(void) {
    CUdeviceptr memory;
    struct source source = make(REGISTERED, 100000);
    struct write write = {.at = source.at, .size = source.size, .value = 2};
    OK(cuMemAlloc_v2(&memory, source.size));
    CUresult result = cuLaunchHostFunc(NULL, fill_later, &write);
    CHECK((result ? result : cuStreamSynchronize(NULL)) == CUDA_ERROR_UNKNOWN);
    CHECK(source.at[0] == 1);
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, source.size, NULL));
    OK(cuStreamSynchronize(NULL));
    expect(memory, source.size, 1);
    result = cuStreamAddCallback(NULL, fill_in_callback, &write, 0);
    CHECK((result ? result : cuStreamSynchronize(NULL)) == CUDA_ERROR_UNKNOWN);
    OK(cuMemcpyHtoDAsync_v2(memory, source.at, source.size, NULL));
    OK(cuStreamSynchronize(NULL));
    write.value = 3; /* and none is counted off that was never there: one that is outstanding makes an upload late */
    write.microseconds = 100000;
    OK(cuLaunchHostFunc(NULL, fill_later, &write));
    result = cuMemcpyHtoDAsync_v2(memory, source.at, source.size, NULL);
    CHECK((result ? result : cuStreamSynchronize(NULL)) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuStreamSynchronize(NULL));
    unmake(source);
}

static const struct check checks[] = {{"streams", streams_in_order},
                                      {"pageable", pageable_memory},
                                      {"caller", functions_wait_for_the_caller},
                                      {"downloads", downloads_in_front},
                                      {"boxes", boxes},
                                      {"places", places},
                                      {"graphs", graphs_behind_functions},
                                      {"sources", sources_that_go},
                                      {"threads", threads_beside_each_other},
                                      {"many", many},
                                      {"capture", beside_a_capture},
                                      {"ends", ends},
                                      {"lost", lost},
                                      {"refused", refused},
                                      {"refused-functions", refused_functions}};

int role_uploads(int count, char **words) {
    start();
    return run_check(checks, sizeof checks / sizeof *checks, count, words);
}
