/*
 * Memory of graphs: which addresses their nodes have, for how long, and what launches take of the limit.
 *
 * Executor thread only. The driver gives the addresses of an allocation node away when it is made, and may give the same to
 * another node of the graph, so addresses that meet are one block with several users. A user is a node, by a user object of the driver
 * (hold.c) that says when its graph and all that was made of it are gone; memory that is allocated then stays until it is
 * freed. The driver takes memory when a graph is launched or uploaded and keeps it until it is trimmed: the most that a launch
 * can take is charged before, what the driver has taken is what stays charged.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_graph.h"
#include "tpw_memory.h"

#include <stdlib.h>

#define CHUNK (32ull << 20) /* what the driver takes at once (580.159.04 on an H200, measured) */

/* An allocation node, or the memory that it left when its graphs were gone. */
struct tpw_graph_user {
    struct tpw_graph_user *next;
    const struct tpw_kept *kept; /* NULL: they are gone */
    uint64_t address;
};

/* ---- blocks ---- */

static struct tpw_range *touching(struct tpw_session *s, uint64_t start, uint64_t end) {
    struct tpw_range *range = tpw_range_at(s, start);
    if (!range) {
        range = (struct tpw_range *)tp_interval_from(&s->memory->ranges, start);
    }
    return range && range->at.start < end ? range : NULL;
}

/* The block of addresses with one user more; NULL where they are another kind's memory, or without memory. */
static struct tpw_range *join(struct tpw_session *s, uint64_t address, uint64_t size, uint32_t device) {
    uint64_t start = address, end = 0, users = 1;
    struct tpw_range *range = NULL;
    bool good = size && !__builtin_add_overflow(address, size, &end);
    for (uint64_t at = address; good && (range = touching(s, at, end)); at = range->at.start + range->at.size) {
        good = range->kind == TPW_RANGE_GRAPH;
    }
    if (!good) {
        tp_log(TP_ERROR, "a node of a graph has %llu bytes at 0x%llx, where the client has other memory",
               (unsigned long long)size, (unsigned long long)address);
        return NULL;
    }
    while ((range = touching(s, address, end))) {
        start = range->at.start < start ? range->at.start : start;
        end = range->at.start + range->at.size > end ? range->at.start + range->at.size : end;
        users += range->users;
        free(tp_interval_remove(&s->memory->ranges, range->at.start));
    }
    range = tpw_range_new(s, start, end - start, TPW_RANGE_GRAPH);
    if (range) {
        range->users = users;
        range->device = device;
    }
    return range;
}

static void remove_block(struct tpw_session *s, struct tpw_range *block) {
    struct tpg_graph_memory_gone_in message = {.address = block->at.start, .size = block->at.size};
    free(tp_interval_remove(&s->memory->ranges, block->at.start));
    tpg_send_graph_memory_gone(s, &message);
}

/* Takes the user out of the list. */
static void leave(struct tpw_session *s, struct tpw_graph_user **at) {
    struct tpw_graph_user *user = *at;
    struct tpw_range *block = tpw_range_at(s, user->address);
    *at = user->next;
    free(user);
    if (block && --block->users == 0) {
        remove_block(s, block);
    }
}

/* The driver knows addresses of graphs only while something is allocated there. */
static bool allocated(struct tpw_session *s, uint64_t address) {
    CUmemorytype type = 0;
    int32_t error = (int32_t)s->cuda.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address);
    if (error && error != CUDA_ERROR_INVALID_VALUE) {
        tp_log(TP_WARN, "the driver does not tell whether a graph's memory is there still: error %d", error);
    }
    return !error;
}

static void freed(struct tpw_session *s) {
    for (struct tpw_graph_user **at = &s->memory->graph_users; *at;) {
        if ((*at)->kept || allocated(s, (*at)->address)) {
            at = &(*at)->next;
        } else {
            leave(s, at);
        }
    }
}

TP_REGISTER(tpw_memory_freed, freed);

/* What is left of a block, with its users; true if there are any. */
static bool piece(struct tpw_session *s, const struct tpw_range *of, uint64_t from, uint64_t to, uint64_t users) {
    struct tpw_range *range = users ? tpw_range_new(s, from, to - from, TPW_RANGE_GRAPH) : NULL;
    if (range) {
        range->users = users;
        range->device = of->device;
    }
    return range != NULL;
}

/* No graph has these addresses now, and no memory that one left is there: messages about it are still under way, or its free
 * was one in the order of a stream. Beside them, in the same block, may be memory of graphs that has it. */
static void given(struct tpw_session *s, uint64_t address, uint64_t size) {
    const uint64_t end = address + size;
    struct tpw_range *block;
    while (s->memory->graph_users && (block = touching(s, address, end)) && block->kind == TPW_RANGE_GRAPH) {
        const struct tpw_range was = *block;
        const uint64_t start = was.at.start, stop = start + was.at.size;
        uint64_t before = 0, behind = 0;
        for (struct tpw_graph_user **at = &s->memory->graph_users; *at;) {
            struct tpw_graph_user *user = *at;
            const bool inside = user->address - start < stop - start;
            before += inside && user->address < address;
            behind += inside && user->address >= end;
            if (inside && user->address >= address && user->address < end) {
                *at = user->next;
                free(user);
            } else {
                at = &user->next;
            }
        }
        free(tp_interval_remove(&s->memory->ranges, start));
        const uint64_t from = piece(s, &was, start, address, before) ? address : start;
        const uint64_t to = piece(s, &was, end, stop, behind) ? end : stop;
        struct tpg_graph_memory_gone_in message = {.address = from, .size = to - from};
        tpg_send_graph_memory_gone(s, &message);
    }
}

TP_REGISTER(tpw_memory_given, given);

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPW_KEPT_MEMORY) {
        return false;
    }
    for (struct tpw_graph_user **at = &s->memory->graph_users; *at; at = &(*at)->next) {
        if ((*at)->kept == kept) {
            (*at)->kept = NULL;
            break;
        }
    }
    freed(s);
    tpw_kept_ended(s, kept);
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

static int32_t allocates(struct tpw_session *s, CUgraph graph, uint64_t address, uint64_t size, uint32_t device) {
    struct tpw_kept *kept = calloc(1, sizeof *kept);
    struct tpw_graph_user *user = malloc(sizeof *user);
    if (!kept || !user || !tpw_memory_state(s) || !join(s, address, size, device)) {
        free(kept);
        free(user);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *user = (struct tpw_graph_user){.next = s->memory->graph_users, .kept = kept, .address = address};
    s->memory->graph_users = user;
    *kept = (struct tpw_kept){.native = address, .kind = TPW_KEPT_MEMORY, .over = true};
    int32_t error = tpw_keep_in_graph(s, graph, kept, NULL);
    if (error && !kept->users) { /* else its user says so, in time */
        free(kept);
        leave(s, &s->memory->graph_users);
    }
    return error;
}
TP_REGISTER(tpw_memory_captured, allocates);

/* ---- what launches take ---- */

/* What the driver has taken for graphs on a device is what stays charged. */
static void settle(struct tpw_session *s, uint32_t device) {
    cuuint64_t taken = 0;
    uint64_t *charged = &s->memory->graph_bytes[device];
    int32_t error = (int32_t)s->cuda.cuDeviceGetGraphMemAttribute(s->devices[device],
                                                                  CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &taken);
    if (error) {
        tp_log(TP_WARN, "the driver does not tell what graphs take of device %u: error %d", device, error);
        return;
    }
    if (taken > *charged && tpw_charge(s, device, taken - *charged)) {
        tp_log(TP_WARN, "graphs take %llu bytes of device %u, more than was foreseen, and pass the memory limit",
               (unsigned long long)taken, device);
        return;
    }
    tpw_uncharge(s, device, *charged > taken ? *charged - taken : 0);
    *charged = taken;
}

static int32_t trim(struct tpw_session *s, uint32_t device) {
    int32_t error = (int32_t)s->cuda.cuDeviceGraphMemTrim(s->devices[device]);
    if (!error && tpw_memory_state(s)) {
        s->memory->graph_trims++; /* what was there for a launch may be so no more */
        settle(s, device);
    }
    return error;
}

int32_t tpw_cuDeviceGraphMemTrim(struct tpw_session *s, const struct tp_frame *frame,
                                 const struct tpg_cuDeviceGraphMemTrim_in *in) {
    uint32_t device = 0;
    int32_t error = tpw_device_index(s, in->device, &device);
    return error ? error : trim(s, device);
}

/* Adds up what the graph's blocks take, each once. */
struct count {
    uint64_t mark;
    struct tpw_need *need;
    bool has; /* nodes of memory */
};

static int32_t count(struct tpw_session *s, struct tpw_walk *walk, CUgraphNode node, CUgraphNodeType type) {
    struct count *c = walk->what;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.bytesize = 0};
    c->has |= type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE;
    if (type != CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        return CUDA_SUCCESS;
    }
    TPW_TRY(s->cuda.cuGraphMemAllocNodeGetParams(node, &params));
    struct tpw_range *block = tpw_range_at(s, params.dptr);
    if (block && block->kind == TPW_RANGE_GRAPH && block->mark != c->mark) {
        block->mark = c->mark;
        c->need->bytes[block->device] += block->at.size;
    }
    return CUDA_SUCCESS;
}

int32_t tpw_graph_need(struct tpw_session *s, CUgraph graph, struct tpw_need **out) {
    static uint64_t marks;
    *out = NULL;
    if (!s->memory || !s->memory->graph_users) {
        return CUDA_SUCCESS;
    }
    struct tpw_need *need = calloc(1, sizeof *need);
    struct count c = {.mark = ++marks, .need = need};
    int32_t error = need ? tpw_walk(s, graph, &(struct tpw_walk){.look = count, .what = &c}) : CUDA_ERROR_OUT_OF_MEMORY;
    if (error || !c.has) {
        free(need);
        return error;
    }
    *out = need;
    return CUDA_SUCCESS;
}

int32_t tpw_need_charge(struct tpw_session *s, const struct tpw_need *need) {
    for (uint32_t i = 0; need && need->taken != s->memory->graph_trims + 1 && i < (uint32_t)s->device_count; i++) {
        const uint64_t bytes = (need->bytes[i] + CHUNK - 1) & ~(CHUNK - 1);
        int32_t error = bytes ? tpw_charge(s, i, bytes) : CUDA_SUCCESS;
        if (error) { /* what other graphs have left may be enough */
            error = trim(s, i);
            error = error ? error : tpw_charge(s, i, bytes);
        }
        TPW_TRY(error);
        s->memory->graph_bytes[i] += bytes;
    }
    return CUDA_SUCCESS;
}

void tpw_need_taken(struct tpw_session *s, struct tpw_need *need, int32_t error) {
    for (uint32_t i = 0; need && need->taken != s->memory->graph_trims + 1 && i < (uint32_t)s->device_count; i++) {
        if (need->bytes[i]) {
            settle(s, i);
        }
    }
    if (need && !error) {
        need->taken = s->memory->graph_trims + 1;
    }
}

static void over(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_need *need = what;
    (void)error; /* a broken context uses the memory no more */
    for (uint32_t i = 0; i < (uint32_t)s->device_count; i++) {
        if (need->bytes[i] && trim(s, i)) {
            tp_log(TP_WARN, "what graphs have taken of device %u is not given back", i);
        }
    }
    free(need);
}

void tpw_need_end(struct tpw_session *s, struct tpw_need *need) {
    bool limited = need && tp_quota_limit(s->quota);
    if (!limited || tpw_when_everything_done(s, over, need)) {
        free(need);
    }
}
