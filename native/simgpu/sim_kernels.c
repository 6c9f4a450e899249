// The kernels that the simulator executes: a C body for each, found by the extern "C" name of the kernel.
//
// A body runs in the stream's thread over a flat index, blockIdx.x * blockDim.x + threadIdx.x, for exactly the
// threads that were launched. Memory is reached through the map, so an address that a real kernel could not use ends
// in CUDA_ERROR_ILLEGAL_ADDRESS, a misaligned one in CUDA_ERROR_MISALIGNED_ADDRESS. To add a kernel, write a body and
// add its line to the table with its parameter sizes.
#include "sim_graph.h"

#include <string.h>
#include <time.h>

typedef struct {
    sim_context_t *context;
    const unsigned char *params;
    uint64_t threads;
} run_t;

#define MOST_PARAMS 6
struct sim_body {
    const char *name;
    CUresult (*run)(const run_t *run);
    unsigned nparams;
    sim_param_t params[MOST_PARAMS];
};

#define PARAM(run, type, offset) (*(const type *)memcpy(&(type){0}, (run)->params + (offset), sizeof(type)))

// Elements of one array, in pieces as the map has them; `left` of the current piece.
typedef struct {
    const run_t *run;
    uint64_t address;
    bool write;
    unsigned char *host;
    uint64_t left;
} cursor_t;

static CUresult cursor_open(cursor_t *cursor, const run_t *run, uint64_t address, bool write) {
    *cursor = (cursor_t){.run = run, .address = address, .write = write};
    return address & 3 ? CUDA_ERROR_MISALIGNED_ADDRESS : CUDA_SUCCESS;
}

// The number of 4-byte elements, at most `wanted`, that can be used at the cursor; 0: the address is not usable.
static uint64_t cursor_run(cursor_t *cursor, uint64_t wanted) {
    if (cursor->left < 4) {
        sim_span_t span;
        const sim_context_t *context = cursor->run->context;
        if (sim_map_span(cursor->address, context->device, context->peers, cursor->write, &span) != CUDA_SUCCESS)
            return 0;
        cursor->host = span.host;
        cursor->left = span.bytes;
    }
    uint64_t elements = cursor->left / 4;
    return elements < wanted ? elements : wanted;
}

static void cursor_advance(cursor_t *cursor, uint64_t elements) {
    cursor->host += elements * 4;
    cursor->address += elements * 4;
    cursor->left -= elements * 4;
}

static uint64_t bounded(const run_t *run, uint64_t n) { return n < run->threads ? n : run->threads; }

#define OPEN(cursor, run, address, write)                                                                              \
    do {                                                                                                               \
        CUresult opened_ = cursor_open(&(cursor), run, address, write);                                                \
        if (opened_ != CUDA_SUCCESS)                                                                                   \
            return opened_;                                                                                            \
    } while (0)

static CUresult vector_add(const run_t *run) {
    int n = PARAM(run, int, 24);
    uint64_t left = bounded(run, n > 0 ? (uint64_t)n : 0);
    cursor_t a, b, c;
    if (!left)
        return CUDA_SUCCESS;
    OPEN(a, run, PARAM(run, uint64_t, 0), false);
    OPEN(b, run, PARAM(run, uint64_t, 8), false);
    OPEN(c, run, PARAM(run, uint64_t, 16), true);
    while (left) {
        uint64_t piece = cursor_run(&a, cursor_run(&b, cursor_run(&c, left)));
        if (!piece)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        const float *x = (const float *)(void *)a.host, *y = (const float *)(void *)b.host;
        float *z = (float *)(void *)c.host;
        for (uint64_t i = 0; i < piece; i++)
            z[i] = x[i] + y[i];
        cursor_advance(&a, piece);
        cursor_advance(&b, piece);
        cursor_advance(&c, piece);
        left -= piece;
    }
    return CUDA_SUCCESS;
}

static CUresult saxpy(const run_t *run) {
    int n = PARAM(run, int, 0);
    float factor = PARAM(run, float, 4);
    uint64_t left = bounded(run, n > 0 ? (uint64_t)n : 0);
    cursor_t x, y;
    if (!left)
        return CUDA_SUCCESS;
    OPEN(x, run, PARAM(run, uint64_t, 8), false);
    OPEN(y, run, PARAM(run, uint64_t, 16), true);
    while (left) {
        uint64_t piece = cursor_run(&x, cursor_run(&y, left));
        if (!piece)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        const float *in = (const float *)(void *)x.host;
        float *out = (float *)(void *)y.host;
        for (uint64_t i = 0; i < piece; i++)
            out[i] = factor * in[i] + out[i];
        cursor_advance(&x, piece);
        cursor_advance(&y, piece);
        left -= piece;
    }
    return CUDA_SUCCESS;
}

static CUresult write_u32(const run_t *run, uint64_t address, uint64_t n, uint32_t first, uint32_t step) {
    uint64_t left = bounded(run, n);
    cursor_t out;
    if (!left)
        return CUDA_SUCCESS;
    OPEN(out, run, address, true);
    while (left) {
        uint64_t piece = cursor_run(&out, left);
        if (!piece)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        uint32_t *p = (uint32_t *)(void *)out.host;
        for (uint64_t i = 0; i < piece; i++, first += step)
            p[i] = first;
        cursor_advance(&out, piece);
        left -= piece;
    }
    return CUDA_SUCCESS;
}

static CUresult fill_u32(const run_t *run) {
    return write_u32(run, PARAM(run, uint64_t, 0), PARAM(run, uint64_t, 16), PARAM(run, uint32_t, 8), 0);
}

static CUresult iota_u32(const run_t *run) {
    return write_u32(run, PARAM(run, uint64_t, 0), PARAM(run, uint64_t, 8), 0, 1);
}

static CUresult mix_u32(const run_t *run) {
    uint32_t factor = PARAM(run, uint32_t, 16);
    uint64_t left = bounded(run, PARAM(run, uint64_t, 24));
    cursor_t out, in;
    if (!left)
        return CUDA_SUCCESS;
    OPEN(out, run, PARAM(run, uint64_t, 0), true);
    OPEN(in, run, PARAM(run, uint64_t, 8), false);
    while (left) {
        uint64_t piece = cursor_run(&out, cursor_run(&in, left));
        if (!piece)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        uint32_t *to = (uint32_t *)(void *)out.host;
        const uint32_t *from = (const uint32_t *)(void *)in.host;
        for (uint64_t i = 0; i < piece; i++)
            to[i] = to[i] * factor + from[i];
        cursor_advance(&out, piece);
        cursor_advance(&in, piece);
        left -= piece;
    }
    return CUDA_SUCCESS;
}

// Keeps the stream busy, not the CPU: the threads of a GPU would spin, ours sleep until the time has come.
static CUresult spin_ns(const run_t *run) {
    uint64_t begin = sim_now_ns(), length = PARAM(run, uint64_t, 0);
    for (;;) {
        uint64_t passed = sim_now_ns() - begin;
        if (passed >= length || atomic_load(&run->context->killed))
            return CUDA_SUCCESS;
        uint64_t left = length - passed;
        if (left > 10000000)
            left = 10000000; // so that destroying the context ends it within 10 ms
        nanosleep(&(struct timespec){0, (long)left}, NULL);
    }
}

// Takes one from a word, and sets a value of the graph that runs to what is left.
static CUresult count_down(const run_t *run) {
    cursor_t word;
    OPEN(word, run, PARAM(run, uint64_t, 8), true);
    if (!cursor_run(&word, 1))
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    uint32_t left = --*(uint32_t *)(void *)word.host;
    return sim_conditional_set(PARAM(run, uint64_t, 0), left) ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

static CUresult print_threads(const run_t *run) {
    for (uint64_t i = 0; i < run->threads; i++)
        sim_print(false, "thread %u of %u: %u\n", (unsigned)i, (unsigned)run->threads, PARAM(run, uint32_t, 0));
    return CUDA_SUCCESS;
}

static CUresult assert_below(const run_t *run) {
    if (PARAM(run, uint32_t, 0) < PARAM(run, uint32_t, 4))
        return CUDA_SUCCESS;
    sim_print(true, "print.cu:15: assert_below: block: [0,0,0], thread: [0,0,0] Assertion `value < limit` failed.\n");
    return CUDA_ERROR_ASSERT;
}

static const sim_body_t bodies[] = {
    {"vector_add", vector_add, 4, {{0, 8}, {8, 8}, {16, 8}, {24, 4}}},
    {"saxpy", saxpy, 4, {{0, 4}, {4, 4}, {8, 8}, {16, 8}}},
    {"fill_u32", fill_u32, 3, {{0, 8}, {8, 4}, {16, 8}}},
    {"iota_u32", iota_u32, 2, {{0, 8}, {8, 8}}},
    {"spin_ns", spin_ns, 1, {{0, 8}}},
    {"count_down", count_down, 2, {{0, 8}, {8, 8}}},
    {"print_threads", print_threads, 1, {{0, 4}}},
    {"assert_below", assert_below, 2, {{0, 4}, {4, 4}}},
    {"mix_u32", mix_u32, 4, {{0, 8}, {8, 8}, {16, 4}, {24, 8}}},
};

const sim_body_t *sim_body_find(const char *name) {
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
        if (!strcmp(bodies[i].name, name))
            return &bodies[i];
    return NULL;
}

bool sim_body_fits(const sim_body_t *body, const sim_entry_t *entry) {
    return entry->nparams == body->nparams &&
           !memcmp(entry->params, body->params, body->nparams * sizeof *body->params);
}

CUresult sim_body_run(sim_context_t *context, const sim_launch_t *launch) {
    if (!launch->body)
        return CUDA_SUCCESS; // TF_SIM_UNKNOWN_KERNELS=skip
    run_t run = {context, launch->params, launch->threads};
    bool touches_memory = launch->body->run != spin_ns;
    if (touches_memory)
        pthread_rwlock_rdlock(&sim.map_lock);
    CUresult result = launch->body->run(&run);
    if (touches_memory)
        pthread_rwlock_unlock(&sim.map_lock);
    return result;
}
