"""tensor-fusion vm, its --check, and doctor and demo over shared memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from segment_harness import FREE, HEADER, SegmentWorker
from worker_harness import environment, eventually, suspend

from tensor_fusion.client import segment as segment_module
from tensor_fusion.client import vmcheck
from tensor_fusion.client.segment import SegmentFile
from tensor_fusion.client.vm import instructions
from tensor_fusion.config import UserError

NATIVE = {"TF_NATIVE_DIR": os.environ["TF_NATIVE_DIR"]} if "TF_NATIVE_DIR" in os.environ else {}


def cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensor_fusion", *arguments],
        env=environment(**NATIVE, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def failure(file: str, megabytes: int | None = None) -> tuple[str, str]:
    """Name and sentence of the check that fails."""
    failed = [one for one in vmcheck.examine(file, megabytes) if not one.passed]
    assert len(failed) == 1, failed
    return failed[0].name, failed[0].text


# What it prints


def test_instructions() -> None:
    texts = instructions("/my_shm", 256, "gpuusers")
    assert texts.qemu == (
        "-object memory-backend-file,id=tensorfusion,mem-path=/dev/shm/my_shm,size=256M,share=on "
        "-device ivshmem-plain,memdev=tensorfusion"
    )
    device = ElementTree.fromstring(texts.libvirt)
    assert device.get("name") == "my_shm"
    assert (device.find("model").get("type"), device.find("size").text) == ("ivshmem-plain", "256")  # type: ignore[union-attr]
    assert texts.worker == "tensor-fusion-worker -n shmem -m /my_shm -M 256"
    for part in ('ATTR{vendor}=="0x1af4"', 'ATTR{device}=="0x1110"', 'ATTR{enable}="1"', "chgrp gpuusers", "0660"):
        assert part in texts.udev
    assert "\n" not in texts.udev


def test_instructions_for_a_file() -> None:
    texts = instructions("/mnt/huge/segment", 64, "video")
    assert "mem-path=/mnt/huge/segment,size=64M,share=on" in texts.qemu
    # <shmem> of libvirt knows names in /dev/shm only.
    assert "<shmem" not in texts.libvirt
    assert "mem-path=/mnt/huge/segment,size=64M,share=on" in texts.libvirt


def test_client_lines_find_the_device(tmp_path: Path) -> None:
    for name, number in (("0000:00:03.0", "0x1000"), ("0000:00:04.0", "0x1110")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "device").write_text(number + "\n")
    lines = instructions("/my_shm", 256, "video").client.replace("/sys/bus/pci/devices", str(tmp_path))
    shown = subprocess.run(
        ["sh", "-c", lines + '\necho "$TENSOR_FUSION_OPERATOR_CONNECTION_INFO"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"shmem+{tmp_path}/0000:00:04.0/resource2+256+0\n"


@pytest.mark.parametrize(
    ("name", "megabytes", "group", "words"),
    [
        ("/my_shm", 48, "video", "power of two"),
        ("/my_shm", 8, "video", "16 to 1048576"),
        ("/my_shm", 0, "video", "16 to 1048576"),
        ("/my_shm", 2097152, "video", "16 to 1048576"),
        ("/my shm", 256, "video", "'/my shm'"),
        ("/my,shm", 256, "video", "'/my,shm'"),
        ("/my_shm", 256, "video; rm", "--group"),
        ("..", 256, "video", "'..'"),
    ],
)
def test_wrong_instructions(name: str, megabytes: int, group: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        instructions(name, megabytes, group)
    assert words in caught.value.sentence


def test_command_prints_all_parts() -> None:
    done = cli("vm", "-m", "/other", "--size", "64")
    assert done.returncode == 0, done.stderr
    texts = json.loads(cli("vm", "--shmem-file", "/other", "-M", "64", "--json").stdout)
    assert set(texts) == {"worker", "qemu", "libvirt", "udev", "client"}
    assert all(text in done.stdout for text in texts.values())
    assert cli("vm", "-M", "48").returncode == 2


# --check


def test_everything_passes_beside_a_worker(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        done = cli("vm", "--check", "-m", segment_name, "-M", "64", "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["passed"]) == (0, True), done.stdout
        names = [check["name"] for check in report["checks"]]
        assert names == ["file", "memory type", "worker", "heartbeat", "writes arrive", "connection string"]
        assert report["checks"][-1]["text"] == f"shmem+/dev/shm{segment_name}+64+0"
        # It leaves nothing: no session was used up, and its slot is free again.
        assert not worker.adopted()
        assert eventually(lambda: worker.slot_state(0) == FREE, 2)


def test_it_needs_the_standard_library_only(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path):
        words = [sys.executable, "-S", "-m", "tensor_fusion.client.vmcheck", "--json", segment_name, "64"]
        done = subprocess.run(words, env=environment(**NATIVE), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["passed"]
    failed = subprocess.run(
        [*words[:4], "/none"], env=environment(**NATIVE), capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "FAIL  file" in failed.stdout
    usage = subprocess.run([*words[:4], "-x"], env=environment(**NATIVE), capture_output=True, text=True, check=False)
    assert usage.returncode == 2


def test_worker_that_wants_a_secret(segment_name: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("hush\n")
    with SegmentWorker(segment_name, tmp_path, TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=str(keys)):
        checks = list(vmcheck.examine(segment_name, 64))
        assert all(check.passed for check in checks)
        assert "asks for a secret" in checks[4].text


def test_wrong_size_and_no_file(segment_name: str, tmp_path: Path) -> None:
    assert failure(segment_name) == (
        "file",
        f"/dev/shm{segment_name} does not exist; start tensor-fusion-worker -n shmem on it, and in a virtual machine "
        "look for the device with 'tensor-fusion vm --check'.",
    )
    with SegmentWorker(segment_name, tmp_path):
        name, text = failure(segment_name, 32)
        assert name == "file"
        assert "64 MB" in text and "32 MB" in text


@pytest.mark.parametrize(
    ("content", "check", "words"),
    [
        (b"", "file", "0 MB"),
        (bytes(16 << 20), "worker", "is empty: no worker"),
        (b"\xff" * (16 << 20), "worker", "all ones"),
        (b"junk" * (4 << 20), "worker", "something else"),
    ],
    ids=["nothing", "zeros", "ones", "junk"],
)
def test_what_is_no_segment(tmp_path: Path, content: bytes, check: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    name, text = failure(str(path))
    assert name == check
    assert words in text


@contextlib.contextmanager
def beating_copy(worker: SegmentWorker, path: Path) -> Iterator[mmap.mmap]:
    """A copy of a live segment in which only the heart moves: what a guest with share=off would see at best."""
    shutil.copyfile(worker.path, path)
    stop = threading.Event()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:

        def beat() -> None:
            count = 0
            while not stop.wait(0.005):
                count += 1
                struct.pack_into("<Q", memory, HEADER["heartbeat"], count)

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield memory
        finally:
            stop.set()
            thread.join()


def test_writes_that_do_not_arrive_name_share_on(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path, megabytes=16) as worker, beating_copy(worker, tmp_path / "copy"):
        name, text = failure(str(tmp_path / "copy"))
        assert name == "writes arrive"
        assert "share=on" in text


def test_other_versions_and_sizes(segment_name: str, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    with SegmentWorker(segment_name, tmp_path, megabytes=16) as worker, beating_copy(worker, path) as memory:
        struct.pack_into("<Q", memory, HEADER["size"], 32 << 20)
        name, text = failure(str(path))
        assert name == "worker"
        assert "32 MB" in text and "16 MB" in text
        struct.pack_into("<I", memory, HEADER["version"], 9)
        assert "frame versions 9 and 2): upgrade the client" in failure(str(path))[1]


def test_stopped_and_ended_workers(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        with worker.path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        suspend(worker.process)
        name, text = failure(segment_name)
        worker.process.send_signal(signal.SIGCONT)
        assert name == "heartbeat"
        assert "stands still" in text
        assert worker.stop() == 0
    name, text = failure(segment_name)
    assert (name, "has ended" in text) == ("worker", True)
    mapped.close()


def test_uncached_memory_is_named(segment_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentFile, "read_speed", lambda _: 123.0)
    with SegmentWorker(segment_name, tmp_path):
        name, text = failure(segment_name)
        assert name == "memory type"
        assert "123 MB/s" in text and "write-back" in text


def test_read_speed_is_that_of_memory(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path), SegmentFile(Path("/dev/shm" + segment_name), 64) as file:
        assert file.read_speed() > segment_module.UNCACHED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_permission_names_the_user_and_the_fix(segment_name: str, tmp_path: Path) -> None:
    script = "import sys; from tensor_fusion.client.vmcheck import main; sys.exit(main(sys.argv[1:]))"
    with SegmentWorker(segment_name, tmp_path) as worker:
        for mode, word in ((0o660, "read"), (0o664, "written")):
            worker.path.chmod(mode)
            child = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); " + script
            # Imported before the change of user: the sources may lie where that user cannot read.
            done = subprocess.run(
                [sys.executable, "-c", "import tensor_fusion.client.vmcheck; " + child, segment_name],
                env=environment(**NATIVE),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1, done.stderr
            assert re.search(rf"cannot be {word} by user \w+; start the worker with --shmem-group", done.stdout)


def pci_device(folder: Path, name: str, target: Path | None, vendor: str = "0x1af4", device: str = "0x1110") -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "vendor").write_text(vendor + "\n")
    (made / "device").write_text(device + "\n")
    (made / "enable").write_text("0\n")
    if target:
        (made / "resource2").symlink_to(target)
    return made


def test_devices_are_found_and_enabled(segment_name: str, tmp_path: Path) -> None:
    pci = tmp_path / "pci"
    with SegmentWorker(segment_name, tmp_path) as worker:
        pci_device(pci, "0000:00:01.0", None, device="0x1237")
        found = pci_device(pci, "0000:00:04.0", worker.path)
        (pci / "0000:00:05.0").mkdir()
        assert vmcheck.find_devices(pci) == [found]
        checks = list(vmcheck.examine(None, 64, pci))
        assert all(check.passed for check in checks), checks
        assert [check.name for check in checks][:3] == ["device", "enabled", "file"]
        assert (found / "enable").read_text() == "1"
        assert checks[-1].text == f"shmem+{found}/resource2+64+0"


def test_no_device_is_a_sentence(tmp_path: Path) -> None:
    (only,) = vmcheck.examine(None, None, tmp_path)
    assert not only.passed
    assert "1af4:1110" in only.text


def test_fix_for_a_device_is_the_udev_rule() -> None:
    assert "udev rule" in segment_module.remedy(Path("/sys/bus/pci/devices/0000:00:04.0/resource2"))


# The whole stack


def real_worker(name: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion.worker", "-n", "shmem", "-m", name, "-M", "64", "--gpu", "sim"],
        env=environment(**NATIVE, TF_ENABLE_LOG="1", TF_LOG_PATH=str(folder / "log")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().startswith("ready shmem ")
    return process


def test_doctor_over_shared_memory(segment_name: str, tmp_path: Path) -> None:
    worker = real_worker(segment_name, tmp_path)
    try:
        done = cli("doctor", "--connect", f"shmem+{segment_name}+64+0", "--json")
        report = json.loads(done.stdout)
        assert done.returncode == 0, done.stdout
        assert [check["name"] for check in report["checks"]][-4:] == [
            "worker reachable",
            "memory type",
            "greeting",
            "devices",
        ]
        assert "H200" in report["checks"][-1]["text"]
        log = tmp_path / "log"
        # Both of its sessions end with it.
        assert eventually(lambda: log.read_text().count("ended with exit code 0") == 2), log.read_text()
        wrong = cli("doctor", "--connect", f"shmem+{segment_name}+32+0", "--json")
        assert wrong.returncode == 1
        assert "32 MB" in json.loads(wrong.stdout)["checks"][-1]["text"]
    finally:
        worker.terminate()
        worker.communicate(timeout=20)
    assert worker.returncode == 0
    gone = json.loads(cli("doctor", "--connect", f"shmem+{segment_name}+64+0", "--json").stdout)
    assert "does not exist" in gone["checks"][-1]["text"]


def test_demo_over_shared_memory() -> None:
    done = cli("demo", "--gpu", "sim", "--transport", "shmem", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["transport"].startswith("shared memory, /tensor-fusion-")
    assert eventually(lambda: not Path("/dev/shm" + report["transport"].split()[2].rstrip(",")).exists())


def test_run_passes_the_connection_on(segment_name: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    done = cli("run", "--connect", f"shmem+{segment_name}+64+0", "--", "sh", "-c", "env")
    assert f"TENSOR_FUSION_OPERATOR_CONNECTION_INFO=shmem+{segment_name}+64+0" in done.stdout
    assert time.monotonic() - begun < 30
