/*
 * What callback.c offers to the families whose objects outlive one call of a host function.
 *
 * A lasting thing is made by the executor and ends on whatever thread the driver chooses (tpw_lasting_gone), which only
 * tells the executor; the executor then tells the client and frees it. Nobody else writes it in between.
 */
#ifndef TPW_CALLBACK_H
#define TPW_CALLBACK_H

#include "tpw_session.h"

struct tpw_kept;
struct tpw_lasting;

/* Something of the client, known to it by a token, whose end it must hear of; `object` is a handle that ends then, or 0. */
struct tpw_lasting *tpw_lasting_new(struct tpw_session *s, uint64_t token, uint64_t object);
/* A graph as a user of something that it points at (tpw_keep.h). */
struct tpw_lasting *tpw_lasting_kept(struct tpw_session *s, struct tpw_kept *kept);
/* The driver's destructor. */
void tpw_lasting_gone(void *lasting);

#endif
