/*
 * Who ends a nap: a connection without a session, whose other side is a word that this file looks at.
 *
 * One thread. What the other side does with the word is shown by test_ring_bell.c and by ring.pml.
 */
#include "conn_internal.h"
#include "test_transport.h"

static struct tp_slot slot;
static struct tpc_seat seat = {.slot = &slot};
static struct tp_conn conn;

static void make(struct tpc_seat *at) {
    CHECK(tpc_ring_make(&conn) == TP_OK);
    conn.control = -1;
    conn.look_after = conn.cache_max = UINT32_MAX;
    conn.seat = at;
    conn.shared_head = &slot.commands.head;
    if (at) {
        at->base = (unsigned char *)&slot;
        at->commands = tp_ring_make(&slot.commands, conn.ring, conn.ring_size);
    }
}

static void post(void) {
    CHECK(tp_reserve(&conn, OP_NOTICE, sizeof(struct tp_frame)));
    tp_commit(&conn);
}

/* So much that nobody waits any more for what was sent. */
static void stream(void) {
    for (int i = 0; i <= TPC_EXPECTED; i++) {
        post();
    }
}

/* The other side naps after the program has streamed; whether what follows is to end that. */
#define NAPS_ON(word, what)                                                                                            \
    do {                                                                                                               \
        stream();                                                                                                      \
        atomic_store(word, TP_NAPS);                                                                                   \
        post();                                                                                                        \
        CHECK(atomic_load(word) == TP_NAPS);                                                                           \
        what;                                                                                                          \
    } while (0)
#define ENDS(word, what) NAPS_ON(word, what; CHECK(atomic_load(word) == TP_AWAKE))

static void who_waits_rings_the_session(void) {
    make(&seat);
    _Atomic uint32_t *word = &slot.session_bell.sleeps;
    struct tp_done done;
    atomic_store(word, TP_NAPS);
    post(); /* somebody may wait soon */
    CHECK(atomic_load(word) == TP_AWAKE);
    stream();
    atomic_store(word, TP_SLEEPS);
    post();
    CHECK(atomic_load(word) == TP_AWAKE);
    ENDS(word, CHECK(tp_reserve(&conn, OP_ECHO, sizeof(struct tp_frame))); tpc_publish(&conn, true)); /* a call */
    ENDS(word, tp_flush(&conn));
    ENDS(word, tp_listen(&conn, 1); post()); /* a host function */
    ENDS(word, CHECK(tp_done_begin(&conn, &done)); post());
    ENDS(word, conn.wake_uploads = 1; post());
}

static void who_expects_something_wakes_the_sender(void) {
    make(NULL);
    _Atomic uint32_t *word = &conn.sender_sleeps;
    atomic_store(word, TP_NAPS);
    post();
    CHECK(atomic_load(word) == TP_AWAKE);
    stream();
    atomic_store(word, TP_SLEEPS);
    post();
    CHECK(atomic_load(word) == TP_AWAKE);
    ENDS(word, tp_listen(&conn, 1); post());
    ENDS(word, tpc_expects(&conn, tp_frames(&conn)); tpc_wake_sender(&conn));
}

const struct test_case nap_cases[] = {
    {"who_waits_rings_the_session", who_waits_rings_the_session, ANY_CODE},
    {"who_expects_something_wakes_the_sender", who_expects_something_wakes_the_sender, ANY_CODE},
    {NULL, NULL, 0},
};
