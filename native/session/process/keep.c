/*
 * Who keeps what alive: counting what nodes of graphs point at, and ending it with the last user.
 *
 * Executor thread only. Who becomes a user, and how one stops to be one, is in graph/hold.c.
 */
#include "tpw_session.h"

#include <stdlib.h>

static bool lasts(const struct tpw_session *s, const struct tpw_object *object) {
    for (int i = 0; i < s->device_count; i++) {
        if (object->kind == TPG_CONTEXT && (uint64_t)(uintptr_t)s->primary[i] == object->native) {
            return true;
        }
    }
    return false;
}

struct tpw_kept *tpw_kept_of(struct tpw_session *s, struct tpw_object *object, int32_t *error) {
    struct tpw_kept *inside = NULL;
    CUcontext context = NULL;
    if (*error) {
        return NULL;
    }
    if (!object || !object->native) {
        *error = object && object->error ? object->error : CUDA_ERROR_CONTEXT_IS_DESTROYED;
        return NULL;
    }
    if (object->kept || lasts(s, object)) {
        return object->kept;
    }
    if (object->kind == TPG_MODULE || object->kind == TPG_EVENT) {
        struct tpw_object *around = tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, object->context));
        inside = tpw_kept_of(s, around, error);
        context = *error ? NULL : (CUcontext)(uintptr_t)around->native;
    }
    struct tpw_kept *kept = *error ? NULL : calloc(1, sizeof *kept);
    if (!kept) {
        *error = *error ? *error : CUDA_ERROR_OUT_OF_MEMORY;
        return NULL;
    }
    *kept = (struct tpw_kept){.inside = inside, .native = object->native, .context = context, .kind = object->kind};
    object->kept = kept;
    return kept;
}

void tpw_keep_use(struct tpw_kept *kept) {
    if (kept->users++ == 0 && kept->inside) {
        tpw_keep_use(kept->inside);
    }
}

void tpw_let_go(struct tpw_session *s, struct tpw_kept *kept) {
    if (--kept->users) {
        return;
    }
    if (!kept->over) {
        if (kept->inside) {
            tpw_let_go(s, kept->inside);
        }
    } else {
        bool ended = false;
        TP_ASK(tpw_unkept, ended, s, kept);
    }
}

void tpw_kept_ended(struct tpw_session *s, struct tpw_kept *kept) {
    struct tpw_kept *inside = kept->inside;
    free(kept);
    if (inside) {
        tpw_let_go(s, inside);
    }
}

bool tpw_kept_over(struct tpw_kept *kept) {
    if (kept && kept->users) {
        kept->over = true;
        return true;
    }
    free(kept);
    return false;
}

bool tpw_kept_on(struct tpw_object *object) {
    struct tpw_kept *kept = object->kept;
    object->kept = NULL;
    return tpw_kept_over(kept);
}
