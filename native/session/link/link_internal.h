/*
 * What the three files of the session's link share.
 *
 * struct tpw_link belongs to the executor thread, which is the only one to enter tpw_link.h except for tpw_upload_done. The
 * two threads of each data connection touch only their struct lane, the queues under `lock`, and `status`. Over a slot of
 * the shared segment (`slot` is set) there are no sockets and none of those threads; link_slot.c stands in their place.
 */
#ifndef TPW_LINK_INTERNAL_H
#define TPW_LINK_INTERNAL_H

#include "tpw_link.h"

#include <pthread.h>
#include <tp_secure.h>

#define TPW_INPUT_SIZE (TP_FRAME_MAX + (1u << 20))
#define TPW_OUTPUT_MAX (64u << 20)
/* Staging of one data connection: enough that the socket and the copy engine both always have a block while others are in
 * flight between them; its own share, so that a later transfer can never starve an earlier one on another connection. */
#define TPW_LANE_BLOCKS 16u
#define TPW_GROW_BLOCKS 4u

struct link_block {
    struct tpw_block block; /* first: the executor holds pointers to it */
    struct link_block *next;
    struct lane *lane; /* uploads: whose share it counts in; NULL for downloads */
    uint32_t handed;   /* downloads: place among the transfers handed over, 0 unless it ends one */
    bool out;          /* with the executor: taken and not given back */
};

struct queue {
    struct link_block *first, *last;
};

struct lane {
    struct tpw_link *link;
    uint32_t index;
    _Atomic int socket;       /* -1: not open */
    struct tp_secure *secure; /* NULL: plain */
    pthread_t receiver, sender;
    bool receiver_runs, sender_runs;
    /* under link->lock */
    struct link_block *free;
    struct queue received;
    uint32_t blocks;            /* of its share, allocated */
    bool wants_blocks;          /* the receiver has none and asks the executor to allocate */
    _Atomic uint32_t free_news; /* bumped when `free` gets a block */
};

/* An upload whose bytes nobody wants. */
struct link_drop {
    uint64_t transfer, left;
    struct link_drop *next;
};

struct tpw_link {
    struct tpw_slot *slot;    /* link_slot.c; NULL over TCP */
    int control, event;       /* -1 over a slot */
    struct tp_secure *secure; /* of control; NULL: plain */
    void *(*allocate)(size_t);
    void (*release)(void *);

    unsigned char *input;
    unsigned char *kept,
        *spare; /* what a frame lies in while others are read in the middle of it; room for the next time */
    size_t input_start, input_end, consumed; /* consumed: the frame handed out last */
    unsigned char *output;
    size_t output_start, output_end, begun; /* begun: bytes between begin and commit */
    uint64_t handed;                        /* downloads handed over completely */
    uint64_t received, sent;                /* bytes */
    _Atomic uint32_t status;                /* enum tp_status; once not TP_OK it stays */
    _Atomic uint32_t told;                  /* why is in the log, too */

    struct tp_lock lock; /* queues of the data threads */
    struct lane lanes[TP_DATA_CONNECTIONS];
    uint32_t lanes_open;
    struct queue to_send;
    struct link_block *download_free;
    uint32_t download_blocks;
    struct link_drop *drops;    /* executor only */
    _Atomic uint32_t send_news; /* bumped when to_send gets a block */
    _Atomic uint32_t news;      /* bumped by data threads for the executor */
    _Atomic uint32_t executor_waits;
    uint64_t asked_for_silence; /* when, about once a second however short the executor's waits are */
    uint32_t news_seen;
    _Atomic uint32_t wants_blocks;
};

/* Ends the link once, with a sentence that names the reason. Any thread. */
void tpw_link_fail(struct tpw_link *link, enum tp_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static inline bool tpw_link_over(const struct tpw_link *link) {
    return atomic_load_explicit(&link->status, memory_order_seq_cst) != TP_OK;
}
/* Executor: what the data threads cannot do themselves (pinned memory comes from the driver's own thread). */
static inline bool tpw_link_wants_service(const struct tpw_link *link) {
    return atomic_load_explicit(&link->wants_blocks, memory_order_relaxed) || link->drops;
}
void tpw_link_serve_data(struct tpw_link *link);
void tpw_link_close_data(struct tpw_link *link);
/* Memory and buffers that both kinds have; NULL when there is no memory. */
struct tpw_link *tpw_link_make(void);
void tpw_link_drop(struct tpw_link *link); /* memory only */

/* ---- link_slot.c ---- */

size_t tpw_slot_receive(struct tpw_link *link, void *to, size_t room);       /* 0: nothing came, or the link is over */
size_t tpw_slot_send(struct tpw_link *link, const void *bytes, size_t size); /* what there was room for */
/* `frames`: unread frames end the sleep. */
void tpw_slot_sleep(struct tpw_link *link, int extra_fd, uint64_t timeout_ns, bool frames);
void tpw_slot_wake(struct tpw_link *link);             /* any thread */
uint32_t tpw_slot_blocks(const struct tpw_link *link); /* each way */
/* `waits`: somebody needs the block, so the link is over when the client that should fill it is gone. */
struct tpw_block *tpw_slot_upload_take(struct tpw_link *link, uint64_t transfer, bool waits);
void tpw_slot_upload_done(struct tpw_link *link, struct tpw_block *block); /* any thread */
struct tpw_block *tpw_slot_download_block(struct tpw_link *link);
void tpw_slot_download_send(struct tpw_link *link, struct tpw_block *block, uint32_t handed);
void tpw_slot_download_drop(struct tpw_link *link, struct tpw_block *block);

#endif
