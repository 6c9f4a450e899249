"""The simulated GPU in the place of the machine's driver, and the product without a wheel, for trying the runs here."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

from suite import PROGRAMS_FOLDER

NOT_SUPPORTED = 801


def functions_of_cu_h() -> list[str]:
    text = (PROGRAMS_FOLDER / "cu.h").read_text()
    return re.findall(r"F\((cu\w+), \(", text[text.index("#define CU_FUNCTIONS") :])


def simulated_driver(install: Path, folder: Path) -> Path:
    """A folder with both driver libraries of the simulated GPU; what cu.h names and it does not have gives 801."""
    library = (install / "tensor_fusion" / "_native" / "lib" / "libtf-simgpu.so").resolve()
    loaded = ctypes.CDLL(str(library))
    missing = [name for name in functions_of_cu_h() if not hasattr(loaded, name)]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "missing.c"
    source.write_text("".join(f"int {name}(void) {{ return {NOT_SUPPORTED}; }}\n" for name in missing))
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source), "-Wl,-soname,libcuda.so.1"]
    command += ["-Wl,--no-as-needed", str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(command, check=True)
    (folder / "libnvidia-ml.so.1").unlink(missing_ok=True)
    (folder / "libnvidia-ml.so.1").symlink_to(library)
    return folder


def installed_product(folder: Path) -> Path:
    """What installing a wheel into `folder` would have made, of the package and native files that this Python has."""
    import tensor_fusion
    from tensor_fusion.abi import native_folder

    package = folder / "tensor_fusion"
    package.mkdir(parents=True)
    for entry in Path(str(tensor_fusion.__file__)).parent.iterdir():
        if entry.name != "_native":
            (package / entry.name).symlink_to(entry)
    (package / "_native").symlink_to(native_folder())
    (folder / "bin").mkdir()
    for name, module in (("tensor-fusion", "cli"), ("tensor-fusion-worker", "worker")):
        script = folder / "bin" / name
        # The runs clear every TF_ variable, and where the native files are may be known by one.
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\nos.environ['TF_NATIVE_DIR'] = {str(native_folder())!r}\n"
            f"from tensor_fusion.{module}.main import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    return folder
