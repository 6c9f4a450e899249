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

struct node {
    struct node *next; /* in its bucket */
    uint64_t native, handle, graph;
};

#define KEPT_KNOWN 64u /* then a graph may become a user twice, which costs a few bytes */

struct graph {
    uint64_t owner; /* child graph or conditional node that it is inside, 0 = none */
    bool body;      /* of a conditional node */
    struct tpw_kept
        *held[KEPT_KNOWN]; /* what it is a user of, as long as it lives: the last ones, to ask the driver once */
    uint32_t held_next;
};

static struct node **bucket(struct tpw_session *s, uint64_t native) {
    if (!s->graph_nodes) {
        s->graph_nodes = calloc(BUCKETS, sizeof(struct node *));
    }
    struct node **table = s->graph_nodes;
    return table ? &table[(native * 0x9e3779b97f4a7c15ull >> 32) % BUCKETS] : NULL;
}

static int32_t add_name(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, uint64_t native,
                        uint64_t graph) {
    struct node **place = bucket(s, native);
    struct node *node = place ? calloc(1, sizeof *node) : NULL;
    if (!node) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = tpw_made(s, frame, TPG_GRAPHNODE, handle, native, 0);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_GRAPHNODE, handle);
    if (!object) {
        free(node);
        return error ? error : CUDA_ERROR_INVALID_VALUE;
    }
    *node = (struct node){.next = *place, .native = native, .handle = handle, .graph = graph};
    *place = node;
    object->record = node;
    return CUDA_SUCCESS;
}

uint64_t tpw_node_name(struct tpw_session *s, const struct tp_frame *frame, CUgraphNode native, uint64_t graph,
                       struct tpw_fresh *fresh) {
    uint64_t value = (uint64_t)(uintptr_t)native, handle;
    struct node **place = value ? bucket(s, value) : NULL;
    for (const struct node *node = place ? *place : NULL; node; node = node->next) {
        if (node->native == value) {
            return node->handle;
        }
    }
    if (!value || fresh->used >= fresh->count) {
        return 0;
    }
    memcpy(&handle, fresh->handles + fresh->used++, sizeof handle);
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

int32_t tpw_nodes_of(struct tpw_session *s, CUgraph graph, CUgraphNode **nodes, size_t *count) {
    *nodes = NULL;
    *count = 0;
    int32_t error = (int32_t)s->cuda.cuGraphGetNodes(graph, NULL, count);
    if (!error && *count) {
        *nodes = calloc(*count, sizeof **nodes);
        error = *nodes ? (int32_t)s->cuda.cuGraphGetNodes(graph, *nodes, count) : CUDA_ERROR_OUT_OF_MEMORY;
    }
    *count = error ? 0 : *count;
    return error;
}

/* The node of `graph` itself that is `native`, or that has it somewhere inside; NULL if there is none. */
static CUgraphNode top_of(struct tpw_session *s, CUgraph graph, CUgraphNode native, unsigned depth, int32_t *error) {
    size_t count = 0;
    CUgraphNode found = NULL;
    if (depth > TPW_GRAPH_DEPTH) {
        return NULL;
    }
    CUgraphNode *nodes = NULL;
    *error = tpw_nodes_of(s, graph, &nodes, &count);
    for (size_t i = 0; i < count && !found && !*error; i++) {
        CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
        CUgraph child = NULL;
        found = nodes[i] == native ? native : NULL;
        if (!found) {
            *error = (int32_t)s->cuda.cuGraphNodeGetType(nodes[i], &type);
        }
        for (uint32_t at = 0; !found && !*error && (child = tpw_inner_graph(s, nodes[i], type, &at, error));) {
            found = top_of(s, child, native, depth + 1, error) ? nodes[i] : NULL;
        }
    }
    free(nodes);
    return found;
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
    CUgraphNode top = top_of(s, at, native, 0, &error);
    if (error) { /* the call that blames a node has failed already: the client hears that error, and of no node */
        tp_log(TP_WARN, "the node that an error names was not found: error %d", error);
    }
    return error ? 0 : tpw_node_name(s, frame, top, graph, fresh);
}

static void forget_node(struct tpw_session *s, struct node *node) {
    for (struct node **at = bucket(s, node->native); at && *at; at = &(*at)->next) {
        if (*at == node) {
            *at = node->next;
            break;
        }
    }
    tpw_forget(s, TPG_GRAPHNODE, node->handle); /* frees the record */
}

static void forget_inside(struct tpw_session *s, uint64_t node) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_GRAPH, &at));) {
        const struct graph *graph = object->record;
        if (graph && graph->owner == node) {
            tpw_graph_forget(s, tp_handle_make(TPG_GRAPH, object->id));
        }
    }
}

void tpw_graph_forget(struct tpw_session *s, uint64_t graph) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_GRAPHNODE, &at));) {
        struct node *node = object->record;
        if (node && node->graph == graph) {
            forget_inside(s, node->handle);
            forget_node(s, node);
        }
    }
    tpw_forget(s, TPG_GRAPH, graph);
}

/* ---- handles ---- */

static uint64_t native_of(struct tpw_session *s, uint32_t kind, uint64_t handle, int32_t *error) {
    const struct tpw_object *object = *error ? NULL : tpw_object(s, kind, handle);
    if (!object || !object->native) {
        *error = *error ? *error : object && object->error ? object->error : CUDA_ERROR_INVALID_VALUE;
        return 0;
    }
    return object->native;
}

CUgraphNode tpw_node(struct tpw_session *s, uint64_t handle, int32_t *error) {
    return (CUgraphNode)(uintptr_t)native_of(s, TPG_GRAPHNODE, handle, error);
}

CUgraph tpw_graph(struct tpw_session *s, uint64_t handle, int32_t *error) {
    return (CUgraph)(uintptr_t)native_of(s, TPG_GRAPH, handle, error);
}

CUgraphExec tpw_exec(struct tpw_session *s, uint64_t handle, int32_t *error) {
    return (CUgraphExec)(uintptr_t)native_of(s, TPG_GRAPHEXEC, handle, error);
}

CUgraphNode *tpw_nodes(struct tpw_session *s, const uint64_t *handles, size_t count, int32_t *error) {
    CUgraphNode *natives = tpw_scratch(s, 2 * (uint64_t)count + 1, sizeof *natives, error);
    for (size_t i = 0; natives && i < count; i++) {
        uint64_t handle;
        memcpy(&handle, handles + i, sizeof handle);
        natives[i] = tpw_node(s, handle, error);
    }
    return natives;
}

uint64_t tpw_graph_of_node(struct tpw_session *s, uint64_t node) {
    const struct tpw_object *object = tpw_object(s, TPG_GRAPHNODE, node);
    return object && object->record ? ((const struct node *)object->record)->graph : 0;
}

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
        holder = tpw_graph_of_node(s, graph->owner);
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
    error = tpw_keep_in_graph(s, native, kept);
    if (!error) {
        graph->held[graph->held_next++ % KEPT_KNOWN] = kept;
    }
    return error;
}

int32_t tpw_graph_inside(struct tpw_session *s, uint64_t graph, uint64_t node) {
    struct graph *record = record_of(s, graph);
    if (!record) {
        return tpw_object(s, TPG_GRAPH, graph) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    record->owner = node;
    return CUDA_SUCCESS;
}

/* The child graph node that a graph is inside, 0 if none. */
static uint64_t owner_of(struct tpw_session *s, uint64_t graph) {
    const struct tpw_object *object = tpw_object(s, TPG_GRAPH, graph);
    const struct graph *record = object ? object->record : NULL;
    return record ? record->owner : 0;
}

int32_t tpw_graph_body(struct tpw_session *s, uint64_t graph, uint64_t node) {
    int32_t error = tpw_graph_inside(s, graph, node);
    if (!error) {
        record_of(s, graph)->body = true;
    }
    return error;
}

unsigned tpw_graph_depth(struct tpw_session *s, uint64_t graph) {
    unsigned depth = 0;
    for (uint64_t owner; depth <= TPW_GRAPH_DEPTH && (owner = owner_of(s, graph)); depth++) {
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
        if (graph && graph->body && graph->owner == name) {
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
            owner = owner_of(s, at);
            if (at == graph || (node && owner == node)) {
                return true;
            }
        }
    }
    return false;
}

int32_t tpw_graph_may_move(struct tpw_session *s, uint64_t graph, uint64_t into) {
    bool may = tpw_object(s, TPG_GRAPH, graph) && !owner_of(s, graph) && !captured(s, graph, 0);
    unsigned depth = 0;
    for (uint64_t at = into; at && may; at = tpw_graph_of_node(s, owner_of(s, at))) {
        may = at != graph && ++depth <= TPW_GRAPH_DEPTH;
    }
    return may ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

uint64_t tpw_graph_handle(struct tpw_session *s, CUgraph native) {
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_GRAPH, &at));) {
        if (object->native == (uint64_t)(uintptr_t)native) {
            return tp_handle_make(TPG_GRAPH, object->id);
        }
    }
    return 0;
}

/* ---- destruction ---- */

int32_t tpw_graph_destroy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_destroy_in *in,
                          CUgraph graph) {
    int32_t error = CUDA_SUCCESS;
    if (owner_of(s, in->graph)) {
        error = CUDA_ERROR_INVALID_VALUE; /* it goes with the node that it is inside */
    } else if (captured(s, in->graph, 0)) {
        error = CUDA_ERROR_ILLEGAL_STATE; /* a capture still writes it, or one inside it */
    }
    error = error ? error : (int32_t)s->cuda.cuGraphDestroy(graph);
    if (!error) {
        tpw_graph_forget(s, in->graph);
    }
    return error;
}

int32_t tpw_graph_node_destroy(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_graph_node_destroy_in *in, CUgraphNode node) {
    int32_t error = CUDA_SUCCESS;
    for (const struct tpw_capture *capture = s->captures; capture && !error; capture = capture->next) {
        if (capture->graph == tpw_graph_of_node(s, in->node)) {
            error = CUDA_ERROR_INVALID_VALUE; /* what is captured next may depend on it */
        }
    }
    if (!error && captured(s, 0, in->node)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    error = error ? error : (int32_t)s->cuda.cuGraphDestroyNode(node);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_GRAPHNODE, in->node);
    if (object) {
        forget_inside(s, in->node);
        forget_node(s, object->record);
    }
    return error;
}

int32_t tpw_graph_replace(struct tpw_session *s, uint64_t name, CUgraphNode node, CUgraph child) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
    params.graph.graph = child;
    if (captured(s, 0, name)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = (int32_t)s->cuda.cuGraphNodeSetParams(node, &params);
    if (!error) {
        forget_inside(s, name);
    }
    return error;
}

/* ---- lists ---- */

enum { LIST_NODES, LIST_ROOTS, LIST_EDGES, LIST_DEPENDENCIES, LIST_DEPENDENTS };

static int32_t ask(struct tpw_session *s, uint32_t what, uint64_t subject, CUgraphNode *nodes, CUgraphNode *others,
                   CUgraphEdgeData *edges, size_t *count) {
    int32_t error = CUDA_SUCCESS;
    CUgraph graph = what <= LIST_EDGES ? tpw_graph(s, subject, &error) : NULL;
    CUgraphNode node = what > LIST_EDGES ? tpw_node(s, subject, &error) : NULL;
    if (error) {
        return error;
    }
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

int32_t tpw_graph_find_in_clone(struct tpw_session *s, const struct tp_frame *frame,
                                const struct tpg_graph_find_in_clone_in *in, struct tpg_graph_find_in_clone_out *out,
                                CUgraphNode node, CUgraph graph) {
    CUgraphNode found = NULL;
    int32_t error = (int32_t)s->cuda.cuGraphNodeFindInClone(&found, node, graph);
    if (!error) {
        struct tpw_fresh fresh = {.handles = &in->fresh, .count = 1};
        out->found = tpw_node_name(s, frame, found, in->graph, &fresh);
    }
    return error;
}

int32_t tpw_graph_child_get(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_graph_child_get_in *in, struct tpg_graph_child_get_out *out,
                            CUgraphNode node) {
    CUgraph graph = NULL;
    int32_t error = (int32_t)s->cuda.cuGraphChildGraphNodeGetGraph(node, &graph);
    if (error) {
        return error;
    }
    out->graph = tpw_graph_handle(s, graph);
    if (!out->graph) {
        error = tpw_made(s, frame, TPG_GRAPH, in->fresh, (uint64_t)(uintptr_t)graph, 0);
        if (!error && (error = tpw_graph_inside(s, in->fresh, in->node)) != CUDA_SUCCESS) {
            tpw_forget(s, TPG_GRAPH, in->fresh); /* one that nobody owns could be destroyed under its node */
        }
        out->graph = error ? 0 : in->fresh;
    }
    return error;
}
