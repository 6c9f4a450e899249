/*
 * User objects: the driver counts, the client's destructor runs when the count is gone.
 *
 * Executor thread only; the destructor's stub is in callback.c. The references that the client itself holds are counted
 * here as well: an object that it has given away entirely may be gone at any moment, so it may not be named any more. But for
 * the graph that it was given to last: while that is alive and has not given it up, it is there. A clone, and the graph inside a
 * child node, hold what their original did (580.159.04, measured); from those it cannot be taken by name here: 1, where the
 * driver has 0.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdlib.h>

struct user {
    uint32_t references; /* of the client, without those of graphs */
    uint64_t graph;      /* the client's name of the one that references were moved to last */
    uint32_t moved;      /* how many of these it has */
};

int32_t tpw_user_object_create(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_user_object_create_in *in) {
    CUuserObject native = NULL;
    struct user *user = calloc(1, sizeof *user);
    struct tpw_lasting *lasting = user ? tpw_lasting_new(s, in->token, in->object) : NULL;
    int32_t error = lasting ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!error && !in->references) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    if (!error) {
        error = (int32_t)s->cuda.cuUserObjectCreate(&native, lasting, tpw_lasting_gone, in->references,
                                                    CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    }
    error = tpw_made(s, frame, TPG_USEROBJECT, in->object, (uint64_t)(uintptr_t)native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_USEROBJECT, in->object);
    if (!object) {
        free(user);
        if (native) {
            s->cuda.cuUserObjectRelease(native, in->references); /* runs the stub, whose handle nobody knows */
        } else {
            free(lasting);
        }
        return error ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    user->references = in->references;
    object->record = user;
    return CUDA_SUCCESS;
}

/* The object, if the client holds at least `count` references. */
static CUuserObject held(struct tpw_session *s, uint64_t handle, uint32_t count, struct user **user, int32_t *error) {
    struct tpw_object *object = tpw_object(s, TPG_USEROBJECT, handle);
    *user = object ? object->record : NULL;
    if (!*user || !count || (*user)->references < count) {
        *error = CUDA_ERROR_INVALID_VALUE;
        return NULL;
    }
    return (CUuserObject)(uintptr_t)object->native;
}

int32_t tpw_cuUserObjectRetain(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_cuUserObjectRetain_in *in) {
    struct user *user;
    int32_t error = CUDA_SUCCESS;
    CUuserObject native = held(s, in->object, 1, &user, &error);
    if (!error && (!in->count || in->count > INT32_MAX || user->references > INT32_MAX - in->count)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    error = error ? error : (int32_t)s->cuda.cuUserObjectRetain(native, in->count);
    if (!error) {
        user->references += in->count;
    }
    return error;
}

int32_t tpw_cuUserObjectRelease(struct tpw_session *s, const struct tp_frame *frame,
                                const struct tpg_cuUserObjectRelease_in *in) {
    struct user *user;
    int32_t error = CUDA_SUCCESS;
    CUuserObject native = held(s, in->object, in->count, &user, &error);
    error = error ? error : (int32_t)s->cuda.cuUserObjectRelease(native, in->count);
    if (!error) {
        user->references -= in->count;
    }
    return error;
}

int32_t tpw_cuGraphRetainUserObject(struct tpw_session *s, const struct tp_frame *frame,
                                    const struct tpg_cuGraphRetainUserObject_in *in, CUgraph graph) {
    struct user *user;
    int32_t error = CUDA_SUCCESS;
    bool move = in->flags & CU_GRAPH_USER_OBJECT_MOVE;
    CUuserObject native = held(s, in->object, move ? in->count : 1, &user, &error);
    error = error ? error : (int32_t)s->cuda.cuGraphRetainUserObject(graph, native, in->count, in->flags);
    if (!error && move) {
        user->references -= in->count;
        user->moved = in->count + (user->graph == in->graph && user->moved <= INT32_MAX ? user->moved : 0);
        user->graph = in->graph;
    }
    return error;
}

int32_t tpw_cuGraphReleaseUserObject(struct tpw_session *s, const struct tp_frame *frame,
                                     const struct tpg_cuGraphReleaseUserObject_in *in, CUgraph graph) {
    struct tpw_object *object = tpw_object(s, TPG_USEROBJECT, in->object);
    struct user *user = object ? object->record : NULL;
    int32_t error = CUDA_SUCCESS;
    bool moved = user && user->graph == in->graph && in->count <= user->moved;
    CUuserObject native = moved ? (CUuserObject)(uintptr_t)object->native : held(s, in->object, 1, &user, &error);
    error = error ? error : (int32_t)s->cuda.cuGraphReleaseUserObject(graph, native, in->count);
    if (!error && moved) {
        user->moved -= in->count;
    }
    return error;
}
