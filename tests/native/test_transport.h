/*
 * Shared by the transport tests: the operations of the test session, and what test cases need.
 *
 * Every case runs in a process of its own against a session process of its own, over TCP on the loopback address; the parent
 * collects exit codes. A check that fails prints its line and ends its process with 1.
 */
#ifndef TEST_TRANSPORT_H
#define TEST_TRANSPORT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_conn.h>
#include <tp_net.h>
#include <tp_wire.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                              \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

enum test_op {
    OP_ECHO = 16,            /* call: bytes; replies the same bytes, result = size */
    OP_COUNT = 17,           /* u32 value: the session checks that values of a thread come as 0, 1, 2 … */
    OP_TOTALS = 18,          /* call: replies u64 counted frames, u64 uploaded bytes, u64 order violations */
    OP_UPLOAD = 19,          /* u64 transfer, u64 size, u64 seed: compared with pattern(seed) */
    OP_DOWNLOAD = 20,        /* u64 transfer, u64 size, u64 seed: pattern(seed) comes back */
    OP_DIE = 21,             /* the session ends at once */
    OP_STALL = 22,           /* u64 ms: the session does nothing for that long */
    OP_NOTICE = 23,          /* u64 value: comes back as a message, 20 ms later */
    OP_HALF = 24,            /* u64 transfer, u64 size: sends half of the transfer, then the session dies */
    OP_REFUSE_UPLOAD = 25,   /* u64 transfer, u64 size: announced, then dropped */
    OP_REFUSE_DOWNLOAD = 26, /* call: u64 transfer: never comes */
    OP_BAD = 27,             /* call: u32 kind: the session breaks the format, see send_bad */
    OP_HELD = 28,            /* call: u64 transfer, u64 size, u64 seed: frames that complete it, see held */
};
enum test_message {
    MESSAGE_WRITE = 1,  /* u64 transfer, bytes: a small download */
    MESSAGE_NOTICE = 2, /* u64 value */
    MESSAGE_STEP = 3,   /* u64 number */
};

static inline unsigned char pattern(uint64_t seed, uint64_t at) {
    uint64_t x = (seed + (at >> 3)) * 0x9e3779b97f4a7c15ull;
    return (unsigned char)(x >> (24 + 4 * (at & 7)));
}
static inline void fill_pattern(unsigned char *memory, uint64_t size, uint64_t seed, uint64_t offset) {
    for (uint64_t i = 0; i < size; i++) {
        memory[i] = pattern(seed, offset + i);
    }
}
static inline bool has_pattern(const unsigned char *memory, uint64_t size, uint64_t seed, uint64_t offset) {
    for (uint64_t i = 0; i < size; i++) {
        if (memory[i] != pattern(seed, offset + i)) {
            return false;
        }
    }
    return true;
}

/* The test session: accepts, greets, serves until its client is gone. Returns the exit code for its process. */
int test_session(int listener);
/* The same over a slot of a segment at `base`, for a client whose run the caller has granted. */
int test_session_slot(unsigned char *base, uint32_t slot, uint32_t first, uint32_t blocks);

struct test_case {
    const char *name;
    void (*run)(void);
    int session_code; /* how the session process must end; ANY_CODE: it is killed when it has not ended */
};
#define ANY_CODE (-1)
extern const struct test_case robust_cases[], nap_cases[], speed_cases[];

struct tp_conn *connected(void);
/* Helpers of both files of cases. */
enum tp_status echo(struct tp_conn *conn, const void *data, size_t size, struct tp_reply *reply);
void check_echo(struct tp_conn *conn, uint64_t seed, size_t size);
void *open_frame(struct tp_conn *conn, uint16_t op, size_t body, struct tp_cursor *c);
uint64_t start_upload(struct tp_conn *conn, const void *source, size_t size, uint64_t seed);
uint64_t start_download(struct tp_conn *conn, void *to, size_t size, uint64_t seed);
struct totals {
    uint64_t counted, uploaded, violations;
};
struct totals totals(struct tp_conn *conn);
extern const char *test_address; /* native+127.0.0.1+PORT+0 */
extern int test_session_pid;
extern uint16_t test_port;

#endif
