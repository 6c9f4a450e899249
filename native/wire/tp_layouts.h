/*
 * What two builds tell each other of themselves: their releases, and a hash for each operation over what makes its bytes differ.
 *
 * Both sides include this file; it owns nothing and takes no locks. The list that is matched is the peer's, in a private copy: its size and
 * every number in it are bounded, and all that comes of it are numbers of operations.
 */
#ifndef TP_LAYOUTS_H
#define TP_LAYOUTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A row, as it travels: operations and messages by rising number, then kinds of handle by theirs. */
struct tp_layout {
    uint64_t name, layout; /* hashes: apigen/layouts.py */
    uint16_t number, flags;
    uint32_t zero;
};
_Static_assert(sizeof(struct tp_layout) == 24, "row of the list");

enum tp_layout_flags {
    TP_NEEDED = 1,   /* without it nothing works */
    TP_OPTIONAL = 2, /* a message that a client may drop */
    TP_MESSAGE = 4,
    TP_HANDLE = 8, /* a kind of handle, whose number is no operation's */
};
#define TP_LAYOUTS_MAX 8192u /* rows: more than ten times what the driver API and NVML have */

/* What both builds have, by number; 0: nothing that is the same. */
struct tp_matched {
    char releases[420];               /* of both, for sentences */
    uint32_t shared;                  /* operations */
    uint16_t theirs[UINT16_MAX + 1u]; /* of an operation of ours */
    uint16_t ours[UINT16_MAX + 1u];   /* of an operation or a message of theirs */
};
#define TP_DROPPED UINT16_MAX /* in `ours`: a message that this side does not know, and need not */

/* Before the list has come: only the operation `asks`, which asks for it, has a number. From malloc; NULL without memory. */
struct tp_matched *tp_matched_make(const char *peer, uint32_t release, uint16_t asks);

/* Matches a list with `count` rows of ours, at most TP_LAYOUTS_MAX. False with the reason why nothing works between the two; `name` names a
 * number of ours. */
bool tp_layouts_match(struct tp_matched *out, const struct tp_layout *ours, size_t count, const void *list, size_t size,
                      const char *(*name)(uint16_t), char *why, size_t why_size);

/* "0.2.0": of somebody who speaks that frame version. */
const char *tp_release_name(char out[24], uint32_t version, uint32_t release);
/* The sentence for a worker of another frame version. */
void tp_apart(char *why, size_t size, const char *peer, uint32_t version, uint32_t release);

#endif
