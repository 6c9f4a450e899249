/*
 * What the files about nodes share.
 *
 * Any thread; owns nothing. Included by graph_node.c and graph_node_copy.c.
 */
#ifndef TPC_GRAPH_NODE_H
#define TPC_GRAPH_NODE_H

#include "tpc_graph.h"

/* A node that is to be, in the graph `owner`. */
struct tpc_new_node {
    uint64_t owner, node;
    const CUgraphNode *dependencies;
    size_t count;
};

#define TPC_NEW_NODE(t)                                                                                                \
    .owner = (t)->owner, .node = (t)->node, .dependencies = (const uint64_t *)(const void *)(t)->dependencies,         \
    .dependencies_count = (t)->count

/* ---- graph_set.c ---- */
/* The parameters of a node of any kind are there, and what is reserved in them is 0. */
bool tpc_params_clean(const CUgraphNodeParams *params);

/* ---- graph_node_copy.c ---- */
/* What its graph has for the copy that the node was. */
CUresult tpc_node_gives_up(uint64_t node);

#endif
