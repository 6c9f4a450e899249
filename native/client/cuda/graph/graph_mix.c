/*
 * Host functions between copies of one graph: which copies each of them has to do with, and what is done for them when it runs.
 *
 * A copy of a graph with the program's memory goes into a buffer, or out of one (copy/copy_node.c). Usually a launch fills and empties
 * the buffers. But a host function behind a download has to find the bytes in the program's memory, and what an upload behind it
 * reads may be what it wrote. While it runs the graph stands at it: copies in front of it are over, those behind it have not begun.
 * So the thread that runs it first fetches the first ones' buffers, then fills those of the second, and then says that it is done.
 * Both go beside all order (session/copy/copy_beside.c).
 *
 * Learning: any thread. The rest runs on the thread of host functions, so nothing there happens at the same time; only the list of
 * what there is has a lock, which is not held across a call. Launches of one executable graph follow each other, and each calls
 * each function once: so counting calls tells which is a launch's first and which its last. A list lives until the
 * session says that no launch of its executable graph can be under way. The worker's numbers are bounded here.
 */
#include "tpc_graph_copy.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

static struct tp_lock lock;
static struct mix {
    struct mix *next;
    struct copies *copies;
} *mixes;
static uint64_t last_mix;

static bool meet(const struct tpc_host_side *a, const struct tpc_host_side *b) {
    uint64_t a_size = tpc_side_span(a), b_size = tpc_side_span(b);
    uint64_t x = (uint64_t)(uintptr_t)a->first, y = (uint64_t)(uintptr_t)b->first;
    return x < y ? y - x < a_size : x - y < b_size;
}

/* ---- what stands before what ---- */

struct order {
    size_t items, hosts;
    const unsigned int *orders, *places, *host_places;
    const uint64_t *before;
};

static unsigned int number_at(const unsigned int *numbers, size_t i) {
    unsigned int number;
    memcpy(&number, numbers + i, sizeof number);
    return number;
}

/* Item `a` stands before item `b`. */
static bool is_before(const struct order *o, unsigned int a, unsigned int b) {
    uint64_t word;
    memcpy(&word, o->before + (size_t)b * TP_MIX_WORDS + a / 64, sizeof word);
    return word >> a % 64 & 1;
}

/* False when the session has not told it of so many items. */
static bool told(const struct tpg_graph_copies_out *out, struct order *o) {
    *o = (struct order){.items = out->before_count / TP_MIX_WORDS,
                        .hosts = out->host_places_count,
                        .orders = out->orders,
                        .places = out->places,
                        .host_places = out->host_places,
                        .before = out->before};
    bool whole = o->items == out->total + out->hosts && o->items <= TP_MIX_MAX && o->hosts == out->hosts &&
                 out->places_count == out->total && out->before_count % TP_MIX_WORDS == 0;
    for (size_t i = 0; whole && i < out->total; i++) {
        whole = number_at(o->places, i) < o->items;
    }
    for (size_t i = 0; whole && i < o->hosts; i++) {
        whole = number_at(o->host_places, i) < o->items;
    }
    return whole;
}

static void find_functions(const struct order *o, struct copies *copies) {
    for (size_t i = 0; i < copies->count; i++) {
        struct entry *entry = &copies->list[i];
        const unsigned int own = number_at(o->places, i);
        for (size_t j = 0; j < o->hosts; j++) {
            const unsigned int host = number_at(o->host_places, j);
            if (entry->copy->up ? is_before(o, host, own) : is_before(o, own, host)) {
                entry->which[j / 64] |= 1ull << j % 64;
                entry->functions++;
            }
        }
    }
}

/* A download and then an upload of the same memory: only a function in between can bring the bytes from one buffer to the other. */
static bool wrong_pair(const struct order *o, const struct copies *copies, size_t down, size_t up) {
    const struct entry *a = &copies->list[down], *b = &copies->list[up];
    bool between = false;
    if (a->copy->up || !b->copy->up || !is_before(o, number_at(o->places, down), number_at(o->places, up))) {
        return false;
    }
    for (size_t i = 0; i < TP_MIX_WORDS; i++) {
        between = between || (a->which[i] & b->which[i]);
    }
    return !between && meet(&a->copy->side, &b->copy->side);
}

/* The same by what is told of any number of copies: anything of the kind. */
static bool wrong_at_all(const struct tpg_graph_copies_out *out, const struct copies *copies) {
    bool wrong = out->late != 0;
    for (size_t i = 0; i < copies->count && !wrong; i++) {
        const struct tpc_host_copy *copy = copies->list[i].copy;
        const unsigned int order = number_at(out->orders, i);
        wrong = copy->up && (order & TP_AFTER_HOST);
        for (size_t j = 0; copy->up && (order & TP_AFTER_DOWNLOAD) && j < copies->count && !wrong; j++) {
            wrong = !copies->list[j].copy->up && meet(&copy->side, &copies->list[j].copy->side);
        }
    }
    return wrong;
}

static CUresult make_ready(struct copies *copies) {
    CUresult result = CUDA_SUCCESS;
    bool any = false;
    for (size_t i = 0; i < copies->count && result == CUDA_SUCCESS; i++) {
        struct entry *entry = &copies->list[i];
        const struct tpc_context *context = entry->copy->context;
        if (!entry->functions) {
            continue;
        }
        const bool elsewhere = tpc_current() != context;
        CUcontext popped;
        any = true;
        result = elsewhere ? tpc_cuCtxPushCurrent_v2((CUcontext)(uintptr_t)context->handle) : CUDA_SUCCESS;
        if (result == CUDA_SUCCESS) {
            result = tpc_stream_beside(context, &entry->beside);
            if (elsewhere) {
                tpc_cuCtxPopCurrent_v2(&popped);
            }
        }
    }
    struct mix *mix = any && result == CUDA_SUCCESS ? malloc(sizeof *mix) : NULL;
    if (!mix) {
        return any && result == CUDA_SUCCESS ? CUDA_ERROR_OUT_OF_MEMORY : result;
    }
    mix->copies = copies;
    atomic_fetch_add(&copies->references, 1);
    tp_lock_take(&lock);
    copies->mix = ++last_mix;
    mix->next = mixes;
    mixes = mix;
    tp_lock_drop(&lock);
    tp_listen(tpc_conn, 1);
    return CUDA_SUCCESS;
}

CUresult tpc_mix_learn(const char *name, const struct tpg_graph_copies_out *out, struct copies *copies) {
    struct order order;
    const bool known = told(out, &order);
    bool wrong = !known && wrong_at_all(out, copies);
    if (known) {
        find_functions(&order, copies);
    }
    for (size_t i = 0; known && i < copies->count && !wrong; i++) {
        for (size_t j = 0; j < copies->count && !wrong; j++) {
            wrong = wrong_pair(&order, copies, i, j);
        }
    }
    if (wrong) {
        tp_log(
            TP_ERROR,
            known
                ? "%s: the graph copies into this program's memory and from there again, without a host function in "
                  "between: over this connection such bytes arrive when the graph has ended"
                : "%s: the graph copies between the device and this program's memory and uses that memory again before "
                  "it ends; with its host functions these are more than %u, which is not supported over this "
                  "connection",
            name, TP_MIX_MAX);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return make_ready(copies);
}

/* ---- the list ---- */

static struct copies *take_out(uint64_t id) {
    struct copies *copies = NULL;
    tp_lock_take(&lock);
    for (struct mix **at = &mixes; *at; at = &(*at)->next) {
        struct mix *mix = *at;
        if (mix->copies->mix == id) {
            copies = mix->copies;
            *at = mix->next;
            free(mix);
            break;
        }
    }
    tp_lock_drop(&lock);
    return copies;
}

static void drop(void *copies) { tpc_copies_drop(copies); }

void tpc_mix_forget(struct copies *copies) {
    if (copies && copies->mix && take_out(copies->mix)) {
        tpc_copies_drop(copies);
        tp_listen(tpc_conn, -1);
    }
}

/* On a thread of the connection, which may not send. */
bool tpc_on_mix_over(const struct tpg_mix_over_in *in) {
    struct copies *copies = take_out(in->mix);
    if (copies && !tpc_host_later(drop, copies)) {
        tp_log(TP_ERROR, "no memory to let go of the copies of a graph: its buffers stay until the process ends");
    }
    if (copies) {
        tp_listen(tpc_conn, -1);
    }
    return true;
}

/* ---- on the thread of host functions ---- */

static struct copies *held(uint64_t id) {
    struct copies *copies = NULL;
    tp_lock_take(&lock);
    for (const struct mix *mix = mixes; mix && !copies; mix = mix->next) {
        copies = mix->copies->mix == id ? mix->copies : NULL;
    }
    if (copies) {
        atomic_fetch_add(&copies->references, 1);
    }
    tp_lock_drop(&lock);
    return copies;
}

/* Bytes [at, at+size) of the side, packed in `room`. */
static void pack(const struct tpc_host_side *side, uint64_t at, size_t size, unsigned char *room) {
    for (size_t part; size; at += part, room += part, size -= part) {
        const uint64_t row = at / side->width, x = at % side->width;
        part = side->width - x < size ? (size_t)(side->width - x) : size;
        memcpy(room, side->first + side->slice * (row / side->height) + side->pitch * (row % side->height) + x, part);
    }
}

static void unpack(const struct tpc_host_side *side, uint64_t at, size_t size, const unsigned char *room) {
    for (size_t part; size; at += part, room += part, size -= part) {
        const uint64_t row = at / side->width, x = at % side->width;
        part = side->width - x < size ? (size_t)(side->width - x) : size;
        memcpy(side->first + side->slice * (row / side->height) + side->pitch * (row % side->height) + x, room, part);
    }
}

static CUresult move_piece(const struct entry *entry, uint64_t at, size_t size) {
    static unsigned char room[TP_INLINE_MAX];
    const struct tpc_host_copy *copy = entry->copy;
    const uint64_t stream = (uint64_t)(uintptr_t)entry->beside;
    struct tp_reply reply;
    CUresult result;
    if (copy->up) {
        struct tpg_beside_in_in in = {
            .destination = copy->address + at, .stream = stream, .data = room, .data_size = size};
        pack(&copy->side, at, size, room);
        result = tpc_call_beside_in("cuGraphLaunch", &in, &reply);
    } else {
        struct tpg_beside_out_in in = {.source = copy->address + at, .size = size, .stream = stream};
        struct tpg_beside_out_out out = {0};
        result = tpc_call_beside_out("cuGraphLaunch", &in, &out, &reply);
        if (result == CUDA_SUCCESS && out.data_size == size) {
            unpack(&copy->side, at, size, out.data);
        } else if (result == CUDA_SUCCESS) {
            result = CUDA_ERROR_UNKNOWN;
        }
    }
    tp_reply_free(&reply);
    return result;
}

static CUresult move(const struct entry *entry) {
    const struct tpc_host_copy *copy = entry->copy;
    const uint64_t size = copy->side.width * copy->side.height * copy->side.depth;
    struct tp_thread *self = tp_thread_self();
    const uint32_t before = self->context;
    CUresult result = CUDA_SUCCESS;
    if (entry->disabled || !copy->address) {
        return CUDA_SUCCESS;
    }
    self->context = tp_handle_id(copy->context->handle);
    for (uint64_t at = 0; at < size && result == CUDA_SUCCESS; at += TP_INLINE_MAX) {
        result = move_piece(entry, at, size - at < TP_INLINE_MAX ? (size_t)(size - at) : TP_INLINE_MAX);
    }
    self->context = before;
    return result;
}

/* What the function at `place` has to do with, in one direction. */
static CUresult see_to(struct copies *copies, unsigned int place, bool up) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; copies && place < TP_MIX_MAX && i < copies->count; i++) {
        struct entry *entry = &copies->list[i];
        if (entry->copy->up != up || !(entry->which[place / 64] >> place % 64 & 1)) {
            continue;
        }
        const bool first = !entry->seen;
        entry->seen = (entry->seen + 1) % entry->functions;
        if ((up ? !entry->seen : first) && result == CUDA_SUCCESS) {
            result = move(entry);
        }
    }
    if (result != CUDA_SUCCESS) {
        tp_log(TP_ERROR, "a graph's copies beside a host function have failed with %d: %s", (int)result,
               up ? "copies behind it read what they read before" : "the function is not called");
    }
    return result;
}

static CUresult mixed(uint64_t mix, unsigned int place, bool over) {
    struct copies *copies = held(mix);
    CUresult result = see_to(copies, place, over);
    tpc_copies_drop(copies);
    return result;
}
TP_REGISTER(tpc_host_function_mixed, mixed);
