/*
 * Greeting through the segment without serving frames: what the tools ask to find out whether a worker would let them in.
 *
 * Owns nothing. Entered by a thread of a tool that maps the segment; the slot that it claims is its own until the supervisor
 * answers, and is given back by that thread's end, which the kernel marks in the slot's mutex. The worker and every other
 * process of the machine can write all of it, so an answer is a copy that the caller checks.
 */
#include "tp_segment.h"

#include <string.h>
#include <time.h>
#include <tp_system.h>

#define LOOK_NS 200000
#define TAKEN_NS 3000000000ull /* a worker that runs looks at its slots every few milliseconds */

static struct tp_slot *claim_slot(void *base) {
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        struct tp_slot *slot = tp_slot_at(base, i);
        uint32_t expected = TP_SLOT_FREE;
        if (atomic_compare_exchange_strong(&slot->state, &expected, TP_SLOT_CLAIMED)) {
            return slot;
        }
    }
    return NULL;
}

enum tp_asked tp_segment_ask(void *base, uint32_t timeout_ms, const unsigned char greeting[TP_GREETING_SIZE],
                             unsigned char welcome[TP_WELCOME_SIZE]) {
    struct tp_segment_header *header = base;
    struct tp_slot *slot = claim_slot(base);
    if (!slot) {
        return TP_ASKED_NO_SLOT;
    }
    if (!tp_life_begin(&slot->client_life)) {
        return TP_ASKED_NO_SLOT; /* the supervisor forgets a claim that says nothing */
    }
    tp_boot_id(slot->client_boot_id);
    uint64_t nonce = 0;
    if (!tp_random(&nonce, sizeof nonce) || nonce == 0) {
        nonce = tp_now_ns() | 1;
    }
    slot->client_nonce = nonce;
    memcpy(slot->greeting, greeting, TP_GREETING_SIZE);
    uint32_t claimed = TP_SLOT_CLAIMED;
    if (!atomic_compare_exchange_strong(&slot->state, &claimed, TP_SLOT_GREETED)) {
        return TP_ASKED_NO_SLOT;
    }
    tp_bell_wake(&header->bell);
    uint64_t begin = tp_now_ns(), end = begin + timeout_ms * 1000000ull;
    do {
        uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (state == TP_SLOT_ACCEPTED || state == TP_SLOT_REFUSED) {
            bool echoed = slot->echo == nonce;
            memcpy(welcome, slot->welcome, TP_WELCOME_SIZE);
            return echoed ? TP_ASKED_ANSWERED : TP_ASKED_NOT_SEEN;
        }
        if (state == TP_SLOT_GREETED && tp_now_ns() - begin > TAKEN_NS) {
            break;
        }
        struct timespec pause = {.tv_nsec = LOOK_NS};
        nanosleep(&pause, NULL);
    } while (tp_now_ns() < end);
    uint32_t expected = TP_SLOT_GREETED;
    bool seen = !atomic_compare_exchange_strong(&slot->state, &expected, TP_SLOT_CLAIMED);
    return seen ? TP_ASKED_NO_ANSWER : TP_ASKED_NOT_SEEN;
}
