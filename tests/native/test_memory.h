/*
 * What the parts of test_memory share: random data, a kernel that takes time, and the cases by name.
 *
 * One thread but for the cases that say so; the state of the random numbers belongs to each file.
 */
#ifndef TEST_MEMORY_H
#define TEST_MEMORY_H

#include "simgpu_check.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define SEGMENT_AT 0x350000000000ull /* where a client maps the shared segment if it can */

static uint64_t random_state = 88172645463325252ull;

static inline uint64_t random_next(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static inline uint64_t random_below(uint64_t limit) { return random_next() % limit; }

static inline void random_fill(void *memory, size_t size) {
    unsigned char *bytes = memory;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(random_next() >> 24);
    }
}

static inline void run_spin(CUfunction function, uint64_t nanoseconds, CUstream stream) {
    void *params[] = {&nanoseconds};
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

void case_copies(void);
void case_visible(void);
void case_boxes(void);
void case_order(void);
void case_stall(void);
void case_allocations(void);
void case_limit(void);
void case_hold(void);
void case_share(void);
void case_twins(void);
void case_twin_limit(void);
void case_shared_pointers(void);
void case_shared_kernels(void);
void case_shared_full(void);
void case_shared_captured(void);
void case_shared_outlives(void);
void case_shared_elsewhere(void);
void case_shared_free(void);
void case_shared_churn(void);
void case_shared_failures(void);
void case_shared_patience(void);
void case_vmm(void);
void case_pools(void);
void case_threads(void);
void case_in_step(void);
void case_first_copy(void);
void case_standing(void);
void case_ordered_frees(void);
void case_ordered_limit(void);
void case_local_pools(void);
void case_managed(void);
void case_managed_copies(void);
void case_managed_large(void);
void case_managed_order(void);
void case_managed_attached(void);
void case_managed_hints(void);
void case_managed_signals(void);
void case_managed_limit(void);
void case_managed_variables(void);

#endif
