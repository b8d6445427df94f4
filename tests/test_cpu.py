"""Which integer instructions a CPU has, from what systems say of it."""

import platform

import pytest

from graphopt.runtime.cpu import Cpu, cpu, identify


@pytest.mark.parametrize(
    ("machine", "features", "dot_product", "bits"),
    [
        ("x86_64", "model name : X\nflags\t\t: sse2 avx2 avx512_vnni amx_int8", "AMX", 8),
        ("x86_64", "flags : avx2 avx512bw avx512_vnni avx_vnni", "AVX-512 VNNI", 8),
        ("x86_64", "flags : avx2 avx_vnni", "AVX-VNNI", 8),
        ("x86_64", "flags : avx2 avx512bw", None, 7),
        ("AMD64", "flags : avx2", None, 7),
        ("x86_64", "machdep.cpu.leaf7_features: RDWRFSGSBASE AVX2 AVX512VNNI", "AVX-512 VNNI", 8),
        ("aarch64", "Features : fp asimd asimddp", "dot product", 8),
        ("aarch64", "Features : fp asimd", None, 8),
        ("arm64", "hw.optional.arm.FEAT_DotProd: 1", "dot product", 8),
        ("arm64", "hw.optional.arm.FEAT_DotProd: 0", None, 8),
    ],
)
def test_what_systems_say(machine, features, dot_product, bits):
    found = identify(machine, features)
    assert found == Cpu(machine, dot_product)
    assert found.weight_bits == bits


def test_an_unknown_cpu_counts_as_having_no_vnni_and_that_is_said():
    found = identify("AMD64", None)
    assert found.weight_bits == 7
    assert str(found) == "AMD64, its integer instructions are unknown and taken for none: 7-bit weights"


def test_this_machine_is_identified():
    assert cpu().machine == platform.machine()
