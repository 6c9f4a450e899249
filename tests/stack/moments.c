/*
 * One kind of work again and again, every byte compared, until the input ends or a call fails: what a test interrupts at a moment
 * that it chooses by the kind. `moment KIND` says "there" once the first round is right, and at the end "right after N rounds" or
 * "CALL gave CODE after N rounds, and CODE from then on".
 */
#include "stack.h"

#define N (1u << 20) /* words: 4 MiB, which no buffer on the way holds */

static struct {
    struct kernels k;
    CUstream stream;
    CUdeviceptr memory;
    uint32_t *pageable, *pinned;
    uint32_t seen;    /* of the host function */
    const char *call; /* that failed first */
} at;

/* The first call of a round that fails ends it. */
#define DO(function, ...)                                                                                              \
    do {                                                                                                               \
        CUresult result_ = function(__VA_ARGS__);                                                                      \
        if (result_) {                                                                                                 \
            at.call = #function;                                                                                       \
            return result_;                                                                                            \
        }                                                                                                              \
    } while (0)

static void write_words(uint32_t *words, uint32_t value) {
    for (size_t i = 0; i < N; i++) {
        words[i] = value + (uint32_t)i;
    }
}

static void compare(const uint32_t *words, uint32_t value, bool rising) {
    for (size_t i = 0; i < N; i++) {
        CHECK(words[i] == value + (rising ? (uint32_t)i : 0));
    }
}

static CUresult upload(uint32_t value) {
    write_words(at.pageable, value);
    DO(cuMemcpyHtoDAsync_v2, at.memory, at.pageable, N * 4, at.stream);
    memset(at.pageable, 0, N * 4); /* the bytes were taken before the call came back */
    DO(cuMemcpyDtoHAsync_v2, at.pageable, at.memory, N * 4, at.stream);
    DO(cuStreamSynchronize, at.stream);
    compare(at.pageable, value, true);
    return CUDA_SUCCESS;
}

static CUresult long_kernel(uint32_t value) {
    uint64_t time = 200000000; /* ns */
    size_t n = N;
    void *spin[] = {&time}, *params[] = {&at.memory, &value, &n};
    DO(launch, at.k.spin_ns, 1, at.stream, spin);
    DO(launch, at.k.fill_u32, N, at.stream, params);
    DO(cuMemcpyDtoHAsync_v2, at.pinned, at.memory, N * 4, at.stream);
    DO(cuStreamSynchronize, at.stream);
    compare(at.pinned, value, false);
    return CUDA_SUCCESS;
}

static void host_function(void *value) {
    usleep(100000);
    write_words(at.pinned, at.seen = (uint32_t)(uintptr_t)value);
}

/* The upload behind it is of what the function writes. */
static CUresult behind_function(uint32_t value) {
    DO(cuLaunchHostFunc, at.stream, host_function, (void *)(uintptr_t)value);
    DO(cuMemcpyHtoDAsync_v2, at.memory, at.pinned, N * 4, at.stream);
    DO(cuMemcpyDtoHAsync_v2, at.pageable, at.memory, N * 4, at.stream);
    DO(cuStreamSynchronize, at.stream);
    CHECK(at.seen == value);
    compare(at.pageable, value, true);
    return CUDA_SUCCESS;
}

static CUresult capture(uint32_t value) {
    size_t n = N;
    void *params[] = {&at.memory, &value, &n};
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    DO(cuStreamBeginCapture_v2, at.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    for (int i = 0; i < 50; i++) {
        DO(launch, at.k.fill_u32, N, at.stream, params);
        usleep(500);
    }
    DO(cuMemcpyDtoHAsync_v2, at.pinned, at.memory, N * 4, at.stream);
    DO(cuStreamEndCapture, at.stream, &graph);
    DO(cuGraphInstantiateWithFlags, &exec, graph, 0);
    DO(cuGraphLaunch, exec, at.stream);
    DO(cuStreamSynchronize, at.stream);
    DO(cuGraphExecDestroy, exec);
    DO(cuGraphDestroy, graph);
    compare(at.pinned, value, false);
    return CUDA_SUCCESS;
}

static const struct {
    const char *name;
    CUresult (*round)(uint32_t value);
} kinds[] = {{"upload", upload}, {"wait", long_kernel}, {"function", behind_function}, {"capture", capture}};

static CUresult again(void) {
    CUdeviceptr memory = 0;
    CUevent event = NULL;
    size_t free_bytes = 0, total = 0;
    CUresult result = cuMemAlloc_v2(&memory, 4096);
    CHECK(cuMemcpyDtoH_v2(at.pageable, at.memory, 4096) == result);
    CHECK(cuEventCreate(&event, 0) == result && cuMemGetInfo_v2(&free_bytes, &total) == result);
    CHECK(cuStreamSynchronize(at.stream) == result && cuCtxSynchronize() == result);
    return result;
}

int role_moment(int count, char **words) {
    CUresult (*round)(uint32_t) = NULL;
    CUresult result = CUDA_SUCCESS;
    unsigned rounds = 0;
    for (size_t i = 0; count == 1 && i < sizeof kinds / sizeof *kinds; i++) {
        round = strcmp(words[0], kinds[i].name) == 0 ? kinds[i].round : round;
    }
    CHECK(round);
    start();
    at.k = load_all();
    at.pageable = malloc(N * 4);
    CHECK(at.pageable);
    OK(cuMemHostAlloc((void **)&at.pinned, N * 4, 0));
    OK(cuMemAlloc_v2(&at.memory, N * 4));
    OK(cuStreamCreate(&at.stream, CU_STREAM_NON_BLOCKING));
    do {
        result = round(rounds * 977 + 1);
        if (!result && rounds++ == 0) {
            say("there");
        }
    } while (!result && !input_ended());
    if (result) {
        say("%s gave %d after %u rounds, and %d from then on", at.call, (int)result, rounds, (int)again());
    } else {
        say("right after %u rounds", rounds);
    }
    return 0;
}
