/*
 * A byte ring between one producer and one consumer in memory that both processes can write.
 *
 * The peer is hostile: it can change every byte of the shared part at any time. So each side keeps its own index in private
 * memory and never reads it back; the peer's index is loaded once per look, through one atomic load, and bounded before it is
 * used: an index that cannot be makes the ring `broken` for ever and hands out nothing. Bytes are copied out before anybody
 * parses them. A byte that changes while it is copied is the peer's own damage.
 *
 * Memory order: the producer stores `head` with release after the bytes; the consumer loads it with acquire before it reads
 * them, and stores `tail` with release after it has read them; the producer loads `tail` with acquire before it writes
 * over them. tests/native/ring.pml is the model of these rules.
 *
 * Sleeping: whoever is about to sleep sets its bell, looks once more and sleeps; whoever has stored something the other may
 * wait for (bytes, room, a block's word) looks at the other's bell afterwards. A fence stands between store and look on both
 * sides, so one of the two sees the other. Where the two share no kernel nobody can be woken, and sleepers look again by
 * themselves in growing steps (tp_bell_wait).
 *
 * Napping: a consumer that nobody waits for looks only now and then (tp_bell_nap). What is published meanwhile lets it lie; who
 * waits for what it has published rings it like a sleeper. A nap ends by itself, so a ring that is lost costs its rest.
 *
 * One thread at a time on each side; which, is the owner's business.
 */
#ifndef TP_RING_H
#define TP_RING_H

#include <string.h>
#include <tp_base.h>

/* In shared memory, zero at the beginning. Each index on a line of its own, two lines apart because of the prefetcher. */
struct tp_ring_shared {
    _Alignas(128) _Atomic uint64_t head; /* bytes ever written; stored by the producer */
    _Alignas(128) _Atomic uint64_t tail; /* bytes ever read; stored by the consumer */
};

/* One side's view, in its private memory. */
struct tp_ring {
    struct tp_ring_shared *shared;
    unsigned char *bytes;
    uint64_t size; /* a power of two */
    uint64_t at;   /* own index: head for the producer, tail for the consumer */
    uint64_t seen; /* the peer's index as it was when last looked at */
    bool broken;   /* the peer's index cannot be: nothing in here means anything any more */
};

static inline struct tp_ring tp_ring_make(struct tp_ring_shared *shared, unsigned char *bytes, uint64_t size) {
    return (struct tp_ring){.shared = shared, .bytes = bytes, .size = size};
}

/* ---- producer ---- */

/* Bytes that may be written, after one look at the consumer's index. 0 when the ring is broken. */
static inline uint64_t tp_ring_room(struct tp_ring *ring) {
    uint64_t tail = atomic_load_explicit(&ring->shared->tail, memory_order_acquire);
    uint64_t used = ring->at - tail;
    /* The index only grows: one that goes back would let bytes be overwritten that were promised. */
    if (TP_UNLIKELY(used > ring->size || tail - ring->seen > ring->size)) {
        ring->broken = true;
    }
    if (TP_UNLIKELY(ring->broken)) {
        return 0;
    }
    ring->seen = tail;
    return ring->size - used;
}

/* Copies bytes behind what is published; tp_ring_room said that they fit at `offset` bytes from there. */
static inline void tp_ring_put(struct tp_ring *ring, uint64_t offset, const void *from, size_t size) {
    uint64_t start = (ring->at + offset) & (ring->size - 1);
    size_t first = size < ring->size - start ? size : (size_t)(ring->size - start);
    memcpy(ring->bytes + start, from, first);
    memcpy(ring->bytes, (const unsigned char *)from + first, size - first);
}

static inline void tp_ring_publish(struct tp_ring *ring, uint64_t size) {
    ring->at += size;
    atomic_store_explicit(&ring->shared->head, ring->at, memory_order_release);
}

/* ---- consumer ---- */

/* Bytes that may be read, after one look at the producer's index. 0 when the ring is broken. */
static inline uint64_t tp_ring_filled(struct tp_ring *ring) {
    uint64_t head = atomic_load_explicit(&ring->shared->head, memory_order_acquire);
    uint64_t filled = head - ring->at;
    if (TP_UNLIKELY(filled > ring->size || head - ring->seen > ring->size)) {
        ring->broken = true;
    }
    if (TP_UNLIKELY(ring->broken)) {
        return 0;
    }
    ring->seen = head;
    return filled;
}

/* Copies out the next bytes, which tp_ring_filled counted, without giving their room back. */
static inline void tp_ring_get(const struct tp_ring *ring, void *to, size_t size) {
    uint64_t start = ring->at & (ring->size - 1);
    size_t first = size < ring->size - start ? size : (size_t)(ring->size - start);
    memcpy(to, ring->bytes + start, first);
    memcpy((unsigned char *)to + first, ring->bytes, size - first);
}

static inline void tp_ring_consume(struct tp_ring *ring, uint64_t size) {
    ring->at += size;
    atomic_store_explicit(&ring->shared->tail, ring->at, memory_order_release);
}

/* ---- bells ---- */

/* In shared memory: what its owner does, or is about to do. */
enum tp_bell_state { TP_AWAKE, TP_SLEEPS, TP_NAPS };
struct tp_bell {
    _Alignas(128) _Atomic uint32_t sleeps; /* enum tp_bell_state */
};

/* Where one side is in its sleep. */
struct tp_nap {
    bool same_kernel; /* the peer can wake us */
    uint64_t since;   /* when the idleness began, 0: not idle */
};

/* Before the last look, each time: tp_bell_wait and tp_bell_nap return at once for a bell that is not armed for them. */
static inline void tp_bell_arm_for(struct tp_bell *bell, enum tp_bell_state what) {
    atomic_store_explicit(&bell->sleeps, what, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}
static inline void tp_bell_arm(struct tp_bell *bell) { tp_bell_arm_for(bell, TP_SLEEPS); }
static inline void tp_bell_disarm(struct tp_bell *bell) {
    atomic_store_explicit(&bell->sleeps, TP_AWAKE, memory_order_relaxed);
}
/* After the last look found nothing: sleeps until the bell is rung, at most `most_ns`, and disarms. Without a common kernel
 * the sleep is short at first and grows with the idleness (50 µs … 5 ms), so that an idle side costs less than 1 % of a core. */
TP_EXPORT void tp_bell_wait(struct tp_bell *bell, struct tp_nap *nap, uint64_t most_ns);
/* The same for a nap: `ns` at the most. */
TP_EXPORT void tp_bell_nap(struct tp_bell *bell, uint64_t ns);
TP_EXPORT void tp_bell_wake(struct tp_bell *bell);
/* After something was published or given back. The fence is for both: a release store alone may still be on its way when the
 * bell is looked at, and then the sleeper sees neither. */
static inline void tp_bell_ring(struct tp_bell *bell) {
    atomic_thread_fence(memory_order_seq_cst);
    if (TP_UNLIKELY(atomic_load_explicit(&bell->sleeps, memory_order_relaxed) != TP_AWAKE)) {
        tp_bell_wake(bell);
    }
}
/* The same where nobody waits for what comes of it: whoever naps lets it lie. */
static inline void tp_bell_ring_sleeper(struct tp_bell *bell) {
    atomic_thread_fence(memory_order_seq_cst);
    const uint32_t sleeps = atomic_load_explicit(&bell->sleeps, memory_order_relaxed);
    if (TP_UNLIKELY(sleeps != TP_AWAKE) && sleeps != TP_NAPS) {
        tp_bell_wake(bell);
    }
}

/* How long to nap beside a program that has sent for `streamed_ns` and waited for nothing: what it sends meanwhile is done that much
 * later, once, when it waits. That is at most a 32nd of the time, and nothing is gained by naps that are longer still. */
static inline uint64_t tp_nap_ns(uint64_t streamed_ns, uint64_t least_ns) {
    const uint64_t ns = streamed_ns / 32, most_ns = 250000;
    return ns < least_ns ? least_ns : ns > most_ns ? most_ns : ns;
}

#endif
