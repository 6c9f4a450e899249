"""The simulated GPU: every name that the real libraries export and its own C does not have, and what names mean.

Each is a weak definition, so what native/simgpu defines takes its place and nobody keeps a list. An alias, a
per-thread form and an older form are the function that they stand for. What api/ refuses for good is no weak one: it
answers what a real driver answers there. All others refuse by name, with the code for what is not supported: a look-up
finds what it finds in the real library, and never nothing by accident.
"""

from __future__ import annotations

from . import older
from .describe import Line
from .emit_client import PREFIX, addresses
from .emit_wire import NOTE, error_texts
from .model import RESULTS, Api, Model
from .refusals import beginning, looks
from .snapshot import Prototype, parameter_list

# Where the simulator's name of a kind is not that of api/.
SIM_KINDS = {"graphnode": "GRAPH_NODE", "graphexec": "GRAPH_EXEC", "memory": "PHYS"}
NULL = {"cuda": "CUDA_ERROR_INVALID_VALUE", "nvml": "NVML_ERROR_INVALID_ARGUMENT"}
EXPORT = '__attribute__((visibility("default")))'
HIDDEN = '__attribute__((visibility("hidden"))) '
WEAK = '__attribute__((weak, visibility("default")))'


def rest(model: Model) -> str:
    """tpg_sim_rest.c: the weak definitions, the table of the look-up by name, and what errors are called."""
    own = ('"sim.h"', '"sim_graph.h"', '"sim_nvml.h"', '"tpg_table.h"', "<string.h>")
    lines = [NOTE, *(f"#include {header}" for header in own)]
    for api in model.apis:
        declared = [name for name in api.exports if not api.prototype(name)]
        lines += [f"{_head(api, name)};" for name in declared]
        for name in api.exports:
            lines += _definition(model, api, api.lines[name])
    return "\n".join([*lines, *addresses(model, hide=False), *error_texts(model, HIDDEN), ""])


def _head(api: Api, name: str) -> str:
    prototype = api.head(name)
    if prototype is None:
        return f"{WEAK} {RESULTS[api.name]} {name}(void)"
    return f"{WEAK} {prototype.returns} {name}({parameter_list(prototype)})"


def _definition(model: Model, api: Api, line: Line) -> list[str]:
    prototype = api.head(line.name)
    if line.kind == "refused":
        return _refusal(model, api, line, prototype or Prototype(line.name, RESULTS[api.name], ()))
    params = prototype.params if prototype else ()
    if prototype and prototype.returns != RESULTS[api.name]:
        return []  # a text, for which there is no refusal
    if line.kind == "alias":
        names = ", ".join(p.name for p in params)
        enter = "SIM_ENTER_ANY(); " if api.name == "cuda" else ""
        return [f"{_head(api, line.name)} {{ {enter}return {line.target}({names}); }}"]
    if line.kind == "per_thread":
        names = ", ".join(
            f"{p.name} ? {p.name} : CU_STREAM_PER_THREAD" if p.type == "CUstream" else p.name for p in params
        )
        return [
            f"{_head(api, line.name)} {{",
            "    SIM_ENTER_ANY();",
            "    bool outer = sim_default_per_thread(true);",
            f"    CUresult result = {line.target}({names});",
            "    sim_default_per_thread(outer);",
            "    return result;",
            "}",
        ]
    if line.kind == "older":
        newer = api.resolve(api.lines[line.target])
        items = older.joined(line, prototype, newer, api.prototype(line.target), model.types)
        body, arguments = older.handed_on(line, items, model.types)
        if not any(PREFIX[api.name] in text for text in arguments):  # else it is said in the client's words
            call = f"{newer.name}({', '.join(arguments)})"
            entered = ["    SIM_ENTER_ANY();"] if api.name == "cuda" else []
            return [f"{_head(api, line.name)} {{", *entered, *body, f"    return {call};", "}"]
    unused = [f"    (void){p.name};" for p in params]
    if api.name == "cuda":
        enter, refused = ("SIM_ENTER_ANY();" if line.anytime else "SIM_ENTER();"), "CUDA_ERROR_NOT_SUPPORTED"
    else:
        device = params[0].name if params and params[0].type == "nvmlDevice_t" else ""
        enter = f"SIM_NVML_DEVICE({device}, device_index, true);" if device else "SIM_NVML_STARTED();"
        refused = "NVML_ERROR_NOT_SUPPORTED"
    return [
        f"{_head(api, line.name)} {{",
        *unused,
        f"    {enter}",
        "    static atomic_bool said;",
        "    sim_refuses(__func__, &said);",
        f"    return {refused};",
        "}",
    ]


def _refusal(model: Model, api: Api, line: Line, prototype: Prototype) -> list[str]:
    """The driver's answer to what it cannot do on this machine, after its checks."""
    cuda = api.name == "cuda"
    body = [f"    (void){p.name};" for p in prototype.params]
    body += [f"    {beginning(begins)}"] if (begins := api.beginnings.get(line.name)) else []
    if not cuda:
        body.append("    SIM_NVML_STARTED();")
    elif line.anytime:
        body.append("    SIM_ENTER_ANY();")
    elif line.contextless:
        body.append("    SIM_ENTER();")
    else:
        body += ["    SIM_ENTER_CONTEXT(context);", "    (void)context;"]
    body += ["    SIM_UNSAFE();"] if line.unsafe else []
    for look in looks(line, prototype.params, model.types, model.types.enumerators(RESULTS[api.name])):
        if look.how == "handle" and cuda:
            kind = model.types.kinds[look.kind]
            there = f"{look.name} && " if look.optional else ""
            known = f"sim_is((const void *)(uintptr_t){look.name}, SIM_{SIM_KINDS.get(kind.name, kind.name.upper())})"
            body.append(f"    if ({there}!{known}) {{ return {kind.refused}; }}")
        elif look.how == "handle":
            body.append(f"    SIM_NVML_DEVICE({look.name}, index_{look.name}, true);")
        elif look.how == "device":
            body.append(f"    if (!sim_device_ok({look.name})) {{ return CUDA_ERROR_INVALID_DEVICE; }}")
        else:
            body.append(f"    if (!{look.name}) {{ return {look.code or NULL[api.name]}; }}")
    head = f"{prototype.returns} {prototype.name}({parameter_list(prototype)})"
    return [f"{EXPORT} {head} {{", *body, f"    return {line.code};", "}"]
