/*
 * What the files about nodes share: where parameters go.
 *
 * Any thread; owns nothing. Included by graph_node.c and graph_node_copy.c.
 */
#ifndef TPC_GRAPH_NODE_H
#define TPC_GRAPH_NODE_H

#include "tpc_graph.h"

/* Where parameters go: a new node, a node of an executable graph, a node. */
struct tpc_node_target {
    uint64_t owner, node;
    const CUgraphNode *dependencies;
    size_t count;
};

#define TPC_TARGET(t)                                                                                                  \
    .owner = (t)->owner, .node = (t)->node, .dependencies = (const uint64_t *)(const void *)(t)->dependencies,         \
    .dependencies_count = (t)->count

/* ---- graph_node.c ---- */
CUresult tpc_node_in_exec(struct tpc_node_target *t, CUgraphExec exec, CUgraphNode node);
CUresult tpc_node_itself(struct tpc_node_target *t, CUgraphNode node);
CUresult tpc_node_child(const char *name, const struct tpc_node_target *t, CUgraph child, bool move);

/* ---- graph_set.c ---- */
/* The parameters of a node of any kind are there, and what is reserved in them is 0. */
bool tpc_params_clean(const CUgraphNodeParams *params);

/* ---- graph_node_copy.c ---- */
CUresult tpc_node_copy(const char *name, const struct tpc_node_target *t, const CUDA_MEMCPY3D *p, CUcontext context);
/* What its graph has for the copy that the node was. */
CUresult tpc_node_gives_up(uint64_t node);

#endif
