/*
 * Memory and copies as a program sees them: the client library, a worker and the simulated GPU in real processes.
 *
 * Each argument names a case; tests/test_memory.py builds and runs them. Data are random, and every copy is compared with what
 * plain memory operations in this process give.
 */
#include "simgpu_check.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull * KIB)

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_next(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t random_below(uint64_t limit) { return random_next() % limit; }

static void random_fill(void *memory, size_t size) {
    unsigned char *bytes = memory;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(random_next() >> 24);
    }
}

static void run_spin(CUfunction function, uint64_t nanoseconds, CUstream stream) {
    void *params[] = {&nanoseconds};
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

/* ---- copies of one dimension ---- */

static void case_copies(void) {
    static const size_t sizes[] = {1, 3, 4, 4095, 4096, 4097, 65535, 65536, 65537, 1 * MIB, 1 * MIB + 1, 5 * MIB + 7, 40 * MIB + 3};
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

static void case_visible(void) {
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

static void model(unsigned char *to, struct shape t, const unsigned char *from, struct shape f, size_t width, size_t height,
                  size_t depth) {
    for (size_t z = 0; z < depth; z++) {
        for (size_t y = 0; y < height; y++) {
            memcpy(to + ((z + t.z) * t.height + y + t.y) * t.pitch + t.x, from + ((z + f.z) * f.height + y + f.y) * f.pitch + f.x,
                   width);
        }
    }
}

static void case_boxes(void) {
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
        size_t width = random_below(i % 7 == 0 ? 3000 : 200) + 1, height = random_below(30) + 1, depth = random_below(4) + 1;
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
            CUDA_MEMCPY3D c = {.srcXInBytes = f.x, .srcY = f.y, .srcZ = f.z, .srcMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : from_type,
                               .srcHost = host_from, .srcDevice = from_address, .srcPitch = f.pitch, .srcHeight = f.height,
                               .dstXInBytes = t.x, .dstY = t.y, .dstZ = t.z, .dstMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : to_type,
                               .dstHost = host_to, .dstDevice = to_address, .dstPitch = t.pitch, .dstHeight = t.height,
                               .WidthInBytes = width, .Height = height, .Depth = depth};
            OK(async ? cuMemcpy3DAsync_v2(&c, stream) : cuMemcpy3D_v2(&c));
        } else {
            CUDA_MEMCPY2D c = {.srcXInBytes = f.x, .srcY = f.y, .srcMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : from_type,
                               .srcHost = host_from, .srcDevice = from_address, .srcPitch = f.pitch,
                               .dstXInBytes = t.x, .dstY = t.y, .dstMemoryType = unified ? CU_MEMORYTYPE_UNIFIED : to_type,
                               .dstHost = host_to, .dstDevice = to_address, .dstPitch = t.pitch,
                               .WidthInBytes = width, .Height = height};
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
    CUDA_MEMCPY2D up = {.srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = large, .srcPitch = PITCH,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = d, .dstPitch = pitch,
                        .WidthInBytes = WIDTH, .Height = ROWS};
    CUDA_MEMCPY2D down = {.srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = d, .srcPitch = pitch,
                          .dstMemoryType = CU_MEMORYTYPE_HOST, .dstHost = back, .dstPitch = PITCH,
                          .WidthInBytes = WIDTH, .Height = ROWS};
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
    down.srcMemoryType = CU_MEMORYTYPE_ARRAY;
    GIVES(801, cuMemcpy2D_v2(&down));
    GIVES(1, cuMemcpy2D_v2(NULL));
}

/* ---- allocations ---- */

static void case_allocations(void) {
    enum { LIVE = 300 };
    static struct {
        CUdeviceptr address;
        size_t size;
        unsigned char value;
    } live[LIVE];
    size_t free_before, free_after, total;
    OK(cuMemGetInfo_v2(&free_before, &total));
    for (int step = 0; step < 4000; step++) {
        size_t i = random_below(LIVE);
        if (live[i].address) {
            unsigned char first = 0, last = 0;
            CUdeviceptr base;
            size_t size;
            OK(cuMemGetAddressRange_v2(&base, &size, live[i].address + live[i].size / 2));
            CHECK(base == live[i].address && size == live[i].size);
            if (step % 4 == 0) {
                OK(cuMemcpyDtoH_v2(&first, live[i].address, 1));
                OK(cuMemcpyDtoH_v2(&last, live[i].address + live[i].size - 1, 1));
                CHECK(first == live[i].value && last == live[i].value);
            }
            OK(cuMemFree_v2(live[i].address));
            GIVES(1, cuMemFree_v2(live[i].address));
            live[i].address = 0;
        } else {
            live[i].size = random_below(10) ? random_below(100 * KIB) + 1 : random_below(6 * MIB) + 1;
            live[i].value = (unsigned char)random_next();
            OK(cuMemAlloc_v2(&live[i].address, live[i].size));
            CHECK(live[i].address % 256 == 0);
            OK(cuMemsetD8_v2(live[i].address, live[i].value, live[i].size));
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        for (size_t k = 0; k < LIVE; k++) {
            CHECK(i == k || !live[i].address || !live[k].address || live[i].address >= live[k].address + live[k].size ||
                  live[k].address >= live[i].address + live[i].size);
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        if (live[i].address) {
            OK(cuMemFree_v2(live[i].address));
        }
    }
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&free_after, &total));
    CHECK(free_after == free_before);

    /* Freed while queued work still uses it: nothing faults, and what comes after does not get the same bytes too early. */
    CUfunction spin_ns = kernel(load_kernels(), "spin_ns");
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 20; i++) {
        CUdeviceptr a, b;
        unsigned char byte = 0;
        size_t size = i % 2 ? 5 * MIB : 1000;
        OK(cuMemAlloc_v2(&a, size));
        run_spin(spin_ns, 3000000, stream);
        OK(cuMemsetD8Async(a, 1, size, stream));
        OK(cuMemFree_v2(a));
        OK(cuMemAlloc_v2(&b, size));
        OK(cuMemsetD8_v2(b, 2, size));
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(&byte, b + size - 1, 1));
        CHECK(byte == 2);
        OK(cuMemFree_v2(b));
    }
    GIVES(1, cuMemFree_v2(0x123456789000ull));
    GIVES(1, cuMemcpyHtoD_v2(0x123456789000ull, &total, 8));
    GIVES(1, cuMemsetD8_v2(0x123456789000ull, 0, 8));
}

/* Under a limit of 64 MiB: every way of allocating counts, to the byte. */
static void case_limit(void) {
    CUdeviceptr a, b, address;
    CUstream stream;
    size_t free_bytes, total, device_total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuDeviceTotalMem_v2(&device_total, 0));
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(device_total == 64 * MIB && total == 64 * MIB && free_bytes == 64 * MIB);
    GIVES(2, cuMemAlloc_v2(&a, 64 * MIB + 1));
    for (int i = 0; i < 3; i++) {
        OK(cuMemAlloc_v2(&a, 64 * MIB));
        OK(cuMemGetInfo_v2(&free_bytes, &total));
        CHECK(free_bytes == 0);
        GIVES(2, cuMemAlloc_v2(&b, 1));
        GIVES(2, cuMemAllocAsync(&b, 1, stream));
        OK(cuMemFree_v2(a));
    }
    OK(cuMemAlloc_v2(&a, 1));
    OK(cuMemAlloc_v2(&b, 64 * MIB - 1));
    GIVES(2, cuMemAlloc_v2(&address, 1));
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
    OK(cuMemAllocAsync(&a, 60 * MIB, stream));
    GIVES(2, cuMemAllocAsync(&b, 4 * MIB + 1, stream));
    OK(cuMemAlloc_v2(&b, 4 * MIB));
    OK(cuMemFreeAsync(a, stream));
    OK(cuMemFree_v2(b));
    OK(cuMemAlloc_v2(&a, 64 * MIB)); /* waits for the frees in the stream */
    OK(cuMemFree_v2(a));
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle, more;
    OK(cuMemCreate(&handle, 62 * MIB, &prop, 0));
    GIVES(2, cuMemCreate(&more, 4 * MIB, &prop, 0));
    OK(cuMemAddressReserve(&address, 64 * MIB, 0, 0, 0));
    OK(cuMemMap(address, 62 * MIB, 0, handle, 0));
    OK(cuMemRelease(handle));
    GIVES(2, cuMemAlloc_v2(&a, 2 * MIB + 1)); /* the mapping keeps it */
    OK(cuMemUnmap(address, 62 * MIB));
    OK(cuMemAlloc_v2(&a, 64 * MIB));
    OK(cuMemFree_v2(a));
}

/* A second client under the same limit while the first holds 40 of 64 MiB: waits for a line, then lets go. */
static void case_hold(void) {
    CUdeviceptr a;
    OK(cuMemAlloc_v2(&a, 40 * MIB));
    printf("holding\n");
    fflush(stdout);
    CHECK(getchar() != EOF);
}

static void case_share(void) {
    CUdeviceptr a;
    size_t free_bytes, total;
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(free_bytes == 24 * MIB);
    GIVES(2, cuMemAlloc_v2(&a, 24 * MIB + 1));
    OK(cuMemAlloc_v2(&a, 24 * MIB));
}

/* ---- mapped host memory ---- */

static void case_twins(void) {
    CUmodule module = load_kernels();
    CUfunction fill = kernel(module, "fill_u32"), add = kernel(module, "vector_add");
    enum { COUNT = 1000 };
    void *memory;
    CUdeviceptr device, inside, single;
    CUstream stream;
    size_t count = COUNT;
    uint32_t value = 0xabcdef01;
    int small_count = COUNT;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemHostAlloc(&memory, 3 * COUNT * 4, CU_MEMHOSTALLOC_DEVICEMAP));
    uint32_t *words = memory;
    float *floats = memory;
    memset(memory, 0, 3 * COUNT * 4);
    OK(cuMemHostGetDevicePointer_v2(&device, memory, 0));
    OK(cuMemHostGetDevicePointer_v2(&inside, words + 10, 0));
    OK(cuPointerGetAttribute(&single, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, (CUdeviceptr)(uintptr_t)memory));
    CHECK(inside == device + 40 && single == device);
    unsigned type = 0;
    void *host_again = NULL;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 4));
    OK(cuPointerGetAttribute(&host_again, CU_POINTER_ATTRIBUTE_HOST_POINTER, device + 4));
    CHECK(type == CU_MEMORYTYPE_HOST && host_again == words + 1);
    for (int i = 0; i < 20; i++) {
        /* A kernel writes, the program reads after each kind of wait. */
        value += 0x01010101;
        void *params[] = {&device, &value, &count};
        OK(cuLaunchKernel(fill, 4, 1, 1, 256, 1, 1, 0, stream, params, NULL));
        if (i % 3 == 0) {
            OK(cuStreamSynchronize(stream));
        } else if (i % 3 == 1) {
            OK(cuCtxSynchronize());
        } else {
            while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
            }
        }
        for (size_t k = 0; k < COUNT; k++) {
            CHECK(words[k] == value);
        }
        CHECK(words[COUNT] == 0 || i > 0);
        /* The program writes, a kernel reads. */
        CUdeviceptr second = device + COUNT * 4, third = device + 2 * COUNT * 4;
        for (int k = 0; k < COUNT; k++) {
            floats[k] = (float)(k + i);
            floats[COUNT + k] = (float)(2 * k);
        }
        void *sum[] = {&device, &second, &third, &small_count};
        OK(cuLaunchKernel(add, 4, 1, 1, 256, 1, 1, 0, stream, sum, NULL));
        OK(cuStreamSynchronize(stream));
        for (int k = 0; k < COUNT; k++) {
            CHECK(floats[2 * COUNT + k] == (float)(k + i) + (float)(2 * k));
        }
    }
    /* Copies by either address. */
    uint32_t back[4] = {0};
    words[0] = 77;
    OK(cuMemcpyDtoH_v2(back, device, 16));
    CHECK(back[0] == 77);
    OK(cuMemFreeHost(memory));
    GIVES(1, cuMemcpyDtoH_v2(back, device, 16));
    OK(cuMemHostAlloc(&memory, 64 * KIB + 1, CU_MEMHOSTALLOC_DEVICEMAP));
    GIVES(801, cuMemHostGetDevicePointer_v2(&device, memory, 0));
    OK(cuMemFreeHost(memory));
    for (int i = 0; i < 100; i++) { /* the area for twins is used again and again */
        OK(cuMemHostAlloc(&memory, 64 * KIB, CU_MEMHOSTALLOC_DEVICEMAP));
        OK(cuMemHostGetDevicePointer_v2(&device, memory, 0));
        OK(cuMemFreeHost(memory));
    }
}

/* ---- virtual memory ---- */

static void case_vmm(void) {
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle one, two, again;
    CUmemAllocationProp told;
    CUdeviceptr base, plain, next;
    size_t granularity, size;
    unsigned long long flags = 9;
    unsigned char *host = malloc(4 * MIB), *back = malloc(4 * MIB);
    OK(cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    CHECK(granularity == 2 * MIB);
    OK(cuMemAddressReserve(&base, 64 * MIB, 0, 0, 0));
    OK(cuMemAddressReserve(&next, 64 * MIB, 256 * MIB, 0, 0));
    CHECK(next % (256 * MIB) == 0);
    OK(cuMemAddressFree(next, 64 * MIB));
    OK(cuMemCreate(&one, 2 * MIB, &prop, 0));
    OK(cuMemCreate(&two, 4 * MIB, &prop, 0));
    OK(cuMemMap(base, 2 * MIB, 0, one, 0));
    OK(cuMemMap(base + 2 * MIB, 4 * MIB, 0, two, 0));
    GIVES(1, cuMemMap(base + 4 * MIB, 2 * MIB, 0, one, 0));
    GIVES(1, cuMemMap(base + 64 * MIB, 2 * MIB, 0, one, 0));
    GIVES(1, cuMemMap(base + 62 * MIB, 4 * MIB, 0, two, 0));
    GIVES(1, cuMemMap(base + 32 * MIB, 4 * MIB, 2 * MIB, two, 0));
    OK(cuMemSetAccess(base, 6 * MIB, &access, 1));
    OK(cuMemGetAccess(&flags, &access.location, base + 3 * MIB));
    CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    random_fill(host, 4 * MIB);
    OK(cuMemcpyHtoD_v2(base + 1 * MIB, host, 4 * MIB)); /* across the seam */
    OK(cuMemcpyDtoH_v2(back, base + 1 * MIB, 4 * MIB));
    CHECK(memcmp(host, back, 4 * MIB) == 0);
    OK(cuMemsetD8_v2(base + 1 * MIB, 5, 3 * MIB));
    GIVES(1, cuMemcpyDtoH_v2(back, base + 4 * MIB, 2 * MIB + 1));
    OK(cuCtxSynchronize()); /* unmapping under queued work is the program's fault */
    OK(cuMemRelease(one));
    GIVES(1, cuMemRelease(one));
    OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(base + 100)));
    OK(cuMemGetAllocationPropertiesFromHandle(&told, again));
    CHECK(told.type == prop.type && told.location.type == prop.location.type);
    OK(cuMemRelease(again));
    GIVES(1, cuMemUnmap(base, 1 * MIB));
    GIVES(1, cuMemUnmap(base, 4 * MIB));
    GIVES(1, cuMemAddressFree(base, 64 * MIB));
    OK(cuMemUnmap(base, 6 * MIB));
    GIVES(1, cuMemcpyDtoH_v2(back, base, 1));
    OK(cuMemMap(base, 4 * MIB, 0, two, 0));
    OK(cuMemSetAccess(base, 4 * MIB, &access, 1));
    OK(cuMemcpyDtoH_v2(back, base + 1 * MIB, 1)); /* its contents stayed */
    CHECK(back[0] == 5);
    OK(cuMemUnmap(base, 4 * MIB));
    OK(cuMemRelease(two));
    OK(cuMemAddressFree(base, 64 * MIB));
    GIVES(1, cuMemAddressFree(base, 64 * MIB));
    GIVES(1, cuMemAddressReserve(&base, 12345, 0, 0, 0));
    OK(cuMemAlloc_v2(&plain, 100));
    OK(cuMemGetAddressRange_v2(&next, &size, plain));
    CHECK(next == plain && size == 100);
}

/* ---- pools ---- */

static void case_pools(void) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemoryPool standard, own, current, of_pointer;
    CUdeviceptr a, b;
    CUstream stream;
    int reuse = -1;
    uint64_t threshold = 12345, used = 1;
    unsigned char byte = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuDeviceGetDefaultMemPool(&standard, 0));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(standard == current);
    OK(cuMemPoolCreate(&own, &props));
    OK(cuDeviceSetMemPool(0, own));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(current == own);
    OK(cuMemAllocAsync(&a, 3 * MIB, stream));
    OK(cuPointerGetAttribute(&of_pointer, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, a));
    CHECK(of_pointer == own);
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    CHECK(used >= 3 * MIB);
    OK(cuMemPoolSetAttribute(own, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    threshold = 0;
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    CHECK(threshold == 12345);
    OK(cuMemPoolGetAttribute(own, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
    CHECK(reuse == 0 || reuse == 1);
    GIVES(1, cuMemPoolGetAttribute(own, (CUmemPool_attribute)99, &threshold));
    OK(cuMemsetD8Async(a, 9, 3 * MIB, stream));
    OK(cuMemcpyDtoHAsync_v2(&byte, a + 3 * MIB - 1, 1, stream));
    CHECK(byte == 9);
    GIVES(1, cuMemsetD8_v2(a, 9, 3 * MIB + 1));
    GIVES(1, cuMemFreeAsync(a + 1, stream));
    OK(cuMemFreeAsync(a, stream));
    GIVES(1, cuMemFreeAsync(a, stream));
    OK(cuMemAllocFromPoolAsync(&a, 100, standard, stream));
    OK(cuMemAlloc_v2(&b, 100));
    GIVES(1, cuMemFreeAsync(b, stream));
    OK(cuMemFree_v2(a)); /* a pool's memory may be freed this way too */
    OK(cuMemFree_v2(b));
    OK(cuMemPoolTrimTo(own, 0));
    GIVES(1, cuMemPoolDestroy(standard));
    OK(cuMemPoolDestroy(own));
    OK(cuDeviceGetMemPool(&current, 0));
    CHECK(current == standard);
    OK(cuMemAllocAsync(&a, 100, stream));
    OK(cuStreamSynchronize(stream));
}

/* ---- several threads ---- */

static void *thread_run(void *argument) {
    CUcontext context = argument;
    CUdeviceptr device;
    CUstream stream;
    void *pinned;
    enum { SIZE = 3 << 20 };
    unsigned char *host = malloc(SIZE), *back = malloc(SIZE);
    unsigned seed = (unsigned)(uintptr_t)&context;
    OK(cuCtxSetCurrent(context));
    OK(cuMemAlloc_v2(&device, SIZE));
    OK(cuMemHostAlloc(&pinned, SIZE, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < 60; i++) {
        size_t size = (size_t)rand_r(&seed) % (i % 4 ? 50000 : SIZE) + 1;
        for (size_t k = 0; k < size; k++) {
            host[k] = (unsigned char)(rand_r(&seed) >> 7);
        }
        memset(pinned, 0, size);
        OK(cuMemcpyHtoDAsync_v2(device, host, size, stream));
        OK(cuMemcpyDtoHAsync_v2(i % 2 ? back : pinned, device, size, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(host, i % 2 ? back : pinned, size) == 0);
        CUdeviceptr extra;
        OK(cuMemAlloc_v2(&extra, size));
        unsigned type = 0;
        OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, extra + size - 1));
        CHECK(type == CU_MEMORYTYPE_DEVICE);
        OK(cuMemFree_v2(extra));
        GIVES(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, extra));
    }
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree_v2(device));
    free(host);
    free(back);
    return NULL;
}

static void case_threads(void) {
    pthread_t threads[6];
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    for (int i = 0; i < 6; i++) {
        CHECK(pthread_create(&threads[i], NULL, thread_run, context) == 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* Bytes that a memset or a copy queued long before a synchronous copy wrote come in order, in streams of every kind. */
static void case_order(void) {
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

/* Copies of every size behind a host function, which can end only when the session reads frames that come after them. */
static void hold_stream(void *argument) {
    volatile int *go = argument;
    while (!*go) {
        usleep(1000);
    }
}

static void case_stall(void) {
    enum { LARGE = 70 << 20, SMALL = 100 }; /* together fewer commands than a stream takes before the driver itself waits */
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

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {{"copies", case_copies}, {"visible", case_visible}, {"boxes", case_boxes},
             {"allocations", case_allocations}, {"limit", case_limit}, {"hold", case_hold},
             {"share", case_share}, {"twins", case_twins}, {"vmm", case_vmm},
             {"pools", case_pools}, {"threads", case_threads}, {"order", case_order}, {"stall", case_stall}};

int main(int argc, char **argv) {
    CUcontext context;
    CHECK(argc > 1);
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    for (int i = 1; i < argc; i++) {
        bool found = false;
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            if (strcmp(argv[i], cases[k].name) == 0) {
                cases[k].run();
                found = true;
            }
        }
        CHECK(found);
    }
    return 0;
}
