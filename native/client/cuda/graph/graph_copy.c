/*
 * Copies of graphs between device memory and memory of this program that the GPU does not reach: which of them an executable
 * graph has, and what a launch does for them.
 *
 * Any thread. A node has a buffer (copy/copy_node.c). A launch uploads what the program's memory holds into the buffers that
 * nodes read, and downloads from those that nodes write behind itself in the stream; whoever waits for the stream waits for
 * these downloads as for all others. The list of an executable graph is changed by calls that the program may not make while
 * it launches that graph.
 */
#include "tpc_copy.h"
#include "tpc_graph.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_memory.h>

#define FEW 16u /* names for the nodes of a graph: usually it has fewer copies */

/* The record of an executable graph that has such copies. */
struct copies {
    size_t count;
    uint64_t graph;  /* whose nodes `node` names; 0 when they are those of another than it was instantiated from */
    uint64_t *pairs; /* of those that are mixed: the buffer and the pinned memory in its place */
    size_t mixed;
    struct entry {
        struct tpc_host_copy *copy;
        uint64_t node;
        bool inside;   /* a child graph, which is the node */
        bool disabled; /* by cuGraphNodeSetEnabled */
        bool mixed;    /* its host functions see to it (graph_mix.c), and no launch does */
    } list[];
};

static uint64_t bytes(const struct tpc_host_side *side) { return side->width * side->height * side->depth; }

/* ---- what an executable graph copies ---- */

static void copies_free(struct copies *copies) {
    for (size_t i = 0; copies && i < copies->count; i++) {
        tpc_host_copy_drop(copies->list[i].copy);
    }
    free(copies ? copies->pairs : NULL);
    free(copies);
}

static struct copies *copies_of(uint64_t exec) { return tpc_record(TPG_GRAPHEXEC, exec); }

static void put_copies(uint64_t exec, struct copies *copies) {
    struct copies *before = copies_of(exec);
    tpc_set_record(TPG_GRAPHEXEC, exec, copies);
    copies_free(before);
}

static bool meet(const struct tpc_host_side *a, const struct tpc_host_side *b) {
    uint64_t a_size = tpc_side_span(a), b_size = tpc_side_span(b);
    uint64_t x = (uint64_t)(uintptr_t)a->first, y = (uint64_t)(uintptr_t)b->first;
    return x < y ? y - x < a_size : x - y < b_size;
}

/* A launch, or a host function, reads and writes the program's memory: an upload behind a download of the same memory, with no function
 * between, would see the wrong bytes. Of very many copies it is not known what stands between, nor behind which functions they do. */
static CUresult in_order(const char *name, const struct copies *copies, const struct tpg_graph_copies_out *out) {
    bool wrong = out->late != 0;
    for (size_t i = 0; i < copies->count && !wrong; i++) {
        const struct tpc_host_copy *copy = copies->list[i].copy;
        unsigned int order;
        memcpy(&order, out->orders + i, sizeof order);
        for (size_t j = 0; copy->up && (order & TP_AFTER_DOWNLOAD) && j < copies->count && !wrong; j++) {
            const struct tpc_host_copy *other = copies->list[j].copy;
            uint64_t open = UINT64_MAX;
            if (out->open_count == out->total * TP_MIX_WORDS && j < TP_MIX_MAX) {
                open = tp_word_at(out->open, i * TP_MIX_WORDS + j / 64);
            }
            wrong = !other->up && (open >> j % 64 & 1) && meet(&copy->side, &other->side);
        }
    }
    if (wrong) {
        tp_log(
            TP_ERROR,
            "%s: not supported over this connection: the graph copies into this program's memory and from there again "
            "with no host function between, or has host functions and more than %u such copies",
            name, TP_MIX_MAX);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* Whether such a copy has run, nobody here would know, and its buffer's bytes would be taken for those that it copied. */
static CUresult unconditional(const char *name, const struct tpg_graph_copies_out *out, const struct copies *copies) {
    for (size_t i = 0; i < copies->count; i++) {
        unsigned int order;
        memcpy(&order, out->orders + i, sizeof order);
        if (!copies->list[i].copy->up && (order & TP_CONDITIONAL)) {
            tp_log(
                TP_ERROR,
                "%s: a conditional node copies into this program's memory, which is not supported over this connection",
                name);
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    return CUDA_SUCCESS;
}

static CUresult make_list(const char *name, const struct tpg_graph_copies_out *out, uint64_t graph,
                          struct copies **made) {
    struct copies *copies = calloc(1, sizeof *copies + out->total * sizeof *copies->list);
    if (!copies) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    copies->graph = graph;
    copies->pairs = calloc(out->total + 1, 2 * sizeof *copies->pairs);
    for (size_t i = 0; i < out->total; i++) {
        struct entry *entry = &copies->list[copies->count];
        unsigned int order;
        entry->node = tp_word_at(out->nodes, i);
        memcpy(&order, out->orders + i, sizeof order);
        entry->inside = (order & TP_INSIDE) != 0;
        entry->mixed = (order & TP_MIXED) != 0;
        entry->copy = tpc_host_copy_hold(tp_word_at(out->addresses, i));
        if (!entry->copy) { /* its last graph ends in another thread */
            copies_free(copies);
            return CUDA_ERROR_INVALID_VALUE;
        }
        copies->count++;
    }
    CUresult result = unconditional(name, out, copies);
    result = result ? result : in_order(name, copies, out);
    result = result || copies->pairs ? result : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < copies->count && result == CUDA_SUCCESS; i++) {
        if (copies->list[i].mixed) {
            result = tpc_host_copy_pin(name, copies->list[i].copy);
            copies->pairs[2 * copies->mixed] = copies->list[i].copy->address;
            copies->pairs[2 * copies->mixed++ + 1] = copies->list[i].copy->pinned;
        }
    }
    if (result != CUDA_SUCCESS) {
        copies_free(copies);
        return result;
    }
    *made = copies;
    return CUDA_SUCCESS;
}

CUresult tpc_copies_learn(const char *name, CUgraph graph, struct copies **made) {
    struct tpg_graph_copies_in in = {.graph = (uint64_t)(uintptr_t)graph};
    CUresult result = CUDA_SUCCESS;
    *made = NULL;
    if (TP_LIKELY(!atomic_load_explicit(&tpc_host_copies, memory_order_relaxed))) {
        return CUDA_SUCCESS;
    }
    uint64_t *buffers = tpc_host_copy_addresses(&in.buffers_count);
    in.buffers = buffers;
    bool again = buffers != NULL;
    result = buffers ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t names = FEW; again;) {
        struct tpg_graph_copies_out out;
        struct tpc_fresh fresh;
        struct tp_reply reply;
        again = false;
        if (!tpc_fresh_make(&fresh, names)) {
            result = TPC_NO_HANDLES;
            break;
        }
        in.fresh = fresh.handles;
        in.fresh_count = fresh.count;
        result = tpc_call_graph_copies(name, &in, &out, &reply);
        bool whole = result == CUDA_SUCCESS && out.nodes_count == out.total && out.addresses_count == out.total &&
                     out.orders_count == out.total;
        for (size_t i = 0; whole && i < out.total; i++) {
            const uint64_t node = tp_word_at(out.nodes, i);
            tpc_fresh_note(&fresh, node, in.graph);
            again = again || !node;
        }
        if (result == CUDA_SUCCESS && !whole) {
            tp_log(TP_ERROR, "%s: %llu copies of one graph between the device and this program's memory are too many",
                   name, (unsigned long long)out.total);
            result = CUDA_ERROR_NOT_SUPPORTED;
        }
        again = again && names == FEW; /* the second time there are enough */
        names = (size_t)out.total;
        if (result == CUDA_SUCCESS && !again && out.total) {
            result = make_list(name, &out, in.graph, made);
        }
        tpc_fresh_end(&fresh);
        tp_reply_free(&reply);
    }
    free(buffers);
    return result;
}

void tpc_copies_free(struct copies *copies) { copies_free(copies); }

const uint64_t *tpc_copies_mixed(const struct copies *copies, size_t *count) {
    *count = copies ? 2 * copies->mixed : 0;
    return copies ? copies->pairs : NULL;
}

CUresult tpc_copies_fixed(const char *name, CUgraphExec exec) {
    const struct copies *copies = copies_of((uint64_t)(uintptr_t)exec);
    if (TP_LIKELY(!copies || !copies->mixed)) {
        return CUDA_SUCCESS;
    }
    tp_log(TP_ERROR,
           "%s: the executable graph has host functions between copies with this program's memory; changing such nodes "
           "one by one is not supported over this connection",
           name);
    return CUDA_ERROR_NOT_SUPPORTED;
}

void tpc_copies_instantiated(CUgraphExec exec, struct copies *copies) {
    if (copies) {
        put_copies((uint64_t)(uintptr_t)exec, copies);
    }
}

void tpc_copies_updated(CUgraphExec exec, struct copies *copies) {
    const uint64_t handle = (uint64_t)(uintptr_t)exec;
    const struct copies *before = copies_of(handle);
    for (size_t i = 0; copies && i < copies->count; i++) {
        for (size_t j = 0; before && j < before->count; j++) {
            struct entry *entry = &copies->list[i];
            entry->disabled = entry->disabled || (before->list[j].node == entry->node && before->list[j].disabled);
        }
    }
    if (copies && (!before || before->graph != copies->graph)) {
        copies->graph = 0;
    }
    if (copies || before) {
        put_copies(handle, copies);
    }
}

/* ---- changes of an executable graph ---- */

static bool is_inside_child(uint64_t node) {
    uint64_t graph = (uint64_t)(uintptr_t)tpc_record(TPG_GRAPHNODE, node);
    return graph && tpc_record(TPG_GRAPH, graph) != NULL;
}

CUresult tpc_copies_may_change(const char *name, CUgraphExec exec, CUgraphNode node, bool child) {
    const struct copies *copies = copies_of((uint64_t)(uintptr_t)exec);
    const uint64_t handle = (uint64_t)(uintptr_t)node;
    bool unknown = copies && !copies->graph;
    for (size_t i = 0; copies && i < copies->count && !unknown; i++) {
        unknown = copies->list[i].inside && (child ? copies->list[i].node == handle : is_inside_child(handle));
    }
    if (unknown) {
        tp_log(
            TP_ERROR,
            "%s: the executable graph copies between the device and this program's memory %s; changing such nodes one "
            "by one is not supported over this connection",
            name, copies->graph ? "inside a child graph" : "and was updated from another graph");
    }
    return unknown ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
}

bool tpc_copies_has(CUgraphExec exec) { return copies_of((uint64_t)(uintptr_t)exec) != NULL; }

CUresult tpc_copies_changed(CUgraphExec exec, CUgraphNode node, struct tpc_host_copy *const made[2]) {
    const uint64_t handle = (uint64_t)(uintptr_t)exec, changed = (uint64_t)(uintptr_t)node;
    const struct copies *before = copies_of(handle);
    size_t most = (before ? before->count : 0) + 2;
    struct copies *copies = calloc(1, sizeof *copies + most * sizeof *copies->list);
    if (!copies) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    copies->graph = before ? before->graph : UINT64_MAX; /* a name that no graph has: these are right */
    /* The list has the graph's order, so what a node copies now stands where its copies stood. A node that had none goes to the
     * end: its place among the others is known to the driver only. */
    bool disabled = false, placed = false;
    for (size_t i = 0; before && i <= before->count; i++) {
        bool own = i < before->count && before->list[i].node == changed;
        disabled = disabled || (own && before->list[i].disabled);
        for (size_t j = 0; j < 2 && !placed && (own || i == before->count); j++) {
            if (made[j]) {
                copies->list[copies->count++] = (struct entry){.copy = made[j], .node = changed, .disabled = disabled};
            }
        }
        placed = placed || own;
        if (own || i == before->count) {
            continue;
        }
        tpc_host_copy_retain(before->list[i].copy);
        copies->list[copies->count++] = before->list[i];
    }
    for (size_t j = 0; j < 2 && !before; j++) {
        if (made[j]) {
            copies->list[copies->count++] = (struct entry){.copy = made[j], .node = changed};
        }
    }
    put_copies(handle, copies);
    return CUDA_SUCCESS;
}

CUresult tpc_check_cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled) {
    const struct copies *copies = copies_of((uint64_t)(uintptr_t)hGraphExec);
    bool mixed = false;
    (void)isEnabled;
    for (size_t i = 0; copies && i < copies->count; i++) {
        mixed = mixed || (copies->list[i].mixed && copies->list[i].node == (uint64_t)(uintptr_t)hNode);
    }
    TPC_TRY(mixed ? tpc_copies_fixed("cuGraphNodeSetEnabled", hGraphExec) : CUDA_SUCCESS);
    return tpc_copies_may_change("cuGraphNodeSetEnabled", hGraphExec, hNode, false);
}

void tpc_noted_cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled) {
    struct copies *copies = copies_of((uint64_t)(uintptr_t)hGraphExec);
    for (size_t i = 0; copies && i < copies->count; i++) {
        if (copies->list[i].node == (uint64_t)(uintptr_t)hNode) {
            copies->list[i].disabled = !isEnabled;
        }
    }
}

CUresult tpc_check_cuGraphExecDestroy(CUgraphExec hGraphExec) {
    if (TP_UNLIKELY(tpc_copies_has(hGraphExec))) {
        put_copies((uint64_t)(uintptr_t)hGraphExec, NULL);
    }
    return CUDA_SUCCESS;
}

/* ---- launches ---- */

/* The host side in parts that lie side by side, in the order of the buffer's bytes. */
static uint64_t parts(const struct tpc_host_side *side, uint64_t *part, uint64_t *rows) {
    bool packed = side->pitch == side->width || side->height == 1;
    *rows = packed ? 1 : side->height;
    *part = packed ? side->width * side->height : side->width;
    if (packed && (side->slice == *part || side->depth == 1)) {
        *part *= side->depth;
        return 1;
    }
    return *rows * side->depth;
}

static unsigned char *part_at(const struct tpc_host_side *side, uint64_t i, uint64_t rows) {
    return side->first + side->slice * (i / rows) + side->pitch * (i % rows);
}

static CUresult upload(const char *name, const struct tpc_host_copy *copy, CUstream stream) {
    const struct tpc_host_side *side = &copy->side;
    uint64_t part, rows, count = parts(side, &part, &rows), size = bytes(side);
    const struct tpg_area area = tpc_line(copy->address, size);
    if (tpc_late_needed(side->first,
                        tpc_side_span(side))) { /* of whatever kind: the graph reads it when the stream gets there */
        return tpc_copy_late(name, &area, side, stream);
    }
    if (count == 1) {
        return tpc_copy_up(name, &area, side->first, stream, false);
    }
    unsigned char *packed = malloc(size);
    if (!packed) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = CUDA_SUCCESS;
    for (uint64_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        memcpy(packed + i * part, part_at(side, i, rows), part);
    }
    result = result == CUDA_SUCCESS ? tpc_copy_up(name, &area, packed, stream, false) : result;
    free(packed);
    return result;
}

static void download(const char *name, const struct tpc_host_copy *copy, CUstream stream) {
    uint64_t part, rows, count = parts(&copy->side, &part, &rows);
    for (uint64_t i = 0; i < count; i++) {
        const struct tpg_area area = tpc_line(copy->address + i * part, part);
        if (tpc_copy_down_later(name, part_at(&copy->side, i, rows), &area, stream) == TPC_LOST_ERROR) {
            return;
        }
    }
}

CUresult tpc_copies_before_launch(const char *name, CUgraphExec exec, CUstream stream) {
    const struct copies *copies = copies_of((uint64_t)(uintptr_t)exec);
    if (TP_LIKELY(!copies)) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_post_graph_order(name, (uint64_t)(uintptr_t)exec, (uint64_t)(uintptr_t)stream, 0);
    for (size_t i = 0; i < copies->count && result == CUDA_SUCCESS; i++) {
        const struct entry *entry = &copies->list[i];
        if (entry->copy->up && !entry->mixed && !entry->disabled && entry->copy->address) {
            result = upload(name, entry->copy, stream);
        }
    }
    return result;
}

void tpc_copies_behind_launch(const char *name, CUgraphExec exec, CUstream stream) {
    const struct copies *copies = copies_of((uint64_t)(uintptr_t)exec);
    if (TP_LIKELY(!copies)) {
        return;
    }
    for (size_t i = 0; i < copies->count; i++) {
        const struct entry *entry = &copies->list[i];
        if (!entry->copy->up && !entry->mixed && !entry->disabled && entry->copy->address) {
            download(name, entry->copy, stream);
        }
    }
    tpc_post_graph_order(name, (uint64_t)(uintptr_t)exec, (uint64_t)(uintptr_t)stream, 1);
}
