// Graphs: making, cloning, destroying, and walking nodes and edges.
//
// Handles of graphs and nodes are looked up before use. A node belongs to one graph; the graph inside a child graph
// node belongs to that node. Everything is under sim.lock. Reading kernel parameters out of a node gives pointers into
// the node, as the driver does.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

bool sim_list_add(sim_node_list_t *list, sim_node_t *node) {
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i] == node)
            return true;
    if (!sim_grow(&list->items, &list->capacity, list->count + 1, sizeof *list->items))
        return false;
    list->items[list->count++] = node;
    return true;
}

static void list_remove(sim_node_list_t *list, const sim_node_t *node) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i] != node)
            continue;
        memmove(&list->items[i], &list->items[i + 1], (list->count - i - 1) * sizeof *list->items);
        list->count--;
        return;
    }
}

sim_graph_t *sim_graph_of(CUgraph handle) {
    return sim_handle_is(handle, SIM_GRAPH) ? (sim_graph_t *)(void *)handle : NULL;
}

sim_node_t *sim_node_of(CUgraphNode handle) {
    return sim_handle_is(handle, SIM_GRAPH_NODE) ? (sim_node_t *)(void *)handle : NULL;
}

bool sim_op_copy(sim_op_t *to, const sim_op_t *from) {
    *to = *from;
    to->ndependencies = 0;
    to->dependencies = NULL;
    if (from->kind == SIM_OP_LAUNCH) {
        to->u.launch.params = to->u.launch.inline_params;
        if (from->u.launch.params != from->u.launch.inline_params) {
            to->u.launch.params = malloc(from->u.launch.bytes);
            if (!to->u.launch.params)
                return false;
            memcpy(to->u.launch.params, from->u.launch.params, from->u.launch.bytes);
        }
    }
    if (from->kind == SIM_OP_BATCH) {
        size_t bytes = from->u.batch.count * sizeof *from->u.batch.list;
        to->u.batch.list = malloc(bytes);
        if (!to->u.batch.list)
            return false;
        memcpy(to->u.batch.list, from->u.batch.list, bytes);
    }
    if (from->kind == SIM_OP_GRAPH)
        atomic_fetch_add(&from->u.program->refs, 1);
    return sim_graph_op_copied(to);
}

void sim_op_follow(const sim_op_t *op, const sim_context_t *context) {
    if (!sim_strict())
        return;
    // Something else may be in its place in memory by now.
    if (op->kind == SIM_OP_LAUNCH)
        sim_dangles(!sim_handle_is(op->u.launch.request.func, SIM_FUNCTION), "the function of a node has ended");
    if (op->kind == SIM_OP_RECORD_NODE || op->kind == SIM_OP_WAIT_NODE)
        sim_dangles(!sim_event_of(op->u.event_handle), "the event of a node has ended");
    sim_dangles(context && !context->active, "the context of a node has ended");
}

sim_graph_t *sim_graph_new(void) {
    sim_graph_t *graph = calloc(1, sizeof *graph);
    if (graph && !sim_handle_add(graph, SIM_GRAPH)) {
        free(graph);
        return NULL;
    }
    return graph;
}

void sim_node_delete(sim_node_t *node) {
    sim_dangles(node->graph->capture, "a node of a graph that a capture writes is destroyed");
    sim_handle_remove(node);
    list_remove(&node->graph->nodes, node);
    for (size_t i = 0; i < node->graph->nodes.count; i++)
        list_remove(&node->graph->nodes.items[i]->dependencies, node);
    if (node->child)
        sim_graph_delete(node->child);
    for (size_t i = 0; i < node->nbodies; i++)
        sim_graph_delete(node->bodies[i]);
    free(node->bodies);
    sim_op_discard(&node->op);
    free(node->dependencies.items);
    free(node->values);
    free(node);
}

void sim_graph_delete(sim_graph_t *graph) {
    sim_dangles(graph->capture, "a graph that a capture writes is destroyed");
    while (graph->nodes.count)
        sim_node_delete(graph->nodes.items[graph->nodes.count - 1]);
    for (size_t i = 0; i < graph->nusers; i++)
        sim_user_drop(graph->users[i].object, graph->users[i].count);
    sim_handle_remove(graph);
    free(graph->users);
    free(graph->conditions);
    free(graph->nodes.items);
    free(graph);
}

CUresult sim_node_new(sim_graph_t *graph, CUgraphNodeType type, const CUgraphNode *dependencies, size_t count,
                      const sim_op_t *op, sim_node_t **out) {
    sim_node_t *node = calloc(1, sizeof *node);
    CUresult result = node ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        sim_node_t *on = sim_node_of(dependencies[i]);
        if (!on || on->graph != graph)
            result = CUDA_ERROR_INVALID_VALUE;
        else if (!sim_list_add(&node->dependencies, on))
            result = CUDA_ERROR_OUT_OF_MEMORY;
        else if (node->dependencies.count != i + 1)
            result = CUDA_ERROR_INVALID_VALUE; // the same one twice
    }
    if (result == CUDA_SUCCESS && !sim_handle_add(node, SIM_GRAPH_NODE))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS &&
        !sim_grow(&graph->nodes.items, &graph->nodes.capacity, graph->nodes.count + 1, sizeof *graph->nodes.items)) {
        sim_handle_remove(node);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        if (node)
            free(node->dependencies.items);
        free(node);
        return result;
    }
    node->graph = graph;
    node->type = type;
    node->op = *op;
    if (op->kind == SIM_OP_LAUNCH && op->u.launch.params == op->u.launch.inline_params)
        node->op.u.launch.params = node->op.u.launch.inline_params;
    graph->nodes.items[graph->nodes.count++] = node;
    *out = node;
    return CUDA_SUCCESS;
}

static size_t place_of(const sim_graph_t *graph, const sim_node_t *node) {
    size_t i = 0;
    while (graph->nodes.items[i] != node)
        i++;
    return i;
}

sim_graph_t *sim_graph_clone(const sim_graph_t *graph, sim_node_t *owner) {
    sim_graph_t *clone = sim_graph_new();
    bool ok = clone != NULL;
    for (size_t i = 0; ok && i < graph->nodes.count; i++) {
        const sim_node_t *from = graph->nodes.items[i];
        sim_op_t op;
        sim_node_t *to = NULL;
        sim_op_follow(&from->op, from->context);
        ok = sim_op_copy(&op, &from->op) && sim_node_new(clone, from->type, NULL, 0, &op, &to) == CUDA_SUCCESS;
        if (!ok)
            break;
        to->original = from;
        to->params = from->params;
        to->context = from->context;
        memcpy(to->attributes, from->attributes, sizeof to->attributes);
        if (from->child)
            ok = (to->child = sim_graph_clone(from->child, to)) != NULL;
    }
    for (size_t i = 0; ok && i < graph->nodes.count; i++) {
        const sim_node_list_t *from = &graph->nodes.items[i]->dependencies;
        for (size_t k = 0; ok && k < from->count; k++)
            ok =
                sim_list_add(&clone->nodes.items[i]->dependencies, clone->nodes.items[place_of(graph, from->items[k])]);
    }
    for (size_t i = 0; ok && i < graph->nusers; i++) {
        ok = sim_grow(&clone->users, &clone->users_capacity, i + 1, sizeof *clone->users);
        if (ok) {
            clone->users[clone->nusers++] = graph->users[i];
            sim_user_hold(graph->users[i].object, graph->users[i].count);
        }
    }
    if (!ok && clone) {
        sim_graph_delete(clone);
        clone = NULL;
    }
    if (clone)
        clone->owner = owner;
    return clone;
}

// ---- Life --------------------------------------------------------------------------------------------------------

CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags) {
    SIM_ENTER();
    if (!phGraph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *graph = sim_graph_new();
    pthread_mutex_unlock(&sim.lock);
    *phGraph = (CUgraph)(void *)graph;
    return graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGraphDestroy(CUgraph hGraph) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *graph = sim_graph_of(hGraph);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (graph && !graph->owner)
        result = graph->capture ? CUDA_ERROR_ILLEGAL_STATE : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        sim_graph_delete(graph);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!phGraphClone)
        return result;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *graph = sim_graph_of(originalGraph);
    if (graph && (sim_graph_has_memory(graph) || sim_graph_has_conditions(graph))) {
        result = CUDA_ERROR_NOT_SUPPORTED;
    } else if (graph) {
        *phGraphClone = (CUgraph)(void *)sim_graph_clone(graph, NULL);
        result = *phGraphClone ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphNodeFindInClone(CUgraphNode *phNode, CUgraphNode hOriginalNode, CUgraph hClonedGraph) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *original = sim_node_of(hOriginalNode);
    sim_graph_t *graph = sim_graph_of(hClonedGraph);
    for (size_t i = 0; phNode && original && graph && i < graph->nodes.count; i++)
        if (graph->nodes.items[i]->original == original) {
            *phNode = (CUgraphNode)(void *)graph->nodes.items[i];
            result = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphDestroyNode(CUgraphNode hNode) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    sim_node_t *node = sim_node_of(hNode);
    bool memory = node && sim_graph_has_memory(node->graph);
    if (node && !memory)
        sim_node_delete(node);
    pthread_mutex_unlock(&sim.lock);
    return memory ? CUDA_ERROR_NOT_SUPPORTED : node ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Walking -----------------------------------------------------------------------------------------------------

// Writes up to *room entries and sets *room to their number, or only counts; past the end come NULL entries.
typedef struct {
    CUgraphNode *first, *second;
    size_t room, count;
} walk_t;

static void walk_add(walk_t *walk, sim_node_t *first, sim_node_t *second) {
    if (walk->first && walk->count < walk->room)
        walk->first[walk->count] = (CUgraphNode)(void *)first;
    if (walk->second && walk->count < walk->room)
        walk->second[walk->count] = (CUgraphNode)(void *)second;
    walk->count++;
}

static void walk_end(walk_t *walk, size_t *count) {
    if (!walk->first) {
        *count = walk->count;
        return;
    }
    for (size_t i = walk->count; i < walk->room; i++) {
        walk->first[i] = NULL;
        if (walk->second)
            walk->second[i] = NULL;
    }
    *count = walk->count < walk->room ? walk->count : walk->room;
}

static CUresult list_nodes(CUgraph handle, CUgraphNode *nodes, size_t *count, bool roots) {
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    walk_t walk = {.first = nodes, .room = *count};
    pthread_mutex_lock(&sim.lock);
    const sim_graph_t *graph = sim_graph_of(handle);
    for (size_t i = 0; graph && i < graph->nodes.count; i++)
        if (!roots || !graph->nodes.items[i]->dependencies.count)
            walk_add(&walk, graph->nodes.items[i], NULL);
    pthread_mutex_unlock(&sim.lock);
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    walk_end(&walk, count);
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes) {
    SIM_ENTER();
    return list_nodes(hGraph, nodes, numNodes, false);
}

CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes) {
    SIM_ENTER();
    return list_nodes(hGraph, rootNodes, numRootNodes, true);
}

static void plain_edges(CUgraphEdgeData *data, size_t count) {
    if (data)
        memset(data, 0, count * sizeof *data);
}

CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edgeData,
                            size_t *numEdges) {
    SIM_ENTER();
    if (!numEdges || !from != !to || (edgeData && !from)) // (580.159.04, measured)
        return CUDA_ERROR_INVALID_VALUE;
    walk_t walk = {.first = from, .second = to, .room = *numEdges};
    pthread_mutex_lock(&sim.lock);
    const sim_graph_t *graph = sim_graph_of(hGraph);
    for (size_t i = 0; graph && i < graph->nodes.count; i++)
        for (size_t k = 0; k < graph->nodes.items[i]->dependencies.count; k++)
            walk_add(&walk, graph->nodes.items[i]->dependencies.items[k], graph->nodes.items[i]);
    pthread_mutex_unlock(&sim.lock);
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    walk_end(&walk, numEdges);
    plain_edges(edgeData, *numEdges);
    return CUDA_SUCCESS;
}

CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges) {
    return cuGraphGetEdges_v2(hGraph, from, to, NULL, numEdges);
}

static CUresult neighbours(CUgraphNode handle, CUgraphNode *nodes, CUgraphEdgeData *data, size_t *count, bool before) {
    if (!count || (data && !nodes))
        return CUDA_ERROR_INVALID_VALUE;
    walk_t walk = {.first = nodes, .room = *count};
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(handle);
    for (size_t i = 0; node && before && i < node->dependencies.count; i++)
        walk_add(&walk, node->dependencies.items[i], NULL);
    for (size_t i = 0; node && !before && i < node->graph->nodes.count; i++) {
        sim_node_t *other = node->graph->nodes.items[i];
        for (size_t k = 0; k < other->dependencies.count; k++)
            if (other->dependencies.items[k] == node)
                walk_add(&walk, other, NULL);
    }
    pthread_mutex_unlock(&sim.lock);
    if (!node)
        return CUDA_ERROR_INVALID_VALUE;
    walk_end(&walk, count);
    plain_edges(data, *count);
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies, CUgraphEdgeData *edgeData,
                                       size_t *numDependencies) {
    SIM_ENTER();
    return neighbours(hNode, dependencies, edgeData, numDependencies, true);
}

CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies, size_t *numDependencies) {
    SIM_ENTER();
    return neighbours(hNode, dependencies, NULL, numDependencies, true);
}

CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes, CUgraphEdgeData *edgeData,
                                         size_t *numDependentNodes) {
    SIM_ENTER();
    return neighbours(hNode, dependentNodes, edgeData, numDependentNodes, false);
}

CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes, size_t *numDependentNodes) {
    SIM_ENTER();
    return neighbours(hNode, dependentNodes, NULL, numDependentNodes, false);
}

CUresult cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    if (node && type)
        *type = node->type;
    pthread_mutex_unlock(&sim.lock);
    return node && type ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Edges -------------------------------------------------------------------------------------------------------

static CUresult change_edges(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t count, bool add) {
    CUresult result = CUDA_SUCCESS;
    if (count && (!from || !to))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    const sim_graph_t *graph = sim_graph_of(hGraph);
    if (graph && !add && sim_graph_has_memory(graph))
        result = CUDA_ERROR_NOT_SUPPORTED;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        sim_node_t *a = sim_node_of(from[i]), *b = sim_node_of(to[i]);
        if (!graph || !a || !b || a == b || a->graph != graph || b->graph != graph) {
            result = CUDA_ERROR_INVALID_VALUE;
            break;
        }
        size_t before = b->dependencies.count;
        if (!add)
            list_remove(&b->dependencies, a);
        else if (!sim_list_add(&b->dependencies, a))
            result = CUDA_ERROR_OUT_OF_MEMORY;
        if (result == CUDA_SUCCESS && b->dependencies.count == before)
            result = CUDA_ERROR_INVALID_VALUE; // it exists already, or there is none
    }
    pthread_mutex_unlock(&sim.lock);
    return graph ? result : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                   const CUgraphEdgeData *edgeData, size_t numDependencies) {
    SIM_ENTER();
    (void)edgeData;
    return change_edges(hGraph, from, to, numDependencies, true);
}

CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                size_t numDependencies) {
    SIM_ENTER();
    return change_edges(hGraph, from, to, numDependencies, true);
}

CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                      const CUgraphEdgeData *edgeData, size_t numDependencies) {
    SIM_ENTER();
    (void)edgeData;
    return change_edges(hGraph, from, to, numDependencies, false);
}

CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                   size_t numDependencies) {
    SIM_ENTER();
    return change_edges(hGraph, from, to, numDependencies, false);
}
