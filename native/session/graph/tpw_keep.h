/*
 * Who keeps what alive: images, contexts and events of the driver that nodes of graphs point at.
 *
 * The driver does not count them. A node whose module, library, context or event has ended points at nothing, and the driver
 * follows it (580.159: cloning such a graph ends the process). So what the client ends stays in the driver until nothing
 * points at it; for the client it is gone at once, with its handles and its memory. Executor thread only.
 */
#ifndef TPW_KEEP_H
#define TPW_KEEP_H

#include "tpw_session.h"

/* What a node points at. Its users are graphs (by a user object of the driver, which clones, child graphs, executable graphs
 * and launches under way inherit, however deep), executable graphs with a changed node, and whatever lies inside it. */
struct tpw_kept {
    struct tpw_kept *inside; /* the context of a module or an event; NULL: none that could end */
    uint64_t native;
    CUcontext context; /* of the same */
    uint32_t kind, users;
    bool over; /* the client has ended it: it ends with its last user */
};

/* Several, each once, with one use of each. */
struct tpw_keeps {
    struct tpw_kept **items;
    size_t count, capacity;
};

/* ---- keep.c ---- */
/* The kept of an object; NULL without an error for one that never ends, such as a primary context. */
struct tpw_kept *tpw_kept_of(struct tpw_session *s, struct tpw_object *object, int32_t *error);
/* Makes the graph of the driver a user of it. */
int32_t tpw_keep_in_graph(struct tpw_session *s, CUgraph graph, struct tpw_kept *kept);
int32_t tpw_keep_in_list(struct tpw_keeps *list, struct tpw_kept *kept);
/* Lets go of all of them once everything that is queued now is done: a launch may be under way. */
void tpw_keeps_drop(struct tpw_session *s, struct tpw_keeps *list);
/* One user less; what is over then ends. */
void tpw_let_go(struct tpw_session *s, struct tpw_kept *kept);
/* The client ends an object, or its context does: true if it is kept, and the driver's is not to be touched. */
bool tpw_kept_on(struct tpw_object *object);
/* The same for a kept that its object no longer has. */
bool tpw_kept_over(struct tpw_kept *kept);
/* The driver's is gone. */
void tpw_kept_ended(struct tpw_session *s, struct tpw_kept *kept);

/* ---- who ends which kind ---- */
void tpw_image_unkept(struct tpw_session *s, struct tpw_kept *kept);   /* module.c */
void tpw_context_unkept(struct tpw_session *s, struct tpw_kept *kept); /* context.c */

/* ---- what a node is to point at, before it does; `holder` is the handle of its graph, or of an executable graph ---- */
int32_t tpw_hold(struct tpw_session *s, uint64_t holder, struct tpw_kept *kept); /* graph.c */
/* The holder by the graph, executable graph or node that a call names. */
uint64_t tpw_holder(struct tpw_session *s, uint64_t by);
int32_t tpw_hold_object(struct tpw_session *s, uint64_t holder, uint32_t kind, uint64_t handle);
/* A function or kernel: its image, and the context that a function is of. */
int32_t tpw_hold_function(struct tpw_session *s, uint64_t holder, const struct tpw_object *function);
/* capture.c: the graph that a stream captures into, by its handle; 0 if it does not. */
uint64_t tpw_captured_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error);

/* ---- graph_exec.c ---- */
int32_t tpw_exec_hold(struct tpw_session *s, uint64_t exec, struct tpw_kept *kept);
/* Ends the executable graphs that were made in a context, and what others have in it, before it does. */
void tpw_execs_end(struct tpw_session *s, uint32_t context);

#endif
