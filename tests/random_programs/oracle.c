/*
 * What a program must compute: the operations one after the other, in the order of the lines, on ordinary memory.
 *
 * Beside each byte stands whether its value is known: memory that nobody has written holds anything. Main thread only,
 * before the program runs. It shares no code with the interpreter but the meaning of host functions.
 */
#include "program.h"

#include <stdlib.h>
#include <string.h>

struct memory {
    size_t size;
    uint8_t *bytes, *known;
    bool of_graph; /* every launch of its graph allocates it anew */
};
/* A graph as the effects of its nodes in the order in which they were added. */
struct effects {
    int count;
    struct effect list[MOST_NODES];
    int node[MOST_NODES]; /* the program's number for the node, -1: of a capture */
};

static struct memory regions[MOST_REGIONS];
static struct effects graphs[MOST_GRAPHS], execs[MOST_EXECS];
static int stream_capture[MOST_STREAMS], event_capture[MOST_EVENTS];

void host_apply(enum host_what what, uint8_t *to, const uint8_t *from, uint64_t value, size_t bytes) {
    switch (what) {
    case HOST_PUT:
        for (size_t i = 0; i < bytes; i++)
            to[i] = (uint8_t)((i * 0x9e3779b1u + value * 0x85ebca6bu) >> 13);
        break;
    case HOST_MIX:
        for (size_t i = 0; i < bytes; i++)
            to[i] = (uint8_t)(to[i] * value + from[i]);
        break;
    case HOST_COPY:
        memcpy(to, from, bytes);
        break;
    default:
        stop("there is no host function %d", (int)what);
    }
}

static uint8_t *at(const struct operation *op, int region, size_t offset, size_t bytes, bool known) {
    struct memory *memory = &regions[region];
    if (!memory->bytes || offset > memory->size || bytes > memory->size - offset)
        fail(op, "the program leaves region %d", region);
    return (known ? memory->known : memory->bytes) + offset;
}

static void apply_rows(const struct operation *op, const struct effect *e) {
    for (size_t row = 0; row < e->height; row++) {
        size_t to = e->to_offset + row * e->to_pitch, from = e->from_offset + row * e->from_pitch;
        size_t bytes = e->width * e->element;
        if (e->code == OP_copy) {
            memmove(at(op, e->to, to, bytes, false), at(op, e->from, from, bytes, false), bytes);
            memmove(at(op, e->to, to, bytes, true), at(op, e->from, from, bytes, true), bytes);
            continue;
        }
        uint8_t *out = at(op, e->to, to, bytes, false);
        if (e->element == 1)
            memset(out, (int)(e->value & 0xff), bytes);
        else
            for (size_t i = 0; i < e->width; i++)
                memcpy(out + i * e->element, &e->value, e->element); /* little-endian */
        memset(at(op, e->to, to, bytes, true), 1, bytes);
    }
}

static void apply(const struct operation *op, const struct effect *e) {
    size_t bytes = e->width * e->element;
    switch (e->code) {
    case OP_copy:
    case OP_set:
    case OP_fill:
    case OP_stamp:
        apply_rows(op, e);
        break;
    case OP_iota: {
        uint8_t *out = at(op, e->to, e->to_offset, bytes, false);
        for (uint32_t i = 0; i < e->width; i++)
            memcpy(out + 4 * (size_t)i, &i, 4);
        memset(at(op, e->to, e->to_offset, bytes, true), 1, bytes);
        break;
    }
    case OP_mix: {
        uint8_t *out = at(op, e->to, e->to_offset, bytes, false), *known = at(op, e->to, e->to_offset, bytes, true);
        const uint8_t *in = at(op, e->from, e->from_offset, bytes, false);
        const uint8_t *in_known = at(op, e->from, e->from_offset, bytes, true);
        for (size_t i = 0; i < e->width; i++) {
            uint32_t a, b;
            memcpy(&a, out + 4 * i, 4);
            memcpy(&b, in + 4 * i, 4);
            a = a * (uint32_t)e->value + b;
            memcpy(out + 4 * i, &a, 4);
            uint8_t all = 1;
            for (size_t j = 4 * i; j < 4 * i + 4; j++)
                all = all && known[j] && in_known[j];
            memset(known + 4 * i, all, 4);
        }
        break;
    }
    case OP_host: {
        uint8_t *known = at(op, e->to, e->to_offset, bytes, true);
        const uint8_t *in = NULL, *in_known = NULL;
        if (e->how != HOST_PUT) {
            in = at(op, e->from, e->from_offset, bytes, false);
            in_known = at(op, e->from, e->from_offset, bytes, true);
        }
        host_apply((enum host_what)e->how, at(op, e->to, e->to_offset, bytes, false), in, e->value, bytes);
        for (size_t i = 0; i < bytes; i++)
            known[i] = e->how == HOST_PUT ? 1 : e->how == HOST_COPY ? in_known[i] : known[i] && in_known[i];
        break;
    }
    case OP_pool_alloc: /* by a graph: what it holds then is anything */
        memset(regions[e->to].known, 0, regions[e->to].size);
        break;
    case OP_spin:
    case OP_empty:
        break;
    default:
        fail(op, "no effect of memory");
    }
}

static void add_node(const struct operation *op, struct effects *graph, const struct effect *e, int node) {
    struct effects one = {.count = 1, .list = {*e}};
    const struct effects *added = e->code == OP_child ? &graphs[e->graph] : &one;
    if (added == graph || graph->count + added->count > MOST_NODES)
        fail(op, "too many nodes");
    for (int i = 0; i < added->count; i++) {
        graph->list[graph->count] = added->list[i];
        graph->node[graph->count++] = added == &one ? node : -1;
    }
}

static void create(const struct operation *op) {
    size_t size = (size_t)op->a[1];
    struct memory *memory = &regions[op->a[0]];
    if (memory->bytes)
        fail(op, "the region exists");
    *memory = (struct memory){.size = size, .bytes = calloc(1, size), .known = calloc(1, size)};
    if (!memory->bytes || !memory->known)
        stop("no memory for the oracle");
}

static void create_in(const struct operation *op, int stream) {
    const struct effect e = {.code = OP_pool_alloc, .to = (int)op->a[0]};
    create(op);
    if (stream_capture[stream] >= 0) {
        regions[op->a[0]].of_graph = true;
        add_node(op, &graphs[stream_capture[stream]], &e, -1);
    }
}

static void release(struct memory *memory) {
    free(memory->bytes);
    free(memory->known);
    *memory = (struct memory){0};
}

static void note(struct operation *op) {
    size_t bytes = (size_t)op->a[2];
    op->expected = malloc(bytes + 1);
    op->known = malloc(bytes + 1);
    if (!op->expected || !op->known)
        stop("no memory for the oracle");
    memcpy(op->expected, at(op, (int)op->a[0], (size_t)op->a[1], bytes, false), bytes);
    memcpy(op->known, at(op, (int)op->a[0], (size_t)op->a[1], bytes, true), bytes);
}

static void step(struct operation *op) {
    const long long *a = op->a;
    struct effect direct = {.code = OP_host, .to = (int)a[0], .to_offset = (size_t)a[1], .element = 1, .height = 1};
    if ((int)op->code < (int)EFFECT_CODES) {
        int graph = op->code == OP_empty || op->code == OP_child ? -1 : stream_capture[op->effect.stream];
        if (graph >= 0)
            add_node(op, &graphs[graph], &op->effect, -1);
        else
            apply(op, &op->effect);
        return;
    }
    switch (op->code) {
    case OP_alloc:
    case OP_vmm:
    case OP_managed:
    case OP_pageable:
    case OP_pinned:
    case OP_registered:
    case OP_pool_from:
        create(op);
        break;
    case OP_pool_alloc:
        create_in(op, (int)a[2]);
        break;
    case OP_free:
    case OP_pool_free:
        if (!regions[a[0]].of_graph)
            release(&regions[a[0]]);
        break;
    case OP_put:
        direct.how = HOST_PUT, direct.width = (size_t)a[2], direct.value = (uint64_t)a[3];
        apply(op, &direct);
        break;
    case OP_host_mix:
        direct.how = HOST_MIX, direct.from = (int)a[2], direct.from_offset = (size_t)a[3];
        direct.value = (uint64_t)a[4], direct.width = (size_t)a[5];
        apply(op, &direct);
        break;
    case OP_check:
    case OP_peek:
        note(op);
        break;
    case OP_graph:
        graphs[a[0]].count = 0;
        break;
    case OP_node:
        add_node(op, &graphs[a[0]], &op->effect, (int)a[1]);
        break;
    case OP_setnode:
        for (int i = 0; i < execs[a[0]].count; i++)
            if (execs[a[0]].node[i] == (int)a[2])
                execs[a[0]].list[i] = op->effect;
        break;
    case OP_inst:
    case OP_update:
        execs[a[0]] = graphs[a[1]];
        break;
    case OP_clone:
        graphs[a[0]] = graphs[a[1]];
        break;
    case OP_launch:
        for (int i = 0, graph = stream_capture[a[1]]; i < execs[a[0]].count; i++) {
            if (graph >= 0)
                add_node(op, &graphs[graph], &execs[a[0]].list[i], -1);
            else
                apply(op, &execs[a[0]].list[i]);
        }
        break;
    case OP_capture: /* stream mode; the graph is known at the end: it is gathered in the last place */
        graphs[MOST_GRAPHS - 1].count = 0;
        stream_capture[a[0]] = MOST_GRAPHS - 1;
        break;
    case OP_end_capture:
        graphs[a[1]] = graphs[MOST_GRAPHS - 1];
        for (int i = 0; i < MOST_STREAMS; i++)
            stream_capture[i] = -1;
        for (int i = 0; i < MOST_EVENTS; i++)
            event_capture[i] = -1;
        break;
    case OP_record:
        event_capture[a[0]] = stream_capture[a[1]];
        break;
    case OP_wait:
        if (event_capture[a[1]] >= 0)
            stream_capture[a[0]] = event_capture[a[1]];
        break;
    default:
        break; /* order only, which the order of the lines has */
    }
}

void oracle_run(struct program *program) {
    for (int i = 0; i < MOST_STREAMS; i++)
        stream_capture[i] = -1;
    for (int i = 0; i < MOST_EVENTS; i++)
        event_capture[i] = -1;
    for (int i = 0; i < program->count; i++)
        step(&program->operations[i]);
    for (int i = 0; i < MOST_REGIONS; i++)
        release(&regions[i]);
}
