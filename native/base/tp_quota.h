/*
 * The quota page: how much device memory the sessions of one worker have reserved, how much of the disk its image cache
 * takes, and what each session counts. Layout in docs/wire-format.md, section 2.
 *
 * A row may belong to a tenant, whose sessions together have a limit below the worker's, and may number its devices otherwise
 * than the worker does, because its process sees some of them only. The supervisor says both before the session has a client.
 * Callers name a device as their session does.
 *
 * The page is shared by the supervisor and all its sessions, which are one trust domain: clients never see it. Every field is
 * read and written atomically; no function here locks or blocks, so a session that dies in the middle can leave only its own
 * bytes in a device's total, never a lock.
 */
#ifndef TP_QUOTA_H
#define TP_QUOTA_H

#include <tp_base.h>

#define TP_QUOTA_MAGIC 0x54464c494d495431ull
#define TP_QUOTA_SIZE (131072u + 4096u + 65536u + 131072u)
#define TP_QUOTA_ROWS 1024u
#define TP_QUOTA_DEVICES 16u

/* Adds `bytes` to what `row` holds on `device`; false, with nothing changed, when that would pass a limit. */
TP_EXPORT bool tp_quota_reserve(void *page, uint32_t row, uint32_t device, uint64_t bytes);
/* Adds them whatever the limit says: for memory that is there already, and that another session has counted so far. */
TP_EXPORT void tp_quota_take_over(void *page, uint32_t row, uint32_t device, uint64_t bytes);
/* Takes `bytes` back; never more than the row holds. */
TP_EXPORT void tp_quota_free(void *page, uint32_t row, uint32_t device, uint64_t bytes);
/* The supervisor, when the session in `row` has ended: gives back all it still held. */
TP_EXPORT void tp_quota_release(void *page, uint32_t row);
/* The limit of a row, the worker's or its tenant's, whichever is smaller; 0 = none. */
TP_EXPORT uint64_t tp_quota_limit(void *page, uint32_t row);
/* What is in use under that limit: the limit less what the row may still reserve. Without a limit: by all sessions. */
TP_EXPORT uint64_t tp_quota_used(void *page, uint32_t row, uint32_t device);

/* Bytes of the disk that the image cache takes, as far as the sessions of this worker know; 0 before one of them has looked. */
TP_EXPORT uint64_t tp_quota_images(void *page);
TP_EXPORT void tp_quota_images_are(void *page, uint64_t bytes);
TP_EXPORT void tp_quota_images_grow(void *page, uint64_t bytes);

/* What a session counts of its client, for whoever asks the worker how it is. */
struct tp_figures {
    uint64_t frames;         /* executed */
    uint64_t calls;          /* of these, those whose answer a thread waited for */
    uint64_t received, sent; /* bytes, of the control connection and the data connections */
    uint64_t contexts;       /* bit d: the client has a context on device d */
};
TP_EXPORT void tp_quota_tell(void *page, uint32_t row, const struct tp_figures *figures);

#endif
