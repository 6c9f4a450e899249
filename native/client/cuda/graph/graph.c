/*
 * Graphs in the client: handles of graphs and nodes, lists, edges, destruction.
 *
 * Any thread. Handles are minted here, those of nodes with their graph as record, so that a graph's end finds them; the
 * worker gives out the minted ones to nodes that had none. What the worker answers is bounded by what was asked for.
 */
#include "tpc_graph.h"
#include "tpc_graph_node.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

#define PAGE 4096u /* nodes or edges asked for at once */

/* ---- handles ---- */

bool tpc_fresh_make(struct tpc_fresh *fresh, size_t count) {
    *fresh = (struct tpc_fresh){.handles = calloc(count, sizeof(uint64_t))};
    while (fresh->handles && fresh->count < count) {
        uint64_t handle = tpc_mint(TPG_GRAPHNODE);
        if (!handle) {
            break;
        }
        fresh->handles[fresh->count++] = handle;
    }
    if (fresh->count < count) {
        tpc_fresh_end(fresh);
        return false;
    }
    return true;
}

void tpc_fresh_note(struct tpc_fresh *fresh, uint64_t handle, uint64_t graph) {
    if (handle && fresh->used < fresh->count && fresh->handles[fresh->used] == handle) {
        tpc_set_record(TPG_GRAPHNODE, handle, (void *)(uintptr_t)graph);
        fresh->used++;
    }
}

void tpc_fresh_end(struct tpc_fresh *fresh) {
    void *unused;
    for (size_t i = fresh->used; i < fresh->count; i++) {
        tpc_unmint_alone(TPG_GRAPHNODE, fresh->handles[i], &unused);
    }
    free(fresh->handles);
    *fresh = (struct tpc_fresh){0};
}

CUresult tpc_cuGraphDestroyNode(CUgraphNode hNode) {
    TPC_TRY(tpc_sent_cuGraphDestroyNode(hNode));
    CUresult result = tpc_node_gives_up((uint64_t)(uintptr_t)hNode);
    tpc_unmint(TPG_GRAPHNODE, (uint64_t)(uintptr_t)hNode);
    return result;
}

/* ---- lists ---- */

bool tpc_edges_plain(const CUgraphEdgeData *edges, size_t count) {
    static const CUgraphEdgeData plain;
    for (size_t i = 0; edges && i < count; i++) {
        if (memcmp(&edges[i], &plain, sizeof plain) != 0) {
            return false;
        }
    }
    return true;
}

struct list {
    const char *name;
    uint32_t what;
    uint64_t subject, graph;
    CUgraphNode *nodes, *others; /* what is to be filled in; NULL: only the number is asked for */
    CUgraphEdgeData *edges;
    bool plain; /* the caller cannot be told of edges with data */
};

static CUresult page(const struct list *list, size_t first, size_t count, size_t *got, size_t *total) {
    struct tpc_fresh fresh = {0};
    if (count && !tpc_fresh_make(&fresh, list->what == TPC_LIST_EDGES ? 2 * count : count)) {
        return TPC_NO_HANDLES;
    }
    struct tpg_graph_list_in in = {.subject = list->subject,
                                   .first = first,
                                   .count = count,
                                   .what = list->what,
                                   .fresh = fresh.handles,
                                   .fresh_count = fresh.count};
    struct tpg_graph_list_out out;
    struct tp_reply reply;
    CUresult result = tpc_call_graph_list(list->name, &in, &out, &reply);
    *got = result == CUDA_SUCCESS && out.nodes_count < count ? out.nodes_count : result == CUDA_SUCCESS ? count : 0;
    *total = out.total;
    for (size_t i = 0; i < *got; i++) {
        uint64_t handle = tp_word_at(out.nodes, i);
        tpc_fresh_note(&fresh, handle, list->graph);
        list->nodes[first + i] = (CUgraphNode)(uintptr_t)handle;
        if (list->others && i < out.others_count) {
            handle = tp_word_at(out.others, i);
            tpc_fresh_note(&fresh, handle, list->graph);
            list->others[first + i] = (CUgraphNode)(uintptr_t)handle;
        }
        if (list->edges && i < out.edges_count) {
            list->edges[first + i] = out.edges[i];
        }
    }
    if (result == CUDA_SUCCESS && list->plain && !tpc_edges_plain(out.edges, out.edges_count)) {
        result = CUDA_ERROR_LOSSY_QUERY;
    }
    tpc_fresh_end(&fresh);
    tp_reply_free(&reply);
    return result;
}

static CUresult run(const struct list *list, size_t *count) {
    size_t at = 0, got = 0, total = 0;
    if (!count || (list->edges && !list->nodes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!list->nodes) {
        return page(list, 0, 0, &got, count);
    }
    while (at < *count) {
        TPC_TRY(page(list, at, *count - at < PAGE ? *count - at : PAGE, &got, &total));
        at += got;
        if (!got || at >= total) {
            break;
        }
    }
    for (size_t i = at; i < *count; i++) {
        list->nodes[i] = NULL;
        if (list->others) {
            list->others[i] = NULL;
        }
    }
    *count = at;
    return CUDA_SUCCESS;
}

CUresult tpc_graph_list(const char *name, uint32_t what, CUgraph graph, CUgraphNode *nodes, CUgraphNode *others,
                        CUgraphEdgeData *edges, size_t *count) {
    TPC_CHECK_HANDLE(GRAPH, graph, false);
    if (what == TPC_LIST_EDGES && !nodes != !others) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct list list = {.name = name,
                        .what = what,
                        .subject = (uint64_t)(uintptr_t)graph,
                        .graph = (uint64_t)(uintptr_t)graph,
                        .nodes = nodes,
                        .others = others,
                        .edges = edges,
                        .plain = what == TPC_LIST_EDGES && !edges};
    return run(&list, count);
}

CUresult tpc_node_list(const char *name, uint32_t what, CUgraphNode node, CUgraphNode *nodes, CUgraphEdgeData *edges,
                       size_t *count) {
    TPC_CHECK_HANDLE(GRAPHNODE, node, false);
    uint64_t subject = (uint64_t)(uintptr_t)node;
    struct list list = {.name = name,
                        .what = what,
                        .subject = subject,
                        .graph = (uint64_t)(uintptr_t)tpc_record(TPG_GRAPHNODE, subject),
                        .nodes = nodes,
                        .edges = edges,
                        .plain = !edges};
    return run(&list, count);
}

/* ---- edges ---- */

CUresult tpc_cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                       const CUgraphEdgeData *edgeData, size_t numDependencies) {
    return edgeData && numDependencies ? tpc_sent_cuGraphAddDependencies_v2(hGraph, from, to, edgeData, numDependencies)
                                       : tpc_cuGraphAddDependencies(hGraph, from, to, numDependencies);
}

CUresult tpc_cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                          const CUgraphEdgeData *edgeData, size_t numDependencies) {
    return edgeData && numDependencies
               ? tpc_sent_cuGraphRemoveDependencies_v2(hGraph, from, to, edgeData, numDependencies)
               : tpc_cuGraphRemoveDependencies(hGraph, from, to, numDependencies);
}
