/*
 * What test_arena.c and its fakes share: checks that name the line, the GPU that works when it is told to, what was sent.
 *
 * One thread; every variable belongs to test_arena_fakes.c and may be set by a test before it calls the session's code.
 */
#ifndef TEST_ARENA_H
#define TEST_ARENA_H

#include "tpg_session.h"
#include "tpw_copy.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define GIVES(expected, call)                                                                                          \
    do {                                                                                                               \
        int32_t gives_ = (int32_t)(call);                                                                              \
        if (gives_ != (int32_t)(expected)) {                                                                           \
            fprintf(stderr, "%s:%d: %s gave %d, expected %d\n", __FILE__, __LINE__, #call, gives_, (int)(expected));   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define MIB (1ull << 20)
#define CARD (256 * MIB)

extern struct tp_intervals mapped; /* of the driver */
extern uint64_t reserved_at, reserved_size, physical_used;
extern unsigned char *device_memory; /* contents of the allocation at device_base, if a test wants them kept */
extern uint64_t device_base;
extern struct tpw_session session;
extern struct tp_frame frame;
extern struct tpw_stream only;                /* the legacy stream */
extern bool gpu_runs, violated, client_reads; /* the last: what was sent gets into the reply ring */
extern int32_t deferred;
extern unsigned char reply[TP_FRAME_MAX];
extern uint16_t reply_op;
extern size_t reply_size, reply_count;
extern struct tpw_block *uploads[64];
extern size_t upload_count, upload_given, download_given, download_sent, download_dropped;
extern bool download_last;
extern uint64_t dropped;
extern unsigned char received[64 << 20];
extern bool (*host_good)(const void *memory, size_t size);
bool is_mapped(uint64_t address, uint64_t size);
extern size_t access_left;             /* so many more times the driver gives another device access */
bool all_reached_by(uint32_t devices); /* whether all that is mapped is reached by these, and by no others */
void context(uint64_t handle);         /* names a context of the client */
void begin(uint64_t limit);            /* 0 = none */
void end(void);                        /* nothing may be left */
void test_pinned(void);                /* test_arena_pinned.c */
void test_peers(void);                 /* test_arena_peers.c */

#endif
