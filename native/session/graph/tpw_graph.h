/*
 * Captures and graphs of the session, and what other families must ask while a stream captures.
 *
 * Executor thread only, except for the stubs of callback.c. What is captured belongs to the client: nothing of the
 * session's own (points, orderings, queries) may be put into a capturing stream, or into the legacy stream while a
 * blocking stream captures, because the driver would record it or end the capture. Handles and counts come from a hostile
 * client; natives come from the driver.
 */
#ifndef TPW_GRAPH_H
#define TPW_GRAPH_H

#include "tpw_session.h"

/* A capture under way, by the stream that began it. */
struct tpw_capture {
    struct tpw_capture *next;
    struct tpw_stream *origin;
    uint64_t id;
    uint64_t graph; /* the client's handle */
    bool into;      /* into a graph that the client had */
};

/* ---- capture.c ---- */
/* Whether the session may put something into the stream, or ask about it, without disturbing a capture. */
bool tpw_touchable(struct tpw_session *s, const struct tpw_stream *stream);
/* Ends the capture that the stream is in as an operation that is not allowed does, and returns the driver's error: for
 * operations that cannot be captured. 0 when the stream does not capture. */
int32_t tpw_refuse_capture(struct tpw_session *s, const struct tpw_stream *stream);
/* The same for the stream behind a handle that was looked up already; sets *error. */
void tpw_refuse_capturing(struct tpw_session *s, CUstream native, int32_t *error);
/* The same for every capture in the current context. */
int32_t tpw_refuse_captures(struct tpw_session *s);
/* The graph that the stream captures into, NULL if it does not. What does not tell it is an error: nobody may then go on as if it did
 * not capture. */
CUgraph tpw_capturing_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error);
void tpw_capture_stream_gone(struct tpw_session *s, const struct tpw_stream *stream);

/* ---- timeline.c ---- */
/* Puts a point into every stream with work that has none behind it, so that this work can be waited for during a capture
 * that the stream may become part of. */
void tpw_waits_settle(struct tpw_session *s);
/* Ends waits for an event with success, before it is recorded in a capture. */
void tpw_waits_end_event(struct tpw_session *s, uint64_t handle);

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
/* The natives of nodes, in scratch memory with as much room again behind them. */
CUgraphNode *tpw_nodes(struct tpw_session *s, const uint64_t *handles, size_t count, int32_t *error);
CUgraph tpw_graph(struct tpw_session *s, uint64_t handle, int32_t *error);
CUgraphExec tpw_exec(struct tpw_session *s, uint64_t handle, int32_t *error);
uint64_t tpw_graph_of_node(struct tpw_session *s, uint64_t node);
/* Names a graph that lives inside a child graph node. */
int32_t tpw_graph_inside(struct tpw_session *s, uint64_t graph, uint64_t node);
/* Whether a node of `into` may take over the graph: not one that is inside a node already, that a capture writes, or that
 * `into` is inside of. */
int32_t tpw_graph_may_move(struct tpw_session *s, uint64_t graph, uint64_t into);
uint64_t tpw_graph_handle(struct tpw_session *s, CUgraph native);
/* Forgets the graph with its nodes and the graphs inside them; the client does the same. */
void tpw_graph_forget(struct tpw_session *s, uint64_t graph);

/* ---- callback.c ---- */
/* Makes a host function that runs at every launch of the graph; it ends with the graph and what was made of it. */
int32_t tpw_host_repeated(struct tpw_session *s, CUgraph graph, uint64_t token, CUhostFn *function, void **user);
/* Counts host functions that a launch into the stream will raise. */
void tpw_host_expect(struct tpw_session *s, struct tpw_stream *stream, uint32_t count);
void tpw_host_never(struct tpw_session *s, uint32_t count); /* the launch failed */
/* How many launches of a graph of this session may raise any. */
bool tpw_host_any(const struct tpw_session *s);

/* ---- launch.c ---- */
/* The function or kernel behind a handle, if its parameters take exactly so many bytes. */
/* The graph inside a node of type graph; NULL without an error for a captured launch, which may have none to be asked. */
int32_t tpw_child_graph(struct tpw_session *s, CUgraphNode node, CUgraph *child);
struct tpw_object *tpw_launchable(struct tpw_session *s, uint64_t function, size_t bytes, int32_t *error);

#endif
