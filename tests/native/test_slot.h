/*
 * Shared by the tests of the session's side of a slot: a client made of the ring primitives alone.
 *
 * Every case runs in a process of its own (the client) against a session process of its own, which is the real link under the
 * small executor of test_transport_session.c; the parent plays the supervisor and collects exit codes. What is written here is
 * what any client could write, so that cases can break each rule on its own.
 */
#ifndef TEST_SLOT_H
#define TEST_SLOT_H

#include "test_transport.h"

#include <tp_segment.h>

struct client {
    unsigned char *base;
    struct tp_slot *slot;
    struct tp_run run;
    uint32_t blocks;
    bool same_kernel;
    struct tp_ring commands, replies, up, down;
};
extern struct client it;
extern int session_pid;

struct slot_case {
    const char *name;
    void (*run)(void);
    int session_code;  /* how the session must end */
    int client_code;   /* 0, or 128 + the signal that the case sends to itself */
    uint64_t size;     /* of the segment in MiB */
    bool other_kernel; /* the two seem to share no kernel */
};
extern const struct slot_case hostile_cases[];

/* Tells the session, in the way that the two machines allow. */
void ring(void);
/* Appends a frame, waiting for room. */
void append(uint16_t op, uint16_t flags, const void *body, size_t size);
void append_words(uint16_t op, uint16_t flags, uint64_t a, uint64_t b, uint64_t c);
/* The next reply or message with its body, which is allocated. */
unsigned char *next_reply(struct tp_reply_frame *header, size_t *size);
void check_call(uint64_t seed, size_t size);
struct totals slot_totals(void);
/* Fills a free block and names it. */
void send_chunk(uint64_t transfer, uint64_t offset, uint32_t size, uint64_t seed);
void send_record(uint64_t transfer, uint64_t offset, uint32_t size, uint32_t handed, uint32_t block);
void slot_upload(uint64_t transfer, uint64_t size, uint64_t seed);
void slot_download(uint64_t transfer, uint64_t size, uint64_t seed);

int test_real(const char *program, const char *driver, const char *op);

#endif
