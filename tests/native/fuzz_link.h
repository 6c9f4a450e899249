/*
 * A link in memory for fuzzing: the client is the fuzzer's input, and the session's real code cannot tell.
 *
 * One thread. Stands in for native/session/link/link*.c behind the same seam (tpw_link.h), with the same bounds on frames and
 * blocks; frames lie in memory of exactly their size, so that a read past one is seen.
 */
#ifndef FUZZ_LINK_H
#define FUZZ_LINK_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <tpw_link.h>

/* A link over nothing; frames and blocks are added, then the session runs until it has read them all. */
struct tpw_link *fuzz_link_new(void);
void fuzz_link_free(struct tpw_link *link);
/* Bytes as a client might send them: whole frames are cut off, a bad size ends the link as it does on a socket. */
void fuzz_link_stream(struct tpw_link *link, const unsigned char *bytes, size_t size);
/* A frame with a good header and `size` bytes of body, which is padded. */
void fuzz_link_frame(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, uint32_t context,
                     const void *body, size_t size);
/* The same for the input of an operation, by its name and fields. */
#define FUZZ_SEND(link, thread, context, name, flags, ...)                                                             \
    do {                                                                                                               \
        const struct tpg_##name##_in a_ = {__VA_ARGS__};                                                               \
        size_t size_ = tpg_size_##name##_in(&a_);                                                                      \
        unsigned char *body_ = aligned_alloc(8, tp_padded(size_) + 8);                                                 \
        struct tp_cursor c_ = tp_cursor_make(body_, size_);                                                            \
        tpg_put_##name##_in(&c_, &a_);                                                                                 \
        CHECK(!c_.bad);                                                                                                \
        fuzz_link_frame(link, TPG_OP_##name, flags, thread, context, body_, size_);                                    \
        free(body_);                                                                                                   \
    } while (0)
/* Nothing for a moment, and until no completion is to come: the session looks at everything that it looks at when it is idle. */
void fuzz_link_pause(struct tpw_link *link);
/* The link is over when the session has read all frames; it goes on with those that come now. */
void fuzz_link_again(struct tpw_link *link);
/* A block of an upload. */
void fuzz_link_block(struct tpw_link *link, uint64_t transfer, uint64_t offset, uint32_t size, unsigned char fill);
/* The first word of the `index`-th newest answer that had one: addresses that the session gave out. */
uint64_t fuzz_link_answer(const struct tpw_link *link, size_t index);
/* Answers and notices that tell of an error. */
size_t fuzz_link_failures(const struct tpw_link *link);
/* Where blocks get their memory, as in tpw_link_open: pinned, because copies with other memory are not asynchronous. */
void fuzz_link_staging(struct tpw_link *link, void *(*allocate)(size_t), void (*release)(void *));
/* Whether completions are still to come: an empty link stays open for them a little, else it closes at once. */
void fuzz_link_busy(struct tpw_link *link, bool (*busy)(void));
/* What a word of a body becomes just before the session sees it. */
typedef uint64_t fuzz_word(const struct tpw_link *link, uint64_t word);
void fuzz_link_translate(struct tpw_link *link, fuzz_word *translate);

#endif
