// PTX as a compiler sees it: refuses instructions and directives that PTX 9.0 does not have, and names that nothing declares.
//
// A second pass over a text that sim_ptx.c has read: statement by statement, with the names of the module and of the function
// at hand. Operand types and counts are not looked at. A name may be used before it is declared (labels are), so uses are
// looked up when the function ends. The text is hostile and bounded by `size`; every table is bounded by it, too. No state.
#include "sim.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What stands before the first dot of an instruction.
static const char *const opcodes[] = {
    "abs",          "activemask",    "add",       "addc",       "alloca",
    "and",          "applypriority", "atom",      "bar",        "barrier",
    "bfe",          "bfi",           "bfind",     "bmsk",       "bra",
    "brev",         "brkpt",         "brx",       "call",       "clusterlaunchcontrol",
    "clz",          "cnot",          "copysign",  "cos",        "cp",
    "createpolicy", "cvt",           "cvta",      "discard",    "div",
    "dp2a",         "dp4a",          "elect",     "ex2",        "exit",
    "fence",        "fma",           "fns",       "getctarank", "griddepcontrol",
    "isspacep",     "istypep",       "ld",        "ldmatrix",   "ldu",
    "lg2",          "lop3",          "mad",       "mad24",      "madc",
    "mapa",         "match",         "max",       "mbarrier",   "membar",
    "min",          "mma",           "mov",       "movmatrix",  "mul",
    "mul24",        "multimem",      "nanosleep", "neg",        "not",
    "or",           "pmevent",       "popc",      "prefetch",   "prefetchu",
    "prmt",         "rcp",           "red",       "redux",      "rem",
    "ret",          "rsqrt",         "sad",       "selp",       "set",
    "setmaxnreg",   "setp",          "shf",       "shfl",       "shl",
    "shr",          "sin",           "slct",      "sqrt",       "st",
    "stackrestore", "stacksave",     "stmatrix",  "sub",        "subc",
    "suld",         "suq",           "sured",     "sust",       "szext",
    "tanh",         "tcgen05",       "tensormap", "testp",      "tex",
    "tld4",         "trap",          "txq",       "vabsdiff",   "vabsdiff2",
    "vabsdiff4",    "vadd",          "vadd2",     "vadd4",      "vavrg2",
    "vavrg4",       "vmad",          "vmax",      "vmax2",      "vmax4",
    "vmin",         "vmin2",         "vmin4",     "vote",       "vset",
    "vset2",        "vset4",         "vshl",      "vshr",       "vsub",
    "vsub2",        "vsub4",         "wgmma",     "wmma",       "xor"};

// Registers that the hardware has; those with a number or a size behind the name stand once.
static const char *const special[] = {"tid",
                                      "ntid",
                                      "laneid",
                                      "warpid",
                                      "nwarpid",
                                      "ctaid",
                                      "nctaid",
                                      "smid",
                                      "nsmid",
                                      "gridid",
                                      "is_explicit_cluster",
                                      "clusterid",
                                      "nclusterid",
                                      "cluster_ctaid",
                                      "cluster_nctaid",
                                      "cluster_ctarank",
                                      "cluster_nctarank",
                                      "lanemask_eq",
                                      "lanemask_le",
                                      "lanemask_lt",
                                      "lanemask_ge",
                                      "lanemask_gt",
                                      "clock",
                                      "clock_hi",
                                      "clock64",
                                      "pm",
                                      "envreg",
                                      "globaltimer",
                                      "globaltimer_lo",
                                      "globaltimer_hi",
                                      "reserved_smem_offset_",
                                      "total_smem_size",
                                      "aggr_smem_size",
                                      "dynamic_smem_size",
                                      "current_graph_exec"};

// Behind the head of a function.
static const char *const performance[] = {
    ".maxntid",           ".reqntid",      ".minnctapersm",         ".maxnctapersm",    ".maxnreg",
    ".noreturn",          ".pragma",       ".reqnctapercluster",    ".explicitcluster", ".maxclusterrank",
    ".blocksareclusters", ".abi_preserve", ".abi_preserve_control", ".unique",          ".attribute"};

// Functions that the driver adds to a program by itself.
static const char *const system_functions[] = {"vprintf", "malloc", "free", "__assertfail", "cuda", "__cuda", "cnp"};

typedef struct {
    const char *at;
    size_t length;
    unsigned line;
    bool range;    // name<N>: the name and a number
    bool external; // a function that another module has
    bool defined;  // a function with a body
} name_t;

typedef struct {
    name_t *items;
    size_t count, capacity;
} names_t;

typedef struct {
    const char *at, *end, *token;
    size_t length; // 0: end of text
    unsigned line;
    names_t module, function, uses;
    char *log;
    size_t log_size;
    CUresult result;
} check_t;

static bool fail(check_t *c, CUresult result, const char *what, const char *token, size_t length) {
    if (c->result == CUDA_SUCCESS && c->log_size)
        snprintf(c->log, c->log_size, "ptxas application ptx input, line %u; error   : %s '%.*s'", c->line, what,
                 (int)(length < 60 ? length : 60), token);
    c->result = c->result ? c->result : result;
    c->length = 0;
    return false;
}

static bool in_word(const check_t *c) {
    char at = *c->at;
    return isalnum((unsigned char)at) || at == '_' || at == '$' || at == '%' || at == '.';
}

static void next(check_t *c) {
    c->length = 0;
    while (c->at < c->end && c->result == CUDA_SUCCESS) {
        if (isspace((unsigned char)*c->at)) {
            c->line += *c->at++ == '\n';
        } else if (c->end - c->at >= 2 && c->at[0] == '/' && c->at[1] == '/') {
            while (c->at < c->end && *c->at != '\n')
                c->at++;
        } else if (c->end - c->at >= 2 && c->at[0] == '/' && c->at[1] == '*') {
            for (c->at += 2; c->end - c->at >= 2 && !(c->at[0] == '*' && c->at[1] == '/'); c->at++)
                c->line += *c->at == '\n';
            if (c->end - c->at < 2) {
                fail(c, CUDA_ERROR_INVALID_PTX, "a comment without end", "", 0);
                return;
            }
            c->at += 2;
        } else {
            break;
        }
    }
    if (c->at >= c->end || c->result != CUDA_SUCCESS)
        return;
    c->token = c->at;
    if (*c->at == '"') {
        for (c->at++; c->at < c->end && *c->at != '"'; c->at++)
            c->line += *c->at == '\n';
        c->at += c->at < c->end;
    } else if (in_word(c)) {
        const bool directive = *c->at == '.'; // two of them need no space between: .reg.b16
        while (c->at < c->end && !(directive && c->at > c->token && *c->at == '.')) {
            if (in_word(c))
                c->at++;
            else if (c->end - c->at >= 3 && c->at[0] == ':' && c->at[1] == ':')
                c->at += 2; // ld.shared::cta
            else
                break;
        }
    } else {
        c->at++;
    }
    c->length = (size_t)(c->at - c->token);
}

static bool is(const check_t *c, const char *text) {
    return c->length == strlen(text) && !memcmp(c->token, text, c->length);
}

static bool is_name(const check_t *c) {
    return c->length && (isalpha((unsigned char)*c->token) || strchr("_$%", *c->token));
}

static bool one_of(const char *const *list, size_t count, const char *text, size_t length, bool prefix) {
    for (size_t i = 0; i < count; i++) {
        size_t size = strlen(list[i]);
        if ((size == length || (prefix && size < length)) && !memcmp(list[i], text, size))
            return true;
    }
    return false;
}
#define ONE_OF(list, text, length, prefix) one_of(list, sizeof(list) / sizeof *(list), text, length, prefix)

static void note(check_t *c, names_t *names, const char *at, size_t length) {
    if (!sim_grow(&names->items, &names->capacity, names->count + 1, sizeof *names->items)) {
        fail(c, CUDA_ERROR_OUT_OF_MEMORY, "no memory for", at, length);
        return;
    }
    names->items[names->count++] = (name_t){.at = at, .length = length, .line = c->line};
}

static bool digits(const char *at, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!isdigit((unsigned char)at[i]))
            return false;
    return length > 0;
}

static const name_t *find(const names_t *names, const char *at, size_t length) {
    for (size_t i = names->count; i-- > 0;) {
        const name_t *name = &names->items[i];
        if (length < name->length || memcmp(name->at, at, name->length))
            continue;
        if (length == name->length ? !name->range : name->range && digits(at + name->length, length - name->length))
            return name;
    }
    return NULL;
}

// To the end of a statement; names in it that are not values go to `names`, if there is such a list.
static void declaration(check_t *c, names_t *names) {
    bool value = false;
    unsigned braces = 0;
    for (next(c); c->length && !(is(c, ";") && !braces); next(c)) {
        if (is(c, "{"))
            braces++;
        else if (is(c, "}") && !braces--) {
            fail(c, CUDA_ERROR_INVALID_PTX, "a declaration without end near", c->token, c->length);
            return;
        } else if (is(c, "="))
            value = true;
        else if (is(c, ",") && !braces)
            value = false;
        else if (is(c, "<") && names && names->count)
            names->items[names->count - 1].range = true;
        else if (!value && names && is_name(c))
            note(c, names, c->token, c->length);
    }
    if (!c->length)
        fail(c, CUDA_ERROR_INVALID_PTX, "the text ends in", "a declaration", 13);
}

// From "(" to ")": the names of parameters.
static void parameters(check_t *c) {
    for (next(c); c->length && !is(c, ")"); next(c))
        if (is_name(c))
            note(c, &c->function, c->token, c->length);
    next(c);
}

static void use(check_t *c) {
    const char *dot = memchr(c->token, '.', c->length);
    size_t length = dot ? (size_t)(dot - c->token) : c->length;
    if (*c->token == '%' && ONE_OF(special, c->token + 1, length - 1, false))
        return;
    if ((length > 3 && !memcmp(c->token, "%pm", 3) && isdigit((unsigned char)c->token[3])) ||
        (length > 7 && !memcmp(c->token, "%envreg", 7)) ||
        (length > 22 && !memcmp(c->token, "%reserved_smem_offset_", 22)))
        return;
    if ((length == 1 && *c->token == '_') || (length == 7 && !memcmp(c->token, "WARP_SZ", 7)))
        return;
    note(c, &c->uses, c->token, length);
}

// Stands at the opcode; ends behind the semicolon.
static void instruction(check_t *c) {
    const char *dot = memchr(c->token, '.', c->length);
    size_t length = dot ? (size_t)(dot - c->token) : c->length;
    if (!ONE_OF(opcodes, c->token, length, false)) {
        fail(c, CUDA_ERROR_INVALID_PTX, "there is no instruction", c->token, c->length);
        return;
    }
    unsigned braces = 0;
    for (next(c); c->length && !is(c, ";"); next(c)) {
        if (is(c, "{"))
            braces++;
        else if (is(c, "}") && !braces--)
            break;
        else if (is_name(c))
            use(c);
    }
    if (!is(c, ";"))
        fail(c, CUDA_ERROR_INVALID_PTX, "an instruction without end near", c->length ? c->token : "", c->length);
    next(c);
}

static void skip(check_t *c, unsigned tokens) {
    while (tokens--)
        next(c);
}

// .file n "name" [, time, size] and .loc n n n [, function_name label [+ n], inlined_at n n n]: these have no semicolon.
static void line_information(check_t *c) {
    skip(c, is(c, ".loc") ? 4 : 3);
    while (is(c, ",")) {
        next(c);
        bool inlined = is(c, "inlined_at"), name = is(c, "function_name");
        skip(c, inlined ? 4 : name ? 2 : 1);
        if (name && is(c, "+"))
            skip(c, 2);
    }
}

static void statement(check_t *c) {
    static const char *const variables[] = {".reg", ".local", ".shared", ".param", ".const", ".global", ".tex"};
    static const char *const others[] = {".pragma", ".branchtargets", ".calltargets", ".callprototype"};
    if (is(c, ";")) {
        next(c);
    } else if (is(c, "@")) {
        next(c);
        if (is(c, "!"))
            next(c);
        if (is_name(c)) {
            use(c);
            next(c);
        }
        if (!is_name(c))
            fail(c, CUDA_ERROR_INVALID_PTX, "no instruction behind the guard near", c->length ? c->token : "",
                 c->length);
        else
            instruction(c);
    } else if (is(c, ".loc") || is(c, ".file")) {
        line_information(c);
    } else if (ONE_OF(variables, c->token, c->length, false)) {
        declaration(c, &c->function);
        next(c);
    } else if (ONE_OF(others, c->token, c->length, false)) {
        declaration(c, NULL);
        next(c);
    } else if (is_name(c) && c->at < c->end && (*c->at == ':' || isspace((unsigned char)*c->at))) {
        const char *name = c->token, *at = c->at;
        size_t length = c->length;
        unsigned line = c->line;
        next(c);
        if (is(c, ":")) {
            note(c, &c->function, name, length);
            next(c);
            return;
        }
        if (c->result != CUDA_SUCCESS)
            return;
        *c = (check_t){.at = at,
                       .end = c->end,
                       .token = name,
                       .length = length,
                       .line = line,
                       .module = c->module,
                       .function = c->function,
                       .uses = c->uses,
                       .log = c->log,
                       .log_size = c->log_size};
        instruction(c);
    } else if (is_name(c)) {
        instruction(c);
    } else {
        fail(c, CUDA_ERROR_INVALID_PTX, "no statement begins with", c->token, c->length);
    }
}

static void look_up(check_t *c) {
    for (size_t i = 0; i < c->uses.count && c->result == CUDA_SUCCESS; i++) {
        const name_t *use = &c->uses.items[i];
        const name_t *found = find(&c->function, use->at, use->length);
        found = found ? found : find(&c->module, use->at, use->length);
        c->line = use->line;
        if (!found || (found->external && !ONE_OF(system_functions, use->at, use->length, true)))
            fail(c, CUDA_ERROR_INVALID_PTX, found ? "nobody defines" : "nobody declares", use->at, use->length);
    }
}

static void function(check_t *c, bool external) {
    c->function.count = c->uses.count = 0;
    next(c);
    if (is(c, "("))
        parameters(c);
    if (!is_name(c)) {
        fail(c, CUDA_ERROR_INVALID_PTX, "no name of a function:", c->length ? c->token : "", c->length);
        return;
    }
    const name_t *before = find(&c->module, c->token, c->length);
    bool again = before && before->defined;
    const char *name = c->token;
    size_t length = c->length;
    note(c, &c->module, name, length);
    size_t own = c->module.count - 1;
    next(c);
    if (is(c, "("))
        parameters(c);
    while (c->length && !is(c, "{") && !is(c, ";")) {
        if (*c->token == '.' && !ONE_OF(performance, c->token, c->length, false))
            fail(c, CUDA_ERROR_INVALID_PTX, "there is no directive", c->token, c->length);
        next(c);
    }
    if (c->result != CUDA_SUCCESS)
        return;
    if (again && is(c, "{")) {
        fail(c, CUDA_ERROR_INVALID_PTX, "a second function", name, length);
        return;
    }
    c->module.items[own].external = external && is(c, ";");
    c->module.items[own].defined = is(c, "{");
    if (is(c, ";")) {
        next(c);
        return;
    }
    unsigned depth = 0;
    do {
        if (is(c, "{")) {
            depth++;
            next(c);
        } else if (is(c, "}")) {
            depth--;
            next(c);
        } else {
            statement(c);
        }
    } while (c->length && depth);
    if (depth)
        fail(c, CUDA_ERROR_INVALID_PTX, "the text ends inside", "a function", 10);
    look_up(c);
}

static void section(check_t *c) { // of debug data
    while (c->length && !is(c, "{"))
        next(c);
    while (c->length && !is(c, "}"))
        next(c);
    next(c);
}

static void top(check_t *c) {
    static const char *const linkage[] = {".visible", ".weak", ".common"};
    static const char *const variables[] = {".global", ".const", ".shared", ".tex", ".local"};
    static const char *const words[] = {".version", ".target", ".address_size"};
    bool external = false;
    for (next(c); c->length && c->result == CUDA_SUCCESS;) {
        bool before = external;
        external = is(c, ".extern");
        if (external || is(c, ";") || ONE_OF(linkage, c->token, c->length, false)) {
            next(c);
        } else if (ONE_OF(words, c->token, c->length, false)) {
            next(c);
            next(c);
            while (is(c, ",")) {
                next(c);
                next(c);
            }
        } else if (is(c, ".entry") || is(c, ".func")) {
            function(c, before);
        } else if (ONE_OF(variables, c->token, c->length, false)) {
            declaration(c, &c->module);
            next(c);
        } else if (is(c, ".pragma") || is(c, ".alias")) {
            declaration(c, NULL);
            next(c);
        } else if (is(c, ".file") || is(c, ".loc")) {
            line_information(c);
        } else if (is(c, ".section")) {
            section(c);
        } else {
            fail(c, CUDA_ERROR_INVALID_PTX, "no statement of a module begins with", c->token, c->length);
        }
    }
}

CUresult sim_ptx_check(const char *text, uint64_t size, char *log, size_t log_size) {
    check_t c = {.at = text, .end = text + size, .line = 1, .log = log, .log_size = log_size};
    top(&c);
    free(c.module.items);
    free(c.function.items);
    free(c.uses.items);
    return c.result;
}
