/*
 * Large pinned memory that kernels read and write at its own host address: allocated and registered, 100 MiB each.
 *
 * Each round the program writes some words, a kernel reads them and others, and writes words beside them; behind a wait in one of
 * four ways both must find what the other wrote, to the word. The checks know what every word of the memory must be.
 */
#include "stack.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { SIZE = 100 << 20, WORDS = SIZE / 4, SPOTS = 40, RUN = 64 };

static CUmodule module;
static uint32_t *memory, *expected;
static CUdeviceptr device;
static uint64_t state = 88172645463325252u;

static uint64_t number(const void *at) { return (uint64_t)(uintptr_t)at; }

static size_t below(size_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % limit);
}

static void begin(bool registered) {
    start();
    module = load_kernels();
    if (registered) {
        /* Neither its begin nor its end is that of a page. */
        char *pages =
            mmap(NULL, SIZE + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        CHECK(pages != MAP_FAILED);
        memory = (uint32_t *)(void *)(pages + 260);
        OK(cuMemHostRegister_v2(memory, SIZE, CU_MEMHOSTREGISTER_DEVICEMAP));
    } else {
        OK(cuMemHostAlloc((void **)&memory, SIZE, CU_MEMHOSTALLOC_PORTABLE));
    }
    expected = malloc(SIZE);
    CHECK(expected);
    for (size_t i = 0; i < WORDS; i++) {
        memory[i] = expected[i] = (uint32_t)(i * 2654435761u);
    }
    OK(cuMemAlloc_v2(&device, SIZE));
}

static void finish(bool registered) {
    OK(cuMemFree_v2(device));
    OK(registered ? cuMemHostUnregister(memory) : cuMemFreeHost(memory));
    free(expected);
}

static void put(CUdeviceptr at, uint32_t value, uint64_t words, CUstream stream) {
    void *params[] = {&at, &value, &words};
    OK(cuLaunchKernel(kernel(module, "fill_u32"), (unsigned)((words + 255) / 256), 1, 1, 256, 1, 1, 0, stream, params,
                      NULL));
}

/* A kernel that reads all of it: floats added to nothing else but themselves. */
static void check_sums(size_t from, int words) {
    float *sums = malloc((size_t)words * 4), *own = (float *)(void *)expected + from;
    CUdeviceptr a = number(memory + from), to = device;
    void *params[] = {&a, &a, &to, &words};
    CHECK(sums);
    OK(cuLaunchKernel(kernel(module, "vector_add"), (unsigned)(words + 255) / 256, 1, 1, 256, 1, 1, 0, NULL, params,
                      NULL));
    OK(cuMemcpyDtoH_v2(sums, device, (size_t)words * 4));
    for (int i = 0; i < words; i++) {
        const float sum = own[i] + own[i];
        CHECK(memcmp(&sum, &sums[i], 4) == 0 || (sum != sum && sums[i] != sums[i]));
    }
    free(sums);
}

static void wait_in_some_way(CUstream stream, int way) {
    CUevent event;
    CUresult result;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventRecord(event, stream));
    if (way == 0) {
        OK(cuStreamSynchronize(stream));
    } else if (way == 1) {
        OK(cuCtxSynchronize());
    } else {
        while ((result = way == 2 ? cuEventQuery(event) : cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY) {
        }
        OK(result);
    }
    OK(cuEventDestroy_v2(event));
}

/* The program's words and the kernels' lie in the same pages. */
static void both_write(bool registered) {
    CUstream stream;
    begin(registered);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    check_sums(0, WORDS);
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < SPOTS; i++) {
            const size_t at = below(WORDS - 4 * RUN), run = 1 + below(RUN);
            const uint32_t value = (uint32_t)(round << 16 | i);
            put(number(memory + at), value, run, stream);
            for (size_t k = 0; k < run; k++) {
                expected[at + k] = value;
            }
            /* While that runs: a word behind the kernel's, which no other of this round's kernels has. */
            bool free_word = true;
            for (size_t k = 0; k < RUN; k++) {
                free_word = free_word && expected[at + run + k] >> 16 != (uint32_t)round;
            }
            if (free_word) {
                memory[at + run] = expected[at + run] = ~value;
            }
        }
        wait_in_some_way(stream, round % 4);
        CHECK(round % 4 != 3 || memcmp(memory, expected, SIZE) == 0);
        memory[round] = expected[round] = 7;
        memory[WORDS - 1 - round] = expected[WORDS - 1 - round] = 8;
        check_sums(0, 1000);
        check_sums(WORDS - 1000, 1000);
    }
    CHECK(memcmp(memory, expected, SIZE) == 0);
    put(number(memory), 0x5a5a5a5a, WORDS, stream); /* all of it */
    OK(cuStreamSynchronize(stream));
    memset(expected, 0x5a, SIZE);
    CHECK(memcmp(memory, expected, SIZE) == 0);
    memset(memory, 0x11, SIZE);
    memset(expected, 0x11, SIZE);
    check_sums(0, WORDS);
    OK(cuStreamDestroy_v2(stream));
    finish(registered);
}

static void allocated(void) { both_write(false); }

static void registered(void) { both_write(true); }

/* Every form of copy and memset, once kernels have used the memory. */
static void copies(void) {
    CUdeviceptr there;
    begin(false);
    OK(cuMemHostGetDevicePointer_v2(&there, memory, 0));
    uint32_t got[1000];
    put(there, 1, 1000, NULL);
    OK(cuMemcpyHtoDAsync_v2(device, memory, sizeof got, NULL)); /* reads what the kernel wrote */
    OK(cuMemcpyDtoH_v2(got, device, sizeof got));
    for (size_t i = 0; i < 1000; i++) {
        CHECK(got[i] == 1);
        expected[i] = 1;
    }
    memory[5] = expected[5] = 0x55;
    OK(cuMemcpyHtoDAsync_v2(device, memory, SIZE, NULL));
    OK(cuMemsetD32Async(number(memory + 2000), 0x77, 3000, NULL));
    OK(cuMemcpyDtoHAsync_v2(memory + 10000, device, 4000, NULL));
    OK(cuMemcpyAsync(number(memory + 20000), device, 4000, NULL));
    OK(cuCtxSynchronize());
    for (size_t i = 0; i < 3000; i++) {
        expected[2000 + i] = 0x77;
    }
    memcpy(expected + 10000, expected, 4000);
    memcpy(expected + 20000, expected, 4000);
    CHECK(memcmp(memory, expected, SIZE) == 0);
    CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = device,
                          .srcPitch = 64,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = memory + 30000,
                          .dstPitch = 128,
                          .WidthInBytes = 64,
                          .Height = 100};
    OK(cuMemcpy2DAsync_v2(&rows, NULL));
    OK(cuStreamSynchronize(NULL));
    for (size_t i = 0; i < 100; i++) {
        memcpy(expected + 30000 + 32 * i, expected + 16 * i, 64);
    }
    CHECK(memcmp(memory, expected, SIZE) == 0);
    check_sums(0, WORDS);
    finish(false);
}

static void touch(void *unused) {
    (void)unused;
    memory[100] = memory[200] + 1;
}

/* A host function sees what kernels wrote, and kernels behind it what it wrote; so do nodes of a graph. */
static void host_functions(void) {
    begin(false);
    CUgraph graph;
    CUgraphExec exec;
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    put(number(memory + 200), 41, 1, stream);
    OK(cuLaunchHostFunc(stream, touch, NULL));
    CUdeviceptr from = number(memory + 100), to = number(memory + 300);
    OK(cuMemcpyDtoDAsync_v2(to, from, 4, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(memory[100] == 42 && memory[300] == 42);
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    put(number(memory + 200), 51, 1, stream);
    OK(cuLaunchHostFunc(stream, touch, NULL));
    OK(cuMemcpyDtoDAsync_v2(device, from, 4, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int i = 0; i < 3; i++) {
        uint32_t got = 0;
        memory[100] = 0;
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(&got, device, 4));
        CHECK(memory[200] == 51 && memory[100] == 52 && got == 52);
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuStreamDestroy_v2(stream));
    finish(false);
}

static CUgraphExec captured(CUstream stream, void (*what)(CUstream stream)) {
    CUgraph graph;
    CUgraphExec exec;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    what(stream);
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    return exec;
}

static void there_and_back(CUstream stream) {
    put(number(memory + 400), 61, 3, stream);
    OK(cuMemcpyHtoDAsync_v2(device, memory + 400, 8, stream));
    OK(cuMemcpyDtoHAsync_v2(memory + 402, device, 8, stream));
    put(number(memory + 403), 62, 1, stream);
}

static void only_there(CUstream stream) { OK(cuMemcpyHtoDAsync_v2(device, memory + 400, 8, stream)); }

/* Kernels and copies of one graph have the same memory, in their order. A copy that is in a graph before any kernel has had the memory
 * makes a launch with it right or refused. */
static void graph_copies(void) {
    CUstream stream;
    CUgraphExec exec;
    begin(false);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    put(number(memory), 1, 1, stream);
    exec = captured(stream, there_and_back);
    for (int i = 0; i < 3; i++) {
        memset(memory + 400, 0, 20);
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memory[400] == 61 && memory[402] == 61 && memory[403] == 62 && memory[404] == 0);
    }
    OK(cuGraphExecDestroy(exec));
    finish(false);

    begin(false);
    exec = captured(stream, only_there);
    CUdeviceptr at = number(memory + 400);
    uint32_t value = 71, got[2] = {0};
    uint64_t words = 2;
    void *params[] = {&at, &value, &words};
    CUresult result = cuLaunchKernel(kernel(module, "fill_u32"), 1, 1, 1, 32, 1, 1, 0, stream, params, NULL);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(got, device, sizeof got));
    CHECK(memcmp(got, result ? expected + 400 : (uint32_t[]){71, 71}, sizeof got) == 0);
    OK(cuGraphExecDestroy(exec));
    value = 72;
    do { /* no graph has it any more, as soon as that is known */
        OK(cuCtxSynchronize());
        result = cuLaunchKernel(kernel(module, "fill_u32"), 1, 1, 1, 32, 1, 1, 0, stream, params, NULL);
    } while (result == CUDA_ERROR_NOT_SUPPORTED);
    OK(result);
    OK(cuStreamSynchronize(stream));
    CHECK(memory[401] == 72);
    finish(false);
}

/* Freed and made again while work that uses it is under way, and read from a pipe. */
static void lives(void) {
    int ends[2];
    start();
    module = load_kernels();
    OK(cuMemAlloc_v2(&device, 4096));
    CHECK(pipe(ends) == 0);
    for (int i = 0; i < 6; i++) {
        uint32_t words[1024], got = 0;
        OK(cuMemHostAlloc((void **)&memory, (size_t)(3 + i) << 20, 0));
        put(number(memory), 9, 2048, NULL);
        OK(cuCtxSynchronize());
        CHECK(memory[0] == 9 && memory[2047] == 9 && memory[2048] == 0);
        memset(words, i + 1, sizeof words);
        CHECK(write(ends[1], words, sizeof words) == sizeof words);
        CHECK(read(ends[0], memory + 512, sizeof words) == sizeof words); /* a system call writes it */
        float *floats = (float *)(void *)words, sum = floats[0] + floats[0], back = 0;
        CUdeviceptr a = number(memory + 512), to = device;
        int one = 1;
        void *params[] = {&a, &a, &to, &one};
        OK(cuLaunchKernel(kernel(module, "vector_add"), 1, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
        OK(cuMemcpyDtoH_v2(&back, device, 4));
        CHECK(memcmp(&back, &sum, 4) == 0);
        pid_t child = fork();
        if (child == 0) {
            memory[0] = 77; /* its own; it has none of a segment's and ends */
            _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child && (status == 0 || WTERMSIG(status) == SIGSEGV));
        CHECK(memory[0] != 77);
        put(number(memory + 4), 10, 1000, NULL);
        OK(cuMemFreeHost(memory));
        OK(cuCtxSynchronize());
        OK(cuMemcpyDtoH_v2(&got, device, 4));
        CHECK(memcmp(&got, &sum, 4) == 0);
    }
    OK(cuMemFree_v2(device));
}

static struct function {
    _Atomic bool begun, allowed;
} functions[2];

static void wait_until_allowed(void *which) {
    struct function *function = which;
    atomic_store(&function->begun, true);
    while (!atomic_load(&function->allowed)) {
        usleep(1000);
    }
}

#define OUTSIDE 0x360000000000u /* where pinned memory lies that is in no segment, and on */
static _Atomic bool freed;

static void *free_it(void *memory) {
    OK(cuMemFreeHost(memory));
    atomic_store(&freed, true);
    return NULL;
}

/* The free waits for the host function that may use the memory (580.159.04, seen). Behind it another stream comes to a second one:
 * the driver's end of a registration waits for both, and the session must not. */
static void freed_behind_functions(void) {
    CUstream streams[2];
    pthread_t thread;
    uint32_t *small;
    begin(false);
    put(number(memory), 3, 10, NULL);
    OK(cuCtxSynchronize());
    OK(cuMemHostAlloc((void **)&small, 1 << 20, 0));
    put(number(small), 3, 10, NULL);
    OK(cuCtxSynchronize());
    for (int i = 0; i < 2; i++) {
        OK(cuStreamCreate(&streams[i], CU_STREAM_NON_BLOCKING));
    }
    OK(cuLaunchHostFunc(streams[0], wait_until_allowed, &functions[0]));
    while (!atomic_load(&functions[0].begun)) { /* they may share a thread */
    }
    CHECK(pthread_create(&thread, NULL, free_it, small) == 0);
    usleep(100000);
    CHECK(!atomic_load(&freed) || number(small) < OUTSIDE); /* the worker keeps what lies in a segment */
    OK(cuLaunchHostFunc(streams[1], wait_until_allowed, &functions[1]));
    atomic_store(&functions[0].allowed, true);
    OK(cuStreamSynchronize(streams[0]));
    put(number(memory), 4, 10, NULL);
    OK(cuStreamSynchronize(NULL));
    CHECK(memory[9] == 4);
    atomic_store(&functions[1].allowed, true);
    OK(cuStreamSynchronize(streams[1]));
    CHECK(pthread_join(thread, NULL) == 0 && atomic_load(&freed));
    finish(false);
}

/* Two threads, each with words of its own in the same memory. */
static void *write_and_ask(void *what) {
    const uint32_t own = (uint32_t)(uintptr_t)what;
    CUcontext context;
    CUstream stream;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (uint32_t i = 0; i < 30; i++) {
        const size_t at = (size_t)i * 50000 + own * 4; /* neighbours, in one page */
        memory[at] = i + own;
        OK(cuMemcpyDtoDAsync_v2(number(memory + at + 1), number(memory + at), 4, stream));
        put(number(memory + at + 2), 1000 + i + own, 1, stream);
        OK(cuStreamSynchronize(stream));
        CHECK(memory[at] == i + own && memory[at + 1] == i + own && memory[at + 2] == 1000 + i + own);
    }
    OK(cuStreamDestroy_v2(stream));
    return NULL;
}

static void threads(void) {
    enum { THREADS = 3 };
    pthread_t them[THREADS];
    begin(false);
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&them[i], NULL, write_and_ask, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(them[i], NULL) == 0);
    }
    finish(false);
}

/* As many as tensors of a model. */
static void many(void) {
    enum { MANY = 600 };
    static uint32_t *them[MANY];
    start();
    module = load_kernels();
    for (uint32_t i = 0; i < MANY; i++) {
        OK(cuMemHostAlloc((void **)&them[i], i % 3 ? 70000 : 40000, 0));
        them[i][0] = i;
        put(number(them[i] + 1), i, 2, NULL);
    }
    OK(cuCtxSynchronize());
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK(them[i][0] == i && them[i][1] == i && them[i][2] == i && them[i][3] == 0);
        OK(cuMemFreeHost(them[i]));
    }
}

/* Two that share a page: which of them was written in it, the kernel tells once. */
static void neighbours(void) {
    enum { HALF = 0x20800, ROUNDS = 20 };
    start();
    module = load_kernels();
    char *pages = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(pages != MAP_FAILED);
    OK(cuMemAlloc_v2(&device, 4096));
    uint32_t *halves[2];
    for (int i = 0; i < 2; i++) {
        halves[i] = (uint32_t *)(void *)(pages + i * HALF);
        OK(cuMemHostRegister_v2(halves[i], HALF, CU_MEMHOSTREGISTER_DEVICEMAP));
        put(number(halves[i]), 1, 1, NULL);
    }
    OK(cuCtxSynchronize());
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 2; i++) { /* the last word of one and the first but one of the other */
            float *word = (float *)(void *)(i ? halves[1] + 1 : halves[0] + HALF / 4 - 1), sum = 0;
            *word = (float)round + 0.5f;
            CUdeviceptr a = number(word), to = device;
            int one = 1;
            void *params[] = {&a, &a, &to, &one};
            OK(cuLaunchKernel(kernel(module, "vector_add"), 1, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
            OK(cuMemcpyDtoH_v2(&sum, device, 4));
            CHECK(sum == 2 * *word);
        }
        float *words[2] = {(float *)(void *)(halves[0] + HALF / 4 - 2), (float *)(void *)(halves[1] + 2)};
        *words[0] = *words[1] = (float)round; /* both, and then one launch for each */
        for (int i = 0; i < 2; i++) {
            CUdeviceptr a = number(words[i]), to = device;
            float sum = 0;
            int one = 1;
            void *params[] = {&a, &a, &to, &one};
            OK(cuLaunchKernel(kernel(module, "vector_add"), 1, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
            OK(cuMemcpyDtoH_v2(&sum, device, 4));
            CHECK(sum == 2 * (float)round);
        }
    }
    OK(cuMemHostUnregister(halves[0]));
    OK(cuMemHostUnregister(halves[1]));
}

/* Memory that kernels only read: they see what the program writes there; a copy has no place in it. */
static void read_only(void) {
    enum { BYTES = 1 << 18 };
    float words[64], sum = 0;
    start();
    module = load_kernels();
    memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK((void *)memory != MAP_FAILED);
    OK(cuMemAlloc_v2(&device, 4096));
    OK(cuMemHostRegister_v2(memory, BYTES, CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY));
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < 64; i++) {
            words[i] = (float)round + 1;
        }
        CUdeviceptr a = number(memory), to = device;
        int one = 1;
        void *params[] = {&a, &a, &to, &one};
        GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(memory, device, sizeof words));
        memcpy(memory, words, sizeof words);
        OK(cuLaunchKernel(kernel(module, "vector_add"), 1, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
        OK(cuMemcpyDtoH_v2(&sum, device, 4));
        CHECK(sum == 2 * words[0]);
    }
    OK(cuMemHostUnregister(memory));
}

/* As in a container with the usual seccomp profile: nobody tells which pages were written. */
static void compared(void) {
    struct sock_filter steps[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog profile = {.len = sizeof steps / sizeof *steps, .filter = steps};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &profile) == 0);
    copies();
    lives();
}

/* A program that forgets to unregister what it unmaps: nothing of it is read or written here any more, and all goes on. */
static void unmapped(void) {
    static const size_t sizes[] = {1000, 1 << 20, SIZE};
    start();
    module = load_kernels();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t mapped = sizes[i] + 8192;
        char *pages = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        CHECK(pages != MAP_FAILED);
        uint32_t *words = (uint32_t *)(void *)(pages + 260);
        CUdeviceptr twin;
        OK(cuMemHostRegister_v2(words, sizes[i], CU_MEMHOSTREGISTER_DEVICEMAP));
        OK(cuMemHostGetDevicePointer_v2(&twin, words, 0));
        put(twin, 11, 4, NULL);
        OK(cuCtxSynchronize());
        CHECK(words[0] == 11 && words[3] == 11 && words[4] == 0);
        OK(munmap(pages, mapped));
        put(twin + 64, 12, 4, NULL); /* where the device still has its pages */
        OK(cuCtxSynchronize());
        void *other;
        OK(cuMemHostAlloc(&other, 4096, CU_MEMHOSTALLOC_PORTABLE));
        OK(cuMemFreeHost(other)); /* waits, too */
        OK(cuMemHostUnregister(words));
    }
}

static const struct check checks[] = {{"allocated", allocated},
                                      {"registered", registered},
                                      {"copies", copies},
                                      {"host-functions", host_functions},
                                      {"lives", lives},
                                      {"threads", threads},
                                      {"freed-behind-functions", freed_behind_functions},
                                      {"graph-copies", graph_copies},
                                      {"compared", compared},
                                      {"many", many},
                                      {"neighbours", neighbours},
                                      {"read-only", read_only},
                                      {"unmapped", unmapped}};

int role_mapped(int count, char **words) { return run_check(checks, sizeof checks / sizeof *checks, count, words); }
