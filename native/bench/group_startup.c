/*
 * Startup: what a program pays before its first kernel has finished, in processes made for the purpose.
 *
 * The parent notes the time, starts this executable with `first-kernel`, and reads four times from the child's standard output;
 * both use CLOCK_MONOTONIC, which is one clock for all processes of a machine. The parent has loaded its driver but not initialised it,
 * so nothing of it is inherited. Between two children is a pause, in which a worker can make the next session ready, as it would between
 * programs that people start. The child's output is parsed as numbers and nothing else.
 */
#include "bench.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { STEPS = 5 };
static const long PAUSE_NS = 300 * 1000 * 1000;

int first_kernel(void) {
    uint64_t done[STEPS] = {now_ns()};
    driver_load();
    driver_start(done + 1);
    for (int i = 0; i < STEPS; i++)
        printf("%llu%c", (unsigned long long)done[i], i == STEPS - 1 ? '\n' : ' ');
    return 0;
}

static void start_one(uint64_t *started, uint64_t done[STEPS]) {
    int ends[2], status;
    pid_t child;
    char program[] = "tensor-fusion-bench", role[] = "first-kernel", option[] = "--libcuda", *library = strdup(libcuda);
    char *const words[] = {program, role, option, library, NULL};
    posix_spawn_file_actions_t actions;
    if (!library || pipe(ends))
        fail("A process cannot be started: %s.", strerror(errno));
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    *started = now_ns();
    int error = posix_spawn(&child, "/proc/self/exe", &actions, NULL, words, environ);
    if (error)
        fail("A process cannot be started: %s.", strerror(error));
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    FILE *output = fdopen(ends[0], "r");
    int read_numbers = 0;
    for (int i = 0; output && i < STEPS; i++) {
        unsigned long long number;
        if (fscanf(output, "%llu", &number) == 1) {
            done[i] = number;
            read_numbers++;
        }
    }
    if (output)
        fclose(output);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (read_numbers != STEPS || status != 0)
        fail("A fresh process did not get to the end of its first kernel; its own sentence is above.");
    free(library);
}

void group_startup(void) {
    static const char *const names[] = {"process start to main", "cuInit", "primary context", "module and stream",
                                        "first kernel"};
    struct series whole, steps[STEPS];
    series_open(&whole, "process start to first finished kernel", 0, options.startups);
    for (int i = 0; i < STEPS; i++)
        series_open(&steps[i], names[i], 0, options.startups);
    for (unsigned n = 0; n < options.startups; n++) {
        uint64_t started, done[STEPS];
        nanosleep(&(struct timespec){.tv_sec = 0, .tv_nsec = PAUSE_NS}, NULL);
        start_one(&started, done);
        whole.begun = started;
        sample_end_at(&whole, done[STEPS - 1]);
        for (int i = 0; i < STEPS; i++) {
            steps[i].begun = i ? done[i - 1] : started;
            sample_end_at(&steps[i], done[i]);
        }
    }
    series_close(&whole);
    for (int i = 0; i < STEPS; i++)
        series_close(&steps[i]);
    /* each child has checked the word its kernel wrote; that it did is all there is to agree on */
    const uint32_t word = 0xf125u;
    group_digest(&word, sizeof word);
}
