/*
 * Flips bits in a shared segment while others work in it: what a hostile process of the guest could write, at random.
 *
 * Maps the file as a client does and belongs to nobody. It attacks slots in which a client is being served: their page, the
 * rings and staging blocks of the run that the slot names (bounded, since an earlier flip may have changed it), or the header.
 *
 *     ring_adversary FILE SEED SECONDS page|rings|blocks|header|all        prints how many bits it flipped
 */
#include "test_ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

static unsigned char *base;
static uint64_t size, random_state, flips;

static void flip(uint64_t at, uint64_t span) {
    if (at < size && span <= size - at) {
        uint64_t word = next_random(&random_state);
        /* Not atomic on purpose: neither is a hostile store. */
        ((volatile unsigned char *)base)[at + (word >> 3) % span] ^= (unsigned char)(1u << (word & 7));
        flips++;
    }
}

/* Half of the blows at places that everybody looks at all the time. */
static void flip_page(uint32_t index) {
    uint64_t at = 4096 + index * (uint64_t)TP_SLOT_SIZE;
    static const struct {
        size_t at, span;
    } hot[] = {
        {offsetof(struct tp_slot, commands), sizeof(struct tp_ring_shared)},
        {offsetof(struct tp_slot, replies), sizeof(struct tp_ring_shared)},
        {offsetof(struct tp_slot, chunks_up), sizeof(struct tp_ring_shared)},
        {offsetof(struct tp_slot, chunks_down), sizeof(struct tp_ring_shared)},
        {offsetof(struct tp_slot, up_block), sizeof(uint32_t) * TP_BLOCKS_MAX},
        {offsetof(struct tp_slot, down_block), sizeof(uint32_t) * TP_BLOCKS_MAX},
        {offsetof(struct tp_slot, client_bell), sizeof(uint32_t)},
        {offsetof(struct tp_slot, session_bell), sizeof(uint32_t)},
        {offsetof(struct tp_slot, client_life), 2 * sizeof(pthread_mutex_t)},
        {offsetof(struct tp_slot, state), 64},
    };
    uint64_t word = next_random(&random_state);
    if (word & 1) {
        flip(at, TP_SLOT_SIZE);
    } else {
        size_t i = (word >> 1) % (sizeof hot / sizeof *hot);
        flip(at + hot[i].at, hot[i].span);
    }
}

static void flip_run(const struct tp_slot *slot, bool rings) {
    uint32_t first = atomic_load(&slot->first), blocks = atomic_load(&slot->blocks);
    if (blocks == 0 || blocks > TP_BLOCKS_MAX || first >= tp_arena_granules(size)) {
        return;
    }
    struct tp_run run = tp_run_layout(first, blocks);
    uint64_t word = next_random(&random_state);
    if (!rings) {
        flip(run.up, 2 * blocks * (uint64_t)TP_CHUNK_MAX);
        return;
    }
    /* Where something was just written or is about to be: a ring is long, and what was read is nobody's any more. */
    const struct {
        const struct tp_ring_shared *shared;
        uint64_t at, size;
    } all[] = {{&slot->commands, run.commands, TP_COMMAND_RING},
               {&slot->replies, run.replies, TP_REPLY_RING},
               {&slot->chunks_up, run.chunks_up, TP_CHUNK_RING},
               {&slot->chunks_down, run.chunks_down, TP_CHUNK_RING}};
    size_t i = word % 4;
    uint64_t near = atomic_load(word & 4 ? &all[i].shared->head : &all[i].shared->tail) + (word >> 8) % 512 - 256;
    flip(all[i].at + near % all[i].size, 1);
}

static void strike(const char *what) {
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        const struct tp_slot *slot = tp_slot_at(base, i);
        if (atomic_load(&slot->state) != TP_SLOT_ACCEPTED) {
            continue;
        }
        uint64_t kind = strcmp(what, "all") == 0 ? next_random(&random_state) % 3 : 3;
        if (kind == 0 || strcmp(what, "page") == 0) {
            flip_page(i);
        } else if (kind == 1 || strcmp(what, "rings") == 0) {
            flip_run(slot, true);
        } else if (kind == 2 || strcmp(what, "blocks") == 0) {
            flip_run(slot, false);
        }
    }
    if (strcmp(what, "header") == 0 || (strcmp(what, "all") == 0 && next_random(&random_state) % 64 == 0)) {
        flip(0, next_random(&random_state) & 1 ? 4096 : sizeof(struct tp_segment_header));
    }
}

int main(int count, char **words) {
    CHECK(count == 5);
    int fd = open(words[1], O_RDWR | O_CLOEXEC);
    struct stat file;
    CHECK(fd >= 0 && fstat(fd, &file) == 0);
    size = (uint64_t)file.st_size;
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(base != MAP_FAILED && size >= TP_SEGMENT_MIN);
    random_state = strtoull(words[2], NULL, 10);
    uint64_t end = tp_now_ns() + strtoull(words[3], NULL, 10) * 1000000000u;
    while (tp_now_ns() < end) {
        uint64_t word = next_random(&random_state);
        for (uint64_t i = 0; i <= word % 4; i++) {
            strike(words[4]);
        }
        /* From a storm to pauses in which a client gets far. */
        nanosleep(&(struct timespec){.tv_nsec = (long)(1000u << (word >> 32) % 15)}, NULL);
    }
    printf("%llu\n", (unsigned long long)flips);
    return 0;
}
