/*
 * Two builds compared: the sentence for those that cannot talk, and what those share that can.
 *
 * Owns nothing; any thread. Whoever matches has the peer's list in private memory.
 */
#include "tp_layouts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_wire.h>

const char *tp_release_name(char out[24], uint32_t version, uint32_t release) {
    if (version == 1) {
        return "0.1"; /* which did not say */
    }
    snprintf(out, 24, "%u.%u.%u", release / 1000000, release / 1000 % 1000, release % 1000);
    return out;
}

void tp_apart(char *why, size_t size, const char *peer, uint32_t version, uint32_t release) {
    char theirs[24], ours[24];
    const char *their = tp_release_name(theirs, version, release);
    const char *our = tp_release_name(ours, TP_PROTOCOL, TP_RELEASE);
    snprintf(why, size,
             "The GPU worker at %s is of release %s and this client of %s; the two cannot talk to each other (frame "
             "versions %u and %u): upgrade the %s to release %s or a later one.",
             peer, their, our, version, TP_PROTOCOL, version < TP_PROTOCOL ? "worker" : "client",
             version < TP_PROTOCOL ? our : their);
}

struct tp_matched *tp_matched_make(const char *peer, uint32_t release, uint16_t asks) {
    struct tp_matched *made = calloc(1, sizeof *made);
    if (made) {
        char theirs[24], ours[24];
        snprintf(made->releases, sizeof made->releases, "the GPU worker at %.300s is of release %s, this client of %s",
                 peer, tp_release_name(theirs, TP_PROTOCOL, release), tp_release_name(ours, TP_PROTOCOL, TP_RELEASE));
        made->theirs[asks] = asks;
    }
    return made;
}

struct match {
    struct tp_matched *out;
    const struct tp_layout *ours;
    size_t count;
    bool met[TP_LAYOUTS_MAX]; /* by our rows */
    const char *(*name)(uint16_t);
    char *why;
    size_t why_size;
};

static const char *name_of(const struct match *m, const struct tp_layout *own) {
    return own->flags & TP_HANDLE ? "a kind of handle" : m->name(own->number);
}

static size_t find(const struct match *m, uint64_t name) {
    size_t i = 0;
    while (i < m->count && m->ours[i].name != name) {
        i++;
    }
    return i;
}

/* Takes one row of the peer's; false with the reason. */
static bool take(struct match *m, const struct tp_layout *row) {
    const uint16_t kind = TP_MESSAGE | TP_HANDLE;
    const size_t place = find(m, row->name);
    const struct tp_layout *own = place < m->count ? &m->ours[place] : NULL;
    if (own && m->met[place]) {
        snprintf(m->why, m->why_size, "the worker's list has '%s' twice", name_of(m, own));
        return false;
    }
    const bool same = own && own->layout == row->layout && (own->flags & kind) == (row->flags & kind);
    if (!same && (row->flags & TP_NEEDED || (own && (own->flags & (TP_NEEDED | TP_HANDLE))))) {
        snprintf(m->why, m->why_size, "they do not have the same '%s', without which nothing works",
                 own ? name_of(m, own) : "operation that the worker wants");
        return false;
    }
    if (own) {
        m->met[place] = true;
    }
    if (row->flags & TP_HANDLE) {
        return true;
    }
    if (same) {
        m->out->ours[row->number] = own->number;
        if (!(row->flags & TP_MESSAGE)) {
            m->out->theirs[own->number] = row->number;
            m->out->shared++;
        }
    } else if (row->flags & TP_OPTIONAL && row->flags & TP_MESSAGE) {
        m->out->ours[row->number] = TP_DROPPED;
    }
    return true;
}

bool tp_layouts_match(struct tp_matched *out, const struct tp_layout *ours, size_t count, const void *list, size_t size,
                      const char *(*name)(uint16_t), char *why, size_t why_size) {
    struct match m = {.out = out, .ours = ours, .count = count, .name = name, .why = why, .why_size = why_size};
    const size_t rows = size / sizeof(struct tp_layout);
    uint32_t before = 0;
    if (size % sizeof(struct tp_layout) || rows == 0 || rows > TP_LAYOUTS_MAX || count > TP_LAYOUTS_MAX) {
        snprintf(why, why_size, "the worker's list of operations has %zu bytes, which cannot be", size);
        return false;
    }
    memset(out->ours, 0, sizeof out->ours);
    memset(out->theirs, 0, sizeof out->theirs);
    out->shared = 0;
    for (size_t i = 0; i < rows; i++) {
        struct tp_layout row;
        memcpy(&row, (const unsigned char *)list + i * sizeof row, sizeof row);
        /* Rising: so no number comes twice. */
        const uint32_t place = (row.flags & TP_HANDLE ? 1u << 16 : 0u) + row.number;
        if (row.number == 0 || row.number == TP_DROPPED || place <= before) {
            snprintf(why, why_size, "row %zu of the worker's list of operations has the number %u, which cannot be", i,
                     row.number);
            return false;
        }
        before = place;
        if (!take(&m, &row)) {
            return false;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!m.met[i] && ours[i].flags & TP_NEEDED) {
            snprintf(why, why_size, "the worker has no '%s', without which nothing works", name_of(&m, &ours[i]));
            return false;
        }
    }
    return true;
}
