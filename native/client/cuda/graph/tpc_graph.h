/*
 * Captures and graphs in the client: what other families ask while a stream captures, and what the graph files share.
 *
 * Any thread. The state of captures is known here exactly, because every capture begins and ends in this process and every
 * post waits for its result while there is one; the worker is asked only for what it alone knows. Nothing here is read from
 * memory that others can write.
 */
#ifndef TPC_GRAPH_H
#define TPC_GRAPH_H

#include "tpc.h"

/* ---- graph.c ---- */
/* Ends the handles of a graph, of its nodes and of the graphs inside them. */
void tpc_graph_forget(uint64_t graph);
/* The same for all graphs inside a node. */
void tpc_graph_forget_inside(uint64_t node);
/* Handles for up to `count` nodes that the worker may have to name; NULL when there are none left. */
struct tpc_fresh {
    uint64_t *handles;
    size_t count, used;
};
bool tpc_fresh_make(struct tpc_fresh *fresh, size_t count);
/* Notes that the worker gave out `handle`, in the order in which it did. */
void tpc_fresh_note(struct tpc_fresh *fresh, uint64_t handle, uint64_t graph);
/* Gives back what was not used. */
void tpc_fresh_end(struct tpc_fresh *fresh);
bool tpc_edges_plain(const CUgraphEdgeData *edges, size_t count);

/* ---- graph_copy.c ---- */
/* The copies that an executable graph made from this graph will have, NULL if none; refused when they cannot be done right. */
struct copies;
struct tpc_host_copy;
CUresult tpc_copies_learn(const char *name, CUgraph graph, struct copies **made);
void tpc_copies_free(struct copies *copies);
void tpc_copies_instantiated(CUgraphExec exec, struct copies *copies);
void tpc_copies_updated(CUgraphExec exec, struct copies *copies);
bool tpc_copies_has(CUgraphExec exec);
/* Whether it is known here what a node of an executable graph, or a child graph, copies now; refuses the change if not. */
CUresult tpc_copies_may_change(const char *name, CUgraphExec exec, CUgraphNode node, bool child);
/* The node of an executable graph has other sides now; takes over what is not NULL. */
CUresult tpc_copies_changed(CUgraphExec exec, CUgraphNode node, struct tpc_host_copy *const made[2]);
CUresult tpc_copies_before_launch(const char *name, CUgraphExec exec, CUstream stream);
void tpc_copies_behind_launch(const char *name, CUgraphExec exec, CUstream stream);

#endif
