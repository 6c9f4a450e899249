/*
 * The quota page: how much device memory the sessions of one worker have reserved, how much they have added to its image
 * cache, and what each session counts. Layout in docs/wire-format.md, section 2.
 *
 * The supervisor alone writes limits and what it says of each row. A session has a row, and writes its own cell only: it maps the
 * page to read, by a descriptor that is open to read, and of it that one piece of 4 KiB to write. Both descriptors are closed
 * before the session has a client.
 *
 * A row may belong to a tenant, whose sessions together have a limit below the worker's, and may number its devices otherwise
 * than the worker does, because its process sees some of them only. The supervisor says both before the session has a client.
 * Callers name a device as their session does.
 *
 * Every field is read and written atomically, and no function here locks. A session that dies in the middle leaves bytes in its
 * own cell only, which the supervisor clears before it gives the row to another.
 */
#ifndef TP_QUOTA_H
#define TP_QUOTA_H

#include <tp_base.h>

#define TP_QUOTA_MAGIC 0x54464c494d495432ull
#define TP_QUOTA_ROWS 1024u
#define TP_QUOTA_DEVICES 16u
#define TP_QUOTA_CELLS 36864u /* where the cells begin */
#define TP_QUOTA_CELL 4096u   /* bytes of each: what can be mapped by itself */
#define TP_QUOTA_SIZE (TP_QUOTA_CELLS + TP_QUOTA_CELL * TP_QUOTA_ROWS)

/* The page as one session has it. */
struct tp_quota {
    const void *page; /* all of it */
    void *cell;       /* the session's own, which alone can be written */
    uint32_t row;
};

/* Maps the page by two descriptors, the first open to read and the second to write; false with errno when it cannot. */
TP_EXPORT bool tp_quota_map(struct tp_quota *quota, int page, int cells, uint32_t row);

/* Without a page, which is NULL, there is no limit in the following five, and nothing is counted. */
/* Adds `bytes` to what the session holds on `device`; false, with nothing changed, when that would pass a limit. Of two
 * sessions that ask for the last bytes at once one gets them, and never both. */
TP_EXPORT bool tp_quota_reserve(const struct tp_quota *quota, uint32_t device, uint64_t bytes);
/* Adds them whatever the limit says: for memory that is there already, and that another session has counted so far. */
TP_EXPORT void tp_quota_take_over(const struct tp_quota *quota, uint32_t device, uint64_t bytes);
/* Takes `bytes` back; never more than the session holds. */
TP_EXPORT void tp_quota_free(const struct tp_quota *quota, uint32_t device, uint64_t bytes);
/* The limit of the session, the worker's or its tenant's, whichever is smaller; 0 = none. */
TP_EXPORT uint64_t tp_quota_limit(const struct tp_quota *quota);
/* What is in use under that limit: the limit less what the session may still reserve. Without a limit: by all sessions. */
TP_EXPORT uint64_t tp_quota_used(const struct tp_quota *quota, uint32_t device);

/* Bytes of the disk that all sessions of this worker have added to the image cache so far. Of use is only the difference of two
 * answers. */
TP_EXPORT uint64_t tp_quota_stored(const struct tp_quota *quota);
TP_EXPORT void tp_quota_store(const struct tp_quota *quota, uint64_t bytes);

/* What a session counts of its client, for whoever asks the worker how it is. */
struct tp_figures {
    uint64_t frames;         /* executed */
    uint64_t calls;          /* of these, those whose answer a thread waited for */
    uint64_t received, sent; /* bytes, of the control connection and the data connections */
    uint64_t contexts;       /* bit d: the client has a context on device d */
};
TP_EXPORT void tp_quota_tell(const struct tp_quota *quota, const struct tp_figures *figures);

#endif
