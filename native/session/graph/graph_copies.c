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
    uint64_t *nodes, *addresses;
    unsigned int *orders;
    uint64_t total, late; /* copies found; host functions behind one out of the device */
    unsigned conditional; /* nodes around the one that is looked at */
};

/* A graph as numbers: node i is followed by `to[first[i]]` up to `to[first[i + 1]]`. */
struct shape {
    size_t count;
    CUgraphNode *nodes; /* by rising address */
    size_t *first, *to, *before;
    unsigned int *orders; /* what stands before each node */
};

static int by_value(const void *a, const void *b) {
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static bool has(const uint64_t *sorted, size_t count, uint64_t value, size_t *at) {
    const uint64_t *found = count ? bsearch(&value, sorted, count, sizeof *sorted, by_value) : NULL;
    *at = found ? (size_t)(found - sorted) : 0;
    return found != NULL;
}

static void shape_free(struct shape *shape) {
    free(shape->nodes);
    free(shape->first);
    free(shape->to);
    free(shape->before);
    free(shape->orders);
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
    shape->orders = calloc(shape->count, sizeof(unsigned int));
    bool able = from && to && data && shape->nodes && shape->first && shape->to && shape->before && shape->orders;
    error = able ? (int32_t)s->cuda.cuGraphGetNodes(graph, shape->nodes, &shape->count) : CUDA_ERROR_OUT_OF_MEMORY;
    if (!error && edges) {
        error = edges_of(s, graph, from, to, data, &edges);
    }
    if (!error) {
        const uint64_t *sorted = (const uint64_t *)(const void *)shape->nodes;
        qsort(shape->nodes, shape->count, sizeof *shape->nodes, by_value);
        size_t a, b;
        for (size_t i = 0; i < edges; i++) {
            if (has(sorted, shape->count, (uint64_t)(uintptr_t)from[i], &a)) {
                shape->first[a + 2]++;
            }
        }
        for (size_t i = 2; i < shape->count + 2; i++) {
            shape->first[i] += shape->first[i - 1];
        }
        for (size_t i = 0; i < edges; i++) {
            if (has(sorted, shape->count, (uint64_t)(uintptr_t)from[i], &a) &&
                has(sorted, shape->count, (uint64_t)(uintptr_t)to[i], &b)) {
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

static void found(struct walk *w, CUgraphNode top, CUgraphNode node, uint64_t address, unsigned int order) {
    if (w->total < COPIES_MAX) {
        size_t at = (size_t)w->total;
        w->nodes[at] = tpw_node_name(w->s, w->frame, top ? top : node, w->graph, &w->fresh);
        w->addresses[at] = address;
        w->orders[at] =
            order | (top ? (unsigned int)TP_INSIDE : 0) | (w->conditional ? (unsigned int)TP_CONDITIONAL : 0);
    }
    w->total++;
}

/* Tells of a copy's buffers; `order` is what stands before it, and then what stands behind it. */
static int32_t copy(struct walk *w, CUgraphNode node, CUgraphNode top, unsigned int *order) {
    CUDA_MEMCPY3D p = {0};
    size_t at;
    unsigned int before = *order;
    TPW_TRY(w->s->cuda.cuGraphMemcpyNodeGetParams(node, &p));
    uint64_t source = start_of(p.srcDevice, p.srcXInBytes, p.srcY, p.srcZ, p.srcPitch, p.srcHeight);
    uint64_t destination = start_of(p.dstDevice, p.dstXInBytes, p.dstY, p.dstZ, p.dstPitch, p.dstHeight);
    if (has(w->buffers, w->buffers_count, source, &at)) {
        found(w, top, node, source, before);
    }
    if (has(w->buffers, w->buffers_count, destination, &at)) {
        found(w, top, node, destination, before);
        *order |= TP_AFTER_DOWNLOAD;
    }
    return CUDA_SUCCESS;
}

static int32_t walk(struct walk *w, CUgraph graph, CUgraphNode top, unsigned int *order, unsigned depth);

static int32_t visit(struct walk *w, CUgraphNode node, CUgraphNode top, unsigned int *order, unsigned depth) {
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    CUgraph child = NULL;
    int32_t error = (int32_t)w->s->cuda.cuGraphNodeGetType(node, &type);
    if (error) {
        return error;
    }
    if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
        error = copy(w, node, top, order);
    } else if (type == CU_GRAPH_NODE_TYPE_HOST) {
        w->late += (*order & TP_AFTER_DOWNLOAD) != 0;
        *order |= TP_AFTER_HOST;
    }
    /* A captured launch that has none to be asked: the client lets no such launch have copies. */
    w->conditional += type == CU_GRAPH_NODE_TYPE_CONDITIONAL;
    for (uint32_t at = 0; !error && (child = tpw_inner_graph(w->s, node, type, &at, &error));) {
        error = walk(w, child, top ? top : node, order, depth + 1);
    }
    w->conditional -= type == CU_GRAPH_NODE_TYPE_CONDITIONAL;
    return error;
}

/* `order`: what stands before the graph, and then what stands before whatever follows it. */
static int32_t walk(struct walk *w, CUgraph graph, CUgraphNode top, unsigned int *order, unsigned depth) {
    struct shape shape;
    const unsigned int before = *order;
    if (depth > TPW_GRAPH_DEPTH) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    int32_t error = shape_make(w->s, graph, &shape);
    size_t *ready = calloc(shape.count + 1, sizeof *ready), waiting = 0;
    error = error || ready ? error : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; !error && i < shape.count; i++) {
        shape.orders[i] = before;
        if (!shape.before[i]) {
            ready[waiting++] = i;
        }
    }
    for (size_t next = 0; !error && next < waiting; next++) {
        size_t at = ready[next];
        unsigned int behind = shape.orders[at];
        error = visit(w, shape.nodes[at], top, &behind, depth);
        *order |= behind;
        for (size_t i = shape.first[at]; i < shape.first[at + 1]; i++) {
            size_t to = shape.to[i];
            shape.orders[to] |= behind;
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
    unsigned int order = 0;
    struct walk w = {.s = s,
                     .frame = frame,
                     .graph = in->graph,
                     .buffers_count = in->buffers_count,
                     .fresh = {.handles = in->fresh, .count = in->fresh_count}};
    w.buffers = calloc(in->buffers_count + 1, sizeof *w.buffers);
    w.nodes = tpw_scratch(s, COPIES_MAX, 2 * sizeof *w.nodes + sizeof *w.orders, &error);
    if (!error && !w.buffers) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error) {
        w.addresses = w.nodes + COPIES_MAX;
        w.orders = (unsigned int *)(void *)(w.addresses + COPIES_MAX);
        if (in->buffers_count) {
            memcpy(w.buffers, in->buffers, in->buffers_count * sizeof *w.buffers);
            qsort(w.buffers, in->buffers_count, sizeof *w.buffers, by_value);
        }
        error = walk(&w, graph, NULL, &order, 0);
    }
    free(w.buffers);
    *out = (struct tpg_graph_copies_out){
        .total = w.total, .late = w.late, .nodes = w.nodes, .addresses = w.addresses, .orders = w.orders};
    out->nodes_count = out->addresses_count = out->orders_count =
        error ? 0 : (size_t)(w.total < COPIES_MAX ? w.total : COPIES_MAX);
    return error;
}
