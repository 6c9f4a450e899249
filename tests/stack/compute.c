/*
 * Programs that compute and check every byte: kernels, streams, events, copies, pinned memory, threads, fork.
 *
 * The roles with several threads share the context and the kernels; each thread has its own stream and memory.
 */
#include "stack.h"

#include <sys/wait.h>

/* Small whole numbers, so that sums are exact in single precision. */
static float number(size_t i, unsigned seed) { return (float)((i * 7 + seed * 13) % 4099); }

static void check_kernels(const struct kernels *k, size_t n, unsigned seed, CUstream stream) {
    float *a = malloc(n * 4), *b = malloc(n * 4), *c, *d;
    CUdeviceptr da, db, dc, guard;
    OK(cuMemHostAlloc((void **)&c, n * 4, 0));
    OK(cuMemAllocHost_v2((void **)&d, n * 4));
    CHECK(a && b);
    for (size_t i = 0; i < n; i++) {
        a[i] = number(i, seed);
        b[i] = number(i, seed + 5);
    }
    memset(c, 0xee, n * 4);
    OK(cuMemAlloc_v2(&da, n * 4));
    OK(cuMemAlloc_v2(&db, n * 4));
    OK(cuMemAlloc_v2(&dc, n * 4));
    OK(cuMemAlloc_v2(&guard, 4096));
    OK(cuMemsetD32Async(guard, 0xfeedf00d, 1024, stream));
    OK(cuMemcpyHtoDAsync_v2(da, a, n * 4, stream));
    memcpy(d, b, n * 4);
    OK(cuMemcpyHtoDAsync_v2(db, d, n * 4, stream));
    int count = (int)n;
    float factor = 3;
    void *add[] = {&da, &db, &dc, &count}, *scale[] = {&count, &factor, &da, &dc};
    OK(launch(k->vector_add, n, stream, add));
    OK(launch(k->saxpy, n, stream, scale));
    OK(cuMemcpyDtoHAsync_v2(c, dc, n * 4, stream));
    OK(cuStreamSynchronize(stream));
    for (size_t i = 0; i < n; i++) {
        CHECK(c[i] == 3 * a[i] + (a[i] + b[i]));
    }

    uint32_t value = 0x5eed0000 + seed, *words = (uint32_t *)(void *)d, fence[1024];
    void *fill[] = {&dc, &value, &n}, *iota[] = {&da, &n};
    OK(launch(k->fill_u32, n, stream, fill));
    OK(launch(k->iota_u32, n, stream, iota));
    OK(cuMemcpyDtoDAsync_v2(db, dc, n * 4, stream));
    OK(cuMemcpyDtoHAsync_v2(words, db, n * 4, stream));
    OK(cuMemcpyDtoHAsync_v2(a, da, n * 4, stream));
    OK(cuMemcpyDtoHAsync_v2(fence, guard, sizeof fence, stream));
    OK(cuStreamSynchronize(stream));
    for (size_t i = 0; i < n; i++) {
        uint32_t counted;
        memcpy(&counted, &a[i], 4);
        CHECK(words[i] == value);
        CHECK(counted == (uint32_t)i);
    }
    for (size_t i = 0; i < 1024; i++) {
        CHECK(fence[i] == 0xfeedf00d);
    }
    OK(cuMemFree_v2(da));
    OK(cuMemFree_v2(db));
    OK(cuMemFree_v2(dc));
    OK(cuMemFree_v2(guard));
    OK(cuMemFreeHost(c));
    OK(cuMemFreeHost(d));
    free(a);
    free(b);
}

/* What one stream makes late, another sees because it waits for the event; times are those of the streams. */
static void check_events(const struct kernels *k, unsigned seed) {
    enum { N = 300000 };
    CUstream first, second;
    CUevent start, made, quick;
    CUdeviceptr memory, copy;
    uint32_t *host, value = 0xe0e00000 + seed;
    size_t n = N;
    uint64_t spin = 30000000;
    CUresult event_is, stream_is;
    float ms = 0;
    OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreateWithPriority(&second, CU_STREAM_NON_BLOCKING, 0));
    OK(cuEventCreate(&start, 0));
    OK(cuEventCreate(&made, CU_EVENT_BLOCKING_SYNC));
    OK(cuEventCreate(&quick, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&memory, N * 4));
    OK(cuMemAlloc_v2(&copy, N * 4));
    OK(cuMemHostAlloc((void **)&host, N * 4, CU_MEMHOSTALLOC_PORTABLE));
    OK(cuMemsetD8_v2(memory, 0, N * 4));
    OK(cuCtxSynchronize());
    void *spin_params[] = {&spin}, *fill[] = {&memory, &value, &n};
    for (;; spin *= 4) {
        double begun = now_ms();
        OK(cuEventRecord(start, first));
        OK(launch(k->spin_ns, 1, first, spin_params));
        OK(launch(k->fill_u32, N, first, fill));
        OK(cuEventRecord(made, first));
        event_is = cuEventQuery(made);
        stream_is = cuStreamQuery(first);
        if (event_is && stream_is) {
            break;
        }
        /* On a slow machine the work may be done before it is asked for; never before its time. */
        CHECK(now_ms() - begun >= (double)spin / 1e6 && spin < 5000000000);
        OK(cuStreamSynchronize(first));
    }
    GIVES(CUDA_ERROR_NOT_READY, event_is);
    GIVES(CUDA_ERROR_NOT_READY, stream_is);
    OK(cuStreamWaitEvent(second, made, 0));
    OK(cuMemcpyDtoDAsync_v2(copy, memory, N * 4, second));
    OK(cuMemcpyDtoHAsync_v2(host, copy, N * 4, second));
    OK(cuEventRecord(quick, second));
    OK(cuEventSynchronize(quick));
    for (size_t i = 0; i < N; i++) {
        CHECK(host[i] == value);
    }
    OK(cuEventQuery(made));
    OK(cuStreamQuery(first));
    OK(cuEventElapsedTime_v2(&ms, start, made));
    CHECK(ms >= (float)spin / 1e6f - 1 && ms < 20000);
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(&ms, start, quick));
    OK(cuEventDestroy_v2(start));
    OK(cuEventDestroy_v2(made));
    OK(cuEventDestroy_v2(quick));
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamDestroy_v2(second));
    OK(cuMemFree_v2(memory));
    OK(cuMemFree_v2(copy));
    OK(cuMemFreeHost(host));
}

void compute_all(size_t n, unsigned seed) {
    struct kernels k = load_all();
    CUstream stream;
    size_t free_before, free_after, total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemGetInfo_v2(&free_before, &total));
    check_kernels(&k, n, seed, NULL);
    check_kernels(&k, 1, seed, stream);
    check_kernels(&k, n / 3 + 1, seed + 1, stream);
    check_kernels(&k, 257, seed + 2, CU_STREAM_PER_THREAD);
    check_events(&k, seed);
    OK(cuStreamDestroy_v2(stream));
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&free_after, &total));
    CHECK(free_before == free_after);
}

int role_compute(int count, char **words) {
    char name[100];
    start();
    OK(cuDeviceGetName(name, sizeof name, 0));
    compute_all(1 << 20, count > 0 ? (unsigned)atoi(words[0]) : 1);
    say("right on %s", name);
    return 0;
}

/* ---- threads ---- */

static struct {
    CUcontext context;
    struct kernels kernels;
    pthread_barrier_t together;
} shared;

static void *thread_run(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    CUstream stream;
    OK(cuCtxSetCurrent(shared.context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    pthread_barrier_wait(&shared.together);
    for (unsigned turn = 0; turn < 12; turn++) {
        check_kernels(&shared.kernels, turn % 3 ? 1000 + 777 * turn * seed % 5000 : 90000, seed * 100 + turn,
                      turn % 4 == 3 ? CU_STREAM_PER_THREAD : stream);
    }
    OK(cuStreamDestroy_v2(stream));
    return NULL;
}

int role_threads(int count, char **words) {
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    (void)count, (void)words;
    shared.context = start();
    shared.kernels = load_all();
    pthread_barrier_init(&shared.together, NULL, THREADS);
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, thread_run, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    say("right");
    return 0;
}

/* ---- order between threads ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    uint32_t launched, recorded; /* under lock: turns that A has launched, that B has recorded */
    CUcontext context;
    CUstream stream;
    CUevent event;
    CUdeviceptr memory;
} relay = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

enum { TURNS = 150, RELAY_WORDS = 5000 };

static void announce(uint32_t *counter) {
    pthread_mutex_lock(&relay.lock);
    ++*counter;
    pthread_cond_broadcast(&relay.news);
    pthread_mutex_unlock(&relay.lock);
}

static void await(const uint32_t *counter, uint32_t value) {
    pthread_mutex_lock(&relay.lock);
    while (*counter < value) {
        pthread_cond_wait(&relay.news, &relay.lock);
    }
    pthread_mutex_unlock(&relay.lock);
}

/* Thread B: the event that it records after A told it must stand behind what A launched. */
static void *recorder_run(void *unused) {
    static uint32_t host[RELAY_WORDS];
    CUstream reader;
    (void)unused;
    OK(cuCtxSetCurrent(relay.context));
    OK(cuStreamCreate(&reader, CU_STREAM_NON_BLOCKING));
    for (uint32_t turn = 1; turn <= TURNS; turn++) {
        await(&relay.launched, turn);
        OK(cuEventRecord(relay.event, relay.stream));
        OK(cuStreamWaitEvent(reader, relay.event, 0));
        OK(cuMemcpyDtoHAsync_v2(host, relay.memory, sizeof host, reader));
        OK(cuStreamSynchronize(reader));
        for (size_t i = 0; i < RELAY_WORDS; i++) {
            CHECK(host[i] == turn);
        }
        announce(&relay.recorded);
    }
    OK(cuStreamDestroy_v2(reader));
    return NULL;
}

int role_order(int count, char **words) {
    pthread_t recorder;
    (void)count, (void)words;
    relay.context = start();
    struct kernels k = load_all();
    OK(cuStreamCreate(&relay.stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&relay.event, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&relay.memory, RELAY_WORDS * 4));
    CHECK(pthread_create(&recorder, NULL, recorder_run, NULL) == 0);
    for (uint32_t turn = 1; turn <= TURNS; turn++) {
        size_t n = RELAY_WORDS;
        uint64_t spin = turn % 8 ? 0 : 3000000; /* so that an event in front of the fill would be seen */
        void *fill[] = {&relay.memory, &turn, &n}, *spin_params[] = {&spin};
        OK(launch(k.spin_ns, 1, relay.stream, spin_params));
        OK(launch(k.fill_u32, n, relay.stream, fill));
        announce(&relay.launched);
        await(&relay.recorded, turn);
    }
    pthread_join(recorder, NULL);
    say("right");
    return 0;
}

/* ---- fork ---- */

static void check_child(bool by_exit) {
    CUdeviceptr memory = 0;
    CUcontext context;
    int devices = -1;
    GIVES(3, cuCtxSynchronize());
    GIVES(3, cuMemAlloc_v2(&memory, 4096));
    GIVES(3, cuCtxGetCurrent(&context));
    GIVES(3, cuDeviceGetCount(&devices));
    GIVES(3, cuInit(0)); /* CUDA cannot be used again after a fork, and the real driver says so */
    GIVES(3, cuMemAlloc_v2(&memory, 4096));
    if (by_exit) {
        exit(0); /* with everything that runs at exit */
    }
    _exit(0);
}

static void fork_and_check(bool by_exit) {
    pid_t child = fork();
    int status = -1;
    CHECK(child >= 0);
    if (child == 0) {
        check_child(by_exit);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int role_fork(int count, char **words) {
    (void)count, (void)words;
    start();
    struct kernels k = load_all();
    CUdeviceptr memory;
    CUstream stream;
    enum { N = 1 << 20 };
    size_t n = N;
    uint32_t value = 77, *host = calloc(N, 4);
    void *fill[] = {&memory, &value, &n};
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&memory, N * 4));
    OK(launch(k.fill_u32, n, stream, fill)); /* work is under way while the process forks */
    OK(cuMemcpyDtoHAsync_v2(host, memory, N * 4, stream));
    fork_and_check(false);
    fork_and_check(true);
    OK(cuStreamSynchronize(stream));
    for (size_t i = 0; i < n; i++) {
        CHECK(host[i] == 77);
    }
    compute_all(100000, 3);
    say("right");
    return 0;
}

/* Before the first call a fork costs nothing: both processes have a GPU of their own. */
int role_fork_first(int count, char **words) {
    CUcontext context;
    int status = -1;
    (void)count, (void)words;
    GIVES(3, cuCtxGetCurrent(&context)); /* loads nothing, connects nothing */
    pid_t child = fork();
    CHECK(child >= 0);
    start();
    compute_all(50000, child ? 8 : 9);
    if (child == 0) {
        return 0;
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    say("right");
    return 0;
}
