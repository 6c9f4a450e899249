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
/* Lists of a graph and of a node, which the functions that give them are made by (api/, "by"). */
enum {
    TPC_LIST_NODES,
    TPC_LIST_ROOTS,
    TPC_LIST_EDGES,
    TPC_LIST_DEPENDENCIES,
    TPC_LIST_DEPENDENTS
}; /* as in the session */
CUresult tpc_graph_list(const char *name, uint32_t what, CUgraph graph, CUgraphNode *nodes, CUgraphNode *others,
                        CUgraphEdgeData *edges, size_t *count);
CUresult tpc_node_list(const char *name, uint32_t what, CUgraphNode node, CUgraphNode *nodes, CUgraphEdgeData *edges,
                       size_t *count);
bool tpc_edges_plain(const CUgraphEdgeData *edges, size_t count);

/* ---- graph_capture.c, graph_exec.c, graph_set.c ---- */
/* A capture, into a graph of the program unless that is NULL; an executable graph, `detailed` by the driver's form that says what was
 * wrong, where; the parameters of a node of any kind, or of one in an executable graph. */
CUresult tpc_capture_begin(const char *name, CUstream stream, CUstreamCaptureMode mode, CUgraph into,
                           const CUgraphNode *dependencies, const CUgraphEdgeData *edges, size_t count);
CUresult tpc_capture_told(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                          const CUgraphNode **dependencies, const CUgraphEdgeData **edges, size_t *count);
CUresult tpc_graph_instantiate(const char *name, CUgraphExec *out_exec, CUgraph graph, uint64_t flags, CUstream upload,
                               bool detailed, CUgraphNode *error_node, CUgraphInstantiateResult *why);
CUresult tpc_node_set(CUgraphExec exec, CUgraphNode node, const CUgraphNodeParams *params);
/* Before the kernel of a node of an executable graph is changed, and behind that (api/, "check" and "noted"). */
CUresult tpc_exec_node_asks(CUgraphExec exec, CUgraphNode node);
void tpc_exec_node_set(CUgraphExec exec, CUgraphNode node);
/* A new node of a kind that no line of api/ describes, and a host function for one that there is, or for one in an executable graph. */
CUresult tpc_node_add(const char *name, CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                      CUgraphNodeParams *params);
CUresult tpc_node_set_host(const char *name, CUgraphExec exec, CUgraphNode node, const CUDA_HOST_NODE_PARAMS *params);

/* ---- graph_copy.c ---- */
/* The copies that an executable graph made from this graph will have, NULL if none; refused when they cannot be done right. */
struct copies;
struct tpc_host_copy;
CUresult tpc_copies_learn(const char *name, CUgraph graph, struct copies **made);
void tpc_copies_free(struct copies *copies);
/* Those that host functions see to: pairs of a buffer and the pinned memory in its place, as the worker is told of them. */
const uint64_t *tpc_copies_mixed(const struct copies *copies, size_t *count);
void tpc_copies_instantiated(CUgraphExec exec, struct copies *copies);
void tpc_copies_updated(CUgraphExec exec, struct copies *copies);
bool tpc_copies_has(CUgraphExec exec);
/* Whether it is known here what a node of an executable graph, or a child graph, copies now; refuses the change if not. */
CUresult tpc_copies_may_change(const char *name, CUgraphExec exec, CUgraphNode node, bool child);
/* Refuses where host functions see to copies: launches under way, and the session, go by what the nodes were. */
CUresult tpc_copies_fixed(const char *name, CUgraphExec exec);
/* The node of an executable graph has other sides now; takes over what is not NULL. */
CUresult tpc_copies_changed(CUgraphExec exec, CUgraphNode node, struct tpc_host_copy *const made[2]);
CUresult tpc_copies_before_launch(const char *name, CUgraphExec exec, CUstream stream);
void tpc_copies_behind_launch(const char *name, CUgraphExec exec, CUstream stream);

#endif
