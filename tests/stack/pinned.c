/*
 * Pinned memory by its host address: where CUDA takes a device address, it takes that of pinned memory, too.
 *
 * One check for each word that the role is given, for memory of every kind: allocated in both ways, registered, and with a device
 * address that was asked for; small and large. The program looks at the memory where CUDA lets it: behind a wait for the stream
 * or an event, behind a query that said "complete", and behind the forms that are synchronous for host memory.
 */
#include "stack.h"

#include <sys/mman.h>

enum { SMALL = 8192, LARGE = (9 << 20) + 4096, KINDS = 4 };

static struct memory {
    unsigned char *at;
    size_t size;
    bool registered;
} memories[KINDS];
static CUmodule module;
static CUdeviceptr device, other; /* as large as the largest */
static unsigned char *plain;

static uint64_t number(const void *at) { return (uint64_t)(uintptr_t)at; }

static void make_all(void) {
    CUdeviceptr there;
    start();
    module = load_kernels();
    memories[0] = (struct memory){.size = SMALL};
    OK(cuMemHostAlloc((void **)&memories[0].at, SMALL, 0));
    memories[1] = (struct memory){.size = LARGE};
    OK(cuMemAllocHost_v2((void **)&memories[1].at, LARGE));
    memories[2] = (struct memory){.size = LARGE, .registered = true};
    memories[2].at = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(memories[2].at != MAP_FAILED);
    OK(cuMemHostRegister_v2(memories[2].at, LARGE, 0));
    memories[3] = (struct memory){.size = SMALL};
    OK(cuMemHostAlloc((void **)&memories[3].at, SMALL, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostGetDevicePointer_v2(&there, memories[3].at, 0));
    OK(cuMemAlloc_v2(&device, LARGE));
    OK(cuMemAlloc_v2(&other, LARGE));
    plain = malloc(LARGE);
    CHECK(plain);
}

static void end_all(void) {
    for (int i = 0; i < KINDS; i++) {
        OK(memories[i].registered ? cuMemHostUnregister(memories[i].at) : cuMemFreeHost(memories[i].at));
    }
    OK(cuMemFree_v2(device));
    OK(cuMemFree_v2(other));
}

/* Work that takes a while, so that what follows it in the stream cannot be over when its call returns. */
static void busy(CUstream stream) {
    uint64_t ns = 5000000;
    void *params[] = {&ns};
    OK(cuLaunchKernel(kernel(module, "spin_ns"), 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

static bool all(const unsigned char *at, size_t size, unsigned value, size_t unit) {
    for (size_t i = 0; i < size; i++) {
        if (at[i] != (unsigned char)(value >> 8 * (i % unit))) {
            return false;
        }
    }
    return true;
}

static void wait_in_some_way(CUstream stream, int way) {
    CUevent event;
    CUresult result;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventRecord(event, stream));
    if (way == 0) {
        OK(cuStreamSynchronize(stream));
    } else if (way == 1) {
        OK(cuEventSynchronize(event));
    } else {
        while ((result = way == 2 ? cuEventQuery(event) : cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY) {
        }
        OK(result);
    }
    OK(cuEventDestroy_v2(event));
}

/* ---- memsets ---- */

static CUresult set(int form, CUdeviceptr at, size_t bytes, unsigned value, CUstream stream) {
    switch (form) {
    case 0:
        return cuMemsetD8Async(at, (unsigned char)value, bytes, stream);
    case 1:
        return cuMemsetD16Async(at, (unsigned short)value, bytes / 2, stream);
    case 2:
        return cuMemsetD32Async(at, value, bytes / 4, stream);
    case 3:
        return cuMemsetD8_v2(at, (unsigned char)value, bytes);
    case 4:
        return cuMemsetD16_v2(at, (unsigned short)value, bytes / 2);
    default:
        return cuMemsetD32_v2(at, value, bytes / 4);
    }
}

static CUresult set_rows(int form, CUdeviceptr at, unsigned value, CUstream stream) {
    enum { PITCH = 256, WIDTH = 64, ROWS = 9 };
    switch (form) {
    case 0:
        return cuMemsetD2D8Async(at, PITCH, (unsigned char)value, WIDTH, ROWS, stream);
    case 1:
        return cuMemsetD2D16Async(at, PITCH, (unsigned short)value, WIDTH / 2, ROWS, stream);
    case 2:
        return cuMemsetD2D32Async(at, PITCH, value, WIDTH / 4, ROWS, stream);
    case 3:
        return cuMemsetD2D8_v2(at, PITCH, (unsigned char)value, WIDTH, ROWS);
    case 4:
        return cuMemsetD2D16_v2(at, PITCH, (unsigned short)value, WIDTH / 2, ROWS);
    default:
        return cuMemsetD2D32_v2(at, PITCH, value, WIDTH / 4, ROWS);
    }
}

static void memsets(void) {
    const unsigned value = 0x4d3c2b1a;
    CUstream streams[3] = {NULL, CU_STREAM_PER_THREAD};
    make_all();
    OK(cuStreamCreate(&streams[2], CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < KINDS; i++) {
        struct memory m = memories[i];
        for (int form = 0; form < 6; form++) {
            CUstream stream = form < 3 ? streams[(i + form) % 3] : NULL;
            size_t unit = (size_t)1 << form % 3;
            memset(m.at, 0xee, m.size);
            busy(stream);
            OK(set(form, number(m.at + 64), m.size - 128, value, stream));
            if (form < 3) {
                wait_in_some_way(stream, (i + form) % 4);
            }
            CHECK(all(m.at, 64, 0xee, 1) && all(m.at + m.size - 64, 64, 0xee, 1));
            CHECK(all(m.at + 64, m.size - 128, value, unit));
            busy(stream);
            OK(set_rows(form, number(m.at), ~value, stream));
            if (form < 3) {
                wait_in_some_way(stream, (i + form + 1) % 4);
            }
            CHECK(all(m.at, 64, ~value, unit) && all(m.at + 2048, 64, ~value, unit));
            CHECK(all(m.at + 2048 + 64, 256, value, unit) && all(m.at + 128, 128, value, unit));
        }
    }
    end_all();
}

/* ---- in stream order ---- */

/* What a memset or a copy writes into pinned memory is what a copy behind it reads there. */
static void uploads_follow(void) {
    CUstream stream;
    make_all();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < KINDS; i++) {
        struct memory m = memories[i];
        memset(m.at, 0, m.size);
        OK(cuMemsetD8Async(device, 0x11, m.size, stream));
        busy(stream);
        OK(cuMemsetD32Async(number(m.at), 0x71625344, m.size / 4, stream));
        OK(cuMemcpyHtoDAsync_v2(device, m.at, m.size, stream));
        OK(cuMemcpyDtoHAsync_v2(plain, device, m.size, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(all(plain, m.size, 0x71625344, 4));
        OK(cuMemsetD8Async(device, 0x22, m.size, stream));
        busy(stream);
        OK(cuMemcpyDtoDAsync_v2(number(m.at), device, m.size, stream));
        OK(cuMemcpyDtoDAsync_v2(other, number(m.at), m.size, stream));
        OK(cuMemsetD8Async(number(m.at), 0x33, m.size, stream));
        OK(cuMemcpyAsync(device, number(m.at), m.size, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(all(m.at, m.size, 0x33, 1));
        OK(cuMemcpyDtoH_v2(plain, other, m.size));
        CHECK(all(plain, m.size, 0x22, 1));
        OK(cuMemcpyDtoH_v2(plain, device, m.size));
        CHECK(all(plain, m.size, 0x33, 1));
    }
    OK(cuStreamDestroy_v2(stream));
    end_all();
}

/* ---- copies ---- */

typedef CUresult copying(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream);
static CUresult device_to_device(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    return cuMemcpyDtoDAsync_v2(to, from, size, stream);
}
static CUresult device_to_device_now(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    return cuMemcpyDtoD_v2(to, from, size);
}
static CUresult unified(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    return cuMemcpyAsync(to, from, size, stream);
}
static CUresult unified_now(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    return cuMemcpy(to, from, size);
}
static CUresult peers(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    CUcontext context;
    OK(cuCtxGetCurrent(&context));
    return cuMemcpyPeerAsync(to, context, from, context, size, stream);
}
static CUresult peers_now(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    CUcontext context;
    (void)stream;
    OK(cuCtxGetCurrent(&context));
    return cuMemcpyPeer(to, context, from, context, size);
}
static CUresult rows(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = from,
                          .srcPitch = 1024,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = to,
                          .dstPitch = 1024,
                          .WidthInBytes = 1000,
                          .Height = size / 1024};
    return cuMemcpy2DAsync_v2(&copy, stream);
}
static CUresult boxes(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_UNIFIED,
                          .srcDevice = from,
                          .srcPitch = 512,
                          .srcHeight = 4,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = to,
                          .dstPitch = 512,
                          .dstHeight = 4,
                          .WidthInBytes = 500,
                          .Height = 3,
                          .Depth = size / 2048};
    return cuMemcpy3DAsync_v2(&copy, stream);
}
static const struct {
    copying *copy;
    bool now;
    size_t unit, part; /* of each `unit` bytes, `part` at their beginning are copied */
} copyings[] = {{device_to_device, false, 1, 1},
                {device_to_device_now, true, 1, 1},
                {unified, false, 1, 1},
                {unified_now, true, 1, 1},
                {peers, false, 1, 1},
                {peers_now, true, 1, 1},
                {rows, false, 1024, 1000},
                {boxes, false, 2048, 500}};

static bool copied(const unsigned char *at, size_t size, size_t unit, size_t part, unsigned char value) {
    for (size_t i = 0; i < size / unit; i++) {
        if (!all(at + i * unit, part, value, 1)) {
            return false;
        }
    }
    return true;
}

static void copies(void) {
    CUstream stream;
    make_all();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < KINDS; i++) {
        struct memory m = memories[i], second = memories[(i + 1) % KINDS];
        for (size_t k = 0; k < sizeof copyings / sizeof *copyings; k++) {
            CUstream in = copyings[k].now ? NULL : stream;
            size_t unit = copyings[k].unit, part = copyings[k].part;
            size_t both = m.size < second.size ? m.size : second.size;
            unsigned char value = (unsigned char)(0x40 + k);
            memset(m.at, 0xee, m.size);
            OK(cuMemsetD8Async(device, value, m.size, in));
            busy(in);
            OK(copyings[k].copy(number(m.at), device, m.size, in));
            if (!copyings[k].now) {
                wait_in_some_way(in, (int)(k + (size_t)i) % 4);
            }
            CHECK(copied(m.at, m.size, unit, part, value));
            memset(m.at, value + 1, m.size);
            OK(copyings[k].copy(other, number(m.at), m.size, in));
            OK(cuStreamSynchronize(in));
            OK(cuMemcpyDtoH_v2(plain, other, m.size));
            CHECK(copied(plain, m.size, unit, part, (unsigned char)(value + 1)));
            memset(m.at, value + 2, m.size);
            OK(copyings[k].copy(number(second.at), number(m.at), both, in));
            OK(cuStreamSynchronize(in));
            CHECK(copied(second.at, both, unit, part, (unsigned char)(value + 2)));
        }
        memset(plain, 0x5a, m.size);
        OK(cuMemcpyHtoD_v2(number(m.at), plain, m.size));
        CHECK(all(m.at, m.size, 0x5a, 1));
        memset(m.at, 0x5b, m.size);
        OK(cuMemcpyDtoH_v2(plain, number(m.at), m.size));
        CHECK(all(plain, m.size, 0x5b, 1));
    }
    OK(cuStreamDestroy_v2(stream));
    end_all();
}

/* ---- kernels ---- */

static CUresult fill_at(CUdeviceptr at, uint32_t value, size_t words, bool in_a_buffer) {
    struct {
        uint64_t at;
        uint32_t value, unused;
        uint64_t words;
    } buffer = {at, value, 0, words};
    size_t size = sizeof buffer;
    uint64_t count = words;
    void *params[] = {&at, &value, &count};
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
    CUfunction function = kernel(module, "fill_u32");
    CUresult result = in_a_buffer ? cuLaunchKernel(function, 4, 1, 1, 64, 1, 1, 0, NULL, NULL, extra)
                                  : cuLaunchKernel(function, 4, 1, 1, 64, 1, 1, 0, NULL, params, NULL);
    CHECK(buffer.at == at); /* the program's own */
    return result;
}

/* What a twin can hold is reached by its host address, in both forms of a launch and in a graph. */
static void kernels_reach(void) {
    CUgraph graph;
    CUgraphNode node;
    CUgraphExec exec;
    make_all();
    for (int i = 0; i < KINDS; i += KINDS - 1) {
        unsigned char *at = memories[i].at;
        for (int form = 0; form < 2; form++) {
            memset(at, 0xee, SMALL);
            OK(fill_at(number(at + 1024), 0x61626364, 256, form == 1));
            wait_in_some_way(NULL, form + i);
            CHECK(all(at, 1024, 0xee, 1) && all(at + 1024, 1024, 0x61626364, 4) && all(at + 2048, 4096, 0xee, 1));
        }
        uint64_t to = number(at + 512), words = 8;
        uint32_t value = 0x10203040;
        void *params[] = {&to, &value, &words};
        CUDA_KERNEL_NODE_PARAMS what = {.func = kernel(module, "fill_u32"),
                                        .gridDimX = 1,
                                        .gridDimY = 1,
                                        .gridDimZ = 1,
                                        .blockDimX = 32,
                                        .blockDimY = 1,
                                        .blockDimZ = 1,
                                        .kernelParams = params};
        OK(cuGraphCreate(&graph, 0));
        OK(cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &what));
        OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
        OK(cuGraphLaunch(exec, NULL));
        OK(cuStreamSynchronize(NULL));
        CHECK(all(at + 512, 32, value, 4) && all(at + 544, 64, 0xee, 1));
        OK(cuGraphExecDestroy(exec));
        OK(cuGraphDestroy(graph));
    }
    end_all();
}

/* What kernels are given in a buffer that is shorter than their parameters: they do not read the rest. */
static void short_buffers(void) {
    struct {
        uint64_t at;
        uint32_t value, unused;
        uint64_t words;
    } buffer = {0, 7, 0, 0};
    make_all();
    buffer.at = device;
    OK(cuMemsetD8_v2(device, 0, 64));
    for (size_t size = sizeof buffer; size > 0; size -= 4) {
        size_t given = size;
        void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &given,
                         CU_LAUNCH_PARAM_END};
        CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN,
                                       .value = {.memSyncDomain = CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE}};
        CUlaunchConfig config = {.gridDimX = 1,
                                 .gridDimY = 1,
                                 .gridDimZ = 1,
                                 .blockDimX = 32,
                                 .blockDimY = 1,
                                 .blockDimZ = 1,
                                 .attrs = &attribute,
                                 .numAttrs = 1};
        OK(cuLaunchKernel(kernel(module, "fill_u32"), 1, 1, 1, 32, 1, 1, 0, NULL, NULL, extra));
        OK(cuLaunchKernelEx(&config, kernel(module, "fill_u32"), NULL, extra));
    }
    buffer.words = 3;
    size_t given = sizeof buffer - 4; /* the upper half of the number is 0 in what is not given */
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &given, CU_LAUNCH_PARAM_END};
    OK(cuLaunchKernel(kernel(module, "fill_u32"), 1, 1, 1, 32, 1, 1, 0, NULL, NULL, extra));
    OK(cuMemcpyDtoH_v2(plain, device, 64));
    CHECK(all(plain, 12, 7, 4) && all(plain + 12, 52, 0, 1));
    end_all();
}

/* The device address of what was allocated is its host address, whoever asks, and after others were freed, too. */
static void one_address(void) {
    enum { COUNT = 40 };
    unsigned char *at[COUNT] = {NULL};
    CUdeviceptr there;
    make_all();
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < COUNT; i++) {
            size_t size = (size_t)4 << i % 20;
            if (at[i] && (i + turn) % 3 == 0) {
                OK(cuMemFreeHost(at[i]));
                at[i] = NULL;
            }
            if (!at[i]) {
                OK(cuMemHostAlloc((void **)&at[i], size, i % 2 ? CU_MEMHOSTALLOC_DEVICEMAP : 0));
            }
            OK(cuMemHostGetDevicePointer_v2(&there, at[i], 0));
            CHECK(there == number(at[i]));
            memset(at[i], i, size);
            OK(cuMemHostGetDevicePointer_v2(&there, at[i] + size - 1, 0));
            CHECK(there == number(at[i]) + size - 1);
        }
        for (int i = 0; i < COUNT; i++) {
            OK(fill_at(number(at[i]), (uint32_t)(1000 + i), 1, false));
        }
        OK(cuCtxSynchronize());
        for (int i = 0; i < COUNT; i++) {
            size_t size = (size_t)4 << i % 20;
            CHECK(all(at[i], 4, (unsigned)(1000 + i), 4) && all(at[i] + 4, size - 4, (unsigned)i, 1));
        }
    }
    for (int i = 0; i < COUNT; i++) {
        OK(cuMemFreeHost(at[i]));
    }
    end_all();
}

/* NCCL's way: memory for kernels whose address goes to the device inside a struct; and small memory as moderngpu's total. No
 * twin is made of larger memory that was not allocated for kernels: the address may be left over from anything. The word is the
 * number of those that the device reaches. */
static void hidden_addresses(void) {
    unsigned char *mapped = NULL, *other_mapped = NULL, *total = NULL;
    struct {
        uint64_t some, mapped, other, total, much[29];
    } block = {.some = 5};
    int reached = 0;
    make_all();
    OK(cuMemHostAlloc((void **)&mapped, 4, CU_MEMHOSTALLOC_DEVICEMAP));
    OK(cuMemHostAlloc((void **)&other_mapped, 96 << 10, 0));
    OK(cuMemAllocHost_v2((void **)&total, 8));
    block.mapped = number(mapped);
    block.other = number(other_mapped + 64);
    block.total = number(total);
    OK(cuMemcpyHtoDAsync_v2(device, &block, sizeof block, NULL));
    /* What the device reaches at its address takes the words of streams; what it does not is refused. */
    CUresult first = cuStreamWriteValue32_v2(NULL, number(mapped), 0x31323334, 0);
    CUresult second = cuStreamWriteValue32_v2(NULL, number(other_mapped + 64), 0x41424344, 0);
    OK(cuStreamWriteValue32_v2(NULL, number(total), 0x51525354, 0));
    OK(cuCtxSynchronize());
    CHECK(!first && all(mapped, 4, 0x31323334, 4) && all(total, 4, 0x51525354, 4));
    CHECK(second ? second == CUDA_ERROR_NOT_SUPPORTED : all(other_mapped + 64, 4, 0x41424344, 4));
    reached += !first + !second;
    OK(cuMemFreeHost(mapped));
    OK(cuMemFreeHost(other_mapped));
    OK(cuMemFreeHost(total));
    end_all();
    say("%d", reached);
}

/* The same in a kernel's parameters, in both forms; for a simulated GPU that skips kernels it does not know. */
static void addresses_in_parameters(void) {
    static const char text[] = ".version 7.0\n.target sm_75\n.address_size 64\n"
                               ".visible .entry of_structs(.param .u32 n, .param .align 8 .b8 s[64])\n{\n ret;\n}\n";
    struct {
        uint64_t words[8];
    } block = {{0}};
    struct {
        uint64_t n;
        uint64_t words[8];
    } buffer = {0};
    unsigned char *mapped[2];
    uint32_t n = 1;
    size_t given = 8 + 24;
    void *params[] = {&n, &block};
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &given, CU_LAUNCH_PARAM_END};
    CUmodule structs;
    start();
    OK(cuModuleLoadData(&structs, text));
    for (int i = 0; i < 2; i++) {
        OK(cuMemHostAlloc((void **)&mapped[i], SMALL, i ? CU_MEMHOSTALLOC_DEVICEMAP : 0));
    }
    block.words[5] = number(mapped[0] + 8);
    buffer.words[2] = number(mapped[1]);
    OK(cuLaunchKernel(kernel(structs, "of_structs"), 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
    OK(cuLaunchKernel(kernel(structs, "of_structs"), 1, 1, 1, 1, 1, 1, 0, NULL, NULL, extra));
    CHECK(block.words[5] == number(mapped[0] + 8) && buffer.words[2] == number(mapped[1]));
    for (int i = 0; i < 2; i++) {
        OK(cuStreamWriteValue32_v2(NULL, number(mapped[i]), 0x31323334, 0));
        OK(cuCtxSynchronize());
        CHECK(all(mapped[i], 4, 0x31323334, 4));
        OK(cuMemFreeHost(mapped[i]));
    }
}

/* Larger memory is reached, or the launch is refused and the context as good as before: the word is the number of kinds that are. */
static void kernels_of_large(void) {
    int reached = 0;
    make_all();
    for (int i = 1; i < 3; i++) {
        struct memory m = memories[i];
        CUresult result = fill_at(number(m.at), 7, 256, false);
        CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
        OK(cuCtxSynchronize());
        CHECK(!result == all(m.at, 1024, 7, 4));
        reached += !result;
        OK(fill_at(number(plain), 7, 0, false)); /* not in it; the kernel does not look */
    }
    OK(cuMemsetD32Async(number(memories[1].at), 9, 16, NULL));
    OK(cuCtxSynchronize());
    end_all();
    say("%d", reached);
}

/* Words that streams write or wait for: it works in every way, or is refused in every way. The word is the number of kinds. */
static void words(void) {
    int reached = 0;
    CUgraph graph;
    CUstream stream;
    CUcontext context;
    make_all();
    OK(cuCtxGetCurrent(&context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuGraphCreate(&graph, 0));
    for (int i = 0; i < KINDS; i++) {
        CUgraphNode node;
        CUdeviceptr at = number(memories[i].at) + 64;
        CUstreamBatchMemOpParams write = {
            .writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32, .address = at, .value = 7}};
        CUDA_BATCH_MEM_OP_NODE_PARAMS many = {.ctx = context, .count = 1, .paramArray = &write};
        CUresult expected = cuStreamWriteValue32_v2(stream, at, 7, 0);
        CHECK(expected == CUDA_SUCCESS || expected == CUDA_ERROR_NOT_SUPPORTED);
        GIVES(expected, cuStreamWaitValue32_v2(stream, at, 7, CU_STREAM_WAIT_VALUE_EQ));
        GIVES(expected, cuStreamWriteValue64_v2(stream, at + 8, 8, 0));
        GIVES(expected, cuStreamWaitValue64_v2(stream, at + 8, 8, CU_STREAM_WAIT_VALUE_EQ));
        GIVES(expected, cuStreamBatchMemOp_v2(stream, 1, &write, 0));
        GIVES(expected, cuGraphAddBatchMemOpNode(&node, graph, NULL, 0, &many));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue32_v2(stream, at + 2, 7, 0));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue64_v2(stream, at + 4, 7, 0));
        OK(cuStreamSynchronize(stream));
        CHECK(expected || (memories[i].at[64] == 7 && memories[i].at[72] == 8));
        reached += !expected;
    }
    GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue32_v2(stream, number(plain), 7, 0));
    OK(cuGraphDestroy(graph));
    OK(cuStreamDestroy_v2(stream));
    end_all();
    say("%d", reached);
}

/* What would be a node from host memory to host memory ends the capture and says so; the stream is as good as before. */
static void copies_inside_captures(void) {
    CUstream stream;
    make_all();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    memset(plain, 3, 4096);
    for (int i = 0; i < 2; i++) {
        CUgraph graph;
        CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = plain,
                              .srcPitch = 64,
                              .dstMemoryType = CU_MEMORYTYPE_HOST,
                              .dstHost = plain + 4096,
                              .dstPitch = 64,
                              .WidthInBytes = 32,
                              .Height = 4};
        CUresult result;
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        result = i ? cuMemcpy2DAsync_v2(&rows, stream) : cuMemcpyAsync(number(plain + 4096), number(plain), 64, stream);
        CHECK(result == CUDA_ERROR_NOT_SUPPORTED);
        GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
        OK(cuMemcpyAsync(number(plain + 4096), number(plain), 64, stream));
        CHECK(all(plain + 4096, 64, 3, 1));
    }
    OK(cuStreamDestroy_v2(stream));
    end_all();
}

/* A kernel that uses an address which is none. */
static void kernels_break(void) {
    make_all();
    OK(fill_at(0x1230, 7, 16, false));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
}

/* ---- what the driver refuses ---- */

static void refusals(void) {
    make_all();
    for (int i = 0; i < KINDS; i++) {
        struct memory m = memories[i];
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(number(m.at + 64), 1, m.size + 4096, NULL));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD32Async(number(m.at + 2), 1, 4, NULL));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD2D32Async(number(m.at), 6, 1, 4, 2, NULL));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoDAsync_v2(device, number(m.at + 64), m.size + 4096, NULL));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoDAsync_v2(number(m.at + 64), device, m.size + 4096, NULL));
        OK(cuMemsetD8Async(number(m.at), 1, 0, NULL));
        OK(cuMemsetD2D8Async(number(m.at), 0, 1, 4, 0, NULL));
    }
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(number(plain), 1, 16, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoDAsync_v2(device, number(plain), 16, NULL));
    OK(cuCtxSynchronize());
    end_all();
}

static const struct check checks[] = {{"memsets", memsets},
                                      {"uploads-follow", uploads_follow},
                                      {"copies", copies},
                                      {"refusals", refusals},
                                      {"kernels-reach", kernels_reach},
                                      {"kernels-of-large", kernels_of_large},
                                      {"words", words},
                                      {"copies-inside-captures", copies_inside_captures},
                                      {"short-buffers", short_buffers},
                                      {"one-address", one_address},
                                      {"hidden-addresses", hidden_addresses},
                                      {"addresses-in-parameters", addresses_in_parameters},
                                      {"kernels-break", kernels_break}};

int role_pinned(int count, char **words) { return run_check(checks, sizeof checks / sizeof *checks, count, words); }
