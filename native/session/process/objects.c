/*
 * Tables of the client's objects, and the helpers that generated dispatch code calls around every driver function.
 *
 * Executor thread only. Handles come from a hostile client: kind, index and generation are checked against the tables, whose
 * places are private memory of the session.
 */
#include "tpg_ops.h"
#include "tpw_session.h"

#include <stdlib.h>

#define PIECE (1u << TPW_PIECE_BITS)
#define PIECES (1u << (TP_INDEX_BITS - TPW_PIECE_BITS))

static uint32_t also(uint32_t kind) { return kind == TPG_FUNCTION ? TPG_KERNEL : 0; }

struct tpw_object *tpw_object(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    uint32_t other = also(kind);
    if (!tp_handle_is(handle, kind)) {
        if (!other || !tp_handle_is(handle, other)) {
            return NULL;
        }
        kind = other;
    }
    uint32_t id = tp_handle_id(handle), index = tp_id_index(id);
    struct tpw_object *const *pieces = s->tables[kind].pieces;
    struct tpw_object *piece = pieces ? pieces[index / PIECE] : NULL;
    return piece && id && piece[index % PIECE].id == id ? &piece[index % PIECE] : NULL;
}

void *tpw_record(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    const struct tpw_object *object = tpw_object(s, kind, handle);
    return object ? object->record : NULL;
}

struct tpw_object *tpw_next_object(struct tpw_session *s, uint32_t kind, uint32_t *at) {
    struct tpw_object *const *pieces = s->tables[kind].pieces;
    while (pieces && *at < PIECE * PIECES) {
        struct tpw_object *piece = pieces[*at / PIECE];
        if (!piece) {
            *at = (*at / PIECE + 1) * PIECE;
        } else if (piece[(*at)++ % PIECE].id) {
            return &piece[(*at - 1) % PIECE];
        }
    }
    return NULL;
}

uint64_t tpw_known(struct tpw_session *s, uint32_t kind, uint64_t native) {
    const struct tpw_object *object;
    for (uint32_t at = 0; native && (object = tpw_next_object(s, kind, &at));) {
        if (object->native == native) {
            return tp_handle_make(kind, object->id);
        }
    }
    return 0;
}

int32_t tpw_told(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t fresh, uint64_t native,
                 uint64_t owner, int32_t error, uint64_t *told) {
    *told = error ? 0 : tpw_known(s, kind, native);
    if (error || *told) {
        return error;
    }
    error = tpw_made(s, frame, kind, fresh, native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, kind, fresh);
    if (object) {
        const struct tpw_object *whole = tpw_object(s, tp_handle_type(owner), owner);
        object->owner = owner;
        object->context = whole ? whole->context : object->context; /* whichever is current */
        *told = fresh;
    }
    return error;
}

void tpw_check_name(uint32_t kind, uint64_t handle, bool optional, int32_t *error) {
    bool special = kind == TPG_STREAM && handle <= 2;
    bool fits = tp_handle_is(handle, kind) || (also(kind) && tp_handle_is(handle, also(kind)));
    if (!fits && !special && !(optional && !handle)) {
        tpw_set(error, tpg_bad_handle(kind));
    }
}

void tpw_check_names(uint32_t kind, const uint64_t *handles, size_t count, int32_t *error) {
    for (size_t i = 0; i < count; i++) {
        tpw_check_name(kind, tp_word_at(handles, i), false, error);
    }
}

/* The place of an index, NULL without memory for its piece. */
static struct tpw_object *place(struct tpw_session *s, uint32_t kind, uint32_t index) {
    struct tpw_table *table = &s->tables[kind];
    if (!table->pieces) {
        table->pieces = calloc(PIECES, sizeof *table->pieces);
    }
    struct tpw_object **piece = table->pieces ? &table->pieces[index / PIECE] : NULL;
    if (piece && !*piece && s->table_pieces < TPW_PIECES_MAX) {
        *piece = calloc(PIECE, sizeof **piece);
        s->table_pieces += *piece != NULL;
    }
    return piece && *piece ? &(*piece)[index % PIECE] : NULL;
}

int32_t tpw_made(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, uint64_t native,
                 int32_t error) {
    uint32_t id = tp_handle_id(handle), index = tp_id_index(id);
    /* The client numbers what it holds; whoever numbered on would have the driver take memory without end. */
    if (!tp_handle_is(handle, kind) || !tp_id_generation(id) || index >= tpg_most(kind)) {
        tpw_violation(s, frame, "a new handle that is none, or one more than a client may hold");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct tpw_object *object = place(s, kind, index);
    if (!object) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (object->id) {
        tpw_violation(s, frame, "a new handle in the place of a living one");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    /* A failed call gives the client no handle; a failed post has given it one already, whose uses answer the error. */
    if (error && (frame->flags & TP_FRAME_CALL)) {
        return error;
    }
    *object = (struct tpw_object){.native = error ? 0 : native,
                                  .error = error,
                                  .id = id,
                                  .context = kind == TPG_STREAM ? frame->context : tpw_home_of(s, frame->context),
                                  .kind = kind};
    return error;
}

void tpw_forget(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    struct tpw_object *object = tpw_object(s, kind, handle);
    if (object) {
        (void)tpw_kept_on(object);
        free(object->record);
        memset(object, 0, sizeof *object);
        s->contexts_changed |= kind == TPG_CONTEXT;
        tpw_forget_parts(s, kind, handle);
    }
}

void tpw_forget_parts(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    for (uint64_t parts = tpg_ends_with(kind); parts; parts &= parts - 1) {
        const uint32_t other = (uint32_t)__builtin_ctzll(parts);
        struct tpw_object *part;
        for (uint32_t at = 0; (part = tpw_next_object(s, other, &at));) {
            if (part->owner == handle) {
                tpw_forget(s, other, tp_handle_make(other, part->id));
            }
        }
    }
}

void tpw_objects_gone(struct tpw_session *s, const struct tpw_gone *gone) {
    const uint32_t context = gone->id;
    static const uint32_t kinds[] = {TPG_MODULE, TPG_FUNCTION, TPG_EVENT,  TPG_LIBRARY, TPG_KERNEL, TPG_GRAPHEXEC,
                                     TPG_LINK,   TPG_ARRAY,    TPG_MIPMAP, TPG_TEXREF,  TPG_SURFREF};
    TP_TELL(tpw_context_gone, s, gone);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct tpw_object *object;
        for (uint32_t at = 0; (object = tpw_next_object(s, kinds[k], &at));) {
            /* Libraries and kernels belong to no context. */
            if (object->context == context && object->kind != TPG_LIBRARY && object->kind != TPG_KERNEL) {
                (void)tpw_kept_on(object);
                object->native = 0;
                object->error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
            }
        }
    }
    if (s->entered == context) {
        s->entered = 0;
        s->entered_native = NULL;
    }
}

int32_t tpw_enter(struct tpw_session *s, const struct tp_frame *frame) {
    if (TP_LIKELY(frame->context == s->entered && s->entered)) {
        return CUDA_SUCCESS;
    }
    if (!s->started) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    CUcontext native = NULL;
    if (frame->context) {
        struct tpw_object *object = tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, frame->context));
        if (!object || !object->native) {
            return object && object->error ? object->error : CUDA_ERROR_CONTEXT_IS_DESTROYED;
        }
        native = (CUcontext)(uintptr_t)object->native;
    }
    if (native != s->entered_native) {
        TPW_TRY(s->cuda.cuCtxSetCurrent(native));
        s->entered_native = native;
    }
    s->entered = frame->context;
    return CUDA_SUCCESS;
}

void tpw_go_into(struct tpw_session *s, CUcontext native) {
    int32_t error = (int32_t)s->cuda.cuCtxSetCurrent(native);
    if (error) { /* what follows must not happen in another context: without one it fails */
        tp_log(TP_ERROR, "a context cannot be made current: error %d", error);
        (void)s->cuda.cuCtxSetCurrent(NULL);
        native = NULL;
        s->entered = 0;
    }
    s->entered_native = native;
}

void tpw_visit(struct tpw_session *s, CUcontext native, uint32_t context) {
    if (s->entered_native != native) {
        tpw_go_into(s, native);
        bool there = s->entered_native && tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, context));
        s->entered = there ? context : 0;
    }
}

void tpw_check_device(struct tpw_session *s, int device, int32_t *error) {
    if (device < 0 || device >= s->device_count) {
        tpw_set(error, CUDA_ERROR_INVALID_DEVICE);
    }
}

void tpw_violation(struct tpw_session *s, const struct tp_frame *frame, const char *what) {
    tp_log(TP_ERROR, "the client broke the protocol at frame %llu (operation %s, %u bytes): %s; closing its session",
           (unsigned long long)s->number, tpg_op_name(frame->op), frame->size, what);
    s->ended = true;
    s->exit_code = 3;
}
