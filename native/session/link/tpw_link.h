/*
 * The session's side of the connection: frames in, replies and messages out, transfers both ways.
 *
 * The executor thread owns the link. Two threads per data connection move chunks: the receiver writes into pinned staging
 * buffers that only it and the executor touch, the sender reads them; both talk to the executor through queues. Every byte
 * that arrives is hostile: sizes are bounded before memory is touched, and the first violation ends the session. Over a
 * slot of the shared segment there are no such threads: the client's own threads copy, and blocks lie in memory that it shares.
 */
#ifndef TPW_LINK_H
#define TPW_LINK_H

#include <tp_base.h>
#include <tp_wire.h>

struct tpw_link;
struct tp_secure;

/* `control` is the connected control socket; `secure`, NULL for a plain one, belongs to the link, too. Staging memory is asked for
 * on the first transfer, through the two functions (pinned memory of the driver), in blocks of TP_CHUNK_MAX. */
enum tp_status tpw_link_open(struct tpw_link **out, int control, struct tp_secure *secure, void *(*allocate)(size_t),
                             void (*release)(void *));
/* The same over `slot` of a shared segment that lies at `base`. `first` and `blocks` are the supervisor's words for its run,
 * inside the segment; the slot itself is the client's to write. Staging memory is the run's. */
enum tp_status tpw_link_open_slot(struct tpw_link **out, unsigned char *base, uint32_t slot, uint32_t first,
                                  uint32_t blocks);
/* Of a link that is over, before the session ends: a data thread may be about to say why. At most a second. */
void tpw_link_await_reason(struct tpw_link *link);
void tpw_link_close(struct tpw_link *link);
/* Adds data connection `index`; the link owns the socket and `secure` from now on. May be called by the executor at any time. */
enum tp_status tpw_link_add_data(struct tpw_link *link, uint32_t index, int socket, struct tp_secure *secure);

/* Next complete frame in private memory, valid until the next call; NULL when none is complete yet. Non-blocking. *status
 * says TP_OK, TP_ERROR_LOST (orderly end or reset) or TP_ERROR_PROTOCOL (frame size out of bounds or not a multiple of 8). */
const struct tp_frame *tpw_link_next(struct tpw_link *link, enum tp_status *status);
bool tpw_link_begins(struct tpw_link *link); /* whether there is a frame, which stays where it is */
/* The frame that was handed out last stays valid while others are read in the middle of it, until `over`. False without memory, when
 * the link is over. */
bool tpw_link_keep(struct tpw_link *link);
void tpw_link_keep_over(struct tpw_link *link);
/* Sleeps until bytes arrive, a data thread has news, `extra_fd` (or -1) is readable, or the timeout ends. Flushes first. */
void tpw_link_wait(struct tpw_link *link, int extra_fd, uint64_t timeout_ns);

/* The same in the middle of a frame, for blocks of a transfer: frames that wait unread do not end this sleep. */
void tpw_link_wait_data(struct tpw_link *link, int extra_fd, uint64_t timeout_ns);
/* Beside a client that sends and waits for nothing: no look at the ring for `ns`, or until somebody waits; for `least_ns` where nobody
 * can tell. False over TCP, where the client's sender naps: whoever sleeps is woken by what that sends. */
bool tpw_link_nap(struct tpw_link *link, uint64_t ns, uint64_t least_ns);
/* Ends the executor's sleep, so that it looks at extra_fd: nothing else wakes it beside a slot. Any thread. */
void tpw_link_wake(struct tpw_link *link);
/* Why the link is over, TP_OK while it is not: whoever waits for blocks in a loop must look, since none will come any more. */
enum tp_status tpw_link_status(const struct tpw_link *link);

/* A reply or message of `size` body bytes (header added), to be filled in and committed before the next begin. Output is
 * gathered and sent by flush; when the peer does not read, up to 64 MiB are kept, then the link counts as lost. */
unsigned char *tpw_reply_begin(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, size_t size);
void tpw_reply_commit(struct tpw_link *link, int32_t result, size_t used);
/* The same, with what the body's writer has lent (tp_wire.h), which is not looked at any more afterwards. */
void tpw_reply_commit_lent(struct tpw_link *link, int32_t result, size_t used, struct tp_cursor *body);
/* Bytes that have come and gone, with those of transfers. */
void tpw_link_bytes(const struct tpw_link *link, uint64_t *received, uint64_t *sent);
/* Bytes that wait for a client that does not read. */
size_t tpw_link_unread(const struct tpw_link *link);
/* True when all of it is where the client reads. */
bool tpw_link_flush(struct tpw_link *link);

/* ---- transfers in (client → session) ----
 * A block of staging memory with payload bytes of one transfer. */
struct tpw_block {
    uint64_t transfer, offset;
    uint32_t size;
    unsigned char *memory; /* pinned, TP_CHUNK_MAX bytes */
};
/* How many blocks uploads have. Queued copies may hold half of them, so that a stream that stands still leaves some for
 * what comes after. */
uint32_t tpw_upload_blocks(const struct tpw_link *link);
/* A received block of `transfer`, or NULL when none has come yet. Non-blocking. */
struct tpw_block *tpw_upload_take(struct tpw_link *link, uint64_t transfer);
/* Gives the staging memory back once the copy engine has read it. Any thread. */
void tpw_upload_done(struct tpw_link *link, struct tpw_block *block);
/* The next `size` bytes of `transfer` that come are thrown away: for a call that was refused after its frame announced them.
 * Without it their blocks would hold up the transfers behind them for ever. */
enum tp_status tpw_upload_drop(struct tpw_link *link, uint64_t transfer, uint64_t size);

/* ---- transfers out (session → client) ---- */
/* How many blocks downloads have; queued copies may hold half of them, so that some always go round to the client. */
uint32_t tpw_download_blocks(const struct tpw_link *link);
/* An empty block, or NULL when all are in use. */
struct tpw_block *tpw_download_block(struct tpw_link *link);
/* Hands a filled block to a data connection; it returns to the pool when sent. With `last`, the transfer counts as handed
 * over: frames that complete something and are committed after this carry the new count. */
void tpw_download_send(struct tpw_link *link, struct tpw_block *block, bool last);
/* Gives a block back unsent (the copy failed). */
void tpw_download_drop(struct tpw_link *link, struct tpw_block *block);
/* True while the client has opened at least one data connection, and over a slot. */
bool tpw_link_has_data(const struct tpw_link *link);

#endif
