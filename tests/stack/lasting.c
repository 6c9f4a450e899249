/*
 * Programs that go on until something happens to them or to their worker, and one that does what it is told.
 *
 * `steady` computes until its input ends, `copy` and `wait` are in the middle of a call when the test kills a process,
 * `console` takes one command per line and answers with the driver's result code first.
 */
#include "stack.h"

#define MIB (1024ull * 1024ull)

/* Rounds of copies and kernels, every byte compared; says how many and the longest. */
int role_steady(int count, char **words) {
    enum { N = 200000 };
    unsigned rounds = 0, state = count > 0 ? (unsigned)atoi(words[0]) : 1;
    double longest = 0;
    start();
    struct kernels k = load_all();
    uint32_t *sent = malloc(N * 4), *got = malloc(N * 4);
    float *sum = malloc(N * 4);
    CUdeviceptr data, result;
    CUstream stream;
    CHECK(sent && got && sum);
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&data, N * 4));
    OK(cuMemAlloc_v2(&result, N * 4));
    say("steady");
    do {
        double begun = now_ms();
        size_t n = N;
        int elements = N;
        float one = 1;
        for (size_t i = 0; i < N; i++) {
            state = state * 1664525u + 1013904223u;
            sent[i] = state;
        }
        void *fill[] = {&result, &state, &n}, *axpy[] = {&elements, &one, &data, &result};
        OK(cuMemcpyHtoDAsync_v2(data, sent, N * 4, stream));
        OK(launch(k.fill_u32, n, stream, fill));
        OK(cuMemcpyDtoHAsync_v2(got, data, N * 4, stream));
        OK(cuStreamSynchronize(stream));
        CHECK(memcmp(sent, got, N * 4) == 0);
        OK(cuMemcpyDtoH_v2(got, result, N * 4));
        for (size_t i = 0; i < N; i++) {
            CHECK(got[i] == state);
            sum[i] = (float)(i % 1000);
        }
        OK(cuMemcpyHtoD_v2(data, sum, N * 4));
        OK(cuMemcpyHtoD_v2(result, sum, N * 4));
        OK(launch(k.saxpy, n, stream, axpy));
        OK(cuMemcpyDtoHAsync_v2(sum, result, N * 4, stream));
        OK(cuStreamSynchronize(stream));
        for (size_t i = 0; i < N; i++) {
            CHECK(sum[i] == (float)(2 * (i % 1000)));
        }
        rounds++;
        longest = now_ms() - begun > longest ? now_ms() - begun : longest;
    } while (!input_ended());
    say("right after %u rounds, longest %.0f ms", rounds, longest);
    return 0;
}

/* After a loss every call says so, whatever it is, at once. */
static void check_lost(CUresult first, const char *name, double begun) {
    CUdeviceptr memory = 0;
    CUstream stream;
    CUevent event;
    CUmodule module;
    size_t free_bytes, total;
    char buffer[64];
    double lost = now_ms();
    GIVES(46, cuMemAlloc_v2(&memory, 4096));
    GIVES(46, cuStreamCreate(&stream, 0));
    GIVES(46, cuEventCreate(&event, 0));
    GIVES(46, cuModuleLoadData(&module, kernels_ptx));
    GIVES(46, cuMemGetInfo_v2(&free_bytes, &total));
    GIVES(46, cuMemcpyHtoD_v2(0x700000000000, buffer, sizeof buffer));
    GIVES(46, cuStreamSynchronize(NULL));
    GIVES(46, cuCtxSynchronize());
    GIVES(46, cuCtxGetDevice(&(CUdevice){0}));
    CHECK(now_ms() - lost < 1000);
    say("%s gave %d after %.0f ms", name, (int)first, lost - begun);
}

/* Copies MIB up and down for ever: whenever a process of the path is killed, it is in the middle of one. */
int role_copy(int count, char **words) {
    size_t size = (count > 0 ? (size_t)atoi(words[0]) : 64) * MIB;
    bool pinned = count > 1 && strcmp(words[1], "pinned") == 0;
    void *buffer = NULL;
    CUdeviceptr memory;
    start();
    if (pinned) {
        OK(cuMemHostAlloc(&buffer, size, 0));
    } else {
        buffer = malloc(size);
    }
    CHECK(buffer);
    memset(buffer, 1, size);
    OK(cuMemAlloc_v2(&memory, size));
    say("copying");
    for (;;) {
        double begun = now_ms();
        const char *name = pinned ? "cuMemcpyHtoDAsync_v2" : "cuMemcpyHtoD_v2";
        CUresult result =
            pinned ? cuMemcpyHtoDAsync_v2(memory, buffer, size, NULL) : cuMemcpyHtoD_v2(memory, buffer, size);
        if (!result && pinned) {
            name = "cuStreamSynchronize";
            result = cuStreamSynchronize(NULL);
        }
        if (!result) {
            name = "cuMemcpyDtoH_v2";
            result = cuMemcpyDtoH_v2(buffer, memory, size);
        }
        if (result) {
            check_lost(result, name, begun);
            return 0;
        }
    }
}

static struct {
    CUcontext context;
    CUstream stream;
    CUevent event;
    double begun;
} waiting;

static void *waiter_run(void *argument) {
    CUresult result = CUDA_SUCCESS;
    OK(cuCtxSetCurrent(waiting.context));
    switch ((uintptr_t)argument) {
    case 0:
        result = cuStreamSynchronize(waiting.stream);
        break;
    case 1:
        result = cuEventSynchronize(waiting.event);
        break;
    default:
        result = cuCtxSynchronize();
        break;
    }
    GIVES(46, result);
    return NULL;
}

/* Three threads in the three kinds of wait, for work that takes a minute. */
int role_wait(int count, char **words) {
    pthread_t threads[3];
    uint64_t minute = 60000000000;
    void *params[] = {&minute};
    (void)count, (void)words;
    waiting.context = start();
    struct kernels k = load_all();
    OK(cuStreamCreate(&waiting.stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&waiting.event, 0));
    OK(launch(k.spin_ns, 1, waiting.stream, params));
    OK(cuEventRecord(waiting.event, waiting.stream));
    waiting.begun = now_ms();
    for (uintptr_t i = 0; i < 3; i++) {
        CHECK(pthread_create(&threads[i], NULL, waiter_run, (void *)i) == 0);
    }
    GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(waiting.stream));
    say("waiting");
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    check_lost(CUDA_ERROR_DEVICE_UNAVAILABLE, "every wait", waiting.begun);
    return 0;
}

/* ---- console ---- */

enum { MOST = 4096 };
static CUdeviceptr held[MOST]; /* by the number that the test gives */

static void answer(CUresult result) {
    const char *name = NULL;
    cuGetErrorName(result, &name);
    say("%d %s", (int)result, name ? name : "?");
}

static CUresult run_launch(const struct kernels *k, const char *how, unsigned long long i) {
    unsigned value = 5;
    size_t n = 256;
    CUdeviceptr memory = strcmp(how, "bad") == 0 ? 0x123400000000 : held[i];
    void *params[] = {&memory, &value, &n};
    return cuLaunchKernel(k->fill_u32, strcmp(how, "empty") == 0 ? 0 : 1, 1, 1, 256, 1, 1, 0, NULL, params, NULL);
}

/* alloc I BYTES, free I, info, sync, launch good|bad|empty I, read I, init, quit. */
int role_console(int count, char **words) {
    char line[256], verb[32], how[32];
    bool ready = false;
    struct kernels k = {0};
    (void)count, (void)words;
    say("console");
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long i = 0, bytes = 0;
        if (sscanf(line, "alloc %llu %llu", &i, &bytes) == 2) {
            CHECK(i < MOST);
            answer(cuMemAlloc_v2(&held[i], bytes));
        } else if (sscanf(line, "free %llu", &i) == 1) {
            CHECK(i < MOST);
            answer(cuMemFree_v2(held[i]));
        } else if (sscanf(line, "launch %31s %llu", how, &i) == 2) {
            CHECK(i < MOST);
            answer(run_launch(&k, how, i));
        } else if (sscanf(line, "read %llu", &i) == 1) {
            unsigned value = 0;
            CHECK(i < MOST);
            CUresult result = cuMemcpyDtoH_v2(&value, held[i], sizeof value);
            say("%d %u", (int)result, value);
        } else if (sscanf(line, "%31s", verb) == 1 && strcmp(verb, "info") == 0) {
            size_t free_bytes = 0, total = 0, device = 0;
            CUresult result = cuMemGetInfo_v2(&free_bytes, &total);
            if (!result) {
                result = cuDeviceTotalMem_v2(&device, 0);
            }
            say("%d %zu %zu %zu", (int)result, free_bytes, total, device);
        } else if (strcmp(verb, "devices") == 0) { /* a program that asks for devices and makes no context */
            size_t total = 0;
            int count = 0, processors = 0;
            CUresult result = cuInit(0);
            result = result ? result : cuDeviceGetCount(&count);
            result = result ? result : cuDeviceTotalMem_v2(&total, 0);
            result = result ? result : cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0);
            CHECK(result || (count > 0 && total > 0 && processors > 0));
            answer(result);
        } else if (strcmp(verb, "sync") == 0) {
            answer(cuCtxSynchronize());
        } else if (strcmp(verb, "init") == 0) {
            CUresult result = cuInit(0);
            if (!result && !ready) {
                start();
                k = load_all();
                ready = true;
            }
            answer(result);
        } else if (strcmp(verb, "quit") == 0) {
            return 0;
        } else {
            fprintf(stderr, "the console has no command %s", line);
            return 2;
        }
    }
    return 0;
}
