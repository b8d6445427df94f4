"""What this machine's CPU multiplies 8-bit integers with.

x64 CPUs without VNNI add pairs of products uint8·int8 in 16 bits, which saturates (VPMADDUBSW); weights of
seven bits cannot reach that. VNNI, AMX and all ARM kernels add in 32 bits.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_X64 = frozenset({"x86_64", "amd64"})
# The best comes first: what the system calls it, and what its makers do.
_DOT_PRODUCTS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot product",
    "hw.optional.arm.feat_dotprod: 1": "dot product",
}


@dataclass(frozen=True)
class Cpu:
    """A CPU as integer kernels see it.

    Attributes:
        machine: the architecture, such as ``x86_64`` or ``aarch64``.
        dot_product: its instructions for sums of 8-bit products in 32 bits; None if it has none.
        known: whether the system told; if not, it counts as having none.
    """

    machine: str
    dot_product: str | None
    known: bool = True

    @property
    def weight_bits(self) -> int:
        """How many bits the integers of weights may use: 7 where sums of products may saturate, else 8."""
        return 7 if self.machine.lower() in _X64 and self.dot_product is None else 8

    def __str__(self) -> str:
        if not self.known:
            found = "its integer instructions are unknown and taken for none"
        else:
            found = f"has {self.dot_product}" if self.dot_product else "has no integer dot product"
        return f"{self.machine}, {found}: {self.weight_bits}-bit weights"


@cache
def cpu() -> Cpu:
    """This machine's."""
    return identify(platform.machine(), _features())


def identify(machine: str, features: str | None) -> Cpu:
    """The CPU of which the system says this.

    Args:
        machine: the architecture.
        features: text that lists its features, of /proc/cpuinfo or sysctl; None if there is none.
    """
    if features is None:
        return Cpu(machine, None, known=False)
    lines = features.lower().splitlines()
    words = {word for line in lines for word in (line, *line.split())}
    return Cpu(machine, next((name for word, name in _DOT_PRODUCTS.items() if word in words), None))


def _features() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return cpuinfo.read_text()
    if sys.platform != "darwin":
        return None
    names = ["hw.optional.arm.FEAT_DotProd", "machdep.cpu.leaf7_features"]
    try:
        done = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout or None  # each machine knows one of the names
