/*
 * The frame format and the bounded cursor that all decoding goes through.
 *
 * Both sides include this file; it owns no memory and takes no locks. A writer cursor runs over memory of this process; a
 * reader cursor runs over *private copies* of bytes that the peer sent, never over memory that the peer can still write.
 * Generated code is a flat list of calls of the helpers below and never branches on a cursor's state: the `bad` flag is
 * sticky, reads past the end give zeros, and the caller asks once, at the end, whether anything went wrong.
 */
#ifndef TP_WIRE_H
#define TP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TP_MAGIC "TFUSION"
/* The frame version: of what two releases cannot settle between them, which is greeting and welcome, the headers of frames and chunks,
 * rings, the segment, and the number and fields of `layouts`. Where it is the same, they work together: docs/wire-format.md, section 6. */
#define TP_PROTOCOL 2u
/* This release, as in CMakeLists.txt: 1,000,000 for each major number, 1,000 for each minor one, and the patch. */
#define TP_RELEASE 2000u
#define TP_GREETING_SIZE 256u
#define TP_WELCOME_SIZE 512u
#define TP_CONTROL_SIZE 512u
#define TP_DATA_CONNECTIONS 8u

/* A frame is at most this long: larger payloads travel as transfers on the data connections. 1 MiB keeps one frame well
 * inside every ring and socket buffer, and a kernel's parameters (32,764 bytes) or a module's kernel table inside a frame. */
#define TP_FRAME_MAX (1u << 20)
/* Payloads up to this size travel inside frames: measured against the cost of waking a data connection. */
#define TP_INLINE_MAX (64u << 10)
/* What the session may have to hold back: frames that a client sends behind the last one that was answered, while a host function
 * or a late copy of it is outstanding. Then a thread asks (caught_up) before it sends more. The driver makes a caller wait after
 * 4 MiB of pageable memory behind a host function, or 1,021 commands in its stream (580.159.04); this is more than several
 * streams have of that, because the function may wait for the thread that fills them. */
#define TP_BEHIND_MAX (32u << 20)
/* A chunk on a data connection carries at most this many payload bytes. */
#define TP_CHUNK_MAX (1u << 20)

/* Pairs of events whose times are asked for at once: a benchmark of hundreds asks a few times, and the driver needs less than a
 * microsecond for each. */
#define TP_PAIRS_MAX 32u
#define TP_AHEAD_MAX 64u /* events that a query asks for beside its own: the bits of a word */

enum tp_frame_flags {
    TP_FRAME_CALL = 1,  /* the client thread waits for a reply */
    TP_FRAME_REPLY = 2, /* answers the call of `thread` */
    TP_FRAME_COMPLETES =
        4, /* says that work of the GPU is complete: `transfers` counts what the client must have first */
};

/* Client → session. `size` counts the header and is a multiple of 8. */
struct tp_frame {
    uint32_t size;
    uint16_t op;
    uint16_t flags;
    uint32_t thread;  /* client thread, from 1; the session keeps per-thread state under it */
    uint32_t context; /* low half (see tp_handle_id) of the thread's current context; 0 = none */
};

/* Session → client. A reply has TP_FRAME_REPLY; every other frame is a message of its own (api/cuda/messages.py). */
struct tp_reply_frame {
    uint32_t size;
    uint16_t op;
    uint16_t flags;
    uint32_t thread; /* whose call this answers */
    int32_t result;  /* CUresult or nvmlReturn_t */
    uint64_t
        transfers; /* TP_FRAME_COMPLETES: downloads of this session that were handed over completely before this frame,
                           which counts only when the client has received that many; else 0 */
};

/* One chunk on a data connection, either direction, followed by `size` payload bytes. */
struct tp_chunk {
    uint64_t transfer; /* numbered from 1 by the client for either direction */
    uint64_t offset;
    uint32_t size;
    uint32_t
        handed; /* from the session, on the chunk that hands a download over: bit 31 and, below it, the download's place
                        among all that were handed over (from 1, low 31 bits), because downloads may complete in another order
                        than tp_reply_frame.transfers counts them in; 0 on every other chunk */
};

#define TP_CHUNK_HANDED 0x80000000u

_Static_assert(sizeof(struct tp_frame) == 16, "frame header");
_Static_assert(sizeof(struct tp_reply_frame) == 24, "reply header");
_Static_assert(sizeof(struct tp_chunk) == 24, "chunk header");

/* ---- handles ----
 *
 * The client mints every handle: bit 46 set, type in bits 36…41, id in bits 4…35. An id is generation (12 bits) over
 * index (20 bits); generations start at 1, so an id is never 0. The value looks like an aligned user-space pointer and is
 * never one of the special streams 0, 1, 2. The type numbers are part of the wire schema. */
#define TP_HANDLE_TAG (1ull << 46)
#define TP_INDEX_BITS 20u
#define TP_INDEX_MAX ((1u << TP_INDEX_BITS) - 1)

static inline uint64_t tp_handle_make(uint32_t type, uint32_t id) {
    return TP_HANDLE_TAG | (uint64_t)type << 36 | (uint64_t)id << 4;
}
static inline uint32_t tp_handle_id(uint64_t handle) { return (uint32_t)(handle >> 4); }
static inline uint32_t tp_handle_type(uint64_t handle) { return (uint32_t)(handle >> 36) & 0x3f; }
static inline bool tp_handle_is(uint64_t handle, uint32_t type) {
    return (handle & ~0xffffffff0ull) == (TP_HANDLE_TAG | (uint64_t)type << 36);
}
static inline uint32_t tp_id_index(uint32_t id) { return id & TP_INDEX_MAX; }
static inline uint32_t tp_id_generation(uint32_t id) { return id >> TP_INDEX_BITS; }

/* ---- cursor ---- */

struct tp_cursor {
    unsigned char *at;
    size_t left;
    bool bad;   /* sticky: something did not fit, or a value was not allowed */
    bool lends; /* a writer that leaves large data where it is, see tp_lent_fill */
    const void *lent;
    unsigned char *lent_at; /* its place in the frame */
    size_t lent_size;
};

/* Data from this size on is left where it is, once in a frame, if the writer lends: copying it costs more than a second piece. */
#define TP_LENT_MIN (16u << 10)

static inline struct tp_cursor tp_cursor_make(void *memory, size_t size) {
    return (struct tp_cursor){.at = memory, .left = size, .bad = false};
}

/* Room for `size` bytes, or NULL with `bad` set. */
static inline void *tp_take(struct tp_cursor *c, size_t size) {
    if (c->bad || size > c->left) {
        c->bad = true;
        return NULL;
    }
    void *at = c->at;
    c->at += size;
    c->left -= size;
    return at;
}

static inline void tp_put(struct tp_cursor *c, const void *value, size_t size) {
    void *at = tp_take(c, size);
    if (at && size) {
        memcpy(at, value, size);
    }
}
static inline void tp_get(struct tp_cursor *c, void *value, size_t size) {
    const void *at = tp_take(c, size);
    if (!size) {
        return;
    }
    if (at) {
        memcpy(value, at, size);
    } else {
        memset(value, 0, size);
    }
}

#define TP_SCALAR(name, type)                                                                                          \
    static inline void tp_put_##name(struct tp_cursor *c, type value) { tp_put(c, &value, sizeof value); }             \
    static inline type tp_get_##name(struct tp_cursor *c) {                                                            \
        type value;                                                                                                    \
        tp_get(c, &value, sizeof value);                                                                               \
        return value;                                                                                                  \
    }
TP_SCALAR(u8, uint8_t)
TP_SCALAR(u16, uint16_t)
TP_SCALAR(u32, uint32_t)
TP_SCALAR(u64, uint64_t)
TP_SCALAR(i32, int32_t)
#undef TP_SCALAR

/* Whether memory holds zeros alone. */
static inline bool tp_is_zero(const void *memory, size_t size) {
    const unsigned char *at = memory;
    unsigned char any = 0;
    for (size_t i = 0; i < size; i++) {
        any |= at[i];
    }
    return any == 0;
}

/* Variable-length data: u64 length, bytes, padding to 8. The reader gets a pointer into the frame and can only ever read
 * what is in it. */
static inline size_t tp_padded(size_t size) { return (size + 7) & ~(size_t)7; }
/* What an array takes in a frame, with its length. The count may be any that a program passes: one that no frame holds gives a
 * size that no frame has, where a product would wrap to a small one. */
static inline size_t tp_array_size(size_t count, size_t element) {
    return count > TP_FRAME_MAX / element ? 2 * (size_t)TP_FRAME_MAX : 8 + tp_padded(count * element);
}

/* Puts what was lent into its place in the frame. */
static inline void tp_lent_fill(struct tp_cursor *c) {
    if (c->lent_size) {
        memcpy(c->lent_at, c->lent, c->lent_size);
        c->lent_size = 0;
    }
}

static inline void tp_put_bytes(struct tp_cursor *c, const void *data, size_t size) {
    tp_put_u64(c, size);
    size_t padding = -size & 7;
    unsigned char *at = NULL;
    if (size > c->left || padding > c->left - size) {
        c->bad = true;
    } else {
        at = tp_take(c, size + padding); /* NULL when it was bad before */
    }
    if (at && size) {
        if (c->lends && size >= TP_LENT_MIN && !c->lent_size) {
            c->lent = data;
            c->lent_at = at;
            c->lent_size = size;
        } else {
            memcpy(at, data, size);
        }
        memset(at + size, 0, padding);
    }
}
static inline const void *tp_get_bytes(struct tp_cursor *c, size_t *size) {
    uint64_t n = tp_get_u64(c);
    if (c->bad || n > c->left || tp_padded(n) > c->left) {
        c->bad = true;
        *size = 0;
        return NULL;
    }
    *size = n;
    return tp_take(c, tp_padded(n));
}
/* A string is bytes that hold exactly one NUL, at the end; NULL pointers are told apart by length 0. */
/* A word of a list inside a frame, which need not be aligned. */
static inline uint64_t tp_word_at(const uint64_t *words, size_t i) {
    uint64_t word;
    memcpy(&word, words + i, sizeof word);
    return word;
}
static inline void tp_put_string(struct tp_cursor *c, const char *text) {
    tp_put_bytes(c, text, text ? strlen(text) + 1 : 0);
}
static inline const char *tp_get_string(struct tp_cursor *c) {
    size_t size;
    const char *text = tp_get_bytes(c, &size);
    if (size && (text[size - 1] != 0 || memchr(text, 0, size - 1))) {
        c->bad = true;
        return NULL;
    }
    return size ? text : NULL;
}

#endif
