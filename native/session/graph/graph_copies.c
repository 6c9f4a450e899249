/*
 * Copies of graphs that end in the client's own memory: which nodes they are, and what stands before them.
 *
 * Executor thread only; owns nothing. Such a node knows a buffer, which is device memory of the client like any other. The
 * client fills it before a launch and empties it behind; that is right unless something else in the graph looks at the
 * program's memory in between, so it is told which of these copies come after others, or after host functions, by the
 * graph's edges. Graphs are as large as the client makes them: the work is proportional to nodes and edges, what is told
 * is bounded by COPIES_MAX.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdlib.h>
#include <tp_memory.h>

#define COPIES_MAX 4096u /* told at once: three arrays stay inside a frame, and a launch with more would take seconds */

struct walk {
    struct tpw_session *s;
    const struct tp_frame *frame;
    uint64_t graph; /* the one that was asked about */
    uint64_t *buffers;
    size_t buffers_count;
    struct tpw_fresh fresh;
    struct tpw_mix *mix; /* is told of all; otherwise the client is */
    uint64_t *nodes, *addresses, *open;
    unsigned int *orders;
    uint64_t total, hosts; /* copies and host functions found: their numbers */
    uint64_t late;         /* pairs of both in which the second must see what the first wrote */
    unsigned conditional;  /* nodes around the one that is looked at */
};

/* What stands before a node: copies out of the device, of these those with a host function behind them, and host functions. Of those
 * with a higher number than TP_MIX_MAX there are only the flags. */
struct past {
    unsigned int flags;
    uint64_t downs[TP_MIX_WORDS], closed[TP_MIX_WORDS], hosts[TP_MIX_WORDS];
};

static void add_past(struct past *to, const struct past *more) {
    to->flags |= more->flags;
    for (size_t i = 0; i < TP_MIX_WORDS; i++) {
        to->downs[i] |= more->downs[i];
        to->closed[i] |= more->closed[i];
        to->hosts[i] |= more->hosts[i];
    }
}

static void put(uint64_t *set, uint64_t number) {
    if (number < TP_MIX_MAX) {
        set[number / 64] |= 1ull << number % 64;
    }
}

/* A graph as numbers: node i is followed by `to[first[i]]` up to `to[first[i + 1]]`. */
struct shape {
    size_t count;
    CUgraphNode *nodes; /* by rising address */
    size_t *first, *to, *before;
    struct past *pasts; /* what stands before each node */
};

static int by_value(const void *a, const void *b) {
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Among values, or pairs by their first. */
static bool has(const uint64_t *sorted, size_t count, size_t words, uint64_t value, size_t *at) {
    const uint64_t *found = count ? bsearch(&value, sorted, count, words * sizeof *sorted, by_value) : NULL;
    *at = found ? (size_t)(found - sorted) / words : 0;
    return found != NULL;
}

static void shape_free(struct shape *shape) {
    free(shape->nodes);
    free(shape->first);
    free(shape->to);
    free(shape->before);
    free(shape->pasts);
}

static int32_t edges_of(struct tpw_session *s, CUgraph graph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data,
                        size_t *count) {
    int32_t error = (int32_t)s->cuda.cuGraphGetEdges_v2(graph, from, to, data, count);
    return error == CUDA_ERROR_NOT_SUPPORTED ? (int32_t)s->cuda.cuGraphGetEdges(graph, from, to, count) : error;
}

static int32_t shape_make(struct tpw_session *s, CUgraph graph, struct shape *shape) {
    size_t edges = 0;
    *shape = (struct shape){0};
    int32_t error = (int32_t)s->cuda.cuGraphGetNodes(graph, NULL, &shape->count);
    error = error ? error : edges_of(s, graph, NULL, NULL, NULL, &edges);
    if (error || !shape->count) {
        return error;
    }
    CUgraphNode *from = calloc(edges + 1, sizeof *from), *to = calloc(edges + 1, sizeof *to);
    CUgraphEdgeData *data = calloc(edges + 1, sizeof *data);
    shape->nodes = calloc(shape->count, sizeof(CUgraphNode));
    shape->first = calloc(shape->count + 2, sizeof(size_t));
    shape->to = calloc(edges + 1, sizeof(size_t));
    shape->before = calloc(shape->count, sizeof(size_t));
    shape->pasts = calloc(shape->count, sizeof(struct past));
    bool able = from && to && data && shape->nodes && shape->first && shape->to && shape->before && shape->pasts;
    error = able ? (int32_t)s->cuda.cuGraphGetNodes(graph, shape->nodes, &shape->count) : CUDA_ERROR_OUT_OF_MEMORY;
    if (!error && edges) {
        error = edges_of(s, graph, from, to, data, &edges);
    }
    if (!error) {
        const uint64_t *sorted = (const uint64_t *)(const void *)shape->nodes;
        qsort(shape->nodes, shape->count, sizeof *shape->nodes, by_value);
        size_t a, b;
        for (size_t i = 0; i < edges; i++) {
            if (has(sorted, shape->count, 1, (uint64_t)(uintptr_t)from[i], &a)) {
                shape->first[a + 2]++;
            }
        }
        for (size_t i = 2; i < shape->count + 2; i++) {
            shape->first[i] += shape->first[i - 1];
        }
        for (size_t i = 0; i < edges; i++) {
            if (has(sorted, shape->count, 1, (uint64_t)(uintptr_t)from[i], &a) &&
                has(sorted, shape->count, 1, (uint64_t)(uintptr_t)to[i], &b)) {
                shape->to[shape->first[a + 1]++] = b;
                shape->before[b]++;
            }
        }
    }
    free(from);
    free(to);
    free(data);
    return error;
}

/* ---- one node ---- */

/* Where a side of a copy begins. */
static uint64_t start_of(uint64_t base, uint64_t x, uint64_t y, uint64_t z, uint64_t pitch, uint64_t rows) {
    return base + x + pitch * (y + rows * z); /* compared with addresses, never used as one */
}

/* One side of a copy: into the device, or out of it. */
static int32_t found(struct walk *w, CUgraphNode top, CUgraphNode node, const uint64_t *pair, bool up,
                     struct past *past) {
    int32_t error = CUDA_SUCCESS;
    const uint64_t at = w->total++;
    unsigned int order = (top ? (unsigned int)TP_INSIDE : 0) | (w->conditional ? (unsigned int)TP_CONDITIONAL : 0);
    if (up && past->flags & TP_AFTER_HOST) {
        order |= TP_MIXED;
        w->late++;
    }
    if (w->mix) {
        error = tpw_mix_side(w->mix, node, pair, up, past->hosts);
    } else if (at < COPIES_MAX) {
        for (size_t i = 0; up && at < TP_MIX_MAX && i < TP_MIX_WORDS; i++) {
            w->open[at * TP_MIX_WORDS + i] = past->downs[i] & ~past->closed[i];
            order |= w->open[at * TP_MIX_WORDS + i] ? (unsigned int)TP_AFTER_DOWNLOAD : 0;
        }
        w->nodes[at] = tpw_node_name(w->s, w->frame, top ? top : node, w->graph, &w->fresh);
        w->addresses[at] = *pair;
        w->orders[at] = order | (at < TP_MIX_MAX ? 0 : past->flags & TP_AFTER_DOWNLOAD);
    }
    if (!up) {
        put(past->downs, at);
        past->flags |= TP_AFTER_DOWNLOAD;
    }
    return error;
}

/* `past` is what stands before the copy, and then what stands before those behind it. */
static int32_t copy(struct walk *w, CUgraphNode node, CUgraphNode top, struct past *past) {
    CUDA_MEMCPY3D p = {0};
    const size_t words = w->mix ? 2 : 1;
    size_t from, to;
    TPW_TRY(w->s->cuda.cuGraphMemcpyNodeGetParams(node, &p));
    uint64_t source = start_of(p.srcDevice, p.srcXInBytes, p.srcY, p.srcZ, p.srcPitch, p.srcHeight);
    uint64_t destination = start_of(p.dstDevice, p.dstXInBytes, p.dstY, p.dstZ, p.dstPitch, p.dstHeight);
    const bool up = has(w->buffers, w->buffers_count, words, source, &from);
    const bool down = has(w->buffers, w->buffers_count, words, destination, &to);
    int32_t error = up ? found(w, top, node, w->buffers + words * from, true, past) : CUDA_SUCCESS;
    return error || !down ? error : found(w, top, node, w->buffers + words * to, false, past);
}

static int32_t host(struct walk *w, CUgraphNode node, struct past *past) {
    const uint64_t place = w->hosts++;
    if (w->mix) {
        TPW_TRY(tpw_mix_host(w->s, w->mix, node, (uint32_t)place, past->downs));
    }
    for (size_t i = 0; !w->mix && i < w->total && i < TP_MIX_MAX; i++) {
        w->orders[i] |= past->downs[i / 64] >> i % 64 & 1 ? (unsigned int)TP_MIXED : 0;
    }
    w->late += (past->flags & TP_AFTER_DOWNLOAD) != 0;
    memcpy(past->closed, past->downs, sizeof past->closed);
    past->flags |= TP_AFTER_HOST;
    put(past->hosts, place);
    return CUDA_SUCCESS;
}

static int32_t walk(struct walk *w, CUgraph graph, CUgraphNode top, struct past *past, unsigned depth);

static int32_t visit(struct walk *w, CUgraphNode node, CUgraphNode top, struct past *past, unsigned depth) {
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    CUgraph child = NULL;
    int32_t error = (int32_t)w->s->cuda.cuGraphNodeGetType(node, &type);
    TPW_TRY(error);
    if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
        error = copy(w, node, top, past);
    } else if (type == CU_GRAPH_NODE_TYPE_HOST) {
        error = host(w, node, past);
    }
    /* A captured launch that has none to be asked: the client lets no such launch have copies. */
    w->conditional += type == CU_GRAPH_NODE_TYPE_CONDITIONAL;
    for (uint32_t at = 0; !error && (child = tpw_inner_graph(w->s, node, type, &at, &error));) {
        error = walk(w, child, top ? top : node, past, depth + 1);
    }
    w->conditional -= type == CU_GRAPH_NODE_TYPE_CONDITIONAL;
    return error;
}

/* `past`: what stands before the graph, and then what stands before whatever follows it. */
static int32_t walk(struct walk *w, CUgraph graph, CUgraphNode top, struct past *past, unsigned depth) {
    struct shape shape;
    const struct past before = *past;
    if (depth > TPW_GRAPH_DEPTH) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    int32_t error = shape_make(w->s, graph, &shape);
    size_t *ready = calloc(shape.count + 1, sizeof *ready), waiting = 0;
    error = error || ready ? error : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; !error && i < shape.count; i++) {
        shape.pasts[i] = before;
        if (!shape.before[i]) {
            ready[waiting++] = i;
        }
    }
    for (size_t next = 0; !error && next < waiting; next++) {
        size_t at = ready[next];
        struct past behind = shape.pasts[at];
        error = visit(w, shape.nodes[at], top, &behind, depth);
        add_past(past, &behind);
        for (size_t i = shape.first[at]; i < shape.first[at + 1]; i++) {
            size_t to = shape.to[i];
            add_past(&shape.pasts[to], &behind);
            if (!--shape.before[to]) {
                ready[waiting++] = to;
            }
        }
    }
    free(ready);
    shape_free(&shape);
    return error;
}

int32_t tpw_graph_copies(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_copies_in *in,
                         struct tpg_graph_copies_out *out, CUgraph graph) {
    int32_t error = CUDA_SUCCESS;
    struct past past = {0};
    struct walk w = {.s = s,
                     .frame = frame,
                     .graph = in->graph,
                     .buffers_count = in->buffers_count,
                     .fresh = {.handles = in->fresh, .count = in->fresh_count}};
    w.buffers = calloc(in->buffers_count + 1, sizeof *w.buffers);
    const size_t rows = (size_t)TP_MIX_MAX * TP_MIX_WORDS;
    w.nodes = tpw_scratch(s, rows + COPIES_MAX, 2 * sizeof *w.nodes + sizeof *w.orders, &error);
    if (!error && !w.buffers) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error) {
        w.addresses = w.nodes + COPIES_MAX;
        w.open = w.addresses + COPIES_MAX;
        w.orders = (unsigned int *)(void *)(w.open + rows);
        if (in->buffers_count) {
            memcpy(w.buffers, in->buffers, in->buffers_count * sizeof *w.buffers);
            qsort(w.buffers, in->buffers_count, sizeof *w.buffers, by_value);
        }
        error = walk(&w, graph, NULL, &past, 0);
    }
    free(w.buffers);
    const bool few = w.total <= TP_MIX_MAX && w.hosts <= TP_MIX_MAX;
    *out = (struct tpg_graph_copies_out){.total = w.total,
                                         .late = few ? 0 : w.late,
                                         .nodes = w.nodes,
                                         .addresses = w.addresses,
                                         .orders = w.orders,
                                         .open = w.open};
    out->open_count = error || !few ? 0 : (size_t)w.total * TP_MIX_WORDS;
    out->nodes_count = out->addresses_count = out->orders_count =
        error ? 0 : (size_t)(w.total < COPIES_MAX ? w.total : COPIES_MAX);
    return error;
}

int32_t tpw_copies_mix(struct tpw_session *s, CUgraph graph, uint64_t *pairs, size_t count, struct tpw_mix *mix) {
    struct walk w = {.s = s, .buffers = pairs, .buffers_count = count, .mix = mix};
    struct past past = {0};
    qsort(pairs, count, 2 * sizeof *pairs, by_value);
    return walk(&w, graph, NULL, &past, 0);
}
