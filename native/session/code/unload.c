/*
 * How images end: behind the work that uses them.
 *
 * Executor thread only.
 */
#include "tpg_session.h"
#include "tpw_code.h"

#include <stdlib.h>

void tpw_image_unload(struct tpw_session *s, bool library, uint64_t native) {
    (void)(library ? s->cuda.cuLibraryUnload((CUlibrary)(uintptr_t)native)
                   : s->cuda.cuModuleUnload((CUmodule)(uintptr_t)native));
}

/* The driver waits for queued work before it unloads, and that work may wait for the client: so the wait is a completion. The
 * handle is gone at once; what the driver answers then, nobody can be told. */
struct unloading {
    uint64_t native;
    CUcontext home;   /* of a module */
    uint32_t context; /* of the same */
    bool library, again;
    struct tpw_kept *kept; /* nodes of graphs pointed at it until now; its context is there until it has ended */
    struct tpw_taken *taken;
};

static void unload(struct tpw_session *s, void *what, int32_t error) {
    struct unloading *unloading = what;
    bool there = error != CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (unloading->kept) {
        there = true;
    } else if (unloading->again) { /* a context that ended in the second wait may have taken the module along */
        there = unloading->library || tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, unloading->context));
    }
    if (there && tpw_work_stands(s)) {
        unloading->again = true;
        if ((!error || unloading->kept) && !tpw_when_everything_done(s, unload, unloading)) {
            return;
        }
        there = false; /* there is no waiting for that work, but the driver would: it stays until the session ends */
    }
    if (there && !unloading->library) {
        tpw_visit(s, unloading->home, unloading->context);
    }
    if (there) {
        tpw_image_unload(s, unloading->library, unloading->native);
    }
    if (there || error == CUDA_ERROR_CONTEXT_IS_DESTROYED) { /* else it stays, and what it takes with it */
        tpw_taken_give_back(s, &unloading->taken);
    }
    free(unloading->taken);
    if (there && unloading->kept) {
        tpw_kept_ended(s, unloading->kept);
    }
    free(unloading);
}

static bool unkept(struct tpw_session *s, struct tpw_kept *kept) {
    if (kept->kind != TPG_MODULE && kept->kind != TPG_LIBRARY) {
        return false;
    }
    struct unloading *unloading = malloc(sizeof *unloading);
    if (unloading) {
        *unloading = (struct unloading){.native = kept->native,
                                        .home = kept->context,
                                        .library = kept->kind == TPG_LIBRARY,
                                        .kept = kept,
                                        .taken = kept->taken};
    }
    /* Launches that a stream has from outside any graph are waited for as well. */
    if (!unloading || tpw_when_everything_done(s, unload, unloading)) {
        tp_log(TP_ERROR, "no memory to unload an image that graphs pointed at: it stays until the session ends");
        free(unloading);
    }
    return true;
}
TP_REGISTER(tpw_unkept, unkept);

int32_t tpw_image_unload_later(struct tpw_session *s, uint64_t native, uint32_t context, struct tpw_taken *taken) {
    bool library = !context;
    struct unloading *unloading = malloc(sizeof *unloading);
    if (!unloading) {
        free(taken); /* it stays, and is charged until the session ends */
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *unloading = (struct unloading){
        .native = native, .home = s->entered_native, .context = context, .library = library, .taken = taken};
    int32_t error = library ? tpw_when_everything_done(s, unload, unloading) : tpw_when_all_done(s, unload, unloading);
    if (error) {
        free(unloading->taken);
        free(unloading);
    }
    return error;
}
