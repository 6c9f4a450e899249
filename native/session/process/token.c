/*
 * Structs of the driver that programs copy about without reading them, such as resources of a device: they hold pointers,
 * which the driver follows when it is given one. So the client never has them: it gets a token, and the struct stays here.
 *
 * Executor thread only. Equal structs are one, so whoever asks again and again takes nothing; what is kept stays as long as
 * the session, since a program may give it back at any time, and is bounded. A token is read from a hostile client.
 */
#include "tpw_session.h"

#include <stdlib.h>

#define KEPT_MAX 4096u
#define LARGEST 256u
#define MAGIC 0x6b6f7461u /* no zeroed struct is taken for a token */

struct kept {
    const char *form;
    size_t size;
    unsigned char bytes[LARGEST];
};
static struct kept *table[KEPT_MAX];
static uint32_t count;

struct token {
    uint32_t magic, index;
};

bool tpw_token_take(const char *form, const void *bytes, size_t room, void *whole, size_t size) {
    struct token token;
    if (room < sizeof token) {
        return false;
    }
    memcpy(&token, bytes, sizeof token);
    if (token.magic != MAGIC || token.index >= count || table[token.index]->size != size ||
        strcmp(table[token.index]->form, form) != 0) {
        return false;
    }
    memcpy(whole, table[token.index]->bytes, size);
    return true;
}

void tpw_token_give(const char *form, const void *whole, size_t size, void *bytes, size_t room, int32_t *error) {
    struct token token = {.magic = MAGIC};
    while (token.index < count && (table[token.index]->size != size || strcmp(table[token.index]->form, form) != 0 ||
                                   memcmp(table[token.index]->bytes, whole, size) != 0)) {
        token.index++;
    }
    memset(bytes, 0, room);
    if (token.index == count) {
        struct kept *kept = count < KEPT_MAX && size <= LARGEST && room >= sizeof token ? malloc(sizeof *kept) : NULL;
        if (!kept) {
            tp_log(TP_WARN, "the client has %u different %s, and gets no more", count, form);
            tpw_set(error, CUDA_ERROR_OUT_OF_MEMORY);
            return;
        }
        kept->form = form;
        kept->size = size;
        memcpy(kept->bytes, whole, size);
        table[count++] = kept;
    }
    memcpy(bytes, &token, sizeof token);
}
