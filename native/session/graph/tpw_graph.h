/*
 * Graphs of the client: nodes and their names, what executable graphs hold, what nodes point at.
 *
 * Executor thread only. Handles and counts come from a hostile client; natives come from the driver.
 */
#ifndef TPW_GRAPH_H
#define TPW_GRAPH_H

#include "tpw_stream.h"

/* ---- graph.c ---- */
/* Child graphs inside child graphs: the session goes through them by recursion, and so may the driver. */
#define TPW_GRAPH_DEPTH 32u
/* Handles that the client minted for nodes that it will see for the first time. */
struct tpw_fresh {
    const uint64_t *handles;
    size_t count, used;
};
/* The client's handle of a node of `graph`; 0 when it has none and there is no fresh one left. */
uint64_t tpw_node_name(struct tpw_session *s, const struct tp_frame *frame, CUgraphNode native, uint64_t graph,
                       struct tpw_fresh *fresh);
/* The same for a node that an error names, wherever inside `graph` it is: without a name it is told by the node of `graph` that
 * it lies in, because a name has to end with the graph that its node is really of. */
uint64_t tpw_node_blamed(struct tpw_session *s, const struct tp_frame *frame, CUgraphNode native, uint64_t graph,
                         struct tpw_fresh *fresh);
CUgraphNode tpw_node(struct tpw_session *s, uint64_t handle, int32_t *error);
CUgraph tpw_graph(struct tpw_session *s, uint64_t handle, int32_t *error);
uint64_t tpw_graph_of_node(struct tpw_session *s, uint64_t node);
/* The graph is one that a conditional node made: what it points at is kept by the graph around it. */
int32_t tpw_graph_body(struct tpw_session *s, uint64_t graph, uint64_t node);
/* Whether a node of `into` may take over the graph: not one that is inside a node already, that a capture writes, or that
 * `into` is inside of. */
int32_t tpw_graph_may_move(struct tpw_session *s, uint64_t graph, uint64_t into);
/* How many graphs a graph lies in. */
unsigned tpw_graph_depth(struct tpw_session *s, uint64_t graph);
/* The next graph that a node has inside, with *at from 0: that of a child graph node, those that a conditional node runs. NULL
 * when there is none left, or with an error. */
CUgraph tpw_inner_graph(struct tpw_session *s, CUgraphNode node, CUgraphNodeType type, uint32_t *at, int32_t *error);
/* A walk through the nodes of a graph and of the graphs inside them: all are looked at until one is found, or with an error. */
struct tpw_walk {
    int32_t (*look)(struct tpw_session *s, struct tpw_walk *walk, CUgraphNode node, CUgraphNodeType type);
    void *what;             /* is looked for, or told */
    CUgraphNode top, found; /* the node of the graph itself that is looked at or into */
    unsigned depth, deepest;
};
int32_t tpw_walk(struct tpw_session *s, CUgraph graph, struct tpw_walk *walk);
/* tpw_made and tpw_told for an object that ends with `owner`: a node with its graph. */
int32_t tpw_made_in(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                    uint64_t native, uint64_t owner, int32_t error);
int32_t tpw_told_in(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                    uint64_t native, uint64_t owner, int32_t error, uint64_t *told);

/* ---- graph_capture.c ---- */
/* The graph that a stream captures into, by its handle; 0 if it does not. */
uint64_t tpw_captured_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error);

/* ---- hold.c ---- */
/* What a graph is to point at stays in the driver as long as that may follow it; `by` is its handle, that of a node of it, of
 * an executable graph or of a stream, which may capture; or 0: nobody keeps it. */
void tpw_keep(struct tpw_session *s, const struct tp_frame *frame, uint64_t by, uint32_t kind, uint64_t handle,
              int32_t *error);
/* The context behind a handle, or the current one for NULL; kept by a graph. */
CUcontext tpw_context_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, uint64_t by,
                         int32_t *error);
/* Several, each once, with one use of each. */
struct tpw_keeps {
    struct tpw_kept **items;
    size_t count, capacity;
};

/* Makes the graph of the driver a user of it, by an object that is told. */
int32_t tpw_keep_in_graph(struct tpw_session *s, CUgraph graph, struct tpw_kept *kept, CUuserObject *made);
int32_t tpw_keep_in_list(struct tpw_keeps *list, struct tpw_kept *kept);
/* Lets go of all of them once everything that is queued now is done: a launch may be under way. */
void tpw_keeps_drop(struct tpw_session *s, struct tpw_keeps *list);
/* ---- what a node is to point at, before it does; `holder` is the handle of its graph, or of an executable graph ---- */
int32_t tpw_hold(struct tpw_session *s, uint64_t holder, struct tpw_kept *kept); /* graph.c */
/* The holder by the graph, executable graph or node that a call names. */
uint64_t tpw_holder(struct tpw_session *s, uint64_t by);
int32_t tpw_hold_object(struct tpw_session *s, uint64_t holder, uint32_t kind, uint64_t handle);
/* A function or kernel: its image, and the context that a function is of. */
int32_t tpw_hold_function(struct tpw_session *s, uint64_t holder, const struct tpw_object *function);

/* ---- graph_memory.c ---- */
/* What launches of an executable graph take for its memory nodes: bytes on each device. */
struct tpw_need {
    uint64_t bytes[TPW_MAX_DEVICES];
    uint64_t taken; /* it was launched after so many trims less one, and has what it takes */
};
/* NULL for a graph without memory nodes. */
int32_t tpw_graph_need(struct tpw_session *s, CUgraph graph, struct tpw_need **need);
/* Before a launch or an upload: the limit refuses it; and behind it, with the driver's answer. NULL needs nothing. */
int32_t tpw_need_charge(struct tpw_session *s, const struct tpw_need *need);
void tpw_need_taken(struct tpw_session *s, struct tpw_need *need, int32_t error);
void tpw_need_end(struct tpw_session *s, struct tpw_need *need);

/* ---- graph_node.c ---- */
/* Whether a graph may become a child: it has not too many levels. */
int32_t tpw_graph_fits(struct tpw_session *s, CUgraph child);

/* ---- graph_mix.c ---- */
/* Around the making, or the update, of an executable graph: copies with a buffer of the pairs use the other memory of the pair, and its
 * host functions tell which of these they have to do with. Then the graph is as it was. Without pairs the mix is NULL. */
int32_t tpw_mix_begin(struct tpw_session *s, CUgraph graph, const uint64_t *pairs, size_t count, struct tpw_mix **mix);
int32_t tpw_mix_end(struct tpw_session *s, CUgraph graph, struct tpw_mix *mix, int32_t error);
/* While it begins: a copy with the buffer of a pair, behind these host functions; and the next function, behind these copies. */
int32_t tpw_mix_side(struct tpw_mix *mix, CUgraphNode node, const uint64_t *pair, bool up, const uint64_t *hosts);
int32_t tpw_mix_host(struct tpw_session *s, struct tpw_mix *mix, CUgraphNode node, uint32_t place,
                     const uint64_t *copies);

/* ---- graph_copies.c ---- */
/* Calls these for all nodes of the graph. */
int32_t tpw_copies_mix(struct tpw_session *s, CUgraph graph, uint64_t *pairs, size_t count, struct tpw_mix *mix);

/* ---- graph_exec.c ---- */
int32_t tpw_exec_hold(struct tpw_session *s, uint64_t exec, struct tpw_kept *kept);

#endif
