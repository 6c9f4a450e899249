/*
 * Tests of the byte ring: what it carries, where it wraps, what it does with an index that cannot be, and two threads on it.
 *
 * The main thread owns every ring here, but for the two cases with a producer and a consumer thread, in which each touches its
 * own struct tp_ring and the shared memory between them. Takes the name of a case; --list prints the names.
 */
#include "test_ring.h"

#include <pthread.h>

#define SMALL 64u
#define FRAMES_DEFAULT 10000000u

struct pair {
    struct tp_ring_shared shared;
    unsigned char bytes[SMALL + 16]; /* behind SMALL: must stay 0xa5 */
    struct tp_ring producer, consumer;
};

/* Both sides and the shared words stand at `start`, as after so many bytes. */
static void pair_begin(struct pair *pair, uint64_t start) {
    memset(pair, 0, sizeof *pair);
    memset(pair->bytes, 0xa5, sizeof pair->bytes);
    atomic_store(&pair->shared.head, start);
    atomic_store(&pair->shared.tail, start);
    pair->producer = pair->consumer = tp_ring_make(&pair->shared, pair->bytes, SMALL);
    pair->producer.at = pair->producer.seen = pair->consumer.at = pair->consumer.seen = start;
}

static void pair_end(const struct pair *pair) {
    for (size_t i = SMALL; i < sizeof pair->bytes; i++) {
        CHECK(pair->bytes[i] == 0xa5);
    }
}

static void send_bytes(struct pair *pair, unsigned char first, size_t size) {
    unsigned char bytes[SMALL];
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(first + i);
    }
    CHECK(tp_ring_room(&pair->producer) >= size);
    tp_ring_put(&pair->producer, 0, bytes, size);
    tp_ring_publish(&pair->producer, size);
}

static void expect_bytes(struct pair *pair, unsigned char first, size_t size) {
    unsigned char bytes[SMALL];
    CHECK(tp_ring_filled(&pair->consumer) >= size);
    tp_ring_get(&pair->consumer, bytes, size);
    for (size_t i = 0; i < size; i++) {
        CHECK(bytes[i] == (unsigned char)(first + i));
    }
    tp_ring_consume(&pair->consumer, size);
}

/* Where an index is special: 0, just before and at 2^32 and 2^63, and where it wraps to 0. */
static const uint64_t STARTS[] = {
    0, 1, (1ull << 32) - 7, (1ull << 32) - SMALL, (1ull << 63) - 3, 0 - 5ull, 0 - (uint64_t)SMALL};
#define EACH_START(i) for (size_t i = 0; i < sizeof STARTS / sizeof *STARTS; i++)

static void every_size_at_every_place(void) {
    EACH_START(i) {
        for (uint64_t place = 0; place < SMALL; place++) {
            struct pair pair;
            pair_begin(&pair, STARTS[i] + place);
            for (size_t size = 0; size <= SMALL; size++) {
                send_bytes(&pair, (unsigned char)size, size);
                expect_bytes(&pair, (unsigned char)size, size);
                CHECK(tp_ring_filled(&pair.consumer) == 0 && tp_ring_room(&pair.producer) == SMALL);
            }
            CHECK(!pair.producer.broken && !pair.consumer.broken);
            pair_end(&pair);
        }
    }
}

static void wrap_at_the_exact_end(void) {
    struct pair pair;
    pair_begin(&pair, 0);
    send_bytes(&pair, 1, SMALL - 8);
    expect_bytes(&pair, 1, SMALL - 8);
    send_bytes(&pair, 50, 8); /* ends at the last byte */
    send_bytes(&pair, 90, 8); /* begins at the first */
    CHECK(pair.bytes[SMALL - 1] == 57 && pair.bytes[0] == 90);
    expect_bytes(&pair, 50, 8);
    expect_bytes(&pair, 90, 8);
    pair_end(&pair);
}

static void full_and_empty(void) {
    EACH_START(i) {
        struct pair pair;
        pair_begin(&pair, STARTS[i]);
        CHECK(tp_ring_room(&pair.producer) == SMALL && tp_ring_filled(&pair.consumer) == 0);
        send_bytes(&pair, 7, SMALL);
        CHECK(tp_ring_room(&pair.producer) == 0 && tp_ring_filled(&pair.consumer) == SMALL);
        expect_bytes(&pair, 7, 1);
        CHECK(tp_ring_room(&pair.producer) == 1);
        send_bytes(&pair, 200, 1);
        expect_bytes(&pair, 8, SMALL - 1);
        expect_bytes(&pair, 200, 1);
        pair_end(&pair);
    }
}

static void nothing_is_seen_before_it_is_published(void) {
    struct pair pair;
    pair_begin(&pair, SMALL - 3);
    tp_ring_put(&pair.producer, 0, "head", 4);
    tp_ring_put(&pair.producer, 4, "body", 4);
    CHECK(tp_ring_filled(&pair.consumer) == 0);
    tp_ring_publish(&pair.producer, 8);
    char got[8];
    CHECK(tp_ring_filled(&pair.consumer) == 8);
    tp_ring_get(&pair.consumer, got, 8);
    CHECK(memcmp(got, "headbody", 8) == 0);
    CHECK(tp_ring_room(&pair.producer) == SMALL - 8); /* read, but not given back */
    tp_ring_consume(&pair.consumer, 8);
    CHECK(tp_ring_room(&pair.producer) == SMALL);
}

/* ---- a peer that lies ---- */

/* 10 bytes of 20 are read; then the producer's word is `head`. */
static bool consumer_believes(uint64_t start, uint64_t head) {
    struct pair pair;
    pair_begin(&pair, start);
    send_bytes(&pair, 0, 20);
    expect_bytes(&pair, 0, 10);
    CHECK(tp_ring_filled(&pair.consumer) == 10);
    atomic_store(&pair.shared.head, head);
    uint64_t filled = tp_ring_filled(&pair.consumer);
    CHECK(filled <= SMALL && (pair.consumer.broken || filled == head - (start + 10)));
    if (pair.consumer.broken) {
        CHECK(filled == 0);
        atomic_store(&pair.shared.head, start + 20); /* too late: what it said is said */
        CHECK(tp_ring_filled(&pair.consumer) == 0 && pair.consumer.broken);
    }
    pair_end(&pair);
    return !pair.consumer.broken;
}

/* 20 bytes are sent, 10 of them read; then the consumer's word is `tail`. */
static bool producer_believes(uint64_t start, uint64_t tail) {
    struct pair pair;
    pair_begin(&pair, start);
    send_bytes(&pair, 0, 20);
    expect_bytes(&pair, 0, 10);
    CHECK(tp_ring_room(&pair.producer) == SMALL - 10);
    atomic_store(&pair.shared.tail, tail);
    uint64_t room = tp_ring_room(&pair.producer);
    CHECK(room <= SMALL);
    if (pair.producer.broken) {
        CHECK(room == 0);
        atomic_store(&pair.shared.tail, start + 10);
        CHECK(tp_ring_room(&pair.producer) == 0 && pair.producer.broken);
    }
    pair_end(&pair);
    return !pair.producer.broken;
}

static void hostile_head(void) {
    EACH_START(i) {
        uint64_t s = STARTS[i];
        CHECK(consumer_believes(s, s + 20)); /* as it was */
        CHECK(consumer_believes(s, s + 21));
        CHECK(consumer_believes(s, s + 10 + SMALL)); /* full, to the byte */
        CHECK(!consumer_believes(s, s + 10 + SMALL + 1));
        CHECK(!consumer_believes(s, s + 19)); /* back by one */
        CHECK(!consumer_believes(s, s + 10)); /* back to where it was read */
        CHECK(!consumer_believes(s, s + 9));
        CHECK(!consumer_believes(s, s - 1));
        CHECK(!consumer_believes(s, s + (1ull << 32)));
        CHECK(!consumer_believes(s, s + (1ull << 63)));
        CHECK(!consumer_believes(s, ~(s + 20)));
    }
}

static void hostile_tail(void) {
    EACH_START(i) {
        uint64_t s = STARTS[i];
        CHECK(producer_believes(s, s + 10));
        CHECK(producer_believes(s, s + 20)); /* it may throw away what it has not read */
        CHECK(!producer_believes(s, s + 21));
        CHECK(!producer_believes(s, s + 9)); /* takes room back that was promised */
        CHECK(!producer_believes(s, s));
        CHECK(!producer_believes(s, s - 1));
        CHECK(!producer_believes(s, s + 20 + SMALL));
        CHECK(!producer_believes(s, s + (1ull << 32)));
        CHECK(!producer_believes(s, s + (1ull << 63)));
        CHECK(!producer_believes(s, ~(s + 10)));
    }
}

/* Whatever the peer writes, however often: what may be written or read stays inside the ring, and broken stays broken. */
static void a_million_lies(void) {
    uint64_t random = 20261122;
    for (unsigned round = 0; round < 20000; round++) {
        struct pair pair;
        pair_begin(&pair, next_random(&random));
        bool producer_was = false, consumer_was = false;
        for (unsigned step = 0; step < 50; step++) {
            uint64_t word = next_random(&random);
            _Atomic uint64_t *target = word & 1 ? &pair.shared.head : &pair.shared.tail;
            uint64_t lie = word & 2 ? next_random(&random) : atomic_load(target) ^ (1ull << (word >> 58));
            atomic_store(target, word & 4 ? lie : atomic_load(target) + (word >> 8) % (SMALL + 2));
            unsigned char bytes[SMALL];
            memset(bytes, 1, sizeof bytes);
            uint64_t room = tp_ring_room(&pair.producer), filled = tp_ring_filled(&pair.consumer);
            CHECK(room <= SMALL && filled <= SMALL);
            CHECK((!producer_was || pair.producer.broken) && (!consumer_was || pair.consumer.broken));
            CHECK((!pair.producer.broken || room == 0) && (!pair.consumer.broken || filled == 0));
            producer_was = pair.producer.broken;
            consumer_was = pair.consumer.broken;
            tp_ring_put(&pair.producer, 0, bytes, room);
            tp_ring_get(&pair.consumer, bytes, filled);
            if (room && word & 8) {
                tp_ring_publish(&pair.producer, room);
            }
            if (filled && word & 16) {
                tp_ring_consume(&pair.consumer, filled);
            }
        }
        pair_end(&pair);
    }
}

/* ---- two threads ---- */

/* TEST_RING_FRAMES: fewer of them under a sanitizer. */
static uint64_t frames_wanted(void) {
    const char *text = getenv("TEST_RING_FRAMES");
    return text ? strtoull(text, NULL, 10) : FRAMES_DEFAULT;
}

struct stage {
    struct tp_ring_shared shared;
    struct tp_bell data, room; /* the consumer sleeps by `data`, the producer by `room` */
    unsigned char bytes[4096];
    uint64_t start, frames, naps;
    bool same_kernel;
};

static struct tp_ring stage_ring(struct stage *stage) {
    struct tp_ring ring = tp_ring_make(&stage->shared, stage->bytes, sizeof stage->bytes);
    ring.at = ring.seen = stage->start;
    return ring;
}

/* A frame: its number, its size in words, the words, a sum over them. */
#define WORDS_MOST 40u
static uint64_t frame_sum(const uint64_t *words, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum = (sum ^ words[i]) * 0x100000001b3ull;
    }
    return sum;
}

static void *produce(void *argument) {
    struct stage *stage = argument;
    struct tp_ring ring = stage_ring(stage);
    struct tp_nap nap = {.same_kernel = stage->same_kernel};
    uint64_t random = 1;
    for (uint64_t n = 0; n < stage->frames; n++) {
        uint64_t frame[WORDS_MOST + 3] = {n};
        uint64_t count = next_random(&random) % 8 ? next_random(&random) % 4 : next_random(&random) % WORDS_MOST;
        frame[1] = count;
        for (uint64_t i = 0; i < count; i++) {
            frame[2 + i] = n * 31 + i;
        }
        frame[2 + count] = frame_sum(frame, 2 + count);
        uint64_t size = (count + 3) * 8;
        while (tp_ring_room(&ring) < size) {
            tp_bell_arm(&stage->room);
            if (tp_ring_room(&ring) < size) {
                tp_bell_wait(&stage->room, &nap, 1000000000);
            } else {
                tp_bell_disarm(&stage->room);
            }
        }
        nap.since = 0;
        tp_ring_put(&ring, 0, frame, size);
        tp_ring_publish(&ring, size);
        tp_bell_ring(&stage->data);
    }
    return NULL;
}

static void await_bytes(struct stage *stage, struct tp_ring *ring, struct tp_nap *nap, uint64_t size) {
    while (tp_ring_filled(ring) < size) {
        tp_bell_arm(&stage->data);
        if (tp_ring_filled(ring) < size) {
            stage->naps++;
            tp_bell_wait(&stage->data, nap, 1000000000);
        } else {
            tp_bell_disarm(&stage->data);
        }
    }
    nap->since = 0;
}

static void *consume(void *argument) {
    struct stage *stage = argument;
    struct tp_ring ring = stage_ring(stage);
    struct tp_nap nap = {.same_kernel = stage->same_kernel};
    for (uint64_t n = 0; n < stage->frames; n++) {
        uint64_t frame[WORDS_MOST + 3];
        await_bytes(stage, &ring, &nap, 16);
        tp_ring_get(&ring, frame, 16);
        CHECK(frame[0] == n && frame[1] <= WORDS_MOST);
        uint64_t size = (frame[1] + 3) * 8;
        await_bytes(stage, &ring, &nap, size);
        tp_ring_get(&ring, frame, size);
        CHECK(frame[2 + frame[1]] == frame_sum(frame, 2 + frame[1]));
        tp_ring_consume(&ring, size);
        tp_bell_ring(&stage->room);
    }
    CHECK(tp_ring_filled(&ring) == 0 && !ring.broken);
    return NULL;
}

static void hammer(bool same_kernel, uint64_t frames) {
    static struct stage stage;
    memset(&stage, 0, sizeof stage);
    stage.start = 0 - 1000000ull; /* wraps through 2^64 on the way */
    stage.same_kernel = same_kernel;
    stage.frames = frames;
    atomic_store(&stage.shared.head, stage.start);
    atomic_store(&stage.shared.tail, stage.start);
    pthread_t producer, consumer;
    CHECK(pthread_create(&consumer, NULL, consume, &stage) == 0 &&
          pthread_create(&producer, NULL, produce, &stage) == 0);
    CHECK(pthread_join(producer, NULL) == 0 && pthread_join(consumer, NULL) == 0);
    printf("%llu frames, %llu naps\n", (unsigned long long)frames, (unsigned long long)stage.naps);
}

static void hammer_with_a_common_kernel(void) { hammer(true, frames_wanted()); }
static void hammer_without_a_common_kernel(void) { hammer(false, frames_wanted() / 10); }

const struct ring_case ring_cases[] = {
    {"every_size_at_every_place", every_size_at_every_place},
    {"wrap_at_the_exact_end", wrap_at_the_exact_end},
    {"full_and_empty", full_and_empty},
    {"nothing_is_seen_before_it_is_published", nothing_is_seen_before_it_is_published},
    {"hostile_head", hostile_head},
    {"hostile_tail", hostile_tail},
    {"a_million_lies", a_million_lies},
    {"hammer_with_a_common_kernel", hammer_with_a_common_kernel},
    {"hammer_without_a_common_kernel", hammer_without_a_common_kernel},
    {NULL, NULL},
};

int main(int count, char **words) {
    const struct ring_case *tables[] = {ring_cases, bell_cases, segment_cases};
    for (size_t t = 0; t < 3; t++) {
        for (const struct ring_case *c = tables[t]; c->name; c++) {
            if (count == 2 && strcmp(words[1], "--list") == 0) {
                puts(c->name);
            } else if (count == 2 && strcmp(words[1], c->name) == 0) {
                c->run();
                return 0;
            }
        }
    }
    return count == 2 && strcmp(words[1], "--list") == 0 ? 0 : 2;
}
