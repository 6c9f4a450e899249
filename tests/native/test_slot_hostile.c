/*
 * The session's side of a slot: clients that break a rule, write anywhere, stop reading or die.
 *
 * The session must end with the code for its client's fault (3), for a client that is gone (0) or that sent wrong values (4),
 * never by a signal or a sanitizer's complaint.
 */
#include "test_slot.h"

#include <signal.h>

#define PROTOCOL 3
#define KILLED (128 + SIGKILL)

/* The session must end of itself, while its client still lives. */
static void look(void) {
    tp_bell_wake(&it.slot->session_bell);
    for (int ms = 0; ms < 5000 && !tp_life_over(&it.slot->session_life); ms++) {
        usleep(1000);
    }
    CHECK(tp_life_over(&it.slot->session_life));
}

/* The index becomes that of a ring whose other side stands at `at`, moved on by `by`. */
static void move(_Atomic uint64_t *index, const struct tp_ring *ring, uint64_t by) {
    check_call(1, 100);
    atomic_store(index, ring->at + by);
    look();
}

static void commands_beyond(void) { move(&it.slot->commands.head, &it.commands, TP_COMMAND_RING + 1); }
static void commands_back(void) { move(&it.slot->commands.head, &it.commands, 0 - 8ull); }
static void commands_far(void) { move(&it.slot->commands.head, &it.commands, 1ull << 63); }
static void records_beyond(void) { move(&it.slot->chunks_up.head, &it.up, TP_CHUNK_RING + 1); }
static void replies_beyond(void) {
    check_call(1, 100);
    atomic_store(&it.slot->replies.tail, it.replies.at + 1);
    append(OP_TOTALS, TP_FRAME_CALL, "", 0);
    look();
}
static void downloads_beyond(void) {
    atomic_store(&it.slot->chunks_down.tail, 32);
    append_words(OP_DOWNLOAD, 0, 1, 1u << 20, 1);
    look();
}

static void put_header(uint32_t size) {
    struct tp_frame frame = {.size = size, .op = OP_COUNT, .thread = 1};
    tp_ring_put(&it.commands, 0, &frame, sizeof frame);
    tp_ring_publish(&it.commands, sizeof frame);
}
static void header(uint32_t size) {
    put_header(size);
    look();
}
static void frame_empty(void) { header(0); }
static void frame_short(void) { header(8); }
static void frame_crooked(void) { header(20); }
static void frame_long(void) { header(TP_FRAME_MAX + 8); }

static void record(uint64_t transfer, uint32_t size, uint32_t handed, uint32_t block) {
    check_call(1, 100);
    send_record(transfer, 0, size, handed, block);
    look();
}
static void record_block(void) { record(1, 8, 0, it.blocks); }
static void record_block_far(void) { record(1, 8, 0, UINT32_MAX); }
static void record_empty(void) { record(1, 0, 0, 0); }
static void record_long(void) { record(1, TP_CHUNK_MAX + 1, 0, 0); }
static void record_of_nothing(void) { record(0, 8, 0, 0); }
static void record_handed(void) { record(1, 8, 1, 0); }
static void record_twice(void) {
    send_record(1, 0, 8, 0, 0);
    send_record(1, 8, 8, 0, 0);
    look();
}

/* Gives blocks back without reading their records, until the ring of records is full. */
static void unread_downloads(void) {
    append_words(OP_DOWNLOAD, 0, 1, 1ull << 30, UINT64_MAX);
    for (int i = 0; i < 20000 && !tp_life_over(&it.slot->session_life); i++) {
        for (uint32_t block = 0; block < it.blocks; block++) {
            atomic_store(&it.slot->down_block[block], 0);
        }
        ring();
        usleep(100);
    }
    CHECK(tp_life_over(&it.slot->session_life));
}

static void never_reads(void) {
    static unsigned char body[900000];
    memcpy(body, &(uint64_t){sizeof body - 8}, 8);
    for (int i = 0; i < 100 && !tp_life_over(&it.slot->session_life); i++) {
        while (tp_ring_room(&it.commands) < sizeof body + 64 && !tp_life_over(&it.slot->session_life)) {
            usleep(100);
        }
        if (!tp_life_over(&it.slot->session_life)) {
            append(OP_ECHO, TP_FRAME_CALL, body, sizeof body);
        }
    }
    for (int ms = 0; ms < 2000 && !tp_life_over(&it.slot->session_life); ms++) {
        usleep(1000);
    }
    CHECK(tp_life_over(&it.slot->session_life));
}

/* ---- death ---- */

/* What was committed before is still executed: the session counts one wrong value, the very last frame's. */
static void death_behind_frames(void) {
    kill(session_pid, SIGSTOP);
    for (uint32_t value = 0; value < 1000; value++) {
        append(OP_COUNT, 0, &value, sizeof value);
    }
    append(OP_COUNT, 0, &(uint32_t){5}, sizeof(uint32_t));
    kill(session_pid, SIGCONT);
    raise(SIGKILL);
}

static void death_in_idleness(void) {
    check_call(1, 100);
    usleep(300000);
    raise(SIGKILL);
}

static void death_in_a_frame(void) {
    put_header(4096);
    usleep(50000);
    raise(SIGKILL);
}

static void death_in_an_upload(void) {
    append_words(OP_UPLOAD, 0, 1, 8u << 20, 1);
    send_chunk(1, 0, TP_CHUNK_MAX, 1);
    usleep(50000);
    raise(SIGKILL);
}

static void death_in_a_download(void) {
    append_words(OP_DOWNLOAD, 0, 1, 1u << 30, UINT64_MAX);
    usleep(50000);
    raise(SIGKILL);
}

/* ---- anything ---- */

/* Bits flip in what both sides write while the session serves. It ends itself or serves on until the end. Frames themselves
 * stay whole: what the test's own operations do with bad ones is not the link's. */
static void flips(uint64_t seed, size_t from, size_t to) {
    uint64_t state = seed;
    append_words(OP_REFUSE_UPLOAD, 0, 1, UINT64_MAX, 0);
    for (uint32_t round = 0; round < 20000 && !tp_life_over(&it.slot->session_life); round++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        if (state >> 60 == 0) {
            it.base[from + (state >> 33) % (to - from)] ^= (unsigned char)(1u << (state >> 30 & 7));
        }
        if (tp_ring_room(&it.commands) >= 64) {
            append(OP_COUNT, 0, &round, sizeof round);
        }
        uint32_t block = round % it.blocks;
        if (tp_ring_room(&it.up) >= sizeof(struct tp_chunk_record) && atomic_load(&it.slot->up_block[block]) == 0) {
            atomic_store(&it.slot->up_block[block], 1);
            send_record(1, 0, 8, 0, block);
        }
        ring();
    }
    raise(SIGKILL);
}

static size_t offset_of(const void *what) { return (size_t)((const unsigned char *)what - it.base); }
static void flips_in_the_slot(void) { /* behind the mutexes, which tell the test how it went */
    flips(1, offset_of(it.slot->greeting), offset_of(it.slot + 1));
}
static void flips_in_the_rings(void) { flips(2, it.run.replies, it.run.up); }

#define BREAKS(name) {#name, name, PROTOCOL, 0, 32, false}
const struct slot_case hostile_cases[] = {
    BREAKS(commands_beyond),
    BREAKS(commands_back),
    BREAKS(commands_far),
    BREAKS(records_beyond),
    BREAKS(replies_beyond),
    BREAKS(downloads_beyond),
    BREAKS(frame_empty),
    BREAKS(frame_short),
    BREAKS(frame_crooked),
    BREAKS(frame_long),
    BREAKS(record_block),
    BREAKS(record_block_far),
    BREAKS(record_empty),
    BREAKS(record_long),
    BREAKS(record_of_nothing),
    BREAKS(record_handed),
    BREAKS(record_twice),
    BREAKS(unread_downloads),
    {"never_reads", never_reads, 0, 0, 32, false},
    {"death_behind_frames", death_behind_frames, 4, KILLED, 32, false},
    {"death_in_idleness", death_in_idleness, 0, KILLED, 32, false},
    {"death_in_idleness_of_another_kernel", death_in_idleness, 0, KILLED, 32, true},
    {"death_in_a_frame", death_in_a_frame, 0, KILLED, 32, false},
    {"death_in_an_upload", death_in_an_upload, 0, KILLED, 32, false},
    {"death_in_a_download", death_in_a_download, 0, KILLED, 32, false},
    {"flips_in_the_slot", flips_in_the_slot, ANY_CODE, KILLED, 32, false},
    {"flips_in_the_rings", flips_in_the_rings, ANY_CODE, KILLED, 32, false},
    {NULL, NULL, 0, 0, 0, false},
};
