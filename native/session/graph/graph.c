/*
 * Graphs and their nodes as objects: names of nodes, lists, edges, destruction.
 *
 * Executor thread only. A node has a handle once the client has seen it; a table from the driver's pointer to that handle
 * makes every list give the same one. Handles come from the client and are checked by kind and generation before the
 * driver sees what is behind them; when a graph goes, its nodes and the graphs inside them go, here as in the client.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdlib.h>

#define BUCKETS 4096u
#define LIST_MAX 8192u /* nodes or edges in one answer: three arrays of 8 bytes stay inside a frame */

/* The handle of a node, as long as that is one. */
struct name {
    struct name *next; /* in its bucket */
    uint64_t native, handle;
};

#define KEPT_KNOWN 64u /* then a graph may become a user twice, which costs a few bytes */

/* The record of a graph; its owner is the child graph or conditional node that it is inside. */
struct graph {
    bool body; /* of a conditional node */
    struct tpw_kept
        *held[KEPT_KNOWN]; /* what it is a user of, as long as it lives: the last ones, to ask the driver once */
    uint32_t held_next;
};

/* Where the name of a node is, or where one can be added; what is in the way of those that are no more goes. NULL without memory. */
static struct name **find_name(struct tpw_session *s, uint64_t native) {
    s->graph_nodes = s->graph_nodes ? s->graph_nodes : calloc(BUCKETS, sizeof(struct name *));
    struct name **table = s->graph_nodes;
    struct name **at = table ? &table[(native * 0x9e3779b97f4a7c15ull >> 32) % BUCKETS] : NULL;
    while (at && *at) {
        struct name *name = *at;
        const struct tpw_object *node = tpw_object(s, TPG_GRAPHNODE, name->handle);
        if (!node || node->native != name->native) {
            *at = name->next;
            free(name);
        } else if (name->native == native) {
            break;
        } else {
            at = &name->next;
        }
    }
    return at;
}

static int32_t add_name(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, uint64_t native,
                        uint64_t graph) {
    struct name **place = find_name(s, native);
    struct name *name = place ? malloc(sizeof *name) : NULL;
    if (!name) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = tpw_made(s, frame, TPG_GRAPHNODE, handle, native, 0);
    if (error) {
        free(name);
        return error;
    }
    tpw_object(s, TPG_GRAPHNODE, handle)->owner = graph;
    *name = (struct name){.next = *place, .native = native, .handle = handle};
    *place = name;
    return CUDA_SUCCESS;
}

uint64_t tpw_node_name(struct tpw_session *s, const struct tp_frame *frame, CUgraphNode native, uint64_t graph,
                       struct tpw_fresh *fresh) {
    uint64_t value = (uint64_t)(uintptr_t)native;
    struct name **place = value ? find_name(s, value) : NULL;
    if (place && *place) {
        return (*place)->handle;
    }
    if (!value || fresh->used >= fresh->count) {
        return 0;
    }
    const uint64_t handle = tp_word_at(fresh->handles, fresh->used++);
    return add_name(s, frame, handle, value, graph) ? 0 : handle;
}

/* The graph inside a node of type graph; NULL without an error for a captured launch, which may have none to be asked. */
static int32_t child_graph(struct tpw_session *s, CUgraphNode node, CUgraph *child) {
    *child = NULL;
    int32_t error = (int32_t)s->cuda.cuGraphChildGraphNodeGetGraph(node, child);
    if (error) {
        *child = NULL;
    }
    return error == CUDA_ERROR_INVALID_VALUE || error == CUDA_ERROR_NOT_SUPPORTED ? CUDA_SUCCESS : error;
}

int32_t tpw_made_in(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                    uint64_t native, uint64_t owner, int32_t error) {
    if (error || kind != TPG_GRAPHNODE) {
        return tpw_made(s, frame, kind, handle, native, error);
    }
    error = add_name(s, frame, handle, native, owner);
    if (error) {
        s->cuda.cuGraphDestroyNode((CUgraphNode)(uintptr_t)native);
    }
    return error;
}

int32_t tpw_told_in(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                    uint64_t native, uint64_t owner, int32_t error, uint64_t *told) {
    struct tpw_fresh fresh = {.handles = &handle, .count = 1};
    if (error || kind != TPG_GRAPHNODE) {
        return tpw_told(s, frame, kind, handle, native, owner, error, told);
    }
    *told = tpw_node_name(s, frame, (CUgraphNode)(uintptr_t)native, owner, &fresh);
    return *told ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static int32_t nodes_of(struct tpw_session *s, CUgraph graph, CUgraphNode **nodes, size_t *count) {
    int32_t error = (int32_t)s->cuda.cuGraphGetNodes(graph, NULL, count);
    if (!error && *count) {
        *nodes = calloc(*count, sizeof **nodes);
        error = *nodes ? (int32_t)s->cuda.cuGraphGetNodes(graph, *nodes, count) : CUDA_ERROR_OUT_OF_MEMORY;
    }
    return error;
}

int32_t tpw_walk(struct tpw_session *s, CUgraph graph, struct tpw_walk *walk) {
    CUgraphNode *nodes = NULL;
    size_t count = 0;
    int32_t error = walk->depth > TPW_GRAPH_DEPTH ? CUDA_ERROR_NOT_SUPPORTED : nodes_of(s, graph, &nodes, &count);
    walk->deepest = walk->depth > walk->deepest ? walk->depth : walk->deepest;
    for (size_t i = 0; !error && i < count && !walk->found; i++) {
        CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
        CUgraph child = NULL;
        walk->top = walk->depth ? walk->top : nodes[i];
        error = (int32_t)s->cuda.cuGraphNodeGetType(nodes[i], &type);
        if (!error && walk->look) {
            error = walk->look(s, walk, nodes[i], type);
        }
        walk->depth++;
        for (uint32_t at = 0; !error && !walk->found && (child = tpw_inner_graph(s, nodes[i], type, &at, &error));) {
            error = tpw_walk(s, child, walk);
        }
        walk->depth--;
    }
    free(nodes);
    return error;
}

/* Finds the node of the graph itself that is a node, or that has it somewhere inside. */
static int32_t find_top(struct tpw_session *s, struct tpw_walk *walk, CUgraphNode node, CUgraphNodeType type) {
    (void)s, (void)type;
    walk->found = node == walk->what ? walk->top : NULL;
    return CUDA_SUCCESS;
}

uint64_t tpw_node_blamed(struct tpw_session *s, const struct tp_frame *frame, CUgraphNode native, uint64_t graph,
                         struct tpw_fresh *fresh) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_fresh none = {.count = 0};
    uint64_t known = tpw_node_name(s, frame, native, graph, &none);
    CUgraph at = tpw_graph(s, graph, &error);
    if (known || error || !native) {
        return known;
    }
    struct tpw_walk walk = {.look = find_top, .what = native};
    error = tpw_walk(s, at, &walk);
    if (error) { /* the call that blames a node has failed already: the client hears that error, and of no node */
        tp_log(TP_WARN, "the node that an error names was not found: error %d", error);
    }
    return error ? 0 : tpw_node_name(s, frame, walk.found, graph, fresh);
}

/* ---- handles ---- */

CUgraphNode tpw_node(struct tpw_session *s, uint64_t handle, int32_t *error) {
    return (CUgraphNode)(uintptr_t)tpw_native(s, NULL, TPG_GRAPHNODE, handle, false, error);
}

CUgraph tpw_graph(struct tpw_session *s, uint64_t handle, int32_t *error) {
    return (CUgraph)(uintptr_t)tpw_native(s, NULL, TPG_GRAPH, handle, false, error);
}

/* What an object ends with, 0 for nothing. */
static uint64_t owner_of(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    const struct tpw_object *object = tpw_object(s, kind, handle);
    return object ? object->owner : 0;
}

uint64_t tpw_graph_of_node(struct tpw_session *s, uint64_t node) { return owner_of(s, TPG_GRAPHNODE, node); }

/* The child graph or conditional node that a graph is inside, 0 if none. */
static uint64_t node_around(struct tpw_session *s, uint64_t graph) { return owner_of(s, TPG_GRAPH, graph); }

static struct graph *record_of(struct tpw_session *s, uint64_t graph) {
    struct tpw_object *object = tpw_object(s, TPG_GRAPH, graph);
    if (object && !object->record) {
        object->record = calloc(1, sizeof(struct graph));
    }
    return object ? object->record : NULL;
}

int32_t tpw_hold(struct tpw_session *s, uint64_t holder, struct tpw_kept *kept) {
    int32_t error = CUDA_SUCCESS;
    if (!kept) {
        return CUDA_SUCCESS;
    }
    if (tp_handle_is(holder, TPG_GRAPHEXEC)) {
        return tpw_exec_hold(s, holder, kept);
    }
    struct graph *graph = record_of(s, holder);
    while (graph && graph->body) {
        holder = tpw_graph_of_node(s, node_around(s, holder));
        graph = record_of(s, holder);
    }
    CUgraph native = tpw_graph(s, holder, &error);
    graph = error ? NULL : graph;
    if (!graph) {
        return error ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < KEPT_KNOWN && graph->held[i]; i++) {
        if (graph->held[i] == kept) {
            return CUDA_SUCCESS;
        }
    }
    error = tpw_keep_in_graph(s, native, kept, NULL);
    if (!error) {
        graph->held[graph->held_next++ % KEPT_KNOWN] = kept;
    }
    return error;
}

int32_t tpw_graph_body(struct tpw_session *s, uint64_t graph, uint64_t node) {
    struct graph *record = record_of(s, graph);
    if (!record) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    record->body = true;
    tpw_object(s, TPG_GRAPH, graph)->owner = node;
    return CUDA_SUCCESS;
}

unsigned tpw_graph_depth(struct tpw_session *s, uint64_t graph) {
    unsigned depth = 0;
    for (uint64_t owner; depth <= TPW_GRAPH_DEPTH && (owner = node_around(s, graph)); depth++) {
        graph = tpw_graph_of_node(s, owner);
    }
    return depth;
}

CUgraph tpw_inner_graph(struct tpw_session *s, CUgraphNode node, CUgraphNodeType type, uint32_t *at, int32_t *error) {
    CUgraph child = NULL;
    if (type == CU_GRAPH_NODE_TYPE_GRAPH && !(*at)++) {
        *error = child_graph(s, node, &child);
        return child;
    }
    if (type != CU_GRAPH_NODE_TYPE_CONDITIONAL) {
        return NULL;
    }
    struct tpw_fresh none = {.count = 0}; /* a conditional node has had its name since it was made */
    const uint64_t name = tpw_node_name(s, NULL, node, 0, &none);
    const struct tpw_object *object;
    while (name && (object = tpw_next_object(s, TPG_GRAPH, at))) {
        const struct graph *graph = object->record;
        if (graph && graph->body && object->owner == name) {
            return (CUgraph)(uintptr_t)object->native;
        }
    }
    return NULL;
}

/* Whether a capture under way writes this graph, or one that lies inside it or inside `node` at any depth. The driver permits
 * everything with such a graph but its destruction and that of its nodes, and would go on writing what is gone. */
static bool captured(struct tpw_session *s, uint64_t graph, uint64_t node) {
    for (const struct tpw_capture *capture = s->captures; capture; capture = capture->next) {
        for (uint64_t at = capture->graph, owner; at; at = tpw_graph_of_node(s, owner)) {
            owner = node_around(s, at);
            if (at == graph || (node && owner == node)) {
                return true;
            }
        }
    }
    return false;
}

int32_t tpw_graph_may_move(struct tpw_session *s, uint64_t graph, uint64_t into) {
    bool may = tpw_object(s, TPG_GRAPH, graph) && !node_around(s, graph) && !captured(s, graph, 0);
    unsigned depth = 0;
    for (uint64_t at = into; at && may; at = tpw_graph_of_node(s, node_around(s, at))) {
        may = at != graph && ++depth <= TPW_GRAPH_DEPTH;
    }
    return may ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- destruction ---- */

int32_t tpw_cuGraphDestroy(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_cuGraphDestroy_in *in) {
    int32_t error = CUDA_SUCCESS;
    CUgraph graph = tpw_graph(s, in->hGraph, &error);
    if (node_around(s, in->hGraph)) {
        tpw_set(&error, CUDA_ERROR_INVALID_VALUE); /* it goes with the node that it is inside */
    } else if (captured(s, in->hGraph, 0)) {
        tpw_set(&error, CUDA_ERROR_ILLEGAL_STATE); /* a capture still writes it, or one inside it */
    }
    error = error ? error : (int32_t)s->cuda.cuGraphDestroy(graph);
    if (!error) {
        tpw_forget(s, TPG_GRAPH, in->hGraph);
    }
    return error;
}

int32_t tpw_cuGraphDestroyNode(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_cuGraphDestroyNode_in *in, CUgraphNode node) {
    /* What is captured next may depend on it. */
    if (TP_FIND(s->captures, it->graph == tpw_graph_of_node(s, in->hNode)) || captured(s, 0, in->hNode)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPW_TRY(s->cuda.cuGraphDestroyNode(node));
    tpw_forget(s, TPG_GRAPHNODE, in->hNode);
    return CUDA_SUCCESS;
}

int32_t tpw_graph_child_set(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_graph_child_set_in *in, CUgraphNode node, CUgraph child) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
    params.graph.graph = child;
    TPW_TRY(tpw_graph_fits(s, child));
    if (captured(s, 0, in->node)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPW_TRY(s->cuda.cuGraphNodeSetParams(node, &params));
    tpw_forget_parts(s, TPG_GRAPHNODE, in->node);
    return CUDA_SUCCESS;
}

/* ---- lists ---- */

enum { LIST_NODES, LIST_ROOTS, LIST_EDGES, LIST_DEPENDENCIES, LIST_DEPENDENTS };

static int32_t ask(struct tpw_session *s, uint32_t what, uint64_t subject, CUgraphNode *nodes, CUgraphNode *others,
                   CUgraphEdgeData *edges, size_t *count) {
    int32_t error = CUDA_SUCCESS;
    CUgraph graph = what <= LIST_EDGES ? tpw_graph(s, subject, &error) : NULL;
    CUgraphNode node = what > LIST_EDGES ? tpw_node(s, subject, &error) : NULL;
    TPW_TRY(error);
    switch (what) {
    case LIST_NODES:
        return (int32_t)s->cuda.cuGraphGetNodes(graph, nodes, count);
    case LIST_ROOTS:
        return (int32_t)s->cuda.cuGraphGetRootNodes(graph, nodes, count);
    case LIST_EDGES:
        error = (int32_t)s->cuda.cuGraphGetEdges_v2(graph, nodes, others, edges, count);
        return error == CUDA_ERROR_NOT_SUPPORTED ? (int32_t)s->cuda.cuGraphGetEdges(graph, nodes, others, count)
                                                 : error;
    case LIST_DEPENDENCIES:
        error = (int32_t)s->cuda.cuGraphNodeGetDependencies_v2(node, nodes, edges, count);
        return error == CUDA_ERROR_NOT_SUPPORTED ? (int32_t)s->cuda.cuGraphNodeGetDependencies(node, nodes, count)
                                                 : error;
    case LIST_DEPENDENTS:
        error = (int32_t)s->cuda.cuGraphNodeGetDependentNodes_v2(node, nodes, edges, count);
        return error == CUDA_ERROR_NOT_SUPPORTED ? (int32_t)s->cuda.cuGraphNodeGetDependentNodes(node, nodes, count)
                                                 : error;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

int32_t tpw_graph_list(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_list_in *in,
                       struct tpg_graph_list_out *out) {
    size_t total = 0;
    int32_t error = ask(s, in->what, in->subject, NULL, NULL, NULL, &total);
    out->total = total;
    if (error || !in->count || in->first >= total) {
        return error;
    }
    size_t count = total - in->first < in->count ? total - in->first : in->count;
    count = count < LIST_MAX ? count : LIST_MAX;
    bool pairs = in->what == LIST_EDGES;
    CUgraphNode *nodes = calloc(total, sizeof *nodes), *others = calloc(total, sizeof *others);
    CUgraphEdgeData *data = calloc(total, sizeof *data);
    uint64_t *names = tpw_scratch(s, count, 3 * sizeof *names, &error);
    if (!nodes || !others || !data) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t room = total;
    error = error ? error : ask(s, in->what, in->subject, nodes, pairs ? others : NULL, data, &room);
    if (!error && room == total) {
        uint64_t graph = in->what <= LIST_EDGES ? in->subject : tpw_graph_of_node(s, in->subject);
        struct tpw_fresh fresh = {.handles = in->fresh, .count = in->fresh_count};
        for (size_t i = 0; i < count; i++) {
            names[i] = tpw_node_name(s, frame, nodes[in->first + i], graph, &fresh);
            names[count + i] = pairs ? tpw_node_name(s, frame, others[in->first + i], graph, &fresh) : 0;
            memcpy(names + 2 * count + i, data + in->first + i, sizeof *data);
        }
        out->nodes = names;
        out->others = names + count;
        out->edges = (const CUgraphEdgeData *)(const void *)(names + 2 * count);
        out->nodes_count = out->edges_count = count;
        out->others_count = pairs ? count : 0;
    }
    free(nodes);
    free(others);
    free(data);
    return error;
}
