/*
 * Shared by the files of test_ring: how a case is named and run, what a check does, a segment in memory.
 *
 * Every case runs in the process that the command line names it for, and ends that process when it fails. Nobody else can
 * write the memory; where a case needs a hostile peer, it writes the shared words itself.
 */
#ifndef TEST_RING_H
#define TEST_RING_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_segment.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                              \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

struct ring_case {
    const char *name;
    void (*run)(void);
};
/* Each ends with an empty name. */
extern const struct ring_case ring_cases[], bell_cases[], segment_cases[];

/* A number generator of the case's own, so that a failure can be had again. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += 0x9e3779b97f4a7c15ull);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

#endif
