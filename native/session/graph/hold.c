/*
 * What nodes of graphs point at: graphs and executable graphs as users of what the session keeps (process/keep.c).
 *
 * Executor thread only. A graph becomes a user by a user object of the driver, whose destructor says on any thread that the
 * graph, its clones, what was made of them and every launch under way are gone (callback.c brings that here). So how graphs
 * lie in each other and which launches run is the driver's business, and here nothing has to follow it.
 */
#include "tpg_session.h"
#include "tpw_code.h"
#include "tpw_graph.h"

#include <stdlib.h>

int32_t tpw_keep_in_graph(struct tpw_session *s, CUgraph graph, struct tpw_kept *kept, CUuserObject *made) {
    CUuserObject object = NULL;
    int32_t error = tpw_lasting_give(s, graph, tpw_lasting_kept(s, kept), kept, &object);
    if (made) {
        *made = object;
    }
    return error;
}

int32_t tpw_keep_in_list(struct tpw_keeps *list, struct tpw_kept *kept) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i] == kept) {
            return CUDA_SUCCESS;
        }
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 8;
        struct tpw_kept **items = realloc(list->items, capacity * sizeof *items);
        if (!items) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        list->items = items;
        list->capacity = capacity;
    }
    tpw_keep_use(kept);
    list->items[list->count++] = kept;
    return CUDA_SUCCESS;
}

static void drop(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_keeps *list = what;
    (void)error; /* a broken context does no more work either */
    for (size_t i = 0; i < list->count; i++) {
        tpw_let_go(s, list->items[i]);
    }
    free(list->items);
    free(list);
}

void tpw_keeps_drop(struct tpw_session *s, struct tpw_keeps *list) {
    struct tpw_keeps *moved = list->count ? malloc(sizeof *moved) : NULL;
    if (moved) {
        *moved = *list;
    }
    if (list->count && (!moved || tpw_when_everything_done(s, drop, moved))) {
        tp_log(TP_ERROR, "no memory to let go of what an executable graph points at: it stays until the session ends");
        free(moved);
    }
    *list = (struct tpw_keeps){.count = 0};
}

/* ---- what nodes point at ---- */

int32_t tpw_hold_object(struct tpw_session *s, uint64_t holder, uint32_t kind, uint64_t handle) {
    int32_t error = CUDA_SUCCESS;
    struct tpw_kept *kept = tpw_kept_of(s, tpw_object(s, kind, handle), &error);
    return error ? error : tpw_hold(s, holder, kept);
}

uint64_t tpw_holder(struct tpw_session *s, uint64_t by) {
    return tp_handle_is(by, TPG_GRAPHNODE) ? tpw_graph_of_node(s, by) : by;
}

void tpw_keep(struct tpw_session *s, const struct tp_frame *frame, uint64_t by, uint32_t kind, uint64_t handle,
              int32_t *error) {
    if (!by || !handle || *error) {
        return;
    }
    uint64_t holder = tpw_holder(s, by);
    if (by <= 2 || tp_handle_is(by, TPG_STREAM)) {
        const struct tpw_stream *stream = tpw_stream_of(s, frame, by, error);
        holder = stream ? tpw_captured_graph(s, stream, error) : 0;
    }
    *error = *error || !holder ? *error : tpw_hold_object(s, holder, kind, handle);
}

CUcontext tpw_context_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, uint64_t by,
                         int32_t *error) {
    if (!handle && !s->entered) {
        tpw_set(error, CUDA_ERROR_INVALID_CONTEXT);
    }
    handle = handle || *error ? handle : tp_handle_make(TPG_CONTEXT, s->entered);
    CUcontext native = (CUcontext)(uintptr_t)tpw_native(s, frame, TPG_CONTEXT, handle, false, error);
    tpw_keep(s, frame, by, TPG_CONTEXT, handle, error);
    return native;
}

int32_t tpw_hold_function(struct tpw_session *s, uint64_t holder, const struct tpw_object *function) {
    uint64_t image = tpw_image_of(s, function);
    int32_t error = tpw_hold_object(s, holder, tp_handle_type(image), image);
    if (!error && function->kind == TPG_FUNCTION) {
        error = tpw_hold_object(s, holder, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, function->context));
    }
    return error;
}

static int32_t captured(struct tpw_session *s, CUgraph graph, uint32_t kind, uint64_t handle) {
    uint64_t holder = tpw_known(s, TPG_GRAPH, (uint64_t)(uintptr_t)graph);
    return holder ? tpw_hold_object(s, holder, kind, handle) : CUDA_SUCCESS;
}
TP_REGISTER(tpw_node_captured, captured);
