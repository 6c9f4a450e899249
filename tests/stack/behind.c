/*
 * More commands behind a host function than a stream takes, with their bytes: the driver makes the caller wait and goes on when
 * the function has run. A hang is the failure, and so is a wait of the caller before it has made as many calls as the driver
 * takes without waiting (63 of these copies in a stream, 580.159.04), because a function may wait for them.
 */
#include "stack.h"

#include <stdatomic.h>

/* Pageable memory of this size travels inside frames. */
#define PIECE 65536u
enum { PLACES = 16, NO_WAIT = 60, ALL = 3000 };

struct line {
    CUcontext context;
    CUstream stream;
    CUdeviceptr memory;
    unsigned char *source;
    size_t made;
};

struct gate {
    _Atomic int open;
    unsigned microseconds; /* that the function takes after that */
};

static void pass(void *user) {
    struct gate *gate = user;
    while (!atomic_load(&gate->open)) {
        usleep(200);
    }
    usleep(gate->microseconds);
}

static struct line begin(void) {
    struct line line = {.source = malloc(PIECE)};
    OK(cuCtxGetCurrent(&line.context));
    OK(cuStreamCreate(&line.stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&line.memory, PLACES * PIECE));
    return line;
}

/* Copy number n has the byte n + 1 and goes to the place n % PLACES. */
static void copies(struct line *line, size_t count) {
    for (size_t end = line->made + count; line->made < end; line->made++) {
        memset(line->source, (int)(line->made % 255 + 1), PIECE);
        OK(cuMemcpyHtoDAsync_v2(line->memory + line->made % PLACES * PIECE, line->source, PIECE, line->stream));
    }
}

static void finish(struct line line) {
    unsigned char *got = malloc(PIECE);
    OK(cuStreamSynchronize(line.stream));
    for (size_t n = line.made - PLACES; n < line.made; n++) {
        memset(got, 0, PIECE);
        OK(cuMemcpyDtoH_v2(got, line.memory + n % PLACES * PIECE, PIECE));
        CHECK(got[0] == n % 255 + 1 && got[PIECE - 1] == n % 255 + 1);
    }
    OK(cuMemFree_v2(line.memory));
    OK(cuStreamDestroy_v2(line.stream));
    free(line.source);
    free(got);
}

/* The function waits for the first copies and runs on while the others are made. */
static void behind_a_function(void) {
    struct gate gate = {.microseconds = 300000};
    struct line line = begin();
    OK(cuLaunchHostFunc(line.stream, pass, &gate));
    copies(&line, NO_WAIT);
    atomic_store(&gate.open, 1);
    copies(&line, ALL - NO_WAIT);
    finish(line);
}

/* The stream stands at an upload whose bytes are taken when it gets there: they come from this process, too. */
static void behind_a_late_upload(void) {
    struct gate gate = {.microseconds = 300000};
    struct line line = begin();
    const size_t size = 40 << 20;
    CUdeviceptr memory;
    void *source = NULL;
    CHECK(posix_memalign(&source, 4096, size) == 0);
    memset(source, 3, size);
    OK(cuMemHostRegister_v2(source, size, 0));
    OK(cuMemAlloc_v2(&memory, size));
    OK(cuLaunchHostFunc(line.stream, pass, &gate));
    OK(cuMemcpyHtoDAsync_v2(memory, source, size, line.stream));
    atomic_store(&gate.open, 1);
    copies(&line, ALL);
    finish(line);
    OK(cuMemHostUnregister(source));
    OK(cuMemFree_v2(memory));
    free(source);
}

/* Each has room, but all together they have more than the session has pinned memory for. */
static void in_several_streams(void) {
    enum { STREAMS = 5 };
    struct gate gate = {.microseconds = 100000};
    struct line lines[STREAMS];
    for (size_t i = 0; i < STREAMS; i++) {
        lines[i] = begin();
        OK(cuLaunchHostFunc(lines[i].stream, pass, &gate));
    }
    for (size_t i = 0; i < STREAMS; i++) {
        copies(&lines[i], NO_WAIT);
    }
    atomic_store(&gate.open, 1);
    for (size_t i = 0; i < STREAMS; i++) {
        copies(&lines[i], ALL / STREAMS);
    }
    for (size_t i = 0; i < STREAMS; i++) {
        finish(lines[i]);
    }
}

static void *one_thread(void *user) {
    struct line *line = user;
    OK(cuCtxSetCurrent(line->context));
    copies(line, ALL / 4);
    return NULL;
}

/* Threads that all wait for an answer, and a function of each stream. */
static void of_several_threads(void) {
    enum { THREADS = 4 };
    struct gate gate = {.microseconds = 200000};
    struct line lines[THREADS];
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        lines[i] = begin();
        OK(cuLaunchHostFunc(lines[i].stream, pass, &gate));
        OK(cuLaunchHostFunc(lines[i].stream, pass, &gate));
    }
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, one_thread, &lines[i]) == 0);
    }
    usleep(100000);
    atomic_store(&gate.open, 1);
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        finish(lines[i]);
    }
}

/* Memory that is free only when the function has run: the driver makes who frees it wait, and who needs it gets it. */
static void memory_that_comes_free(void) {
    struct gate gate = {.open = 1, .microseconds = 100000};
    CUstream stream;
    CUdeviceptr memory;
    size_t free_bytes, total;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    const size_t most = free_bytes / 4 * 3;
    OK(cuMemAlloc_v2(&memory, most));
    for (int turn = 0; turn < 3; turn++) {
        OK(cuLaunchHostFunc(stream, pass, &gate));
        OK(cuMemsetD8Async(memory, 1, 64, stream));
        OK(cuMemFree_v2(memory));
        OK(cuMemAlloc_v2(&memory, most));
    }
    OK(cuMemFree_v2(memory));
    OK(cuStreamDestroy_v2(stream));
}

static const struct check checks[] = {{"function", behind_a_function},
                                      {"late", behind_a_late_upload},
                                      {"streams", in_several_streams},
                                      {"threads", of_several_threads},
                                      {"memory", memory_that_comes_free}};

int role_behind(int count, char **words) {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    return run_check(checks, sizeof checks / sizeof *checks, count, words);
}
