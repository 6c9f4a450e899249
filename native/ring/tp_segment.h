/*
 * The shared segment of one worker: what lies where, and who may believe what.
 *
 * A file in /dev/shm (or a PCI device's memory in a virtual machine) that the worker, its sessions and all client processes of
 * one virtual machine map, at TP_SEGMENT_ADDRESS where they can, so that pinned memory inside it has one address
 * everywhere, the GPU included.
 *
 *     header page │ slots, one per client process │ arena, in granules of 64 KiB
 *
 * A client takes a free slot, writes its greeting and waits; the supervisor checks the greeting, gives the client a run of
 * granules (its rings and staging blocks) and a session, and answers with the welcome. More granules are handed out by the
 * session on request (pinned memory). Who owns which granule stands in the *owners table*, memory that only the
 * supervisor and its sessions share: nothing that a guest writes decides what belongs to whom.
 *
 * Everything in the segment is hostile to the worker's side: it loads a field once, bounds it and keeps its own copy. The
 * client's side bounds what it reads too, so that a broken worker cannot make it write outside the segment.
 *
 * Life: each side's process holds a robust mutex in the slot; when the process ends, however it ends, its kernel marks
 * the word (FUTEX_OWNER_DIED), and the other side sees it. A whole machine that vanishes marks nothing: for that there is
 * the client's beat, and the boot id that tells a rebooted guest from a paused one.
 */
#ifndef TP_SEGMENT_H
#define TP_SEGMENT_H

#include <pthread.h>
#include <tp_ring.h>
#include <tp_wire.h>

#define TP_SEGMENT_MAGIC 0x544e454d47455354ull /* "TSEGMENT" */
#define TP_SEGMENT_ADDRESS 0x350000000000ull
#define TP_SEGMENT_MIN (16ull << 20)
#define TP_SEGMENT_MAX (1ull << 40)
#define TP_GRANULE (64ull << 10)
#define TP_SLOTS 64u
#define TP_SLOT_SIZE 8192u
#define TP_COMMAND_RING (2ull << 20) /* more than TP_FRAME_MAX; launches of 160 to 400 bytes: about 8,000 ahead */
#define TP_REPLY_RING (256ull << 10)
#define TP_CHUNK_RING 8192ull /* records of 32 bytes */
#define TP_BLOCKS_MAX 16u     /* staging blocks of TP_CHUNK_MAX bytes, each way */
#define TP_DONE_WORDS 128u    /* which the GPU writes when a stream has come to a point */
#define TP_LANDING 256u       /* bytes for each of them, where a small copy from the device lands */
#define TP_HEARTBEAT_NS 100000000u

enum tp_segment_state { TP_SEGMENT_SERVING = 1, TP_SEGMENT_CLOSED = 2 };

struct tp_segment_header {
    _Atomic uint64_t magic; /* written last */
    uint32_t version;       /* TP_PROTOCOL */
    _Atomic uint32_t state; /* enum tp_segment_state */
    uint64_t size;          /* of the segment in bytes, as the worker made it */
    uint64_t epoch;         /* random, another for each worker process */
    unsigned char schema[16];
    char boot_id[40];                         /* of the worker's kernel, as /proc/sys/kernel/random/boot_id has it */
    uint32_t release;                         /* of the worker; 0 before 0.2.0 */
    _Alignas(128) _Atomic uint64_t heartbeat; /* the supervisor adds 1 at least every 100 ms */
    struct tp_bell bell;                      /* of the supervisor */
};

enum tp_slot_state {
    TP_SLOT_FREE = 0,
    TP_SLOT_CLAIMED = 1, /* client: compare-and-swap from FREE; writes its greeting */
    TP_SLOT_GREETED = 2, /* client: the greeting is whole */
    TP_SLOT_TAKEN = 3,   /* supervisor: it looks at it (echoes the nonce) */
    TP_SLOT_ACCEPTED = 4,
    TP_SLOT_REFUSED = 5, /* supervisor: the welcome says why; the client reads it and sets FREE */
    TP_SLOT_ENDED = 6,   /* supervisor: the session has ended; free once the client's process has, too */
};

/* A chunk record of the two chunk rings: the bytes lie in staging block `block`. */
struct tp_chunk_record {
    struct tp_chunk chunk;
    uint32_t block;
    uint32_t zero;
};
_Static_assert(sizeof(struct tp_chunk_record) == 32, "chunk record");

struct tp_slot {
    _Atomic uint32_t state;
    _Atomic uint32_t first; /* granule where the client's run begins, counted from the arena's start; before ACCEPTED */
    _Atomic uint32_t blocks; /* staging blocks each way */
    _Atomic uint32_t left;   /* client: it uses the session no more, though its process goes on */
    _Atomic uint64_t beat;   /* the client adds 1 about every second while it lives */
    uint64_t client_nonce;   /* random; client, before GREETED */
    uint64_t echo;           /* the supervisor's copy of it: both directions are proved */
    char client_boot_id[40];
    _Atomic uint32_t stopped; /* supervisor: the session's process is */
    _Alignas(64)
        pthread_mutex_t client_life; /* robust, shared; locked by a thread of the client that lives as long as it */
    _Alignas(64) pthread_mutex_t session_life;
    _Alignas(64) unsigned char greeting[TP_GREETING_SIZE];
    unsigned char welcome[TP_WELCOME_SIZE];
    struct tp_bell client_bell;  /* of the client's reader */
    struct tp_bell session_bell; /* of the session's executor */
    struct tp_ring_shared commands, replies, chunks_up, chunks_down;
    /* 1 = filled. Uploads: the client sets it before the record, the session clears it when the copy engine has read.
     * Downloads: the session sets it before the record, the client clears it. */
    _Alignas(128) _Atomic uint32_t up_block[TP_BLOCKS_MAX];
    _Alignas(128) _Atomic uint32_t down_block[TP_BLOCKS_MAX];
    _Alignas(128) _Atomic uint64_t done[TP_DONE_WORDS];
};
_Static_assert(sizeof(struct tp_slot) <= TP_SLOT_SIZE, "slot");
_Static_assert(2 * TP_CHUNK_RING + TP_DONE_WORDS * TP_LANDING <= TP_GRANULE, "small parts of a run");
_Static_assert(sizeof(struct tp_segment_header) <= 4096, "header page");

static inline uint64_t tp_arena_at(void) {
    return (4096 + TP_SLOTS * (uint64_t)TP_SLOT_SIZE + TP_GRANULE - 1) & ~(TP_GRANULE - 1);
}
static inline uint64_t tp_arena_granules(uint64_t segment_size) {
    return segment_size < tp_arena_at() ? 0 : (segment_size - tp_arena_at()) / TP_GRANULE;
}

/* Where the parts of a client's run lie, as offsets in the segment. */
struct tp_run {
    uint64_t commands, replies, chunks_up, chunks_down, landing, up, down; /* up, down: the first staging block */
    uint64_t granules;                                                     /* of the whole run */
};
static inline struct tp_run tp_run_layout(uint64_t first, uint32_t blocks) {
    struct tp_run run;
    run.commands = tp_arena_at() + first * TP_GRANULE;
    run.replies = run.commands + TP_COMMAND_RING;
    run.chunks_up = run.replies + TP_REPLY_RING;
    run.chunks_down = run.chunks_up + TP_CHUNK_RING;
    run.landing = run.chunks_down + TP_CHUNK_RING;
    run.up = run.chunks_up + TP_GRANULE;
    run.down = run.up + blocks * (uint64_t)TP_CHUNK_MAX;
    run.granules = (run.down + blocks * (uint64_t)TP_CHUNK_MAX - run.commands) / TP_GRANULE;
    return run;
}

static inline struct tp_slot *tp_slot_at(void *base, uint32_t index) {
    return (struct tp_slot *)(void *)((unsigned char *)base + 4096 + (uint64_t)index * TP_SLOT_SIZE);
}

/* True once the kernel has marked the word: its owner locked it and has ended. */
static inline bool tp_life_over(const pthread_mutex_t *life) {
    return (*(const volatile uint32_t *)(const volatile void *)life & 0x40000000u) != 0; /* FUTEX_OWNER_DIED */
}
/* True once somebody has locked it: before that the kernel marks nothing. */
static inline bool tp_life_begun(const pthread_mutex_t *life) {
    return *(const volatile uint32_t *)(const volatile void *)life != 0;
}
/* Makes the mutex robust and shared, and locks it for the calling thread, which must live as long as the process and take no
 * other robust mutex. Never waits, and nobody ever unlocks it: the C library would follow pointers that the peer can write. */
TP_EXPORT bool tp_life_begin(pthread_mutex_t *life);
/* The machine's boot id; a machine without one gets an empty string, which is equal to nobody's. */
TP_EXPORT void tp_boot_id(char out[40]);

/* ---- the worker's side: supervisor (through Python) and sessions; `owners` is the table that only they share ----
 *
 * A supervisor has one segment, and remembers in its own memory which slots have a session: what a slot says of itself counts
 * only until it is taken.
 *
 * The owners table: one u16 for each granule, 0 = free, else slot + 1. Written with compare-and-swap. */
#define TP_OWNERS_BYTES(size) (tp_arena_granules(size) * sizeof(uint16_t))

/* Zeroes the header and slots of a fresh or abandoned segment and publishes the header; the magic comes last. */
TP_EXPORT void tp_segment_format(void *base, uint64_t size, uint64_t epoch, const unsigned char schema[16]);
TP_EXPORT void tp_segment_close(void *base);
/* Beats the heart and looks for a slot that greets, sleeping up to `timeout_ms`. The slot's index, after its state was made
 * TAKEN and the nonce echoed, or -1. On the way slots are freed whose claimer died or says nothing for 10 s, and those of
 * ended sessions whose client has ended. One thread. */
TP_EXPORT int tp_segment_greeting(void *base, uint32_t timeout_ms, unsigned char greeting[TP_GREETING_SIZE],
                                  char boot_id[40]);
/* Gives the client in `slot` its run (as many staging blocks as the arena has to spare, at least one each way), prepares
 * the rings and returns true; false when the arena has no room. The welcome is told by tp_segment_answer. */
TP_EXPORT bool tp_segment_grant(void *base, uint64_t size, void *owners, uint32_t slot, uint32_t *first,
                                uint32_t *blocks);
TP_EXPORT void tp_segment_answer(void *base, uint32_t slot, bool accepted,
                                 const unsigned char welcome[TP_WELCOME_SIZE]);
/* When the session of `slot` has ended. Slot and granules are free again as soon as the client's process has ended, too, which
 * tp_segment_greeting looks for: until then the program may still use its pinned memory. A client in another machine counts as
 * ended when that machine has been started anew, or its beat stands still for 10 min. After a refusal
 * that followed a grant: frees the granules at once. */
TP_EXPORT void tp_segment_release(void *base, uint64_t size, void *owners, uint32_t slot);
/* What the client last said of itself: its beat, and 1 in *over when its process has ended, or when that cannot be seen any
 * more because its life word was overwritten. */
TP_EXPORT uint64_t tp_segment_beat(void *base, uint32_t slot, int *over);
/* For the client: whether its session's process is stopped. */
TP_EXPORT void tp_segment_stopped(void *base, uint32_t slot, bool stopped);

/* From now on a page that is missing, because somebody truncated the file, is an empty one, and remembered. One segment of a
 * process; false if the signal cannot be caught. */
TP_EXPORT bool tp_segment_guard(void *base, uint64_t size);
TP_EXPORT bool tp_segment_was_cut(void);

/* ---- who only asks: `tensor-fusion doctor` and `tensor-fusion vm --check` ---- */

enum tp_asked { TP_ASKED_ANSWERED = 0, TP_ASKED_NO_SLOT = 1, TP_ASKED_NOT_SEEN = 2, TP_ASKED_NO_ANSWER = 3 };
/* Claims a slot, greets and waits for the welcome. The slot is the calling thread's until that ends, accepted or not. */
TP_EXPORT enum tp_asked tp_segment_ask(void *base, uint32_t timeout_ms, const unsigned char greeting[TP_GREETING_SIZE],
                                       unsigned char welcome[TP_WELCOME_SIZE]);

/* ---- the arena: sessions, each for its own slot ---- */

/* A run of `bytes` (rounded up to granules) for `slot`: its offset in the segment, 0 when there is none. */
TP_EXPORT uint64_t tp_arena_take(void *owners, uint64_t size, uint32_t slot, uint64_t bytes);
/* The same, with all of it in [from, to), offsets in the segment. */
TP_EXPORT uint64_t tp_arena_take_between(void *owners, uint64_t size, uint32_t slot, uint64_t bytes, uint64_t from,
                                         uint64_t to);
TP_EXPORT void tp_arena_give(void *owners, uint64_t size, uint32_t slot, uint64_t offset, uint64_t bytes);
/* Granules that belong to nobody. */
TP_EXPORT uint64_t tp_arena_left(const void *owners, uint64_t size);
/* True if all of [offset, offset + bytes) belongs to `slot`. */
TP_EXPORT bool tp_arena_owns(const void *owners, uint64_t size, uint32_t slot, uint64_t offset, uint64_t bytes);

#endif
