/*
 * What the programs of the whole-stack tests share: buffers with known contents, launches, the clock, the roles by name.
 *
 * The programs are ordinary users of the driver API, linked with -lcuda; they know nothing of Tensor Fusion. Each role is one
 * process, started by tests/test_stack*.py. Nothing they read comes from outside but the words of those tests.
 */
#ifndef STACK_H
#define STACK_H

#include "../native/simgpu_check.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

struct kernels {
    CUfunction vector_add, saxpy, fill_u32, iota_u32, spin_ns;
};

struct kernels load_all(void);
/* A non-blocking launch of `threads` threads; parameters in the order of the kernel's. */
CUresult launch(CUfunction function, size_t threads, CUstream stream, void **params);
double now_ms(void);
/* One line on stdout, at once: the test waits for it. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The test has closed our input, or said something. */
bool input_ended(void);

/* A check of a role that has several: the word names one. */
struct check {
    const char *name;
    void (*run)(void);
};
int run_check(const struct check *checks, size_t known, int count, char **words);

/* compute.c */
int role_compute(int count, char **words);
int role_threads(int count, char **words);
int role_order(int count, char **words);
int role_fork(int count, char **words);
int role_fork_first(int count, char **words);
void compute_all(size_t n, unsigned seed);

/* arrays.c */
int role_arrays(int count, char **words);
/* places.c */
int role_places(int count, char **words);
/* parts.c */
int role_parts(int count, char **words);

/* green.c */
int role_green(int count, char **words);

/* graphs.c */
int role_graphs(int count, char **words);

/* polls.c */
int role_polls(int count, char **words);

/* timing.c */
int role_timing(int count, char **words);

/* corners.c */
int role_corners(int count, char **words);

/* images.c */
int role_images(int count, char **words);

/* batches.c */
int role_batches(int count, char **words);

/* pinned.c */
int role_pinned(int count, char **words);

/* mapped.c */
int role_mapped(int count, char **words);

/* uploads.c */
int role_uploads(int count, char **words);

/* behind.c */
int role_behind(int count, char **words);

/* devices.c */
int role_devices(int count, char **words);

/* failures.c */
int role_failures(int count, char **words);

/* callbacks.c */
int role_callbacks(int count, char **words);

/* words.c */
int role_words(int count, char **words);

/* lasting.c */
int role_steady(int count, char **words);
int role_copy(int count, char **words);
int role_wait(int count, char **words);
int role_console(int count, char **words);

/* moments.c */
int role_moment(int count, char **words);

#endif
