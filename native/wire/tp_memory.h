/*
 * What both sides must agree on about memory, beside the operations and messages of api/.
 *
 * Constants only. They are part of the wire format: a change of one needs a change of api/, so that the schema differs.
 */
#ifndef TP_MEMORY_H
#define TP_MEMORY_H

/* Mapped host memory outside a shared segment has a twin on the worker. Each side sends whole words of what has changed:
 * neighbours that the other side may write meanwhile stay untouched. A frame or message holds words of one piece. */
#define TP_TWIN_PIECE (64u << 10)
#define TP_TWIN_WORD 4u

/* Pinned memory that a client allocates outside a shared segment lies here, and its twin at the same address there, where both
 * can: an address of it that reaches a kernel in a struct or in memory is then right. Above the largest segment. */
#define TP_PINNED_ADDRESS 0x360000000000ull
#define TP_PINNED_SPACE (1ull << 40)

/* What stands before a copy of a graph between device memory and the program's own: `orders` of graph_copies. */
enum tp_copy_order {
    TP_AFTER_DOWNLOAD = 1, /* a copy out of the device into a buffer, and no host function between */
    TP_AFTER_HOST = 2,     /* a host function */
    TP_INSIDE = 4,         /* the node is inside the child graph that is named */
    TP_CONDITIONAL = 8,    /* a conditional node decides whether it runs */
    TP_MIXED = 16,         /* a host function stands behind it, out of the device, or before it, into the device */
};

/* So many of these copies, and so many host functions, of one graph are told apart: sets of them have a bit for each. */
#define TP_MIX_MAX 512u
#define TP_MIX_WORDS (TP_MIX_MAX / 64)

#endif
