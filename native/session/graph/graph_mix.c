/*
 * Host functions between copies of one executable graph: which of the client's buffers each of them has to do with.
 *
 * Executor thread only. Launches of one executable graph follow each other, and each calls each function once: so counting the
 * calls tells which is the first that a launch makes behind a copy, and which the last before one. Which executable graph calls a
 * function the driver does not tell its stub; so while one is made, or updated, the graph's nodes have stubs that know, and its
 * copies have the pinned memory that the client reads and writes while they stand. A user object that the executable graph
 * alone has says when the last of its launches is over.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_graph.h"
#include "tpw_memory.h"

#include <stdlib.h>
#include <tp_extent.h>
#include <tp_memory.h>

/* A node that was changed, and what it had. */
struct change {
    struct change *next;
    CUgraphNode node;
    struct tpw_lasting *lasting; /* of a host function; NULL: a copy */
    CUDA_HOST_NODE_PARAMS host;
    CUDA_MEMCPY3D copy;
};

struct tpw_mix {
    CUuserObject object;
    struct change *changes;
    size_t count;
    struct side {
        CUgraphNode node; /* while the graph is changed */
        uint64_t buffer, pinned;
        uint64_t hosts[TP_MIX_WORDS]; /* by their places, behind a copy out of the device or before one into it */
        uint32_t functions, seen;
        bool up;
    } *sides;
    uint64_t *told; /* room for all of them */
};

static void mix_free(struct tpw_mix *mix) {
    for (struct change *next, *change = mix->changes; change; change = next) {
        next = change->next;
        free(change->lasting);
        free(change);
    }
    free(mix->sides);
    free(mix->told);
    free(mix);
}

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPW_KEPT_MIX) {
        return false;
    }
    mix_free((struct tpw_mix *)(uintptr_t)kept->native);
    tpw_kept_ended(s, kept);
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

static struct change *note(struct tpw_mix *mix, CUgraphNode node) {
    struct change *change = calloc(1, sizeof *change);
    if (change) {
        *change = (struct change){.next = mix->changes, .node = node};
        mix->changes = change;
    }
    return change;
}

int32_t tpw_mix_side(struct tpw_mix *mix, CUgraphNode node, const uint64_t *pair, bool up, const uint64_t *hosts) {
    if (mix->count == TP_MIX_MAX) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    struct side *side = &mix->sides[mix->count++];
    *side = (struct side){.node = node, .buffer = pair[0], .pinned = pair[1], .up = up};
    memcpy(side->hosts, hosts, up ? sizeof side->hosts : 0);
    return CUDA_SUCCESS;
}

/* How far a side of a copy reaches. */
#define EXTENT(c, side)                                                                                                \
    tp_box((c).side##Pitch, (c).side##Height, tp_plus((c).side##XInBytes, (c).WidthInBytes),                           \
           tp_plus((c).side##Y, (c).Height), tp_plus((c).side##Z, (c).Depth))

/* One that no function has to do with stays as it is: the launch sees to it. */
static int32_t replace(struct tpw_session *s, struct tpw_mix *mix, struct side *side) {
    CUDA_MEMCPY3D copy = {0};
    for (size_t word = 0; word < TP_MIX_WORDS; word++) {
        side->functions += (uint32_t)__builtin_popcountll(side->hosts[word]);
    }
    int32_t error = side->functions ? (int32_t)s->cuda.cuGraphMemcpyNodeGetParams(side->node, &copy) : CUDA_SUCCESS;
    struct change *change = error || !side->functions ? NULL : note(mix, side->node);
    if (!change) {
        return error || !side->functions ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    change->copy = copy;
    *(side->up ? &copy.srcDevice : &copy.dstDevice) += side->pinned - side->buffer;
    const uint64_t extent = side->up ? EXTENT(copy, src) : EXTENT(copy, dst);
    tpw_check_range(s, side->up ? copy.srcDevice : copy.dstDevice, extent, &error);
    return error ? error : (int32_t)s->cuda.cuGraphMemcpyNodeSetParams(side->node, &copy);
}

int32_t tpw_mix_host(struct tpw_session *s, struct tpw_mix *mix, CUgraphNode node, uint32_t place,
                     const uint64_t *copies) {
    CUDA_HOST_NODE_PARAMS params = {0};
    TPW_TRY(s->cuda.cuGraphHostNodeGetParams(node, &params));
    const uint64_t token = tpw_host_token(params.fn, params.userData);
    struct change *change = token && place < TP_MIX_MAX ? note(mix, node) : NULL;
    if (!change) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    change->host = params;
    change->lasting = tpw_host_mixed(s, token, mix, place);
    params.userData = change->lasting;
    for (size_t i = 0; i < mix->count; i++) {
        mix->sides[i].hosts[place / 64] |= (copies[i / 64] >> i % 64 & 1) << place % 64;
    }
    return change->lasting ? (int32_t)s->cuda.cuGraphHostNodeSetParams(node, &params) : CUDA_ERROR_OUT_OF_MEMORY;
}

int32_t tpw_mix_begin(struct tpw_session *s, CUgraph graph, const uint64_t *pairs, size_t count, struct tpw_mix **out) {
    *out = NULL;
    if (!count || count % 2 || count > 2 * TP_MIX_MAX) {
        return count ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
    struct tpw_mix *mix = calloc(1, sizeof *mix);
    struct tpw_kept *kept = calloc(1, sizeof *kept);
    uint64_t *sorted = malloc(count * sizeof *sorted);
    int32_t error = CUDA_ERROR_OUT_OF_MEMORY;
    if (mix && kept && sorted && (mix->sides = calloc(TP_MIX_MAX, sizeof *mix->sides))) {
        *kept = (struct tpw_kept){.native = (uint64_t)(uintptr_t)mix, .kind = TPW_KEPT_MIX, .over = true};
        memcpy(sorted, pairs, count * sizeof *sorted);
        error = tpw_keep_in_graph(s, graph, kept, &mix->object);
    }
    if (error) {
        if (!kept || !kept->users) { /* nobody lets go of it */
            if (mix) {
                mix_free(mix);
            }
            free(kept);
        }
        free(sorted);
        return error;
    }
    error = tpw_copies_mix(s, graph, sorted, count / 2, mix);
    free(sorted);
    mix->told = calloc(mix->count + 1, 2 * sizeof *mix->told);
    error = error || mix->told ? error : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; !error && i < mix->count; i++) {
        error = replace(s, mix, &mix->sides[i]);
    }
    if (error) {
        return tpw_mix_end(s, graph, mix, error);
    }
    *out = mix;
    return CUDA_SUCCESS;
}

int32_t tpw_mix_end(struct tpw_session *s, CUgraph graph, struct tpw_mix *mix, int32_t error) {
    for (struct change *change = mix ? mix->changes : NULL; change; change = change->next) {
        tpw_set(&error, (int32_t)(change->lasting ? s->cuda.cuGraphHostNodeSetParams(change->node, &change->host)
                                                  : s->cuda.cuGraphMemcpyNodeSetParams(change->node, &change->copy)));
    }
    if (mix) { /* from here on it is the executable graph's alone, and gone without one */
        tpw_set(&error, (int32_t)s->cuda.cuGraphReleaseUserObject(graph, mix->object, 1));
    }
    return error;
}

static void told(struct tpw_mix *mix, uint32_t place, struct tpg_callback_in *message) {
    uint64_t *fetch = mix->told, *fill = mix->told + mix->count;
    message->fetch = fetch;
    message->fill = fill;
    for (size_t i = 0; i < mix->count; i++) {
        struct side *side = &mix->sides[i];
        if (side->hosts[place / 64] >> place % 64 & 1) {
            const bool first = !side->seen;
            side->seen = (side->seen + 1) % side->functions;
            if (side->up && !side->seen) {
                fill[message->fill_count++] = side->buffer;
            } else if (!side->up && first) {
                fetch[message->fetch_count++] = side->buffer;
            }
        }
    }
}
TP_REGISTER(tpw_host_told, told);
