/*
 * Sequences over several objects, from any bytes: each pair or so of bytes is one thing that a program does.
 *
 * Records (fuzz_frames.c) are good at fields; what lives longer than what it points at comes from the order of making and
 * ending, which they seldom get right. A story knows what it has made and what it has ended, makes most of its things in ways that succeed,
 * and ends them in any order: modules under nodes, contexts under streams, graphs under captures.
 */
#ifndef FUZZ_STORY_H
#define FUZZ_STORY_H

#include "fuzz_link.h"

/* Tells the story in frames, which it adds to the link; the objects of an ordinary program (index 0) are there. Words with
 * `address` in the top byte become an address that the session gave out (fuzz_link_translate). */
void fuzz_story(struct tpw_link *link, const unsigned char *bytes, size_t size, unsigned char address);

#endif
