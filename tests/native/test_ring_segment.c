/*
 * Tests of the shared segment: a slot's life with clients that live, die or lie, and who owns which granule.
 *
 * The main thread is the supervisor. Clients are forked children that map the same memory and do what tp_segment.h says a
 * client does, or what it should not. The owners table is shared by threads in the cases that say so.
 */
#include "test_ring.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define SIZE (64ull << 20)

static unsigned char *base;
static uint16_t *owners;
static uint64_t size;
static unsigned char greeting[TP_GREETING_SIZE], welcome[TP_WELCOME_SIZE];
static char boot_id[40];

static void begin(uint64_t bytes) {
    static const unsigned char schema[16] = "segment tests";
    int flags = MAP_SHARED | MAP_ANONYMOUS;
    size = bytes;
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    owners = mmap(NULL, TP_OWNERS_BYTES(size) + 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(base != MAP_FAILED && (void *)owners != MAP_FAILED);
    memset(base, 0xee, tp_arena_at()); /* as somebody left it */
    tp_segment_format(base, size, 4711, schema);
}

static uint64_t owned_by(uint32_t slot) {
    const _Atomic uint16_t *owner = (const void *)owners;
    uint64_t count = 0;
    for (uint64_t i = 0; i < tp_arena_granules(size); i++) {
        count += atomic_load(&owner[i]) == slot + 1;
    }
    return count;
}

static int poll_greeting(uint32_t ms) { return tp_segment_greeting(base, ms, greeting, boot_id); }

/* ---- a client ---- */

static int claim_free_slot(void) {
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        uint32_t expected = TP_SLOT_FREE;
        if (atomic_compare_exchange_strong(&tp_slot_at(base, i)->state, &expected, TP_SLOT_CLAIMED)) {
            return (int)i;
        }
    }
    return -1;
}

static struct tp_slot *greet(uint64_t nonce) {
    int index = claim_free_slot();
    CHECK(index >= 0);
    struct tp_slot *slot = tp_slot_at(base, (uint32_t)index);
    CHECK(tp_life_begin(&slot->client_life));
    tp_boot_id(slot->client_boot_id);
    slot->client_nonce = nonce;
    memset(slot->greeting, 'g', sizeof slot->greeting);
    uint32_t expected = TP_SLOT_CLAIMED;
    CHECK(atomic_compare_exchange_strong(&slot->state, &expected, TP_SLOT_GREETED));
    tp_bell_ring(&((struct tp_segment_header *)(void *)base)->bell);
    return slot;
}

enum stop { AFTER_CLAIM, BEFORE_GREETED, AFTER_GREETED };

/* A child that comes so far and then waits to be killed; returns when it is there. */
static pid_t client(enum stop stop) {
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (stop == AFTER_GREETED) {
            greet(99);
        } else {
            int index = claim_free_slot();
            CHECK(index >= 0);
            CHECK(stop == AFTER_CLAIM || tp_life_begin(&tp_slot_at(base, (uint32_t)index)->client_life));
        }
        CHECK(write(ready[1], "r", 1) == 1);
        for (;;) {
            pause();
        }
    }
    char got;
    close(ready[1]);
    CHECK(read(ready[0], &got, 1) == 1);
    close(ready[0]);
    return child;
}

static void end_client(pid_t child) { CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child); }

static uint32_t state_of(uint32_t slot) { return atomic_load(&tp_slot_at(base, slot)->state); }

static uint32_t accept_client(void) {
    uint32_t first, blocks;
    int slot = poll_greeting(1000);
    CHECK(slot >= 0);
    CHECK(tp_segment_grant(base, size, owners, (uint32_t)slot, &first, &blocks));
    tp_segment_answer(base, (uint32_t)slot, true, welcome);
    return (uint32_t)slot;
}

/* ---- slots ---- */

static void format(void) {
    begin(SIZE);
    struct tp_segment_header *header = (void *)base;
    CHECK(atomic_load(&header->magic) == TP_SEGMENT_MAGIC && header->version == TP_PROTOCOL);
    CHECK(header->size == SIZE && header->epoch == 4711 && atomic_load(&header->state) == TP_SEGMENT_SERVING);
    CHECK(strlen(header->boot_id) == 36);
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        CHECK(state_of(i) == TP_SLOT_FREE);
    }
    tp_segment_close(base);
    CHECK(atomic_load(&header->state) == TP_SEGMENT_CLOSED);
}

static void life_of_a_client(void) {
    begin(SIZE);
    uint64_t beats = atomic_load(&((struct tp_segment_header *)(void *)base)->heartbeat);
    CHECK(poll_greeting(0) == -1 && poll_greeting(30) == -1);
    CHECK(atomic_load(&((struct tp_segment_header *)(void *)base)->heartbeat) > beats + 1);
    pid_t child = client(AFTER_GREETED);
    memset(welcome, 'w', sizeof welcome);
    struct tp_slot *slot = tp_slot_at(base, 0);
    atomic_store(&slot->replies.head, 77); /* left by somebody: the rings must begin at 0 */
    slot->down_block[3] = 1;
    CHECK(accept_client() == 0);
    CHECK(greeting[0] == 'g' && greeting[TP_GREETING_SIZE - 1] == 'g' && slot->greeting[0] == 0 && slot->echo == 99);
    CHECK(strlen(boot_id) == 36 && slot->welcome[TP_WELCOME_SIZE - 1] == 'w' && state_of(0) == TP_SLOT_ACCEPTED);
    CHECK(atomic_load(&slot->replies.head) == 0 && slot->down_block[3] == 0);
    struct tp_run run = tp_run_layout(slot->first, slot->blocks);
    CHECK(owned_by(0) == run.granules && tp_arena_owns(owners, size, 0, run.commands, run.granules * TP_GRANULE));
    int over = 7;
    tp_segment_beat(base, 0, &over);
    CHECK(over == 0 && !tp_life_over(&slot->client_life));
    end_client(child);
    tp_segment_beat(base, 0, &over);
    CHECK(over == 1 && tp_life_over(&slot->client_life));
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_ACCEPTED); /* its session is still there */
    tp_segment_release(base, size, owners, 0);
    CHECK(owned_by(0) == 0 && state_of(0) == TP_SLOT_FREE && slot->echo == 0 && !tp_life_over(&slot->client_life));
}

/* The program that lost its session may still read and write its pinned memory. */
static void granules_outlive_the_session(void) {
    begin(SIZE);
    pid_t child = client(AFTER_GREETED);
    uint32_t slot = accept_client();
    uint64_t owned = owned_by(slot);
    tp_segment_release(base, size, owners, slot);
    CHECK(state_of(slot) == TP_SLOT_ENDED && owned_by(slot) == owned && owned > 0);
    CHECK(poll_greeting(50) == -1 && owned_by(slot) == owned);
    atomic_store(&tp_slot_at(base, slot)->state, TP_SLOT_GREETED); /* what it writes there does not matter any more */
    CHECK(poll_greeting(20) == -1 && owned_by(slot) == owned);
    end_client(child);
    CHECK(poll_greeting(20) == -1 && owned_by(slot) == 0 && state_of(slot) == TP_SLOT_FREE);
}

/* A guest that is started anew leaves life words that no kernel will ever mark. */
static void a_guest_started_anew(void) {
    begin(SIZE);
    struct tp_slot *old = greet(1);
    memset(old->client_boot_id, 'a', 36);
    uint32_t slot = accept_client();
    tp_segment_release(base, size, owners, slot);
    CHECK(poll_greeting(20) == -1 && owned_by(slot) > 0); /* it may only be paused */
    struct tp_slot *next = greet(2);
    memset(next->client_boot_id, 'b', 36);
    CHECK(next != old && accept_client() != slot);
    CHECK(poll_greeting(20) == -1 && owned_by(slot) == 0 && state_of(slot) == TP_SLOT_FREE);
}

static void dead_claimers_are_freed(void) {
    begin(SIZE);
    pid_t child = client(BEFORE_GREETED);
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_CLAIMED);
    end_client(child);
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_FREE);
    /* One that dies in the moment before it holds its life word leaves nothing that the kernel could mark. */
    child = client(AFTER_CLAIM);
    end_client(child);
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_CLAIMED);
    uint64_t begin_ns = tp_now_ns();
    while (state_of(0) == TP_SLOT_CLAIMED && tp_now_ns() - begin_ns < 20000000000u) {
        CHECK(poll_greeting(500) == -1);
    }
    CHECK(state_of(0) == TP_SLOT_FREE && tp_now_ns() - begin_ns > 8000000000u);
}

/* A word that names another thread is never marked: the session would stay for ever. */
static void a_life_word_that_was_overwritten(void) {
    begin(SIZE);
    pid_t child = client(AFTER_GREETED);
    uint32_t slot = accept_client();
    int over = 7;
    tp_segment_beat(base, slot, &over);
    CHECK(over == 0);
    *(volatile uint32_t *)(void *)&tp_slot_at(base, slot)->client_life ^= 1u << 22;
    tp_segment_beat(base, slot, &over);
    CHECK(over == 1);
    tp_segment_release(base, size, owners, slot);
    CHECK(owned_by(slot) == 0 && state_of(slot) == TP_SLOT_FREE);
    end_client(child);
}

static void refused(void) {
    begin(SIZE);
    pid_t child = client(AFTER_GREETED);
    uint32_t first, blocks;
    CHECK(poll_greeting(1000) == 0);
    CHECK(tp_segment_grant(base, size, owners, 0, &first, &blocks));
    tp_segment_answer(base, 0, false, welcome); /* the session did not start */
    CHECK(state_of(0) == TP_SLOT_REFUSED && owned_by(0) > 0);
    tp_segment_release(base, size, owners, 0);
    CHECK(state_of(0) == TP_SLOT_REFUSED && owned_by(0) == 0); /* the client must still read why */
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_REFUSED);
    end_client(child);
    CHECK(poll_greeting(20) == -1 && state_of(0) == TP_SLOT_FREE);
}

/* A slot belongs to its session, whatever the client writes into it: no second session in the same place. */
static void a_held_slot_greets_for_nothing(void) {
    begin(SIZE);
    pid_t child = client(AFTER_GREETED);
    uint32_t slot = accept_client();
    for (uint32_t state = 0; state < 10; state++) {
        atomic_store(&tp_slot_at(base, slot)->state, state);
        CHECK(poll_greeting(5) == -1 && state_of(slot) == state && owned_by(slot) > 0);
    }
    end_client(child);
    tp_segment_release(base, size, owners, slot);
    CHECK(state_of(slot) == TP_SLOT_FREE && owned_by(slot) == 0);
}

/* States that only the supervisor makes, or nobody, in slots that it did not take: it cleans up. */
static void states_that_cannot_be(void) {
    begin(SIZE);
    static const uint32_t states[] = {TP_SLOT_TAKEN, TP_SLOT_ACCEPTED, TP_SLOT_ENDED, 7, 1u << 31, UINT32_MAX};
    for (uint32_t i = 0; i < sizeof states / sizeof *states; i++) {
        atomic_store(&tp_slot_at(base, i)->state, states[i]);
    }
    CHECK(poll_greeting(5) == -1);
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        CHECK(state_of(i) == TP_SLOT_FREE);
    }
}

static void header_is_restored(void) {
    begin(SIZE);
    struct tp_segment_header *header = (void *)base;
    header->epoch = 1;
    header->boot_id[3] ^= 4;
    atomic_store(&header->magic, 0);
    CHECK(poll_greeting(0) == -1);
    CHECK(header->epoch == 4711 && strlen(header->boot_id) == 36 && atomic_load(&header->magic) == TP_SEGMENT_MAGIC);
    tp_segment_close(base);
    atomic_store(&header->state, TP_SEGMENT_SERVING);
    CHECK(poll_greeting(0) == -1 && atomic_load(&header->state) == TP_SEGMENT_CLOSED);
}

static void clients_until_it_is_full(void) {
    begin(TP_SEGMENT_MIN + TP_GRANULE / 2); /* not a whole number of granules */
    uint32_t held = 0, first, blocks;
    int slot;
    uint64_t granules = tp_arena_granules(size), owned = 0;
    CHECK(granules * TP_GRANULE + tp_arena_at() <= size);
    for (;;) {
        greet(held + 1);
        slot = poll_greeting(1000);
        CHECK(slot == (int)held);
        if (!tp_segment_grant(base, size, owners, (uint32_t)slot, &first, &blocks)) {
            break;
        }
        CHECK(blocks == 1);
        struct tp_run run = tp_run_layout(first, blocks);
        CHECK(run.commands + run.granules * TP_GRANULE <= size && owned_by((uint32_t)slot) == run.granules);
        tp_segment_answer(base, (uint32_t)slot, true, welcome);
        owned += run.granules;
        held++;
    }
    CHECK(held >= 2 && owned <= granules && granules - owned < tp_run_layout(0, 1).granules);
    tp_segment_answer(base, (uint32_t)slot, false, welcome);
    atomic_store(&tp_slot_at(base, (uint32_t)slot)->state, TP_SLOT_FREE);
    memset(&tp_slot_at(base, 1)->client_life, 0,
           sizeof(pthread_mutex_t)); /* as if nobody had held it: not waited for */
    tp_segment_release(base, size, owners, 1);
    greet(7);
    CHECK(poll_greeting(1000) == 1 && tp_segment_grant(base, size, owners, 1, &first, &blocks));
}

static void blocks_grow_with_the_arena(void) {
    begin(2ull << 30);
    uint32_t first, blocks;
    greet(1);
    CHECK(poll_greeting(1000) == 0 && tp_segment_grant(base, size, owners, 0, &first, &blocks));
    CHECK(blocks == TP_BLOCKS_MAX && first == 0);
}

/* The supervisor's thread sleeps between greetings, and a client of the same kernel wakes it. */
static void waiting_costs_little(void) {
    begin(SIZE);
    struct timespec cpu[2];
    poll_greeting(200);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu[0]);
    CHECK(poll_greeting(1000) == -1);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu[1]);
    double used = (double)(cpu[1].tv_sec - cpu[0].tv_sec) + (double)(cpu[1].tv_nsec - cpu[0].tv_nsec) / 1e9;
    printf("waiting for greetings: %.2f %% of a core\n", used * 100);
    CHECK(used < 0.05);
}

/* ---- the arena ---- */

static void arena_edges(void) {
    begin(SIZE + 12345);
    uint64_t at = tp_arena_at(), all = tp_arena_granules(size) * TP_GRANULE;
    CHECK(at % TP_GRANULE == 0 && at + all <= size && size - at - all < TP_GRANULE);
    CHECK(tp_arena_granules(0) == 0 && tp_arena_granules(at) == 0 && tp_arena_granules(at + TP_GRANULE - 1) == 0);
    CHECK(tp_arena_granules(at + TP_GRANULE) == 1);
    CHECK(tp_arena_take(owners, size, 5, 0) == 0 && tp_arena_take(owners, size, TP_SLOTS, 1) == 0);
    CHECK(tp_arena_take(owners, size, 5, all + 1) == 0 && tp_arena_take(owners, size, 5, UINT64_MAX) == 0);
    CHECK(owned_by(5) == 0);
    uint64_t run = tp_arena_take(owners, size, 5, TP_GRANULE + 1);
    CHECK(run == at && owned_by(5) == 2);
    uint64_t next = tp_arena_take(owners, size, 6, 1);
    CHECK(next == at + 2 * TP_GRANULE);
    CHECK(tp_arena_owns(owners, size, 5, run, 1) && tp_arena_owns(owners, size, 5, run, 2 * TP_GRANULE));
    CHECK(tp_arena_owns(owners, size, 5, run + 2 * TP_GRANULE - 1, 1));
    CHECK(!tp_arena_owns(owners, size, 5, run, 0) && !tp_arena_owns(owners, size, 5, run, 2 * TP_GRANULE + 1));
    CHECK(!tp_arena_owns(owners, size, 5, run - 1, 1) && !tp_arena_owns(owners, size, 5, run - 1, 2));
    CHECK(!tp_arena_owns(owners, size, 5, 0, 1) && !tp_arena_owns(owners, size, 5, run + 2 * TP_GRANULE, 1));
    CHECK(!tp_arena_owns(owners, size, 6, run, 1) && !tp_arena_owns(owners, size, 4, run, 1));
    CHECK(!tp_arena_owns(owners, size, 5, run + 1, UINT64_MAX) && !tp_arena_owns(owners, size, 5, UINT64_MAX, 1));
    CHECK(!tp_arena_owns(owners, size, 5, UINT64_MAX - TP_GRANULE, 2 * TP_GRANULE));
    CHECK(!tp_arena_owns(owners, size, 5, size, 1) && !tp_arena_owns(owners, size, 5, at + all, 1));
    /* What nobody owns is not owned by a slot whose number wraps to 0. */
    uint64_t unowned = at + all - TP_GRANULE;
    CHECK(!tp_arena_owns(owners, size, UINT32_MAX, unowned, 1) && !tp_arena_owns(owners, size, 65535, unowned, 1));
    tp_arena_give(owners, size, 6, run, TP_GRANULE); /* another's */
    tp_arena_give(owners, size, 5, run, 3 * TP_GRANULE);
    CHECK(owned_by(5) == 2 && owned_by(6) == 1);
    tp_arena_give(owners, size, 5, run, 1);
    CHECK(owned_by(5) == 1 && tp_arena_take(owners, size, 7, 1) == at);
    tp_arena_give(owners, size, 5, at + TP_GRANULE, TP_GRANULE);
    tp_arena_give(owners, size, 6, next, TP_GRANULE);
    tp_arena_give(owners, size, 7, at, 1);
    CHECK(tp_arena_take(owners, size, 63, all) == at && tp_arena_take(owners, size, 1, 1) == 0);
    CHECK(owners[tp_arena_granules(size)] == 0); /* nothing behind the table */
}

#define THREADS 8u
static _Atomic uint32_t used[SIZE / TP_GRANULE]; /* who believes to have the granule: must be one at a time */

static void give_run(uint32_t slot, uint64_t run[2]) {
    for (uint64_t g = 0; g < run[1]; g++) {
        CHECK(atomic_exchange(&used[(run[0] - tp_arena_at()) / TP_GRANULE + g], 0) == slot + 1);
    }
    tp_arena_give(owners, size, slot, run[0], run[1] * TP_GRANULE);
    run[0] = 0;
}

static void *take_and_give(void *argument) {
    uint32_t slot = (uint32_t)(uintptr_t)argument;
    uint64_t random = slot, runs[8][2] = {{0}}, taken = 0;
    for (unsigned step = 0; step < 40000; step++) {
        uint64_t word = next_random(&random), *run = runs[word % 8];
        if (run[0]) {
            give_run(slot, run);
        } else {
            run[1] = 1 + (word >> 8) % 40;
            run[0] = tp_arena_take(owners, size, slot, run[1] * TP_GRANULE - (word >> 16) % 100);
            for (uint64_t g = 0; run[0] && g < run[1]; g++) {
                CHECK(atomic_exchange(&used[(run[0] - tp_arena_at()) / TP_GRANULE + g], slot + 1) == 0);
            }
            taken += run[0] != 0;
            CHECK(!run[0] || tp_arena_owns(owners, size, slot, run[0], run[1] * TP_GRANULE));
        }
    }
    CHECK(taken > 1000);
    for (unsigned i = 0; i < 8; i++) {
        if (runs[i][0]) {
            give_run(slot, runs[i]);
        }
    }
    return NULL;
}

static void arena_under_threads(void) {
    begin(SIZE);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, take_and_give, (void *)i) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(owned_by(i) == 0);
    }
    CHECK(tp_arena_take(owners, size, 0, tp_arena_granules(size) * TP_GRANULE) == tp_arena_at());
}

const struct ring_case segment_cases[] = {
    {"format", format},
    {"life_of_a_client", life_of_a_client},
    {"granules_outlive_the_session", granules_outlive_the_session},
    {"a_guest_started_anew", a_guest_started_anew},
    {"dead_claimers_are_freed", dead_claimers_are_freed},
    {"a_life_word_that_was_overwritten", a_life_word_that_was_overwritten},
    {"refused", refused},
    {"a_held_slot_greets_for_nothing", a_held_slot_greets_for_nothing},
    {"states_that_cannot_be", states_that_cannot_be},
    {"header_is_restored", header_is_restored},
    {"clients_until_it_is_full", clients_until_it_is_full},
    {"blocks_grow_with_the_arena", blocks_grow_with_the_arena},
    {"waiting_costs_little", waiting_costs_little},
    {"arena_edges", arena_edges},
    {"arena_under_threads", arena_under_threads},
    {NULL, NULL},
};
