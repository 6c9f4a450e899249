/*
 * Events in the order of their records: who asks for the time between two of them, or whether one is complete, asks for many,
 * one after the other, and so the next ones are asked for together.
 *
 * Owns the order in which events were recorded last, and the answers that came with another. Any thread. A benchmark records
 * hundreds of pairs, waits, and then asks for the time of each; or it records one pair, waits for its end, and asks for its
 * time, again and again. So a question carries the pairs that by that pattern come next, and a wait for an event the start
 * that goes with it. What is kept is what the driver said, bit for bit, and holds until any event is recorded anew. A thread
 * that looks after what others have queued (NCCL's watchdog in PyTorch, an allocator of host memory) goes through hundreds of
 * events ten times a second, under a lock that the others want: a record that is complete stays so, whatever else is recorded.
 */
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <string.h>

#define RECORDS                                                                                                        \
    4096u /* as many as a benchmark may have recorded before it asks; fewer known only mean more questions */
#define NOWHERE UINT64_MAX

struct pair {
    uint64_t start, end;
    uint64_t start_place, end_place; /* in the order, or NOWHERE */
    float milliseconds;
};

static _Atomic uint64_t recorded[RECORDS]; /* handles, by tpc_counts.records before them */
static _Atomic uint32_t turn[RECORDS];     /* 1 + the place whose handle stands there, once it does: its low half */

static _Atomic uint64_t complete[RECORDS]; /* known to be so: what stands in `turn`, and above it the era; else 0 */
static _Atomic uint32_t era;               /* of what is known: another one, once graphs may have recorded */
static _Atomic uint64_t swept;             /* the place of the last answer, */
static _Atomic uint32_t sweeps;            /* and how many to ask for beside the next */

static struct tp_lock lock; /* over what follows */
static struct pair known[TP_PAIRS_MAX];
static uint32_t known_count;
static uint64_t known_at; /* tpc_counts.records when these were asked for: they hold for no other */
static uint64_t last_start = NOWHERE, last_end; /* where the events of the last question stand in the order */

/* Whoever finds the same turn before and behind the handle has that of the place. */
void tpc_timing_recorded(uint64_t event) {
    const uint64_t place = tpc_happened(&tpc_counts.records), slot = place % RECORDS;
    atomic_store_explicit(&turn[slot], 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&complete[slot], 0, memory_order_relaxed);
    atomic_store_explicit(&recorded[slot], event, memory_order_relaxed);
    atomic_store_explicit(&turn[slot], (uint32_t)place + 1, memory_order_release);
}

/* 0 for what another thread is about to put there. */
static uint64_t at(uint64_t place) {
    const uint64_t slot = place % RECORDS;
    const bool there = atomic_load_explicit(&turn[slot], memory_order_acquire) == (uint32_t)place + 1;
    const uint64_t event = atomic_load_explicit(&recorded[slot], memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return there && atomic_load_explicit(&turn[slot], memory_order_relaxed) == (uint32_t)place + 1 ? event : 0;
}

/* Where an event was recorded last, among the places before `now`. */
static uint64_t find(uint64_t event, uint64_t now) {
    for (uint64_t place = now; place-- > 0 && now - place <= RECORDS;) {
        if (atomic_load_explicit(&recorded[place % RECORDS], memory_order_relaxed) == event && at(place) == event) {
            return place;
        }
    }
    return NOWHERE;
}

static uint64_t mark_of(uint64_t place, uint32_t of_era) { return (uint64_t)of_era << 32 | ((uint32_t)place + 1); }

static bool is_complete(uint64_t place) {
    return atomic_load(&complete[place % RECORDS]) == mark_of(place, atomic_load(&era));
}

static void set_complete(uint64_t place, uint32_t of_era) {
    atomic_store(&complete[place % RECORDS], mark_of(place, of_era));
}

bool tpc_sweep_knows(uint64_t event) {
    uint64_t place = find(event, tpc_count(&tpc_counts.records));
    return place != NOWHERE && is_complete(place);
}

/* An event may stand there more than once, and is asked for once. What the answer says is true of the record at any place
 * that it has then or had before; only the last place is looked up. */
void tpc_sweep_begin(struct tpc_sweep *sweep, uint64_t event, uint64_t now) {
    const uint32_t most = tpc_may_mark() ? atomic_load_explicit(&sweeps, memory_order_relaxed) : 0;
    uint64_t place = sweep->place = find(event, now);
    sweep->era = atomic_load(&era);
    for (sweep->count = 0; sweep->count < most && place < now && ++place < now && now - place < RECORDS;) {
        uint64_t next = at(place);
        bool twice = next == event || is_complete(place) || !tpc_handle_alive(TPG_EVENT, next);
        for (uint32_t i = sweep->count; i-- > 0 && !twice;) {
            twice = sweep->events[i] == next;
        }
        if (!twice) {
            sweep->events[sweep->count] = next;
            sweep->places[sweep->count++] = place;
        }
    }
}

void tpc_sweep_learned(const struct tpc_sweep *sweep, CUresult result, uint64_t done) {
    const uint32_t most = atomic_load_explicit(&sweeps, memory_order_relaxed);
    const uint32_t more = most < TP_AHEAD_MAX / 2 ? 2 * most + 1 : TP_AHEAD_MAX;
    bool on = result == CUDA_SUCCESS && sweep->place != NOWHERE && sweep->place > atomic_load(&swept);
    atomic_store_explicit(&sweeps, on ? more : 0, memory_order_relaxed);
    if (result != CUDA_SUCCESS || sweep->place == NOWHERE) {
        return;
    }
    atomic_store(&swept, sweep->place);
    set_complete(sweep->place, sweep->era);
    for (uint32_t i = 0; i < sweep->count; i++) {
        if (done >> i & 1) {
            set_complete(sweep->places[i], sweep->era);
        }
    }
}

void tpc_sweep_forget(void) { atomic_fetch_add(&era, 1); }

/* Puts behind pairs[0], which is asked for, those that are likely to be asked for next; their count with it. */
static uint32_t guess(struct pair *pairs, uint64_t now) {
    uint64_t start = pairs[0].start_place = find(pairs[0].start, now);
    uint64_t end = pairs[0].end_place = find(pairs[0].end, now);
    uint32_t count = 1;
    if (start == NOWHERE || end == NOWHERE) {
        last_start = NOWHERE;
        return count;
    }
    uint64_t newest = start > end ? start : end;
    uint64_t step = last_start < start ? start - last_start : newest - (start < end ? start : end) + 1;
    last_start = start;
    last_end = end;
    for (uint64_t ahead = step; count < TP_PAIRS_MAX && ahead < now - newest; ahead += step) {
        pairs[count] = (struct pair){
            .start = at(start + ahead), .end = at(end + ahead), .start_place = start + ahead, .end_place = end + ahead};
        if (tpc_handle_alive(TPG_EVENT, pairs[count].start) && tpc_handle_alive(TPG_EVENT, pairs[count].end)) {
            count++;
        }
    }
    return count;
}

/* What was learned when `now` was the count of records; another answer may have come meanwhile, then the newer is kept. */
static void keep(const struct pair *pairs, uint32_t count, uint64_t now) {
    tp_lock_take(&lock);
    if (now >= known_at) {
        memcpy(known, pairs, count * sizeof *pairs);
        known_count = count;
        known_at = now;
    }
    tp_lock_drop(&lock);
}

static bool is_known(struct pair *pair) {
    bool found = false;
    tp_lock_take(&lock);
    for (uint32_t i = 0; i < known_count && !found && known_at == tpc_count(&tpc_counts.records); i++) {
        found = known[i].start == pair->start && known[i].end == pair->end;
        if (found) {
            *pair = known[i];
            last_start = pair->start_place;
            last_end = pair->end_place;
        }
    }
    tp_lock_drop(&lock);
    return found;
}

/* Asks the worker, for what was asked and for what is likely to be asked next. */
static CUresult ask(struct pair *asked, bool more) {
    struct pair pairs[TP_PAIRS_MAX];
    uint64_t starts[TP_PAIRS_MAX], ends[TP_PAIRS_MAX];
    const struct tpc_date asked_at = tpc_today();
    uint32_t count = 1, good = 0;
    pairs[0] = *asked;
    if (more) {
        tp_lock_take(&lock);
        count = guess(pairs, asked_at.records);
        tp_lock_drop(&lock);
    }
    for (uint32_t i = 0; i < count; i++) {
        starts[i] = pairs[i].start;
        ends[i] = pairs[i].end;
    }
    struct tpg_event_elapsed_in in = {.starts = starts, .starts_count = count, .ends = ends, .ends_count = count};
    struct tpg_event_elapsed_out out;
    struct tp_reply reply;
    CUresult result = tpc_call_event_elapsed("cuEventElapsedTime", &in, &out, &reply);
    tpc_waited(&asked_at, result);
    if (result == CUDA_SUCCESS && (out.results_count != count || out.milliseconds_count != count)) {
        result = tpc_bad_reply(&reply);
    }
    for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        int said;
        memcpy(&said, out.results + i, sizeof said);
        memcpy(&pairs[i].milliseconds, out.milliseconds + i, sizeof(float));
        asked->milliseconds = i == 0 ? pairs[i].milliseconds : asked->milliseconds;
        if (said == CUDA_SUCCESS) {
            pairs[good++] = pairs[i];
        }
    }
    if (result == CUDA_SUCCESS) {
        keep(pairs, good, asked_at.records);
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_do_cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    struct pair asked = {.start = (uint64_t)(uintptr_t)hStart, .end = (uint64_t)(uintptr_t)hEnd};
    bool more = tpc_may_mark();
    TPC_TRY(more && is_known(&asked) ? tpc_posted() : ask(&asked, more));
    *pMilliseconds = asked.milliseconds;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuEventSynchronize(CUevent hEvent) {
    TPC_TRY(tpc_event_captured("cuEventSynchronize", hEvent));
    TPC_CAPTURE_UNSAFE("cuEventSynchronize");
    TP_TELL(tpc_before_wait);
    struct tpg_event_wait_out out;
    struct tp_reply reply;
    struct pair pair = {.end = (uint64_t)(uintptr_t)hEvent};
    const struct tpc_date asked = tpc_today();
    tp_lock_take(&lock);
    if (last_start < last_end &&
        tpc_may_mark()) { /* the program times, and this has not changed since the last question */
        uint64_t end = find(pair.end, asked.records), apart = last_end - last_start;
        if (end != NOWHERE && end >= apart && tpc_handle_alive(TPG_EVENT, at(end - apart))) {
            pair.start = at(end - apart);
            pair.start_place = end - apart;
            pair.end_place = end;
        }
    }
    tp_lock_drop(&lock);
    CUresult result = tpc_call_event_wait("cuEventSynchronize", pair.end, pair.start, &out, &reply);
    tpc_waited(&asked, result);
    if (result == CUDA_SUCCESS && pair.start && out.timed == CUDA_SUCCESS) {
        pair.milliseconds = out.milliseconds;
        keep(&pair, 1, asked.records);
    }
    tp_reply_free(&reply);
    return result;
}
