/*
 * Picks the role that the first word names, and holds what all roles use.
 *
 * One thread; the clock and `say` may be called from any.
 */
#include "stack.h"

#include <poll.h>
#include <stdarg.h>
#include <time.h>

struct kernels load_all(void) {
    CUmodule module = load_kernels();
    return (struct kernels){.vector_add = kernel(module, "vector_add"),
                            .saxpy = kernel(module, "saxpy"),
                            .fill_u32 = kernel(module, "fill_u32"),
                            .iota_u32 = kernel(module, "iota_u32"),
                            .spin_ns = kernel(module, "spin_ns")};
}

CUresult launch(CUfunction function, size_t threads, CUstream stream, void **params) {
    return cuLaunchKernel(function, (unsigned)((threads + 255) / 256), 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

void say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    CHECK(size >= 0 && size < (int)sizeof line - 1);
    line[size] = '\n';
    CHECK(write(1, line, (size_t)size + 1) == size + 1);
}

bool input_ended(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    return poll(&input, 1, 0) != 0;
}

int run_check(const struct check *checks, size_t known, int count, char **words) {
    for (size_t i = 0; count == 1 && i < known; i++) {
        if (strcmp(words[0], checks[i].name) == 0) {
            checks[i].run();
            say("right");
            return 0;
        }
    }
    fprintf(stderr, "there is no such check\n");
    return 2;
}

static const struct {
    const char *name;
    int (*run)(int count, char **words);
} roles[] = {
    {"compute", role_compute},       {"threads", role_threads}, {"order", role_order},   {"fork", role_fork},
    {"fork-first", role_fork_first}, {"steady", role_steady},   {"copy", role_copy},     {"wait", role_wait},
    {"console", role_console},       {"moment", role_moment},   {"graphs", role_graphs}, {"arrays", role_arrays},
    {"parts", role_parts},           {"green", role_green},     {"timing", role_timing}, {"polls", role_polls},
    {"corners", role_corners},       {"devices", role_devices}, {"images", role_images}, {"failures", role_failures},
    {"callbacks", role_callbacks},   {"words", role_words},     {"pinned", role_pinned}, {"mapped", role_mapped},
    {"batches", role_batches},       {"uploads", role_uploads}, {"behind", role_behind}, {"places", role_places}};

int main(int argc, char **argv) {
    for (size_t i = 0; argc > 1 && i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(argv[1], roles[i].name) == 0) {
            return roles[i].run(argc - 2, argv + 2);
        }
    }
    fprintf(stderr, "there is no such role\n");
    return 2;
}
