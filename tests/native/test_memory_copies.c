/*
 * Copies as a program sees them, of one to three dimensions, and what "complete" promises about their data.
 *
 * Data are random, and every copy is compared with what plain memory operations in this process give. Part of test_memory.c.
 */
#include "test_memory.h"

/* ---- copies of one dimension ---- */

void case_copies(void) {
    static const size_t sizes[] = {1,     3,     4,       4095,        4096,        4097,        65535,
                                   65536, 65537, 1 * MIB, 1 * MIB + 1, 5 * MIB + 7, 40 * MIB + 3};
    enum { LARGEST = 41 << 20 };
    unsigned char *host[3], *back[3];
    CUdeviceptr a, b;
    CUstream streams[4] = {NULL, CU_STREAM_PER_THREAD};
    void *pinned;
    for (int i = 0; i < 2; i++) {
        unsigned char **set = i ? back : host;
        set[0] = malloc(LARGEST);
        OK(cuMemHostAlloc(&pinned, LARGEST, 0));
        set[1] = pinned;
        set[2] = malloc(LARGEST);
        OK(cuMemHostRegister_v2(set[2], LARGEST, 0));
        for (int k = 0; k < 3; k++) {
            random_fill(set[k], LARGEST);
        }
    }
    OK(cuMemAlloc_v2(&a, LARGEST));
    OK(cuMemAlloc_v2(&b, LARGEST));
    OK(cuStreamCreate(&streams[2], CU_STREAM_DEFAULT));
    OK(cuStreamCreate(&streams[3], CU_STREAM_NON_BLOCKING));
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        for (int from = 0; from < 3; from++) {
            for (int to = 0; to < 3; to++) {
                CUstream stream = streams[(n + (size_t)from + 2 * (size_t)to) % 4];
                size_t size = sizes[n], shift = random_below(5000);
                random_fill(host[from], 64);
                memset(back[to], 0, size);
                OK(cuMemcpyHtoDAsync_v2(a + shift, host[from], size, stream));
                OK(cuMemcpyDtoDAsync_v2(b + 1, a + shift, size, stream));
                OK(cuMemcpyDtoHAsync_v2(back[to], b + 1, size, stream));
                OK(cuStreamSynchronize(stream));
                CHECK(memcmp(host[from], back[to], size) == 0);
                memset(back[to], 0, size);
                OK(cuMemcpyHtoD_v2(b, host[from], size));
                OK(cuMemcpyDtoD_v2(a + 2, b, size));
                OK(cuMemcpyDtoH_v2(back[to], a + 2, size));
                CHECK(memcmp(host[from], back[to], size) == 0);
            }
        }
    }
    /* The source of a copy from pageable memory may change when the call has returned. */
    for (int i = 0; i < 20; i++) {
        size_t size = random_below(3 * MIB) + 1;
        memcpy(back[0], host[0], size);
        OK(cuMemcpyHtoDAsync_v2(a, back[0], size, streams[3]));
        memset(back[0], 0xee, size);
        OK(cuMemcpyDtoHAsync_v2(back[2], a, size, streams[3]));
        OK(cuStreamSynchronize(streams[3]));
        CHECK(memcmp(back[2], host[0], size) == 0);
    }
    for (int i = 0; i < 3; i++) {
        CUdeviceptr h = (CUdeviceptr)(uintptr_t)host[i], r = (CUdeviceptr)(uintptr_t)back[i];
        memset(back[i], 0, 1 * MIB);
        OK(cuMemcpy(a, h, 1 * MIB));
        OK(cuMemcpyAsync(b, a, 1 * MIB, streams[2]));
        OK(cuMemcpyAsync(r, b, 1 * MIB, streams[2]));
        OK(cuStreamSynchronize(streams[2]));
        CHECK(memcmp(host[i], back[i], 1 * MIB) == 0);
        OK(cuMemcpyAsync(r + 100, h, 1000, streams[2]));
        CHECK(memcmp(host[i], back[i] + 100, 1000) == 0);
    }
    OK(cuMemFreeHost(host[1]));
    OK(cuMemFreeHost(back[1]));
    OK(cuMemHostUnregister(host[2]));
    OK(cuMemHostUnregister(back[2]));
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
}

/* ---- what "complete" promises about data in pinned memory ---- */

void case_visible(void) {
    CUfunction spin_ns = kernel(load_kernels(), "spin_ns");
    CUdeviceptr a;
    CUstream one, other;
    CUevent event;
    void *memory;
    unsigned char *wanted = malloc(3 * MIB);
    OK(cuMemAlloc_v2(&a, 3 * MIB));
    OK(cuMemHostAlloc(&memory, 3 * MIB, 0));
    unsigned char *pinned = memory;
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (int i = 0; i < 400; i++) {
        size_t size = i % 5 == 0 ? random_below(3 * MIB) + 1 : random_below(100 * KIB) + 1;
        random_fill(wanted, size);
        memset(pinned, 0, size);
        OK(cuMemcpyHtoDAsync_v2(a, wanted, size, one));
        if (i % 3 == 0) {
            run_spin(spin_ns, random_below(300000), one);
        }
        OK(cuMemcpyDtoHAsync_v2(pinned, a, size, one));
        OK(cuEventRecord(event, one));
        CUresult done = CUDA_ERROR_NOT_READY;
        switch (i % 6) {
        case 0:
            OK(cuStreamSynchronize(one));
            break;
        case 1:
            while (done == CUDA_ERROR_NOT_READY) {
                done = cuStreamQuery(one);
            }
            OK(done);
            break;
        case 2:
            while (done == CUDA_ERROR_NOT_READY) {
                done = cuEventQuery(event);
            }
            OK(done);
            break;
        case 3:
            OK(cuEventSynchronize(event));
            break;
        case 4:
            OK(cuStreamWaitEvent(other, event, 0));
            OK(cuStreamSynchronize(other));
            break;
        default:
            OK(cuCtxSynchronize());
        }
        CHECK(memcmp(pinned, wanted, size) == 0);
    }
    /* Down into P, then up from P, in stream order and without a wait of the program. */
    for (int i = 0; i < 20; i++) {
        size_t size = random_below(2 * MIB) + 1;
        random_fill(wanted, size);
        OK(cuMemcpyHtoD_v2(a, wanted, size));
        memset(pinned, 0, size);
        run_spin(spin_ns, 1000000, one);
        OK(cuMemcpyDtoHAsync_v2(pinned, a, size, one));
        OK(cuMemsetD8Async(a, 0, size, one));
        OK(cuMemcpyHtoDAsync_v2(a, pinned, size, one));
        OK(cuStreamSynchronize(one));
        memset(pinned, 0, size);
        OK(cuMemcpyDtoH_v2(pinned, a, size));
        CHECK(memcmp(pinned, wanted, size) == 0);
    }
    /* Freeing pinned memory waits for what still writes it. */
    run_spin(spin_ns, 20000000, one);
    OK(cuMemcpyDtoHAsync_v2(pinned, a, 3 * MIB, one));
    OK(cuMemFreeHost(pinned));
    OK(cuStreamSynchronize(one));
}

/* ---- two and three dimensions ---- */

enum { SPACE = 1 << 20 };

struct shape {
    size_t pitch, height, x, y, z;
};

static struct shape random_shape(size_t width, size_t height, size_t depth, bool tight) {
    struct shape s = {.x = tight ? 0 : random_below(20), .y = tight ? 0 : random_below(3), .z = random_below(2)};
    s.pitch = width + s.x + (tight ? 0 : random_below(50));
    s.height = height + s.y + (tight ? 0 : random_below(3));
    CHECK((s.z + depth) * s.pitch * s.height <= SPACE);
    return s;
}

static void model(unsigned char *to, struct shape t, const unsigned char *from, struct shape f, size_t width,
                  size_t height, size_t depth) {
    for (size_t z = 0; z < depth; z++) {
        for (size_t y = 0; y < height; y++) {
            memcpy(to + ((z + t.z) * t.height + y + t.y) * t.pitch + t.x,
                   from + ((z + f.z) * f.height + y + f.y) * f.pitch + f.x, width);
        }
    }
}

void case_boxes(void) {
    CUdeviceptr device[2];
    unsigned char *pageable[2], *wanted = malloc(SPACE), *source = malloc(SPACE), *found = malloc(SPACE), *pinned[2];
    void *memory;
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 2; i++) {
        OK(cuMemAlloc_v2(&device[i], SPACE));
        pageable[i] = malloc(SPACE);
        OK(cuMemHostAlloc(&memory, SPACE, 0));
        pinned[i] = memory;
    }
    for (int i = 0; i < 300; i++) {
        size_t width = random_below(i % 7 == 0 ? 3000 : 200) + 1, height = random_below(30) + 1,
               depth = random_below(4) + 1;
        struct shape t = random_shape(width, height, depth, random_below(4) == 0);
        struct shape f = random_shape(width, height, depth, random_below(4) == 0);
        bool three = i & 1, async = random_below(2);
        int from = (int)random_below(3), to = (int)random_below(3); /* 0 pageable, 1 pinned, 2 device */
        random_fill(source, SPACE);
        random_fill(wanted, SPACE);
        if (!three) {
            depth = 1;
            t.z = f.z = 0;
        }
        void *host_from = from ? pinned[0] : pageable[0], *host_to = to ? pinned[1] : pageable[1];
        if (from == 2) {
            OK(cuMemcpyHtoD_v2(device[0], source, SPACE));
        } else {
            memcpy(host_from, source, SPACE);
        }
        if (to == 2) {
            OK(cuMemcpyHtoD_v2(device[1], wanted, SPACE));
        } else {
            memcpy(host_to, wanted, SPACE);
        }
        OK(cuCtxSynchronize());
        model(wanted, t, source, f, width, height, depth);
        CUmemorytype from_type = from == 2 ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        CUmemorytype to_type = to == 2 ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        bool unified = random_below(4) == 0;
        CUdeviceptr from_address = from == 2 ? device[0] : (CUdeviceptr)(uintptr_t)host_from;
        CUdeviceptr to_address = to == 2 ? device[1] : (CUdeviceptr)(uintptr_t)host_to;
        if (three) {
            CUDA_MEMCPY3D c = {.srcXInBytes = f.x,
                               .srcY = f.y,
                               .srcZ = f.z,
                               .srcMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : from_type,
                               .srcHost = host_from,
                               .srcDevice = from_address,
                               .srcPitch = f.pitch,
                               .srcHeight = f.height,
                               .dstXInBytes = t.x,
                               .dstY = t.y,
                               .dstZ = t.z,
                               .dstMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : to_type,
                               .dstHost = host_to,
                               .dstDevice = to_address,
                               .dstPitch = t.pitch,
                               .dstHeight = t.height,
                               .WidthInBytes = width,
                               .Height = height,
                               .Depth = depth};
            OK(async ? cuMemcpy3DAsync_v2(&c, stream) : cuMemcpy3D_v2(&c));
        } else {
            CUDA_MEMCPY2D c = {.srcXInBytes = f.x,
                               .srcY = f.y,
                               .srcMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : from_type,
                               .srcHost = host_from,
                               .srcDevice = from_address,
                               .srcPitch = f.pitch,
                               .dstXInBytes = t.x,
                               .dstY = t.y,
                               .dstMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : to_type,
                               .dstHost = host_to,
                               .dstDevice = to_address,
                               .dstPitch = t.pitch,
                               .WidthInBytes = width,
                               .Height = height};
            OK(async ? cuMemcpy2DAsync_v2(&c, stream) : i % 3 ? cuMemcpy2D_v2(&c) : cuMemcpy2DUnaligned_v2(&c));
        }
        OK(async ? cuStreamSynchronize(stream) : cuCtxSynchronize());
        if (to == 2) {
            OK(cuMemcpyDtoH_v2(found, device[1], SPACE));
        } else {
            memcpy(found, host_to, SPACE);
        }
        CHECK(memcmp(found, wanted, SPACE) == 0);
    }
    /* Large and pitched: through transfers, and through more than one packing buffer. */
    enum { ROWS = 700, WIDTH = 50001, PITCH = 50100 };
    unsigned char *large = malloc((size_t)ROWS * PITCH), *back = malloc((size_t)ROWS * PITCH);
    CUdeviceptr d;
    size_t pitch;
    OK(cuMemAllocPitch_v2(&d, &pitch, WIDTH, ROWS, 4));
    CHECK(pitch % 512 == 0 && pitch >= WIDTH);
    random_fill(large, (size_t)ROWS * PITCH);
    memset(back, 0, (size_t)ROWS * PITCH);
    CUDA_MEMCPY2D up = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = large,
                        .srcPitch = PITCH,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = d,
                        .dstPitch = pitch,
                        .WidthInBytes = WIDTH,
                        .Height = ROWS};
    CUDA_MEMCPY2D down = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = d,
                          .srcPitch = pitch,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = back,
                          .dstPitch = PITCH,
                          .WidthInBytes = WIDTH,
                          .Height = ROWS};
    OK(cuMemcpy2D_v2(&up));
    OK(cuMemcpy2D_v2(&down));
    for (int i = 0; i < ROWS; i++) {
        CHECK(memcmp(back + (size_t)i * PITCH, large + (size_t)i * PITCH, WIDTH) == 0);
        for (int k = WIDTH; k < PITCH; k++) {
            CHECK(back[(size_t)i * PITCH + (size_t)k] == 0);
        }
    }
    /* What the driver refuses. */
    down.Height = ROWS + 1;
    GIVES(1, cuMemcpy2D_v2(&down));
    down.Height = ROWS;
    down.srcPitch = SIZE_MAX;
    GIVES(1, cuMemcpy2D_v2(&down));
    down.srcPitch = pitch;
    down.srcY = SIZE_MAX / pitch;
    GIVES(1, cuMemcpy2D_v2(&down));
    down.srcY = 0;
    down.dstPitch = WIDTH - 1;
    GIVES(1, cuMemcpy2D_v2(&down));
    down.dstPitch = PITCH;
    down.srcMemoryType = CU_MEMORYTYPE_ARRAY; /* no array */
    GIVES(1, cuMemcpy2D_v2(&down));
    GIVES(1, cuMemcpy2D_v2(NULL));
}

/* Bytes that a memset or a copy queued long before a synchronous copy wrote come in order, in streams of every kind. */
void case_order(void) {
    CUfunction spin_ns = kernel(load_kernels(), "spin_ns");
    CUstream stream;
    CUdeviceptr a;
    unsigned char *host = malloc(1 * MIB), *back = malloc(1 * MIB);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&a, 1 * MIB));
    for (int i = 0; i < 60; i++) {
        size_t size = i % 3 == 0 ? 1000 : i % 3 == 1 ? 60000 : 1 * MIB;
        random_fill(host, size);
        memset(back, 0, size);
        run_spin(spin_ns, 2000000, CU_STREAM_LEGACY); /* the copy below cannot have happened when its call returns */
        OK(cuMemcpyHtoD_v2(a, host, size));
        OK(cuMemcpyDtoHAsync_v2(back, a, size, stream)); /* a stream that does not wait for the legacy one by itself */
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(host, back, size) == 0);
    }
}

/* Copies of every size behind a host function, which can end only when the session reads frames that come after them.
 */
static void hold_stream(void *argument) {
    volatile int *go = argument;
    while (!*go) {
        usleep(1000);
    }
}

void case_stall(void) {
    enum {
        LARGE = 70 << 20,
        SMALL = 100
    }; /* together fewer commands than a stream takes before the driver itself waits */
    CUdeviceptr a, b;
    CUstream stream, other;
    void *up, *down, *small;
    volatile int go = 0;
    unsigned char *check = malloc(3 * MIB);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&a, LARGE));
    OK(cuMemAlloc_v2(&b, LARGE));
    OK(cuMemHostAlloc(&up, LARGE, 0));
    OK(cuMemHostAlloc(&down, LARGE, 0));
    OK(cuMemHostAlloc(&small, SMALL * 5000, 0));
    random_fill(up, LARGE);
    memset(down, 0, LARGE);
    memset(small, 0, SMALL * 5000);
    OK(cuMemcpyHtoD_v2(b, up, 3 * MIB));
    OK(cuCtxSynchronize());
    OK(cuLaunchHostFunc(stream, hold_stream, (void *)(uintptr_t)&go));
    OK(cuMemcpyHtoDAsync_v2(a, up, LARGE, stream));
    OK(cuMemcpyDtoHAsync_v2(down, a, LARGE, stream));
    for (int i = 0; i < SMALL; i++) {
        OK(cuMemcpyHtoDAsync_v2(a + (CUdeviceptr)i * 5000, (unsigned char *)up + i, 5000, stream));
        OK(cuMemcpyDtoHAsync_v2((unsigned char *)small + i * 5000, a + (CUdeviceptr)i * 5000, 5000, stream));
    }
    /* Other streams go on meanwhile. */
    OK(cuMemcpyDtoHAsync_v2(check, b, 3 * MIB, other));
    CHECK(memcmp(check, up, 3 * MIB) == 0);
    GIVES(600, cuStreamQuery(stream));
    go = 1;
    OK(cuStreamSynchronize(stream));
    CHECK(memcmp(up, down, LARGE) == 0);
    for (int i = 0; i < SMALL; i++) {
        CHECK(memcmp((unsigned char *)small + i * 5000, (unsigned char *)up + i, 5000) == 0);
    }
}

/* ---- in step ---- */

static pthread_barrier_t together;

/* Each copy is larger than what a reply carries and fits one chunk, so nobody but those who wait copies it. */
static void *step_run(void *context) {
    enum { SIZE = 128 << 10, ROUNDS = 3000 };
    static _Thread_local unsigned char got[SIZE];
    CUdeviceptr memory;
    CUstream stream;
    OK(cuCtxSetCurrent(context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, SIZE));
    OK(cuMemsetD8_v2(memory, 7, SIZE));
    OK(cuCtxSynchronize());
    for (int round = 0; round < ROUNDS; round++) {
        got[0] = got[SIZE - 1] = 0;
        pthread_barrier_wait(&together);
        OK(cuMemcpyDtoHAsync_v2(got, memory, SIZE, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(got[0] == 7 && got[SIZE - 1] == 7);
    }
    return NULL;
}

/* Two threads whose replies come at once: the one that reads both must not leave the other behind. */
void case_in_step(void) {
    pthread_t threads[2];
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    pthread_barrier_init(&together, NULL, 2);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, step_run, context) == 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* ---- the first ---- */

static _Atomic bool busy;

static void *busy_run(void *context) {
    size_t unused, total;
    CUdeviceptr memory;
    OK(cuCtxSetCurrent(context));
    OK(cuMemAlloc_v2(&memory, MIB));
    while (busy) {
        for (int i = 0; i < 60; i++) {
            OK(cuMemsetD8Async(memory, 1, MIB, NULL));
        }
        OK(cuMemGetInfo_v2(&unused, &total));
    }
    return NULL;
}

/* The first large copy of a process, while other threads keep the session busy: its connections have just been made. */
void case_first_copy(void) {
    pthread_t threads[4];
    CUcontext context;
    CUdeviceptr memory;
    CUstream stream;
    unsigned char *pinned;
    size_t size = 256 * KIB;
    OK(cuCtxGetCurrent(&context));
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuMemHostAlloc((void **)&pinned, size, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemsetD8Async(memory, 9, size, stream));
    busy = true;
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, busy_run, context) == 0);
    }
    usleep(20000);
    OK(cuMemcpyDtoHAsync_v2(pinned, memory, size, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(pinned[0] == 9 && pinned[size - 1] == 9);
    busy = false;
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* ---- streams that stand ---- */

static _Atomic bool released;

static void stand(void *unused) {
    (void)unused;
    while (!released) {
        usleep(1000);
    }
}

/* Frees wait for every stream, and every stream stands at a host function: the session must still read on to hear that they ran. */
void case_standing(void) {
    enum { STREAMS = 300, FREES = 20 };
    static CUstream streams[STREAMS];
    CUdeviceptr memory[FREES];
    for (int i = 0; i < FREES; i++) {
        OK(cuMemAlloc_v2(&memory[i], MIB));
    }
    released = false;
    for (int i = 0; i < STREAMS; i++) {
        OK(cuStreamCreate(&streams[i], CU_STREAM_NON_BLOCKING));
        OK(cuLaunchHostFunc(streams[i], stand, NULL));
    }
    for (int i = 0; i < FREES; i++) {
        OK(cuMemFree_v2(memory[i]));
    }
    usleep(300000);
    released = true;
    for (int i = 0; i < STREAMS; i++) {
        OK(cuStreamSynchronize(streams[i]));
        OK(cuStreamDestroy_v2(streams[i]));
    }
}

/* cuMemFreeAsync takes memory of cuMemAlloc, too. It stays what it is until its stream gets there. */
void case_ordered_frees(void) {
    static const size_t sizes[] = {1000, 5 * MIB};
    CUstream stream;
    CUgraph graph;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 4; i++) {
        const size_t size = sizes[i % 2];
        CUdeviceptr a, b;
        unsigned char byte = 0;
        OK(cuMemAlloc_v2(&a, size));
        GIVES(1, cuMemFreeAsync(a + 1, stream));
        GIVES(400, cuMemFreeAsync(a, (CUstream)0x1234));
        released = false;
        OK(cuLaunchHostFunc(stream, stand, NULL));
        OK(cuMemsetD8Async(a, 1, size, stream));
        OK(cuMemFreeAsync(a, stream));
        GIVES(1, cuMemFreeAsync(a, stream));
        GIVES(1, cuMemFree_v2(a));
        OK(cuMemAlloc_v2(&b, size));
        CHECK(b != a);
        OK(cuMemsetD8_v2(b, 2, size));
        released = true;
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(&byte, b + size - 1, 1));
        CHECK(byte == 2);
        OK(i < 2 ? cuMemFreeAsync(b, NULL) : cuMemFreeAsync(b, CU_STREAM_PER_THREAD));
    }
    /* What a capture refuses has not been freed. */
    for (int i = 0; i < 2; i++) {
        CUdeviceptr a;
        OK(i ? cuMemAllocAsync(&a, 1000, stream) : cuMemAlloc_v2(&a, 1000));
        OK(cuStreamSynchronize(stream));
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(a, stream)); /* which does not disturb it */
        OK(cuStreamEndCapture(stream, &graph));
        OK(cuGraphDestroy(graph));
        OK(cuMemsetD8Async(a, 3, 1000, stream)); /* the legacy stream has no order with it */
        OK(cuMemFreeAsync(a, stream));
        GIVES(1, cuMemFree_v2(a));
    }
    OK(cuStreamDestroy_v2(stream));
}

/* Under a limit of 64 MiB, all of which is had again, though another stream stands. */
void case_ordered_limit(void) {
    CUdeviceptr a;
    CUstream stream, standing;
    size_t free_bytes, total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&standing, CU_STREAM_NON_BLOCKING));
    released = false;
    OK(cuLaunchHostFunc(standing, stand, NULL));
    for (int i = 0; i < 3; i++) {
        OK(cuMemAlloc_v2(&a, 64 * MIB));
        OK(cuMemFreeAsync(a, stream));
        OK(cuMemGetInfo_v2(&free_bytes, &total));
        CHECK(free_bytes == 64 * MIB);
    }
    released = true;
    OK(cuCtxSynchronize());
}
