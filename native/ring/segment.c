/*
 * The shared segment: making it, greeting in it, and who owns which part of its arena.
 *
 * Entered by the supervisor (one thread looks for greetings; grants and releases come from its loop) and by sessions
 * (tp_arena_*, each for its own slot). What a guest can write is loaded once and bounded; the owners table is written by the
 * worker's processes only, with compare-and-swap, so that one that dies in the middle leaves only granules that carry its own
 * slot's number, which the supervisor then frees.
 *
 * What the supervisor knows of a slot (`watches`) is in its own memory: a client that writes GREETED into the slot of its
 * running session must not get a second one there.
 */
#include "tp_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define LIFE_TID 0x3fffffffu /* FUTEX_TID_MASK */
#define CLAIM_PATIENCE_NS 10000000000u
#define BEAT_PATIENCE_NS 600000000000u /* a paused virtual machine is to be survived */

enum phase {
    PHASE_OPEN,  /* the clients' own: free, or on the way to or from a greeting */
    PHASE_HELD,  /* from TAKEN until the session's end: what the slot's state says does not matter */
    PHASE_ENDED, /* the session has ended, the client may still use its granules */
};

struct watch {
    _Atomic uint32_t phase; /* enum phase; the last store of whoever changes the others */
    uint32_t state;         /* OPEN: as it was last seen, since `since` */
    uint64_t beat;          /* ENDED: the same */
    uint64_t since;
    bool same_kernel;
    uint32_t life_tid; /* in the client's life word when it was taken */
    char boot_id[40];
    /* ENDED: to be freed in the end */
    uint64_t size;
    void *owners;
};
static struct watch watches[TP_SLOTS];
static struct tp_segment_header published; /* what the header says up to its heart: the guest can overwrite that */
static struct tp_lock guest_lock;          /* over guest_boot_id: a release looks at it, too */
static char guest_boot_id[40];             /* of the machine that greeted last, if it is not this one */

bool tp_life_begin(pthread_mutex_t *life) {
    pthread_mutexattr_t how;
    bool good = pthread_mutexattr_init(&how) == 0 && pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED) == 0 &&
                pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST) == 0 && pthread_mutex_init(life, &how) == 0 &&
                pthread_mutex_trylock(life) == 0;
    pthread_mutexattr_destroy(&how);
    return good;
}

void tp_boot_id(char out[40]) {
    memset(out, 0, 40);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, out, 36);
        if (n != 36) {
            memset(out, 0, 40);
        }
        close(fd);
    }
}

/* ---- the supervisor ---- */

static void set_phase(uint32_t slot, enum phase phase) {
    atomic_store_explicit(&watches[slot].phase, phase, memory_order_release);
}

static void clear_slot(void *base, uint32_t index) {
    struct tp_slot *slot = tp_slot_at(base, index);
    memset((unsigned char *)slot + sizeof slot->state, 0, sizeof *slot - sizeof slot->state);
    watches[index].state = TP_SLOT_FREE;
    atomic_store_explicit(&slot->state, TP_SLOT_FREE, memory_order_seq_cst);
    set_phase(index,
              PHASE_OPEN); /* behind it: an open slot is looked at, and a state that is not the clients' cleared */
}

void tp_segment_format(void *base, uint64_t size, uint64_t epoch, const unsigned char schema[16]) {
    struct tp_segment_header *header = base;
    atomic_store(&header->magic, 0);
    memset(watches, 0, sizeof watches);
    memset(guest_boot_id, 0, sizeof guest_boot_id);
    memset(base, 0, tp_arena_at());
    header->version = TP_PROTOCOL;
    header->release = TP_RELEASE;
    header->size = size;
    header->epoch = epoch;
    memcpy(header->schema, schema, sizeof header->schema);
    tp_boot_id(header->boot_id);
    atomic_store(&header->state, TP_SEGMENT_SERVING);
    memcpy(&published, header, offsetof(struct tp_segment_header, heartbeat));
    atomic_store(&published.magic, TP_SEGMENT_MAGIC);
    atomic_store(&header->heartbeat, 1);
    atomic_store(&header->magic, TP_SEGMENT_MAGIC);
}

void tp_segment_close(void *base) {
    struct tp_segment_header *header = base;
    atomic_store(&published.state, TP_SEGMENT_CLOSED);
    atomic_store(&header->state, TP_SEGMENT_CLOSED);
}

/* True when the kernel has marked the life word, or nobody ever held it, or somebody has changed whose it is: then no kernel
 * will mark it any more, and who could write there could end the client as well. */
static bool life_over(const struct watch *watch, const struct tp_slot *slot) {
    uint32_t word = *(const volatile uint32_t *)(const volatile void *)&slot->client_life;
    return tp_life_over(&slot->client_life) || (word & LIFE_TID) != watch->life_tid;
}

/* ENDED. A life word that nobody ever held says nothing: whoever has not locked it is not waited for. */
static bool client_gone(struct watch *watch, const struct tp_slot *slot, uint64_t now) {
    if (life_over(watch, slot) || watch->life_tid == 0) {
        return true;
    }
    uint64_t beat = atomic_load_explicit(&slot->beat, memory_order_relaxed);
    if (beat != watch->beat) {
        watch->beat = beat;
        watch->since = now;
    }
    if (watch->same_kernel) {
        return false;
    }
    tp_lock_take(&guest_lock);
    bool rebooted = guest_boot_id[0] != 0 && memcmp(guest_boot_id, watch->boot_id, sizeof watch->boot_id) != 0;
    tp_lock_drop(&guest_lock);
    return rebooted || now - watch->since > BEAT_PATIENCE_NS;
}

/* OPEN, and neither free nor greeting: to be cleared, because nobody will go on with it. */
static bool abandoned(struct watch *watch, const struct tp_slot *slot, uint32_t state, uint64_t now) {
    if ((state != TP_SLOT_CLAIMED && state != TP_SLOT_REFUSED) || tp_life_over(&slot->client_life)) {
        return true;
    }
    if (state != watch->state) {
        watch->state = state;
        watch->since = now;
    }
    return now - watch->since > CLAIM_PATIENCE_NS;
}

static bool take_greeting(uint32_t index, struct tp_slot *slot, unsigned char greeting[TP_GREETING_SIZE],
                          char boot_id[40]) {
    uint32_t expected = TP_SLOT_GREETED;
    if (!atomic_compare_exchange_strong(&slot->state, &expected, TP_SLOT_TAKEN)) {
        return false;
    }
    slot->echo = slot->client_nonce;
    memcpy(greeting, slot->greeting, TP_GREETING_SIZE);
    memset(slot->greeting, 0, TP_GREETING_SIZE); /* it may hold a secret, and everybody in the guest can read here */
    memcpy(boot_id, slot->client_boot_id, 40);
    boot_id[39] = 0;
    char own[40];
    tp_boot_id(own);
    struct watch *watch = &watches[index];
    watch->same_kernel = own[0] != 0 && strcmp(own, boot_id) == 0;
    watch->life_tid = *(const volatile uint32_t *)(const volatile void *)&slot->client_life & LIFE_TID;
    memcpy(watch->boot_id, boot_id, sizeof watch->boot_id);
    if (!watch->same_kernel && boot_id[0] != 0) {
        tp_lock_take(&guest_lock);
        memcpy(guest_boot_id, boot_id, sizeof guest_boot_id);
        tp_lock_drop(&guest_lock);
    }
    set_phase(index, PHASE_HELD);
    return true;
}

static void free_granules(uint64_t size, void *owners, uint32_t slot) {
    _Atomic uint16_t *owner = owners;
    for (uint64_t i = 0; i < tp_arena_granules(size); i++) {
        uint16_t mine = (uint16_t)(slot + 1);
        atomic_compare_exchange_strong(&owner[i], &mine, 0);
    }
}

static int look_for_greeting(void *base, unsigned char greeting[TP_GREETING_SIZE], char boot_id[40]) {
    uint64_t now = tp_now_ns();
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        struct tp_slot *slot = tp_slot_at(base, i);
        struct watch *watch = &watches[i];
        uint32_t phase = atomic_load_explicit(&watch->phase, memory_order_acquire);
        if (phase == PHASE_ENDED && client_gone(watch, slot, now)) {
            free_granules(watch->size, watch->owners, i);
            clear_slot(base, i);
        }
        if (phase != PHASE_OPEN) {
            continue;
        }
        uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (state == TP_SLOT_GREETED) {
            if (take_greeting(i, slot, greeting, boot_id)) {
                return (int)i;
            }
        } else if (state == TP_SLOT_FREE) {
            watch->state = state;
        } else if (abandoned(watch, slot, state, now)) {
            clear_slot(base, i);
        }
    }
    return -1;
}

/* Clients that come later read the header; nobody on this side does. */
static void restore_header(struct tp_segment_header *header) {
    if (TP_UNLIKELY(memcmp(header, &published, offsetof(struct tp_segment_header, heartbeat)) != 0)) {
        tp_log(TP_WARN, "the header of the shared segment was overwritten by a process that maps it; it is restored");
        memcpy(header, &published, offsetof(struct tp_segment_header, heartbeat));
    }
}

int tp_segment_greeting(void *base, uint32_t timeout_ms, unsigned char greeting[TP_GREETING_SIZE], char boot_id[40]) {
    struct tp_segment_header *header = base;
    uint64_t end = tp_now_ns() + timeout_ms * 1000000ull;
    /* Guests cannot wake us (processes of this machine can): the idleness is kept from call to call. */
    static struct tp_nap nap = {.same_kernel = false};
    for (;;) {
        atomic_fetch_add(&header->heartbeat, 1);
        restore_header(header);
        tp_bell_arm(&header->bell);
        int found = look_for_greeting(base, greeting, boot_id);
        uint64_t now = tp_now_ns();
        if (found >= 0 || now >= end) {
            tp_bell_disarm(&header->bell);
            nap.since = found >= 0 ? 0 : nap.since;
            return found;
        }
        tp_bell_wait(&header->bell, &nap, end - now);
    }
}

bool tp_segment_grant(void *base, uint64_t size, void *owners, uint32_t slot, uint32_t *first, uint32_t *blocks) {
    uint64_t want = tp_arena_left(owners, size) * TP_GRANULE / TP_CHUNK_MAX / 16;
    want = want < 1 ? 1 : want > TP_BLOCKS_MAX ? TP_BLOCKS_MAX : want;
    for (; want >= 1; want /= 2) {
        struct tp_run run = tp_run_layout(0, (uint32_t)want);
        uint64_t offset = tp_arena_take(owners, size, slot, run.granules * TP_GRANULE);
        if (offset) {
            struct tp_slot *s = tp_slot_at(base, slot);
            *first = (uint32_t)((offset - tp_arena_at()) / TP_GRANULE);
            *blocks = (uint32_t)want;
            /* Both sides begin at 0, whatever somebody wrote here before. The client's bell is left: it may sleep by it. */
            memset(&s->session_life, 0, sizeof s->session_life);
            memset(&s->session_bell, 0, sizeof *s - offsetof(struct tp_slot, session_bell));
            atomic_store(&s->first, *first);
            atomic_store(&s->blocks, *blocks);
            atomic_store(&s->stopped, 0);
            return true;
        }
    }
    return false;
}

void tp_segment_answer(void *base, uint32_t slot, bool accepted, const unsigned char welcome[TP_WELCOME_SIZE]) {
    struct tp_slot *s = tp_slot_at(base, slot);
    memcpy(s->welcome, welcome, TP_WELCOME_SIZE);
    if (!accepted) {
        watches[slot].state = TP_SLOT_REFUSED;
        watches[slot].since = tp_now_ns();
    }
    atomic_store_explicit(&s->state, accepted ? TP_SLOT_ACCEPTED : TP_SLOT_REFUSED, memory_order_seq_cst);
    if (!accepted) {
        set_phase(slot, PHASE_OPEN);
    }
    tp_bell_wake(&s->client_bell);
}

void tp_segment_release(void *base, uint64_t size, void *owners, uint32_t slot) {
    struct watch *watch = &watches[slot];
    if (atomic_load_explicit(&watch->phase, memory_order_acquire) != PHASE_HELD) {
        free_granules(size, owners, slot); /* refused: the slot is the client's, which reads why */
        return;
    }
    struct tp_slot *s = tp_slot_at(base, slot);
    watch->size = size;
    watch->owners = owners;
    watch->beat = atomic_load(&s->beat);
    watch->since = tp_now_ns();
    atomic_store(&s->state, TP_SLOT_ENDED);
    if (client_gone(watch, s, watch->since)) {
        free_granules(size, owners, slot);
        clear_slot(base, slot);
        return;
    }
    set_phase(slot, PHASE_ENDED);
    tp_bell_wake(&s->client_bell);
}

uint64_t tp_segment_beat(void *base, uint32_t slot, int *over) {
    struct tp_slot *s = tp_slot_at(base, slot);
    *over = life_over(&watches[slot], s);
    return atomic_load(&s->beat);
}

void tp_segment_stopped(void *base, uint32_t slot, bool stopped) {
    atomic_store(&tp_slot_at(base, slot)->stopped, stopped);
}

/* ---- the arena ---- */

/* How many granules from `at` on were free: `count`, and they are `mine` now; or fewer, and nothing has changed. */
static uint64_t claim(_Atomic uint16_t *owner, uint64_t at, uint64_t count, uint16_t mine) {
    for (uint64_t i = 0; i < count; i++) {
        uint16_t nobody = 0;
        if (!atomic_compare_exchange_strong(&owner[at + i], &nobody, mine)) {
            for (uint64_t j = i; j-- > 0;) {
                atomic_store(&owner[at + j], 0);
            }
            return i;
        }
    }
    return count;
}

uint64_t tp_arena_left(const void *owners, uint64_t size) {
    const _Atomic uint16_t *owner = owners;
    uint64_t left = 0;
    for (uint64_t i = 0; i < tp_arena_granules(size); i++) {
        left += atomic_load_explicit(&owner[i], memory_order_relaxed) == 0;
    }
    return left;
}

uint64_t tp_arena_take(void *owners, uint64_t size, uint32_t slot, uint64_t bytes) {
    return tp_arena_take_between(owners, size, slot, bytes, 0, size);
}

uint64_t tp_arena_take_between(void *owners, uint64_t size, uint32_t slot, uint64_t bytes, uint64_t from, uint64_t to) {
    _Atomic uint16_t *owner = owners;
    uint64_t granules = tp_arena_granules(size), begin = tp_arena_at();
    if (bytes == 0 || bytes > granules * TP_GRANULE || slot >= TP_SLOTS) {
        return 0;
    }
    uint64_t first = from <= begin ? 0 : (from - begin + TP_GRANULE - 1) / TP_GRANULE;
    uint64_t last = to <= begin ? 0 : (to - begin) / TP_GRANULE;
    uint64_t need = (bytes + TP_GRANULE - 1) / TP_GRANULE, run = 0;
    for (uint64_t i = first; i < last && i < granules; i++) {
        run = atomic_load_explicit(&owner[i], memory_order_relaxed) == 0 ? run + 1 : 0;
        if (run == need) {
            uint64_t at = i + 1 - need, got = claim(owner, at, need, (uint16_t)(slot + 1));
            if (got == need) {
                return tp_arena_at() + at * TP_GRANULE;
            }
            run = 0;
            i = at + got; /* another session was faster there: look behind it */
        }
    }
    return 0;
}

static bool inside(uint64_t size, uint64_t offset, uint64_t bytes) {
    return offset >= tp_arena_at() && bytes > 0 && offset <= size && bytes <= size - offset;
}

bool tp_arena_owns(const void *owners, uint64_t size, uint32_t slot, uint64_t offset, uint64_t bytes) {
    const _Atomic uint16_t *owner = owners;
    if (slot >= TP_SLOTS || !inside(tp_arena_at() + tp_arena_granules(size) * TP_GRANULE, offset, bytes)) {
        return false;
    }
    uint64_t first = (offset - tp_arena_at()) / TP_GRANULE, last = (offset + bytes - 1 - tp_arena_at()) / TP_GRANULE;
    for (uint64_t i = first; i <= last; i++) {
        if (atomic_load_explicit(&owner[i], memory_order_relaxed) != slot + 1) {
            return false;
        }
    }
    return true;
}

void tp_arena_give(void *owners, uint64_t size, uint32_t slot, uint64_t offset, uint64_t bytes) {
    _Atomic uint16_t *owner = owners;
    if (tp_arena_owns(owners, size, slot, offset, bytes)) {
        for (uint64_t i = (offset - tp_arena_at()) / TP_GRANULE; i <= (offset + bytes - 1 - tp_arena_at()) / TP_GRANULE;
             i++) {
            atomic_store(&owner[i], 0);
        }
    }
}
