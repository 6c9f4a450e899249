/*
 * Records of TLS 1.3 (RFC 8446, 5) after the handshake, one direction at a time.
 *
 * OpenSSL makes the handshake and has the cipher. Its own object for records would be used by two threads under a lock, and copy
 * each byte twice more: a small frame sent and received costs 2.2 µs of a processor so, and 4.2 µs with that (OpenSSL 3.0).
 *
 * A struct belongs to the one thread that sends or receives. Keys change by KeyUpdate long before the 2^24.5 records that RFC 8446
 * (5.5) allows for AES-GCM. What is opened is the peer's: sizes are bounded first, and nothing is given out of a record before
 * the whole of it is known to be right.
 */
#ifndef TP_RECORDS_H
#define TP_RECORDS_H

#include <tp_base.h>
#include <tp_sha256.h>

#define TP_RECORD_HEAD 5u
#define TP_RECORD_PLAIN 16384u                                  /* the most of one */
#define TP_RECORD_MORE (TP_RECORD_HEAD + 1 + 16)                /* what is sealed has besides: head, kind and tag */
#define TP_RECORD_MOST (TP_RECORD_HEAD + TP_RECORD_PLAIN + 256) /* of a peer's */
#ifndef TP_RECORDS_OF_A_KEY
#define TP_RECORDS_OF_A_KEY (1u << 22)
#endif

struct tp_half {
    void *cipher; /* OpenSSL's */
    unsigned char secret[TP_SHA256_SIZE], iv[12];
    uint64_t sequence; /* records with this key */
};

void tp_hmac(const void *key, size_t key_size, const void *first, size_t first_size, const void *second,
             size_t second_size, unsigned char out[TP_SHA256_SIZE]);
void tp_wipe(void *secret, size_t size);

/* With the traffic secret that the handshake gave. False when OpenSSL does not. */
bool tp_half_begin(struct tp_half *half, const unsigned char secret[TP_SHA256_SIZE], bool seals);
void tp_half_end(struct tp_half *half);

struct tp_piece {
    const void *start;
    size_t size;
};
/* A record of data from pieces of at most TP_RECORD_PLAIN bytes together, into `out`, behind a change of keys when it is time or
 * `update`: what was written, at most their size and twice TP_RECORD_MORE + 8; 0 when OpenSSL does not. */
size_t tp_seal(struct tp_half *half, bool update, const struct tp_piece *pieces, size_t count, unsigned char *out);

enum tp_opened { TP_OPENED_DATA, TP_OPENED_NOTHING, TP_OPENED_ASKS, TP_OPENED_END, TP_OPENED_WRONG };
/* The size of the record that begins so, head included; 0: there can be none. */
size_t tp_record_size(const unsigned char head[TP_RECORD_HEAD]);
/* Opens the record in its place: DATA is there, `size` bytes behind the head; NOTHING, keys were changed; ASKS, the same, and the
 * peer wants ours changed; END, the peer says that it is over. */
enum tp_opened tp_open(struct tp_half *half, unsigned char *record, size_t *size);

#endif
