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

/* ---- event.c ---- */
/* What an event that was last recorded in a capture is answered, whatever is asked of it; success for all others. */
CUresult tpc_event_captured(const char *name, CUevent event);

/* ---- capture.c ---- */
/* For a call that the driver refuses while captures are under way, by their modes and the calling thread's: refuses it,
 * which ends those captures, or lets it pass. */
CUresult tpc_capture_unsafe(const char *name);
#define TPC_CAPTURE_UNSAFE(name)                                                                                       \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {                                  \
            CUresult unsafe = tpc_capture_unsafe(name);                                                                \
            if (unsafe != CUDA_SUCCESS) {                                                                              \
                return unsafe;                                                                                         \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)
/* For a copy between host memory and the device while captures are under way: refuses it, or lets it pass; *graph, unless
 * it is NULL then, is one that can only have the copy by a buffer (tpc_capture_host). */
CUresult tpc_capture_copy(const char *name, CUstream stream, const void *host, size_t size, bool sync, CUgraph *graph);
/* For an operation that cannot be captured: refuses it if the stream captures, which ends the capture. */
CUresult tpc_capture_refuse(const char *name, CUstream stream);
/* Whether a graph may read and write the host memory at every launch, and the device address that it then has. */
bool tpc_host_in_graph(const void *host, size_t size, uint64_t *device);
/* True when the stream captures. */
CUresult tpc_capture_status(CUstream stream, CUstreamCaptureStatus *status);
void tpc_capture_stream_gone(CUstream stream);

/* ---- graph.c ---- */
/* Ends the handles of a graph, of its nodes and of the graphs inside them. */
void tpc_graph_forget(uint64_t graph);
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
/* The program's side of a copy: its first byte, and the box; and how the program put it. */
struct tpc_host_side {
    unsigned char *first;
    uint64_t pitch, slice, width, height, depth;
    CUmemorytype type;
    uint64_t base, x, y, z, told_pitch, told_height;
};
/* Bytes from the first to the last one. */
static inline uint64_t tpc_side_span(const struct tpc_host_side *side) {
    return side->slice * (side->depth - 1) + side->pitch * (side->height - 1) + side->width;
}
static inline struct tpc_host_side tpc_packed_side(const void *first, uint64_t size) {
    return (struct tpc_host_side){.first = (unsigned char *)(uintptr_t)first,
                                  .pitch = size,
                                  .slice = size,
                                  .width = size,
                                  .height = 1,
                                  .depth = 1};
}
struct tpc_host_copy;
/* A buffer that stands for the program's memory in one node. The caller has it until it gives it to one of the next two. */
CUresult tpc_host_copy_make(const char *name, const struct tpc_host_side *side, bool up, struct tpc_host_copy **out);
/* It ends with the graph and what was made of it; or, on failure, now. */
CUresult tpc_host_copy_keep(struct tpc_host_copy *copy, CUgraph graph);
void tpc_host_copy_drop(struct tpc_host_copy *copy);
uint64_t tpc_host_copy_address(const struct tpc_host_copy *copy);
/* What the program said of the side of a node that has this buffer; false when it is none. */
bool tpc_host_copy_side(uint64_t address, struct tpc_host_side *side);
/* The copies that an executable graph made from this graph will have, NULL if none; refused when they cannot be done right. */
struct copies;
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

/* ---- graph_node.c ---- */
void tpc_node_forget(uint64_t node);

/* ---- callback.c ---- */
/* Makes a token for a host function that runs at every launch of a graph. 0 without memory. */
uint64_t tpc_host_lasting(CUhostFn function, void *user);
/* The worker did not take the token. */
void tpc_host_refused(uint64_t token);

/* ---- launch.c ---- */
/* Checks the shape and finds the parameter block, `block` or the caller's own. */
#define TPC_BLOCK_LIMIT 32764u /* bytes of parameters that a kernel can take */
CUresult tpc_kernel_block(struct tpc_kernel *kernel, const CUDA_KERNEL_NODE_PARAMS *params, unsigned char *block,
                          const void **source);

#endif
