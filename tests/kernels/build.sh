#!/bin/sh
# Rebuilds kernels.ptx, mix.ptx and print.ptx from their sources. The compiler's comments are left out: they name its build.
# -fmad=false: a * x + y rounds twice, as the same C expression on a CPU does, so results compare bit for bit.
set -eu
cd "$(dirname "$0")"
for name in kernels mix print; do
    nvcc -ptx -arch=compute_75 -fmad=false -o "$name.ptx.new" "$name.cu"
    sed -e '/^\/\//d' -e '/^[[:space:]]*\/\//d' -e 's/[[:space:]]*\/\/ .*$//' "$name.ptx.new" | cat -s > "$name.ptx"
    rm "$name.ptx.new"
done
