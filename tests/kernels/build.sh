#!/bin/sh
# Rebuilds kernels.ptx from kernels.cu. The compiler's comments are left out: they name its build.
# -fmad=false: a * x + y rounds twice, as the same C expression on a CPU does, so results compare bit for bit.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
nvcc -ptx -arch=compute_75 -fmad=false -o "$here/kernels.ptx.new" "$here/kernels.cu"
sed -e '/^\/\//d' -e '/^[[:space:]]*\/\//d' -e 's/[[:space:]]*\/\/ .*$//' "$here/kernels.ptx.new" | cat -s > "$here/kernels.ptx"
rm "$here/kernels.ptx.new"
