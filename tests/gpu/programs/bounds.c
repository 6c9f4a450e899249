/* What bounds small read-backs and pinned copies: the driver's calls by themselves, in every form that could be used.
 *
 *     bounds PART SECONDS TURNS MOST_MIB        PART: readback, copies, calls, stack
 *
 * The first three parts use the driver as the session does and are for the machine's own driver. `stack` uses only what
 * programs use, and is run natively and remotely: it says which call of a program the time is in. Variants take turns
 * in an order that changes, so that a noisy machine hits all alike. tests/gpu/bounds.py makes tables of it.
 *
 * This file: start, series, printing. One thread.
 */
#include "bounds.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEW_TURNS = 3 };
static const uint64_t WORD_LIMIT_NS = 10000000000u; /* a word that takes so long never comes */

struct bounds bounds;

void series_open(struct series *series, const char *variant) {
    *series = (struct series){.variant = variant, .values = calloc(bounds.turns, COLUMNS * sizeof *series->values)};
    if (series->values == NULL) {
        fprintf(stderr, "there is no memory for %u samples\n", bounds.turns);
        exit(1);
    }
}

void series_add(struct series *series, const uint64_t columns[COLUMNS], bool right) {
    series->wrong += !right;
    if (series->count == bounds.turns)
        return;
    for (int i = 0; i < COLUMNS; i++)
        series->values[series->count * COLUMNS + (unsigned)i] =
            columns[i] < UINT32_MAX ? (uint32_t)columns[i] : UINT32_MAX;
    series->count++;
}

void series_print(struct series *series, const char *const columns[COLUMNS], const char *head) {
    printf("{\"row\": {%s, \"variant\": \"%s\", \"wrong\": %u, \"ns\": {", head, series->variant, series->wrong);
    const char *between = "";
    for (unsigned i = 0; i < COLUMNS; i++) {
        bool used = false;
        for (unsigned at = 0; at < series->count; at++)
            used = used || series->values[at * COLUMNS + i] != 0;
        if (!used || columns[i] == NULL)
            continue;
        printf("%s\"%s\": [", between, columns[i]);
        for (unsigned at = 0; at < series->count; at++)
            printf("%s%u", at != 0 ? "," : "", series->values[at * COLUMNS + i]);
        printf("]");
        between = ", ";
    }
    printf("}}}\n");
    fflush(stdout);
    free(series->values);
    series->values = NULL;
}

void say_absent(const char *part, const char *name, const char *format, ...) {
    char why[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    printf("{\"absent\": \"%s %s\", \"why\": \"%s\"}\n", part, name, why);
    fflush(stdout);
}

void shuffle(unsigned *order, unsigned count) {
    static uint64_t state = 20261122; /* the same orders in every run */
    for (unsigned i = 0; i < count; i++)
        order[i] = i;
    for (unsigned i = count; i-- > 1;) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const unsigned other = (unsigned)((state >> 33) % (i + 1)), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

bool time_left(unsigned index, unsigned groups, unsigned turn) {
    const uint64_t spent = cu_now_ns() - bounds.begun_ns;
    return turn < bounds.turns && (turn < FEW_TURNS || spent * groups < bounds.limit_ns * (index + 1));
}

void poll_word(const _Atomic uint64_t *word, uint64_t value, const char *who) {
    uint64_t begun = 0;
    for (unsigned looks = 1; atomic_load_explicit(word, memory_order_acquire) != value; looks++) {
        if (looks % 1024 != 0)
            continue;
        begun = begun != 0 ? begun : cu_now_ns();
        if (cu_now_ns() - begun > WORD_LIMIT_NS) {
            fprintf(stderr, "%s: the word is %llu and should have become %llu\n", who,
                    (unsigned long long)atomic_load(word), (unsigned long long)value);
            exit(4);
        }
    }
}

void launch_fill(CUdeviceptr to, uint32_t value, size_t words, CUstream stream) {
    const unsigned block = words < 256 ? (unsigned)words : 256, grid = (unsigned)((words + block - 1) / block);
    void *arguments[] = {&to, &value, &words};
    cu_must(cu.cuLaunchKernel(bounds.fill, grid, 1, 1, block, 1, 1, 0, stream, arguments, NULL), "cuLaunchKernel");
}

static void start(void) {
    CUdevice device;
    cu_load();
    cu_must(cu.cuInit(0), "cuInit");
    cu_must(cu.cuDeviceGet(&device, 0), "cuDeviceGet");
    cu_must(cu.cuDevicePrimaryCtxRetain(&bounds.context, device), "cuDevicePrimaryCtxRetain");
    cu_must(cu.cuCtxSetCurrent(bounds.context), "cuCtxSetCurrent");
    char *text = cu_kernels_ptx();
    cu_must(cu.cuModuleLoadData(&bounds.kernels, text), "cuModuleLoadData");
    free(text);
    cu_must(cu.cuModuleGetFunction(&bounds.fill, bounds.kernels, "fill_u32"), "cuModuleGetFunction");
    cu_must(cu.cuModuleGetFunction(&bounds.spin, bounds.kernels, "spin_ns"), "cuModuleGetFunction");
    cu_must(cu.cuStreamCreate(&bounds.stream, 1), "cuStreamCreate");
}

int main(int count, char **words) {
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"readback", bounds_readback}, {"copies", bounds_copies}, {"calls", bounds_calls}, {"stack", bounds_stack}};
    const double seconds = count == 5 ? strtod(words[2], NULL) : 0;
    const long turns = count == 5 ? strtol(words[3], NULL, 10) : 0, most = count == 5 ? strtol(words[4], NULL, 10) : 0;
    for (size_t i = 0; seconds > 0 && i < sizeof parts / sizeof *parts; i++) {
        if (strcmp(words[1], parts[i].name) != 0 || turns < 1 || turns > 100000 || most < 1 || most > 4096)
            continue;
        char libraries[8192];
        bounds.turns = (unsigned)turns;
        bounds.most_bytes = (size_t)most * MIB;
        start();
        bounds.begun_ns = cu_now_ns();
        bounds.limit_ns = (uint64_t)(seconds * 1e9);
        parts[i].run();
        cu_mapped_libraries(libraries, sizeof libraries);
        printf("{\"end\": \"%s\", \"libraries\": %s}\n", parts[i].name, libraries);
        return 0;
    }
    fprintf(stderr, "usage: bounds readback|copies|calls|stack SECONDS TURNS MOST_MIB\n");
    return 2;
}
