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
/* For a copy between host memory and the device while captures are under way: refuses it, or lets it pass. */
CUresult tpc_capture_copy(const char *name, CUstream stream, const void *host, size_t size, bool sync);
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
