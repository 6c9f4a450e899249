/*
 * What graph_copy.c and graph_mix.c share: the copies of one executable graph, as long as launches of it may be under way.
 */
#ifndef TPC_GRAPH_COPY_H
#define TPC_GRAPH_COPY_H

#include "tpc_copy.h"
#include "tpc_graph.h"

#include <tp_memory.h>

struct copies {
    _Atomic int references;
    size_t count;
    uint64_t graph; /* whose nodes `node` names; 0 when they are those of another than it was instantiated from */
    uint64_t mix;   /* 0: none of them has a host function */
    struct entry {
        struct tpc_host_copy *copy;
        uint64_t node;
        bool inside;   /* a child graph, which is the node */
        bool disabled; /* by cuGraphNodeSetEnabled */
        /* The host functions, by their places in the graph, behind a download, or before an upload. The first of them that runs finds what
         * the download brings, behind the last one the upload is read. With none a launch does it before and behind the graph. */
        unsigned int functions, seen;
        uint64_t which[TP_MIX_WORDS];
        CUstream beside;
    } list[];
};

/* ---- graph_copy.c ---- */
void tpc_copies_drop(struct copies *copies);

/* ---- graph_mix.c ---- */
/* Tells, in `which` and `functions`, which host functions each copy has to do with, and makes ready for them; refuses what cannot be
 * done right. */
struct tpg_graph_copies_out;
CUresult tpc_mix_learn(const char *name, const struct tpg_graph_copies_out *out, struct copies *copies);
/* It was not made after all. */
void tpc_mix_forget(struct copies *copies);

#endif
