"""This machine's AMD and Apple GPUs, by sysfs and sysctl; the host's memory, where a GPU shares it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..results.fit import Gpu
from ..units import MIB

SYSFS = Path("/sys/class/drm")
MEMINFO = Path("/proc/meminfo")
AMD = "0x1002"  # the PCI vendor
MOST_DIGITS = 20  # of a number of bytes


def cards() -> tuple[Gpu, ...]:
    """AMD's and Apple's GPUs of this machine; empty if there are none."""
    return tuple(_apple() if sys.platform == "darwin" else _amd())


def _amd() -> Iterator[Gpu]:
    """Source: Linux, Documentation/gpu/amdgpu/driver-misc.rst, "Memory reporting" and product_name"""
    for device in sorted(SYSFS.glob("card[0-9]*/device")):
        total = _number(_line(device / "mem_info_vram_total"))
        if _line(device / "vendor") != AMD or not total:
            continue
        used = _number(_line(device / "mem_info_vram_used"))
        yield Gpu(
            name=_line(device / "product_name") or f"AMD GPU {_line(device / 'device')}",
            kind="here",
            maker="amd",
            memory_bytes=total,
            free_bytes=None if used is None else total - used,
        )


def _apple() -> Iterator[Gpu]:
    """usable_bytes: the limit that the user set; macOS reports its own default to Metal alone."""
    total = _number(_sysctl("hw.memsize"))
    limit = (_number(_sysctl("iogpu.wired_limit_mb")) or 0) * MIB
    if total:
        name = _sysctl("machdep.cpu.brand_string") or "Apple GPU"
        yield Gpu(name=name, kind="here", maker="apple", unified=True, memory_bytes=total, usable_bytes=limit or None)


def host_memory() -> tuple[int, int]:
    """(total, available) bytes of a Linux host, of which a GPU with unified memory has its own. Source: proc(5), meminfo"""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
    total, available = (int(lines[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    return total, available


def _sysctl(key: str) -> str:
    try:
        finished = subprocess.run(("sysctl", "-n", key), capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < MOST_DIGITS else None
